//! The pace of a scan: at most so many read units per second, on average.
use std::time::Duration;
use tokio::time::Instant;

/// A budget of read units per second that all segments of a scan share.
///
/// The cost of a page is known only after it was read. A page that was expensive is paid by the
/// pause after it.
#[derive(Debug)]
pub(super) struct Budget {
    per_second: f64,
    /// The instant at which everything that was read is paid.
    paid_at: Instant,
}

impl Budget {
    pub(super) fn new(per_second: f64, now: Instant) -> Self {
        Self {
            per_second,
            paid_at: now,
        }
    }

    /// Returns the instant from which the next page may be read.
    pub(super) const fn next_at(&self) -> Instant {
        self.paid_at
    }

    /// Notes the cost of a page.
    pub(super) fn spent(&mut self, units: f64, now: Instant) {
        let seconds = (units / self.per_second).clamp(0.0, 3600.0);
        let pause = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(3600));
        self.paid_at = self.paid_at.max(now) + pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_reads_no_more_than_its_budget_on_average() {
        let start = Instant::now();
        let mut budget = Budget::new(50.0, start);
        assert_eq!(budget.next_at(), start, "the first page is free to go");
        budget.spent(100.0, start);
        assert_eq!(budget.next_at(), start + Duration::from_secs(2));
        // Two segments have read at the same time.
        budget.spent(25.0, start);
        assert_eq!(budget.next_at(), start + Duration::from_millis(2500));
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let start = Instant::now();
        let mut budget = Budget::new(50.0, start);
        let later = start + Duration::from_secs(60);
        budget.spent(50.0, later);
        assert_eq!(budget.next_at(), later + Duration::from_secs(1));
    }

    #[test]
    fn a_cost_that_is_no_number_does_not_stop_the_scan_for_good() {
        let start = Instant::now();
        let mut budget = Budget::new(1.0, start);
        budget.spent(f64::INFINITY, start);
        assert!(budget.next_at() <= start + Duration::from_secs(3600));
    }
}
