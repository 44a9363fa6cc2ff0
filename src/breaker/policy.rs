//! The limits of a circuit breaker.
use std::time::Duration;

/// The calls whose outcomes decide about opening a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallWindow {
    /// The newest calls, at most this many: 1 to [`CallWindow::MAX_CALLS`].
    Count(u32),
    /// The calls that ended within this time, which must not be zero. The time is measured in
    /// tenths, so a call counts for at least nine tenths of it.
    Time(Duration),
}

impl CallWindow {
    /// The largest number of calls in a window, which bounds the memory of a breaker.
    pub const MAX_CALLS: u32 = 10_000;
}

/// The calls that count as slow, and the share of them that opens a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowCalls {
    /// The time after which a call is slow.
    pub after: Duration,
    /// The share of slow calls, in percent, from which the circuit opens: 1 to 100.
    pub rate: u8,
}

/// The limits within which a circuit breaker lets calls pass.
///
/// # Example
/// ```
/// use foldstream::breaker::{BreakerPolicy, CallWindow};
/// use std::time::Duration;
///
/// // Opens if 3 of the last 10 calls failed, or if 8 of them took longer than 2 s.
/// let policy = BreakerPolicy::default()
///     .with_window(CallWindow::Count(10))
///     .with_min_calls(10)
///     .with_failure_rate(30)
///     .with_slow_calls(Duration::from_secs(2), 80);
/// assert!(policy.validate().is_ok());
/// assert_eq!(policy.max_open, Duration::from_secs(60));
/// assert!(policy.with_failure_rate(0).validate().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerPolicy {
    /// The calls whose outcomes decide. Default: the newest 20.
    pub window: CallWindow,
    /// The share of failed calls in the window, in percent, from which the circuit opens. Default:
    /// 50. From 1 to 100.
    pub failure_rate: u8,
    /// The number of calls that must be in the window before a rate decides. Default: 5. At least
    /// 1, and at most the size of a window by count. A higher number keeps the circuit closed for
    /// longer when there is little traffic.
    pub min_calls: u32,
    /// The limits for slow calls. Default: `None`, slow calls count as any other. With limits, a
    /// probe that is slow opens the circuit again.
    pub slow_calls: Option<SlowCalls>,
    /// The time for which the circuit stays open after the first opening. Default: 1 s. It doubles
    /// with every probe that fails, and must not be zero.
    pub first_open: Duration,
    /// The longest time for which the circuit stays open between two probes. Default: 60 s. A
    /// longer time spares a service that is down, and lets callers wait longer after it has
    /// recovered.
    pub max_open: Duration,
    /// The longest pause that the service may ask for by throttling. Default: 1 hour. Zero ignores
    /// such requests. The pause delays the next probe, or, if a probe itself was throttled, the
    /// calls after it.
    pub max_throttle: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            window: CallWindow::Count(20),
            failure_rate: 50,
            min_calls: 5,
            slow_calls: None,
            first_open: Duration::from_secs(1),
            max_open: Duration::from_secs(60),
            max_throttle: Duration::from_secs(60 * 60),
        }
    }
}

impl BreakerPolicy {
    /// Sets the calls whose outcomes decide.
    #[must_use]
    pub const fn with_window(mut self, window: CallWindow) -> Self {
        self.window = window;
        self
    }
    /// Sets the share of failed calls, in percent, from which the circuit opens.
    #[must_use]
    pub const fn with_failure_rate(mut self, percent: u8) -> Self {
        self.failure_rate = percent;
        self
    }
    /// Sets the number of calls that must be in the window before a rate decides.
    #[must_use]
    pub const fn with_min_calls(mut self, calls: u32) -> Self {
        self.min_calls = calls;
        self
    }
    /// Lets calls that take longer than `after` count as slow. The circuit opens if their share
    /// reaches `rate` percent.
    #[must_use]
    pub const fn with_slow_calls(mut self, after: Duration, rate: u8) -> Self {
        self.slow_calls = Some(SlowCalls { after, rate });
        self
    }
    /// Sets the time for which the circuit stays open: `first` after the first opening, doubled
    /// with every probe that fails, at most `max`.
    #[must_use]
    pub const fn with_open_time(mut self, first: Duration, max: Duration) -> Self {
        self.first_open = first;
        self.max_open = max;
        self
    }
    /// Sets the longest pause that the service may ask for by throttling.
    #[must_use]
    pub const fn with_max_throttle(mut self, limit: Duration) -> Self {
        self.max_throttle = limit;
        self
    }

    /// Checks that the limits make sense together.
    ///
    /// # Errors
    /// [`InvalidBreaker`] if a rate is not 1 to 100 percent, if a window is empty or too large, if
    /// the rates could never decide because `min_calls` exceeds the window, or if the open time is
    /// zero or its maximum lies below its start.
    pub fn validate(&self) -> Result<(), InvalidBreaker> {
        let invalid = |field, reason: String| Err(InvalidBreaker { field, reason });
        let slow_rate = self.slow_calls.map_or(100, |slow| slow.rate);
        for (field, rate) in [
            ("failure_rate", self.failure_rate),
            ("slow_calls", slow_rate),
        ] {
            if !(1..=100).contains(&rate) {
                return invalid(field, format!("a rate is 1 to 100 percent, not {rate}"));
            }
        }
        match self.window {
            CallWindow::Count(calls) if !(1..=CallWindow::MAX_CALLS).contains(&calls) => {
                let max = CallWindow::MAX_CALLS;
                return invalid("window", format!("1 to {max} calls, not {calls}"));
            }
            CallWindow::Count(calls) if self.min_calls > calls => {
                let reason = format!("at most the {calls} calls of the window");
                return invalid("min_calls", reason);
            }
            CallWindow::Time(time) if time.is_zero() => {
                return invalid("window", "a time longer than zero".into());
            }
            CallWindow::Count(_) | CallWindow::Time(_) => {}
        }
        if self.min_calls == 0 {
            return invalid("min_calls", "at least 1 call".into());
        }
        if self.first_open.is_zero() || self.max_open < self.first_open {
            let reason = "longer than zero at first, and its maximum no shorter".into();
            return invalid("open_time", reason);
        }
        Ok(())
    }

    /// Returns the time for which the circuit stays open after the given opening in a row, from 1.
    pub(super) fn open_time(&self, opening: u32) -> Duration {
        let doublings = opening.saturating_sub(1).min(31);
        self.first_open
            .saturating_mul(1 << doublings)
            .min(self.max_open)
    }
}

/// The error returned if a circuit breaker cannot be created from its settings.
///
/// # Example
/// ```
/// use foldstream::breaker::{BreakerPolicy, CircuitBreaker};
///
/// let never = BreakerPolicy::default().with_min_calls(21);
/// let error = CircuitBreaker::new(never).unwrap_err();
/// assert_eq!(error.to_string(), "invalid breaker, min_calls: at most the 20 calls of the window");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid breaker, {field}: {reason}")]
#[non_exhaustive]
pub struct InvalidBreaker {
    /// The name of the setting.
    pub field: &'static str,
    /// The values that are allowed.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_as_documented_and_valid() {
        let policy = BreakerPolicy::default();
        assert_eq!(policy.validate(), Ok(()));
        assert_eq!(policy.window, CallWindow::Count(20));
        assert_eq!((policy.failure_rate, policy.min_calls), (50, 5));
        let seconds: Vec<_> = (1..9).map(|n| policy.open_time(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(policy.open_time(u32::MAX).as_secs(), 60);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let policy = BreakerPolicy::default();
        let second = Duration::from_secs(1);
        let count = |calls| policy.with_window(CallWindow::Count(calls));
        for (field, policy) in [
            ("failure_rate", policy.with_failure_rate(0)),
            ("failure_rate", policy.with_failure_rate(101)),
            ("slow_calls", policy.with_slow_calls(second, 0)),
            ("slow_calls", policy.with_slow_calls(second, 101)),
            ("window", count(0)),
            ("window", count(CallWindow::MAX_CALLS + 1)),
            (
                "window",
                policy.with_window(CallWindow::Time(Duration::ZERO)),
            ),
            ("min_calls", count(4)),
            ("min_calls", policy.with_min_calls(0)),
            ("open_time", policy.with_open_time(Duration::ZERO, second)),
            ("open_time", policy.with_open_time(2 * second, second)),
        ] {
            assert_eq!(policy.validate().unwrap_err().field, field, "{policy:?}");
        }
        let time = policy.with_window(CallWindow::Time(second));
        assert_eq!(time.with_min_calls(50_000).validate(), Ok(()));
    }
}
