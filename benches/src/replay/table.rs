//! A table of events, and the ways to it.
use crate::{
    BenchError,
    account::{AccountEvent, Deposit},
    store::{Endpoint, config, over, without_stream},
};
use foldstream::{
    CommitId, DomainEvent, Metadata, StreamHead, StreamId, Timestamp,
    ports::{Append, AppendOutcome, EventData, EventStore},
};
use foldstream_dynamodb::{DynamoDb, PublishMode, TableOptions, create_tables};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;

/// The number of commits of each stream.
const COMMITS: u64 = 10;
/// The number of streams that are filled at the same time.
const AT_ONCE: usize = 16;

/// The streams of a table, all of the same length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) streams: u64,
    /// The number of events of each commit.
    pub(super) events_each: u64,
}

impl Shape {
    /// Returns the shape of a table with about so many events.
    pub(super) fn of(events: u64, events_each: u64) -> Self {
        Self {
            streams: (events / COMMITS / events_each).max(1),
            events_each,
        }
    }

    /// Returns the number of events of a stream.
    const fn length(self) -> u64 {
        COMMITS * self.events_each
    }

    /// Returns the number of all events.
    pub(super) const fn events(self) -> u64 {
        self.streams * self.length()
    }

    /// Returns the sum of all versions and of what is deposited, which is the version each time.
    pub(super) const fn sum(self) -> u64 {
        self.streams * self.length() * (self.length() + 1)
    }
}

/// A table that is filled.
pub(super) struct Table<'a> {
    pub(super) shape: Shape,
    /// The name of the table.
    pub(super) name: Arc<str>,
    pub(super) endpoint: &'a Endpoint,
    pub(super) direct: DynamoDb,
    pub(super) metered: DynamoDb,
    pub(super) recorded: DynamoDb,
}

impl<'a> Table<'a> {
    /// Creates a table and fills it, outside of the measurement.
    pub(super) async fn fill(endpoint: &'a Endpoint, shape: Shape) -> Result<Self, BenchError> {
        let mode = PublishMode::Stream;
        let config = config(&endpoint.direct, mode);
        create_tables(&config, &TableOptions::default())
            .await
            .map_err(BenchError::other)?;
        let table = Self {
            shape,
            name: config.events_table().into(),
            direct: over(&endpoint.direct, mode).await?,
            metered: over(&endpoint.metered, mode).await?,
            recorded: over(&endpoint.recorded, mode).await?,
            endpoint,
        };
        without_stream(&table.direct, &table.name).await?;
        let store: Arc<dyn EventStore> = Arc::new(table.direct.event_store());
        let streams = futures::stream::iter(0..shape.streams)
            .map(|n| fill_stream(store.clone(), shape, n))
            .buffer_unordered(AT_ONCE);
        streams.try_collect::<()>().await?;
        Ok(table)
    }
}

async fn fill_stream(store: Arc<dyn EventStore>, shape: Shape, n: u64) -> Result<(), BenchError> {
    let stream = StreamId::new("account", &format!("a-{n:08}")).map_err(BenchError::other)?;
    let mut head = StreamHead::empty(stream);
    let mut version = 1..;
    for _ in 0..COMMITS {
        let versions = version
            .by_ref()
            .take(usize::try_from(shape.events_each).unwrap_or(1));
        let events = versions.map(event).collect::<Result<Vec<_>, _>>()?;
        let metadata = Metadata::new()
            .with_correlation_id(format!("request-{n:08}"))
            .with_causation_id(format!("message-{n:08}"));
        let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
        let append = append.with_metadata(metadata);
        head = match store.append(&append).await.map_err(BenchError::other)? {
            AppendOutcome::Appended(head) => head,
            other => return Err(BenchError::other(format!("a commit is not new: {other:?}"))),
        };
    }
    Ok(())
}

/// Creates an event of 80 bytes.
pub(super) fn event(amount: u64) -> Result<EventData, BenchError> {
    let event = AccountEvent::Deposited(Deposit::of_80_bytes(amount));
    let mut payload = Vec::new();
    let kind = event.event_type();
    event.encode(&mut payload).map_err(BenchError::other)?;
    Ok(EventData::new(kind.name(), 1, payload))
}
