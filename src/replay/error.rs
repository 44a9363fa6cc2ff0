//! [`ReplayError`]: the reasons why a replay is refused, or ends early.
use super::{RunId, RunState};
use crate::{
    BoxError,
    ports::{ControlStoreError, EventStoreError, MessageBusError, PartitionId},
    runner::{BuildError, rebuild::RebuildError},
};

/// The error returned by a replay that was refused, or that has ended before its scan was whole.
///
/// The live read model is as it was, and serves, unless a replay
/// [in place](super::Replay::in_place) has begun to empty it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The processors are not valid.
    #[error("the processors of the replay are not valid")]
    Build(#[from] BuildError),
    /// The runner has no event store to read from.
    #[error(
        "a replay reads the event store: give it to the runner with RunnerBuilder::with_event_store"
    )]
    NoEventStore,
    /// No registered processor is a projector.
    #[error("there is no projector to replay: register one with projector(..)")]
    NoProjector,
    /// A chosen name is that of no registered processor.
    #[error("no processor {name} is registered here; there are {known}")]
    UnknownProcessor {
        /// The name.
        name: String,
        /// The names of the registered projectors.
        known: String,
    },
    /// A chosen name is that of a listener.
    #[error(
        "{name} is a listener: a replay would repeat its side effects, and only projectors can be replayed"
    )]
    NotAProjector {
        /// The name.
        name: String,
    },
    /// No chosen projector subscribes to a chosen event type or aggregate type.
    #[error("no chosen projector subscribes to {name}; they subscribe to {known}")]
    NotSubscribed {
        /// The name of the event type or aggregate type.
        name: String,
        /// The names to which the chosen projectors subscribe.
        known: String,
    },
    /// The choice is a part of the history, and a projector can be replayed only as a whole.
    #[error(
        "{name} can be replayed only as a whole: choose everything that it subscribes to, or declare Projector::PARTIAL_REPLAY"
    )]
    PartRefused {
        /// The name of the projector.
        name: String,
    },
    /// The choice is everything for one projector, and a part of the history for another.
    #[error(
        "the choice is the whole history of {whole}, and a part of that of {part}: replay them one after the other"
    )]
    Mixed {
        /// The projector that would be replayed as a whole.
        whole: String,
        /// The projector of whose history it is a part.
        part: String,
    },
    /// A setting is not valid.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// The name of the setting.
        field: &'static str,
        /// A description of the mistake.
        reason: String,
    },
    /// A replay works on the processor already.
    #[error("replay {run} works on {processor}: wait for it, resume it, or cancel it")]
    AlreadyRunning {
        /// The name of the processor.
        processor: String,
        /// The id of the other replay.
        run: String,
    },
    /// There is no replay with this id.
    #[error("there is no replay {run}")]
    NotFound {
        /// The id.
        run: RunId,
    },
    /// The replay is over.
    #[error("replay {run} is over: {state:?}")]
    Over {
        /// The id.
        run: RunId,
        /// The state in which it has ended.
        state: RunState,
    },
    /// Another process works on the replay, and renews its lease.
    #[error("another process works on replay {run}")]
    Held {
        /// The id.
        run: RunId,
    },
    /// Another process has taken the replay over, and goes on with it.
    #[error("another process has taken over replay {run}")]
    TakenOver {
        /// The id.
        run: RunId,
    },
    /// This process could not renew its lease in time, so that another one may take the replay
    /// over.
    #[error(
        "the lease of replay {run} was not renewed in time: resume it, with a longer lease if the machine or the control store is slow"
    )]
    LeaseExpired {
        /// The id.
        run: RunId,
    },
    /// The replay was cancelled.
    #[error("replay {run} was cancelled")]
    Cancelled {
        /// The id.
        run: RunId,
    },
    /// The replay builds a model of another shape than this build writes.
    #[error(
        "replay {run} builds {processor} with MODEL {found}, and this build has {expected}: resume it with the build that began it, or cancel it"
    )]
    WrongModel {
        /// The id.
        run: RunId,
        /// The name of the processor.
        processor: String,
        /// The number of this build.
        expected: u32,
        /// The number of the replay.
        found: u32,
    },
    /// A model could not be emptied, and the replay was cancelled.
    #[error(
        "the model of {processor} could not be emptied {attempts} times, and the replay was cancelled"
    )]
    Reset {
        /// The name of the processor.
        processor: String,
        /// The number of attempts, each at the model of another generation. In place there is one.
        attempts: u32,
        /// The last failure.
        #[source]
        source: BoxError,
    },
    /// The topic has deleted records that came during the scan, and the replay was cancelled.
    #[error(
        "{partition} holds no records below offset {begin} any more, and the new models need those from {needed} on: raise the retention of the topic, or let the scan read faster. The replay was cancelled"
    )]
    RetentionTooShort {
        /// The partition.
        partition: PartitionId,
        /// The first offset that the partition holds.
        begin: u64,
        /// The first offset that is needed.
        needed: u64,
    },
    /// A projector cannot go on. Once its failure is mended, the replay can be resumed.
    #[error(
        "{processor} cannot go on with replay {run}: mend it, then resume or cancel the replay"
    )]
    Projector {
        /// The id of the replay.
        run: RunId,
        /// The name of the processor.
        processor: String,
        /// The failure, with stream and version if it is one of an event.
        #[source]
        source: BoxError,
    },
    /// The event store cannot be read.
    #[error("the event store cannot be read")]
    Store(#[from] EventStoreError),
    /// The rows of the replay cannot be read or written.
    #[error("the rows of the replay cannot be read or written")]
    Control(#[from] ControlStoreError),
    /// The topics cannot be asked for their ends.
    #[error("the topics cannot be asked for their ends")]
    Bus(#[from] MessageBusError),
    /// The task of the replay has panicked. The replay can be resumed.
    #[error("the task of the replay has ended unexpectedly: {reason}")]
    Broken {
        /// A description of the end.
        reason: String,
    },
}

impl ReplayError {
    pub(super) fn projector(run: RunId, processor: &str, error: RebuildError) -> Self {
        match error {
            RebuildError::Control(error) => Self::Control(error),
            error => Self::Projector {
                run,
                processor: processor.into(),
                source: error.into(),
            },
        }
    }
}

/// The reason for which a process cancels its own run.
#[derive(Debug)]
pub(super) enum Stop {
    /// Another run works on a processor.
    Busy { processor: String, run: String },
    /// A model could not be emptied.
    Reset {
        processor: String,
        attempts: u32,
        source: BoxError,
    },
    /// Records that the new generations need are gone.
    Retention {
        partition: PartitionId,
        begin: u64,
        needed: u64,
    },
    /// The caller has asked for it.
    Cancelled,
}

impl Stop {
    pub(super) fn into_error(self, run: RunId) -> ReplayError {
        match self {
            Self::Busy { processor, run } => ReplayError::AlreadyRunning { processor, run },
            Self::Reset {
                processor,
                attempts,
                source,
            } => ReplayError::Reset {
                processor,
                attempts,
                source,
            },
            Self::Retention {
                partition,
                begin,
                needed,
            } => ReplayError::RetentionTooShort {
                partition,
                begin,
                needed,
            },
            Self::Cancelled => ReplayError::Cancelled { run },
        }
    }
}
