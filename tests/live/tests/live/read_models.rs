//! Read models on DynamoDB Local, or on the server that `FOLDSTREAM_DYNAMODB_ENDPOINT` names.
//!
//! The rules are tested with the adapter. These tests show that a real server keeps the conditions,
//! sizes, indexes and pages on which the rules rest.
use foldstream::{
    CommitId, DomainEvent, EventHeader, StreamId, Timestamp, Version,
    runner::{
        ErrorClass, EventContext, EventSource, HandlerError, HandlerResult, ModelId, Position,
        Projector as _,
    },
};
use foldstream_dynamodb::{
    DynamoDb, IndexKey, IndexQuery, ReadModel, ReadModelError, ReadModelRow, RowKeys, TableOptions,
    create_tables,
};
use foldstream_live::dynamodb_config;
use foldstream_testkit::containers;
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, num::NonZeroU32};

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "meter")]
enum MeterEvent {
    Read { value: u64 },
    Labelled { bytes: u64 },
}
use MeterEvent::{Labelled, Read};

/// A row per meter, listed by its number of values.
#[derive(Default, Serialize, Deserialize)]
struct Meter {
    values: Vec<u64>,
    label: String,
}
impl ReadModelRow for Meter {
    const NAME: &'static str = "meters";
    type Events = MeterEvent;

    fn apply(row: &mut Option<Self>, event: &MeterEvent, _: &EventContext) -> HandlerResult {
        let meter = row.get_or_insert_default();
        match event {
            Read { value } => meter.values.push(*value),
            Labelled { bytes } => meter.label = "x".repeat(usize::try_from(*bytes)?),
        }
        Ok(())
    }
    fn index(&self) -> Option<IndexKey> {
        let last = self.values.last()?;
        Some(IndexKey::new("all").with_sort(format!("{last:04}")))
    }
}

/// One row that all meters feed.
#[derive(Default, Serialize, Deserialize)]
struct Board(BTreeMap<StreamId, Vec<u64>>);
impl ReadModelRow for Board {
    const NAME: &'static str = "boards";
    type Events = MeterEvent;
    const KEYS: RowKeys<MeterEvent> = RowKeys::Of(|_, _| vec!["all".into()]);

    fn apply(row: &mut Option<Self>, event: &MeterEvent, ctx: &EventContext) -> HandlerResult {
        if let Read { value } = event {
            let values = &mut row.get_or_insert_default().0;
            values.entry(ctx.stream().clone()).or_default().push(*value);
        }
        Ok(())
    }
}

fn model() -> ModelId {
    ModelId::new("meters", 1)
}
fn meter(id: impl std::fmt::Display) -> StreamId {
    StreamId::new("meter", &id).unwrap()
}

async fn stores() -> DynamoDb {
    let server = containers::DynamoDb::shared().await;
    let config = dynamodb_config(server.endpoint(), &CommitId::random().to_string());
    create_tables(&config, &TableOptions::default())
        .await
        .unwrap();
    let stores = DynamoDb::connect(config).await.unwrap();
    let rows = stores.read_model::<Meter>();
    rows.create_table(&model()).await.unwrap();
    // Also over a table that exists.
    rows.prepare(&model()).await.unwrap();
    stores
}

async fn project<T: ReadModelRow<Events = MeterEvent>>(
    rows: &ReadModel<T>,
    stream: &StreamId,
    version: u64,
    event: MeterEvent,
) -> HandlerResult {
    let id = CommitId::from_u128(version.into()).event_id(0);
    let at = Timestamp::from_micros(0);
    let header = EventHeader::new(id, stream.clone(), Version::new(version), "Read", at);
    let ctx = EventContext::new(model(), header, EventSource::History);
    rows.project(&event, &ctx).await
}
/// Projects these versions, each of which reads its own number.
async fn read<T: ReadModelRow<Events = MeterEvent>>(
    rows: &ReadModel<T>,
    stream: &StreamId,
    versions: std::ops::RangeInclusive<u64>,
) {
    for value in versions {
        project(rows, stream, value, Read { value }).await.unwrap();
    }
}
async fn position<T: ReadModelRow>(rows: &ReadModel<T>, stream: &StreamId) -> u64 {
    match rows.position(&model(), stream).await.unwrap() {
        Position::Stored { version, .. } => version.get(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_process_that_has_lost_its_partition_changes_nothing() {
    let stores = stores().await;
    // Each value has a buffer of its own, as a process has.
    let (old, owner) = (stores.read_model::<Meter>(), stores.read_model::<Meter>());
    let stream = meter(1);
    read(&old, &stream, 1..=2).await;
    old.flush(&model()).await.unwrap();
    read(&old, &stream, 3..=4).await;
    read(&owner, &stream, 3..=6).await;
    owner.flush(&model()).await.unwrap();
    old.flush(&model()).await.unwrap();
    let row = owner.get(&model(), "meter#1").await.unwrap().unwrap();
    assert_eq!(row.values, [1, 2, 3, 4, 5, 6]);
    assert_eq!(position(&owner, &stream).await, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn several_processes_feed_one_row_at_the_same_time() {
    let stores = stores().await;
    let writers = (0..5).map(|id| {
        let rows = stores.read_model::<Board>();
        tokio::spawn(async move {
            let stream = meter(id);
            for version in 1..=12 {
                read(&rows, &stream, version..=version).await;
                // On a busy machine the others may win often enough for a flush to give up.
                while let Err(error) = rows.flush(&model()).await {
                    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let rows = stores.read_model::<Board>();
    let board = rows.get(&model(), "all").await.unwrap().unwrap();
    let expected: Vec<u64> = (1..=12).collect();
    assert_eq!(board.0.len(), 5);
    for (stream, values) in board.0 {
        assert_eq!(values, expected, "{stream}");
        assert_eq!(position(&rows, &stream).await, 12);
    }
}

/// The adapter measures items by DynamoDB's rule: what it accepts, the server accepts.
#[tokio::test]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn the_largest_row_that_is_accepted_is_stored() {
    let stores = stores().await;
    let rows = stores.read_model::<Meter>();
    let stream = meter(1);
    read(&rows, &stream, 1..=1).await;
    rows.flush(&model()).await.unwrap();
    let (mut fits, mut too_large) = (1, 500_000);
    while too_large - fits > 1 {
        let bytes = u64::midpoint(fits, too_large);
        let rows = stores.read_model::<Meter>();
        match project(&rows, &stream, 2, Labelled { bytes }).await {
            Ok(()) => fits = bytes,
            Err(error) => {
                assert!(is_too_large(&error), "{error}");
                too_large = bytes;
            }
        }
    }
    project(&rows, &stream, 2, Labelled { bytes: fits })
        .await
        .unwrap();
    rows.flush(&model()).await.unwrap();
    let row = rows.get(&model(), "meter#1").await.unwrap().unwrap();
    assert_eq!(row.label.len() as u64, fits);
}
fn is_too_large(error: &HandlerError) -> bool {
    let error = error.source().downcast_ref();
    matches!(error, Some(ReadModelError::TooLarge { .. }))
}

#[tokio::test]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn rows_are_listed_by_the_index_and_deleted_by_a_reset() {
    let stores = stores().await;
    let rows = stores.read_model::<Meter>();
    for id in 1..=30 {
        project(&rows, &meter(id), 1, Read { value: id })
            .await
            .unwrap();
    }
    rows.flush(&model()).await.unwrap();
    let query = IndexQuery::new("all")
        .with_sort_prefix("001")
        .descending()
        .with_page_size(NonZeroU32::new(4).unwrap())
        .with_start_after("meter#18", "0018");
    let listed: Vec<_> = rows.query(&model(), &query).try_collect().await.unwrap();
    let values: Vec<u64> = listed.iter().map(|(_, row)| row.values[0]).collect();
    assert_eq!(values, (10..18).rev().collect::<Vec<_>>());
    let all: BTreeMap<_, _> = rows.all(&model()).try_collect().await.unwrap();
    assert_eq!(all.len(), 30);

    rows.reset(&model()).await.unwrap();
    let left: Vec<_> = rows.all(&model()).try_collect().await.unwrap();
    assert!(left.is_empty());
    assert_eq!(position(&rows, &meter(1)).await, 0);
}
