//! The results of running processors.
use super::{ErrorClass, error::class_of};
use crate::{
    BoxError, InvalidUpcasters, StreamId, Version,
    ports::{ControlStoreError, MessageBusError, PartitionId},
};
use std::sync::Arc;

/// The error returned when a runner cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two processors have one name, thus one consumer group.
    #[error("two processors are named {name}: give one another name by its policy")]
    DuplicateName {
        /// The name.
        name: Arc<str>,
    },
    /// Nothing to run.
    #[error("a runner needs at least one listener or projector")]
    Empty,
    /// A value makes no sense.
    #[error("{field} is invalid: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The rule that the value breaks.
        reason: String,
    },
    /// The runner was given an upcaster for a name that an event type lifts itself.
    #[error("the upcasters of the runner cannot be used")]
    Upcasters(#[from] InvalidUpcasters),
}

/// The error of a processor that ended before it was asked to. No offset is committed past what it
/// had done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunnerError {
    /// An event could not be handled, and the policy says halt.
    #[error(
        "processor {processor} halted at event {version} of {stream} ({partition}) after {attempts} attempts; it comes again after a restart"
    )]
    Halted {
        /// The processor.
        processor: Arc<str>,
        /// The stream.
        stream: StreamId,
        /// The version of the event.
        version: Version,
        /// The partition of the record.
        partition: PartitionId,
        /// The number of attempts.
        attempts: u32,
        /// The class of the last failure.
        class: ErrorClass,
        /// The last failure.
        #[source]
        source: BoxError,
    },
    /// A record is not an event of this library, or of a newer format.
    #[error("processor {processor} halted: record {offset} of {partition} cannot be read")]
    Unreadable {
        /// The processor.
        processor: Arc<str>,
        /// The partition of the record.
        partition: PartitionId,
        /// Its place there.
        offset: crate::ports::Offset,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The group had committed an offset and has none now, or one that the partition does not hold
    /// any more; or the first records of a partition are gone that was to be read from
    /// [`Start::Beginning`](super::Start::Beginning).
    #[error(
        "processor {processor} (group {group}) cannot go on in {partition} without skipping events: {reason}"
    )]
    PositionLost {
        /// The processor.
        processor: Arc<str>,
        /// The consumer group.
        group: String,
        /// The partition.
        partition: PartitionId,
        /// A description of what was found and of what to do.
        reason: String,
    },
    /// A [run that is to end](super::Runner::run_until_caught_up) has met a replay in place, or a
    /// state of a newer build in which the active generation may have to stop. A runner that goes
    /// on waits for another state.
    #[error(
        "processor {processor} is in state {state:?}, in which its active generation may have to stop: run it again once it is live"
    )]
    UnknownState {
        /// The processor.
        processor: Arc<str>,
        /// The stored state.
        state: String,
    },
    /// A [run that is to end](super::Runner::run_until_caught_up) has found a read model that a
    /// replay in place had emptied before it was cancelled. A runner that goes on waits for a
    /// replay.
    #[error(
        "the read model of processor {processor} was emptied by a replay in place that was cancelled: start a replay"
    )]
    EmptyModel {
        /// The processor.
        processor: Arc<str>,
    },
    /// A [run that is to end](super::Runner::run_until_caught_up) has found a live read model of
    /// another [`Projector::MODEL`](super::Projector::MODEL). A runner that goes on waits for a
    /// replay, or is superseded.
    #[error(
        "processor {processor} is of model {expected}, the live read model is {found}: run the matching build, or start a replay"
    )]
    WrongModel {
        /// The processor.
        processor: Arc<str>,
        /// This build's number.
        expected: u32,
        /// The stored number.
        found: u32,
    },
    /// The read model could not be flushed.
    #[error("processor {processor} cannot make its read model durable")]
    Flush {
        /// The processor.
        processor: Arc<str>,
        /// The class of the last failure.
        class: ErrorClass,
        /// The last failure.
        #[source]
        source: BoxError,
    },
    /// The bus refuses.
    #[error("processor {processor} cannot use the bus")]
    Bus {
        /// The processor.
        processor: Arc<str>,
        /// The cause.
        #[source]
        source: MessageBusError,
    },
    /// A step of a store, of the bus or of the projector's preparation has panicked.
    #[error("processor {processor} halted: {reason}")]
    Broken {
        /// The processor.
        processor: Arc<str>,
        /// The message of the panic.
        reason: String,
    },
    /// The read model could not be prepared.
    #[error("processor {processor} cannot prepare its read model")]
    Prepare {
        /// The processor.
        processor: Arc<str>,
        /// The class of the failure.
        class: ErrorClass,
        /// The failure.
        #[source]
        source: BoxError,
    },
    /// The control store refuses.
    #[error("processor {processor} cannot use the control store")]
    Control {
        /// The processor.
        processor: Arc<str>,
        /// The cause.
        #[source]
        source: ControlStoreError,
    },
}

/// The result of one processor.
#[derive(Debug)]
#[non_exhaustive]
pub struct ProcessorReport {
    /// Its name.
    pub name: Arc<str>,
    /// Events handled, those filled in from history included.
    pub handled: u64,
    /// Records passed over: of foreign aggregate types, retired, or unknown.
    pub skipped: u64,
    /// Events whose payload is shredded; passed over.
    pub shredded: u64,
    /// Records that came again and were dropped.
    pub duplicates: u64,
    /// Events that the bus skipped and the event store supplied.
    pub filled: u64,
    /// Gaps in a stream that could not be checked, since there is no event store to ask.
    pub gaps_unverified: u64,
    /// Events that came after a newer one of their stream, since a gap had been passed. They are
    /// among those handled.
    pub out_of_order: u64,
    /// Attempts that were repeated.
    pub retries: u64,
    /// Events and records that were stored as dead letters while their stream went on.
    pub dead_letters: u64,
    /// Copies of dead letters that were sent to the topic of
    /// [`with_dead_letter_topic`](super::ProcessorPolicy::with_dead_letter_topic).
    pub dead_letters_sent: u64,
    /// Copies of dead letters that could not be sent there. The letters are stored.
    pub dead_letters_not_sent: u64,
    /// Events that were passed over, since the policy or an operator has discarded them.
    pub discarded: u64,
    /// Streams that were parked.
    pub parked: u64,
    /// Records of parked streams that were left for a redrive.
    pub deferred: u64,
    /// Redrives that were begun.
    pub redrives: u64,
    /// Records that are not events of this library, or of a newer format.
    pub unreadable: u64,
    /// Attempts whose handler has blocked its thread: they were cancelled, and waited for no longer
    /// after one second. What they were at comes again.
    pub abandoned: u64,
    /// The error that ended it early, if any.
    pub error: Option<Arc<RunnerError>>,
}

/// The counts of a processor's report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) handled: u64,
    pub(super) skipped: u64,
    pub(super) shredded: u64,
    pub(super) duplicates: u64,
    pub(super) filled: u64,
    pub(super) gaps_unverified: u64,
    pub(super) out_of_order: u64,
    pub(super) retries: u64,
    pub(super) dead_letters: u64,
    pub(super) letters_sent: u64,
    pub(super) letters_not_sent: u64,
    pub(super) discarded: u64,
    pub(super) parked: u64,
    pub(super) deferred: u64,
    pub(super) redrives: u64,
    pub(super) unreadable: u64,
    pub(super) abandoned: u64,
}

impl Counts {
    /// Returns true if events were dealt with for which a position may be stored.
    pub(super) const fn has_moved(&self) -> bool {
        self.handled + self.skipped + self.shredded + self.discarded > 0
    }
    pub(super) const fn add(&mut self, other: &Self) {
        self.handled += other.handled;
        self.skipped += other.skipped;
        self.shredded += other.shredded;
        self.duplicates += other.duplicates;
        self.filled += other.filled;
        self.gaps_unverified += other.gaps_unverified;
        self.out_of_order += other.out_of_order;
        self.retries += other.retries;
        self.dead_letters += other.dead_letters;
        self.letters_sent += other.letters_sent;
        self.letters_not_sent += other.letters_not_sent;
        self.discarded += other.discarded;
        self.parked += other.parked;
        self.deferred += other.deferred;
        self.redrives += other.redrives;
        self.unreadable += other.unreadable;
        self.abandoned += other.abandoned;
    }
}

impl ProcessorReport {
    pub(super) const fn new(
        name: Arc<str>,
        counts: Counts,
        error: Option<Arc<RunnerError>>,
    ) -> Self {
        Self {
            name,
            handled: counts.handled,
            skipped: counts.skipped,
            shredded: counts.shredded,
            duplicates: counts.duplicates,
            filled: counts.filled,
            gaps_unverified: counts.gaps_unverified,
            out_of_order: counts.out_of_order,
            retries: counts.retries,
            dead_letters: counts.dead_letters,
            dead_letters_sent: counts.letters_sent,
            dead_letters_not_sent: counts.letters_not_sent,
            discarded: counts.discarded,
            parked: counts.parked,
            deferred: counts.deferred,
            redrives: counts.redrives,
            unreadable: counts.unreadable,
            abandoned: counts.abandoned,
            error,
        }
    }
}

impl RunnerError {
    /// Returns the class of the failure. A processor that cannot go on for a reason of its own is
    /// [`Fatal`](ErrorClass::Fatal).
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Halted { class, .. }
            | Self::Flush { class, .. }
            | Self::Prepare { class, .. } => *class,
            Self::Unreadable { .. } => ErrorClass::Poison,
            Self::Bus { source, .. } => class_of(source),
            Self::Control { source, .. } => class_of(source),
            Self::PositionLost { .. }
            | Self::UnknownState { .. }
            | Self::EmptyModel { .. }
            | Self::WrongModel { .. }
            | Self::Broken { .. } => ErrorClass::Fatal,
        }
    }
    /// Returns the stream and the version of the event that could not be handled, if the error is
    /// about one event.
    pub const fn event(&self) -> Option<(&StreamId, Version)> {
        match self {
            Self::Halted {
                stream, version, ..
            } => Some((stream, *version)),
            _ => None,
        }
    }
    /// Returns the partition that the error is about, if it is about one.
    pub const fn partition(&self) -> Option<&PartitionId> {
        match self {
            Self::Halted { partition, .. }
            | Self::Unreadable { partition, .. }
            | Self::PositionLost { partition, .. } => Some(partition),
            _ => None,
        }
    }
    pub(super) fn position_lost(
        processor: Arc<str>,
        group: &str,
        partition: PartitionId,
        found: &str,
    ) -> Self {
        Self::PositionLost {
            processor,
            group: group.into(),
            partition,
            reason: format!(
                "{found}; rebuild it under a new name, or commit an offset for the group by hand"
            ),
        }
    }
}

/// The results of all processors.
#[derive(Debug)]
#[must_use = "a processor that halted is only in the report"]
#[non_exhaustive]
pub struct RunnerReport {
    /// In the order of their registration.
    pub processors: Vec<ProcessorReport>,
}

impl RunnerReport {
    /// The report of one processor.
    pub fn processor(&self, name: &str) -> Option<&ProcessorReport> {
        self.processors.iter().find(|p| &*p.name == name)
    }
    /// Returns the results of all processors, or the error of the first that ended early.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn into_result(mut self) -> Result<Vec<ProcessorReport>, Arc<RunnerError>> {
        let failed = self.processors.iter_mut().find_map(|p| p.error.take());
        failed.map_or(Ok(self.processors), Err)
    }
}
