//! The price of a trigger in an hour without events.
//!
//! An hour of paused time passes in memory. The calls of the control store are then made of
//! DynamoDB in this process, and so is one look at the list of unpublished commits, whose price
//! every look has.
use super::tables::handler;
use crate::{
    BenchError,
    runner::{Call, Recorder, metered_in, price},
    table::{Bound, Goal, Row},
};
use async_trait::async_trait;
use foldstream::{
    Timestamp,
    ports::{ControlStore, EventStore, EventStoreError, ScanCursor, Segment, UnpublishedPage},
    publisher::{PollConfig, Publisher},
};
use foldstream_dynamodb::{
    PublishMode,
    streams::{
        ChangeStream, RecordPage, ShardDescription, ShardPage, ShardStart, StreamService,
        StreamServiceError, StreamsReader,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds, intercept,
    intercept::EventStoreLayer,
};
use serde_json::json;
use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);
/// The time in which a trigger starts.
const SETTLES: Duration = Duration::from_secs(120);
/// The time between two sweeps by the schedule of a function.
const SCHEDULE: Duration = Duration::from_secs(300);
/// The shards of a stream of a small table that is billed per request.
const SHARDS: usize = 4;

const fn at_most(measure: &'static str, goal: f64) -> Goal {
    Goal {
        measure,
        unit: "an hour",
        bound: Bound::AtMost,
        goal,
        is_ratio: false,
    }
}

/// The writes, reads and stream reads of an hour.
const fn goals(wcu: f64, rcu: f64, streams: f64) -> [Goal; 3] {
    [
        at_most("wcu", wcu),
        at_most("rcu", rcu),
        at_most("stream-reads", streams),
    ]
}

/// The works and their goals.
pub(super) const WORKS: [(&str, &[Goal]); 3] = [
    ("idle-poller", &goals(9_100.0, 40_000.0, 0.0)),
    ("idle-reader", &goals(2_600.0, 2_300.0, 14_400.0)),
    ("idle-lambda", &goals(24.0, 780.0, 0.0)),
];

/// The requests of an hour.
#[derive(Default)]
struct Counts {
    looks: AtomicU64,
    reads: AtomicU64,
}

impl Counts {
    fn now(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.looks), of(&self.reads))
    }
}

struct Looks(Arc<Counts>);
#[async_trait]
impl EventStoreLayer for Looks {
    async fn unpublished(
        &self,
        inner: &Arc<dyn EventStore>,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        self.0.looks.fetch_add(1, Ordering::Relaxed);
        inner.unpublished(segment, after, limit).await
    }
}

/// A change stream without records.
struct Silence(Arc<Counts>);
impl std::fmt::Debug for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Silence")
    }
}
#[async_trait]
impl StreamService for Silence {
    async fn stream(&self) -> Result<Option<ChangeStream>, StreamServiceError> {
        let (arn, label) = ("arn".into(), "label".into());
        Ok(Some(ChangeStream { arn, label }))
    }
    async fn shards(
        &self,
        _: &ChangeStream,
        _: Option<&str>,
    ) -> Result<ShardPage, StreamServiceError> {
        let shard = |n| ShardDescription {
            id: format!("shardId-{n}"),
            parent: None,
        };
        Ok(ShardPage {
            shards: (0..SHARDS).map(shard).collect(),
            next: None,
        })
    }
    async fn iterator(
        &self,
        _: &ChangeStream,
        shard: &str,
        _: &ShardStart,
    ) -> Result<String, StreamServiceError> {
        Ok(shard.into())
    }
    async fn records(&self, iterator: &str) -> Result<RecordPage, StreamServiceError> {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        Ok(RecordPage {
            records: Vec::new(),
            next: Some(iterator.into()),
        })
    }
}

/// Measures the rows of one work.
pub(super) fn rows(name: &str, goals: &[Goal], is_sabotaged: bool) -> Result<Vec<Row>, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(crate::io("no runtime"))?;
    let hour = runtime.block_on(hour(name, is_sabotaged))?;
    let mut cost = price(&hour.calls, hour.first, hour.end)?;
    if hour.looks > 0 {
        cost.read_units += price_of_look()? * hour.looks as f64;
    }
    let reads = hour.reads;
    let rows = goals.iter().map(|goal| {
        let value = match goal.measure {
            "wcu" => cost.write_units,
            "rcu" => cost.read_units,
            _ => reads as f64,
        };
        let note = format!("default settings, one instance, a stream of {SHARDS} shards; an hour of paused time in memory, whose calls are then made of DynamoDB; a function is invoked by the schedule of the sweep alone");
        Row::new(name, *goal, vec![value], Vec::new()).with_note(note)
    });
    Ok(rows.collect())
}

/// The requests of a trigger in an hour.
struct Hour {
    calls: Vec<Call>,
    /// The first call of the hour, and the one after it.
    first: usize,
    end: usize,
    looks: u64,
    reads: u64,
}

async fn hour(name: &str, is_sabotaged: bool) -> Result<Hour, BenchError> {
    let counts = Arc::<Counts>::default();
    let bus = InMemoryMessageBus::new();
    bus.create_topic("GlobalEvents", 6);
    let store = intercept::event_store(InMemoryEventStore::new(), Looks(counts.clone()));
    let recorder = Recorder::new(is_sabotaged);
    let control = Arc::new(intercept::control_store(
        InMemoryControlStore::new(),
        recorder,
    ));
    // The jitter of pauses is the same in every run.
    let publisher = Publisher::new(store, bus, control.clone()).with_ids(SeededIds::new(1));
    let trigger = run(name, publisher, control.clone(), counts.clone());
    let measured = async {
        tokio::time::sleep(SETTLES).await;
        let (first, before) = (control.layer().count(), counts.now());
        tokio::time::sleep(HOUR).await;
        let after = counts.now();
        Hour {
            end: control.layer().count(),
            calls: control.layer().calls(),
            first,
            looks: after.0 - before.0,
            reads: after.1 - before.1,
        }
    };
    tokio::select! {
        biased;
        ended = trigger => Err(BenchError::other(format!("the trigger has ended: {ended:?}"))),
        hour = measured => Ok(hour),
    }
}

/// Runs a trigger forever.
async fn run(
    name: &str,
    publisher: Publisher,
    control: impl ControlStore,
    counts: Arc<Counts>,
) -> Result<(), BenchError> {
    let forever = std::future::pending();
    match name {
        "idle-poller" => {
            let polled = publisher.poll(PollConfig::default(), forever).await;
            polled.map(drop).map_err(BenchError::other)
        }
        "idle-reader" => {
            let reader = StreamsReader::over(Silence(counts), control, publisher);
            let read = reader.with_ids(SeededIds::new(2)).run(forever).await;
            read.map(drop).map_err(BenchError::other)
        }
        _ => {
            let handler = handler(publisher);
            loop {
                let deadline = Timestamp::now().plus(HOUR);
                let schedule = json!({"foldstream": "sweep"});
                let swept = handler.handle(&schedule, deadline).await;
                swept.map_err(BenchError::other)?;
                tokio::time::sleep(SCHEDULE).await;
            }
        }
    }
}

/// Returns the read units of a look at one segment of an empty list.
fn price_of_look() -> Result<f64, BenchError> {
    metered_in(PublishMode::Poller, async |endpoint, stores| {
        endpoint.take_cost();
        let segments = PollConfig::default().segments;
        for segment in Segment::split(segments) {
            let page = stores
                .event_store()
                .unpublished(segment, None, NonZeroU32::MIN)
                .await;
            page.map_err(BenchError::other)?;
        }
        Ok(endpoint.take_cost().read_units / f64::from(segments))
    })
}
