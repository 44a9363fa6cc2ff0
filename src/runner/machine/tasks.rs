//! Tasks: sequences of row operations about failed events, one operation at a time.
//!
//! A task belongs to one assignment of its partition. If the partition goes, the task ends where it
//! is, as it would in a crash, and the next owner finds a state from which it can go on.
use super::{
    Again, AttemptId, Effect, Ended, Machine, Setback, Work,
    archive::Archive,
    asks::LetterOnly,
    lanes::LaneKey,
    letter_discards::LetterDiscards,
    place::Place,
    record::Record,
    redrive::Redrive,
    retry::{Patience, Retry},
    rows::{RowAnswer, RowOp},
    shared::Reading,
};
use crate::{
    StreamId, Version,
    control::{
        AskRow, DeadLetter, DiscardRow, DiscardState, LetterKey, ParkFailure, PutIf, Stored,
    },
    ports::{AssignmentEpoch, PartitionId},
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};
use tokio::time::Instant;

/// The number of a task, unique in its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::runner) struct TaskId(pub(in crate::runner) u64);

#[derive(Debug)]
pub(super) struct Task {
    pub(super) partition: PartitionId,
    pub(super) epoch: AssignmentEpoch,
    pub(super) kind: Kind,
    /// The operation that runs, or is to be tried again.
    op: Option<RowOp>,
    /// When the operation is tried again; `None` while it runs.
    try_at: Option<Instant>,
    patience: Patience,
}

/// The purpose of a task.
#[derive(Debug)]
pub(super) enum Kind {
    /// Gives up one event: by a letter, by an audit row, or by parking its stream. Its lane waits.
    GiveUp(Box<GiveUp>),
    /// Notes that an attempt has passed discarded versions over. Its lane waits.
    Pass(Box<Pass>),
    /// Raises `high` of a parked stream to what was deferred.
    Raise(Raise),
    /// Stores the places of records that were deferred in a lane that several streams share.
    Place(Box<Place>),
    /// Reads the places of the records of a shared lane, and deletes those that are done.
    Reading(Reading),
    /// Handles the events of a parked stream.
    Redrive(Box<Redrive>),
    /// Deletes the rows of a parked stream that was handled meanwhile.
    Clear(Clear),
    /// Releases a stream whose row is gone, once its discards are read.
    Release(StreamId),
    /// Deletes the letter of an event that was handled meanwhile.
    DropLetter(LetterKey),
    /// Writes the audit entry of a record that cannot be read, and that the policy discards.
    DiscardUnreadable(crate::ports::Offset),
    /// Moves decided discards to the archive.
    Archive(Archive),
    /// Deletes the letters of versions that are discarded.
    LetterDiscards(LetterDiscards),
    /// Stores the letter of a record that cannot be read.
    LetterOnly(LetterOnly),
    /// Serves the request for a letter of a stream that is not parked.
    Ask(Box<Ask>),
}

/// An event that is given up.
#[derive(Debug)]
pub(super) struct GiveUp {
    pub(super) lane: LaneKey,
    pub(super) record: Arc<Record>,
    /// The version that failed: that of the record, or one before it that filled a gap.
    pub(super) version: Version,
    pub(super) commit_id: Option<crate::CommitId>,
    pub(super) letter: Option<(LetterKey, Arc<DeadLetter>)>,
    pub(super) how: How,
}

#[derive(Debug)]
pub(super) enum How {
    Letter,
    /// An audit entry is written, then this row.
    Discard(DiscardStep, DiscardRow),
    /// The stream is parked, one step after the other.
    Park(ParkFailure, ParkStep),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiscardStep {
    Audit,
    Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParkStep {
    /// Waits for a flush that begins after this number of flushes.
    Flush(u64),
    Order,
    Deferred,
    Letter,
    Create,
    Announce,
}

#[derive(Debug)]
pub(super) struct Pass {
    pub(super) versions: Vec<Version>,
    pub(super) work: Arc<Work>,
    pub(super) ended: Box<Ended>,
}

#[derive(Debug)]
pub(super) struct Raise {
    pub(super) stream: StreamId,
    /// Records that must be stored first, where there is no event store.
    pub(super) to_store: Vec<Arc<Record>>,
    pub(super) to: Version,
}

#[derive(Debug)]
pub(super) struct Clear {
    pub(super) stream: StreamId,
    pub(super) letters: Vec<LetterKey>,
    pub(super) revision: crate::ports::Revision,
}

#[derive(Debug)]
pub(super) struct Ask {
    pub(super) letter: LetterKey,
    pub(super) row: Stored<AskRow>,
    pub(super) step: AskStep,
    /// The failures of the event since it was asked for.
    pub(super) retry: Option<Retry>,
}

#[derive(Debug)]
pub(super) enum AskStep {
    Read,
    /// Waits for the lane of the stream, and until this time.
    Ready(Again, Option<Instant>),
    Handling(AttemptId, Again),
    /// Waits for a flush that begins after this number of flushes.
    Flush(u64, StreamId),
    Write,
    Passed,
    DeleteLetter,
    DeleteAsk,
}

#[derive(Debug, Default)]
pub(super) struct Tasks {
    pub(super) running: BTreeMap<TaskId, Task>,
    last: u64,
}

impl Task {
    /// Returns the failures of the operation, for health.
    pub(super) fn noted(&self) -> Option<(&super::Noted, Instant)> {
        self.patience.noted()
    }
    /// Returns the lane that waits for the task, with the number of its records that do.
    pub(super) fn lane(&self) -> Option<(&LaneKey, usize)> {
        match &self.kind {
            Kind::GiveUp(give_up) => Some((&give_up.lane, 1)),
            Kind::Pass(pass) => Some((&pass.work.lane, pass.work.records().len())),
            _ => None,
        }
    }
    /// Returns the number of flushes after which the task goes on, and the stream that must be
    /// durable.
    pub(super) fn awaits_flush(&self) -> Option<(u64, &StreamId)> {
        match &self.kind {
            Kind::GiveUp(give_up) => match &give_up.how {
                How::Park(_, ParkStep::Flush(after)) => {
                    Some((*after, &give_up.record.event.header.stream))
                }
                _ => None,
            },
            Kind::Redrive(redrive) => Some((redrive.awaits_flush()?, &redrive.stream)),
            Kind::Place(place) => place.awaits_flush(),
            Kind::Ask(ask) => match &ask.step {
                AskStep::Flush(after, stream) => Some((*after, stream)),
                _ => None,
            },
            _ => None,
        }
    }
    /// Returns the stream whose position must be stored before the task goes on.
    pub(super) fn awaits_position(&self) -> Option<&StreamId> {
        match &self.kind {
            Kind::Redrive(redrive) => redrive.awaits_position().then_some(&redrive.stream),
            _ => None,
        }
    }
    /// Returns the stream whose park row the task changes.
    pub(super) fn parked_stream(&self) -> Option<&StreamId> {
        match &self.kind {
            Kind::GiveUp(give_up) if matches!(give_up.how, How::Park(..)) => {
                Some(&give_up.record.event.header.stream)
            }
            Kind::Raise(raise) => Some(&raise.stream),
            Kind::Place(place) => place.parked_stream(),
            Kind::Redrive(redrive) => Some(&redrive.stream),
            Kind::Clear(clear) => Some(&clear.stream),
            Kind::Release(stream) => Some(stream),
            _ => None,
        }
    }
    /// Returns true if the task is about to park a stream.
    pub(super) fn is_parking(&self) -> bool {
        matches!(&self.kind, Kind::GiveUp(give_up) if matches!(give_up.how, How::Park(..)))
    }
}

impl Tasks {
    /// Takes out a task that has waited for something else than an operation, as if one were done.
    pub(super) fn take(&mut self, id: TaskId) -> Option<(Reply, Kind)> {
        let task = self.running.remove(&id)?;
        let reply = Reply {
            id,
            partition: task.partition,
            epoch: task.epoch,
            answer: RowAnswer::Done,
        };
        Some((reply, task.kind))
    }
    pub(super) fn is_busy_with(&self, stream: &StreamId) -> bool {
        let mut tasks = self.running.values();
        tasks.any(|task| task.parked_stream() == Some(stream))
    }
    pub(super) fn any_of(&self, partitions: &HashSet<PartitionId>) -> bool {
        let mut tasks = self.running.values();
        tasks.any(|task| task.lane().is_some() && partitions.contains(&task.partition))
    }
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.running.values().filter_map(|task| task.try_at).min()
    }
}

impl Machine {
    /// Begins a task with its first operation; `None` if it waits for something else first.
    pub(super) fn begin_task(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        kind: Kind,
        op: Option<RowOp>,
    ) -> TaskId {
        self.tasks.last += 1;
        let id = TaskId(self.tasks.last);
        let task = Task {
            partition: partition.clone(),
            epoch,
            kind,
            op: None,
            try_at: None,
            patience: Patience::new(self.rules.seed ^ id.0),
        };
        self.tasks.running.insert(id, task);
        if let Some(op) = op {
            self.task_op(id, op);
        }
        id
    }

    /// Lets a task do its next operation.
    pub(super) fn task_op(&mut self, id: TaskId, op: RowOp) {
        if let Some(task) = self.tasks.running.get_mut(&id) {
            task.op = Some(op.clone());
            task.try_at = None;
            let partition = task.partition.clone();
            self.out.push(Effect::Row(id, partition, Box::new(op)));
        }
    }

    /// Repeats operations whose pause is over.
    pub(super) fn advance_tasks(&mut self, now: Instant) {
        for (id, task) in &mut self.tasks.running {
            if task.try_at.is_some_and(|at| at <= now) {
                task.try_at = None;
                if let Some(op) = task.op.clone() {
                    self.out
                        .push(Effect::Row(*id, task.partition.clone(), Box::new(op)));
                }
            }
        }
    }

    /// Takes the answer to an operation.
    pub(super) fn row(&mut self, id: TaskId, result: Result<RowAnswer, Setback>, now: Instant) {
        // The task has ended with its partition.
        let Some(task) = self.tasks.running.get_mut(&id) else {
            return;
        };
        let answer = match result {
            Ok(answer) => answer,
            Err(Setback::Wait(error)) => {
                let at = task.patience.failed(now);
                task.patience.note(&*error);
                task.try_at = Some(at);
                tracing::warn!(processor = %self.rules.name, partition = %task.partition, wait = ?(at - now), error = crate::chain(&*error), "a row about a failed event could not be written or read yet");
                return;
            }
            Err(Setback::Halt(error)) => return self.halt(error, now),
        };
        task.patience.reset();
        let (partition, epoch) = (task.partition.clone(), task.epoch);
        if let Some(RowOp::WriteLetter(_, letter)) = task.op.take() {
            self.send_letter(&partition, letter);
        }
        let Some(Task { kind, .. }) = self.tasks.running.remove(&id) else {
            return;
        };
        let task = Reply {
            id,
            partition,
            epoch,
            answer,
        };
        match kind {
            Kind::GiveUp(give_up) => self.given_up(&task, give_up, now),
            Kind::Pass(pass) => self.passed_one(&task, pass, now),
            Kind::Raise(raise) => self.raised(&task, raise),
            Kind::Place(place) => self.placed(&task, place),
            Kind::Reading(reading) => self.order_read(&task, reading),
            Kind::Redrive(redrive) => self.redrive_answered(&task, redrive),
            Kind::Clear(clear) => self.cleared(&task, clear),
            Kind::Release(stream) => self.discards_read(&task, &stream),
            Kind::DropLetter(key) => self.letter_deleted(&task, &key),
            Kind::DiscardUnreadable(offset) => self.discard_stored(&task, offset),
            Kind::Archive(archive) => self.archived(&task, archive),
            Kind::LetterDiscards(discards) => self.letter_discarded(&task, discards),
            Kind::LetterOnly(letter) => self.letter_stored(&task, letter),
            Kind::Ask(ask) => self.ask_answered(&task, ask),
        }
    }

    /// Puts a task back that goes on with another operation.
    pub(super) fn go_on(&mut self, reply: &Reply, kind: Kind, op: Option<RowOp>) {
        let task = Task {
            partition: reply.partition.clone(),
            epoch: reply.epoch,
            kind,
            op: None,
            try_at: None,
            patience: Patience::new(self.rules.seed ^ reply.id.0),
        };
        self.tasks.running.insert(reply.id, task);
        if let Some(op) = op {
            self.task_op(reply.id, op);
        }
    }

    /// Ends the tasks of partitions that go.
    pub(super) fn end_tasks(&mut self, partitions: &HashSet<PartitionId>) {
        let ids: Vec<_> = (self.tasks.running.iter())
            .filter(|(_, task)| partitions.contains(&task.partition))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let task = self.tasks.running.remove(&id);
            if let Some((lane, records)) = task.as_ref().and_then(Task::lane) {
                self.lanes.finished(lane, records);
            }
        }
    }

    /// Takes the answer to the note that a version was passed over.
    fn passed_one(&mut self, reply: &Reply, mut pass: Box<Pass>, now: Instant) {
        if let Some(version) = pass.versions.last().copied() {
            let stream = pass.work.stream().cloned();
            if stream.is_none_or(|stream| self.note_passed(reply, &stream, version)) {
                pass.versions.pop();
            }
        }
        let next = self.next_pass(&reply.partition, reply.epoch, &mut pass);
        match next {
            Some(op) => self.go_on(reply, Kind::Pass(pass), Some(op)),
            None => self.conclude(&pass.work, pass.ended, now),
        }
    }

    /// Takes the answer to the note about one version. Returns false if the note must be written
    /// again, since the operator has written the row meanwhile.
    pub(super) fn note_passed(
        &mut self,
        reply: &Reply,
        stream: &StreamId,
        version: Version,
    ) -> bool {
        let (key, loads) = ((stream.clone(), version), self.polling.loads);
        let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) else {
            return true;
        };
        match &reply.answer {
            RowAnswer::Discard(PutIf::Written(row)) => {
                owned.parking.note_discard(key, row.clone(), loads);
                true
            }
            RowAnswer::Discard(PutIf::Conflict(Some(row))) => {
                owned.parking.note_discard(key, row.clone(), loads);
                row.value.state != DiscardState::Asked
            }
            _ => true,
        }
    }

    /// Returns the operation that notes the next version that was passed over.
    pub(super) fn next_pass(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        pass: &mut Pass,
    ) -> Option<RowOp> {
        let owned = self.partitions.get(partition, epoch)?;
        let stream = pass.work.stream()?;
        while let Some(version) = pass.versions.last() {
            let key = (stream.clone(), *version);
            match owned.parking.discards.get(&key) {
                Some(row) if row.value.state == DiscardState::Asked => {
                    let (mut value, seen) = (row.value.passed(), row.revision);
                    let mut records = pass.work.records().iter();
                    if let Some(of) = records.find(|r| r.event.header.version == *version) {
                        value = value.at_offset(of.offset);
                    }
                    return Some(RowOp::ReplaceDiscard(key.0, key.1, value, seen));
                }
                _ => pass.versions.pop(),
            };
        }
        None
    }
}

/// The answer to an operation of a task that was taken out to go on or to end.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) id: TaskId,
    pub(super) partition: PartitionId,
    pub(super) epoch: AssignmentEpoch,
    pub(super) answer: RowAnswer,
}
