//! The scenario of one handler: what projectors and listeners are given, delivered, and asked for.
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

/// A handler, the records that it has had, and what it has done with them: the steps that
/// [`ProjectorScenario`](crate::ProjectorScenario) and [`ListenerScenario`](crate::ListenerScenario) share.
///
/// `R` is what the scenario reads of the handler: the rows of a projector, or the side effects of a listener. Each step
/// delivers records over the in-memory bus and runs the real runner until they are dealt with. A failure that halts the
/// handler must be looked at by [`then_failed`](Self::then_failed) or [`then_failed_with`](Self::then_failed_with) before
/// anything else is. Every other call, and the end of the scenario, panics.
///
/// Typed events are stored as a repository stores them: encoded, read back, compared, sealed by the payload codecs, and checked
/// against the limits of the store. Events that would not survive fail the scenario.
pub struct HandlerScenario<H, R, Role> {
    pub(super) feed: Feed,
    pub(super) handler: Arc<H>,
    policy: ProcessorPolicy,
    words: Words,
    add: Add,
    read: Box<dyn Read<H, R>>,
    /// The results before the last step.
    before: Option<R>,
    report: Option<ProcessorReport>,
    /// Whether given events have yet to be taken in.
    is_pending: bool,
    /// Whether the test has looked at the failure of the last step.
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

/// The words by which failures call the handler and its results.
pub(super) struct Words {
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
            before: None,
            report: None,
            is_pending: true,
            is_failure_seen: false,
            role: PhantomData,
        }
    }

    /// Checks that nothing has happened yet which `what` would change.
    #[track_caller]
    fn check_is_new(&self, what: &str) {
        assert!(
            self.feed.is_empty() && self.report.is_none(),
            "{what} comes before the first event"
        );
    }

    /// Runs under this policy: start, retries, timeouts, unknown events. Concurrency is 1 in a scenario.
    ///
    /// # Panics
    /// After the first event.
    #[track_caller]
    #[must_use]
    pub fn with_policy(mut self, policy: ProcessorPolicy) -> Self {
        self.check_is_new("with_policy");
        self.policy = policy;
        self
    }

    /// Keeps the events in this store, which the handler may share: to execute commands on it, for instance.
    ///
    /// # Panics
    /// After the first event.
    #[track_caller]
    #[must_use]
    pub fn with_event_store(mut self, store: Arc<InMemoryEventStore>) -> Self {
        self.check_is_new("with_event_store");
        self.feed.ports.event_store = store;
        self
    }

    /// Runs the handler of a service that does not own the events: a gap cannot be filled, and is passed.
    #[must_use]
    pub fn without_event_store(mut self) -> Self {
        self.feed.has_history = false;
        self
    }

    /// Lifts older payloads, together with the upcasters of the event types. Typed events are read back through them, too.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.feed.ports.upcasters = upcasters;
        self
    }

    /// Seals what is stored after this, and opens it: encrypted or compressed payloads.
    #[must_use]
    pub fn with_payload_codecs(mut self, codecs: PayloadCodecs) -> Self {
        self.feed.ports.payload_codecs = codecs;
        self
    }

    /// Does not pause the time: for read models and effects with real connections. Retries take their time then.
    ///
    /// # Panics
    /// After the first event.
    #[track_caller]
    #[must_use]
    pub fn in_real_time(mut self) -> Self {
        self.check_is_new("in_real_time");
        self.feed.run_in_real_time();
        self
    }

    /// Records what follows at this time. Default 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        self.feed.ports.clock.set(now);
        self
    }

    /// Records what follows with this metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.feed.ports.metadata = metadata;
        self
    }

    /// These events of one stream were there before. A projector has had them; whether a listener has had them depends on the
    /// start of its policy, which by default is now.
    ///
    /// # Panics
    /// If they cannot be stored, or if the last step failed unnoticed.
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

    /// This event was there before, as another build stored it, in the stream of this whole id (`cart#c-1`).
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

    /// These are in the event store, but the bus does not deliver them: what follows in the stream leaves a gap.
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

    /// These events of one stream are delivered.
    ///
    /// # Panics
    /// If they cannot be stored, if what was given cannot be taken in, or if the last step failed unnoticed.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when<E: DomainEvent>(
        mut self,
        id: impl Display,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        self.begin_step();
        self.feed.deliver("when", &id, events);
        self.run();
        self
    }

    /// This event is delivered as another build stored it, in the stream of this whole id (`cart#c-1`).
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

    /// The bus delivers the event of this version: again, as it may after a crash, or now at last, if it was left out.
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

    /// The handler runs once more, as after a restart: an event that has halted it comes again.
    ///
    /// # Panics
    /// As [`when`](Self::when).
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_restarted(mut self) -> Self {
        // The test has looked at the failure that the restart is to meet.
        self.begin_step();
        self.feed.note("when restarted", String::new());
        self.run();
        self
    }
}
