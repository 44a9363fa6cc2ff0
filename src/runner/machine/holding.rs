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

impl Machine {
    pub(super) fn parked(&self) -> usize {
        let owned = self.partitions.owned.values();
        owned.map(|owned| owned.parking.parked.len()).sum()
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
            && self.parked() < limits.parked
            && self.newly_parked(now) < limits.parked_per_minute
            && self.letters() < limits.dead_letters
    }

    /// Returns true if another dead letter may be stored.
    pub(super) fn may_write_letter(&self) -> bool {
        self.holding.since.is_none() && self.letters() < self.rules.policy.limits.dead_letters
    }

    /// Begins to hold when an event could not be given up, and goes on below half of each limit.
    pub(super) fn advance_holding(&mut self, now: Instant) {
        if !self.lanes.has_held() {
            self.holding = Holding::default();
            return;
        }
        let since = *self.holding.since.get_or_insert_with(|| {
            tracing::error!(processor = %self.rules.name, "the processor holds: it has reached the limit of parked streams or dead letters");
            now
        });
        let try_at = *self.holding.try_at.get_or_insert(since + TRY_AGAIN);
        let limits = self.rules.policy.limits;
        let newly = self.newly_parked(now);
        let is_below_half = self.parked() <= limits.parked / 2
            && newly <= limits.parked_per_minute / 2
            && self.letters() <= limits.dead_letters / 2;
        if is_below_half {
            tracing::info!(processor = %self.rules.name, "the processor holds no longer");
            self.holding = Holding::default();
            self.lanes.resume_held();
        } else if try_at <= now {
            // The events may go well now; those that fail again are held again.
            self.holding.try_at = Some(now + TRY_AGAIN);
            self.lanes.resume_held();
        }
    }

    pub(super) fn holding_wake_at(&self) -> Option<Instant> {
        self.holding.try_at
    }
}
