//! A publisher's memory between calls. All of it may be lost at any time: rows and reads bring it back.
use crate::{
    StreamId, Timestamp,
    control::{Stored, Watermark},
    keyed::RecentlyUsed,
};
use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A panic elsewhere leaves these maps whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A watermark as last seen, and when the store was last seen to have its commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) mark: Stored<Watermark>,
    pub(super) checked_at: Option<Timestamp>,
}
impl Known {
    /// How long a comparison of watermark and history holds. A backup is not restored under a running process, so this
    /// only bounds what a mistake costs.
    const CHECK_HOLDS: Duration = Duration::from_secs(60);

    pub(super) fn is_checked(&self, now: Timestamp) -> bool {
        self.checked_at
            .is_some_and(|at| now.since(at) < Self::CHECK_HOLDS)
    }
}

/// The watermarks that were used lately.
#[derive(Debug)]
pub(super) struct Marks {
    known: Mutex<RecentlyUsed<StreamId, Known>>,
    /// Streams whose history did not fit: checked against the store before anything else.
    suspects: Mutex<BTreeSet<StreamId>>,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            known: Mutex::new(RecentlyUsed::new(Self::CAPACITY)),
            suspects: Mutex::default(),
        }
    }
}

impl Marks {
    /// Watermarks that are remembered in any case: at some 200 bytes each a few MB.
    const CAPACITY: usize = 20_000;

    pub(super) fn get(&self, stream: &StreamId) -> Option<Known> {
        lock(&self.known).get(stream).copied()
    }

    pub(super) fn put(&self, stream: &StreamId, known: Known) {
        lock(&self.known).insert(stream.clone(), known);
    }

    pub(super) fn is_suspect(&self, stream: &StreamId) -> bool {
        lock(&self.suspects).contains(stream)
    }

    /// Forgets the stream, and remembers whether to distrust it.
    pub(super) fn set_suspect(&self, stream: &StreamId, suspect: bool) {
        if suspect {
            lock(&self.known).remove(stream);
            lock(&self.suspects).insert(stream.clone());
        } else {
            lock(&self.suspects).remove(stream);
        }
    }
}
