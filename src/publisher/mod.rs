//! The publisher: brings what the event store holds to the message bus.
//!
//! **Guarantees.** Nothing is lost: an event counts as published only once the bus has acknowledged it. Within a stream
//! the first occurrences are in version order. Duplicates are possible, after a crash or a lost answer or with two
//! publishers at once, and carry the same event id.
//!
//! **One algorithm, several triggers.** Whatever learns that a stream has something new calls
//! [`publish`](Publisher::publish) with a [`Notice`]; [`poll`](Publisher::poll) is the trigger that needs nothing but
//! the store's own list of unpublished commits. Notices are hints: late, duplicate, reordered or missing notices affect
//! when an event is published, never which events or in what order. **A trigger may forget a notice only when the report does not name its
//! stream as failed.**
//!
//! **Why not mark as published, then send?** Because the send may fail: the events are lost. And why not send several at
//! once? Because the producer may drop one in the middle: the order is lost.
//!
//! **Stuck streams.** A stream that cannot be published (an event larger than the topic takes, a forked history)
//! is reported, keeps its markers, and is tried again later; all others go on. There is no durable list of stuck streams
//! yet: where no markers are kept, the trigger must keep the notice.
mod bells;
mod checked_topics;
mod config;
mod error;
mod poller;
mod report;
mod state;
mod stream;
mod topics;

pub use bells::Notice;
pub use config::{PollConfig, TopicRoute};
pub use error::{PollError, PublishError, TopicError};
pub use report::{PollReport, PublishReport, StreamFailure};

use crate::{
    Backoff, Clock, IdSource, RetryPolicy, SourceUri, StreamId, SystemClock, SystemIds,
    TraceContext,
    control::{Rows, TopicPins, Watermarks},
    keyed::KeyedLock,
    ports::{
        ControlStore, EventStore, EventStoreError, MessageBus, ScanCursor, Segment,
        UnpublishedPage, shared,
    },
    resilience::{Attempts, Failure, Retryable},
};
use bells::Bells;
use checked_topics::Topics;
use futures::{StreamExt, stream::FuturesUnordered};
use state::Marks;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Publishes streams. Cloning shares what it remembers; one is enough for a process.
///
/// # Example
/// ```no_run
/// # use foldstream::{ports::*, publisher::*};
/// # use std::{future::Future, sync::Arc};
/// # async fn run(
/// #     store: Arc<dyn EventStore>, bus: Arc<dyn MessageBus>, control: Arc<dyn ControlStore>,
/// #     shutdown: impl Future<Output = ()> + Send,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let publisher = Publisher::new(store, bus, control)
///     .with_route(TopicRoute::ByAggregate { prefix: "shop.".into() })
///     .with_source("urn:shop".parse()?);
/// publisher.check_topics(["cart", "order"]).await?;
/// let report = publisher.poll(PollConfig::default(), shutdown).await?;
/// println!("{} records", report.messages);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Publisher {
    store: Arc<dyn EventStore>,
    bus: Arc<dyn MessageBus>,
    control: Arc<dyn ControlStore>,
    clock: Arc<dyn Clock>,
    trace: Option<Arc<dyn TraceContext>>,
    route: TopicRoute,
    source: SourceUri,
    concurrency: usize,
    retry: RetryPolicy,
    watermarks: Watermarks,
    pins: TopicPins,
    state: Arc<State>,
}

/// Shared by clones.
#[derive(Debug)]
struct State {
    /// One worker per stream in this process. Those that come for the same stream meanwhile wait, and then mostly find
    /// that the watermark covers what they came for.
    streams: KeyedLock<StreamId, ()>,
    marks: Marks,
    topics: Topics,
}

impl Default for State {
    fn default() -> Self {
        Self {
            streams: KeyedLock::new(0),
            marks: Marks::default(),
            topics: Topics::default(),
        }
    }
}

impl Publisher {
    /// Commits that [`publish_pending`](Self::publish_pending) lists at once.
    const PENDING_PAGE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

    /// Creates a publisher that sends everything to `GlobalEvents`, 32 streams at a time. A failing call is repeated twice
    /// at once, then with pauses of up to 100 ms that grow to 2 s, for 30 s; a throttling backend is waited for as long.
    pub fn new(store: impl EventStore, bus: impl MessageBus, control: impl ControlStore) -> Self {
        let control = shared::control_store(control);
        let rows = Rows::new(control.clone(), Arc::new(SystemIds));
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        Self {
            store: shared::event_store(store),
            bus: shared::message_bus(bus),
            control,
            clock: Arc::new(SystemClock),
            trace: None,
            route: TopicRoute::default(),
            source: SourceUri::default(),
            concurrency: 32,
            retry: RetryPolicy::default()
                .with_backoff(backoff)
                .with_max_elapsed(Duration::from_secs(30))
                .with_max_throttle(Duration::from_secs(30)),
            watermarks: Watermarks::over(rows.clone()),
            pins: TopicPins::new(rows),
            state: Arc::default(),
        }
    }
    /// Sets the topics. Never change a stream's topic: with another route, what is still unpublished goes elsewhere.
    #[must_use]
    pub fn with_route(mut self, route: TopicRoute) -> Self {
        self.route = route;
        self
    }
    /// Sets the CloudEvents source of all records, which identifies an event worldwide together with its event id. Default
    /// `urn:foldstream`.
    #[must_use]
    pub fn with_source(mut self, source: SourceUri) -> Self {
        self.source = source;
        self
    }
    /// Sets how many streams are published at the same time; within one it is always one event after the other. Default
    /// 32; 0 counts as 1. More is faster where the bus is far away, and takes a read and its commits of memory for each.
    #[must_use]
    pub const fn with_concurrency(mut self, streams: usize) -> Self {
        self.concurrency = if streams == 0 { 1 } else { streams };
        self
    }
    /// Sets how a failing call is repeated before its stream is given up for this time.
    #[must_use]
    pub const fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }
    /// Makes the span of each record a child of the span that stored its event.
    #[must_use]
    pub fn with_trace_context(mut self, trace: impl TraceContext) -> Self {
        self.trace = Some(Arc::new(trace));
        self
    }
    /// Sets the clock that measures how long checkpoints are apart. Repeats follow tokio's clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
    /// Sets where the revisions of rows come from.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        let rows = Rows::new(self.control.clone(), ids);
        self.watermarks = Watermarks::over(rows.clone());
        self.pins = TopicPins::new(rows);
        self
    }

    /// Brings every stream in the notices up to date: sends in version order what its watermark does not cover, moves
    /// the watermark, clears what is no longer unpublished. A failed stream does not stop the others. No notice: nothing
    /// happens.
    ///
    /// May be called at any time, also by several at once and for the same streams; within the process they take turns.
    /// A dropped future loses nothing: what it sent since its last checkpoint is sent again.
    pub fn publish<N>(
        &self,
        notices: impl IntoIterator<Item = N>,
    ) -> impl Future<Output = PublishReport> + Send
    where
        N: Into<Notice>,
    {
        let notices = notices.into_iter().enumerate();
        let streams = Bells::by_stream(notices.map(|(place, n)| (Some(place), n.into())));
        async move { self.ring_all(streams).await }
    }

    /// Publishes everything that is listed as unpublished, and again, until nothing is left or nothing moves. Streams
    /// that fail are tried once.
    ///
    /// # Errors
    /// [`EventStoreError`] if the list cannot be read, after repeats; `Refused(Unsupported)` where the store keeps none.
    /// What was published until then stays so.
    pub async fn publish_pending(&self) -> Result<PublishReport, EventStoreError> {
        let mut total = PublishReport::default();
        let mut failed = BTreeSet::new();
        loop {
            let before = total.messages;
            let mut after = None;
            loop {
                let page = self.list(Segment::ALL, after, Self::PENDING_PAGE).await?;
                let keys = page
                    .keys
                    .into_iter()
                    .filter(|k| !failed.contains(&k.stream));
                let streams = Bells::by_stream(keys.map(|key| (None, Notice::Key(key))));
                let report = self.ring_all(streams).await;
                total.messages += report.messages;
                failed.extend(report.failed.iter().map(|f| f.stream.clone()));
                total.published.extend(report.published);
                total.failed.extend(report.failed);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            if total.messages == before {
                total.published.retain(|stream, _| !failed.contains(stream));
                return Ok(total);
            }
        }
    }

    async fn list(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        let list = || self.store.unpublished(segment, after.clone(), limit);
        list.retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await
    }

    async fn ring_all(&self, streams: BTreeMap<StreamId, Bells>) -> PublishReport {
        // Nobody cancels it: the call ends with its work.
        let stop = CancellationToken::new();
        let mut waiting = streams.into_values();
        let mut ringing = FuturesUnordered::new();
        let mut report = PublishReport::default();
        loop {
            let free = self.concurrency - ringing.len();
            ringing.extend(
                waiting
                    .by_ref()
                    .take(free)
                    .map(|bells| self.ring(bells, &stop)),
            );
            match ringing.next().await {
                Some(rung) => report.add(rung),
                None => break,
            }
        }
        report.failed.sort_by(|a, b| a.stream.cmp(&b.stream));
        report
    }

    fn attempts<'a>(&'a self, stop: &'a CancellationToken) -> Attempts<'a> {
        Attempts::new(self.retry).until(stop)
    }
}
