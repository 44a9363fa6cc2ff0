//! How often a failing call is repeated.
use super::Backoff;
use std::time::Duration;

/// How a failing call or handler is repeated: some times at once, then after growing delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Repeats at once. Default 2.
    pub immediate: u32,
    /// Repeats after a delay. Default 5; 0 with `immediate` 0 is fail fast.
    pub delayed: u32,
    /// The delays.
    pub backoff: Backoff,
    /// No repeat starts later than this after the first attempt. Default 5 min.
    pub max_elapsed: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            immediate: 2,
            delayed: 5,
            backoff: Backoff::default(),
            max_elapsed: Duration::from_secs(300),
        }
    }
}

impl RetryPolicy {
    /// No repeats.
    #[must_use]
    pub fn fail_fast() -> Self {
        Self::default().with_attempts(0, 0)
    }
    /// Sets the repeats: at once, and after a delay.
    #[must_use]
    pub const fn with_attempts(mut self, immediate: u32, delayed: u32) -> Self {
        (self.immediate, self.delayed) = (immediate, delayed);
        self
    }
    /// Sets the delays.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
    /// Sets the total time.
    #[must_use]
    pub const fn with_max_elapsed(mut self, limit: Duration) -> Self {
        self.max_elapsed = limit;
        self
    }
    /// The wait before the next attempt, after `failed` attempts (from 1) that took `elapsed` in all; `None`: give up.
    #[must_use]
    pub fn next_delay(&self, failed: u32, elapsed: Duration) -> Option<Duration> {
        let wait = if failed <= self.immediate {
            Duration::ZERO
        } else if failed - self.immediate <= self.delayed {
            self.backoff.delay(failed - self.immediate)
        } else {
            return None;
        };
        (elapsed.saturating_add(wait) <= self.max_elapsed).then_some(wait)
    }
}

/// How often a command is decided again after somebody else wrote first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConflictRetry {
    /// Decisions in all. Default 8; 0 counts as 1.
    pub attempts: u32,
    /// Pause between them. Default: up to 5 ms, growing to 200 ms.
    pub backoff: Backoff,
}

impl Default for ConflictRetry {
    fn default() -> Self {
        Self {
            attempts: 8,
            backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(200)),
        }
    }
}

impl ConflictRetry {
    /// The first conflict is the caller's.
    #[must_use]
    pub fn never() -> Self {
        Self::attempts(1)
    }
    /// So many decisions in all.
    #[must_use]
    pub fn attempts(attempts: u32) -> Self {
        Self {
            attempts,
            ..Self::default()
        }
    }
    /// Sets the pauses.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_come_at_once_then_delayed_then_end() {
        let policy = RetryPolicy::default().with_attempts(1, 2);
        let next = |failed| policy.next_delay(failed, Duration::ZERO);
        assert_eq!(next(1), Some(Duration::ZERO));
        assert!(next(2).is_some() && next(3).is_some());
        assert_eq!(next(4), None);
        assert_eq!(RetryPolicy::fail_fast().next_delay(1, Duration::ZERO), None);
    }

    #[test]
    fn no_repeat_starts_after_the_total_time() {
        let policy = RetryPolicy::default().with_max_elapsed(Duration::from_secs(1));
        assert_eq!(policy.next_delay(1, Duration::from_secs(2)), None);
    }
}
