//! A lock per key that carries a value from one holder to the next.
use super::RecentlyUsed;
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

const SHARDS: usize = 64;

/// One lock per key. Holders of a key take turns in the order in which they asked.
///
/// A holder may [`keep`](Guard::keep) a value for the next one. While nobody holds or awaits the key, the value stays in a
/// [`RecentlyUsed`] cache. A holder that keeps nothing, for instance because its future was dropped, leaves no value.
/// Cloning shares the locks.
///
/// # Why not a map of `tokio::sync::Mutex`?
/// The value could not be handed on without a second map beside it, and the two would have to agree while holders come and
/// go: a state that was kept would be missed, or an older one found, by whoever comes between the two updates.
///
/// # Complexity
/// Locking and releasing look up the key once or twice in one of 64 hash maps, each under a short mutex. Memory is taken
/// by the keys that are held or awaited, and by the values of the cache.
pub(crate) struct KeyedLock<K: Hash + Eq + Clone, V> {
    shards: Arc<[Mutex<Shard<K, V>>]>,
}

struct Shard<K: Hash + Eq + Clone, V> {
    /// The keys that are held, each with those who wait for it.
    held: HashMap<K, VecDeque<oneshot::Sender<Guard<K, V>>>>,
    /// The values of keys that nobody holds.
    idle: RecentlyUsed<K, V>,
}

impl<K: Hash + Eq + Clone, V> Clone for KeyedLock<K, V> {
    fn clone(&self) -> Self {
        let shards = self.shards.clone();
        Self { shards }
    }
}
impl<K: Hash + Eq + Clone, V> fmt::Debug for KeyedLock<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedLock").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone, V> KeyedLock<K, V> {
    /// Creates locks that keep the values of about `idle` keys that nobody holds. Zero: of none.
    pub(crate) fn new(idle: usize) -> Self {
        // The two generations of all shards together hold about the number asked for.
        let capacity = idle.div_ceil(2 * SHARDS);
        let shard = || {
            Mutex::new(Shard {
                held: HashMap::new(),
                idle: RecentlyUsed::new(capacity),
            })
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }
    }

    /// A panic elsewhere leaves a shard whole: every change is finished before anything foreign is called.
    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        // Not randomly seeded: which values the cache forgets must be repeatable.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let shard = &self.shards[hasher.finish() as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody holds the key. The future may be dropped at any time; the key is then passed on.
    pub(crate) async fn lock(&self, key: &K) -> Guard<K, V> {
        let handed = {
            let mut shard = self.shard(key);
            match shard.held.entry(key.clone()) {
                Entry::Vacant(free) => {
                    free.insert(VecDeque::new());
                    let value = shard.idle.remove(key);
                    return self.guard(key, value);
                }
                Entry::Occupied(mut waiting) => {
                    let (hand_over, handed) = oneshot::channel();
                    waiting.get_mut().push_back(hand_over);
                    handed
                }
            }
        };
        match handed.await {
            Ok(guard) => guard,
            // A sender is dropped only after it was used, so this is not reached. It must not panic, and it must not
            // release a key that it does not hold.
            Err(_) => {
                let mut guard = self.guard(key, None);
                guard.is_released = true;
                guard
            }
        }
    }

    fn guard(&self, key: &K, value: Option<V>) -> Guard<K, V> {
        Guard {
            lock: self.clone(),
            key: key.clone(),
            value,
            is_released: false,
        }
    }

    /// Passes a key and its value to whoever has waited longest, else keeps the value.
    fn release(&self, key: &K, value: Option<V>) {
        let mut shard = self.shard(key);
        let mut guard = self.guard(key, value);
        // Taken out for good if nobody waits, which is the common case and one look-up.
        let mut waiting = shard.held.remove(key).unwrap_or_default();
        while let Some(next) = waiting.pop_front() {
            match next.send(guard) {
                // The one who waits may be dropped before it looks at what it was sent. Then the guard is dropped with
                // the channel, on that side, and releases the key again.
                Ok(()) => {
                    shard.held.insert(key.clone(), waiting);
                    return;
                }
                // The one who waited has gone: the next in line.
                Err(returned) => guard = returned,
            }
        }
        guard.is_released = true;
        if let Some(value) = guard.value.take() {
            shard.idle.insert(key.clone(), value);
        }
    }
}

/// The right to work on a key, until it is dropped.
pub(crate) struct Guard<K: Hash + Eq + Clone, V> {
    lock: KeyedLock<K, V>,
    key: K,
    value: Option<V>,
    is_released: bool,
}

#[allow(dead_code)]
impl<K: Hash + Eq + Clone, V> Guard<K, V> {
    /// Takes the value that the last holder has kept.
    pub(crate) const fn take(&mut self) -> Option<V> {
        self.value.take()
    }
    /// Sets the value that the next holder finds.
    pub(crate) fn keep(&mut self, value: V) {
        self.value = Some(value);
    }
}

impl<K: Hash + Eq + Clone + fmt::Debug, V> fmt::Debug for Guard<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Guard");
        shown.field("key", &self.key).finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone, V> Drop for Guard<K, V> {
    fn drop(&mut self) {
        if !self.is_released {
            self.lock.release(&self.key, self.value.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::{
        pin::pin,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
        task::Poll,
    };

    type Locks = KeyedLock<u64, u64>;

    /// Keys that are held, and values that are kept.
    fn held(locks: &Locks) -> (usize, usize) {
        let shards = locks.shards.iter().map(|s| s.lock().unwrap());
        shards.fold((0, 0), |(held, kept), shard| {
            (held + shard.held.len(), kept + shard.idle.len())
        })
    }
    fn lock(locks: &Locks, key: u64) -> Option<Guard<u64, u64>> {
        locks.lock(&key).now_or_never()
    }

    #[test]
    fn a_key_has_one_holder_and_other_keys_are_free() {
        let locks = Locks::new(0);
        let first = lock(&locks, 1).unwrap();
        let mut second = pin!(locks.lock(&1));
        assert!(second.as_mut().now_or_never().is_none(), "two holders");
        assert!(lock(&locks, 2).is_some());
        drop(first);
        drop(second.now_or_never().unwrap());
        assert_eq!(held(&locks), (0, 0), "nothing is left");
    }

    #[test]
    fn holders_take_turns_in_the_order_in_which_they_asked() {
        let locks = Locks::new(0);
        let mut holder = lock(&locks, 1).unwrap();
        let mut waiting: VecDeque<_> = (0..10).map(|_| Box::pin(locks.lock(&1))).collect();
        for waiter in &mut waiting {
            assert!(waiter.as_mut().now_or_never().is_none());
        }
        while let Some(mut next) = waiting.pop_front() {
            drop(holder);
            holder = next.as_mut().now_or_never().expect("the next in line");
            let others = waiting.iter_mut().map(|w| w.as_mut().now_or_never());
            assert!(others.flatten().next().is_none());
        }
    }

    #[test]
    fn a_second_holder_gets_what_the_first_kept() {
        // Also where nothing is kept for keys that nobody holds.
        for idle in [0, 100] {
            let locks = Locks::new(idle);
            let mut first = lock(&locks, 1).unwrap();
            assert_eq!(first.take(), None);
            let mut second = pin!(locks.lock(&1));
            assert!(second.as_mut().now_or_never().is_none());
            first.keep(7);
            drop(first);
            let mut second = second.now_or_never().unwrap();
            assert_eq!(second.take(), Some(7));
            // It keeps nothing.
            drop(second);
            assert_eq!(lock(&locks, 1).unwrap().take(), None);
        }
    }

    #[test]
    fn a_value_stays_until_the_next_holder_comes() {
        let locks = Locks::new(100);
        lock(&locks, 1).unwrap().keep(7);
        assert_eq!(held(&locks), (0, 1));
        assert_eq!(lock(&locks, 1).unwrap().take(), Some(7));
        assert_eq!(lock(&locks, 1).unwrap().take(), None);
    }

    #[test]
    fn a_waiter_that_went_away_is_passed_over() {
        let locks = Locks::new(100);
        let mut first = lock(&locks, 1).unwrap();
        let mut gone = Box::pin(locks.lock(&1));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut second = pin!(locks.lock(&1));
        assert!(second.as_mut().now_or_never().is_none());
        drop(gone);
        first.keep(7);
        drop(first);
        assert_eq!(second.now_or_never().unwrap().take(), Some(7));
    }

    #[test]
    fn a_waiter_that_goes_away_with_the_key_in_hand_passes_it_on_with_its_value() {
        let locks = Locks::new(100);
        let mut first = lock(&locks, 1).unwrap();
        let mut second = Box::pin(locks.lock(&1));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = pin!(locks.lock(&1));
        assert!(third.as_mut().now_or_never().is_none());
        first.keep(7);
        // Handed over, but never polled again.
        drop(first);
        drop(second);
        assert_eq!(third.now_or_never().unwrap().take(), Some(7));
    }

    #[test]
    fn the_cache_of_values_is_bounded() {
        let locks = Locks::new(1000);
        for key in 0..100_000 {
            lock(&locks, key).unwrap().keep(key);
        }
        let (held, kept) = held(&locks);
        assert_eq!(held, 0);
        assert!((500..=1100).contains(&kept), "{kept}");
    }

    /// Tasks on several threads lock, wait, keep and go away at any point. A key never has two holders, no kept value is
    /// older than one that was seen, and nothing is left at the end.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn holders_that_go_away_at_any_point_neither_share_nor_block_a_key() {
        const KEYS: usize = 3;
        let locks = Locks::new(1000);
        let busy: Arc<[AtomicBool; KEYS]> = Arc::default();
        let worked = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..16)
            .map(|seed| {
                let (locks, busy, worked) = (locks.clone(), busy.clone(), worked.clone());
                tokio::spawn(async move {
                    let mut rng = fastrand::Rng::with_seed(seed);
                    for _ in 0..500 {
                        let key = rng.usize(0..KEYS);
                        let polls = rng.usize(0..4);
                        let id = key as u64;
                        let mut taking = Box::pin(locks.lock(&id));
                        let mut guard = None;
                        for _ in 0..polls {
                            if let Poll::Ready(taken) = futures::poll!(taking.as_mut()) {
                                guard = Some(taken);
                                break;
                            }
                            tokio::task::yield_now().await;
                        }
                        if polls == 3 && guard.is_none() {
                            guard = Some(taking.as_mut().await);
                        }
                        let Some(mut guard) = guard else { continue };
                        assert!(!busy[key].swap(true, Ordering::SeqCst), "two holders");
                        let counted = guard.take().unwrap_or_default();
                        if rng.bool() {
                            tokio::task::yield_now().await;
                        }
                        guard.keep(counted + 1);
                        worked.fetch_add(1, Ordering::SeqCst);
                        busy[key].store(false, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(held(&locks).0, 0);
        let mut counted = 0;
        for key in 0..KEYS {
            counted += lock(&locks, key as u64).unwrap().take().unwrap_or_default();
        }
        assert_eq!(
            counted as usize,
            worked.load(Ordering::SeqCst),
            "a value was lost"
        );
    }
}
