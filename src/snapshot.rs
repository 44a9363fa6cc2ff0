//! The policies by which a repository takes snapshots and loads with them.
//!
//! A snapshot is a cache of a fold. It is never an event of the stream, and an older one never
//! replaces a newer one. It is written in the background after the append or load was acknowledged.
//! Losing all snapshots costs time, never correctness.
use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

/// A policy that decides, after a command or a load, whether the state is worth storing: by events,
/// by time, by the cost of a load, or by [any of them](Self::or).
///
/// # Example
/// ```
/// use foldstream::{SinceSnapshot, SnapshotPolicy};
/// use std::time::Duration;
/// let hourly = SnapshotPolicy::older_than(Duration::from_secs(3600));
/// let policy = SnapshotPolicy::every(50).or(hourly);
/// let since = SinceSnapshot { events: 3, age: Duration::from_secs(4000), load: Duration::ZERO };
/// assert!(policy.is_due(&since));
/// assert!(!policy.is_due(&SinceSnapshot { events: 0, ..since }), "nothing is new");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotPolicy {
    events: Option<NonZeroU64>,
    age: Option<Duration>,
    load: Option<Duration>,
}

/// The distance of a stream from its last known snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinceSnapshot {
    /// The number of events after the snapshot; without a snapshot, of all events.
    pub events: u64,
    /// The age, by the repository's clock, of the snapshot's last event; without a snapshot, of the
    /// first event.
    pub age: Duration,
    /// The time that the load took; zero if nothing was loaded.
    pub load: Duration,
}

impl SnapshotPolicy {
    /// Returns the policy that takes no snapshots. Existing snapshots are used. This is the
    /// default.
    #[must_use]
    pub const fn never() -> Self {
        Self {
            events: None,
            age: None,
            load: None,
        }
    }

    /// Takes a snapshot when at least this many events follow the last one; 0 is
    /// [`never`](Self::never).
    #[must_use]
    pub const fn every(events: u64) -> Self {
        Self {
            events: NonZeroU64::new(events),
            ..Self::never()
        }
    }

    /// Takes a snapshot when there is a new event, and the state of the last snapshot is older than
    /// `age`. The age is the difference between the repository's
    /// [clock](crate::Repository::with_clock) and the time of the commit.
    #[must_use]
    pub const fn older_than(age: Duration) -> Self {
        Self {
            age: Some(age),
            ..Self::never()
        }
    }

    /// Takes a snapshot when there is a new event, and a load took longer than `limit`.
    #[must_use]
    pub const fn load_slower_than(limit: Duration) -> Self {
        Self {
            load: Some(limit),
            ..Self::never()
        }
    }

    /// Takes a snapshot when this policy or the other one does.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        // Of two limits of the same kind the lower one is reached whenever either is.
        fn lower<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            a.into_iter().chain(b).min()
        }
        Self {
            events: lower(self.events, other.events),
            age: lower(self.age, other.age),
            load: lower(self.load, other.load),
        }
    }

    /// Returns true if a snapshot is due.
    #[must_use]
    pub fn is_due(&self, since: &SinceSnapshot) -> bool {
        since.events > 0
            && (self.events.is_some_and(|limit| since.events >= limit.get())
                || self.age.is_some_and(|limit| since.age > limit)
                || self.load.is_some_and(|limit| since.load > limit))
    }

    /// Returns the largest number of events after a snapshot, if the policy bounds them. A snapshot
    /// that could not be written leaves more.
    #[must_use]
    pub(crate) const fn max_tail(&self) -> Option<NonZeroU64> {
        self.events
    }
}

/// The way in which a load reads a snapshot and the commits after it.
///
/// **Together** takes one round-trip time: the snapshot and the newest commits are requested at the
/// same time. It reads a fixed number of commits, even if fewer follow the snapshot, and each load
/// costs that much. **In sequence** takes two round-trip times, and reads only what follows the
/// snapshot. A stream without a snapshot, or with more commits after it than were requested, is
/// read further from there.
///
/// # Example
/// ```
/// use foldstream::{LoadPolicy, SnapshotPolicy};
/// let every_50 = SnapshotPolicy::every(50);
/// // 50 events of 100 bytes are cheap enough to be requested with the snapshot.
/// assert_eq!(LoadPolicy::Auto.newest(every_50, 100).map(|n| n.get()), Some(50));
/// assert_eq!(LoadPolicy::Auto.newest(every_50, 100_000), None);
/// assert_eq!(LoadPolicy::together(0), LoadPolicy::InSequence);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadPolicy {
    /// Together if the [snapshot policy](SnapshotPolicy::every) bounds the events after a snapshot,
    /// and if that many events, of the average size that this repository has met, take less than
    /// [`LoadPolicy::MAX_TAIL_BYTES`]. In sequence otherwise.
    #[default]
    Auto,
    /// The snapshot, and this number of the newest commits, at the same time.
    Together(NonZeroU32),
    /// First the snapshot, then the commits after it.
    InSequence,
}

impl LoadPolicy {
    /// The largest number of bytes that [`Auto`](Self::Auto) requests together with a snapshot: 64
    /// KiB.
    pub const MAX_TAIL_BYTES: u64 = 64 * 1024;

    /// Requests this number of the newest commits together with the snapshot; 0 is
    /// [`InSequence`](Self::InSequence).
    #[must_use]
    pub const fn together(commits: u32) -> Self {
        match NonZeroU32::new(commits) {
            Some(commits) => Self::Together(commits),
            None => Self::InSequence,
        }
    }

    /// Returns the number of newest commits to request together with the snapshot; `None` if the
    /// load is in sequence. `event_bytes` is the approximate size of an event in the store.
    #[must_use]
    pub fn newest(&self, snapshots: SnapshotPolicy, event_bytes: u64) -> Option<NonZeroU32> {
        match *self {
            Self::Together(commits) => Some(commits),
            Self::InSequence => None,
            // A commit has at least one event, so as many commits as events reach the snapshot.
            Self::Auto => snapshots
                .max_tail()
                .filter(|events| events.get().saturating_mul(event_bytes) < Self::MAX_TAIL_BYTES)
                .and_then(|events| NonZeroU32::try_from(events).ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const fn since(events: u64, age: u32, load: u32) -> SinceSnapshot {
        SinceSnapshot {
            events,
            age: SECOND.saturating_mul(age),
            load: SECOND.saturating_mul(load),
        }
    }

    #[test]
    fn every_zero_events_is_never() {
        assert_eq!(SnapshotPolicy::every(0), SnapshotPolicy::never());
        assert!(!SnapshotPolicy::every(0).is_due(&since(10, 10, 10)));
    }

    #[test]
    fn a_snapshot_is_due_when_enough_events_follow_the_last() {
        let policy = SnapshotPolicy::every(3);
        assert!(!policy.is_due(&since(2, 99, 99)));
        assert!(policy.is_due(&since(3, 0, 0)));
    }

    #[test]
    fn a_snapshot_is_due_when_a_load_was_slow_or_the_last_one_is_old_and_something_is_new() {
        let (slow, old) = (
            SnapshotPolicy::load_slower_than(5 * SECOND),
            SnapshotPolicy::older_than(5 * SECOND),
        );
        assert!(slow.is_due(&since(1, 0, 6)) && old.is_due(&since(1, 6, 0)));
        assert!(!slow.is_due(&since(1, 99, 5)) && !old.is_due(&since(1, 5, 99)));
        assert!(!slow.is_due(&since(0, 99, 99)) && !old.is_due(&since(0, 99, 99)));
    }

    #[test]
    fn of_two_policies_either_suffices() {
        let policies = [
            SnapshotPolicy::never(),
            SnapshotPolicy::every(3),
            SnapshotPolicy::every(7),
            SnapshotPolicy::older_than(4 * SECOND),
            SnapshotPolicy::load_slower_than(2 * SECOND),
            SnapshotPolicy::every(5).or(SnapshotPolicy::older_than(SECOND)),
        ];
        for a in policies {
            for b in policies {
                for events in 0..9 {
                    for time in 0..6 {
                        for since in [since(events, time, 0), since(events, 0, time)] {
                            let either = a.is_due(&since) || b.is_due(&since);
                            assert_eq!(a.or(b).is_due(&since), either, "{a:?} {b:?} {since:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn by_default_a_tail_that_is_known_to_be_short_is_read_together_with_the_snapshot() {
        let newest = |policy, bytes| LoadPolicy::Auto.newest(policy, bytes).map(NonZeroU32::get);
        assert_eq!(newest(SnapshotPolicy::every(50), 256), Some(50));
        assert_eq!(newest(SnapshotPolicy::every(256), 255), Some(256));
        assert_eq!(newest(SnapshotPolicy::every(256), 256), None);
        assert_eq!(newest(SnapshotPolicy::every(u64::MAX), 1), None);
        let unbounded = SnapshotPolicy::older_than(SECOND);
        assert_eq!(newest(unbounded, 1), None);
        assert_eq!(newest(unbounded.or(SnapshotPolicy::every(9)), 1), Some(9));
        assert_eq!(LoadPolicy::together(0), LoadPolicy::InSequence);
        assert_eq!(
            LoadPolicy::InSequence.newest(SnapshotPolicy::every(1), 1),
            None
        );
    }
}
