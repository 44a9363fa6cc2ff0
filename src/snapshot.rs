//! The policies of taking snapshots, and of loading with one.
//!
//! A snapshot is a cache of a fold: it is never an event of the stream, it only moves forward, it is written in the
//! background after the append or load was acknowledged, and losing all of them costs time, never correctness.
use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

/// Decides, after a command or a load, whether the state is worth storing: by events, by time, by the cost of a load, or
/// by [any of them](Self::or).
///
/// # Example
/// ```
/// use foldstream::{SinceSnapshot, SnapshotPolicy};
/// use std::time::Duration;
/// let policy = SnapshotPolicy::every(50).or(SnapshotPolicy::older_than(Duration::from_secs(3600)));
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
    /// The events after the snapshot; without one, all events.
    pub events: u64,
    /// The age, by the repository's clock, of the snapshot's last event; without a snapshot, of the first event.
    pub age: Duration,
    /// The time that the load took; zero where nothing was loaded.
    pub load: Duration,
}

impl SnapshotPolicy {
    /// Writes none; existing snapshots are used. The default.
    #[must_use]
    pub const fn never() -> Self {
        Self {
            events: None,
            age: None,
            load: None,
        }
    }

    /// Takes a snapshot when at least this many events follow the last one; 0 is [`never`](Self::never).
    #[must_use]
    pub const fn every(events: u64) -> Self {
        Self {
            events: NonZeroU64::new(events),
            ..Self::never()
        }
    }

    /// Takes a snapshot when there is something new, and the last snapshot's state is older than this. By the repository's
    /// [clock](crate::Repository::with_clock) and the times of the commits.
    #[must_use]
    pub const fn older_than(age: Duration) -> Self {
        Self {
            age: Some(age),
            ..Self::never()
        }
    }

    /// Takes a snapshot when there is something new, and a load took longer than this.
    #[must_use]
    pub const fn load_slower_than(limit: Duration) -> Self {
        Self {
            load: Some(limit),
            ..Self::never()
        }
    }

    /// Takes a snapshot when this policy says so, or the other.
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

    /// Returns the most events that follow a snapshot, as far as the policy bounds them. A snapshot that could not be written
    /// leaves more.
    #[must_use]
    pub const fn max_tail(&self) -> Option<NonZeroU64> {
        self.events
    }
}

/// The way in which a load reads a snapshot and what follows it.
///
/// **Together** takes one round-trip time: the snapshot and the newest commits are asked for at the same time. It reads
/// a fixed number of commits, also where fewer follow the snapshot, so each load costs the reading of so many.
/// **In sequence** takes two, and reads only what follows the snapshot. A stream without a snapshot, or with more after it
/// than was asked for, is read on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadPolicy {
    /// Together if the [snapshot policy](SnapshotPolicy::every) bounds the events after a snapshot, and so many, of the
    /// size that this repository has met, are less than [`LoadPolicy::MAX_TAIL_BYTES`]; else in sequence.
    #[default]
    Auto,
    /// The snapshot, and so many of the newest commits.
    Together(NonZeroU32),
    /// First the snapshot, then what follows it.
    InSequence,
}

impl LoadPolicy {
    /// 64 KiB: what [`Auto`](Self::Auto) reads on suspicion at most.
    pub const MAX_TAIL_BYTES: u64 = 64 * 1024;

    /// The snapshot, and so many of the newest commits; 0 is [`InSequence`](Self::InSequence).
    #[must_use]
    pub const fn together(commits: u32) -> Self {
        match NonZeroU32::new(commits) {
            Some(commits) => Self::Together(commits),
            None => Self::InSequence,
        }
    }

    /// Returns the number of newest commits to ask for together with the snapshot; none: in sequence. `event_bytes` is what an
    /// event takes in the store, about.
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
    fn a_snapshot_is_due_when_enough_events_lie_behind_the_last() {
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
