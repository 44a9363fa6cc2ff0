//! The handler of the function: publishes the streams of a batch, or sweeps.
use crate::{
    batch::{Batch, Pending},
    connections::Connections,
    event::{Event, InvalidEvent, SequenceNumber},
    freeze::Reading,
};
use foldstream::{
    Clock, StreamId, SystemClock, Timestamp,
    publisher::{PublishReport, Publisher, SweepConfig, SweepError, SweepReport},
};
use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// The time before the deadline of an invocation at which publishing ends, so that streams can be
/// set aside.
const ROWS: Duration = Duration::from_secs(2);
/// The time before the deadline at which everything ends, so that the answer arrives in time.
const ANSWER: Duration = Duration::from_millis(500);
/// The time for which a client may count records that it has just reported as acknowledged.
const LINGER: Duration = Duration::from_millis(100);
/// The streams that are set aside at the same time.
const ASIDE: usize = 32;

/// The handler of the function's events, over a publisher.
///
/// It answers a batch of the events table's stream with the records that are to come again, and an
/// event of a schedule with the result of a sweep. When it has answered, nothing is in flight.
///
/// # Example
/// ```
/// use async_trait::async_trait;
/// use foldstream::{Timestamp, publisher::Publisher};
/// use foldstream_lambda::{Connections, Handler, Response};
/// use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
/// use serde_json::json;
/// use std::time::Duration;
///
/// #[derive(Debug)]
/// struct Local;
/// #[async_trait]
/// impl Connections for Local {
///     fn unacknowledged(&self) -> usize {
///         0
///     }
///     async fn reconnect(&self) {}
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let (store, bus) = (InMemoryEventStore::new(), InMemoryMessageBus::new());
/// let publisher = Publisher::new(store, bus, InMemoryControlStore::new());
/// let handler = Handler::new(publisher, Local);
/// let deadline = Timestamp::now().plus(Duration::from_secs(60));
/// let answer = handler.handle(&json!({"Records": []}), deadline).await?;
/// assert_eq!(serde_json::to_string(&answer)?, r#"{"batchItemFailures":[]}"#);
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Debug)]
pub struct Handler {
    publisher: Publisher,
    connections: Arc<dyn Connections>,
    clock: Arc<dyn Clock>,
    max_age: Duration,
    freeze: Duration,
    sweep: SweepConfig,
    stop: CancellationToken,
    /// The clocks at the end of the last invocation, or at the start of this process.
    last: Mutex<Reading>,
}

impl Handler {
    /// The default of [`with_max_age`](Self::with_max_age).
    pub(crate) const MAX_AGE: Duration = Duration::from_secs(6 * 3600);
    /// The default of [`with_max_behind`](Self::with_max_behind).
    pub(crate) const MAX_BEHIND: u64 = 1_000;
    /// The default of [`with_freeze`](Self::with_freeze).
    pub(crate) const FREEZE: Duration = Duration::from_secs(30);

    /// Creates a handler. The connections are those of the publisher's bus.
    pub fn new(publisher: Publisher, connections: impl Connections) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Self {
            publisher: publisher.with_max_behind(Self::MAX_BEHIND),
            connections: Arc::new(connections),
            last: Mutex::new(Reading::new(clock.now(), Instant::now())),
            clock,
            max_age: Self::MAX_AGE,
            freeze: Self::FREEZE,
            sweep: SweepConfig::default(),
            stop: CancellationToken::new(),
        }
    }
    /// Sets the age after which a record is not published but its stream set aside, for the sweep.
    /// Default: 6 h. A stream of DynamoDB keeps records for 24 h, so a shard that is that late must
    /// catch up before it loses records.
    #[must_use]
    pub const fn with_max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }
    /// Sets the most events that a stream may lack before the first record of a batch. Default:
    /// 1,000. A longer backlog is left to the sweep, since it could use up the time of the batch.
    #[must_use]
    pub fn with_max_behind(mut self, events: u64) -> Self {
        self.publisher = self.publisher.with_max_behind(events);
        self
    }
    /// Sets the pause between two invocations after which the bus connects again. Default: 30 s.
    /// Lambda freezes the process in such pauses, and its connections die unseen.
    #[must_use]
    pub const fn with_freeze(mut self, pause: Duration) -> Self {
        self.freeze = pause;
        self
    }
    /// Sets how dirty streams are tried again.
    #[must_use]
    pub const fn with_sweep(mut self, sweep: SweepConfig) -> Self {
        self.sweep = sweep;
        self
    }
    /// Sets the clock by which deadlines, ages and freezes are measured.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.last = Mutex::new(Reading::new(clock.now(), Instant::now()));
        self.clock = clock;
        self
    }

    /// Returns the token that ends the work of the running invocation early, as its deadline would.
    pub(crate) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Handles one event of the function, which Lambda stops at the deadline.
    ///
    /// # Errors
    /// [`HandlerError`]: nothing of the event may be forgotten, and Lambda delivers it again.
    pub async fn handle(
        &self,
        event: &Value,
        deadline: Timestamp,
    ) -> Result<Response, HandlerError> {
        let event = Event::read(event)?;
        let (began, mut now) = (self.reading(), Instant::now());
        if began.is_after_a_freeze(self.last(), self.freeze) {
            tracing::info!("the function was frozen, and connects again");
            self.connections.reconnect().await;
            now = Instant::now();
        }
        let time = Time::until(now, deadline.since(self.clock.now()));
        let response = match event {
            Event::Batch(records) => {
                let batch = Batch::new(records, self.clock.now(), self.max_age);
                Ok(Response::Batch(self.publish(&batch, time).await))
            }
            Event::Sweep => self.swept(time).await.map(Response::Sweep),
        };
        self.settle(began).await;
        response
    }

    fn reading(&self) -> Reading {
        Reading::new(self.clock.now(), Instant::now())
    }
    fn last(&self) -> Reading {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up what is still in flight: once the function has answered, it may be frozen for as
    /// long as Lambda likes.
    async fn settle(&self, began: Reading) {
        let mut unacknowledged = self.connections.unacknowledged();
        let until = Instant::now() + LINGER;
        while unacknowledged > 0 && Instant::now() < until {
            tokio::time::sleep(LINGER / 20).await;
            unacknowledged = self.connections.unacknowledged();
        }
        if unacknowledged > 0 || self.reading().stood_still_since(began) {
            tracing::warn!(records = unacknowledged, "records in flight are given up");
            self.connections.reconnect().await;
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = self.reading();
    }

    async fn publish(&self, batch: &Batch, time: Time) -> BatchAnswer {
        // The old streams first: they cost little, and nothing else remembers them.
        let mut uncovered = self.set_aside(batch.old(), time.rows).await;
        let old = batch.old().len() - uncovered.len();
        let report = self.publish_until(batch, time.publish).await;
        let failures = batch.after(&report);
        let mut backlog = 0;
        if failures.has_succeeded {
            let left = self.set_aside(&failures.streams, time.rows).await;
            backlog = failures.streams.len() - left.len();
            uncovered.extend(left);
        } else {
            uncovered.extend(failures.streams.into_values().map(|pending| pending.first));
        }
        let first = uncovered.iter().min();
        log(batch, &report, [old, backlog], first);
        BatchAnswer::of(first)
    }

    async fn publish_until(&self, batch: &Batch, deadline: Instant) -> PublishReport {
        // A stop is a deadline that comes now. What is dropped then is covered by no watermark.
        let publish = self.publisher.publish_until(batch.notices(), deadline);
        tokio::select! {
            biased;
            report = publish => report,
            () = self.stop.cancelled() => {
                self.publisher.publish_until(batch.notices(), Instant::now()).await
            }
        }
    }

    /// Sets streams aside, and returns the first records of those for which that has failed.
    async fn set_aside(
        &self,
        streams: &BTreeMap<StreamId, Pending>,
        deadline: Instant,
    ) -> Vec<SequenceNumber> {
        let rows = stream::iter(streams).map(|(stream, pending)| async move {
            let row = self.publisher.set_aside(stream, pending.known, pending.why);
            match timeout_at(deadline, row).await {
                Ok(Ok(())) => return None,
                Ok(Err(error)) => {
                    let error = foldstream::chain(&error);
                    tracing::warn!(%stream, error, "the stream cannot be noted as dirty, so its records must come again");
                }
                Err(_) => {
                    tracing::warn!(%stream, "there was no time to note the stream as dirty, so its records must come again");
                }
            }
            Some(pending.first.clone())
        });
        let rows = rows.buffer_unordered(ASIDE);
        rows.filter_map(std::future::ready).collect().await
    }

    async fn swept(&self, time: Time) -> Result<SweepAnswer, HandlerError> {
        let sweep = self.publisher.sweep_until(&self.sweep, time.rows);
        let report = tokio::select! {
            biased;
            report = sweep => report?,
            () = self.stop.cancelled() => {
                let mut report = SweepReport::default();
                report.is_cut_short = true;
                report
            }
        };
        let answer = SweepAnswer::from(&report);
        tracing::info!(
            found = answer.found,
            published = answer.published,
            still_dirty = answer.still_dirty,
            messages = answer.messages,
            "the dirty streams were swept"
        );
        Ok(answer)
    }
}

fn log(
    batch: &Batch,
    report: &PublishReport,
    [old, backlog]: [usize; 2],
    first: Option<&SequenceNumber>,
) {
    for failure in &report.failed {
        let error = foldstream::chain(&failure.error);
        tracing::warn!(stream = %failure.stream, is_dirty = failure.is_dirty, error, "the stream is not up to date");
    }
    tracing::info!(
        records = batch.records,
        streams = report.published.len(),
        messages = report.messages,
        failed = report.failed.len(),
        old,
        backlog,
        again_from = first.map(SequenceNumber::as_str),
        "the batch was published"
    );
}

/// The times at which the parts of an invocation end.
#[derive(Clone, Copy, Debug)]
struct Time {
    publish: Instant,
    rows: Instant,
}
impl Time {
    fn until(now: Instant, left: Duration) -> Self {
        let rows = left - ANSWER.min(left / 8);
        Self {
            publish: now + (rows - ROWS.min(rows / 4)),
            rows: now + rows,
        }
    }
}

/// The answer of the function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Response {
    /// The answer to a batch of a stream.
    Batch(BatchAnswer),
    /// The answer to a schedule.
    Sweep(SweepAnswer),
}

/// The answer to a batch of a stream: a partial batch response, which Lambda understands if the
/// mapping says `ReportBatchItemFailures`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchAnswer {
    batch_item_failures: Vec<ItemFailure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemFailure {
    item_identifier: String,
}

impl BatchAnswer {
    fn of(first: Option<&SequenceNumber>) -> Self {
        let failure = first.map(|first| ItemFailure {
            item_identifier: first.as_str().to_owned(),
        });
        Self {
            batch_item_failures: failure.into_iter().collect(),
        }
    }

    /// Returns the sequence number from which on all records come again. `None` if the whole batch
    /// may be forgotten.
    pub fn again_from(&self) -> Option<&str> {
        let first = self.batch_item_failures.first();
        first.map(|failure| &*failure.item_identifier)
    }
}

/// The answer to a schedule: the result of the sweep, in numbers of streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SweepAnswer {
    /// The number of dirty streams that were found.
    pub found: u64,
    /// The number of streams that are published now and not dirty any more.
    pub published: u64,
    /// The number of streams that were tried and are still dirty.
    pub still_dirty: u64,
    /// The number of streams whose next attempt is later.
    pub not_due: u64,
    /// The number of records that the bus has acknowledged.
    pub messages: u64,
    /// True if another process is sweeping, so that this invocation has done nothing.
    pub is_elsewhere: bool,
    /// True if there was no time for all streams. The next sweep continues.
    pub is_cut_short: bool,
}

impl From<&SweepReport> for SweepAnswer {
    fn from(report: &SweepReport) -> Self {
        Self {
            found: report.found,
            published: report.published,
            still_dirty: report.still_dirty,
            not_due: report.not_due,
            messages: report.messages,
            is_elsewhere: report.is_elsewhere,
            is_cut_short: report.is_cut_short,
        }
    }
}

/// The error returned for an event of which nothing may be forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandlerError {
    /// The function does not understand the event.
    #[error("the event was not handled")]
    Event(#[from] InvalidEvent),
    /// The dirty streams could not be tried again.
    #[error("the sweep failed, and the next one tries again")]
    Sweep(#[from] SweepError),
}
