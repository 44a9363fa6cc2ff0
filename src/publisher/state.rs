//! What a publisher remembers between calls. All of it may be lost at any time: rows and reads bring it back.
use crate::{StreamId, Timestamp, control::Stored, control::Watermark};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{OnceCell, OwnedMutexGuard};

/// A panic elsewhere leaves these maps whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One worker a stream in this process. Those that ring the same stream meanwhile wait, and then mostly find that the
/// watermark covers what they came for.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<BTreeMap<StreamId, Arc<tokio::sync::Mutex<()>>>>);

/// The right to work on a stream, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    stream: StreamId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    pub(super) async fn take(&self, stream: &StreamId) -> Turn<'_> {
        let waiting = lock(&self.0).entry(stream.clone()).or_default().clone();
        // Made before the wait: a future that is dropped while it waits cleans up too.
        let mut turn = Turn {
            turns: self,
            stream: stream.clone(),
            guard: None,
        };
        turn.guard = Some(waiting.lock_owned().await);
        turn
    }
}
impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut turns = lock(&self.turns.0);
        // Others hold or await it as long as there is another reference: those are made under this lock only.
        if turns
            .get(&self.stream)
            .is_some_and(|t| Arc::strong_count(t) == 1)
        {
            turns.remove(&self.stream);
        }
    }
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

/// The watermarks that were used lately. Two generations: when the young one is full it becomes the old one, and what
/// was in the old one and not asked for since is forgotten.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: BTreeMap<StreamId, Known>,
    old: BTreeMap<StreamId, Known>,
    /// Streams whose history did not fit: checked against the store before anything else.
    suspects: BTreeSet<StreamId>,
}

impl Marks {
    /// Streams of one generation: at some 200 bytes each a few MB.
    const GENERATION: usize = 20_000;

    pub(super) fn get(&self, stream: &StreamId) -> Option<Known> {
        let mut marks = lock(&self.0);
        if let Some(known) = marks.young.get(stream) {
            return Some(*known);
        }
        let known = marks.old.remove(stream)?;
        marks.remember(stream, known);
        Some(known)
    }

    pub(super) fn put(&self, stream: &StreamId, known: Known) {
        lock(&self.0).remember(stream, known);
    }

    pub(super) fn is_suspect(&self, stream: &StreamId) -> bool {
        lock(&self.0).suspects.contains(stream)
    }

    /// Forgets the stream, and remembers whether to distrust it.
    pub(super) fn set_suspect(&self, stream: &StreamId, suspect: bool) {
        let mut marks = lock(&self.0);
        if suspect {
            marks.young.remove(stream);
            marks.old.remove(stream);
            marks.suspects.insert(stream.clone());
        } else {
            marks.suspects.remove(stream);
        }
    }
}
impl Generations {
    fn remember(&mut self, stream: &StreamId, known: Known) {
        self.young.insert(stream.clone(), known);
        if self.young.len() >= Marks::GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

/// The topics that were checked, and the most bytes that each takes, where the bus says so.
#[derive(Debug, Default)]
pub(super) struct Topics(Mutex<BTreeMap<Arc<str>, Checked>>);

/// Empty until the check has succeeded.
type Checked = Arc<OnceCell<Option<u64>>>;

impl Topics {
    pub(super) fn cell(&self, topic: &Arc<str>) -> Checked {
        lock(&self.0).entry(topic.clone()).or_default().clone()
    }
    pub(super) fn forget(&self, topic: &str) {
        lock(&self.0).remove(topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CommitId, Version, ports::Revision};
    use futures::FutureExt;

    fn stream(n: usize) -> StreamId {
        StreamId::new("cart", &n).unwrap()
    }

    #[tokio::test]
    async fn a_turn_is_one_workers_and_leaves_nothing_behind() {
        let turns = Turns::default();
        let one = stream(1);
        let first = turns.take(&one).await;
        {
            let mut second = Box::pin(turns.take(&one));
            assert!((&mut second).now_or_never().is_none(), "two turns at once");
            assert!(turns.take(&stream(2)).now_or_never().is_some());
            drop(first);
            assert!(second.now_or_never().is_some());
        }
        let held = turns.take(&one).await;
        let mut waiting = Box::pin(turns.take(&one));
        assert!((&mut waiting).now_or_never().is_none());
        drop(held);
        drop(waiting);
        assert!(lock(&turns.0).is_empty());
    }

    #[test]
    fn the_cache_of_watermarks_is_bounded_and_keeps_what_is_used() {
        let marks = Marks::default();
        let mark = Stored {
            value: Watermark::new(Version::new(1), CommitId::from_u128(1)),
            revision: Revision::from_u128(1),
        };
        let known = Known {
            mark,
            checked_at: None,
        };
        marks.put(&stream(0), known);
        for n in 1..3 * Marks::GENERATION {
            marks.put(&stream(n), known);
            if n % 1000 == 0 {
                assert!(marks.get(&stream(0)).is_some());
            }
        }
        assert!(marks.get(&stream(1)).is_none());
        let marks = lock(&marks.0);
        assert!(marks.young.len() + marks.old.len() <= 2 * Marks::GENERATION);
    }
}
