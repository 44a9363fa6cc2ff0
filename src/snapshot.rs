//! When to take a snapshot.
//!
//! A snapshot is a cache of a fold: it is never an event of the stream, it only moves forward, it is written in the
//! background after the append or load was acknowledged, and losing all of them costs time, never correctness.
use std::time::Duration;

/// Decides, after a command or a load, whether the state is worth storing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotPolicy {
    /// Never writes; existing snapshots are used.
    #[default]
    Never,
    /// When at least this many events lie behind the last snapshot; 0 is never, as in the reference.
    Every(u64),
    /// When a load took longer than this to read and fold what lies behind the last snapshot.
    LoadSlowerThan(Duration),
}

impl SnapshotPolicy {
    /// Every `events` events; 0 is [`Never`](Self::Never).
    #[must_use]
    pub const fn every(events: u64) -> Self {
        if events == 0 {
            Self::Never
        } else {
            Self::Every(events)
        }
    }

    /// Whether to take one. `since` counts the events behind the last snapshot known, `load` is how long the load took
    /// (zero where nothing was loaded).
    #[must_use]
    pub fn is_due(&self, since: u64, load: Duration) -> bool {
        match *self {
            Self::Never | Self::Every(0) => false,
            Self::Every(events) => since >= events,
            Self::LoadSlowerThan(limit) => since > 0 && load > limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_zero_events_is_never() {
        assert_eq!(SnapshotPolicy::every(0), SnapshotPolicy::Never);
        assert!(!SnapshotPolicy::Every(0).is_due(10, Duration::ZERO));
    }

    #[test]
    fn a_snapshot_is_due_when_enough_events_lie_behind_the_last() {
        let policy = SnapshotPolicy::every(3);
        assert!(!policy.is_due(2, Duration::ZERO) && policy.is_due(3, Duration::ZERO));
        let policy = SnapshotPolicy::LoadSlowerThan(Duration::from_millis(5));
        assert!(
            !policy.is_due(0, Duration::from_secs(1)) && policy.is_due(1, Duration::from_secs(1))
        );
    }
}
