//! The outcomes of the newest calls.
use super::policy::{BreakerPolicy, CallWindow};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// The number of parts in which a window by time is counted.
const PARTS: u32 = 10;

/// The numbers of calls, of failed ones and of slow ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    calls: u32,
    failed: u32,
    slow: u32,
}

impl Counts {
    fn add(&mut self, failed: bool, slow: bool) {
        self.calls = self.calls.saturating_add(1);
        self.failed = self.failed.saturating_add(failed.into());
        self.slow = self.slow.saturating_add(slow.into());
    }
    fn remove(&mut self, failed: bool, slow: bool) {
        self.calls = self.calls.saturating_sub(1);
        self.failed = self.failed.saturating_sub(failed.into());
        self.slow = self.slow.saturating_sub(slow.into());
    }
    const fn join(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            failed: self.failed.saturating_add(other.failed),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

/// The outcomes of the calls in a window, in memory that does not grow with the traffic.
#[derive(Clone, Debug)]
pub(super) enum Window {
    Count {
        size: usize,
        calls: VecDeque<(bool, bool)>,
        counts: Counts,
    },
    Time {
        part: Duration,
        /// The parts of the window that hold calls, oldest first, by the time when each began.
        parts: VecDeque<(Instant, Counts)>,
    },
}

impl Window {
    pub(super) fn new(window: CallWindow) -> Self {
        match window {
            CallWindow::Count(size) => Self::Count {
                size: usize::try_from(size).unwrap_or(usize::MAX),
                calls: VecDeque::new(),
                counts: Counts::default(),
            },
            CallWindow::Time(time) => Self::Time {
                part: (time / PARTS).max(Duration::from_nanos(1)),
                parts: VecDeque::new(),
            },
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Count { calls, counts, .. } => {
                calls.clear();
                *counts = Counts::default();
            }
            Self::Time { parts, .. } => parts.clear(),
        }
    }

    pub(super) fn record(&mut self, failed: bool, slow: bool, now: Instant) {
        match self {
            Self::Count {
                size,
                calls,
                counts,
            } => {
                calls.push_back((failed, slow));
                counts.add(failed, slow);
                while calls.len() > *size
                    && let Some((failed, slow)) = calls.pop_front()
                {
                    counts.remove(failed, slow);
                }
            }
            Self::Time { part, parts } => {
                match parts.back_mut() {
                    Some((since, counts)) if now.saturating_duration_since(*since) < *part => {
                        counts.add(failed, slow);
                    }
                    _ => {
                        let mut counts = Counts::default();
                        counts.add(failed, slow);
                        parts.push_back((now, counts));
                    }
                }
                let window = *part * PARTS;
                while let Some((since, _)) = parts.front()
                    && now.saturating_duration_since(*since) >= window
                {
                    parts.pop_front();
                }
            }
        }
    }

    /// Returns true if enough calls are in the window and too many of them failed or were slow.
    pub(super) fn trips(&self, policy: &BreakerPolicy) -> bool {
        let counts = self.counts();
        if counts.calls < policy.min_calls {
            return false;
        }
        let reaches = |part: u32, rate: u8| {
            u64::from(part) * 100 >= u64::from(counts.calls) * u64::from(rate)
        };
        reaches(counts.failed, policy.failure_rate)
            || policy
                .slow_calls
                .is_some_and(|limit| reaches(counts.slow, limit.rate))
    }

    fn counts(&self) -> Counts {
        match self {
            Self::Count { counts, .. } => *counts,
            Self::Time { parts, .. } => parts
                .iter()
                .fold(Counts::default(), |sum, (_, counts)| sum.join(*counts)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_window_by_count_forgets_the_oldest_call() {
        let now = Instant::now();
        let mut window = Window::new(CallWindow::Count(3));
        for failed in [true, true, false, false] {
            window.record(failed, !failed, now);
        }
        let expected = Counts {
            calls: 3,
            failed: 1,
            slow: 2,
        };
        assert_eq!(window.counts(), expected);
        window.clear();
        assert_eq!(window.counts(), Counts::default());
    }

    #[test]
    fn a_window_by_time_counts_a_call_for_at_least_nine_tenths_of_it_and_never_longer() {
        let base = Instant::now();
        for first in 0..100 {
            let mut window = Window::new(CallWindow::Time(1000 * MS));
            window.record(false, false, base);
            // The failed call may join the part of the call before it.
            window.record(true, false, base + first * MS);
            window.record(false, false, base + (first + 899) * MS);
            assert_eq!(window.counts().failed, 1, "{first}");
            window.record(false, false, base + (first + 1000) * MS);
            assert_eq!(window.counts().failed, 0, "{first}");
        }
    }

    #[test]
    fn a_window_by_time_needs_the_same_memory_for_any_traffic() {
        let base = Instant::now();
        let mut window = Window::new(CallWindow::Time(1000 * MS));
        for n in 0..50_000 {
            window.record(n % 2 == 0, false, base + n * MS);
        }
        let Window::Time { parts, .. } = &window else {
            panic!("{window:?}")
        };
        assert!(parts.len() <= 11, "{}", parts.len());
        let counts = window.counts();
        assert!((900..=1000).contains(&counts.calls), "{counts:?}");
        assert_eq!(counts.failed * 2, counts.calls);
    }

    #[test]
    fn a_rate_decides_only_after_enough_calls_and_from_exactly_its_share() {
        let now = Instant::now();
        let policy = BreakerPolicy::default().with_slow_calls(MS, 80);
        let after = |outcomes: &[(bool, bool)]| {
            let mut window = Window::new(policy.window);
            for (failed, slow) in outcomes {
                window.record(*failed, *slow, now);
            }
            window.trips(&policy)
        };
        let (ok, failed, slow) = ((false, false), (true, false), (false, true));
        assert!(!after(&[failed; 4]));
        assert!(after(&[failed; 5]));
        assert!(after(&[failed, failed, failed, ok, ok]));
        assert!(after(&[failed, failed, failed, ok, ok, ok]));
        assert!(!after(&[failed, failed, ok, ok, ok]));
        assert!(after(&[slow, slow, slow, slow, ok]));
        assert!(!after(&[slow, slow, slow, failed, ok]));
    }
}
