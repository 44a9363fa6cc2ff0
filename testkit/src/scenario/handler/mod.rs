//! The scenario of one handler: what projectors and listeners are given, delivered and asked for.
mod step;
mod then;

use super::feed::Feed;
use crate::InMemoryEventStore;
use bytes::Bytes;
use foldstream::{
    DomainEvent, Metadata, PayloadCodecs, Timestamp, Upcasters,
    runner::{ProcessorPolicy, ProcessorReport, RunnerBuilder},
};
use futures::{FutureExt, future::LocalBoxFuture};
use std::{
    fmt::{self, Display},
    marker::PhantomData,
    sync::Arc,
};

/// A handler, the records that it has received, and its results.
///
/// [`ProjectorScenario`](crate::ProjectorScenario) and
/// [`ListenerScenario`](crate::ListenerScenario) share these steps. `R` is what the scenario reads
/// of the handler: the rows of a projector, or the side effects of a listener.
///
/// Each step delivers records over the in-memory bus and runs the real runner until they are dealt
/// with. A failure that halts the handler must be asserted by [`then_failed`](Self::then_failed) or
/// [`then_failed_with`](Self::then_failed_with) before any other call. Every other call, and the
/// end of the scenario, panics.
///
/// Typed events are stored as a repository stores them: encoded, read back, compared, sealed by the
/// payload codecs, and checked against the limits of the store. Events that would not survive fail
/// the scenario.
pub struct HandlerScenario<H, R, Role> {
    pub(super) feed: Feed,
    pub(super) handler: Arc<H>,
    policy: ProcessorPolicy,
    words: Words,
    add: Add,
    read: Box<dyn Read<H, R>>,
    /// The results before the first event.
    initial: Option<R>,
    /// The results before the last step.
    before: Option<R>,
    report: Option<ProcessorReport>,
    /// Set if given events have not been delivered yet.
    is_pending: bool,
    /// Set after the test has asserted the failure of the last step.
    is_failure_seen: bool,
    role: PhantomData<fn() -> Role>,
}

/// The role of a projector in a [`HandlerScenario`].
#[derive(Debug)]
pub enum Projects {}

/// The role of a listener in a [`HandlerScenario`].
#[derive(Debug)]
pub enum Listens {}

/// Registers the handler with a runner.
type Add = Box<dyn Fn(RunnerBuilder, ProcessorPolicy) -> RunnerBuilder>;

/// Reads what a handler has done; an async closure without its type.
trait Read<H, R> {
    fn read<'a>(&'a self, handler: &'a H) -> LocalBoxFuture<'a, R>;
}
impl<H, R, F: AsyncFn(&H) -> R> Read<H, R> for F {
    fn read<'a>(&'a self, handler: &'a H) -> LocalBoxFuture<'a, R> {
        async move { self(handler).await }.boxed_local()
    }
}

/// The words by which failures call the handler, its results and its events.
pub(super) struct Words {
    /// The aggregate types whose events the handler receives.
    pub(super) aggregates: Vec<&'static str>,
    pub(super) handler: &'static str,
    pub(super) results: &'static str,
}

impl<H, R, Role> fmt::Debug for HandlerScenario<H, R, Role> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerScenario")
            .field("handler", &self.words.handler)
            .finish_non_exhaustive()
    }
}

impl<H, R, Role> HandlerScenario<H, R, Role> {
    #[track_caller]
    pub(super) fn start(
        handler: Arc<H>,
        words: Words,
        policy: ProcessorPolicy,
        add: impl Fn(RunnerBuilder, ProcessorPolicy) -> RunnerBuilder + 'static,
        read: impl AsyncFn(&H) -> R + 'static,
    ) -> Self {
        Self {
            feed: Feed::new(),
            handler,
            policy,
            words,
            add: Box::new(add),
            read: Box::new(read),
            initial: None,
            before: None,
            report: None,
            is_pending: true,
            is_failure_seen: false,
            role: PhantomData,
        }
    }

    /// Panics if the handler receives no event of this aggregate type: the runner would pass over
    /// the events, and the step would check nothing.
    #[track_caller]
    fn check_receives<E: DomainEvent>(&self) {
        assert!(
            self.words.aggregates.contains(&E::AGGREGATE),
            "the {} receives no event of {:?}, only of {:?}: to test that it passes over others, say `given`",
            self.words.handler,
            E::AGGREGATE,
            self.words.aggregates
        );
    }

    /// Checks that nothing has happened yet that `what` would change.
    #[track_caller]
    fn check_is_new(&self, what: &str) {
        assert!(
            self.feed.is_empty() && self.report.is_none(),
            "{what} comes before the first event"
        );
    }

    /// Sets the policy of the processor: start, retries, timeouts, unknown events. Concurrency is
    /// always 1 in a scenario.
    ///
    /// # Panics
    /// If events were given or delivered before.
    #[track_caller]
    #[must_use]
    pub fn with_policy(mut self, policy: ProcessorPolicy) -> Self {
        self.check_is_new("with_policy");
        self.policy = policy;
        self
    }

    /// Keeps the events in this store, which the handler may share, for instance to execute
    /// commands on it.
    ///
    /// # Panics
    /// If events were given or delivered before.
    #[track_caller]
    #[must_use]
    pub fn with_event_store(mut self, store: Arc<InMemoryEventStore>) -> Self {
        self.check_is_new("with_event_store");
        self.feed.ports.event_store = store;
        self
    }

    /// Runs the handler of a service that does not own the events, so that a gap cannot be filled
    /// and is skipped.
    #[must_use]
    pub fn without_event_store(mut self) -> Self {
        self.feed.has_history = false;
        self
    }

    /// Sets upcasters for older payloads, in addition to those of the event types. Typed events are
    /// read back through them too.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.feed.ports.upcasters = upcasters;
        self
    }

    /// Sets the codecs that seal and open payloads stored after this call, such as encryption or
    /// compression.
    #[must_use]
    pub fn with_payload_codecs(mut self, codecs: PayloadCodecs) -> Self {
        self.feed.ports.payload_codecs = codecs;
        self
    }

    /// Lets time pass as usual instead of pausing it, for read models and effects with real
    /// connections. Retries then take their time.
    ///
    /// # Panics
    /// If events were given or delivered before.
    #[track_caller]
    #[must_use]
    pub fn in_real_time(mut self) -> Self {
        self.check_is_new("in_real_time");
        self.feed.run_in_real_time();
        self
    }

    /// Sets the time at which the following events are recorded. Default: 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        self.feed.ports.clock.set(now);
        self
    }

    /// Sets the metadata with which the following events are recorded.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.feed.ports.metadata = metadata;
        self
    }

    /// Adds events of one stream that happened before the test.
    ///
    /// A projector has received them. Whether a listener has received them depends on the start of
    /// its policy, which is by default the current end of the log.
    ///
    /// # Panics
    /// If the events cannot be stored, or if the failure of the last step was not asserted.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn given<E: DomainEvent>(
        mut self,
        id: impl Display,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        self.check_failure_seen();
        self.feed.deliver("given", &id, events);
        self.is_pending = true;
        self
    }

    /// Adds an event that happened before the test, as another build stored it, to the stream of
    /// this whole id (`cart#c-1`).
    ///
    /// # Panics
    /// As [`given`](Self::given).
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn given_stored(
        mut self,
        stream: &str,
        name: impl Into<String>,
        schema_version: u16,
        payload: impl Into<Bytes>,
    ) -> Self {
        self.check_failure_seen();
        let (name, payload) = (name.into(), payload.into());
        self.feed
            .deliver_stored("given", stream, name, schema_version, payload);
        self.is_pending = true;
        self
    }

    /// Stores events that the bus does not deliver, so that the next events of the stream come
    /// after a gap.
    ///
    /// # Panics
    /// As [`given`](Self::given).
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn given_undelivered<E: DomainEvent>(
        mut self,
        id: impl Display,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        self.check_failure_seen();
        self.feed.write("undelivered", &id, events);
        self
    }

    /// Stores these events of one stream and delivers them.
    ///
    /// # Panics
    /// If the handler receives no event of this aggregate type, if the events cannot be stored, if
    /// the handler fails on given events, or if the failure of the last step was not asserted.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when<E: DomainEvent>(
        mut self,
        id: impl Display,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        self.check_receives::<E>();
        self.begin_step();
        self.feed.deliver("when", &id, events);
        self.run();
        self
    }

    /// Delivers an event as another build stored it, in the stream of this whole id (`cart#c-1`).
    ///
    /// # Panics
    /// As [`when`](Self::when).
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_stored(
        mut self,
        stream: &str,
        name: impl Into<String>,
        schema_version: u16,
        payload: impl Into<Bytes>,
    ) -> Self {
        self.begin_step();
        let (name, payload) = (name.into(), payload.into());
        self.feed
            .deliver_stored("when", stream, name, schema_version, payload);
        self.run();
        self
    }

    /// Delivers the event of this version: again, as may happen after a crash, or for the first
    /// time if it was left out.
    ///
    /// # Panics
    /// As [`when`](Self::when), and if there is no such event.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_delivered(mut self, stream: &str, version: u64) -> Self {
        self.begin_step();
        let event = self.feed.event(stream, version);
        self.feed.note_event("when delivered", &event);
        self.feed.publish([event]);
        self.run();
        self
    }

    /// Runs the handler once more, as after a restart. An event that has halted it is delivered
    /// again.
    ///
    /// # Panics
    /// As [`when`](Self::when).
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_restarted(mut self) -> Self {
        // The test has already asserted the failure that the restart is to meet.
        self.begin_step();
        self.feed.note("when restarted", String::new());
        self.run();
        self
    }
}
