//! The failures of one step, and when it is repeated.
use super::health::Noted;
use crate::{
    Backoff, RetryPolicy, Version,
    resilience::{FailureClass, Retrying},
};
use std::time::Duration;
use tokio::time::Instant;

/// The pauses of a step that waits for a backend, without an end: nothing is lost by waiting, and
/// the health of the processor shows it.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

/// The failures of one event, or of one kind of step.
#[derive(Debug)]
pub(in crate::runner) struct Retry {
    /// The event that failed.
    version: Version,
    /// A store that is away, and not the event, has failed.
    is_of_store: bool,
    retrying: Retrying,
    /// The time of the first failure.
    since: Option<Instant>,
    /// The last failure, as others are told of it.
    noted: Option<Noted>,
}

impl Retry {
    /// No failure yet of the event of this version.
    pub(super) const fn new(policy: RetryPolicy, version: Version) -> Self {
        Self {
            version,
            is_of_store: false,
            retrying: Retrying::new(policy),
            since: None,
            noted: None,
        }
    }

    /// No failure yet of a store that the event of this version needs. The store is waited for,
    /// whatever the policy about events says.
    fn of_store(policy: RetryPolicy, version: Version) -> Self {
        Self {
            is_of_store: true,
            ..Self::new(RetryPolicy::forever(policy.backoff), version)
        }
    }

    /// Continues the failures of the event of this version, or of the store that it needs; earlier
    /// failures of something else were overcome since.
    pub(super) fn after(
        known: Option<Self>,
        policy: RetryPolicy,
        version: Version,
        is_store: bool,
    ) -> Self {
        let known = known.filter(|retry| retry.is_of(version, is_store));
        known.unwrap_or_else(|| {
            if is_store {
                Self::of_store(policy, version)
            } else {
                Self::new(policy, version)
            }
        })
    }

    /// Keeps the last failure for those who ask for the health of the processor.
    pub(super) fn note(&mut self, noted: Noted) {
        self.noted = Some(noted);
    }

    /// Returns the last failure, the time of the first one, and the version of the event.
    pub(super) fn noted(&self) -> Option<(&Noted, Instant, Version)> {
        Some((self.noted.as_ref()?, self.since?, self.version))
    }

    /// Returns true if these are failures of the event of this version, or of the store that it
    /// needs.
    fn is_of(&self, version: Version, of_store: bool) -> bool {
        self.version == version && self.is_of_store == of_store
    }

    /// Returns when the next attempt may start, or `None` if there must be none.
    ///
    /// An event is not given up because a service asks for a longer pause than
    /// [`RetryPolicy::max_throttle`]: it waits for as long as the limit allows, and is tried once
    /// more.
    pub(super) fn failed(&mut self, class: FailureClass, now: Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert(now);
        let class = self.retrying.cut_to_limit(class);
        let pause = self.retrying.next(class, now.duration_since(since))?;
        Some(super::later(now, pause))
    }

    /// Moves the time of the first failure: the time in between does not count.
    pub(super) fn move_start(&mut self, by: Duration) {
        self.since = self.since.map(|since| since + by);
    }

    /// Returns the time of the first failure.
    pub(super) const fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Returns the number of attempts that have failed.
    pub(super) const fn attempts(&self) -> u32 {
        self.retrying.attempts()
    }
}

/// A step that needs a backend, and is repeated until the backend answers.
#[derive(Debug)]
pub(in crate::runner) struct Patience {
    retry: Retry,
    seed: u64,
}

impl Patience {
    pub(in crate::runner) const fn new(seed: u64) -> Self {
        let policy = RetryPolicy::forever(PAUSES.with_seed(seed));
        Self {
            retry: Retry::new(policy, Version::NONE),
            seed,
        }
    }

    /// Returns when the step may be repeated.
    pub(in crate::runner) fn failed(&mut self, now: Instant) -> Instant {
        let next = self.retry.failed(FailureClass::Transient, now);
        next.unwrap_or(now + PAUSES.max)
    }

    /// Keeps the last failure for those who ask for the health of the processor.
    pub(super) fn note(&mut self, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        self.retry.note(Noted::of_backend(error));
    }

    /// Returns the last failure and the time of the first one.
    pub(super) fn noted(&self) -> Option<(&Noted, Instant)> {
        let (noted, since, _) = self.retry.noted()?;
        Some((noted, since))
    }

    pub(in crate::runner) fn reset(&mut self) {
        *self = Self::new(self.seed);
    }
}

#[cfg(test)]
impl Retry {
    pub(super) fn testing() -> Self {
        Self::new(RetryPolicy::default(), Version::NONE)
    }
}
