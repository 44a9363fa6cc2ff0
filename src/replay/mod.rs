//! Replays: a projector's read model is built again from the event store, while the live one
//! serves.
//!
//! ```text
//! event store -> segments -> lanes by stream -> projector, generation N + 1
//!                                             bus -> runner, generation N, which serves
//! ```
//! A full replay takes these steps, each durable before the next:
//! 1. The replay gets a generation that was never used, and names itself in the row of the
//!    processor. A second replay is refused until this one is over.
//! 2. It notes where the topics end. There the new generation will begin to consume.
//! 3. It empties the new generation's model
//!    ([`Projector::reset`]).
//! 4. It scans the event store and projects what it finds, with the upcasters, payload codecs,
//!    outbox and skipped events that the runner uses, and under the processor's own policy.
//! 5. The runners consume what came since step 2, beside the live generation. Once they have caught
//!    up, one of them switches to the new generation.
//!
//! Events that were published before step 2 are in the event store when the scan begins. Those that
//! were published after it are consumed. Some are both, and their duplicates are dropped at the
//! levels [`Deduplicated`](crate::runner::DeliveryLevel::Deduplicated) and
//! [`ExactlyOnceEffect`](crate::runner::DeliveryLevel::ExactlyOnceEffect), and projected twice in
//! order at [`AtLeastOnce`](crate::runner::DeliveryLevel::AtLeastOnce), as after a crash.
//!
//! # What if the process dies?
//! The position of each segment is stored about once a second. [`Replay::resume`] goes on from
//! there, in any process. A lease excludes that two processes work on one replay. A process that
//! was stopped for longer than its lease can neither move the replay nor empty the model that
//! another process fills.
//!
//! A replay [in place](Replay::in_place) empties the live model instead. All instances stop
//! handling events before, and begin again with step 5.
//!
//! # What of a part of the history?
//! A replay of some event types, streams or times changes the live model, so that most projectors
//! refuse it: see [`PartialReplay`](crate::runner::PartialReplay). It touches no positions, and
//! hands nothing over. A choice that covers everything that a projector subscribes to is a full
//! replay.
//!
//! # Limits
//! - The order is that of each stream. A lane that several streams share
//!   ([`with_lane`](crate::runner::ProcessorPolicy::with_lane)) is handled by one task, in the
//!   order of the scan, and the replay stops where such a projector would park a stream.
//! - The topics must keep their records for longer than the scan takes, which is checked.
mod budget;
mod cancel;
mod driver;
mod dry_run;
mod error;
mod handle;
mod lanes;
mod machine;
mod pages;
mod plan;
mod progress;
mod scan;

pub(crate) use self::{cancel::cancel, plan::part_of};
pub use crate::control::{ReplayMode, RunId, RunState};
pub use cancel::CancelOutcome;
pub use dry_run::DryRun;
pub use error::ReplayError;
pub use handle::{ReplayHandle, ReplayReport};
pub use progress::ReplayProgress;

use self::{driver::Driver, handle::Abort, plan::Plan, progress::Meter};
use crate::{
    RetryPolicy, StreamId, Timestamp,
    control::Rows,
    ports::{ControlStore, EventStore, MessageBus},
    publisher::TopicRoute,
    resilience::{Failure, Retryable},
    runner::{ProcessorPolicy, Projector, ReplayPart, Runner, RunnerBuilder},
};
use std::{fmt, num::NonZeroU32, time::Duration};
use tokio::sync::watch;

/// The settings of a replay.
#[derive(Clone, Debug)]
struct ReplaySettings {
    mode: ReplayMode,
    segments: u32,
    page: NonZeroU32,
    read_units_per_second: Option<f64>,
    lease: Duration,
    reset_timeout: Duration,
    reset_pause: Duration,
    checkpoint: Duration,
    retry: RetryPolicy,
    memory: usize,
    route: TopicRoute,
    by: String,
    expected_events: Option<u64>,
}

impl Default for ReplaySettings {
    fn default() -> Self {
        const PAGE: NonZeroU32 = NonZeroU32::new(500).expect("not zero");
        Self {
            mode: ReplayMode::BlueGreen,
            segments: 8,
            page: PAGE,
            read_units_per_second: None,
            lease: Duration::from_secs(30),
            reset_timeout: Duration::from_secs(300),
            reset_pause: Duration::from_secs(1),
            checkpoint: Duration::from_secs(1),
            retry: RetryPolicy::default(),
            memory: 64 * 1024 * 1024,
            route: TopicRoute::default(),
            by: crate::host::name().to_string(),
            expected_events: None,
        }
    }
}

/// The source of the projectors.
enum Source {
    Runner(Runner),
    /// Projectors that are registered with the replay itself.
    Own(Box<RunnerBuilder>),
}

/// A replay that is to be started.
///
/// # Example
/// Every projector of a runner, all events, with a line for each step of the progress:
/// ```
/// # use foldstream::{DomainEvent, runner::*};
/// # use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "cart")]
/// # enum CartEvent { Opened }
/// # struct Carts;
/// # impl Projector for Carts {
/// #     const NAME: &'static str = "carts";
/// #     type Events = CartEvent;
/// #     async fn project(&self, _: &CartEvent, _: &EventContext) -> HandlerResult { Ok(()) }
/// #     async fn reset(&self, _: &ModelId) -> HandlerResult { Ok(()) }
/// # }
/// use foldstream::replay::{Replay, RunState};
/// use futures::StreamExt;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// # let bus = InMemoryMessageBus::new();
/// # bus.create_topic("GlobalEvents", 1);
/// let runner = Runner::builder(bus, InMemoryControlStore::new(), "shop")
///     .with_event_store(InMemoryEventStore::new())
///     .projector(Carts)
///     .build()?;
///
/// let replay = Replay::all(&runner).with_read_units_per_second(500.0).start().await?;
/// let mut progress = replay.progress();
/// while let Some(progress) = progress.next().await {
///     println!("{:?}: {} events", progress.state, progress.events);
/// }
/// let report = replay.wait().await?;
/// assert_eq!(report.progress.state, RunState::CatchUp);
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[must_use = "a replay does nothing before `start`"]
pub struct Replay {
    source: Source,
    names: Option<Vec<String>>,
    part: ReplayPart,
    settings: ReplaySettings,
    /// The method that was called although it has no effect on a runner's projectors.
    misused: Option<&'static str>,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("names", &self.names)
            .field("part", &self.part)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Replay {
    fn over(source: Source) -> Self {
        Self {
            source,
            names: None,
            part: ReplayPart::default(),
            settings: ReplaySettings::default(),
            misused: None,
        }
    }

    /// Creates a replay for projectors that [`projector`](Self::projector) adds. The topics, the
    /// outbox, upcasters and payload codecs are those of a runner without settings of its own. A
    /// service that has others uses [`all`](Self::all) or [`of`](Self::of).
    pub fn new(store: impl EventStore, control: impl ControlStore, bus: impl MessageBus) -> Self {
        let builder = Runner::builder(bus, control, "replay").with_event_store(store);
        Self::over(Source::Own(Box::new(builder)))
    }

    /// Creates a replay of every projector that is registered with a runner. Its listeners are left
    /// out.
    pub fn all(runner: &Runner) -> Self {
        Self::over(Source::Runner(runner.clone()))
    }

    /// Creates a replay of projectors that are registered with a runner, by their names.
    pub fn of(runner: &Runner, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self {
            names: Some(names),
            ..Self::all(runner)
        }
    }

    /// Adds a projector under the default policy of projectors. A listener does not compile, since
    /// a replay would repeat its side effects:
    /// ```compile_fail,E0277
    /// # use foldstream::{DomainEvent, replay::Replay, runner::*};
    /// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
    /// # #[event(aggregate = "cart")]
    /// # enum CartEvent { Opened }
    /// struct Mails;
    /// impl Listener for Mails {
    ///     const NAME: &'static str = "mails";
    ///     type Events = CartEvent;
    ///     async fn handle(&self, _: &CartEvent, _: &EventContext) -> HandlerResult { Ok(()) }
    /// }
    /// fn replayed(replay: Replay) -> Replay {
    ///     replay.projector(Mails)
    /// }
    /// ```
    /// Only a replay of [`new`](Self::new)
    /// takes it: a runner's projectors are chosen with [`of`](Self::of), and
    /// [`start`](Self::start) refuses what was added to them.
    pub fn projector(self, projector: impl Projector) -> Self {
        self.projector_with(projector, ProcessorPolicy::projector())
    }
    /// Adds a projector under its own policy, which is that of the service.
    pub fn projector_with(mut self, projector: impl Projector, policy: ProcessorPolicy) -> Self {
        match self.source {
            Source::Own(builder) => {
                self.source = Source::Own(Box::new(builder.projector_with(projector, policy)));
            }
            Source::Runner(_) => self.misused = Some("projector"),
        }
        self
    }
    /// Replaces the settings that the projectors of [`new`](Self::new) share, such as topics,
    /// outbox and payload codecs. [`start`](Self::start) refuses it for a runner's projectors.
    pub fn with_runner(mut self, set: impl FnOnce(RunnerBuilder) -> RunnerBuilder) -> Self {
        match self.source {
            Source::Own(builder) => self.source = Source::Own(Box::new(set(*builder))),
            Source::Runner(_) => self.misused = Some("with_runner"),
        }
        self
    }

    /// Repeats only events of these types, by the names that the projectors know.
    pub fn event_types(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.part.events = Some(names.into_iter().map(Into::into).collect());
        self
    }
    /// Repeats only events of these streams.
    pub fn streams(mut self, streams: impl IntoIterator<Item = StreamId>) -> Self {
        self.part.streams = Some(streams.into_iter().collect());
        self
    }
    /// Repeats only events of these aggregate types.
    pub fn aggregate_types(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.part.aggregates = Some(names.into_iter().map(Into::into).collect());
        self
    }
    /// Repeats only events that were recorded in this time: from the first, and before the second.
    pub const fn between(mut self, from: Timestamp, until: Timestamp) -> Self {
        (self.part.from, self.part.until) = (Some(from), Some(until));
        self
    }

    /// Empties the live model and builds it again, instead of a new one beside it. For projectors
    /// whose rows are the same in all generations. A model that has rows per generation, such as
    /// `ReadModel` of `foldstream-dynamodb`, gains nothing by it.
    ///
    /// Nothing serves meanwhile. All instances stop handling events first, and go on once the scan
    /// has ended ([`RunState::Draining`]). Queries find an empty or half-built model, and
    /// [`ReadModels::wait_for`](crate::runner::ReadModels::wait_for) returns an error.
    ///
    /// Once the model may have been emptied, [`cancel`](Self::cancel) cannot bring it back. The
    /// processor then waits, and its health says why, until another replay has built the model. A
    /// machine that is frozen in the middle of an attempt, for longer than its lease and the
    /// attempt's timeout, may still write into the model afterwards.
    pub const fn in_place(mut self) -> Self {
        self.settings.mode = ReplayMode::InPlace;
        self
    }

    /// Sets the number of parts in which the event store is scanned at the same time, from 1 to
    /// 1,000. Each has a position of its own, which costs a row write about once a second. A replay
    /// that is resumed keeps the number it began with. Default 8.
    pub const fn with_segments(mut self, segments: u32) -> Self {
        self.settings.segments = segments;
        self
    }
    /// Sets the most commits of a page of the scan. Default 500.
    pub const fn with_page(mut self, commits: NonZeroU32) -> Self {
        self.settings.page = commits;
        self
    }
    /// Sets the read units per second that the scan may spend, on average. Default: as fast as the
    /// event store and the projectors go.
    pub const fn with_read_units_per_second(mut self, units: f64) -> Self {
        self.settings.read_units_per_second = Some(units);
        self
    }
    /// Sets the time after which another process may take over a replay whose process has died.
    /// Default 30 s.
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }
    /// Sets the time that the reset of a model may take. Default 5 min.
    pub const fn with_reset_timeout(mut self, timeout: Duration) -> Self {
        self.settings.reset_timeout = timeout;
        self
    }
    /// Sets the interval in which models are flushed and positions stored. A longer one costs fewer
    /// writes, and repeats more after a crash. At least 1 ms, default 1 s.
    pub const fn with_checkpoint_interval(mut self, interval: Duration) -> Self {
        self.settings.checkpoint = interval;
        self
    }
    /// Sets the bytes of commits that are read and not yet projected. Default 64 MiB.
    pub const fn with_memory(mut self, bytes: usize) -> Self {
        self.settings.memory = bytes;
        self
    }
    /// Sets the way in which calls of stores and topics are repeated. Default
    /// [`RetryPolicy::default`].
    pub const fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.settings.retry = retry;
        self
    }
    /// Sets the route of the publisher, by which the rows about parked streams find their
    /// partitions. Default: all streams go to `GlobalEvents`.
    pub fn with_route(mut self, route: TopicRoute) -> Self {
        self.settings.route = route;
        self
    }
    /// Sets the name of the operator who starts the replay. Default: the name of the host.
    pub fn with_operator(mut self, by: impl Into<String>) -> Self {
        self.settings.by = by.into();
        self
    }
    /// Takes the estimate of a [dry run](Self::dry_run), so that the progress tells the time that
    /// is left from the start.
    pub const fn with_estimate(mut self, dry_run: &DryRun) -> Self {
        self.settings.expected_events = Some(dry_run.events);
        self
    }

    /// Estimates what the replay would read. It reads parts of the event store until they have
    /// 10,000 commits.
    ///
    /// # Errors
    /// - The errors of a choice of projectors that [`start`](Self::start) refuses, too.
    /// - [`ReplayError::Store`] if the event store cannot be read.
    pub async fn dry_run(self) -> Result<DryRun, ReplayError> {
        let settings = self.settings.clone();
        let (runner, _) = self.check()?;
        let store = runner.ports().store.ok_or(ReplayError::NoEventStore)?;
        dry_run::dry_run(&*store, &settings, 10_000).await
    }

    /// Starts the replay on a task of its own.
    ///
    /// # Errors
    /// - [`ReplayError`] if the choice of projectors, the part of the history or a setting is not
    ///   valid.
    ///
    /// That another replay works on a projector is found out later: see [`ReplayHandle::wait`].
    pub async fn start(self) -> Result<ReplayHandle, ReplayError> {
        let settings = self.settings.clone();
        let (runner, plan) = self.check()?;
        let ids = runner.ports().ids;
        let run = RunId::from_u128(ids.commit_id().as_u128());
        Ok(spawn(runner, settings, plan, run, true))
    }

    /// Goes on with a replay whose process has died, on a task of its own. The projectors and the
    /// part of the history are those with which it began. It begins once the lease of the former
    /// process is over.
    ///
    /// # Errors
    /// - [`ReplayError::Invalid`] if a setting is not valid.
    /// - [`ReplayError::NotFound`] if there is no such replay.
    /// - [`ReplayError::Over`] if it has ended.
    /// - [`ReplayError::WrongModel`] if it builds models of another build.
    /// - [`ReplayError::UnknownProcessor`] if a projector of it is not registered here.
    /// - [`ReplayError::Control`] if its row cannot be read.
    pub async fn resume(self, run: RunId) -> Result<ReplayHandle, ReplayError> {
        self.settings.check()?;
        let settings = self.settings.clone();
        let runner = self.into_runner()?;
        let rows = rows_of(&runner);
        let row = rows.run(run).await?.ok_or(ReplayError::NotFound { run })?;
        let state = row.value.state;
        if state.is_over() || state == RunState::Unknown {
            return Err(ReplayError::Over { run, state });
        }
        let plan = Plan::of_run(run, &row.value, &runner.candidates())?;
        Ok(spawn(runner, settings, plan, run, false))
    }

    /// Cancels a replay of any process, also of one that has died. The generations of before serve,
    /// unless the replay was one [in place](Self::in_place) that may have emptied them.
    ///
    /// # Errors
    /// - [`ReplayError::NotFound`] if there is no such replay.
    /// - [`ReplayError::Control`] if its rows cannot be read or written. The call may be repeated.
    pub async fn cancel(self, run: RunId) -> Result<CancelOutcome, ReplayError> {
        cancel::cancel(&rows_of(&self.into_runner()?), run).await
    }

    fn into_runner(self) -> Result<Runner, ReplayError> {
        if let Some(field) = self.misused {
            let reason = "the replay is one of a runner's projectors: register them with the runner, and choose them with Replay::of".into();
            return Err(ReplayError::Invalid { field, reason });
        }
        Ok(match self.source {
            Source::Runner(runner) => runner,
            Source::Own(builder) => builder.build()?,
        })
    }

    fn check(self) -> Result<(Runner, Plan), ReplayError> {
        self.settings.check()?;
        let mode = self.settings.mode;
        let (names, part) = (self.names.clone(), self.part.clone());
        let runner = self.into_runner()?;
        let plan = Plan::new(runner.candidates(), names.as_deref(), &part)?;
        if plan.part.is_some() && mode == ReplayMode::InPlace {
            let reason = "a replay of a part of the history changes the live model in any case: leave `in_place` out".into();
            let field = "in_place";
            return Err(ReplayError::Invalid { field, reason });
        }
        if runner.ports().store.is_none() {
            return Err(ReplayError::NoEventStore);
        }
        Ok((runner, plan))
    }
}

impl ReplaySettings {
    /// Repeats an operation while its store or bus is away, for a limited time.
    async fn repeated<T, E: Failure, F>(&self, operation: impl FnMut() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        operation
            .retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await
    }

    fn check(&self) -> Result<(), ReplayError> {
        let invalid = |field, reason: &str| {
            Err(ReplayError::Invalid {
                field,
                reason: reason.into(),
            })
        };
        if !(1..=1000).contains(&self.segments) {
            return invalid("segments", "from 1 to 1,000");
        }
        if self
            .read_units_per_second
            .is_some_and(|units| units.is_nan() || units <= 0.0)
        {
            return invalid("read_units_per_second", "more than zero");
        }
        if self.lease < Duration::from_millis(30) {
            return invalid("lease", "at least 30 ms");
        }
        // Without a pause, checkpoints would leave no time to take in what was applied.
        if self.checkpoint < Duration::from_millis(1) {
            return invalid("checkpoint_interval", "at least 1 ms");
        }
        if self.memory == 0 {
            return invalid("memory", "at least 1 byte");
        }
        Ok(())
    }
}

fn rows_of(runner: &Runner) -> Rows {
    let ports = runner.ports();
    Rows::new(ports.control, ports.ids)
}

fn spawn(
    runner: Runner,
    settings: ReplaySettings,
    plan: Plan,
    run: RunId,
    is_new: bool,
) -> ReplayHandle {
    let (ports, rows) = (runner.ports(), rows_of(&runner));
    let meter = Meter {
        estimate: settings.expected_events,
        before: 0,
    };
    let first = meter.progress((run, RunState::Preparing), &[], Duration::ZERO);
    let (progress, shown) = watch::channel(first);
    let driver = Driver {
        runner,
        ports,
        rows: rows.clone(),
        settings,
        plan,
        run,
        progress,
    };
    let task = tokio::spawn(async move {
        if is_new {
            driver.start().await
        } else {
            driver.resume().await
        }
    });
    ReplayHandle {
        run,
        rows,
        progress: shown,
        task: Abort(task),
    }
}
