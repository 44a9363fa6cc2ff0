//! Making durable what is done: flush the read model, store positions, commit offsets. At most one
//! checkpoint is under way, beside everything else.
use super::{
    Effect, Machine, Member, Setback,
    health::Noted,
    input::StreamPosition,
    partition::{Partition, Phase},
    retry::{Patience, Retry},
    tasks::Kind,
    window::Window,
};
use crate::{
    StreamId, Version,
    ports::{MessageBusError, OffsetCommit, PartitionId},
    runner::{DeliveryLevel, HandlerError, RunnerError},
};
use std::collections::{BTreeSet, HashSet};
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Checkpoint {
    step: Step,
    /// The offsets to commit, as they were when the checkpoint began.
    offsets: Vec<OffsetCommit>,
    /// The positions to store, as they were then, with the partition of each stream.
    positions: Vec<(PartitionId, StreamPosition)>,
    /// The time of the next one.
    pub(super) next_at: Instant,
    /// After a failure: the time before which none begins.
    pub(super) not_before: Option<Instant>,
    flushes: Retry,
    /// The number of flushes that have begun, and the last of them that went well.
    begun: u64,
    done: u64,
    commits: Patience,
    /// Streams whose buffered effects must be dropped, since their partitions were lost.
    to_forget: BTreeSet<StreamId>,
    /// Those of them that are being dropped.
    forgetting: BTreeSet<StreamId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    Flushing,
    Storing,
    Committing,
    /// The projector drops what it has buffered of lost partitions.
    Forgetting,
}

impl Checkpoint {
    pub(super) fn new(rules: &super::Rules, now: Instant) -> Self {
        Self {
            step: Step::Idle,
            offsets: Vec::new(),
            positions: Vec::new(),
            next_at: now,
            not_before: None,
            flushes: Retry::new(rules.retry(), Version::NONE),
            begun: 0,
            done: 0,
            commits: Patience::new(rules.seed),
            to_forget: BTreeSet::new(),
            forgetting: BTreeSet::new(),
        }
    }

    /// Returns the number of flushes that have begun.
    pub(super) const fn flushes_begun(&self) -> u64 {
        self.begun
    }

    pub(super) fn is_idle(&self) -> bool {
        self.step == Step::Idle
    }

    /// Returns true if what is buffered of a stream must be dropped before the stream is projected
    /// again: a flush would store it beside what is projected now.
    pub(super) fn is_to_forget(&self, stream: &StreamId) -> bool {
        self.to_forget.contains(stream) || self.forgetting.contains(stream)
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        let next = self
            .not_before
            .map_or(self.next_at, |not_before| not_before.max(self.next_at));
        // What must be dropped waits for the end of an attempt, and everything else waits for it.
        (self.is_idle() && self.to_forget.is_empty()).then_some(next)
    }

    /// Returns the failures of the flush and of what follows it, with the time of each first one.
    pub(super) fn failures(&self) -> impl Iterator<Item = (&Noted, Instant)> {
        let flush = self.flushes.noted();
        let flush = flush.map(|(noted, since, _)| (noted, since));
        flush.into_iter().chain(self.commits.noted())
    }

    /// Takes partitions that are gone out of the checkpoint: nothing of them may be stored or
    /// committed any more.
    pub(super) fn void(&mut self, partitions: &HashSet<PartitionId>) {
        self.offsets.retain(|c| !partitions.contains(&c.partition));
        self.positions.retain(|(of, _)| !partitions.contains(of));
    }

    pub(super) fn forget(&mut self, streams: impl Iterator<Item = StreamId>) {
        self.to_forget.extend(streams);
    }
}

impl Machine {
    /// Begins a checkpoint if it is time for one, or if somebody waits for it.
    pub(super) fn advance_checkpoint(&mut self, now: Instant) {
        // Without a membership there is nobody to commit to. What must be dropped is dropped once
        // the group was joined again.
        if !self.checkpoint.is_idle() || self.membership.state != Member::In {
            return;
        }
        if !self.checkpoint.to_forget.is_empty() {
            return self.advance_forgetting();
        }
        let is_last = self
            .ending
            .as_ref()
            .is_some_and(|e| e.wants_last_checkpoint());
        let is_at_once = self.ending.as_ref().is_some_and(|e| e.wants_it_at_once());
        let may = self.checkpoint.not_before.is_none_or(|at| at <= now) || is_at_once;
        // Once nothing runs any more, the last checkpoint is next.
        let is_ending = self.ending.is_some() && !self.attempts.any();
        let is_due = !is_ending && (self.checkpoint.next_at <= now || self.is_much_done());
        let is_awaited = self.is_checkpoint_awaited() || self.is_flush_awaited();
        if !may || !(is_due || is_last || is_awaited) {
            return;
        }
        self.raise();
        if self.checkpoint.next_at <= now {
            self.checkpoint.next_at = super::later(now, self.rules.policy.commit_interval());
            self.ask_group();
        }
        self.checkpoint.not_before = None;
        self.begin_checkpoint(now);
    }

    /// Drops what is buffered of lost partitions, before anything else is flushed.
    fn advance_forgetting(&mut self) {
        // An attempt that was cancelled may buffer something until it has ended.
        if self.attempts.any_at(&self.checkpoint.to_forget) {
            return;
        }
        let mut streams = std::mem::take(&mut self.checkpoint.to_forget);
        // A topic that has grown has records of one stream in two partitions. What was projected of
        // the one that is still owned must be flushed. What goes with it is an older version that
        // is applied late, which changes nothing.
        streams.retain(|stream| {
            let mut owned = self.partitions.owned.values();
            !owned.any(|owned| owned.effects.has_buffered(stream))
        });
        if !streams.is_empty() {
            self.checkpoint.step = Step::Forgetting;
            self.checkpoint.forgetting = streams.clone();
            self.out.push(Effect::Forget(streams.into_iter().collect()));
        }
    }

    fn begin_checkpoint(&mut self, now: Instant) {
        if let Some(ending) = &mut self.ending {
            ending.checkpoint_began();
        }
        let stores = self.rules.policy.level == DeliveryLevel::Deduplicated;
        let (mut offsets, mut positions) = (Vec::new(), Vec::new());
        for (partition, owned) in &mut self.partitions.owned {
            if matches!(owned.phase, Phase::Starting(_)) {
                continue;
            }
            if let Some(next) = owned.window.to_commit() {
                offsets.push(OffsetCommit::new(partition.clone(), owned.epoch, next));
            }
            // The positions are those of this moment: what is handled during the flush may not be
            // durable after it.
            for (stream, (version, commit_id)) in owned.effects.positions.drain() {
                let position = StreamPosition {
                    stream,
                    version,
                    commit_id,
                };
                positions.push((partition.clone(), position));
            }
        }
        positions.sort_by(|(_, a), (_, b)| a.stream.cmp(&b.stream));
        (self.checkpoint.offsets, self.checkpoint.positions) = (offsets, positions);
        let is_needed = !self.checkpoint.offsets.is_empty()
            || self.is_flush_awaited()
            || (stores && !self.checkpoint.positions.is_empty());
        if !is_needed {
            self.checkpoint_ended();
        } else if self.rules.is_projector {
            for owned in self.partitions.owned.values_mut() {
                owned.effects.begin_flush();
            }
            self.checkpoint.step = Step::Flushing;
            self.checkpoint.begun += 1;
            self.out.push(Effect::Flush);
        } else {
            self.store_positions(now);
        }
    }

    /// Returns true if so much is done that it shall be committed before its time: a quarter of a
    /// bound. The rest of the window is for what is handled during the checkpoint, and for what
    /// waits.
    fn is_much_done(&self) -> bool {
        let policy = &self.rules.policy;
        let windows = || self.partitions.owned.values().map(|owned| &owned.window);
        let total: usize = windows().map(Window::uncommitted_bytes).sum();
        total >= policy.max_total_bytes.div_ceil(4)
            || windows().any(|window| {
                window.uncommitted() >= policy.max_records.div_ceil(4)
                    || window.uncommitted_bytes() >= policy.max_bytes.div_ceil(4)
            })
    }

    pub(super) fn flushed(&mut self, result: Result<(), HandlerError>, now: Instant) {
        if self.checkpoint.step != Step::Flushing {
            return;
        }
        for owned in self.partitions.owned.values_mut() {
            owned.effects.end_flush(result.is_ok());
        }
        let Err(error) = result else {
            self.checkpoint.flushes = Retry::new(self.rules.retry(), Version::NONE);
            self.checkpoint.done = self.checkpoint.begun;
            return self.store_positions(now);
        };
        self.positions_not_stored();
        let next = self.checkpoint.flushes.failed(error.class().into(), now);
        self.checkpoint.flushes.note(Noted::of_flush(&error));
        match next {
            Some(at) => {
                tracing::warn!(processor = %self.rules.name, wait = ?(at - now), class = ?error.class(), error = crate::chain(error.source()), "the read model could not be flushed yet");
                self.put_off(at);
            }
            None => self.halt(self.rules.flush_error(error), now),
        }
        self.forget_failed_flushes();
        self.checkpoint_ended();
    }

    /// Forgets that flushes have failed if nothing is left that was to be flushed: the next flush
    /// is of other effects, and has all its retries.
    pub(super) fn forget_failed_flushes(&mut self) {
        let mut owned = self.partitions.owned.values();
        if owned.all(|owned| owned.effects.is_flushed()) {
            self.checkpoint.flushes = Retry::new(self.rules.retry(), Version::NONE);
        }
    }

    fn store_positions(&mut self, now: Instant) {
        let stores = self.rules.policy.level == DeliveryLevel::Deduplicated;
        if stores && !self.checkpoint.positions.is_empty() {
            let positions = self.checkpoint.positions.iter();
            let positions = positions.map(|(_, position)| position.clone()).collect();
            self.checkpoint.step = Step::Storing;
            self.out.push(Effect::StorePositions(positions));
        } else {
            self.commit(now);
        }
    }

    pub(super) fn positions_stored(&mut self, result: Result<(), Setback>, now: Instant) {
        if self.checkpoint.step != Step::Storing {
            return;
        }
        match result {
            Ok(()) => {
                self.checkpoint.positions.clear();
                return self.commit(now);
            }
            Err(Setback::Wait(error)) => {
                let at = self.checkpoint.commits.failed(now);
                self.checkpoint.commits.note(&*error);
                tracing::warn!(processor = %self.rules.name, wait = ?(at - now), error = crate::chain(&*error), "the positions could not be stored yet");
                self.put_off(at);
            }
            Err(Setback::Halt(error)) => self.halt(error, now),
        }
        self.positions_not_stored();
        self.checkpoint_ended();
    }

    /// Puts positions back that are not durable: the offset stays before their records.
    fn positions_not_stored(&mut self) {
        for (partition, position) in std::mem::take(&mut self.checkpoint.positions) {
            if let Some(owned) = self.partitions.owned.get_mut(&partition) {
                let newer = owned.effects.positions.entry(position.stream);
                newer.or_insert((position.version, position.commit_id));
            }
        }
    }

    fn commit(&mut self, _: Instant) {
        if self.checkpoint.offsets.is_empty() {
            return self.checkpoint_ended();
        }
        self.checkpoint.step = Step::Committing;
        let offsets = self.checkpoint.offsets.clone();
        self.out.push(Effect::Commit(offsets));
    }

    pub(super) fn committed(&mut self, result: Result<(), MessageBusError>, now: Instant) {
        if self.checkpoint.step != Step::Committing {
            return;
        }
        match result {
            Ok(()) => {
                for commit in std::mem::take(&mut self.checkpoint.offsets) {
                    let owned = self.partitions.get(&commit.partition, commit.epoch);
                    if let Some(owned) = owned {
                        owned.window.committed(commit.next);
                        self.membership.has_committed(&commit.partition);
                    }
                }
                self.checkpoint.commits.reset();
            }
            Err(MessageBusError::StaleAssignment { partition }) => {
                if self.stale(&partition, now) {
                    return self.commit(now);
                }
            }
            // All of the partitions are gone, or the group was left meanwhile.
            Err(_) if self.checkpoint.offsets.is_empty() => {}
            Err(error) if error.is_transient() => {
                let at = self.checkpoint.commits.failed(now);
                self.checkpoint.commits.note(&error);
                tracing::warn!(processor = %self.rules.name, wait = ?(at - now), error = crate::chain(&error), "the offsets could not be committed yet");
                self.put_off(at);
            }
            Err(error) => self.bus_refused(error, now),
        }
        self.checkpoint_ended();
    }

    /// An assignment has ended before the commit, and nothing was stored: the other partitions go
    /// without it. The consumer may tell of the loss much later. Until then nothing of the
    /// partition can be committed, so a revocation must not wait for it, nor a checkpoint begin for
    /// it.
    fn stale(&mut self, partition: &PartitionId, now: Instant) -> bool {
        tracing::debug!(%partition, "the assignment ended before the commit");
        let mut offsets = self.checkpoint.offsets.iter();
        let Some(stale) = offsets.find(|c| c.partition == *partition) else {
            // It was lost since then. The next checkpoint commits the others.
            return false;
        };
        if self.partitions.get(partition, stale.epoch).is_some() {
            self.lost(&HashSet::from([partition.clone()]), now);
        }
        self.checkpoint
            .offsets
            .retain(|c| c.partition != *partition);
        true
    }

    pub(super) fn forgotten(&mut self, result: Result<(), HandlerError>, now: Instant) {
        if self.checkpoint.step != Step::Forgetting {
            return;
        }
        self.checkpoint.step = Step::Idle;
        self.checkpoint.forgetting.clear();
        if let Err(error) = result {
            // What is buffered of partitions that are gone would be written by the next flush, over
            // what their new owner writes. A processor that starts again has nothing buffered.
            self.halt(self.rules.flush_error(error), now);
        }
    }

    fn put_off(&mut self, until: Instant) {
        self.checkpoint.not_before = Some(until);
    }

    fn checkpoint_ended(&mut self) {
        self.checkpoint.step = Step::Idle;
        self.checkpoint.offsets.clear();
        if let Some(ending) = &mut self.ending {
            // After a failure that a repeat may help.
            ending.checkpoint_ended(self.checkpoint.not_before.is_some());
        }
    }

    /// Returns true if a step about a failed event waits for a flush, or for a position.
    pub(super) fn is_flush_awaited(&self) -> bool {
        let mut tasks = self.tasks.running.values();
        tasks.any(|task| task.awaits_flush().is_some() || task.awaits_position().is_some())
    }

    /// Returns true if no position of a stream waits to be stored.
    pub(super) fn is_position_stored(&self, partition: &PartitionId, stream: &StreamId) -> bool {
        if self.rules.policy.level != DeliveryLevel::Deduplicated {
            return true;
        }
        let mut storing = self.checkpoint.positions.iter();
        let owned = self.partitions.owned.get(partition);
        !storing.any(|(_, position)| position.stream == *stream)
            && owned.is_none_or(|owned| !owned.effects.positions.contains_key(stream))
    }

    /// Goes on with the steps about failed events whose effects are durable.
    pub(super) fn advance_flushes(&mut self) {
        let mut ready = Vec::new();
        for (id, task) in &self.tasks.running {
            if let Some(stream) = task.awaits_position()
                && self.is_position_stored(&task.partition, stream)
            {
                ready.push(*id);
            }
            let Some((after, stream)) = task.awaits_flush() else {
                continue;
            };
            let owned = self.partitions.owned.get(&task.partition);
            let is_buffered = owned.is_some_and(|owned| self.rules.is_buffered(owned, stream));
            if !is_buffered || self.checkpoint.done > after {
                ready.push(*id);
            }
        }
        for id in ready {
            match self.tasks.running.get(&id).map(|task| &task.kind) {
                Some(Kind::Redrive(_)) => self.redrive_flushed(id),
                Some(Kind::Ask(_)) => self.ask_flushed(id),
                Some(Kind::Place(_)) => self.place_flushed(id),
                _ => self.park_flushed(id),
            }
        }
    }

    /// Returns true if everything that is done is committed.
    pub(super) fn is_all_committed(&self) -> bool {
        let mut owned = self.partitions.owned.values();
        self.checkpoint.is_idle() && owned.all(|owned| owned.window.to_commit().is_none())
    }
}

impl super::Rules {
    /// Returns true if effects of a stream, or of one that shares its lane, may be buffered: none
    /// of the lane counts as done before they are durable.
    pub(super) fn is_buffered(&self, owned: &Partition, stream: &StreamId) -> bool {
        if !self.is_projector {
            return false;
        }
        match self.shared_lane(stream) {
            None => owned.effects.has_buffered(stream),
            Some(lane) => {
                let mut buffered = owned.effects.buffered();
                buffered.any(|other| self.shared_lane(other).as_ref() == Some(&lane))
            }
        }
    }
    fn flush_error(&self, error: HandlerError) -> RunnerError {
        RunnerError::Flush {
            processor: self.name.clone(),
            class: error.class(),
            source: error.into_source(),
        }
    }
    pub(super) fn bus_error(&self, source: MessageBusError) -> RunnerError {
        RunnerError::Bus {
            processor: self.name.clone(),
            source,
        }
    }
}
