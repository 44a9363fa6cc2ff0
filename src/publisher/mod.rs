//! The publisher: sends what the event store holds to the message bus.
//!
//! **Guarantees.** Nothing is lost: an event counts as published only once the bus has acknowledged
//! it. Within a stream the first occurrences are in version order. Duplicates are possible, after a
//! crash or a lost answer or with two publishers at once, and carry the same event id.
//!
//! # One algorithm, several triggers
//! A trigger learns that a stream has something new, and calls [`publish`](Publisher::publish) with
//! a [`Notice`]. [`poll`](Publisher::poll) is the trigger that needs nothing but the store's own
//! list of unpublished commits. Notices are hints: late, duplicate, reordered or missing notices
//! affect when an event is published, never which events or in what order.
//!
//! **A trigger may forget a notice only when the watermark covers it or a dirty row is durable.**
//! [`PublishReport`] says which notices those are.
//!
//! # Why not mark as published, then send?
//! Because the send may fail, and then the events are lost. The watermark of a stream moves only
//! after the bus has acknowledged the events below it, and a marker is removed only after the
//! watermark covers it. A crash in between repeats events and loses none.
//!
//! # Runs
//! The events of a stream are sent in runs
//! ([`MessageBus::publish_run`]) of up to 1,000 messages or
//! 1 MiB. No message of a run becomes durable without those before it.
//!
//! # Streams that cannot be published
//! An event that is larger than its topic takes, or a forked history, stops its stream and no
//! other. The stream is noted as dirty in a row, which a [`sweep`](Publisher::sweep) tries again
//! with growing pauses. [`skip`](Publisher::skip) is an operator's way past such an event.
//!
//! # Public and private events
//! An [`Outbox`] says which events are published, and in what form.
mod config;
mod error;
mod notice;
mod report;
mod status;
mod live;
#[cfg(feature = "metrics")]
pub mod metrics;
mod outbox;
mod publish;
mod budget;
mod worker;
mod machine;
mod step;
mod prepare;
mod queue;
mod pace;
mod state;
mod topics;
mod checked_topics;
mod poller;
mod dirty;
mod sweep;
mod reconcile;
mod bootstrap;
mod skip;

pub use crate::control::publisher_rows::{BootstrapMode, DirtyReason};
pub use bootstrap::{BootstrapError, BootstrapReport};
pub use config::{PollConfig, TopicRoute};
pub use dirty::{DirtyPage, DirtyStream};
pub use error::{PollError, PublishError, TopicError};
pub use notice::Notice;
pub use outbox::{Outbox, OutboxError, PublicEvent, Publication, TypedOutbox};
pub use reconcile::{
    InvalidReconcileCursor, ReconcileBudget, ReconcileCursor, ReconcileError, ReconcileReport,
};
pub use report::{PollReport, PublishReport, StreamFailure};
pub use skip::{SkipError, Skipped};
pub use status::{PublisherStatus, TopicStatus};
pub use sweep::{SweepConfig, SweepError, SweepReport};

pub(crate) use outbox::public_form;

use crate::{
    Backoff, Clock, IdSource, RetryPolicy, SourceUri, SystemClock, SystemIds, TraceContext,
    control::{PublisherName, PublisherRows, Rows, TopicPins, Watermarks},
    ports::{ControlStore, EventStore, MessageBus, shared},
    resilience::Attempts,
};
use state::State;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A publisher of the streams of one event store. Clones share what the publisher remembers, and
/// its limit of concurrent streams. One publisher is enough for a process.
///
/// # Example
/// ```
/// use foldstream::publisher::{PollConfig, Publisher, TopicRoute};
/// use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
/// use std::time::Duration;
///
/// # let mut runtime = tokio::runtime::Builder::new_current_thread();
/// # runtime.enable_all().start_paused(true).build()?.block_on(async {
/// let (store, bus, control) =
///     (InMemoryEventStore::new(), InMemoryMessageBus::new(), InMemoryControlStore::new());
/// bus.create_topic("shop.cart", 3);
/// bus.create_topic("shop.order", 3);
///
/// let publisher = Publisher::new(store, bus, control)
///     .with_route(TopicRoute::ByAggregate { prefix: "shop.".into() })
///     .with_source("urn:shop".parse()?);
/// publisher.check_topics(["cart", "order"]).await?;
/// let shutdown = tokio::time::sleep(Duration::from_secs(5));
/// let report = publisher.poll(PollConfig::default(), shutdown).await?;
/// assert_eq!(report.messages, 0);
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Publisher {
    store: Arc<dyn EventStore>,
    bus: Arc<dyn MessageBus>,
    control: Arc<dyn ControlStore>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    trace: Option<Arc<dyn TraceContext>>,
    route: TopicRoute,
    source: SourceUri,
    outbox: Option<Arc<dyn Outbox>>,
    name: Option<PublisherName>,
    /// The name of the process in the row of its status. Without one, that of the host.
    label: Option<Arc<str>>,
    concurrency: usize,
    /// One permit per stream that may be published at the same time.
    slots: Arc<Semaphore>,
    max_behind: Option<u64>,
    retry: RetryPolicy,
    watermarks: Watermarks,
    rows: PublisherRows,
    pins: TopicPins,
    state: Arc<State>,
}

impl Publisher {
    /// The default of [`with_concurrency`](Self::with_concurrency).
    const CONCURRENCY: usize = 32;

    /// Creates a publisher that sends everything to the topic `GlobalEvents`, 32 streams at a time.
    /// It repeats a failing call twice at once, then with pauses of up to 100 ms that grow to 2 s,
    /// for 30 s. It waits for a throttling backend as long.
    pub fn new(store: impl EventStore, bus: impl MessageBus, control: impl ControlStore) -> Self {
        let control = shared::control_store(control);
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds);
        let rows = Rows::new(control.clone(), ids.clone());
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        Self {
            store: shared::event_store(store),
            bus: shared::message_bus(bus),
            control,
            clock: Arc::new(SystemClock),
            ids,
            trace: None,
            route: TopicRoute::default(),
            source: SourceUri::default(),
            outbox: None,
            name: None,
            label: None,
            concurrency: Self::CONCURRENCY,
            slots: Arc::new(Semaphore::new(Self::CONCURRENCY)),
            max_behind: None,
            retry: RetryPolicy::default()
                .with_backoff(backoff)
                .with_max_elapsed(Duration::from_secs(30))
                .with_max_throttle(Duration::from_secs(30)),
            watermarks: Watermarks::over(rows.clone()),
            rows: PublisherRows::over(rows.clone(), None),
            pins: TopicPins::new(rows),
            state: Arc::default(),
        }
    }
    /// Sets the topics. Never change the topic of a stream: with another route, its unpublished
    /// events go elsewhere.
    #[must_use]
    pub fn with_route(mut self, route: TopicRoute) -> Self {
        self.route = route;
        self
    }
    /// Sets the CloudEvents source of all records, which identifies an event worldwide together
    /// with its event id. Default `urn:foldstream`.
    #[must_use]
    pub fn with_source(mut self, source: SourceUri) -> Self {
        self.source = source;
        self
    }
    /// Sets the rule that makes public events of stored ones. Default: every event is published as
    /// it is stored. Give the same outbox to the runners.
    #[must_use]
    pub fn with_outbox(mut self, outbox: impl Outbox) -> Self {
        self.outbox = Some(Arc::new(outbox));
        self
    }
    /// Gives the publisher a name, and with it watermarks and other rows of its own, so that it
    /// publishes the same streams once more. Give it another [outbox](Self::with_outbox) and
    /// another [route](Self::with_route).
    ///
    /// A named publisher needs notices, or [`reconcile`](Self::reconcile): markers in the store
    /// belong to the publisher without a name.
    #[must_use]
    pub fn with_name(mut self, name: PublisherName) -> Self {
        self.name = Some(name);
        self.with_rows()
    }
    /// Sets the name under which operators see this process, as in
    /// [`Operator::publisher`](crate::operate::Operator::publisher). Default: the name of the host.
    #[must_use]
    pub fn with_instance(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }
    /// Sets how many streams are published at the same time, by this publisher and all clones made
    /// from now on, however many calls they serve. Default 32; 0 counts as 1. More is faster if the
    /// bus is far away. Each takes the memory of a run, up to 1 MiB and one commit, and of a read.
    #[must_use]
    pub fn with_concurrency(mut self, streams: usize) -> Self {
        self.concurrency = streams.clamp(1, Semaphore::MAX_PERMITS);
        self.slots = Arc::new(Semaphore::new(self.concurrency));
        self
    }
    /// Sets the longest backlog, in events, with which
    /// [`publish_until`](Self::publish_until) publishes a stream. Default: no limit.
    ///
    /// The backlog lies between the watermark and the first notice above it, so that a call with
    /// many notices of one stream does not count. A stream with a longer backlog could use up the
    /// time of a call that has a deadline. It is noted as dirty instead, with the reason
    /// [`Backlog`](DirtyReason::Backlog), and a [`sweep`](Self::sweep) publishes it.
    #[must_use]
    pub const fn with_max_behind(mut self, events: u64) -> Self {
        self.max_behind = Some(events);
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
    /// Sets the clock for the times in records and rows. Repeats follow tokio's clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
    /// Sets the source of the revisions of rows. Default: the system's randomness.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = ids;
        self.with_rows()
    }

    fn with_rows(mut self) -> Self {
        let rows = Rows::new(self.control.clone(), self.ids.clone());
        let watermarks = Watermarks::over(rows.clone());
        self.watermarks = match &self.name {
            None => watermarks,
            Some(name) => watermarks.of_publisher(name.clone()),
        };
        self.rows = PublisherRows::over(rows.clone(), self.name.clone());
        self.pins = TopicPins::new(rows);
        // What was remembered is of other rows.
        self.state = Arc::default();
        self
    }

    /// Returns the name of the publisher; `None` for the publisher without one.
    pub const fn name(&self) -> Option<&PublisherName> {
        self.name.as_ref()
    }
    /// Returns the state of this publisher and its clones at this moment. It reads nothing.
    pub fn status(&self) -> PublisherStatus {
        let dirty = self.state.marks.dirty();
        self.state.status.read(dirty, self.clock.now())
    }

    fn attempts<'a>(&self, stop: &'a CancellationToken) -> Attempts<'a> {
        Attempts::new(self.retry).until(stop)
    }
}
