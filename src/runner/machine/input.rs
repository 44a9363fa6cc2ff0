//! The inputs of the machine, and the effects that it asks for.
use super::{
    AttemptId, Ended, RevocationId,
    lanes::LaneKey,
    record::Record,
    redrive::Range,
    rows::{Load, Loaded, Polled, RowAnswer, RowOp},
    tasks::TaskId,
};
use crate::{
    CommitId, RecordedEvent, StreamId, Version, WireError,
    control::{DeadLetter, StoredRecord},
    ports::{
        AssignedPartition, AssignmentEpoch, Commit, MessageBusError, NoPosition, Offset,
        OffsetCommit, PartitionId,
    },
    runner::{HandlerError, RunnerError, streams::Progress},
};
use smallvec::SmallVec;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The offsets up to which a run is to go.
pub(in crate::runner) type Ends = BTreeMap<PartitionId, Offset>;

/// The reason why a step that needs a backend did not succeed.
#[derive(Debug)]
pub(in crate::runner) enum Setback {
    /// The backend is away or busy: the step is repeated after a pause.
    Wait(crate::BoxError),
    /// No repeat helps: the processor halts with this error.
    Halt(RunnerError),
}

/// Something that has happened.
#[derive(Debug)]
pub(in crate::runner) enum Input {
    /// The processor is a member of this group, and is to go up to these offsets, if any.
    Joined(Arc<str>, Option<Ends>),
    /// The processor could not become a member of its group.
    NotJoined(Setback),
    /// A record has arrived.
    Delivered(Arc<Record>),
    /// A record has arrived that is no event of this library, or of a newer format.
    Unreadable(Box<StoredRecord>, AssignmentEpoch, WireError),
    /// Everything before this offset has arrived, or does not exist.
    Reached(PartitionId, AssignmentEpoch, Offset),
    /// Partitions were assigned to this member.
    Assigned(Vec<AssignedPartition>),
    /// Partitions are about to be taken away. The group waits for this time.
    Revoking(RevocationId, Vec<PartitionId>, Duration),
    /// Partitions have been taken away.
    Lost(Vec<PartitionId>),
    /// An assigned partition delivers nothing. True: its start was given to the bus.
    NoPosition(PartitionId, NoPosition, bool),
    /// Nothing could be received.
    NotReceived(MessageBusError),
    /// The start of a partition is durable. False: this member does not own it any more.
    Begun(PartitionId, AssignmentEpoch, bool),
    /// A partition could not be started.
    NotBegun(PartitionId, AssignmentEpoch, Setback),
    /// An attempt has begun its next call of a handler, so it is not stuck.
    Advanced(AttemptId),
    /// An attempt has ended.
    Finished(AttemptId, Box<Ended>),
    /// The read model was flushed, or not.
    Flushed(Result<(), HandlerError>),
    /// The effects that the projector had buffered of lost partitions are gone, or could not be
    /// dropped.
    Forgotten(Result<(), HandlerError>),
    /// The positions of streams are durable, or not.
    PositionsStored(Result<(), Setback>),
    /// Offsets were committed, or not.
    Committed(Result<(), MessageBusError>),
    /// The rows of a partition were read, or not.
    Loaded(Load, Result<Box<Loaded>, Setback>),
    /// An operation on a row was done, or not.
    Row(TaskId, Result<RowAnswer, Setback>),
    /// The requests of operators were read, or not.
    Polled(Result<Polled, Setback>),
    /// Partitions were paused or resumed, or not.
    PauseChanged(Result<(), MessageBusError>),
    /// A letter was sent to the topic of dead letters, or not.
    LetterSent(Result<(), MessageBusError>),
    /// The offsets that the whole group has committed, or the reason why they are not known.
    GroupCommitted(Result<Ends, MessageBusError>),
    /// The bus has answered a question that was no part of the work.
    Reachable,
    /// The processor has left its group.
    Left,
    /// The processor is to end, at the latest at this time.
    Stop(Instant),
    /// A step has panicked, which is none of a handler.
    Broken(String),
    /// The time of [`Machine::wake_at`](super::Machine::wake_at) has come.
    Timer,
}

impl Input {
    /// Returns true for what a consumer has told.
    pub(super) const fn is_received(&self) -> bool {
        matches!(
            self,
            Self::Delivered(_)
                | Self::Unreadable(..)
                | Self::Reached(..)
                | Self::Assigned(_)
                | Self::Revoking(..)
                | Self::Lost(_)
                | Self::NoPosition(..)
        )
    }
}

/// Events of one stream to handle, one after the other.
#[derive(Clone, Debug)]
pub(in crate::runner) struct Work {
    pub(in crate::runner) partition: PartitionId,
    pub(in crate::runner) epoch: AssignmentEpoch,
    pub(in crate::runner) lane: LaneKey,
    pub(in crate::runner) what: What,
    /// The progress in the stream.
    pub(in crate::runner) progress: Progress,
    /// The number of the attempt at the first event, from 1.
    pub(in crate::runner) number: u32,
    /// The first event was tried before, and may have been stored without an answer.
    pub(in crate::runner) is_repeat: bool,
    /// Each event is handled by a call of its own: one of a batch has failed, and it is not known
    /// which.
    pub(in crate::runner) is_alone: bool,
    /// The versions that are passed over, since an operator has discarded them.
    pub(in crate::runner) skip: Vec<Version>,
    /// The versions that have a letter, which is deleted once they are handled.
    pub(in crate::runner) letters: Vec<Version>,
}

/// The source of the events of an attempt.
#[derive(Clone, Debug)]
pub(in crate::runner) enum What {
    /// Neighbours of the lane, in order, with at least one record.
    Records(SmallVec<[Arc<Record>; 1]>),
    /// Versions of a parked stream.
    Range(Range),
    /// One event that has a letter, handled once more.
    Again(Again),
    /// Commits of one stream that a replay has read, in order, with at least one commit.
    Commits(Vec<Arc<Commit>>),
}

/// An event that has a letter, and is handled once more.
#[derive(Clone, Debug)]
pub(in crate::runner) struct Again {
    pub(in crate::runner) event: Box<RecordedEvent>,
    /// The event was given up, so that it is handled whatever the position says. Otherwise it may
    /// be in the read model, and is looked up first.
    pub(in crate::runner) is_given_up: bool,
    /// The offset of the record, if the letter keeps the record.
    pub(in crate::runner) offset: Option<Offset>,
}

impl Work {
    /// Creates an attempt at commits of one stream that a replay has read. `failed` counts the
    /// failures of its first event.
    pub(in crate::runner) fn of_replay(
        partition: PartitionId,
        commits: Vec<Arc<Commit>>,
        progress: Progress,
        failed: u32,
    ) -> Self {
        let stream = commits.first().map(|commit| commit.stream.clone());
        Self {
            partition,
            epoch: AssignmentEpoch::new(0),
            lane: stream.map_or_else(|| LaneKey::Shared("".into()), LaneKey::Stream),
            what: What::Commits(commits),
            progress,
            number: failed + 1,
            is_repeat: failed > 0,
            // After a failure of a batch it is not known which of its events has failed.
            is_alone: failed > 0,
            skip: Vec::new(),
            letters: Vec::new(),
        }
    }
    /// Returns the stream of the events.
    pub(in crate::runner) fn stream(&self) -> Option<&StreamId> {
        match &self.what {
            What::Records(records) => records.first().map(|record| &record.event.header.stream),
            What::Range(range) => Some(&range.stream),
            What::Again(again) => Some(&again.event.header.stream),
            What::Commits(commits) => commits.first().map(|commit| &commit.stream),
        }
    }
    /// Returns the records; none if the events come from elsewhere.
    pub(in crate::runner) fn records(&self) -> &[Arc<Record>] {
        match &self.what {
            What::Records(records) => records,
            What::Range(_) | What::Again(_) | What::Commits(_) => &[],
        }
    }
}

/// The position of a stream that is to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runner) struct StreamPosition {
    pub(in crate::runner) stream: StreamId,
    pub(in crate::runner) version: Version,
    pub(in crate::runner) commit_id: Option<CommitId>,
}

/// Something that the driver must do. Each effect is one step of I/O, which answers with one input;
/// a crash can fall between any two.
#[derive(Debug)]
pub(in crate::runner) enum Effect {
    /// Join the group: answers `Joined` or `NotJoined`.
    Join,
    /// Store the start of a partition: answers `Begun` or `NotBegun`.
    Begin(AssignedPartition),
    /// Handle records: answers `Finished`.
    Start(AttemptId, Arc<Work>),
    /// Tell an attempt to end after its current record.
    Finish(AttemptId),
    /// Abort an attempt.
    Cancel(AttemptId),
    /// Wait for an attempt no longer: its thread is blocked.
    Abandon(AttemptId),
    /// Flush the read model: answers `Flushed`.
    Flush,
    /// Drop what is buffered of these streams: answers `Forgotten`.
    Forget(Vec<StreamId>),
    /// Store positions: answers `PositionsStored`.
    StorePositions(Vec<StreamPosition>),
    /// Commit offsets: answers `Committed`.
    Commit(Vec<OffsetCommit>),
    /// Read the rows of a partition: answers `Loaded`.
    Load(Load),
    /// Do one operation on the rows of a partition: answers `Row`.
    Row(TaskId, PartitionId, Box<RowOp>),
    /// Read the requests of operators: answers `Polled`.
    Poll,
    /// Let the group have the partitions of a revocation.
    Release(RevocationId),
    /// Pause partitions: answers `PauseChanged`.
    Pause(Vec<PartitionId>),
    /// Resume partitions: answers `PauseChanged`.
    Resume(Vec<PartitionId>),
    /// Send a letter about a record of this partition to the topic of dead letters: answers
    /// `LetterSent`.
    SendLetter(PartitionId, Arc<DeadLetter>),
    /// Ask for the offsets of the whole group: answers `GroupCommitted`.
    AskGroup,
    /// Leave the group: answers `Left`.
    Leave,
    /// The processor has ended.
    End(Result<(), RunnerError>),
}
