//! The counts of a repository: loads and snapshots.
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The counts of a repository and its clones since it was created:
/// [`Repository::metrics`](crate::Repository::metrics).
///
/// All numbers only grow. The difference of two readings is what happened between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepositoryMetrics {
    /// The states that were read from the store: for a load, or for a command whose stream was not
    /// in the cache.
    pub loads: LoadMetrics,
    /// The snapshots that were taken in the background.
    pub snapshots: SnapshotMetrics,
}

/// The loads that succeeded, and their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadMetrics {
    /// The number of loads that started from a snapshot.
    pub with_snapshot: u64,
    /// The number of loads that folded the whole history.
    pub without_snapshot: u64,
    /// The number of events that these loads folded.
    pub events: u64,
    /// The total time of these loads.
    pub time: Duration,
    /// The number of snapshots that did not belong to the history of their stream, and were
    /// deleted.
    pub misfits: u64,
}

/// The snapshots that were due, by their outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotMetrics {
    /// The number of snapshots that were written.
    pub written: u64,
    /// The number that was not written because the store had a newer one.
    pub stale: u64,
    /// The number that was not written because a newer state of the same stream arrived while it
    /// waited.
    pub superseded: u64,
    /// The number that was left for a later command because too many waited.
    pub skipped: u64,
    /// The number that was not written because the state cannot be encoded, would be decoded as
    /// another value, or could not be stored.
    pub failed: u64,
    /// The total time of encoding and writing. It is spent in the background, and no command waits
    /// for it.
    pub time: Duration,
}

/// The counters from which [`RepositoryMetrics`] is read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    with_snapshot: AtomicU64,
    without_snapshot: AtomicU64,
    events: AtomicU64,
    load_nanos: AtomicU64,
    misfits: AtomicU64,
    written: AtomicU64,
    stale: AtomicU64,
    superseded: AtomicU64,
    skipped: AtomicU64,
    failed: AtomicU64,
    write_nanos: AtomicU64,
}

/// The outcome of a due snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnapshotEnd {
    Written,
    Stale,
    Superseded,
    Skipped,
    Failed,
}

impl Counters {
    pub(super) fn loaded(&self, with_snapshot: bool, events: u64, took: Duration) {
        let loads = if with_snapshot {
            &self.with_snapshot
        } else {
            &self.without_snapshot
        };
        loads.fetch_add(1, Relaxed);
        self.events.fetch_add(events, Relaxed);
        self.load_nanos.fetch_add(nanos(took), Relaxed);
    }

    pub(super) fn misfit(&self) {
        self.misfits.fetch_add(1, Relaxed);
    }

    pub(super) fn snapshot(&self, end: SnapshotEnd) {
        let counter = match end {
            SnapshotEnd::Written => &self.written,
            SnapshotEnd::Stale => &self.stale,
            SnapshotEnd::Superseded => &self.superseded,
            SnapshotEnd::Skipped => &self.skipped,
            SnapshotEnd::Failed => &self.failed,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn wrote_for(&self, took: Duration) {
        self.write_nanos.fetch_add(nanos(took), Relaxed);
    }

    pub(super) fn read(&self) -> RepositoryMetrics {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        RepositoryMetrics {
            loads: LoadMetrics {
                with_snapshot: get(&self.with_snapshot),
                without_snapshot: get(&self.without_snapshot),
                events: get(&self.events),
                time: Duration::from_nanos(get(&self.load_nanos)),
                misfits: get(&self.misfits),
            },
            snapshots: SnapshotMetrics {
                written: get(&self.written),
                stale: get(&self.stale),
                superseded: get(&self.superseded),
                skipped: get(&self.skipped),
                failed: get(&self.failed),
                time: Duration::from_nanos(get(&self.write_nanos)),
            },
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
