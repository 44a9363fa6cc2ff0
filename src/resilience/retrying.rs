//! The decision that follows a failed attempt.
use super::RetryPolicy;
use crate::ports::{ControlStoreError, EventStoreError, MessageBusError, SnapshotStoreError};
use std::time::Duration;

/// The shortest pause before a repeat that is not immediate.
const SHORTEST: Duration = Duration::from_millis(1);

/// The class of a failure, by which a retry decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureClass {
    /// A failure that may pass without a change.
    Transient,
    /// A refusal by a backend that receives too many requests. The backend is healthy, so the wait
    /// does not count towards [`RetryPolicy::max_elapsed`](crate::RetryPolicy::max_elapsed), but
    /// towards its own limit.
    Throttled {
        /// The shortest pause that the backend asked for; zero if it named none.
        retry_after: Duration,
    },
    /// A failure that no repeat cures.
    Permanent,
}

impl From<bool> for FailureClass {
    /// Converts the answer to "is it transient?", so that predicates serve as classifications.
    fn from(is_transient: bool) -> Self {
        if is_transient {
            Self::Transient
        } else {
            Self::Permanent
        }
    }
}

/// An error that can be classified for a retry.
///
/// # Example
/// ```
/// use foldstream::resilience::{Failure, FailureClass};
///
/// #[derive(Debug)]
/// enum MailError { Busy, NoSuchAddress }
///
/// impl Failure for MailError {
///     fn failure_class(&self) -> FailureClass {
///         match self {
///             Self::Busy => FailureClass::Transient,
///             Self::NoSuchAddress => FailureClass::Permanent,
///         }
///     }
/// }
/// assert_eq!(MailError::Busy.failure_class(), FailureClass::Transient);
/// assert_eq!(MailError::NoSuchAddress.failure_class(), FailureClass::Permanent);
/// ```
pub trait Failure {
    /// Returns the class of the failure.
    fn failure_class(&self) -> FailureClass;
}

/// Returns the class of an error of a port.
fn port(is_transient: bool, throttled: Option<Option<Duration>>) -> FailureClass {
    match throttled {
        Some(asked) => FailureClass::Throttled {
            retry_after: asked.unwrap_or_default(),
        },
        None => is_transient.into(),
    }
}
impl Failure for EventStoreError {
    fn failure_class(&self) -> FailureClass {
        let throttled = match self {
            Self::Throttled { retry_after, .. } => Some(*retry_after),
            _ => None,
        };
        port(self.is_transient(), throttled)
    }
}
impl Failure for ControlStoreError {
    fn failure_class(&self) -> FailureClass {
        let throttled = match self {
            Self::Throttled { retry_after, .. } => Some(*retry_after),
            _ => None,
        };
        port(self.is_transient(), throttled)
    }
}
impl Failure for SnapshotStoreError {
    fn failure_class(&self) -> FailureClass {
        let throttled = match self {
            Self::Throttled { retry_after, .. } => Some(*retry_after),
            _ => None,
        };
        port(self.is_transient(), throttled)
    }
}
impl Failure for MessageBusError {
    fn failure_class(&self) -> FailureClass {
        self.is_transient().into()
    }
}

/// The state of one retry: the failures so far, and what follows from them under a [`RetryPolicy`].
///
/// It neither sleeps nor reads a clock. [`Retryable`](super::Retryable) and
/// [`Attempts`](super::Attempts) do both for it.
///
/// # Example
/// ```
/// use foldstream::{RetryPolicy, resilience::{FailureClass, Retrying}};
/// use std::time::Duration;
///
/// let mut retrying = Retrying::new(RetryPolicy::default().with_immediate(1));
/// let second = Duration::from_secs(1);
/// // The first failure: repeat at once.
/// assert_eq!(retrying.next(FailureClass::Transient, Duration::ZERO), Some(Duration::ZERO));
/// // The backend throttles, a second later: wait as told.
/// let throttled = FailureClass::Throttled { retry_after: 7 * second };
/// assert!(retrying.next(throttled, second) >= Some(7 * second));
/// // A failure that no repeat cures: give up.
/// assert_eq!(retrying.next(FailureClass::Permanent, 9 * second), None);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Retrying {
    policy: RetryPolicy,
    /// The number of transient failures.
    failed: u32,
    /// The number of throttled attempts, and the pauses granted for them.
    throttles: u32,
    throttled: Duration,
}

impl Retrying {
    /// Creates the state of a retry that has not failed yet.
    #[must_use]
    pub const fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            failed: 0,
            throttles: 0,
            throttled: Duration::ZERO,
        }
    }

    /// Returns the pause before the next attempt, or `None` if there must be none.
    ///
    /// `elapsed` is the time from the first failure to this one, on the clock by which the caller
    /// sleeps; it is zero at the first failure. A throttled attempt is not counted, and the pauses
    /// granted for it are subtracted from `elapsed`.
    #[must_use]
    pub fn next(&mut self, class: FailureClass, elapsed: Duration) -> Option<Duration> {
        match class {
            FailureClass::Transient => {
                self.failed = self.failed.saturating_add(1);
                self.after_failure(elapsed)
            }
            FailureClass::Throttled { retry_after } => {
                self.throttles = self.throttles.saturating_add(1);
                self.after_throttling(retry_after)
            }
            FailureClass::Permanent => {
                self.failed = self.failed.saturating_add(1);
                None
            }
        }
    }

    /// Returns the number of attempts that have failed or were throttled.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.failed.saturating_add(self.throttles)
    }

    /// Returns the class with a requested pause that is no longer than what is left of
    /// [`RetryPolicy::max_throttle`]: for callers that wait for as long as they may, and only then
    /// give up.
    pub(crate) fn cut_to_limit(&self, class: FailureClass) -> FailureClass {
        match class {
            FailureClass::Throttled { retry_after } => FailureClass::Throttled {
                retry_after: retry_after.min(self.throttle_left()),
            },
            other => other,
        }
    }

    const fn throttle_left(&self) -> Duration {
        self.policy.max_throttle.saturating_sub(self.throttled)
    }

    fn after_failure(&self, elapsed: Duration) -> Option<Duration> {
        let elapsed = elapsed.saturating_sub(self.throttled);
        let left = self.policy.max_elapsed.saturating_sub(elapsed);
        if left.is_zero() {
            return None;
        }
        let delayed = self.failed.saturating_sub(self.policy.immediate);
        if delayed == 0 {
            return Some(Duration::ZERO);
        }
        let pause = self.policy.backoff.delay(delayed).max(SHORTEST);
        Some(pause.min(left))
    }

    fn after_throttling(&mut self, retry_after: Duration) -> Option<Duration> {
        let left = self.throttle_left();
        if left.is_zero() || retry_after > left {
            return None;
        }
        // At least the requested pause, and never so short that the retry becomes a busy loop.
        let pause = self.policy.backoff.delay(self.throttles).max(SHORTEST);
        let pause = pause.max(retry_after).min(left);
        self.throttled = self.throttled.saturating_add(pause);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backoff, ports::RefusedKind};

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn throttled(retry_after: Duration) -> FailureClass {
        FailureClass::Throttled { retry_after }
    }
    fn policy() -> RetryPolicy {
        RetryPolicy::new(Backoff::new(100 * MS, SECOND), 10 * SECOND)
            .with_immediate(1)
            .with_max_throttle(60 * SECOND)
    }

    #[test]
    fn immediate_repeats_come_first_then_growing_pauses() {
        let mut retrying = Retrying::new(policy());
        let mut next = || retrying.next(FailureClass::Transient, Duration::ZERO);
        assert_eq!(next(), Some(Duration::ZERO));
        for bound in [100, 200, 400, 800, 1000, 1000] {
            let pause = next().unwrap();
            assert!((MS..=bound * MS).contains(&pause), "{pause:?} of {bound}");
        }
    }

    #[test]
    fn the_last_pause_is_cut_and_after_it_there_is_none() {
        let mut retrying = Retrying::new(policy().with_immediate(0));
        let late = 10 * SECOND - MS;
        assert_eq!(retrying.next(FailureClass::Transient, late), Some(MS));
        assert_eq!(retrying.next(FailureClass::Transient, 10 * SECOND), None);
        // Not even an immediate one.
        let mut retrying = Retrying::new(policy());
        assert_eq!(retrying.next(FailureClass::Transient, 10 * SECOND), None);
    }

    #[test]
    fn a_throttled_attempt_waits_as_told_and_burns_no_attempt() {
        let mut retrying = Retrying::new(policy());
        let mut elapsed = Duration::ZERO;
        for _ in 0..7 {
            let pause = retrying.next(throttled(8 * SECOND), elapsed).unwrap();
            assert_eq!(pause, 8 * SECOND);
            elapsed += pause;
        }
        // 56 s have passed, but none of them counts: the immediate repeat and all ten seconds are
        // left.
        let mut fails = |elapsed| retrying.next(FailureClass::Transient, elapsed);
        assert_eq!(fails(elapsed), Some(Duration::ZERO));
        assert!(fails(elapsed + 9 * SECOND).is_some());
        assert_eq!(fails(elapsed + 10 * SECOND), None);
        assert_eq!(retrying.attempts(), 10);
    }

    #[test]
    fn throttling_is_bounded_by_its_own_limit() {
        let mut retrying = Retrying::new(policy());
        let mut next = |asked| retrying.next(throttled(asked), Duration::ZERO);
        assert_eq!(next(59 * SECOND), Some(59 * SECOND));
        // A repeat that is earlier than requested would only be throttled again.
        assert_eq!(next(2 * SECOND), None);
        assert_eq!(next(SECOND), Some(SECOND));
        assert_eq!(next(Duration::ZERO), None);
        // A pause far beyond the limit is not waited for in part.
        assert_eq!(
            Retrying::new(policy()).next(throttled(61 * SECOND), Duration::ZERO),
            None
        );
    }

    #[test]
    fn throttling_without_a_pause_backs_off() {
        let mut retrying = Retrying::new(policy());
        for bound in [100, 200, 400, 800, 1000] {
            let pause = retrying.next(throttled(Duration::ZERO), Duration::ZERO);
            assert!((MS..=bound * MS).contains(&pause.unwrap()));
        }
    }

    #[test]
    fn a_permanent_failure_ends_a_retry_and_counts_as_an_attempt() {
        let mut retrying = Retrying::new(policy());
        assert_eq!(retrying.next(FailureClass::Permanent, Duration::ZERO), None);
        assert_eq!(retrying.attempts(), 1);
    }

    #[test]
    fn a_seed_fixes_every_pause() {
        let classes = [FailureClass::Transient, throttled(Duration::ZERO)];
        let pauses = |seed: Option<u64>| {
            let mut policy = policy();
            policy.backoff.seed = seed;
            let mut retrying = Retrying::new(policy);
            let next = |n: usize| retrying.next(classes[n % 2], Duration::ZERO);
            (0..20).map(next).collect::<Vec<_>>()
        };
        assert_eq!(pauses(Some(7)), pauses(Some(7)));
        assert_ne!(pauses(Some(7)), pauses(Some(8)));
        assert_ne!(pauses(None), pauses(None));
    }

    /// Whatever fails, in any order: no pause exceeds a limit, and every pause that a backend asked
    /// for is kept.
    #[test]
    fn no_pause_breaks_a_limit() {
        for seed in 0..2000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut millis = |most: u64| Duration::from_millis(rng.u64(0..most));
            let policy = RetryPolicy::new(Backoff::new(millis(2000), millis(5000)), millis(20_000))
                .with_max_throttle(millis(60_000))
                .with_immediate(seed as u32 % 4);
            let mut retrying = Retrying::new(policy);
            let (mut elapsed, mut waited, mut told) =
                (Duration::ZERO, Duration::ZERO, Duration::ZERO);
            for _ in 0..200 {
                let asked = millis(3000);
                let class = if asked.as_millis() % 3 == 0 {
                    throttled(asked)
                } else {
                    FailureClass::Transient
                };
                let counted = elapsed - told;
                match (class, retrying.next(class, elapsed)) {
                    (FailureClass::Transient, Some(pause)) => {
                        assert!(counted + pause <= policy.max_elapsed, "seed {seed}");
                        waited += pause;
                        elapsed += pause;
                    }
                    (_, Some(pause)) => {
                        assert!(pause >= asked, "seed {seed}");
                        told += pause;
                        elapsed += pause;
                    }
                    (FailureClass::Transient, None) => {
                        assert!(counted >= policy.max_elapsed, "seed {seed}");
                    }
                    (_, None) => assert!(told + asked >= policy.max_throttle, "seed {seed}"),
                }
            }
            assert!(waited <= policy.max_elapsed && told <= policy.max_throttle);
        }
    }

    #[test]
    fn errors_of_the_ports_keep_their_class() {
        let source = || "busy".into();
        let asked = Some(SECOND);
        let store = EventStoreError::Throttled {
            retry_after: asked,
            source: source(),
        };
        assert_eq!(store.failure_class(), throttled(SECOND));
        let rows = ControlStoreError::Throttled {
            retry_after: None,
            source: source(),
        };
        assert_eq!(rows.failure_class(), throttled(Duration::ZERO));
        let snapshots = SnapshotStoreError::Unavailable { source: source() };
        assert_eq!(snapshots.failure_class(), FailureClass::Transient);
        let bus = MessageBusError::Refused {
            kind: RefusedKind::MissingTopic,
            reason: "no topic".into(),
            source: source(),
        };
        assert_eq!(bus.failure_class(), FailureClass::Permanent);
    }
}
