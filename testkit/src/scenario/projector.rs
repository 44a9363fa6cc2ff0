//! Given records, when a record, or a duplicate, or a late one, or a gap, then rows.
use super::stage::{Stage, Words};
use bytes::Bytes;
use foldstream::{
    Decoded, DomainEvent, EventSet, Metadata, Opened, PayloadCodecs, PayloadContext, RecordedEvent,
    Timestamp, Upcasters, chain,
    runner::{
        ErrorClass, EventContext, EventSource, HandlerError, ModelId, ProcessorPolicy,
        ProcessorReport, Projector, RunnerError,
    },
};
use std::{
    fmt::{self, Debug, Display},
    sync::Arc,
};

/// A projector, the records that it has had, and the rows that it has made of them.
///
/// What decides is the real runner: each step delivers records over the in-memory bus and runs the projector until they
/// are dealt with. Time is paused, so retries take none. **Each step is a process of its own**: what the runner kept only
/// in memory is gone, as after a crash. So a record that [is delivered again](Self::when_delivered) is dropped only if the
/// projector stores its position with its rows; else `project` gets it a second time, and must bear it.
///
/// Streams are named by the id alone, or by the whole stream id (`cart#c-1`) where two aggregate types have the id. Each
/// call of `given` or `when` is one commit. Every `then_..` panics with what happened and what differs.
///
/// A scenario has a runtime of its own, so its tests are plain `#[test]`s. With paused time, timers jump ahead while
/// nothing else runs: a read model behind a real connection needs [`in_real_time`](Self::in_real_time).
///
/// # Example
/// ```
/// # use foldstream::{DomainEvent, Version, StreamId};
/// # use foldstream::runner::{EventContext, HandlerError, HandlerResult, ModelId, Position, Projector};
/// # use std::{collections::BTreeMap, sync::Mutex};
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "account")]
/// # enum AccountEvent { Deposited { amount: u64 }, Withdrawn { amount: u64 } }
/// # use AccountEvent::{Deposited, Withdrawn};
/// /// Balances, each with the version that it is of.
/// #[derive(Default)]
/// struct Balances(Mutex<BTreeMap<String, (u64, Version)>>);
///
/// impl Projector for Balances {
///     const NAME: &'static str = "balances";
///     type Events = AccountEvent;
///     async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
///         let mut rows = self.0.lock().unwrap();
///         let (balance, version) = rows.entry(ctx.stream().id().into()).or_default();
///         if ctx.version() > *version {
///             match event {
///                 Deposited { amount } => *balance += amount,
///                 Withdrawn { amount } => *balance -= amount,
///             }
///             *version = ctx.version();
///         }
///         Ok(())
///     }
///     async fn reset(&self, _: &ModelId) -> HandlerResult {
///         self.0.lock().unwrap().clear();
///         Ok(())
///     }
///     async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
///         let rows = self.0.lock().unwrap();
///         Ok(Position::stored(rows.get(stream.id()).map_or(Version::NONE, |row| row.1)))
///     }
/// }
///
/// use foldstream_testkit::ProjectorScenario;
/// let rows = async |balances: &Balances| balances.0.lock().unwrap().clone();
/// ProjectorScenario::new(Balances::default(), rows)
///     .given("ann", [Deposited { amount: 10 }])
///     .when("ann", [Withdrawn { amount: 4 }])
///     .then([("ann".into(), (6, Version::new(2)))])
///     // A duplicate, and what a process that has lost its partition still writes.
///     .when_delivered("ann", 1)
///     .then_unchanged()
///     .when_applied_late("ann", 1)
///     .then_unchanged()
///     // The bus has lost version 3: it comes from the event store.
///     .given_undelivered("ann", [Deposited { amount: 1 }])
///     .when("ann", [Deposited { amount: 1 }])
///     .then([("ann".into(), (8, Version::new(4)))])
///     .when_rebuilt()
///     .then_unchanged();
/// ```
pub struct ProjectorScenario<P, R> {
    stage: Stage<P, R>,
}

impl<P, R> fmt::Debug for ProjectorScenario<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProjectorScenario").finish_non_exhaustive()
    }
}

impl<P: Projector, R: Debug + PartialEq> ProjectorScenario<P, R> {
    /// A projector before any event, and how to read its rows: `async |projector| projector.rows().await`.
    ///
    /// # Panics
    /// Inside of a tokio runtime: the test must be a plain `#[test]`.
    #[track_caller]
    #[must_use]
    pub fn new(projector: P, rows: impl AsyncFn(&P) -> R + 'static) -> Self {
        let projector = Arc::new(projector);
        let words = Words {
            handler: "projector",
            results: "rows",
        };
        let added = projector.clone();
        let add = move |builder: foldstream::runner::RunnerBuilder, policy| {
            builder.projector_with(added.clone(), policy)
        };
        let policy = ProcessorPolicy::projector();
        Self {
            stage: Stage::new(projector, words, policy, Box::new(add), Box::new(rows)),
        }
    }

    /// Runs under this policy: retries, timeouts, unknown events. Concurrency is 1 in a scenario.
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

    /// The projector of a service that does not own the events: a gap cannot be filled, and is passed.
    #[must_use]
    pub fn without_event_store(mut self) -> Self {
        self.stage.feed.has_history = false;
        self
    }

    /// Does not pause the time: for read models behind real connections. Retries take their time then.
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

    /// The projector has had these events of one stream.
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

    /// It has had this event as another build stored it, in the stream of this whole id (`cart#c-1`).
    ///
    /// # Panics
    /// If it cannot be stored.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn given_stored(
        mut self,
        stream: &str,
        name: impl Into<String>,
        schema_version: u16,
        payload: impl Into<Bytes>,
    ) -> Self {
        let (name, payload) = (name.into(), payload.into());
        self.stage
            .given_stored(stream, name, schema_version, payload);
        self
    }

    /// These are in the event store, but the bus does not deliver them: what follows in the stream leaves a gap.
    ///
    /// # Panics
    /// If they cannot be stored.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn given_undelivered<E: DomainEvent>(
        mut self,
        id: impl Display,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        self.stage.given_undelivered(&id, events);
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

    /// The bus delivers the event of this version: again, as it may after a crash, or now at last, if it was left out.
    ///
    /// # Panics
    /// As [`when`](Self::when), and if there is no such event.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_delivered(mut self, stream: &str, version: u64) -> Self {
        self.stage.when_delivered(stream, version);
        self
    }

    /// The projector runs once more, as after a restart: an event that has halted it comes again.
    ///
    /// # Panics
    /// As [`when`](Self::when).
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_restarted(mut self) -> Self {
        self.stage.when_restarted();
        self
    }

    /// A process that has lost its partition applies an event late: `project` and `flush` are called past all that the
    /// runner checks. It must change nothing that is newer; whether it fails does not matter.
    ///
    /// # Panics
    /// As [`when`](Self::when), and if there is no such event.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_applied_late(mut self, stream: &str, version: u64) -> Self {
        self.stage.begin_step();
        let event = self.stage.feed.event(stream, version);
        let applied = self.stage.feed.block_on(self.apply(&event));
        let header = &event.header;
        let text = format!("{} {version}  {}", header.stream, header.name);
        let feed = &mut self.stage.feed;
        feed.note("applied late", text);
        feed.note(
            "",
            match applied {
                Ok(()) => "not refused".into(),
                Err(error) => format!("refused: {error}"),
            },
        );
        self
    }

    async fn apply(&self, event: &RecordedEvent) -> Result<(), HandlerError> {
        let header = &event.header;
        let aggregate = header.stream.aggregate();
        let codecs = &self.stage.feed.codecs;
        let upcasters = self.stage.feed.upcasters.with_own_of::<P::Events>();
        let upcasters = upcasters.map_err(HandlerError::fatal)?;
        let context = PayloadContext::of_event(header);
        let opened = codecs.open(&context, header.codec.as_deref(), &event.payload);
        let Opened::Payload(payload) = opened.await? else {
            return Ok(());
        };
        let lifted = upcasters
            .apply(aggregate, &header.name, header.schema_version, &payload)
            .map_err(HandlerError::poison)?;
        let Some(lifted) = lifted else {
            return Ok(());
        };
        let (name, schema) = (&lifted.name, lifted.schema_version);
        let decoded = P::Events::decode_from(aggregate, name, schema, &lifted.payload);
        let Decoded::Event(decoded) = decoded.map_err(HandlerError::poison)? else {
            return Ok(());
        };
        let model = self.model();
        let ctx = EventContext::new(model.clone(), header.clone(), EventSource::History);
        self.stage.handler.project(&decoded, &ctx).await?;
        self.stage.handler.flush(&model).await
    }

    /// The model is emptied by `reset`, and built again from all that the bus has.
    ///
    /// # Panics
    /// As [`when`](Self::when), and if `reset` fails.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_rebuilt(mut self) -> Self {
        self.stage.begin_step();
        let model = self.model();
        let feed = &mut self.stage.feed;
        feed.note("when rebuilt", String::new());
        if let Err(error) = feed.block_on(self.stage.handler.reset(&model)) {
            panic!(
                "the model cannot be reset: {}\n{}",
                chain(error.source()),
                feed.history()
            );
        }
        feed.begin_anew();
        self.stage.run();
        self
    }

    fn model(&self) -> ModelId {
        ModelId::new(self.stage.name(), 1)
    }

    /// These are the rows now.
    ///
    /// # Panics
    /// If they are others, or if the projector has halted.
    #[track_caller]
    pub fn then(mut self, rows: impl Into<R>) -> Self {
        self.stage.then(&rows.into());
        self
    }

    /// The closure asserts on the rows.
    ///
    /// # Panics
    /// If the closure does, with its message and what happened; or if the projector has halted.
    #[track_caller]
    pub fn then_with(mut self, check: impl FnOnce(&R)) -> Self {
        self.stage.then_with(check);
        self
    }

    /// The rows are what they were before the last `when`.
    ///
    /// # Panics
    /// If they are others, if there was no `when`, or if the projector has halted.
    #[track_caller]
    pub fn then_unchanged(mut self) -> Self {
        self.stage.then_unchanged();
        self
    }

    /// The projector has halted, after its retries, by a failure of this class. Nothing is committed past the event: it
    /// comes again at the next step.
    ///
    /// # Panics
    /// If it has not, or by another.
    #[track_caller]
    pub fn then_failed(mut self, class: ErrorClass) -> Self {
        self.stage.then_failed(class);
        self
    }

    /// The projector has halted; the closure asserts on the error.
    ///
    /// # Panics
    /// If it has not, or if the closure does.
    #[track_caller]
    pub fn then_failed_with(mut self, check: impl FnOnce(&RunnerError)) -> Self {
        self.stage.then_failed_with(check);
        self
    }

    /// The closure asserts on what the runner counted in the last step: handled, dropped, filled in, retried.
    ///
    /// # Panics
    /// If the closure does.
    #[track_caller]
    pub fn then_report(mut self, check: impl FnOnce(&ProcessorReport)) -> Self {
        self.stage.then_report(check);
        self
    }
}
