//! Given records, when a record, then side effects, or the class of the failure.
use super::stage::{Stage, Words};
use crate::InMemoryEventStore;
use bytes::Bytes;
use foldstream::{
    DomainEvent, Metadata, PayloadCodecs, Timestamp, Upcasters,
    runner::{ErrorClass, Listener, ProcessorPolicy, ProcessorReport, RunnerBuilder, RunnerError},
};
use std::{
    fmt::{self, Debug, Display},
    sync::Arc,
};

/// A listener, the records that it has had, and the side effects of them.
///
/// What decides is the real runner: each step delivers records over the in-memory bus and runs the listener until they
/// are dealt with, with retries. Time is paused, so a backoff of minutes takes none. **Each step is a process of its
/// own**, so a record that [is delivered again](Self::when_delivered) reaches the listener again: delivery is at least once.
///
/// By its default policy a listener starts now: what is [given](Self::given) lies before its start, and it never sees it.
/// Streams are named as in [`ProjectorScenario`](crate::ProjectorScenario), and its notes on runtime and time hold here.
///
/// # Example
/// ```
/// # use foldstream::{DomainEvent, EventId};
/// # use foldstream::runner::{ErrorClass, EventContext, HandlerError, HandlerResult, Listener, ResultExt};
/// # use std::{collections::BTreeMap, sync::Mutex};
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "order")]
/// # enum OrderEvent { Placed { mail: String }, Paid }
/// # use OrderEvent::{Paid, Placed};
/// # #[derive(Default)]
/// # struct Confirmations { sent: Mutex<BTreeMap<EventId, String>> }
/// impl Listener for Confirmations {
///     const NAME: &'static str = "confirmations";
///     type Events = OrderEvent;
///     async fn handle(&self, event: &OrderEvent, ctx: &EventContext) -> HandlerResult {
///         if let Placed { mail } = event {
///             if !mail.contains('@') {
///                 return Err(HandlerError::permanent(format!("{mail:?} is no address")));
///             }
///             // The same on every delivery: who gets it twice can tell.
///             self.sent.lock().unwrap().insert(ctx.event_id(), mail.clone());
///         }
///         Ok(())
///     }
/// }
///
/// use foldstream_testkit::ListenerScenario;
/// let sent = async |c: &Confirmations| -> Vec<String> { c.sent.lock().unwrap().values().cloned().collect() };
/// ListenerScenario::new(Confirmations::default(), sent)
///     .given("o-1", [Placed { mail: "before@its.start".into() }])
///     .when("o-2", [Placed { mail: "ann@example.org".into() }, Paid])
///     .then(["ann@example.org".into()])
///     .when_delivered("o-2", 1)
///     .then_unchanged()
///     .when("o-3", [Placed { mail: "nowhere".into() }])
///     .then_failed(ErrorClass::Permanent)
///     .then_unchanged();
/// ```
pub struct ListenerScenario<L, R> {
    stage: Stage<L, R>,
}

impl<L, R> fmt::Debug for ListenerScenario<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerScenario").finish_non_exhaustive()
    }
}

impl<L: Listener, R: Debug + PartialEq> ListenerScenario<L, R> {
    /// A listener before any event, and how to read what it has done: `async |listener| listener.mails.sent()`.
    ///
    /// # Panics
    /// Inside of a tokio runtime: the test must be a plain `#[test]`.
    #[track_caller]
    #[must_use]
    pub fn new(listener: L, effects: impl AsyncFn(&L) -> R + 'static) -> Self {
        let listener = Arc::new(listener);
        let words = Words {
            handler: "listener",
            results: "side effects",
        };
        let added = listener.clone();
        let add =
            move |builder: RunnerBuilder, policy| builder.listener_with(added.clone(), policy);
        let policy = ProcessorPolicy::listener();
        Self {
            stage: Stage::new(listener, words, policy, Box::new(add), Box::new(effects)),
        }
    }

    /// Runs under this policy: start, retries, timeouts, unknown events. Concurrency is 1 in a scenario.
    ///
    /// # Panics
    /// After the first event.
    #[track_caller]
    #[must_use]
    pub fn with_policy(mut self, policy: ProcessorPolicy) -> Self {
        self.stage.check_is_new("with_policy");
        self.stage.policy = policy;
        self
    }

    /// Keeps the events in this store, which the listener may share: to execute commands on it, for instance.
    ///
    /// # Panics
    /// After the first event.
    #[track_caller]
    #[must_use]
    pub fn with_event_store(mut self, store: Arc<InMemoryEventStore>) -> Self {
        self.stage.check_is_new("with_event_store");
        self.stage.feed.store = store;
        self
    }

    /// Lifts older payloads.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.stage.feed.upcasters = upcasters;
        self
    }

    /// Seals what is stored after this, and opens it: encrypted or compressed payloads.
    #[must_use]
    pub fn with_payload_codecs(mut self, codecs: PayloadCodecs) -> Self {
        self.stage.feed.codecs = codecs;
        self
    }

    /// Does not pause the time: for effects behind real connections. Retries take their time then.
    ///
    /// # Panics
    /// After the first event.
    #[track_caller]
    #[must_use]
    pub fn in_real_time(mut self) -> Self {
        self.stage.check_is_new("in_real_time");
        self.stage.feed.run_in_real_time();
        self
    }

    /// Records what follows at this time. Default 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        self.stage.feed.clock.set(now);
        self
    }

    /// Records what follows with this metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.stage.feed.metadata = metadata;
        self
    }

    /// These events of one stream were there before. Whether the listener has had them is its policy's start.
    ///
    /// # Panics
    /// If they cannot be stored.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn given<E: DomainEvent>(
        mut self,
        id: impl Display,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        self.stage.given(&id, events);
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
        self.stage.when(&id, events);
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
        let (name, payload) = (name.into(), payload.into());
        self.stage
            .when_stored(stream, name, schema_version, payload);
        self
    }

    /// The bus delivers the event of this version again, as it may after a crash.
    ///
    /// # Panics
    /// As [`when`](Self::when), and if there is no such event.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_delivered(mut self, stream: &str, version: u64) -> Self {
        self.stage.when_delivered(stream, version);
        self
    }

    /// The listener runs once more, as after a restart: an event that has halted it comes again.
    ///
    /// # Panics
    /// As [`when`](Self::when).
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_restarted(mut self) -> Self {
        self.stage.when_restarted();
        self
    }

    /// These are the side effects so far, as the reader given to [`new`](Self::new) tells them.
    ///
    /// # Panics
    /// If they are others, or if the listener has halted.
    #[track_caller]
    pub fn then(mut self, effects: impl Into<R>) -> Self {
        self.stage.then(&effects.into());
        self
    }

    /// The closure asserts on the side effects.
    ///
    /// # Panics
    /// If the closure does, with its message and what happened; or if the listener has halted.
    #[track_caller]
    pub fn then_with(mut self, check: impl FnOnce(&R)) -> Self {
        self.stage.then_with(check);
        self
    }

    /// Nothing was done in the last `when`.
    ///
    /// # Panics
    /// If something was, if there was no `when`, or if the listener has halted.
    #[track_caller]
    pub fn then_unchanged(mut self) -> Self {
        self.stage.then_unchanged();
        self
    }

    /// The listener has halted, after its retries, by a failure of this class. Nothing is committed past the event: it
    /// comes again at the next step.
    ///
    /// # Panics
    /// If it has not, or by another.
    #[track_caller]
    pub fn then_failed(mut self, class: ErrorClass) -> Self {
        self.stage.then_failed(class);
        self
    }

    /// The listener has halted; the closure asserts on the error.
    ///
    /// # Panics
    /// If it has not, or if the closure does.
    #[track_caller]
    pub fn then_failed_with(mut self, check: impl FnOnce(&RunnerError)) -> Self {
        self.stage.then_failed_with(check);
        self
    }

    /// The closure asserts on what the runner counted in the last step: handled, skipped, retried.
    ///
    /// # Panics
    /// If the closure does.
    #[track_caller]
    pub fn then_report(mut self, check: impl FnOnce(&ProcessorReport)) -> Self {
        self.stage.then_report(check);
        self
    }
}
