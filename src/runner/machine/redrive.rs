//! Redrives: the events of a parked stream are handled again, from the one that failed on.
//!
//! ```text
//! claim the row -> read the discards -> handle a page -> flush -> note what was passed over
//!   -> letter of a new failure -> move `from` -> delete letters -> next page
//!   -> `from` is after `high`: store the position, delete the row -> release the stream
//! ```
//! `from` is a durable position: it moves only after the flush. Without the row, the position of
//! the stream must tell what was handled, since the offset has passed the deferred records.
use super::{
    AttemptId, Effect, Ended, Failure, FailureOf, Machine, Outcome, What, Work,
    parking::Parked,
    partition::Phase,
    retry::Retry,
    rows::{RowAnswer, RowOp},
    shared::{RoundEnd, Turn},
    tasks::{Kind, Reply, TaskId},
};
use crate::{
    StreamId, Version,
    breaker::Permit,
    control::{
        DeadLetter, DeleteIf, DiscardState, LetterKey, ParkFailure, ParkRow, ParkState, PutIf,
        Stored, merge,
    },
    ports::{AssignmentEpoch, PartitionId},
    runner::{ErrorClass, streams::Progress},
};
use std::sync::Arc;
use tokio::time::Instant;

mod failed;
mod lane;
mod row;

use self::failed::halted;

/// The most versions that are handled between two moves of `from`.
const PAGE: u64 = 100;

#[derive(Debug)]
pub(super) struct Redrive {
    pub(super) stream: StreamId,
    step: Step,
    /// The row to put next.
    wanted: Option<ParkRow>,
    /// The first version that is handled by this redrive.
    first: Version,
    /// The first version that is not handled.
    next: Version,
    /// Versions that were passed over and are not noted.
    passed: Vec<Version>,
    /// The letter of a new failure, until it is written.
    letter: Option<(LetterKey, Arc<DeadLetter>)>,
    /// A new failure, at which the stream is parked again.
    failure: Option<ParkFailure>,
    /// Letters of what was handled.
    done_letters: Vec<LetterKey>,
    /// Rows of deferred records that were handled.
    done_records: Vec<Version>,
    retry: Option<Retry>,
    /// The last version of a batch that has failed, and whose events are handled one by one.
    alone_to: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Claim,
    Discards,
    /// Waits for an attempt that may start at this time.
    Ready(Option<Instant>),
    Handling(AttemptId),
    /// Waits for a flush that begins after this number of flushes.
    Flush(u64),
    Pass,
    Letter,
    Advance,
    DropLetters,
    DropRecords,
    /// Waits until the position of what was handled is stored.
    Position,
    Delete,
}

impl Redrive {
    /// Returns true if the redrive waits for an attempt that may start now.
    pub(super) const fn is_ready(&self) -> bool {
        matches!(self.step, Step::Ready(None))
    }

    /// Returns the number of flushes after which it goes on.
    pub(super) const fn awaits_flush(&self) -> Option<u64> {
        match self.step {
            Step::Flush(after) => Some(after),
            _ => None,
        }
    }

    /// Returns true if it waits for the position of what it has handled.
    pub(super) fn awaits_position(&self) -> bool {
        self.step == Step::Position
    }
}

/// Versions of a parked stream to handle.
#[derive(Clone, Debug)]
pub(in crate::runner) struct Range {
    pub(in crate::runner) stream: StreamId,
    pub(in crate::runner) from: Version,
    pub(in crate::runner) to: Version,
    /// Versions below `from` that are not in the read model are handled, too.
    pub(in crate::runner) may_begin_before: bool,
    /// The versions can be read: there is an event store, or each record that waits is stored.
    pub(in crate::runner) is_readable: bool,
    /// A newer event was handled before: the position in the stream tells nothing about these.
    pub(in crate::runner) is_late: bool,
}

impl Machine {
    /// Begins the redrives that are asked for, and the attempts that wait for a place.
    pub(super) fn advance_redrives(&mut self, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        let mut wanted = Vec::new();
        for (partition, owned) in &self.partitions.owned {
            if !matches!(owned.phase, Phase::Serving) {
                continue;
            }
            for (stream, parked) in &owned.parking.parked {
                let is_wanted =
                    owned.parking.wants_redrive(stream, parked) && self.rules.policy.lane.is_none();
                if is_wanted && !self.tasks.is_busy_with(stream) {
                    wanted.push((partition.clone(), owned.epoch, stream.clone()));
                }
            }
        }
        wanted.sort_unstable_by(|a, b| a.2.cmp(&b.2));
        for (partition, epoch, stream) in wanted {
            self.begin_redrive(&partition, epoch, stream, "");
        }
        self.advance_rounds();
        let mut ready = Vec::new();
        for (id, task) in &mut self.tasks.running {
            if let Kind::Redrive(redrive) = &mut task.kind
                && let Step::Ready(at) = &mut redrive.step
                && at.is_none_or(|at| at <= now)
            {
                *at = None;
                ready.push(*id);
            }
        }
        for id in ready {
            if !self.may_redrive() {
                return;
            }
            if !self.may_go_on(id) {
                continue;
            }
            let limit = match self.turn(id) {
                Turn::Wait => continue,
                Turn::Handle(limit) => limit,
                Turn::Delete => {
                    self.delete_drained(id);
                    continue;
                }
            };
            let Ok(permit) = self.permit(now) else {
                return;
            };
            self.handle_page(id, limit, permit);
        }
    }

    fn may_go_on(&self, id: TaskId) -> bool {
        let task = self.tasks.running.get(&id);
        let of = task.and_then(|task| Some((task, task.parked_stream()?)));
        of.is_some_and(|(task, stream)| self.may_run_beside(&task.partition, stream))
    }

    /// Returns true if an attempt at a stream may start beside the queues of the lanes.
    pub(super) fn may_run_beside(&self, partition: &PartitionId, stream: &StreamId) -> bool {
        let (owned, lane) = (self.partitions.owned.get(partition), self.lane(stream));
        owned.is_some_and(|owned| matches!(owned.phase, Phase::Serving))
            && self.lanes.is_free(&lane)
            // An attempt of an assignment that has ended may still run.
            && !self.attempts.runs_in(&lane)
            && !self.checkpoint.is_to_forget(stream)
    }

    /// Returns true if a redrive may start an attempt.
    pub(super) fn may_redrive(&self) -> bool {
        self.ending.is_none()
            && self.polling.may_handle()
            && (self.attempts).has_room(self.rules.policy.concurrency, self.may_be_ahead())
    }

    /// Returns the time at which the pause after a failure is over.
    pub(super) fn redrive_wake_at(&self) -> Option<Instant> {
        let tasks = self.tasks.running.values();
        let pauses = tasks.filter_map(|task| match &task.kind {
            Kind::Redrive(redrive) => match redrive.step {
                Step::Ready(at) => at,
                _ => None,
            },
            _ => None,
        });
        pauses.min()
    }

    /// Begins the redrive of a stream. Without a request or a discard of its own, `by` names the
    /// operator who has asked for another stream of its lane.
    pub(super) fn begin_redrive(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        stream: StreamId,
        by: &str,
    ) {
        let Some(owned) = self.partitions.get(partition, epoch) else {
            return;
        };
        let Some(parked) = owned.parking.parked.get(&stream) else {
            return;
        };
        let row = &parked.row.value;
        let me = &self.rules.instance;
        let by = (owned.parking.discards.get(&(stream.clone(), row.from)))
            .map_or(by, |row| row.value.by.as_str());
        let claimed = row.claimed(me);
        let wanted = claimed.unwrap_or_else(|| row.claimed_for_discard(me, by));
        let op = RowOp::ReplacePark(stream.clone(), wanted.clone(), parked.row.revision);
        let redrive = Redrive {
            first: row.from,
            next: row.from,
            stream,
            step: Step::Claim,
            wanted: Some(wanted),
            passed: Vec::new(),
            letter: None,
            failure: None,
            done_letters: Vec::new(),
            done_records: Vec::new(),
            retry: None,
            alone_to: None,
        };
        self.counts.redrives += 1;
        self.begin_task(partition, epoch, Kind::Redrive(Box::new(redrive)), Some(op));
    }

    /// Takes the answer to an operation of a redrive.
    pub(super) fn redrive_answered(&mut self, reply: &Reply, mut redrive: Box<Redrive>) {
        match redrive.step {
            Step::Claim | Step::Advance => self.row_put(reply, redrive),
            Step::Discards => {
                let loads = self.polling.loads;
                if let RowAnswer::Discards(rows) = &reply.answer
                    && let Some(owned) = self.partitions.get(&reply.partition, reply.epoch)
                {
                    let (stream, from) = (&redrive.stream, redrive.next);
                    owned.parking.read_discards(stream, from, rows, loads);
                }
                // The owner before may have died with nothing left to do but to delete the row.
                self.drop_done(reply, redrive);
            }
            Step::Pass => {
                if let Some(version) = redrive.passed.last().copied() {
                    let stream = redrive.stream.clone();
                    if self.note_passed(reply, &stream, version) {
                        redrive.passed.pop();
                    }
                }
                self.after_flush(reply, redrive);
            }
            Step::Letter => {
                if let Some((key, letter)) = redrive.letter.take() {
                    self.letter_written(reply, key, letter.head.is_given_up);
                }
                self.advance_row(reply, redrive);
            }
            Step::DropLetters => {
                if let Some(letter) = redrive.done_letters.pop() {
                    self.letter_deleted(reply, &letter);
                }
                self.drop_done(reply, redrive);
            }
            Step::DropRecords => {
                redrive.done_records.pop();
                self.drop_done(reply, redrive);
            }
            Step::Delete => match &reply.answer {
                RowAnswer::ParkDeleted(DeleteIf::Conflict(row)) => {
                    let row = row.clone();
                    self.take_row(reply, redrive, row);
                }
                _ => self.row_gone(reply, redrive.stream),
            },
            Step::Ready(_) | Step::Handling(_) | Step::Flush(_) | Step::Position => {}
        }
    }

    /// Takes the answer to the claim or to a move of `from`.
    fn row_put(&mut self, reply: &Reply, mut redrive: Box<Redrive>) {
        let met = match &reply.answer {
            RowAnswer::Park(PutIf::Written(row)) => {
                let row = row.clone();
                return self.take_row(reply, redrive, row);
            }
            RowAnswer::Park(PutIf::Conflict(Some(row))) => row.clone(),
            // Another owner has handled all of it and has deleted the row.
            _ => return self.row_gone(reply, redrive.stream),
        };
        let wanted = redrive.wanted.take();
        let merged = wanted.and_then(|w| merge(&w, &met.value, &self.rules.instance));
        self.row_written(reply, &redrive.stream, met.clone());
        match merged {
            Some(merged) => {
                redrive.wanted = Some(merged.clone());
                let op = RowOp::ReplacePark(redrive.stream.clone(), merged, met.revision);
                self.go_on(reply, Kind::Redrive(redrive), Some(op));
            }
            None => self.yield_row(reply, &redrive.stream),
        }
    }

    /// Leaves the row to another owner, which has written its name, until the rows are read again.
    fn yield_row(&mut self, reply: &Reply, stream: &StreamId) {
        self.end_round(reply, stream, RoundEnd::Yielded);
        if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch)
            && let Some(parked) = owned.parking.parked.get_mut(stream)
        {
            parked.is_yielded = true;
            owned.parking.is_outdated = true;
        }
    }

    /// Goes on with the row as it is now.
    fn take_row(&mut self, reply: &Reply, mut redrive: Box<Redrive>, row: Stored<ParkRow>) {
        let value = row.value.clone();
        self.row_written(reply, &redrive.stream, row);
        redrive.next = redrive.next.max(value.from);
        let is_claim = redrive.step == Step::Claim;
        let progress = self.streams.get(&redrive.stream);
        if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
            let (stream, first) = (&redrive.stream, redrive.first);
            let letters = owned.parking.letters_of_handled(stream, first, value.from);
            redrive.done_letters = letters;
            let durable = Version::new(value.from.get().saturating_sub(1));
            // The first `from` of a stream that follows others of its lane is no position, and
            // stays none until it has moved.
            let is_position = !value.is_follower;
            // Newer events were handled before those that came late.
            let is_newest = matches!(progress, Progress::At(at) if at.version < durable);
            let is_position = is_position && (is_newest || !value.is_late);
            if is_position && durable > Version::NONE {
                // `from` has moved after a flush, perhaps by an owner that died before it stored
                // the position. Without the position a restart would find a gap.
                let positions = &mut owned.effects.positions;
                positions.insert(redrive.stream.clone(), (durable, None));
            }
        }
        match &value.state {
            ParkState::Redriving { owner, .. } if *owner == *self.rules.instance => {
                if is_claim {
                    redrive.step = Step::Discards;
                    let (first, last) = (value.from, Version::new(u64::MAX));
                    let op = RowOp::ReadDiscards(redrive.stream.clone(), first, last);
                    return self.go_on(reply, Kind::Redrive(redrive), Some(op));
                }
                self.drop_done(reply, redrive);
            }
            ParkState::Redriving { .. } => self.yield_row(reply, &redrive.stream),
            // Parked again, or asked for again: the next round begins with a claim.
            ParkState::Parked | ParkState::Requested(_) => {
                self.end_round(reply, &redrive.stream, RoundEnd::Stopped);
                self.drop_done(reply, redrive);
            }
        }
    }

    /// Deletes the letters and records of what was handled, then goes on with the next page.
    fn drop_done(&mut self, reply: &Reply, mut redrive: Box<Redrive>) {
        let stream = redrive.stream.clone();
        if let Some(letter) = redrive.done_letters.last().cloned() {
            redrive.step = Step::DropLetters;
            let op = RowOp::DeleteLetter(letter);
            return self.go_on(reply, Kind::Redrive(redrive), Some(op));
        }
        if let Some(version) = redrive.done_records.last().copied() {
            redrive.step = Step::DropRecords;
            let op = RowOp::DeleteDeferred(stream, version);
            return self.go_on(reply, Kind::Redrive(redrive), Some(op));
        }
        let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) else {
            return;
        };
        let Some(Parked { row, .. }) = owned.parking.parked.get(&stream) else {
            return;
        };
        match &row.value.state {
            ParkState::Redriving { .. }
                if row.value.is_drained() && self.rules.policy.lane.is_none() =>
            {
                self.delete_row(reply, redrive);
            }
            ParkState::Redriving { .. } => {
                redrive.step = Step::Ready(None);
                self.go_on(reply, Kind::Redrive(redrive), None);
            }
            ParkState::Parked | ParkState::Requested(_) => {}
        }
    }

    /// Starts an attempt at the next versions.
    fn handle_page(&mut self, id: TaskId, limit: Version, permit: Option<Permit>) {
        let Some(task) = self.tasks.running.get_mut(&id) else {
            return;
        };
        let Kind::Redrive(redrive) = &mut task.kind else {
            return;
        };
        let (partition, epoch) = (task.partition.clone(), task.epoch);
        let Some(owned) = self.partitions.get(&partition, epoch) else {
            return;
        };
        let Some(parked) = owned.parking.parked.get(&redrive.stream) else {
            return;
        };
        let Some((from, to)) = parked.row.value.next_range(PAGE) else {
            return;
        };
        // Nothing new is begun while the partition leaves, nor beside an attempt in the same lane.
        let lane = self.rules.lane(&redrive.stream);
        if !matches!(owned.phase, Phase::Serving) || !self.lanes.reserve(&lane) {
            return;
        }
        let failed = redrive.retry.as_ref().map_or(0, Retry::attempts);
        let from = from.max(redrive.next);
        redrive.alone_to = redrive.alone_to.filter(|last| *last >= from);
        let limit = redrive.alone_to.map_or(limit, |last| limit.min(last));
        let range = Range {
            stream: redrive.stream.clone(),
            from,
            to: to.min(limit),
            may_begin_before: parked.row.value.is_follower && self.rules.has_event_store,
            is_readable: self.rules.has_event_store || parked.row.value.has_records,
            is_late: parked.row.value.is_late,
        };
        let skip = owned.parking.skip(&redrive.stream);
        let number = failed + 1 + u32::from(redrive.alone_to.is_some());
        let work = Arc::new(Work {
            partition,
            epoch,
            lane,
            what: What::Range(range),
            progress: Progress::Unknown,
            number,
            is_repeat: number > 1,
            is_alone: redrive.alone_to.is_some(),
            skip,
            letters: Vec::new(),
        });
        let attempt = self.attempts.start(work.clone(), permit);
        redrive.step = Step::Handling(attempt);
        self.out.push(Effect::Start(attempt, work));
    }

    /// Takes the result of an attempt of a redrive.
    /// The failure of a service that is away (`is_kept`) spends no attempt.
    pub(super) fn redriven(
        &mut self,
        attempt: AttemptId,
        work: &Work,
        ended: Ended,
        is_kept: bool,
        now: Instant,
    ) {
        let flushes = self.checkpoint.flushes_begun();
        let found = self
            .tasks
            .running
            .values_mut()
            .find_map(|task| match &mut task.kind {
                Kind::Redrive(r) if r.step == Step::Handling(attempt) => Some(r),
                _ => None,
            });
        // The task has ended with its partition.
        let Some(redrive) = found else {
            return;
        };
        let What::Range(range) = &work.what else {
            return;
        };
        let before = redrive.next;
        redrive.next = redrive.next.max(ended.next);
        redrive.passed.extend(ended.passed.iter().copied());
        if !self.rules.has_event_store {
            let done = before.get()..redrive.next.get();
            redrive.done_records.extend(done.map(Version::new));
        }
        if ended.counts.handled > 0
            && self.rules.is_projector
            && let Some(owned) = self.partitions.get(&work.partition, work.epoch)
        {
            owned.effects.touched.insert(range.stream.clone());
        }
        match ended.result {
            Outcome::Failed(_) if is_kept => {
                redrive.step = Step::Ready(None);
                return;
            }
            Outcome::Failed(Failure {
                suspects: Some(suspects),
                error,
                ..
            }) => {
                tracing::warn!(processor = %self.rules.name, stream = %range.stream, last = %suspects.last, error = crate::chain(error.source()), "a batch of a redrive failed and its events are tried one by one");
                redrive.alone_to = Some(suspects.last);
                redrive.step = Step::Ready(None);
                self.counts.retries += 1;
                return;
            }
            Outcome::Failed(failure) => {
                if redrive.next > before {
                    redrive.retry = None;
                }
                let known = redrive.retry.take();
                let is_store = matches!(failure.of, FailureOf::Store);
                let mut retry = Retry::after(known, self.rules.retry(), failure.version, is_store);
                if let Some(at) = retry.failed(failure.error.class().into(), now) {
                    redrive.retry = Some(retry);
                    redrive.step = Step::Ready(Some(at));
                    self.counts.retries += 1;
                    return;
                }
                if is_store && failure.error.class() == ErrorClass::Fatal {
                    return self.halt(halted(&self.rules, work, range, failure, &retry), now);
                }
                redrive.give_up(&self.rules, &range.stream, &failure, &retry, now);
            }
            Outcome::Done if ended.is_short => {
                tracing::error!(processor = %self.rules.name, stream = %range.stream, next = %redrive.next, to = %range.to, "the history of a parked stream ends before the last version that was deferred: its redrive ends here");
                redrive.next = range.to.next();
            }
            // Perhaps it has not even begun. What it did is repeated, as after a crash.
            Outcome::Cancelled => {
                redrive.step = Step::Ready(None);
                return;
            }
            Outcome::Done if redrive.next > before => redrive.retry = None,
            Outcome::Done => {}
        }
        redrive.step = Step::Flush(flushes);
    }

    /// Goes on with what was waiting for a flush.
    pub(super) fn redrive_flushed(&mut self, id: TaskId) {
        if let Some((reply, Kind::Redrive(redrive))) = self.tasks.take(id) {
            match redrive.step {
                Step::Position => self.delete_row(&reply, redrive),
                _ => self.after_flush(&reply, redrive),
            }
        }
    }

    /// Goes on once the effects are durable: notes the versions that were passed over, writes the
    /// letter, moves `from`.
    fn after_flush(&mut self, reply: &Reply, mut redrive: Box<Redrive>) {
        while let Some(version) = redrive.passed.last().copied() {
            let key = (redrive.stream.clone(), version);
            let owned = self.partitions.get(&reply.partition, reply.epoch);
            let found = owned.and_then(|owned| {
                let row = owned.parking.discards.get(&key).cloned()?;
                Some((row, owned.parking.met_to(&key.0)))
            });
            match found {
                Some((row, met)) if row.value.state == DiscardState::Asked => {
                    redrive.step = Step::Pass;
                    let (mut value, seen) = (row.value.passed(), row.revision);
                    if let Some((_, offset)) = met.filter(|(to, _)| *to >= version) {
                        value = value.at_offset(offset);
                    }
                    let op = RowOp::ReplaceDiscard(key.0, version, value, seen);
                    return self.go_on(reply, Kind::Redrive(redrive), Some(op));
                }
                _ => redrive.passed.pop(),
            };
        }
        if let Some((key, letter)) = redrive.letter.clone() {
            redrive.step = Step::Letter;
            let op = RowOp::WriteLetter(key, letter);
            return self.go_on(reply, Kind::Redrive(redrive), Some(op));
        }
        self.advance_row(reply, redrive);
    }
}
