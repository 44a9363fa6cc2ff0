//! A clock and a source of ids that a test controls.
use foldstream::{Clock, CommitId, IdSource, Timestamp, ports::Revision};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// A [`Clock`] that stands still until the test moves it.
///
/// Clones of the `Arc` share the time.
///
/// # Example
/// ```
/// use foldstream::Clock;
/// use foldstream_testkit::ManualClock;
/// use std::time::Duration;
/// let clock = ManualClock::new();
/// let start = clock.now();
/// clock.advance(Duration::from_secs(90));
/// assert_eq!(clock.now().since(start), Duration::from_secs(90));
/// ```
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// The time 2026-01-01T00:00:00Z, at which every scenario starts too.
    pub(crate) const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

    /// Creates a clock that shows 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::at(Self::START)
    }

    /// Creates a clock that shows a time.
    #[must_use]
    pub fn at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(now.as_micros())))
    }

    /// Sets the clock to a time, which may be earlier because real clocks step back too.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.as_micros(), Ordering::SeqCst);
    }

    /// Moves the clock forward by a duration.
    pub fn advance(&self, by: Duration) {
        let add = |micros| Some(Timestamp::from_micros(micros).plus(by).as_micros());
        // Fails only where the closure returns None.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

/// An [`IdSource`] that gives the same ids in the same order for the same seed.
///
/// Commit ids have the format of UUIDv7 with a counter instead of the time. So they sort in the
/// order in which they were given, and no clock is needed. Sources with different seeds give
/// different ids.
///
/// # Example
/// ```
/// use foldstream::IdSource;
/// use foldstream_testkit::SeededIds;
/// let (a, b) = (SeededIds::new(7), SeededIds::new(7));
/// assert_eq!(a.commit_id(), b.commit_id());
/// assert_ne!(a.commit_id(), SeededIds::new(8).commit_id());
/// ```
#[derive(Debug)]
pub struct SeededIds(Mutex<State>);

#[derive(Debug)]
struct State {
    random: fastrand::Rng,
    given: u64,
}

impl SeededIds {
    /// Creates a source that gives the ids of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            random: fastrand::Rng::with_seed(seed),
            given: 0,
        })))
    }
}

impl IdSource for SeededIds {
    fn commit_id(&self) -> CommitId {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.given += 1;
        const MILLIS_OF_START: u64 = ManualClock::START.as_micros() as u64 / 1000;
        // 48 bits of milliseconds, version 7, 12 random bits, variant 2, 62 random bits.
        let millis = u128::from((MILLIS_OF_START + state.given) & 0xffff_ffff_ffff) << 80;
        let random = state.random.u128(..);
        let random = random & !(0xf << 76) & !(0x3 << 62) & ((1 << 80) - 1);
        CommitId::from_u128(millis | 0x7 << 76 | 0x2 << 62 | random)
    }

    fn revision(&self) -> Revision {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Revision::from_u128(state.random.u128(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_commit_ids_repeat_rise_and_look_like_uuid_v7() {
        let (a, b) = (SeededIds::new(1), SeededIds::new(1));
        let ids: Vec<_> = (0..100).map(|_| a.commit_id()).collect();
        assert_eq!(ids, (0..100).map(|_| b.commit_id()).collect::<Vec<_>>());
        assert!(ids.is_sorted());
        for id in ids {
            let text = id.to_string();
            assert_eq!(&text[14..15], "7", "{text}");
            assert!("89ab".contains(&text[19..20]), "{text}");
        }
    }

    #[test]
    fn other_seeds_give_other_ids() {
        assert_ne!(SeededIds::new(1).commit_id(), SeededIds::new(2).commit_id());
    }

    #[test]
    fn a_manual_clock_stands_still_and_may_step_back() {
        let clock = ManualClock::at(Timestamp::from_micros(5));
        assert_eq!(clock.now(), clock.now());
        clock.advance(Duration::from_micros(3));
        assert_eq!(clock.now(), Timestamp::from_micros(8));
        clock.set(Timestamp::from_micros(1));
        assert_eq!(clock.now(), Timestamp::from_micros(1));
    }
}
