//! Partitions that come and go, records that arrive, and pauses.
use super::{
    Effect, Machine, Member, Pausing, RevocationId, Room, Setback,
    lanes::LaneKey,
    partition::{Leaving, Partition, Phase, Told},
    record::Record,
    window::Window,
};
use crate::{
    StreamId,
    ports::{AssignedPartition, AssignmentEpoch, MessageBusError, NoPosition, PartitionId},
    runner::{ProcessorPolicy, RunnerError},
};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The pause before a change of pauses is tried again.
const PAUSE_AGAIN: Duration = Duration::from_millis(200);

/// The time for which nothing is received until a pause is confirmed. A consumer answers at once;
/// one that does not must not keep rebalances waiting.
const RECEIVE_AGAIN: Duration = Duration::from_millis(200);

impl Pausing {
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.try_at.into_iter().chain(self.receive_at).min()
    }
}

impl Room {
    /// Notes a record that was taken into a window.
    pub(super) fn took(&mut self, window: &Window, bytes: usize, policy: &ProcessorPolicy) {
        self.bytes += bytes;
        self.is_full |= window.len() >= policy.max_records
            || window.bytes() >= policy.max_bytes
            || self.bytes >= policy.max_total_bytes;
    }
}

impl Machine {
    /// Takes up partitions.
    pub(super) fn assigned(&mut self, assigned: Vec<AssignedPartition>, now: Instant) {
        // The consumer tells of each loss, so this only matters for one that does not.
        let known = assigned.iter().map(|a| a.partition.clone());
        let known: HashSet<_> = known
            .filter(|p| self.partitions.owned.contains_key(p))
            .collect();
        if !known.is_empty() {
            self.lost(&known, now);
        }
        if self.ending.is_some() {
            return;
        }
        for assigned in assigned {
            let partition = assigned.partition.clone();
            let mut starting = Partition::starting(assigned, self.rules.seed, Some(now));
            // It may still be paused: then it is told again which it shall be.
            if self.partitions.maybe_paused.remove(&partition) {
                starting.pause.told = Told::Unsure;
            }
            self.partitions.owned.insert(partition, starting);
        }
    }

    /// Begins partitions that wait for their start.
    pub(super) fn advance_starts(&mut self, now: Instant) {
        if !self.may_start() {
            return;
        }
        let mut loads = Vec::new();
        for (partition, owned) in &mut self.partitions.owned {
            if let Phase::Starting(starting) = &mut owned.phase
                && starting.try_at.is_some_and(|at| at <= now)
            {
                starting.try_at = None;
                if starting.is_begun {
                    loads.push((partition.clone(), owned.epoch));
                } else {
                    self.out.push(Effect::Begin(starting.assigned.clone()));
                }
            }
        }
        for (partition, epoch) in loads {
            self.load(&partition, epoch);
        }
    }

    pub(super) fn may_start(&self) -> bool {
        self.ending.is_none()
    }

    pub(super) fn begun(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        is_owned: bool,
    ) {
        let Some(owned) = self.partitions.get(partition, epoch) else {
            return;
        };
        if !is_owned {
            // The consumer will tell that the assignment has ended.
            self.partitions.remove(partition);
            return;
        }
        if let Phase::Starting(starting) = &mut owned.phase {
            starting.is_begun = true;
            self.load(partition, epoch);
        }
    }

    /// Handles the records of a partition, now that its start is durable and its rows are known.
    pub(super) fn serve(&mut self, partition: &PartitionId, epoch: AssignmentEpoch) {
        let Some(owned) = self.partitions.get(partition, epoch) else {
            return;
        };
        if let Phase::Starting(starting) = &mut owned.phase {
            let arrived = std::mem::take(&mut starting.arrived);
            owned.phase = Phase::Serving;
            for record in arrived {
                self.enqueue(record);
            }
        }
    }

    pub(super) fn not_begun(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        setback: Setback,
        now: Instant,
    ) {
        let name = self.rules.name.clone();
        let Some(owned) = self.partitions.get(partition, epoch) else {
            return;
        };
        let Phase::Starting(starting) = &mut owned.phase else {
            return;
        };
        match setback {
            Setback::Wait(error) => {
                let at = starting.patience.failed(now);
                starting.patience.note(&*error);
                starting.try_at = Some(at);
                tracing::warn!(processor = %name, %partition, wait = ?(at - now), error = crate::chain(&*error), "the partition could not be started yet");
            }
            Setback::Halt(error) => self.halt(error, now),
        }
    }

    pub(super) fn delivered(&mut self, record: Arc<Record>) {
        let Some(owned) = self.partitions.get(&record.partition, record.epoch) else {
            return;
        };
        if owned.is_leaving() || !owned.window.push(record.offset, record.bytes) {
            return;
        }
        self.room
            .took(&owned.window, record.bytes, &self.rules.policy);
        if let Phase::Starting(starting) = &mut owned.phase {
            starting.arrived.push(record);
        } else {
            self.enqueue(record);
        }
    }

    /// Puts a record into its lane. Foreign aggregate types are passed over without a look at the
    /// payload, and without keeping progress for them.
    fn enqueue(&mut self, record: Arc<Record>) {
        let stream = &record.event.header.stream;
        if self.ending.is_some() {
            return;
        }
        if !self.rules.subscribes_to(stream) {
            self.counts.skipped += 1;
            if let Some(owned) = self.partitions.get(&record.partition, record.epoch) {
                owned.window.done(record.offset);
            }
            return;
        }
        if !self.defer(&record) {
            let lane = self.lane(&record.event.header.stream);
            self.lanes.push(&lane, record);
        }
    }

    pub(super) fn lane(&self, stream: &StreamId) -> LaneKey {
        self.rules.lane(stream)
    }

    /// Partitions are to be given up: what runs of them is finished, the rest is dropped.
    pub(super) fn revoking(
        &mut self,
        id: RevocationId,
        partitions: Vec<PartitionId>,
        grace: Duration,
        now: Instant,
    ) {
        let mut leaving = HashSet::new();
        for partition in partitions {
            let Some(owned) = self.partitions.owned.get_mut(&partition) else {
                continue;
            };
            if matches!(owned.phase, Phase::Starting(_)) {
                // Nothing of it was handled.
                self.partitions.remove(&partition);
            } else {
                owned.phase = Phase::Leaving;
                leaving.insert(partition);
            }
        }
        self.lanes.drop_queued(&leaving);
        self.raise();
        self.attempts.finish(Some(&leaving), &mut self.out);
        // Time is left for the commit.
        let drain = (grace - grace / 4).min(self.rules.policy.drain);
        let leaving = Leaving {
            partitions: leaving,
            cancel_at: super::later(now, drain),
            release_at: super::later(now, grace),
        };
        self.partitions.leaving.insert(id, leaving);
    }

    /// Cancels what runs too long of partitions that leave, and releases those that are committed.
    pub(super) fn advance_revocations(&mut self, now: Instant) {
        let mut released = Vec::new();
        for (id, leaving) in &self.partitions.leaving {
            if leaving.cancel_at <= now {
                let partitions = Some(&leaving.partitions);
                self.attempts.cancel(partitions, now, &mut self.out);
            }
            let is_over = leaving.release_at <= now;
            if is_over || self.is_committed(&leaving.partitions) {
                released.push((*id, is_over));
            }
        }
        for (id, is_over) in released {
            let Some(leaving) = self.partitions.leaving.remove(&id) else {
                continue;
            };
            if is_over && !leaving.partitions.is_empty() {
                tracing::warn!(processor = %self.rules.name, partitions = ?leaving.partitions, "partitions are released before what was done of them is committed: it comes again");
                self.attempts
                    .cancel(Some(&leaving.partitions), now, &mut self.out);
            }
            self.forget(&leaving.partitions);
            self.out.push(Effect::Release(id));
        }
    }

    /// Returns true if nothing runs of these partitions, and what is done of them is committed.
    fn is_committed(&self, partitions: &HashSet<PartitionId>) -> bool {
        if self.attempts.any_of(partitions) || self.tasks.any_of(partitions) {
            return false;
        }
        let mut owned = partitions
            .iter()
            .filter_map(|p| self.partitions.owned.get(p));
        owned.all(|owned| owned.window.to_commit().is_none())
    }

    /// Returns true if partitions that leave wait for a checkpoint.
    pub(super) fn is_checkpoint_awaited(&self) -> bool {
        let mut leaving = self.partitions.leaving.values();
        leaving.any(|leaving| !self.attempts.any_of(&leaving.partitions))
            || self.ending.is_none() && self.is_at_ends() && !self.is_all_committed()
    }

    pub(super) fn wake_revocations_at(&self) -> impl Iterator<Item = Instant> {
        let leaving = self.partitions.leaving.values();
        let running = leaving.filter(|leaving| self.attempts.waits_for(&leaving.partitions));
        running.map(|leaving| leaving.cancel_at)
    }

    /// Partitions are gone already.
    pub(super) fn lost(&mut self, partitions: &HashSet<PartitionId>, now: Instant) {
        self.attempts.cancel(Some(partitions), now, &mut self.out);
        for leaving in self.partitions.leaving.values_mut() {
            leaving.partitions.retain(|p| !partitions.contains(p));
        }
        self.forget(partitions);
    }

    /// Forgets everything about partitions that are gone: others may work on them from now on.
    fn forget(&mut self, partitions: &HashSet<PartitionId>) {
        self.membership.lost(partitions);
        self.attempts.void(partitions);
        self.lanes.drop_queued(partitions);
        self.end_tasks(partitions);
        self.streams.forget(partitions);
        self.checkpoint.void(partitions);
        for partition in partitions {
            if let Some(mut owned) = self.partitions.remove(partition) {
                self.checkpoint.forget(owned.effects.take_buffered());
            }
        }
        self.forget_failed_flushes();
    }

    pub(super) fn no_position(
        &mut self,
        partition: PartitionId,
        why: NoPosition,
        has_start: bool,
        now: Instant,
    ) {
        let reason = match why {
            NoPosition::Missing if !has_start => return self.rejoin(partition, now),
            NoPosition::Missing => "nothing is committed".into(),
            NoPosition::OutOfRange { begin, end } => {
                format!("the partition holds {begin} to {end}")
            }
            NoPosition::Recreated => "the topic was deleted and created again".into(),
        };
        let name = self.rules.name.clone();
        let error = RunnerError::position_lost(name, &self.membership.group, partition, &reason);
        self.halt(error, now);
    }

    /// Pauses partitions whose window is full, and resumes those that are half empty.
    pub(super) fn advance_pauses(&mut self, now: Instant) {
        let policy = &self.rules.policy;
        let (records, bytes) = (policy.max_records, policy.max_bytes);
        let (total, most) = (self.partitions.bytes(), policy.max_total_bytes);
        self.room = Room {
            bytes: total,
            is_full: false,
        };
        let is_held =
            self.holding.since.is_some() || self.polling.is_paused || self.breaker_pauses(now);
        for owned in self.partitions.owned.values_mut() {
            let (len, size) = (owned.window.len(), owned.window.bytes());
            if len >= records || size >= bytes || total >= most {
                owned.pause.is_full = true;
            } else if len <= records / 2 && size <= bytes / 2 && total <= most / 2 {
                owned.pause.is_full = false;
            }
            owned.pause.is_wanted = owned.pause.is_full || is_held;
        }
        if self.membership.state != Member::In
            || (self.pausing.as_ref()).is_some_and(|p| p.try_at.is_none_or(|at| at > now))
        {
            return;
        }
        self.pausing = None;
        for is_paused in [true, false] {
            let changed = self.partitions.owned.iter().filter(|(_, owned)| {
                owned.pause.is_wanted == is_paused && !owned.pause.told.is(is_paused)
            });
            let partitions: Vec<_> = changed.map(|(p, owned)| (p.clone(), owned.epoch)).collect();
            if partitions.is_empty() {
                continue;
            }
            let named = partitions.iter().map(|(p, _)| p.clone()).collect();
            self.out.push(if is_paused {
                Effect::Pause(named)
            } else {
                Effect::Resume(named)
            });
            self.pausing = Some(Pausing {
                partitions,
                is_paused,
                try_at: None,
                receive_at: is_paused.then_some(now + RECEIVE_AGAIN),
            });
            return;
        }
    }

    pub(super) fn pause_changed(&mut self, result: Result<(), MessageBusError>, now: Instant) {
        let Some(pausing) = &mut self.pausing else {
            return;
        };
        match result {
            Ok(()) => {
                if let Some(Pausing {
                    partitions,
                    is_paused,
                    ..
                }) = self.pausing.take()
                {
                    for (partition, epoch) in partitions {
                        self.partitions.told(&partition, epoch, is_paused);
                    }
                }
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(processor = %self.rules.name, error = crate::chain(&error), "a partition could not be paused or resumed yet");
                pausing.try_at = Some(now + PAUSE_AGAIN);
                pausing.receive_at = None;
            }
            Err(error) => self.bus_refused(error, now),
        }
    }
}
