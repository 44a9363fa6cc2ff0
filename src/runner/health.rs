//! [`RunnerHealth`]: the state of running processors as plain values, for operators and for probes.
use super::ErrorClass;
use crate::{StreamId, Version, breaker::CircuitState, ports::PartitionId};
use std::{fmt, sync::Arc, time::Duration};

/// The time for which the bus or the control store may be away before a processor counts as
/// unreachable, and for which a read model may not be made durable before it counts as failing.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The time for which the task of a processor may show no sign of life. It shows one each second.
const SILENCE: Duration = Duration::from_secs(30);

/// The state of the processors of one runner, as
/// [`RunnerHandle::health`](super::RunnerHandle::health) has found it.
///
/// # Example
/// ```
/// use foldstream::runner::{ProcessorHealth, ProcessorState, RunnerHealth};
///
/// let halted = ProcessorHealth::new("mailer", ProcessorState::Halted);
/// let running = ProcessorHealth::new("orders", ProcessorState::Running);
/// let health = RunnerHealth::new([running, halted]);
/// assert_eq!(health.readiness().to_string(), "mailer: it has halted");
/// // Starting the process again would not help.
/// assert!(health.liveness().is_ok());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunnerHealth {
    /// The processors, in the order of their registration.
    pub processors: Vec<ProcessorHealth>,
}

/// The state of one processor in this process.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProcessorHealth {
    /// The name of the processor.
    pub name: Arc<str>,
    /// The state of the processor.
    pub state: ProcessorState,
    /// The time for which the processor has been in this state. For
    /// [`Unreachable`](ProcessorState::Unreachable) it is counted from the first failure.
    pub lasting: Duration,
    /// The failure that explains the state. While the processor runs: the failure of the bus, of a
    /// store, of the read model or of a handler that has lasted longest. `None` if nothing fails.
    pub trouble: Option<Trouble>,
    /// The generation of the read model that the processor serves; `None` before it has joined its
    /// group.
    pub generation: Option<u32>,
    /// The generation that a replay has built and that catches up in this process, beside the one
    /// that serves; `None` if there is none.
    pub next: Option<NextGeneration>,
    /// The number of partitions that the processor owns. It may be 0 if there are more instances
    /// than partitions.
    pub partitions: u32,
    /// The distance to the end of the partitions that the processor owns.
    pub lag: Lag,
    /// The number of attempts that run. Each is a call of a handler with one event or one batch.
    pub in_flight: usize,
    /// The number of attempts that neither end nor begin their next call within the attempt
    /// timeout: such a handler blocks its thread.
    pub stuck: usize,
    /// The number of records that were received and whose offset is not committed yet.
    pub held_records: usize,
    /// The size of these records in bytes.
    pub held_bytes: usize,
    /// The number of lanes that wait for the next attempt at their first event. A lane is a stream,
    /// or what [`ProcessorPolicy::with_lane`](super::ProcessorPolicy::with_lane) says.
    pub waiting_lanes: usize,
    /// The failure of the event that has been retried for longest; `None` if none is retried.
    pub oldest_retry: Option<Trouble>,
    /// The number of attempts that were repeated since the runner was started.
    pub retries: u64,
    /// The number of records that are not events of this library, or of a newer format, since the
    /// runner was started.
    pub unreadable: u64,
    /// The number of parked streams in the partitions that the processor owns; `None` if they are
    /// not known.
    pub parked: Option<u64>,
    /// The number of dead letters in the partitions that the processor owns; `None` if they are not
    /// known.
    pub dead_letters: Option<u64>,
    /// The number of dead letters that could not be copied to their
    /// [topic](super::ProcessorPolicy::with_dead_letter_topic) since the runner was started. The
    /// letters are stored.
    pub dead_letters_not_sent: u64,
    /// The state of the circuit breaker; `None` if the processor has none.
    pub breaker: Option<CircuitState>,
    /// The time since the task of the processor has last shown a sign of life. It shows one each
    /// second while it runs. Zero for a processor that has ended.
    pub silent: Duration,
}

/// The state of a generation that catches up beside the one that serves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NextGeneration {
    /// The number of the generation.
    pub generation: u32,
    /// The state of the generation.
    pub state: ProcessorState,
    /// The number of partitions that the generation owns in this process.
    pub partitions: u32,
    /// The distance to the end of these partitions.
    pub lag: Lag,
    /// The failure that explains the state, or has lasted longest; `None` if nothing fails.
    pub trouble: Option<Trouble>,
}

/// The state of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProcessorState {
    /// The processor joins its group, or reads the rows of its first partitions.
    Starting,
    /// The processor handles events.
    Running,
    /// The bus or the control store has been away for a minute. The processor keeps trying, and
    /// nothing is lost.
    Unreachable,
    /// Too much is parked or dead: nothing new is handled until an operator has made room.
    Held,
    /// An operator has paused the processor.
    Paused,
    /// No generation of this build's [model](super::Projector::MODEL) is there: a replay builds
    /// one. Or a replay builds the live model again in place. [`ProcessorHealth::trouble`] says
    /// which.
    Waiting,
    /// The read model of a newer build serves, and this build does nothing.
    Superseded,
    /// The processor finishes its work and leaves its group.
    Stopping,
    /// The processor has ended because it was told to.
    Stopped,
    /// A failure has ended the processor. It is started again by
    /// [`RunnerHandle::restart`](super::RunnerHandle::restart), or with the process.
    Halted,
}

impl ProcessorState {
    /// Returns the name of the state in lower case, for labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Unreachable => "unreachable",
            Self::Held => "held",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Superseded => "superseded",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Halted => "halted",
        }
    }
    /// Returns true for a processor that has ended.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Halted)
    }
}
impl fmt::Display for ProcessorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The part of the system in which a failure occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TroubleSource {
    /// The message bus.
    Bus,
    /// The control store.
    ControlStore,
    /// The preparation or the flush of the read model.
    ReadModel,
    /// The handler, or what it needs to read the event.
    Handler,
    /// The processor itself, such as a lost position or a build of another model.
    Processor,
}

/// A failure that lasts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trouble {
    /// The part of the system that fails.
    pub source: TroubleSource,
    /// The class of the last failure.
    pub class: ErrorClass,
    /// The last error and its sources as one line. It holds no payload.
    pub error: Arc<str>,
    /// The stream of the event that could not be handled.
    pub stream: Option<StreamId>,
    /// The version of that event.
    pub version: Option<Version>,
    /// The partition that is concerned, where it is one.
    pub partition: Option<PartitionId>,
    /// The number of attempts at the event, or 0 where attempts are not counted.
    pub attempts: u32,
    /// The time since the first failure.
    pub lasting: Duration,
}

/// The distance of a processor to the end of its partitions.
///
/// The runner asks the bus for the end offsets every
/// [10 s](super::RunnerBuilder::with_lag_interval), so the lag includes nothing that was published
/// since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// The number of offsets between the first one that is not handled and the end. Offsets that
    /// hold nothing, such as transaction markers, count until the processor has passed them. `None`
    /// if the end of a partition is not known.
    pub records: Option<u64>,
    /// The time since the oldest event was recorded that is not handled, by the writer's clock.
    /// Zero if the lag is 0 records, and `None` if no such event has been received yet.
    pub time: Option<Duration>,
}

/// The answer to a probe: ready or live, or the reasons why not.
///
/// [`Display`](fmt::Display) writes `ok`, or one line for each problem: the body of an HTTP answer
/// with the status 200 or 503.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct Probe {
    /// The problems, in the order of the processors.
    pub problems: Vec<Problem>,
}

/// A reason why a probe fails.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The name of the processor.
    pub processor: Arc<str>,
    /// The kind of the problem.
    pub kind: ProblemKind,
    /// The time for which the problem has lasted.
    pub lasting: Duration,
    /// The error that explains the problem, as one line.
    pub error: Option<Arc<str>>,
}

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The processor is in a state in which it does not handle events.
    State(ProcessorState),
    /// The effects of handled events have not been made durable for a minute.
    NotDurable,
    /// This number of handlers block their threads.
    Stuck(usize),
    /// The task of the processor has shown no sign of life for 30 s: something blocks its thread.
    Silent,
}

impl Probe {
    /// Returns true if there is no problem.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.problems.split_first() else {
            return f.write_str("ok");
        };
        write!(f, "{first}")?;
        others
            .iter()
            .try_for_each(|problem| write!(f, "\n{problem}"))
    }
}
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.processor, self.kind)?;
        if !self.lasting.is_zero() {
            write!(f, " (for {} s)", self.lasting.as_secs())?;
        }
        match &self.error {
            Some(error) => write!(f, ": {error}"),
            None => Ok(()),
        }
    }
}
impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State(ProcessorState::Starting) => "it is starting",
            Self::State(ProcessorState::Unreachable) => "a backend is not reachable",
            Self::State(ProcessorState::Held) => "it holds, since too much is parked or dead",
            Self::State(ProcessorState::Stopping) => "it is stopping",
            Self::State(ProcessorState::Stopped) => "it was stopped",
            Self::State(ProcessorState::Halted) => "it has halted",
            Self::State(ProcessorState::Running) => "it is running",
            Self::State(ProcessorState::Paused) => "it is paused",
            Self::State(ProcessorState::Waiting) => "it waits for a replay",
            Self::State(ProcessorState::Superseded) => "the read model of a newer build serves",
            Self::NotDurable => "what it has handled cannot be made durable",
            Self::Stuck(1) => "a handler blocks its thread",
            Self::Stuck(handlers) => return write!(f, "{handlers} handlers block their threads"),
            Self::Silent => "its task does not run: something blocks the thread",
        })
    }
}

impl ProcessorHealth {
    /// Creates the health of a processor of which nothing but the state is known: for tests of what
    /// shows it.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, state: ProcessorState) -> Self {
        Self {
            name: name.into(),
            state,
            lasting: Duration::ZERO,
            trouble: None,
            generation: None,
            next: None,
            partitions: 0,
            lag: Lag::default(),
            in_flight: 0,
            stuck: 0,
            held_records: 0,
            held_bytes: 0,
            waiting_lanes: 0,
            oldest_retry: None,
            retries: 0,
            unreadable: 0,
            parked: None,
            dead_letters: None,
            dead_letters_not_sent: 0,
            breaker: None,
            silent: Duration::ZERO,
        }
    }

    /// Returns the problem because of which the processor is not ready, if there is one.
    ///
    /// A processor is ready while it runs, is paused by an operator, waits for a replay, or was
    /// superseded: a rolling deployment must be able to go on. A failing event is not a problem in
    /// this sense, since it holds up its own stream only.
    pub fn not_ready(&self) -> Option<Problem> {
        let is_ready = matches!(
            self.state,
            ProcessorState::Running
                | ProcessorState::Paused
                | ProcessorState::Waiting
                | ProcessorState::Superseded
        );
        if !is_ready {
            let error = self.trouble.as_ref().map(|trouble| trouble.error.clone());
            return Some(self.problem(ProblemKind::State(self.state), self.lasting, error));
        }
        let trouble = self.trouble.as_ref()?;
        let is_problem = trouble.source != TroubleSource::Handler && trouble.lasting >= PATIENCE;
        let error = Some(trouble.error.clone());
        is_problem.then(|| self.problem(ProblemKind::NotDurable, trouble.lasting, error))
    }

    /// Returns the problem that starting the process again would solve, if there is one.
    pub fn not_live(&self) -> Option<Problem> {
        if self.silent >= SILENCE {
            return Some(self.problem(ProblemKind::Silent, self.silent, None));
        }
        let kind = ProblemKind::Stuck(self.stuck);
        (self.stuck > 0).then(|| self.problem(kind, Duration::ZERO, None))
    }

    fn problem(&self, kind: ProblemKind, lasting: Duration, error: Option<Arc<str>>) -> Problem {
        Problem {
            processor: self.name.clone(),
            kind,
            lasting,
            error,
        }
    }
}

impl RunnerHealth {
    /// Creates the health of a runner from that of its processors: for tests of what shows it.
    #[must_use]
    pub fn new(processors: impl IntoIterator<Item = ProcessorHealth>) -> Self {
        Self {
            processors: processors.into_iter().collect(),
        }
    }
    /// Returns the health of one processor.
    pub fn processor(&self, name: &str) -> Option<&ProcessorHealth> {
        self.processors.iter().find(|p| &*p.name == name)
    }
    /// Returns the reasons why a processor does not do its work: it is starting, halted, held,
    /// stopping, out of reach of its backends, or cannot make durable what it has handled.
    ///
    /// For the readiness probe of a container, and for alerts.
    pub fn readiness(&self) -> Probe {
        let problems = self.processors.iter();
        Probe {
            problems: problems.filter_map(ProcessorHealth::not_ready).collect(),
        }
    }
    /// Returns the reasons to start the process again: a handler or a store blocks a thread.
    ///
    /// For the liveness probe of a container. A processor that has halted is not among the reasons,
    /// since it would halt again at the same event, and the others would be interrupted each time.
    pub fn liveness(&self) -> Probe {
        let problems = self.processors.iter();
        Probe {
            problems: problems.filter_map(ProcessorHealth::not_live).collect(),
        }
    }
}
