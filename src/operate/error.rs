//! [`OperateError`]: why an operation could not be carried out.
use super::JobId;
use crate::{
    StreamId, Version,
    ports::{ControlStoreError, EventStoreError, MessageBusError},
    publisher::{ReconcileError, SkipError, SweepError},
};

/// The error returned by an [`Operator`](super::Operator).
///
/// A target that does not exist any more is no error: an operation then answers that it has
/// affected 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperateError {
    /// The control store refuses or fails. What was done before the failure stays done, and the
    /// operation may be repeated.
    #[error("the rows of the processor cannot be read or written")]
    Control(#[from] ControlStoreError),
    /// The bus refuses or fails.
    #[error("the bus cannot tell the offsets of the processor")]
    Bus(#[from] MessageBusError),
    /// The event store refuses or fails.
    #[error("the event store cannot tell whether the event exists")]
    Store(#[from] EventStoreError),
    /// There is no processor of this name in the control store.
    #[error(
        "there is no processor {name:?}: check the name and the control store; known are {}",
        list(known)
    )]
    UnknownProcessor {
        /// The name that was given.
        name: String,
        /// The names of up to 20 processors that have started.
        known: Vec<String>,
    },
    /// There is no distributed circuit breaker of this name in the control store.
    #[error(
        "there is no distributed circuit breaker {name:?}: check the name and the control store; known are {}",
        list(known)
    )]
    UnknownBreaker {
        /// The name that was given.
        name: String,
        /// The names of up to 20 breakers that have started.
        known: Vec<String>,
    },
    /// There is no job with this id.
    #[error("processor {processor} has no job {job}: list its jobs; they are kept for 400 days")]
    UnknownJob {
        /// The name of the processor.
        processor: String,
        /// The id that was given.
        job: JobId,
    },
    /// There is no replay with this id.
    #[error("there is no replay {run}: list the replays; they are kept for 400 days")]
    UnknownReplay {
        /// The id that was given.
        run: crate::replay::RunId,
    },
    /// The name of the operator or the reason is empty. The audit needs both.
    #[error("an operation needs the name of the operator and a reason: {missing} is empty")]
    NoReason {
        /// The part that is empty.
        missing: &'static str,
    },
    /// The processor has read no partition yet, and no topic is known.
    #[error("processor {processor} has no partitions yet: start it first, or check its name")]
    NoPartitions {
        /// The name of the processor.
        processor: String,
    },
    /// The processor reads several topics, and the event may be in any of them.
    #[error(
        "stream {stream} may be in the topics {}: name one with EventRef::in_topic",
        list(topics)
    )]
    AmbiguousTopic {
        /// The stream of the event.
        stream: StreamId,
        /// The topics that the processor reads.
        topics: Vec<String>,
    },
    /// The topic is none that the processor reads.
    #[error(
        "processor {processor} does not read topic {topic}: it reads {}",
        list(topics)
    )]
    UnknownTopic {
        /// The name of the processor.
        processor: String,
        /// The topic that was given.
        topic: String,
        /// The topics that the processor reads.
        topics: Vec<String>,
    },
    /// The stream has no event of this version, so that there is nothing to skip.
    #[error("stream {stream} has no version {version}: check the version")]
    NoSuchEvent {
        /// The stream of the event.
        stream: StreamId,
        /// The version that was given.
        version: Version,
    },
    /// The operation needs the bus.
    #[error("the operation needs the bus: give the operator one with Operator::with_bus")]
    NoBus,
    /// The topic has another number of partitions than the one to accept.
    #[error(
        "topic {topic} has {found} partitions and not {accepted}: accept the number that it has"
    )]
    NotThatMany {
        /// The name of the topic.
        topic: String,
        /// The number that was to be accepted.
        accepted: u32,
        /// The number that the topic has.
        found: u32,
    },
    /// Publishers of the topic were alive within the last minute.
    #[error(
        "topic {topic} is still published to by {}: stop these processes first",
        list(instances)
    )]
    StillPublishing {
        /// The name of the topic.
        topic: String,
        /// The names of the processes.
        instances: Vec<String>,
    },
    /// A processor has not read the topic to its end.
    #[error(
        "processor {processor} has {records} records of topic {topic} to handle: wait until its lag is 0"
    )]
    Unhandled {
        /// The name of the topic.
        topic: String,
        /// The name of the processor.
        processor: String,
        /// The number of records between its position and the end.
        records: u64,
    },
    /// A processor has parked a stream of the topic.
    #[error(
        "processor {processor} has parked stream {stream} of topic {topic}: redrive or discard its parked streams first"
    )]
    StillParked {
        /// The name of the topic.
        topic: String,
        /// The name of the processor.
        processor: String,
        /// The first parked stream.
        stream: StreamId,
    },
    /// The event cannot be kept out of the topic.
    #[error("the event cannot be skipped")]
    SkipPublishing(#[source] Box<SkipError>),
    /// The dirty streams cannot be tried again.
    #[error("the dirty streams cannot be tried again")]
    Sweep(#[from] SweepError),
    /// The streams cannot be compared with their watermarks.
    #[error("the streams cannot be compared with their watermarks")]
    Reconcile(#[from] ReconcileError),
    /// Another process has ended the job while its selection was being written, since this process
    /// was too slow or the job was aborted.
    #[error("job {job} was ended while its selection was being written: start another one")]
    Interrupted {
        /// The id of the job.
        job: JobId,
    },
}

impl From<SkipError> for OperateError {
    fn from(error: SkipError) -> Self {
        Self::SkipPublishing(Box::new(error))
    }
}

impl OperateError {
    /// Returns true if the same operation may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Control(error) => error.is_transient(),
            Self::Bus(error) => error.is_transient(),
            Self::Store(error) => error.is_transient(),
            _ => false,
        }
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        names => names.join(", "),
    }
}
