//! Given records, when a record, a duplicate, a late one or a gap, then rows.
use super::handler::{HandlerScenario, Projects, Words};
use foldstream::{
    BoxError, Decoded, EventSet, Opened, PayloadContext, RecordedEvent, Version, chain,
    runner::{
        EventContext, EventSource, HandlerResult, ModelId, Position, ProcessorPolicy, Projector,
        RunnerBuilder,
    },
};
use std::{fmt::Debug, sync::Arc};

/// A projector, the records that it has received, and the rows that it has made of them.
///
/// The real runner decides what the projector sees: each step delivers records over the in-memory
/// bus and runs the projector until they are dealt with. Time is paused, so retries take none.
/// **Each step is a new process**: what the runner kept only in memory is gone, as after a crash.
/// So a record that [is delivered again](Self::when_delivered) is dropped only if the projector
/// stores its position with its rows. Otherwise `project` receives the record a second time and
/// must tolerate it.
///
/// Streams are named by the id alone, or by the whole stream id (`cart#c-1`) if two aggregate types
/// have the id. Each call of `given` or `when` is one commit. Every `then_..` panics with what
/// happened and what differs.
///
/// A scenario has its own runtime, so its tests are plain `#[test]`s. With paused time, timers jump
/// ahead while nothing else runs: a read model behind a real connection needs
/// [`in_real_time`](Self::in_real_time).
///
/// # Example
/// ```
/// # use foldstream::{DomainEvent, Version, StreamId};
/// # use foldstream::runner::{
/// #     EventContext, HandlerError, HandlerResult, ModelId, Position, Projector,
/// # };
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
pub type ProjectorScenario<P, R> = HandlerScenario<P, R, Projects>;

impl<P: Projector, R> HandlerScenario<P, R, Projects> {
    /// Creates the scenario of a projector before any event. The closure reads the rows: `async
    /// |projector| projector.rows().await`.
    ///
    /// # Panics
    /// If it is called inside of a tokio runtime: the test must be a plain `#[test]`.
    #[track_caller]
    #[must_use]
    pub fn new(projector: P, rows: impl AsyncFn(&P) -> R + 'static) -> Self {
        let projector = Arc::new(projector);
        let selectors = P::Events::selectors();
        let words = Words {
            aggregates: selectors
                .iter()
                .map(|selector| selector.aggregate)
                .collect(),
            handler: "projector",
            results: "rows",
        };
        let added = projector.clone();
        let add =
            move |builder: RunnerBuilder, policy| builder.projector_with(added.clone(), policy);
        Self::start(projector, words, ProcessorPolicy::projector(), add, rows)
    }

    /// Lets a process that has lost its partition apply an event late.
    ///
    /// `project` and `flush` are called directly, without the checks of the runner. They must not
    /// change anything newer than the event, and they may fail. A retired or shredded event is not
    /// applied, as in the runner.
    ///
    /// # Panics
    /// - As [`when`](Self::when).
    /// - If there is no such event.
    /// - If the event cannot be read or is not one of the projector's events, since then nothing
    ///   would be tested.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_applied_late(mut self, stream: &str, version: u64) -> Self {
        self.begin_step();
        let event = self.feed.event(stream, version);
        let outcome = match self.feed.block_on(self.read_event(&event)) {
            Ok(None) => "nothing to apply: the event is retired or shredded".into(),
            Ok(Some(decoded)) => match self.feed.block_on(self.apply(&decoded, &event)) {
                Ok(()) => "not refused".into(),
                Err(error) => format!("refused: {error}"),
            },
            Err(error) => panic!(
                "{} {version} cannot be applied late: {}\n{}",
                event.header.stream,
                chain(&*error),
                self.feed.history()
            ),
        };
        self.feed.note_event("applied late", &event);
        self.feed.note("", outcome);
        self
    }

    /// Opens, lifts and decodes an event. Returns `None` if the event is retired or shredded.
    async fn read_event(&self, event: &RecordedEvent) -> Result<Option<P::Events>, BoxError> {
        let (header, ports) = (&event.header, &self.feed.ports);
        let aggregate = header.stream.aggregate();
        let context = PayloadContext::of_event(header);
        let tags = header.codec.as_deref();
        let opened = ports.payload_codecs.open(&context, tags, &event.payload);
        let Opened::Payload(payload) = opened.await? else {
            return Ok(None);
        };
        let upcasters = foldstream::adapter::upcasters_of::<P::Events>(&ports.upcasters)?;
        let lifted = upcasters.apply(aggregate, &header.name, header.schema_version, &payload)?;
        let Some(lifted) = lifted else {
            return Ok(None);
        };
        let (name, schema) = (&lifted.name, lifted.schema_version);
        match P::Events::decode_from(aggregate, name, schema, &lifted.payload)? {
            Decoded::Event(decoded) => Ok(Some(decoded)),
            Decoded::NotMine | Decoded::Unknown => {
                Err(format!("{aggregate}.{name} is not an event of the projector").into())
            }
        }
    }

    async fn apply(&self, event: &P::Events, recorded: &RecordedEvent) -> HandlerResult {
        let model = self.model();
        let header = recorded.header.clone();
        let ctx = EventContext::new(model.clone(), header, EventSource::History);
        self.handler.project(event, &ctx).await?;
        self.handler.flush(&model).await
    }

    /// Resets the model with `reset`, and builds it again from everything that the bus has.
    ///
    /// # Panics
    /// As [`when`](Self::when); if `reset` fails; and if it leaves a position of a stream, or all
    /// rows as they were.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when_rebuilt(mut self) -> Self
    where
        R: Debug + PartialEq,
    {
        self.begin_step();
        let model = self.model();
        let feed = &mut self.feed;
        feed.note("when rebuilt", String::new());
        if let Err(error) = feed.block_on(self.handler.reset(&model)) {
            panic!(
                "the model cannot be reset: {}\n{}",
                chain(error.source()),
                feed.history()
            );
        }
        self.check_emptied(&model);
        self.feed.begin_again();
        self.run();
        self
    }

    /// Panics if `reset` has left what a replay builds upon: the rows would come out right although
    /// nothing was emptied.
    #[track_caller]
    fn check_emptied(&self, model: &ModelId)
    where
        R: Debug + PartialEq,
    {
        let feed = &self.feed;
        for stream in feed.streams() {
            match feed.block_on(self.handler.position(model, stream)) {
                Ok(Position::Stored { version, .. }) if version > Version::NONE => panic!(
                    "the reset has left the position of {stream} at version {version}, so a replay would skip the events up \
                     to it: delete positions together with rows\n{}",
                    feed.history()
                ),
                Ok(_) => {}
                Err(error) => panic!(
                    "the position of {stream} cannot be read after the reset: {}\n{}",
                    chain(error.source()),
                    feed.history()
                ),
            }
        }
        if let Some(rows) = self.rows_left() {
            panic!(
                "the reset has left all rows: `reset` must empty the model\n{}rows: {rows:?}\n",
                feed.history()
            );
        }
    }

    fn model(&self) -> ModelId {
        ModelId::new(self.name(), 1)
    }
}
