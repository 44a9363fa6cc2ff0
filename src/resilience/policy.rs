//! The limits of a retry.
use super::Backoff;
use std::time::Duration;

/// The limits within which a failing call or handler is repeated: a few times at once, then after
/// growing pauses, until its time is over.
///
/// A time ends a retry, and never a count, since a time is what a caller can wait for. The module
/// [`resilience`](crate::resilience) explains why. [`Retrying`](crate::resilience::Retrying)
/// applies the policy.
///
/// # Example
/// ```
/// use foldstream::{Backoff, RetryPolicy};
/// use std::time::Duration;
///
/// // One repeat at once, then pauses of up to 50 ms that grow to 1 s, for ten seconds.
/// let policy = RetryPolicy::default()
///     .with_immediate(1)
///     .with_backoff(Backoff::new(Duration::from_millis(50), Duration::from_secs(1)))
///     .with_max_elapsed(Duration::from_secs(10));
/// assert_eq!(policy.max_throttle, Duration::from_secs(3600));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The number of repeats that start without a pause. Default: 2. With zero the first repeat
    /// already waits. Immediate repeats cure a single lost packet or a closed connection. More of
    /// them only add load to a backend that is in trouble.
    pub immediate: u32,
    /// The pauses before the repeats that follow. Default: up to 100 ms, growing to 30 s. A pause
    /// is at least 1 ms, even if the backoff is zero, so that no policy becomes a busy loop.
    pub backoff: Backoff,
    /// The time for which a call may fail: no repeat starts later than this after the first
    /// failure. Default: 5 minutes. With zero a failure is not repeated, not even at once. The last
    /// pause is cut so that the last repeat starts when this time is over. A higher limit survives
    /// longer outages, and keeps the caller, or the stream of the failed event, waiting for as
    /// long.
    ///
    /// Waiting for a backend that throttles has a limit of its own,
    /// [`max_throttle`](Self::max_throttle), and does not count here.
    /// [`fail_fast`](Self::fail_fast) sets both to zero.
    pub max_elapsed: Duration,
    /// The total time that a call waits for a backend that throttles it. Default: 1 hour. With zero
    /// a throttled call is not repeated. A backend that asks for a longer pause than what is left
    /// ends the retry of a call at once, since an earlier repeat would only be throttled again. A
    /// [`Runner`](crate::runner::Runner) waits for what is left instead, and tries the event or the
    /// flush once more before it gives up.
    pub max_throttle: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            immediate: 2,
            backoff: Backoff::default(),
            max_elapsed: Duration::from_secs(5 * 60),
            max_throttle: Duration::from_secs(60 * 60),
        }
    }
}

impl RetryPolicy {
    /// Creates a policy without immediate repeats that retries for `limit`, and waits as long for a
    /// backend that throttles.
    #[must_use]
    pub const fn new(backoff: Backoff, limit: Duration) -> Self {
        Self {
            immediate: 0,
            backoff,
            max_elapsed: limit,
            max_throttle: limit,
        }
    }
    /// Creates a policy that never repeats, neither a failure nor a throttled call.
    #[must_use]
    pub const fn fail_fast() -> Self {
        Self::new(Backoff::new(Duration::ZERO, Duration::ZERO), Duration::ZERO)
    }
    /// Creates a policy that repeats until the caller stops it.
    #[must_use]
    pub const fn forever(backoff: Backoff) -> Self {
        Self::new(backoff, Duration::MAX)
    }
    /// Sets the number of repeats that start without a pause.
    #[must_use]
    pub const fn with_immediate(mut self, repeats: u32) -> Self {
        self.immediate = repeats;
        self
    }
    /// Sets the pauses between repeats.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
    /// Sets the time for which a call may fail, but not how long it waits for a backend that
    /// throttles it.
    #[must_use]
    pub const fn with_max_elapsed(mut self, limit: Duration) -> Self {
        self.max_elapsed = limit;
        self
    }
    /// Sets the total time that a call waits for a backend that throttles it.
    #[must_use]
    pub const fn with_max_throttle(mut self, limit: Duration) -> Self {
        self.max_throttle = limit;
        self
    }
}

/// The limits within which a command is decided again after another writer was faster.
///
/// The time limit decides, not a number of conflicts. The more writers there are, the more
/// conflicts a command meets, although at every conflict another command has succeeded.
///
/// # How often do commands conflict?
/// Commands of one process on one stream take turns and never conflict with each other. Between
/// processes:
///
/// | processes that write to one stream | conflicts per command | 99 % of commands are done within |
/// |---|---|---|
/// | 1 | 0 | 10 ms |
/// | 2 | 0.7 | 30 ms |
/// | 4 | 1.0 | 45 ms |
/// | 8 | 1.3 | 110 ms |
/// | 16 | 2.0 | 370 ms |
/// | 32 | 3.0 | 970 ms |
///
/// The test `contention::conflicts_by_number_of_writers_are_as_documented` measures these numbers.
/// It is a seeded simulation on a paused clock with this policy's defaults, in which each process
/// has a cache, pauses for up to 200 ms before each command, and every call of the store takes up
/// to 10 ms. No command was given up.
///
/// The first conflict is mostly that of a cached state that another process has overtaken; it costs
/// one read of what is new. With 32 processes that never pause, less than 1 % of the commands are
/// given up after 2 s. If many processes write to one stream, let them send their commands to a
/// single process.
///
/// # Example
/// ```
/// use foldstream::ConflictRetry;
/// use std::time::Duration;
///
/// let patient = ConflictRetry::default().with_max_elapsed(Duration::from_secs(10));
/// assert_eq!(patient.max_elapsed, Duration::from_secs(10));
/// assert_eq!(ConflictRetry::never().max_elapsed, Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConflictRetry {
    /// The time for which a command may meet conflicts: no decision starts later than this after
    /// the first conflict. Default: 2 s. With zero the first conflict is returned to the caller.
    pub max_elapsed: Duration,
    /// The pauses between decisions. Default: up to 5 ms, growing to 200 ms. A pause is at least 1
    /// ms.
    pub backoff: Backoff,
}

impl Default for ConflictRetry {
    fn default() -> Self {
        Self {
            max_elapsed: Duration::from_secs(2),
            backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(200)),
        }
    }
}

impl ConflictRetry {
    /// Creates a policy under which the first conflict is returned to the caller.
    #[must_use]
    pub fn never() -> Self {
        Self::default().with_max_elapsed(Duration::ZERO)
    }
    /// Sets the time for which a command may meet conflicts.
    #[must_use]
    pub const fn with_max_elapsed(mut self, limit: Duration) -> Self {
        self.max_elapsed = limit;
        self
    }
    /// Sets the pauses between decisions.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
    /// Returns the same limits as a [`RetryPolicy`], for the attempts of one command.
    pub(crate) const fn policy(self) -> RetryPolicy {
        RetryPolicy::new(self.backoff, self.max_elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::{FailureClass, Retrying};

    /// Returns the time that a retry of a call that fails at once takes, and the number of its
    /// attempts.
    fn exhaust(policy: RetryPolicy, class: FailureClass) -> (Duration, u32) {
        let (mut retrying, mut elapsed) = (Retrying::new(policy), Duration::ZERO);
        while let Some(pause) = retrying.next(class, elapsed) {
            elapsed += pause;
        }
        (elapsed, retrying.attempts())
    }

    #[test]
    fn only_the_time_limit_ends_a_retry() {
        let second = Duration::from_secs(1);
        let slow = Backoff::new(3600 * second, 3600 * second);
        let none = Backoff::new(Duration::ZERO, Duration::ZERO);
        for seed in 0..50 {
            let default = RetryPolicy::default();
            let seeded = |backoff: Backoff| backoff.with_seed(seed);
            for policy in [
                default.with_backoff(seeded(default.backoff)),
                default
                    .with_backoff(seeded(default.backoff))
                    .with_immediate(0),
                default
                    .with_backoff(seeded(default.backoff))
                    .with_immediate(100),
                default.with_backoff(seeded(slow)),
                default.with_backoff(none).with_max_elapsed(2 * second),
                RetryPolicy::new(seeded(default.backoff), 30 * second),
                ConflictRetry::default().policy(),
                ConflictRetry::default().with_backoff(none).policy(),
            ] {
                let failing = exhaust(policy, FailureClass::Transient);
                assert_eq!(failing.0, policy.max_elapsed, "{policy:?}");
                let retry_after = Duration::ZERO;
                let limited = policy.with_max_throttle(5 * second);
                let throttled = exhaust(limited, FailureClass::Throttled { retry_after });
                assert_eq!(throttled.0, limited.max_throttle, "{policy:?}");
            }
        }
    }

    #[test]
    fn a_zero_limit_means_no_repeats_of_what_it_is_for() {
        let throttled = FailureClass::Throttled {
            retry_after: Duration::ZERO,
        };
        let zero = RetryPolicy::default().with_max_elapsed(Duration::ZERO);
        assert_eq!(exhaust(zero, FailureClass::Transient).1, 1);
        // The limits are independent of each other: each applies only to its own kind of failure.
        assert_eq!(exhaust(zero, throttled).0, zero.max_throttle);
        let zero = RetryPolicy::default().with_max_throttle(Duration::ZERO);
        assert_eq!(exhaust(zero, throttled).1, 1);
        for policy in [RetryPolicy::fail_fast(), ConflictRetry::never().policy()] {
            assert_eq!(exhaust(policy, FailureClass::Transient).1, 1);
            assert_eq!(exhaust(policy, throttled).1, 1);
        }
    }

    #[test]
    fn a_policy_without_a_limit_never_gives_up() {
        let policy = RetryPolicy::forever(Backoff::default());
        let mut retrying = Retrying::new(policy);
        let year = Duration::from_secs(365 * 24 * 3600);
        for years in 0..1000 {
            assert!(
                retrying
                    .next(FailureClass::Transient, years * year)
                    .is_some()
            );
        }
    }
}
