//! The length of the next run.
//!
//! Within a run nothing is known about the records that are durable already, so the watermark can
//! move only between runs. A run is therefore as long as what the bus takes within about a second,
//! and at most [`Pace::MAX`] messages. The first run to a topic is one message, and ten times as
//! many each time while that is fast.
use std::time::Duration;

/// The number of messages that the next run to a topic may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    limit: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { limit: 1 }
    }
}

impl Pace {
    /// The most messages of a run.
    pub(super) const MAX: usize = 1000;
    /// The time that a run should take at most.
    const SLOW: Duration = Duration::from_secs(1);
    /// A full run that takes no longer than this says that a much longer one may follow.
    const FAST: Duration = Duration::from_millis(100);

    pub(super) const fn limit(self) -> usize {
        self.limit
    }
    /// Takes note of a run of this number of durable messages.
    #[must_use]
    pub(super) fn after(self, messages: usize, took: Duration) -> Self {
        let limit = if took > Self::SLOW {
            let per_second = messages as u128 * Self::SLOW.as_millis() / took.as_millis();
            usize::try_from(per_second).unwrap_or(Self::MAX)
        } else if messages.saturating_mul(2) < self.limit {
            // A short run says nothing about a long one.
            self.limit
        } else if took <= Self::FAST {
            self.limit.saturating_mul(10)
        } else if took <= Self::SLOW / 2 {
            self.limit.saturating_mul(2)
        } else {
            self.limit
        };
        Self {
            limit: limit.clamp(1, Self::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends full runs that take this time per message and per run.
    fn limits(per_message: Duration, per_run: Duration) -> Vec<usize> {
        let mut pace = Pace::default();
        let mut limits = Vec::new();
        for _ in 0..8 {
            limits.push(pace.limit());
            let messages = u32::try_from(pace.limit()).unwrap();
            pace = pace.after(pace.limit(), per_message * messages + per_run);
        }
        limits
    }

    #[test]
    fn runs_grow_to_a_thousand_where_the_bus_is_fast() {
        let ms = Duration::from_millis;
        let fast = limits(Duration::ZERO, ms(5));
        assert_eq!(fast, [1, 10, 100, 1000, 1000, 1000, 1000, 1000]);
    }

    #[test]
    fn runs_take_about_a_second_where_the_bus_is_slow() {
        for per_message in [3, 20, 100, 700, 3000].map(Duration::from_millis) {
            let limit = *limits(per_message, Duration::ZERO).last().unwrap();
            let run = per_message * u32::try_from(limit).unwrap();
            assert!(
                run <= Duration::from_secs(1) || limit == 1,
                "{per_message:?}"
            );
            assert!(run > Duration::from_millis(250), "{per_message:?}: {limit}");
        }
    }

    #[test]
    fn a_short_run_changes_nothing() {
        let pace = Pace { limit: 100 };
        assert_eq!(pace.after(1, Duration::ZERO), pace);
    }
}
