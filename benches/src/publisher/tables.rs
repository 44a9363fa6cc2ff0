//! Tables with events, and publishers of them.
use super::changes::Changes;
use crate::{
    BenchError,
    store::{Cost, Endpoint, config, over},
};
use async_trait::async_trait;
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp,
    control::Watermarks,
    ports::{Append, AppendOutcome, ControlStore, EventData, EventStore as _, MessageBus, Segment},
    publisher::Publisher,
};
use foldstream_dynamodb::{
    DynamoDb, PublishMode, TableOptions, create_tables,
    streams::{ReaderState, StreamsConfig, StreamsReader},
};
use foldstream_lambda::{Connections, Handler};
use foldstream_testkit::SeededIds;
use serde_json::json;
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::{task::JoinHandle, time::Instant};

/// The triggers of a publisher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trigger {
    Poller,
    Reader,
    Lambda,
}

/// The time in which something is published, or the measurement fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Streams of a table, at the emulator in this process.
pub(super) struct Table<'a> {
    pub(super) endpoint: &'a Endpoint,
    /// The stores at the emulator itself, whose requests are not counted.
    pub(super) direct: DynamoDb,
    heads: Vec<StreamHead>,
}

impl<'a> Table<'a> {
    pub(super) async fn create(
        endpoint: &'a Endpoint,
        mode: PublishMode,
        streams: u64,
    ) -> Result<Self, BenchError> {
        let settings = config(&endpoint.direct, mode);
        create_tables(&settings, &TableOptions::default())
            .await
            .map_err(BenchError::other)?;
        let heads = (0..streams).map(|n| {
            let stream = StreamId::new("account", &format!("a-{n:06}"));
            stream.map(StreamHead::empty).map_err(BenchError::other)
        });
        Ok(Self {
            direct: over(&endpoint.direct, mode).await?,
            heads: heads.collect::<Result<_, _>>()?,
            endpoint,
        })
    }

    /// Appends an event of 80 bytes to each stream, as a commit of its own.
    pub(super) async fn append(&mut self, stores: &DynamoDb) -> Result<(), BenchError> {
        for number in 0..self.heads.len() {
            self.append_to(stores, number).await?;
        }
        Ok(())
    }

    pub(super) async fn append_to(
        &mut self,
        stores: &DynamoDb,
        number: usize,
    ) -> Result<StreamHead, BenchError> {
        let head = &mut self.heads[number];
        let data = format!(r#"{{"amount":1,"note":"{:60}"}}"#, "");
        let event = EventData::new("Deposited", 1, data);
        let append = Append::after(head.clone(), CommitId::random(), Timestamp::now(), [event]);
        match stores.event_store().append(&append).await {
            Ok(AppendOutcome::Appended(after)) => *head = after,
            other => return Err(BenchError::other(format!("{other:?}"))),
        }
        Ok(head.clone())
    }

    /// Waits until all watermarks are at their tails.
    pub(super) async fn until_published(&self) -> Result<(), BenchError> {
        let marks = Watermarks::new(self.direct.control_store(), SeededIds::new(1));
        let deadline = Instant::now() + PATIENCE;
        for head in &self.heads {
            loop {
                let mark = marks.get(head.stream()).await.map_err(BenchError::other)?;
                if mark.map(|mark| mark.value.version) == Some(head.version()) {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(BenchError::other(format!(
                        "{} is not published",
                        head.stream()
                    )));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        self.until_cleared(deadline).await
    }

    /// Waits until no marker is left, if there are markers.
    async fn until_cleared(&self, deadline: Instant) -> Result<(), BenchError> {
        let store = self.direct.event_store();
        while store.capabilities().lists_unpublished {
            let page = store.unpublished(Segment::ALL, None, NonZeroU32::MIN).await;
            if page.map_err(BenchError::other)?.keys.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(BenchError::other("markers are left"));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// A bus that has nothing to reconnect.
#[derive(Debug)]
struct Local;
#[async_trait]
impl Connections for Local {
    fn unacknowledged(&self) -> usize {
        0
    }
    async fn reconnect(&self) {}
}

/// Creates the handler of a function whose clients need no care.
pub(super) fn handler(publisher: Publisher) -> Handler {
    Handler::new(publisher, Local)
}

/// Invokes a function with all new records of a table.
pub(super) async fn invoke(handler: &Handler, changes: &mut Changes) -> Result<(), BenchError> {
    let records = changes.next().await?;
    for batch in records.chunks(1_000) {
        let deadline = Timestamp::now().plus(PATIENCE);
        let answer = handler.handle(&json!({"Records": batch}), deadline).await;
        let answer = serde_json::to_value(answer.map_err(BenchError::other)?)?;
        if answer != json!({"batchItemFailures": []}) {
            return Err(BenchError::other(answer.to_string()));
        }
    }
    Ok(())
}

/// A way to publish what was appended to a table.
pub(super) enum Publishing {
    /// The requests of a poller, without its pauses.
    Pending(Box<Publisher>),
    Invocations(Box<(Handler, Changes)>),
    /// A reader that runs, and does nothing by the clock in the time of a measurement.
    Reading(JoinHandle<()>),
}

impl Publishing {
    pub(super) async fn start(
        trigger: Trigger,
        table: &Table<'_>,
        mode: PublishMode,
        bus: impl MessageBus,
        control: impl FnOnce(&DynamoDb) -> Arc<dyn ControlStore>,
    ) -> Result<Self, BenchError> {
        let stores = over(&table.endpoint.metered, mode).await?;
        let publisher = Publisher::new(stores.event_store(), bus, control(&stores));
        Ok(match trigger {
            Trigger::Poller => Self::Pending(Box::new(publisher)),
            Trigger::Lambda => {
                let changes = Changes::open(&table.endpoint.direct, "events").await?;
                Self::Invocations(Box::new((handler(publisher), changes)))
            }
            Trigger::Reader => {
                let hours = Duration::from_secs(24 * 3600);
                let config = StreamsConfig::default()
                    .with_lease(hours)
                    .with_coordination(hours)
                    .with_description(hours)
                    .with_checkpoint(hours)
                    .with_min_pause(Duration::from_millis(1))
                    .with_idle_pause(Duration::from_millis(10));
                let reader = StreamsReader::new(&stores, publisher).await;
                let reader = reader.map_err(BenchError::other)?.with_config(config);
                let running = reader.clone();
                let task = tokio::spawn(async move {
                    // The measurement fails if the reader ends.
                    let _ = running.run(std::future::pending()).await;
                });
                let deadline = Instant::now() + PATIENCE;
                while reader.status().state != ReaderState::Reading {
                    if Instant::now() > deadline {
                        return Err(BenchError::other("the reader does not read"));
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Self::Reading(task)
            }
        })
    }

    /// Publishes what was appended, and returns the cost.
    pub(super) async fn publish(&mut self, table: &Table<'_>) -> Result<Cost, BenchError> {
        match self {
            Self::Pending(publisher) => {
                let found = publisher
                    .publish_pending()
                    .await
                    .map_err(BenchError::other)?;
                if !found.failed.is_empty() {
                    return Err(BenchError::other(format!("{:?}", found.failed)));
                }
            }
            Self::Invocations(both) => invoke(&both.0, &mut both.1).await?,
            Self::Reading(_) => {}
        }
        table.until_published().await?;
        Ok(table.endpoint.take_cost())
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        if let Self::Reading(task) = self {
            task.abort();
        }
    }
}
