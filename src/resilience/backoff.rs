//! Exponential backoff with full jitter.
use std::time::Duration;

/// The pauses between attempts: each is a random share of a bound that grows exponentially ("full
/// jitter").
///
/// The jitter is full because clients that failed together and waited for equal times would fail
/// together again.
///
/// # Example
/// ```
/// use foldstream::Backoff;
/// use std::time::Duration;
///
/// let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
/// assert_eq!(backoff.bound(1), Duration::from_millis(100));
/// assert_eq!(backoff.bound(2), Duration::from_millis(200));
/// assert_eq!(backoff.bound(9), Duration::from_secs(1));
/// assert!(backoff.delay(2) <= backoff.bound(2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backoff {
    /// The upper bound of the first delay. Default: 100 ms. Zero makes all delays zero.
    pub first: Duration,
    /// The upper bound of every delay. Default: 30 s. Zero makes all delays zero.
    pub max: Duration,
    /// The seed that determines the jitter, for tests and simulations. Default: `None`, which draws
    /// each delay independently, so that processes do not share their delays.
    pub seed: Option<u64>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            max: Duration::from_secs(30),
            seed: None,
        }
    }
}

impl Backoff {
    /// Creates a backoff that starts at `first` and is capped at `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            seed: None,
        }
    }

    /// Sets the seed that determines the jitter.
    #[must_use]
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Returns the upper bound of the delay before the given delayed attempt, from 1: `first`
    /// doubled `attempt - 1` times, at most `max`.
    #[must_use]
    pub fn bound(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.max)
    }

    /// Returns the delay before the given delayed attempt, from 1.
    #[must_use]
    pub fn delay(&self, attempt: u32) -> Duration {
        let share = match self.seed {
            // Each attempt has its own generator: the delay depends on seed and attempt alone, not
            // on earlier calls.
            Some(seed) => {
                let mixed = seed ^ u64::from(attempt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                fastrand::Rng::with_seed(mixed).f64()
            }
            None => fastrand::f64(),
        };
        self.bound(attempt).mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn bounds_double_up_to_the_maximum() {
        let backoff = Backoff::new(100 * MS, 1000 * MS);
        let bounds: Vec<_> = (1..=6).map(|n| backoff.bound(n).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.bound(u32::MAX), 1000 * MS);
    }

    #[test]
    fn a_seed_repeats_the_jitter_and_no_seed_does_not() {
        let delays = |b: Backoff| (1..=20).map(|n| b.delay(n)).collect::<Vec<_>>();
        let backoff = Backoff::default();
        assert_eq!(delays(backoff.with_seed(7)), delays(backoff.with_seed(7)));
        assert_ne!(delays(backoff.with_seed(7)), delays(backoff.with_seed(8)));
        assert_ne!(delays(backoff), delays(backoff));
        assert!((1..=20).all(|n| backoff.delay(n) <= backoff.bound(n)));
    }
}
