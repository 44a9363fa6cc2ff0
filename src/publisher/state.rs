//! The memory of a publisher between calls. All of it may be lost at any time: rows and reads
//! bring it back.
use super::{checked_topics::Topics, notice::Offers, status::Statuses};
use crate::{
    StreamId, Timestamp,
    control::{Contender, Stored, Watermark},
    keyed::{KeyedLock, RecentlyUsed},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

/// The memory of a publisher, which its clones share.
#[derive(Debug)]
pub(super) struct State {
    /// One worker per stream in this process. Calls for the same stream wait, and then mostly find
    /// that the watermark covers what they came for.
    pub(super) streams: KeyedLock<StreamId, ()>,
    pub(super) offers: Arc<Offers>,
    pub(super) marks: Marks,
    pub(super) topics: Topics,
    pub(super) status: Arc<Statuses>,
    #[cfg(feature = "metrics")]
    pub(super) meter: super::metrics::Meter,
    /// True once the bootstrap was seen to be done, or not to exist.
    pub(super) is_bootstrapped: AtomicBool,
    /// Held while the row of the bootstrap is read, so that one call reads it.
    pub(super) bootstrapping: tokio::sync::Mutex<()>,
    /// Held by the clone that shows the status in a row.
    pub(super) showing: tokio::sync::Mutex<()>,
    /// The contender for the lease of the sweep, which remembers since when its holder is silent.
    pub(super) sweeper: tokio::sync::Mutex<Option<Contender>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            streams: KeyedLock::new(0),
            offers: Arc::default(),
            marks: Marks::default(),
            topics: Topics::default(),
            status: Arc::default(),
            #[cfg(feature = "metrics")]
            meter: super::metrics::Meter::default(),
            is_bootstrapped: AtomicBool::new(false),
            bootstrapping: tokio::sync::Mutex::default(),
            showing: tokio::sync::Mutex::default(),
            sweeper: tokio::sync::Mutex::default(),
        }
    }
}

/// A panic elsewhere leaves these maps whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A watermark as last seen, and the time at which the store was last seen to have its commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) mark: Stored<Watermark>,
    pub(super) checked_at: Option<Timestamp>,
}
impl Known {
    /// The time for which a comparison of watermark and history holds. A backup is not restored
    /// under a running process, so this only bounds the cost of a mistake.
    const CHECK_HOLDS: Duration = Duration::from_secs(60);

    pub(super) fn is_checked(&self, now: Timestamp) -> bool {
        self.checked_at
            .is_some_and(|at| now.since(at) < Self::CHECK_HOLDS)
    }
}

/// The watermarks that were used lately, and the streams that need more than a watermark.
#[derive(Debug)]
pub(super) struct Marks {
    known: Mutex<RecentlyUsed<StreamId, Known>>,
    suspects: Mutex<Suspects>,
    /// Streams that this process has noted as dirty.
    dirty: Mutex<BTreeSet<StreamId>>,
}

/// The streams whose history did not fit: they are compared with the store before anything else.
#[derive(Debug, Default)]
struct Suspects {
    streams: BTreeSet<StreamId>,
    /// True once there were more than can be remembered. Then every stream is a suspect.
    is_everyone: bool,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            known: Mutex::new(RecentlyUsed::new(Self::CAPACITY)),
            suspects: Mutex::default(),
            dirty: Mutex::default(),
        }
    }
}

impl Marks {
    /// The number of watermarks that are remembered in any case: at some 200 bytes each a few MB.
    const CAPACITY: usize = 20_000;
    /// The most streams that are remembered as suspects or as dirty.
    const MAX_SPECIAL: usize = 20_000;

    pub(super) fn get(&self, stream: &StreamId) -> Option<Known> {
        lock(&self.known).get(stream).copied()
    }

    pub(super) fn put(&self, stream: &StreamId, known: Known) {
        lock(&self.known).insert(stream.clone(), known);
    }

    /// Forgets all watermarks, since other processes may have moved them.
    pub(super) fn forget(&self) {
        *lock(&self.known) = RecentlyUsed::new(Self::CAPACITY);
    }

    pub(super) fn is_suspect(&self, stream: &StreamId) -> bool {
        let suspects = lock(&self.suspects);
        suspects.is_everyone || suspects.streams.contains(stream)
    }

    /// Forgets the watermark of a stream and notes whether its history is distrusted.
    pub(super) fn set_suspect(&self, stream: &StreamId, is_suspect: bool) {
        if is_suspect {
            lock(&self.known).remove(stream);
        }
        let mut suspects = lock(&self.suspects);
        if !is_suspect {
            suspects.streams.remove(stream);
        } else if suspects.streams.len() < Self::MAX_SPECIAL {
            suspects.streams.insert(stream.clone());
        } else {
            suspects.is_everyone = true;
        }
    }

    pub(super) fn is_dirty(&self, stream: &StreamId) -> bool {
        lock(&self.dirty).contains(stream)
    }
    /// Notes whether this process has set a stream aside. Beyond the limit a row stays until the
    /// next sweep, which finds that the stream is published.
    pub(super) fn set_dirty(&self, stream: &StreamId, is_dirty: bool) {
        let mut dirty = lock(&self.dirty);
        if !is_dirty {
            dirty.remove(stream);
        } else if dirty.len() < Self::MAX_SPECIAL {
            dirty.insert(stream.clone());
        }
    }
    pub(super) fn dirty(&self) -> usize {
        lock(&self.dirty).len()
    }
}
