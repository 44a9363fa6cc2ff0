//! Given commands on several aggregates, when the pipeline has run, then projections, histories and
//! halts.
mod perform;
mod run;
mod then;

use super::{
    failure::with_history,
    feed::{block_on, failed, runtime},
    names::typed_id,
    ports::Ports,
};
use crate::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
    ManualClock, faults::Faults,
};
use foldstream::{
    Aggregate, Decide, DomainEvent, ExecuteError, Executed, ExpectedVersion, Metadata,
    PayloadCodecs, Repository, Timestamp, Upcasters, chain,
    runner::{
        FailureAction, Listener, ProcessorPolicy, ProcessorReport, Projector, RunnerBuilder,
        RunnerError,
    },
};
use std::{
    cell::Cell,
    error::Error,
    fmt::{self, Debug, Display},
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::runtime::Runtime;

/// A command that aggregate `A` decides: every `C` with `A: Decide<C>`.
#[diagnostic::on_unimplemented(
    message = "`{A}` does not decide `{Self}`",
    note = "implement `Decide<{Self}>` for it"
)]
pub trait CommandFor<A: Aggregate>: Send + Sync {
    /// The reason for which `A` rejects the command.
    type Error: Error + Send + Sync + 'static;
    /// Executes the command through a repository.
    #[doc(hidden)]
    fn execute_in(
        self,
        repository: &Repository<A>,
        id: &A::Id,
        metadata: Metadata,
    ) -> impl Future<Output = Result<Executed<A>, ExecuteError<Self::Error>>>;
}

impl<A: Decide<C>, C: Send + Sync> CommandFor<A> for C {
    type Error = A::Error;
    fn execute_in(
        self,
        repository: &Repository<A>,
        id: &A::Id,
        metadata: Metadata,
    ) -> impl Future<Output = Result<Executed<A>, ExecuteError<Self::Error>>> {
        repository.execute_with(id, self, metadata)
    }
}

/// The whole pipeline of events, in memory: repositories, publisher, bus and runner, as a service
/// has them.
///
/// [`execute`](Self::execute) decides commands and stores their events. [`run`](Self::run)
/// publishes what is stored and runs every processor. It repeats this for events that listeners
/// have caused, until no work is left. Then the test asserts rows, histories and halts. Time is
/// paused and ids come from a seed, so each run is the same.
///
/// - **Given** events lie before the processors start: a listener that starts at the current end of
///   the log, as is the default, does not receive them.
/// - A processor that fails **halts** at the event, and stays halted until the next
///   [`run`](Self::run), which restarts it. A test that does not assert the halt with
///   [`then_halted`](Self::then_halted) fails at its next call or at its end. It halts whatever its
///   policy says about failed events: a stream that is parked, or an event that becomes a dead
///   letter, would go unnoticed in a test. It has no circuit breaker: an event that fails while one
///   is open waits for its service.
/// - Ids are given as values or as texts.
/// - A pipeline has its own runtime, so its tests are plain `#[test]`s. Its topic has four
///   partitions.
///
/// # Example
/// ```
/// # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, id};
/// # use foldstream::runner::{EventContext, HandlerResult, Listener, ModelId, Projector};
/// # use foldstream::Repository;
/// # use std::{collections::BTreeMap, convert::Infallible, sync::{Arc, Mutex}};
/// # id!(OrderId);
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "order")]
/// # enum OrderEvent { Placed { sku: String }, Shipped }
/// # #[derive(Clone, Default)]
/// # struct Order;
/// # impl Aggregate for Order {
/// #     type Id = OrderId;
/// #     type Event = OrderEvent;
/// #     fn evolve(&mut self, _: &OrderEvent) {}
/// # }
/// # enum OrderCommand { Place { sku: String }, Ship }
/// # use OrderCommand::{Place, Ship};
/// # impl Decide<OrderCommand> for Order {
/// #     type Error = Infallible;
/// #     fn decide(&self, command: &OrderCommand, _: &Context) -> Decision<Self, Infallible> {
/// #         Ok(vec![match command {
/// #             Place { sku } => OrderEvent::Placed { sku: sku.clone() },
/// #             Ship => OrderEvent::Shipped,
/// #         }])
/// #     }
/// # }
/// # #[derive(Default)]
/// # struct Open(Mutex<BTreeMap<String, String>>);
/// # impl Projector for Open {
/// #     const NAME: &'static str = "open";
/// #     type Events = OrderEvent;
/// #     async fn project(&self, event: &OrderEvent, ctx: &EventContext) -> HandlerResult {
/// #         let mut open = self.0.lock().unwrap();
/// #         match event {
/// #             OrderEvent::Placed { sku } => open.insert(ctx.stream().id().into(), sku.clone()),
/// #             OrderEvent::Shipped => open.remove(ctx.stream().id()),
/// #         };
/// #         Ok(())
/// #     }
/// #     async fn reset(&self, _: &ModelId) -> HandlerResult { Ok(()) }
/// # }
/// /// Ships at once what is light enough to fly.
/// struct Drone(Repository<Order>);
///
/// impl Listener for Drone {
///     const NAME: &'static str = "drone";
///     type Events = OrderEvent;
///     async fn handle(&self, event: &OrderEvent, ctx: &EventContext) -> HandlerResult {
///         if matches!(event, OrderEvent::Placed { sku } if sku == "feather") {
///             self.0.execute_with(&ctx.id()?, Ship, ctx.caused("ship")).await?;
///         }
///         Ok(())
///     }
/// }
///
/// use foldstream_testkit::PipelineScenario;
/// let open = Arc::new(Open::default());
/// let pipeline = PipelineScenario::new();
/// let drone = Drone(pipeline.repository());
/// pipeline.projector(open.clone())
///     .listener(drone)
///     .execute::<Order>("o-1", Place { sku: "anvil".into() })
///     .execute::<Order>("o-2", Place { sku: "feather".into() })
///     .run()
///     .then(async || open.0.lock().unwrap().clone(), [("o-1".into(), "anvil".into())])
///     .then_events::<Order>(
///         "o-2",
///         [OrderEvent::Placed { sku: "feather".into() }, OrderEvent::Shipped],
///     );
/// ```
pub struct PipelineScenario {
    runtime: Runtime,
    /// Set if timeouts and sleeps take no time.
    is_paused: bool,
    ports: Ports,
    faults: Option<Faults>,
    processors: Vec<Entry>,
    /// Set after the test took a repository, which has the settings of that moment.
    has_repository: Cell<bool>,
    /// Set after the processors have started.
    is_open: bool,
    /// Set if events may have been stored that are not published yet.
    has_news: bool,
    /// Set after the test has called `run`.
    has_run: bool,
}

/// A processor, and its result since the last run began.
struct Entry {
    add: Box<dyn Fn(RunnerBuilder) -> RunnerBuilder>,
    report: Option<ProcessorReport>,
    is_halt_seen: bool,
}

impl Entry {
    fn error(&self) -> Option<&RunnerError> {
        self.report.as_ref()?.error.as_deref()
    }

    fn add_report(&mut self, next: ProcessorReport) {
        let Some(report) = &mut self.report else {
            self.report = Some(next);
            return;
        };
        report.handled += next.handled;
        report.skipped += next.skipped;
        report.shredded += next.shredded;
        report.duplicates += next.duplicates;
        report.filled += next.filled;
        report.gaps_unverified += next.gaps_unverified;
        report.retries += next.retries;
        report.error = next.error;
    }
}

impl fmt::Debug for PipelineScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineScenario")
            .field("processors", &self.processors.len())
            .finish_non_exhaustive()
    }
}

impl Default for PipelineScenario {
    fn default() -> Self {
        Self::new()
    }
}

impl PipelineScenario {
    /// Creates a pipeline with an empty store, an empty bus and no processor.
    ///
    /// # Panics
    /// If it is called inside of a tokio runtime: the test must be a plain `#[test]`.
    #[track_caller]
    #[must_use]
    pub fn new() -> Self {
        Self {
            runtime: runtime(true),
            is_paused: true,
            ports: Ports::new(4),
            faults: None,
            processors: Vec::new(),
            has_repository: Cell::new(false),
            is_open: false,
            has_news: false,
            has_run: false,
        }
    }

    /// Lets time pass as usual instead of pausing it, for handlers with real connections. Retries
    /// then take their time.
    ///
    /// # Panics
    /// If an event was given or a command executed before.
    #[track_caller]
    #[must_use]
    pub fn in_real_time(mut self) -> Self {
        self.check_is_new("in_real_time");
        self.runtime = runtime(false);
        self.is_paused = false;
        self
    }

    /// Sets upcasters for older payloads, in the repositories of the pipeline and in the runner.
    ///
    /// # Panics
    /// If [`repository`](Self::repository) was called before, since that repository would not have
    /// the upcasters.
    #[track_caller]
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.check_has_no_repository("with_upcasters");
        self.ports.upcasters = upcasters;
        self
    }

    /// Injects faults into publisher and runner, from the first command or run on.
    ///
    /// A process that is killed is started again, and a call that fails is retried, until no work
    /// is left. Faults do not affect commands, repositories and the assertions afterwards.
    #[must_use]
    pub fn with_faults(mut self, faults: &Faults) -> Self {
        self.faults = Some(faults.clone());
        self
    }

    /// Sets the codecs that seal and open payloads, in the repositories of the pipeline and in the
    /// runner.
    ///
    /// # Panics
    /// If [`repository`](Self::repository) was called before, since that repository would not have
    /// the codecs.
    #[track_caller]
    #[must_use]
    pub fn with_payload_codecs(mut self, codecs: PayloadCodecs) -> Self {
        self.check_has_no_repository("with_payload_codecs");
        self.ports.payload_codecs = codecs;
        self
    }

    #[track_caller]
    fn check_has_no_repository(&self, what: &str) {
        assert!(
            !self.has_repository.get(),
            "{what} comes before the first `repository`: the one that was made before would go on without it"
        );
    }

    /// Sets the metadata of the commands and events that follow.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.ports.metadata = metadata;
        self
    }

    /// Sets the time of the commands and events that follow. Default: 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        self.ports.clock.set(now);
        self
    }

    /// Moves the time of the commands and events that follow by this much.
    #[must_use]
    pub fn later(self, by: Duration) -> Self {
        self.ports.clock.advance(by);
        self
    }

    /// Returns a repository on the pipeline's store, clock, ids, upcasters and codecs, for a
    /// listener that executes commands.
    #[must_use]
    pub fn repository<A: Aggregate>(&self) -> Repository<A> {
        self.has_repository.set(true);
        self.ports.repository()
    }

    /// Returns the event store of the pipeline.
    #[must_use]
    pub fn event_store(&self) -> Arc<InMemoryEventStore> {
        self.ports.event_store.clone()
    }
    /// Returns the bus of the pipeline. All events are in its topic `GlobalEvents`.
    #[must_use]
    pub fn bus(&self) -> Arc<InMemoryMessageBus> {
        self.ports.message_bus.clone()
    }
    /// Returns the control store of the pipeline, for instance for repositories with idempotent
    /// commands.
    #[must_use]
    pub fn control_store(&self) -> Arc<InMemoryControlStore> {
        self.ports.control_store.clone()
    }
    /// Returns the snapshot store of the pipeline, for repositories with snapshots.
    #[must_use]
    pub fn snapshot_store(&self) -> Arc<InMemorySnapshotStore> {
        self.ports.snapshot_store.clone()
    }
    /// Returns the clock of repositories and of rows that expire. The paused time of retries and
    /// timeouts is tokio's own.
    #[must_use]
    pub fn clock(&self) -> Arc<ManualClock> {
        self.ports.clock.clone()
    }

    /// Adds a projector under its default policy. Pass an `Arc` to keep access to the projector in
    /// the test.
    ///
    /// # Panics
    /// If an event was given or a command executed before.
    #[track_caller]
    #[must_use]
    pub fn projector(self, projector: impl Projector) -> Self {
        self.projector_with(projector, ProcessorPolicy::projector())
    }

    /// Adds a projector that runs under its own policy.
    ///
    /// # Panics
    /// If an event was given or a command executed before.
    #[track_caller]
    #[must_use]
    pub fn projector_with(self, projector: impl Projector, policy: ProcessorPolicy) -> Self {
        let projector = Arc::new(projector);
        let policy = policy
            .with_on_failure(|_| FailureAction::Halt)
            .without_breaker();
        self.processor(move |builder| builder.projector_with(projector.clone(), policy.clone()))
    }

    /// Adds a listener under its default policy. Pass an `Arc` to keep access to the listener in
    /// the test.
    ///
    /// # Panics
    /// If an event was given or a command executed before.
    #[track_caller]
    #[must_use]
    pub fn listener(self, listener: impl Listener) -> Self {
        self.listener_with(listener, ProcessorPolicy::listener())
    }

    /// Adds a listener that runs under its own policy.
    ///
    /// # Panics
    /// If an event was given or a command executed before.
    #[track_caller]
    #[must_use]
    pub fn listener_with(self, listener: impl Listener, policy: ProcessorPolicy) -> Self {
        let listener = Arc::new(listener);
        let policy = policy
            .with_on_failure(|_| FailureAction::Halt)
            .without_breaker();
        self.processor(move |builder| builder.listener_with(listener.clone(), policy.clone()))
    }

    #[track_caller]
    fn processor(mut self, add: impl Fn(RunnerBuilder) -> RunnerBuilder + 'static) -> Self {
        self.check_is_new("a processor");
        self.processors.push(Entry {
            add: Box::new(add),
            report: None,
            is_halt_seen: false,
        });
        self
    }

    #[track_caller]
    fn check_is_new(&self, what: &str) {
        assert!(
            !self.is_open && !self.has_news,
            "{what} comes before the first event"
        );
    }

    /// Stores events without a command, in one commit.
    ///
    /// Events that are given before the first command or run lie before the start of the
    /// processors. Later ones are published as all others.
    ///
    /// # Panics
    /// If the events cannot be stored.
    #[track_caller]
    #[must_use = "a pipeline without a `then` checks nothing"]
    pub fn given<A: Aggregate>(
        mut self,
        id: impl Display,
        events: impl IntoIterator<Item = A::Event>,
    ) -> Self {
        self.check_halts_seen();
        let id = &typed_id::<A>(id);
        let events: Vec<_> = events.into_iter().collect();
        let repository = self.ports.repository::<A>();
        let metadata = self.ports.metadata.clone();
        let append = repository.append_with(id, ExpectedVersion::Any, &events, metadata);
        let appended = block_on(&self.runtime, append);
        if let Err(error) = appended {
            let stream = stream_text::<A>(id);
            panic!("the events of {stream} cannot be stored: {}", chain(&error));
        }
        self.has_news = true;
        self
    }

    /// Executes a command that must be accepted. The next [`run`](Self::run) publishes its events.
    ///
    /// # Panics
    /// - If the command is rejected, with the reason and what happened before.
    /// - If the command cannot be executed.
    /// - If a processor has halted and the test has not asserted it.
    #[track_caller]
    #[must_use = "a pipeline without a `then` checks nothing"]
    pub fn execute<A: Aggregate>(mut self, id: impl Display, command: impl CommandFor<A>) -> Self {
        let id = &typed_id::<A>(id);
        match self.decide(id, command) {
            Ok(_) => self,
            Err(ExecuteError::Rejected(reason)) => panic!(
                "a command on {} was refused: {reason:?}\n{}",
                stream_text::<A>(id),
                self.history()
            ),
            Err(error) => self.panic_not_executed::<A>(id, &error),
        }
    }

    /// Executes a command that must be rejected, for any reason.
    ///
    /// To assert the reason, use the aggregate's [`Scenario`](crate::Scenario) or
    /// [`execute_refused_with`](Self::execute_refused_with).
    ///
    /// # Panics
    /// - If the command is accepted or cannot be executed.
    /// - If a processor has halted and the test has not asserted it.
    #[track_caller]
    #[must_use = "a pipeline without a `then` checks nothing"]
    pub fn execute_refused<A: Aggregate>(
        self,
        id: impl Display,
        command: impl CommandFor<A>,
    ) -> Self {
        self.execute_refused_with::<A, _>(id, command, |_| {})
    }

    /// Executes a command that must be rejected, and passes the reason to the closure for
    /// assertions.
    ///
    /// For example: `.execute_refused_with::<Account, _>("ann", Withdraw(7), |reason|
    /// assert_eq!(*reason, InsufficientFunds))`.
    ///
    /// # Panics
    /// As [`execute_refused`](Self::execute_refused), and if the closure panics, with its message
    /// and what happened before.
    #[track_caller]
    #[must_use = "a pipeline without a `then` checks nothing"]
    pub fn execute_refused_with<A: Aggregate, C: CommandFor<A>>(
        mut self,
        id: impl Display,
        command: C,
        check: impl FnOnce(&C::Error),
    ) -> Self {
        let id = &typed_id::<A>(id);
        match self.decide(id, command) {
            Err(ExecuteError::Rejected(reason)) => with_history(
                || check(&reason),
                || format!("refused: {reason:?}\n{}", self.history()),
            ),
            Ok(done) => panic!(
                "a command on {} was accepted, with {:?}\n{}",
                stream_text::<A>(id),
                done.events(),
                self.history()
            ),
            Err(error) => self.panic_not_executed::<A>(id, &error),
        }
        self
    }

    #[track_caller]
    fn decide<A: Aggregate, C: CommandFor<A>>(
        &mut self,
        id: &A::Id,
        command: C,
    ) -> Result<Executed<A>, ExecuteError<C::Error>> {
        self.check_halts_seen();
        self.open();
        let repository = self.ports.repository::<A>();
        let executing = command.execute_in(&repository, id, self.ports.metadata.clone());
        let done = block_on(&self.runtime, executing);
        self.has_news |= done.is_ok();
        done
    }

    #[track_caller]
    fn panic_not_executed<A: Aggregate>(
        &self,
        id: &A::Id,
        error: &ExecuteError<impl Debug + fmt::Display + 'static>,
    ) -> ! {
        panic!(
            "a command on {} could not be executed: {}\n{}",
            stream_text::<A>(id),
            chain(error),
            self.history()
        )
    }

    #[track_caller]
    fn check_halts_seen(&self) {
        for entry in &self.processors {
            if let (Some(report), Some(error), false) =
                (&entry.report, entry.error(), entry.is_halt_seen)
            {
                panic!(
                    "{} {}\n{}if that is expected, call `then_halted` or `then_halted_with` right after `run`\n",
                    report.name,
                    failed(error),
                    self.history()
                );
            }
        }
    }
}

impl Drop for PipelineScenario {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.check_halts_seen();
            let is_idle = self.has_run || self.processors.is_empty() || !self.has_news;
            assert!(
                is_idle,
                "the processors were never given the events: say `.run()` after `execute`, `perform` or `given`"
            );
        }
    }
}

fn stream_text<A: Aggregate>(id: &A::Id) -> String {
    format!("{}#{id}", A::Event::AGGREGATE)
}
