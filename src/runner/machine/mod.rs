//! The decisions of a processor, as a pure state machine: [`Machine::on`] takes what has happened
//! and returns what is to be done.
//!
//! Nothing here awaits, reads a clock or draws a random number: the driver passes the time with
//! each input, and a seed at the start. So every interleaving of deliveries, rebalances, failures
//! and answers can be replayed from a seed, without a runtime.
//!
//! ```text
//! record -> window of its partition -> lane of its stream -> attempt -> done
//!        -> checkpoint: flush, positions, offsets
//! ```
mod archive;
mod asks;
mod attempts;
mod breaker;
mod checkpoint;
mod ending;
mod failure;
mod give_up;
mod holding;
mod health;
mod input;
mod lanes;
mod letter_discards;
mod letter_topic;
mod membership;
mod outcome;
mod parked;
mod parking;
mod partition;
mod place;
mod rebalance;
mod record;
mod redrive;
mod retry;
mod rows;
mod shared;
mod tasks;
mod unreadable;
mod window;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use self::{
    attempts::Attempts,
    checkpoint::Checkpoint,
    ending::Ending,
    lanes::{LaneKey, Lanes},
    membership::{Member, Membership},
    parked::Polling,
    partition::Partitions,
    tasks::{Kind, Pass, Tasks},
};
pub(super) use self::{
    health::{Failing, Noted, Snapshot},
    input::{Again, Effect, Ends, Input, Setback, StreamPosition, What, Work},
    outcome::{Calls, Ended, Failure, FailureOf, Outcome, Suspects},
    record::Record,
    redrive::Range,
    retry::Patience,
    rows::{Durable, Load, Loaded, Polled, RowAnswer, RowOp, Sweep},
};
use super::{
    DeliveryLevel, ProcessorPolicy,
    report::Counts,
    streams::{Progress, Streams},
};
use crate::{EventSelector, RetryPolicy, StreamId, ports::PartitionId};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The number of streams whose position is remembered in any case.
const STREAMS: usize = 50_000;

/// The most neighbouring records of a stream that one attempt handles, one after the other.
const NEIGHBOURS: usize = 16;

/// The number of an attempt, unique in its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AttemptId(pub(super) u64);

/// The number of a revocation, unique in its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RevocationId(pub(super) u64);

/// The rules that never change while a processor runs.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Rules {
    pub(super) name: Arc<str>,
    pub(super) policy: ProcessorPolicy,
    /// True for a projector, which may buffer effects.
    pub(super) is_projector: bool,
    pub(super) selectors: Vec<EventSelector>,
    /// The circuit breaker around the calls of the handler.
    pub(super) breaker: Option<crate::breaker::CircuitBreaker>,
    /// False in a service without the event store: deferred records are stored as rows.
    pub(super) has_event_store: bool,
    /// The name under which this process redrives parked streams, unique among all processes.
    pub(super) instance: Arc<str>,
    /// A moment on both clocks, from which the time of letters follows.
    pub(super) started: (Instant, crate::Timestamp),
    /// The source of all jitter.
    pub(super) seed: u64,
}

impl Rules {
    /// The retry policy of handlers and flushes, with jitter from the seed.
    fn retry(&self) -> RetryPolicy {
        let mut retry = self.policy.retry;
        retry.backoff.seed = retry.backoff.seed.or(Some(self.seed));
        retry
    }
    /// Returns the lane of a stream.
    fn lane(&self, stream: &StreamId) -> LaneKey {
        let shared = self.shared_lane(stream).map(LaneKey::Shared);
        shared.unwrap_or_else(|| LaneKey::Stream(stream.clone()))
    }
    /// Returns the lane that a stream shares with others; `None` if it has one of its own.
    fn shared_lane(&self, stream: &StreamId) -> Option<Arc<str>> {
        let lane = self.policy.lane.as_ref()?;
        Some((lane.0)(stream).into())
    }
    fn subscribes_to(&self, stream: &StreamId) -> bool {
        let aggregate = stream.aggregate();
        self.selectors.iter().any(|s| s.aggregate == aggregate)
    }
}

/// The state of one processor.
#[derive(Debug)]
pub(super) struct Machine {
    rules: Arc<Rules>,
    membership: Membership,
    partitions: Partitions,
    lanes: Lanes,
    streams: Streams,
    attempts: Attempts,
    tasks: Tasks,
    polling: Polling,
    checkpoint: Checkpoint,
    holding: holding::Holding,
    guard: breaker::Guard,
    ending: Option<Ending>,
    /// Partitions were told to be paused or resumed, and the answer is not there.
    pausing: Option<Pausing>,
    room: Room,
    counts: Counts,
    /// The letters that are being sent to the topic of dead letters.
    sending: usize,
    out: Vec<Effect>,
}

/// A change of pauses that the consumer has not confirmed.
#[derive(Debug)]
struct Pausing {
    partitions: Vec<(PartitionId, crate::ports::AssignmentEpoch)>,
    is_paused: bool,
    /// After a failure: when it is tried again.
    try_at: Option<Instant>,
    /// Nothing is received before this time or the answer: records of a partition that is full
    /// would be taken in.
    receive_at: Option<Instant>,
}

/// The space for records, as far as it is known between two decisions.
#[derive(Debug, Default)]
struct Room {
    /// The bytes in all windows when the last decision was made, and those that have come since.
    bytes: usize,
    /// A window has become full since then.
    is_full: bool,
}

/// After this time; a time without an end is a far one.
pub(super) fn later(now: Instant, time: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    now + time.min(FAR)
}

impl Machine {
    pub(super) fn new(rules: Arc<Rules>, now: Instant) -> Self {
        Self {
            membership: Membership::new(rules.seed, now),
            partitions: Partitions::default(),
            lanes: Lanes::default(),
            streams: Streams::new(STREAMS),
            attempts: Attempts::new(rules.policy.attempt_timeout),
            tasks: Tasks::default(),
            polling: Polling::new(rules.seed, now),
            checkpoint: Checkpoint::new(&rules, now),
            holding: holding::Holding::default(),
            guard: breaker::Guard::new(rules.breaker.as_ref()),
            ending: None,
            pausing: None,
            room: Room::default(),
            counts: Counts::default(),
            sending: 0,
            out: Vec::new(),
            rules,
        }
    }

    /// Sets the time after which no attempt may start; `None` if there is no such time.
    pub(super) const fn set_lease(&mut self, until: Option<Instant>) {
        self.polling.lease = until;
    }

    /// Takes in what has happened, and returns what is to be done.
    #[cfg(test)]
    pub(super) fn on(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        self.take(input, now);
        let mut effects = Vec::new();
        self.effects(now, &mut effects);
        effects
    }

    /// Fills an empty list with what is to be done now. Its memory is used again by later calls.
    pub(super) fn effects(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.membership.state != Member::Over {
            self.decide(now);
        }
        std::mem::swap(&mut self.out, effects);
    }

    fn decide(&mut self, now: Instant) {
        self.polling.check_lease(now);
        self.join(now);
        self.advance_rejoin(now);
        self.advance_breaker(now);
        if self.guard.is_going() {
            self.lanes.wake(now);
        }
        self.advance_unreadable(now);
        self.advance_starts(now);
        self.advance_revocations(now);
        self.counts.abandoned += self.attempts.abandon(now, &mut self.out);
        self.advance_holding(now);
        self.advance_polls(now);
        self.advance_tasks(now);
        self.advance_asks(now);
        self.advance_redrives(now);
        self.dispatch(now);
        self.advance_flushes();
        self.advance_checkpoint(now);
        self.advance_revocations(now);
        self.advance_pauses(now);
        self.end_if_caught_up(now);
        self.advance_ending(now);
    }

    /// Returns the time at which [`Input::Timer`] is due at the latest.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let always = [
            self.membership.receive_at,
            self.lanes.wake_at().filter(|_| self.guard.is_going()),
            self.guard.wake_at(),
            self.attempts.wake_at(),
            self.partitions.release_at(),
        ];
        let member = match self.membership.state {
            Member::Out(at) => [Some(at), None, None, None, None, None, None, None, None],
            Member::In => [
                self.membership
                    .rejoin_at()
                    .filter(|_| self.ending.is_none()),
                self.checkpoint.wake_at(),
                self.pausing.as_ref().and_then(Pausing::wake_at),
                self.ending.as_ref().and_then(|ending| ending.wake_at(self)),
                (self.may_start())
                    .then(|| self.partitions.start_at())
                    .flatten(),
                self.polling.wake_at().filter(|_| self.ending.is_none()),
                self.tasks.wake_at(),
                self.redrive_wake_at()
                    .into_iter()
                    .chain(self.ask_wake_at())
                    .min()
                    .filter(|_| self.may_redrive()),
                self.holding_wake_at(),
            ],
            Member::Leaving => {
                let ending = self.ending.as_ref().and_then(|e| e.wake_at(self));
                [ending, None, None, None, None, None, None, None, None]
            }
            Member::Joining | Member::Over => [None; 9],
        };
        let times = always.into_iter().chain(member).flatten();
        times.chain(self.wake_revocations_at()).min()
    }

    /// Returns true if records shall be received.
    pub(super) fn receives(&self) -> bool {
        let mut pausing = self.pausing.iter();
        self.membership.state == Member::In
            && self.membership.receive_at.is_none()
            && !pausing.any(|pausing| pausing.receive_at.is_some())
    }

    /// Returns true if a window has become full since the last decision: the next record must wait
    /// for the decision to pause.
    pub(super) const fn is_full(&self) -> bool {
        self.room.is_full
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes in what has happened.
    pub(super) fn take(&mut self, input: Input, now: Instant) {
        if input.is_received() {
            self.membership.receives.reset();
        }
        match input {
            Input::Joined(group, ends) => self.joined(group, ends, now),
            Input::NotJoined(setback) => self.not_joined(setback, now),
            Input::Delivered(record) => self.delivered(record),
            Input::Unreadable(record, epoch, error) => self.unreadable(*record, epoch, error),
            Input::Reached(partition, epoch, next) => {
                // Nothing after a record that was not taken in may be passed.
                let owned = self.partitions.get(&partition, epoch);
                if let Some(owned) = owned.filter(|owned| !owned.is_leaving()) {
                    owned.window.reached(next);
                }
            }
            Input::Assigned(assigned) => self.assigned(assigned, now),
            Input::Revoking(id, partitions, grace) => self.revoking(id, partitions, grace, now),
            Input::Lost(partitions) => self.lost(&partitions.into_iter().collect(), now),
            Input::NoPosition(partition, why, has_start) => {
                self.no_position(partition, why, has_start, now);
            }
            Input::NotReceived(error) => self.not_received(error, now),
            Input::Begun(partition, epoch, is_owned) => self.begun(&partition, epoch, is_owned),
            Input::Loaded(load, result) => self.loaded(&load, result, now),
            Input::Row(id, result) => self.row(id, result, now),
            Input::Polled(result) => self.polled(result, now),
            Input::NotBegun(partition, epoch, setback) => {
                self.not_begun(&partition, epoch, setback, now);
            }
            Input::Advanced(id) => self.attempts.advanced(id, now),
            Input::Finished(id, ended) => self.finished(id, ended, now),
            Input::Flushed(result) => self.flushed(result, now),
            Input::Forgotten(result) => self.forgotten(result, now),
            Input::PositionsStored(result) => self.positions_stored(result, now),
            Input::Committed(result) => self.committed(result, now),
            Input::PauseChanged(result) => self.pause_changed(result, now),
            Input::LetterSent(result) => self.letter_sent(result),
            Input::GroupCommitted(result) => self.group_committed(result, now),
            Input::Reachable => self.reachable(),
            Input::Left => self.left(now),
            Input::Stop(by) => self.stop(by, now),
            Input::Broken(reason) => self.broken(reason, now),
            Input::Timer => {}
        }
        if self.membership.receive_at.is_some_and(|at| at <= now) {
            self.membership.receive_at = None;
        }
        if let Some(pausing) = &mut self.pausing {
            pausing.receive_at = pausing.receive_at.filter(|at| *at > now);
        }
    }

    /// Starts attempts at the heads of lanes that are ready.
    fn dispatch(&mut self, now: Instant) {
        if self.ending.is_some() || !self.polling.may_handle() {
            return;
        }
        let max_batch = self.rules.policy.max_batch;
        let most = if max_batch > 1 { max_batch } else { NEIGHBOURS };
        let (concurrency, may_be_ahead) = (self.rules.policy.concurrency, self.may_be_ahead());
        while self.attempts.has_room(concurrency, may_be_ahead) {
            let may_run = |lane: &LaneKey, stream: &StreamId| {
                !self.checkpoint.is_to_forget(stream) && !self.attempts.runs_in(lane)
            };
            // A permit that comes back unused wakes everybody who waits for one, this processor
            // included.
            if self.guard.is_there() && !self.lanes.can_start(may_run) {
                return;
            }
            let Ok(permit) = self.permit(now) else {
                return;
            };
            // One record tells whether the service is back.
            let is_probe = permit.as_ref().is_some_and(|permit| permit.is_probe());
            let most = if is_probe { 1 } else { most };
            let may_run = |lane: &LaneKey, stream: &StreamId| {
                !self.checkpoint.is_to_forget(stream) && !self.attempts.runs_in(lane)
            };
            let Some(started) = self.lanes.start_next(most, may_run) else {
                return;
            };
            let Some(head) = started.records.first() else {
                continue;
            };
            // An event that is tried alone was in a batch before.
            let number = started.failed + 1 + u32::from(started.is_alone);
            let stream = &head.event.header.stream;
            let owned = self.partitions.owned.get(&head.partition);
            let work = Arc::new(Work {
                partition: head.partition.clone(),
                epoch: head.epoch,
                lane: started.key,
                progress: self.streams.get(stream),
                number,
                is_repeat: number > 1 || started.was_tried,
                is_alone: started.is_alone,
                skip: owned.map_or_else(Vec::new, |owned| owned.parking.skip(stream)),
                letters: owned.map_or_else(Vec::new, |owned| owned.parking.lettered(stream)),
                what: What::Records(started.records),
            });
            let id = self.attempts.start(work.clone(), permit);
            self.out.push(Effect::Start(id, work));
        }
    }

    /// Returns true if attempts may be started ahead.
    fn may_be_ahead(&self) -> bool {
        // A record that cannot be read may end the run, and little after it should be handled then.
        let mut owned = self.partitions.owned.values();
        owned.all(|owned| owned.unreadable.is_empty())
    }

    /// Takes the result of an attempt.
    fn finished(&mut self, id: AttemptId, ended: Box<Ended>, now: Instant) {
        let Some(running) = self.attempts.finished(id, &ended) else {
            return;
        };
        let work = running.work;
        let is_kept = self.settle_calls(running.permit, &work.lane, &ended, now);
        self.counts.add(&ended.counts);
        let is_gone =
            running.is_void || (self.partitions.get(&work.partition, work.epoch)).is_none();
        self.note_buffered(&work, is_gone);
        match &work.what {
            What::Records(_) | What::Commits(_) => {}
            What::Range(_) => {
                self.lanes.finished(&work.lane, 0);
                return self.redriven(id, &work, *ended, is_kept, now);
            }
            What::Again(_) => {
                self.lanes.finished(&work.lane, 0);
                return self.asked_again(id, *ended, is_kept, now);
            }
        }
        let (partition, epoch) = (work.partition.clone(), work.epoch);
        if is_gone {
            // The partition is gone, and whoever has it now gets the records again.
            return self.lanes.finished(&work.lane, work.records().len());
        }
        if is_kept && ended.passed.is_empty() {
            return self.conclude_kept(&work, &ended);
        }
        if ended.passed.is_empty() {
            return self.conclude(&work, ended, now);
        }
        let mut pass = Pass {
            versions: ended.passed.clone(),
            work,
            ended,
        };
        match self.next_pass(&partition, epoch, &mut pass) {
            Some(op) => {
                let kind = Kind::Pass(Box::new(pass));
                self.begin_task(&partition, epoch, kind, Some(op));
            }
            None => self.conclude(&pass.work, pass.ended, now),
        }
    }

    /// Puts an event back to the head of its lane, with no attempt spent: the service is away.
    fn conclude_kept(&mut self, work: &Work, ended: &Ended) {
        let lane = work.lane.clone();
        let is_leaving = self.ending.is_some()
            || (self.partitions.get(&work.partition, work.epoch)).is_some_and(|o| o.is_leaving());
        let retry = self.lanes.take_retry(&lane).filter(|_| ended.done == 0);
        self.note_done(work, ended);
        if is_leaving {
            return self.lanes.finished(&lane, work.records().len());
        }
        self.lanes.finished(&lane, ended.done);
        self.lanes.note_tried(&lane);
        self.lanes.set_retry(&lane, retry);
        if let Outcome::Failed(Failure { suspects, .. }) = &ended.result
            && let Some(suspects) = suspects
        {
            self.lanes.try_alone(&lane, suspects.records);
        }
        self.lanes.return_first(&lane);
    }

    /// Notes that the projector may hold effects of an attempt, also if it has failed or was
    /// cancelled. If its partition is gone, they must be dropped before the stream is projected
    /// again.
    fn note_buffered(&mut self, work: &Work, is_gone: bool) {
        if let Some(stream) = work.stream().filter(|_| self.rules.is_projector) {
            let owned = self.partitions.get(&work.partition, work.epoch);
            match owned.filter(|_| !is_gone) {
                // Most streams are there already.
                Some(owned) if owned.effects.touched.contains(stream) => {}
                Some(owned) => drop(owned.effects.touched.insert(stream.clone())),
                None => self.checkpoint.forget(std::iter::once(stream.clone())),
            }
        }
    }

    /// Notes what an attempt at records has done, and goes on with its lane.
    fn conclude(&mut self, work: &Work, ended: Box<Ended>, now: Instant) {
        let (records, lane) = (work.records(), &work.lane);
        let Some(owned) = self.partitions.get(&work.partition, work.epoch) else {
            return self.lanes.finished(lane, records.len());
        };
        let is_leaving = owned.is_leaving() || self.ending.is_some();
        self.note_done(work, &ended);
        match ended.result {
            Outcome::Failed(failure) => {
                self.lanes.finished(lane, ended.done);
                self.lanes.note_tried(lane);
                let is_of_call = ended.calls.failed.is_some();
                self.failed(work, ended.done, failure, is_of_call, now);
            }
            // The rest comes again, here or elsewhere.
            Outcome::Cancelled | Outcome::Done if is_leaving => {
                self.lanes.finished(lane, records.len());
            }
            Outcome::Cancelled => {
                self.lanes.finished(lane, ended.done);
                self.lanes.note_tried(lane);
            }
            Outcome::Done => self.lanes.finished(lane, ended.done),
        }
    }

    fn note_done(&mut self, work: &Work, ended: &Ended) {
        let Some(owned) = self.partitions.get(&work.partition, work.epoch) else {
            return;
        };
        let Some(stream) = work.stream() else {
            return;
        };
        for record in work.records().iter().take(ended.done) {
            owned.window.done(record.offset);
        }
        if self.rules.policy.level == DeliveryLevel::Deduplicated
            && ended.counts.has_moved()
            && let Progress::At(at) = &ended.progress
        {
            let position = (at.version, at.commit_id);
            owned.effects.positions.insert(stream.clone(), position);
        }
        let progress = ended.progress.clone();
        self.streams.set(stream, work.partition.clone(), progress);
        self.drop_letters(work, &ended.settled);
    }
}
