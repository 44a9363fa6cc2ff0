//! Limits of what may be given up. A processor that reaches one holds: nothing more is parked or
//! stored, partitions are paused, and the events that fail stay where they are.
use super::Machine;
use std::time::Duration;
use tokio::time::Instant;

/// The time after which a held event is tried again, so that an outage that has ended is noticed.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// The window of the limit on newly parked streams.
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Holding {
    /// The time since which the processor holds.
    pub(super) since: Option<Instant>,
    /// When the held events are tried again.
    try_at: Option<Instant>,
}

/// Returns true if a processor that holds for this limit may go on. It never may if the limit is
/// zero: the event would be held again at once.
const fn is_below_half(count: usize, limit: usize) -> bool {
    count < limit && count <= limit / 2
}

impl Machine {
    pub(super) fn parked(&self) -> usize {
        let owned = self.partitions.owned.values();
        owned.map(|owned| owned.parking.parked.len()).sum()
    }
    /// Returns the number of streams that are parked, or are about to be.
    fn parked_soon(&self) -> usize {
        let tasks = self.tasks.running.values();
        self.parked() + tasks.filter(|task| task.is_parking()).count()
    }
    pub(super) fn letters(&self) -> usize {
        let owned = self.partitions.owned.values();
        owned.map(|owned| owned.parking.letters.len()).sum()
    }
    fn newly_parked(&mut self, now: Instant) -> usize {
        let newly = &mut self.polling.newly_parked;
        while newly.pop_front_if(|at| *at + MINUTE <= now).is_some() {}
        newly.len()
    }

    /// Returns true if another stream may be parked.
    pub(super) fn may_park(&mut self, now: Instant) -> bool {
        let limits = self.rules.policy.limits;
        self.holding.since.is_none()
            && self.parked_soon() < limits.parked
            && self.newly_parked(now) < limits.parked_per_minute
            && self.letters() < limits.dead_letters
    }

    /// Returns true if another dead letter may be stored.
    pub(super) fn may_write_letter(&self) -> bool {
        self.holding.since.is_none() && self.letters() < self.rules.policy.limits.dead_letters
    }

    /// Begins to hold when an event could not be given up, and goes on below half of each limit, or
    /// when the held events go well.
    pub(super) fn advance_holding(&mut self, now: Instant) {
        let has_held = self.lanes.has_held() || self.has_held_unreadable() || self.has_held_lane();
        let Some(mut try_at) = self.holding.try_at else {
            if has_held {
                tracing::error!(processor = %self.rules.name, "the processor holds: it has reached the limit of parked streams or dead letters");
                self.holding.since = Some(now);
                self.holding.try_at = Some(now + TRY_AGAIN);
            }
            return;
        };
        let limits = self.rules.policy.limits;
        let newly = self.newly_parked(now);
        let is_below_half = is_below_half(self.parked(), limits.parked)
            && is_below_half(newly, limits.parked_per_minute)
            && is_below_half(self.letters(), limits.dead_letters);
        // A trial has succeeded if nothing is held or tried again when the next one is due.
        let has_succeeded = try_at <= now && !has_held && self.lanes.waiting() == 0;
        if is_below_half || has_succeeded {
            tracing::info!(processor = %self.rules.name, "the processor holds no longer");
            self.holding = Holding::default();
            self.resume_held();
        } else if try_at <= now {
            // The events may go well now; those that fail again are held again.
            try_at = now + TRY_AGAIN;
            self.holding.try_at = Some(try_at);
            self.resume_held();
        }
    }

    fn resume_held(&mut self) {
        self.lanes.resume_held();
        for owned in self.partitions.owned.values_mut() {
            if let Some(first) = owned.unreadable.front_mut() {
                first.is_held = false;
            }
            for lane in owned.parking.shared.values_mut() {
                lane.is_held = false;
            }
        }
    }

    fn has_held_unreadable(&self) -> bool {
        let mut owned = self.partitions.owned.values();
        owned.any(|owned| owned.unreadable.front().is_some_and(|first| first.is_held))
    }

    fn has_held_lane(&self) -> bool {
        let owned = self.partitions.owned.values();
        let mut lanes = owned.flat_map(|owned| owned.parking.shared.values());
        lanes.any(|lane| lane.is_held)
    }

    pub(super) fn holding_wake_at(&self) -> Option<Instant> {
        self.holding.try_at
    }
}
