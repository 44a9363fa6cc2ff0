//! A lock per key that carries a value from one holder to the next.
use super::RecentlyUsed;
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{runtime::Handle, sync::oneshot, time::Instant};

const SHARDS: usize = 64;

/// A set of locks, one per key. The holders of a key take turns in the order in which they asked.
///
/// A holder may [`keep`](Guard::keep) a value for the next one. While no task holds or awaits the
/// key, the value stays in a [`RecentlyUsed`] cache. A holder that keeps nothing, for instance
/// because its future was dropped, leaves no value. Clones share the locks.
///
/// # Why not a map of `tokio::sync::Mutex`?
/// The value could not be handed on without a second map beside it, and the two would have to agree
/// while holders come and go. A task between the two updates would miss a state that was kept, or
/// find an older one.
///
/// # Complexity
/// Locking and releasing look up the key once or twice in one of 64 hash maps, each under a short
/// mutex. Memory is used by the keys that are held or awaited, and by the values of the cache.
pub(crate) struct KeyedLock<K: Hash + Eq + Clone, V> {
    shards: Arc<[Mutex<Shard<K, V>>]>,
}

struct Shard<K: Hash + Eq + Clone, V> {
    held: HashMap<K, Held<K, V>>,
    /// The values of keys that no task holds.
    idle: RecentlyUsed<K, V>,
}

/// The state of a key that is held.
struct Held<K: Hash + Eq + Clone, V> {
    since: Instant,
    is_reported: bool,
    waiting: VecDeque<oneshot::Sender<Guard<K, V>>>,
}

impl<K: Hash + Eq + Clone, V> Held<K, V> {
    fn new(waiting: VecDeque<oneshot::Sender<Guard<K, V>>>) -> Self {
        Self {
            since: Instant::now(),
            is_reported: false,
            waiting,
        }
    }
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
    /// Creates locks that keep the values of about `idle` keys that no task holds. With zero they
    /// keep none.
    pub(crate) fn new(idle: usize) -> Self {
        // The two halves of all shards together hold about the requested number.
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

    /// Returns the shard of a key. A panic elsewhere leaves a shard consistent, because every
    /// change is finished before foreign code is called.
    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        // Not randomly seeded: which values the cache forgets must be repeatable.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let shard = &self.shards[hasher.finish() as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other task holds the key. The future may be dropped at any time; the key is
    /// then passed on.
    pub(crate) async fn lock(&self, key: &K) -> Guard<K, V> {
        match self.ask(key) {
            Ok(guard) => guard,
            Err(handed) => self.handed(key, handed.await.ok()),
        }
    }

    /// Waits as [`lock`](Self::lock) does. Reports a holder that holds the key for longer than
    /// `limit` meanwhile: once, with the time and the number of waiting tasks.
    pub(crate) async fn lock_or_report(
        &self,
        key: &K,
        limit: Duration,
        report: impl Fn(Duration, usize),
    ) -> Guard<K, V> {
        let mut handed = match self.ask(key) {
            Ok(guard) => return guard,
            Err(handed) => handed,
        };
        // Without a runtime there is no timer, and so no report.
        if Handle::try_current().is_err() {
            return self.handed(key, handed.await.ok());
        }
        let mut look_at = Instant::now() + limit;
        loop {
            tokio::select! {
                biased;
                guard = &mut handed => return self.handed(key, guard.ok()),
                () = tokio::time::sleep_until(look_at) => {
                    look_at = self.look(key, limit, &report);
                }
            }
        }
    }

    /// Takes a free key, or queues for a key that is held.
    fn ask(&self, key: &K) -> Result<Guard<K, V>, oneshot::Receiver<Guard<K, V>>> {
        let mut shard = self.shard(key);
        match shard.held.entry(key.clone()) {
            Entry::Vacant(free) => {
                free.insert(Held::new(VecDeque::new()));
                let value = shard.idle.remove(key);
                Ok(self.guard(key, value))
            }
            Entry::Occupied(mut held) => {
                let (hand_over, handed) = oneshot::channel();
                held.get_mut().waiting.push_back(hand_over);
                Err(handed)
            }
        }
    }

    fn handed(&self, key: &K, guard: Option<Guard<K, V>>) -> Guard<K, V> {
        // A sender is dropped only after it was used, so there is a guard. If there were none, this
        // must not panic, and it must not release a key that it does not hold.
        guard.unwrap_or_else(|| {
            let mut guard = self.guard(key, None);
            guard.is_released = true;
            guard
        })
    }

    /// Reports the holder of a key if it is time, and returns the instant of the next check.
    fn look(&self, key: &K, limit: Duration, report: &impl Fn(Duration, usize)) -> Instant {
        let mut shard = self.shard(key);
        let now = Instant::now();
        let Some(held) = shard.held.get_mut(key) else {
            return now + limit;
        };
        let time = now.saturating_duration_since(held.since);
        if time < limit {
            return held.since + limit;
        }
        let was_reported = std::mem::replace(&mut held.is_reported, true);
        let waiting = held.waiting.len();
        drop(shard);
        if !was_reported {
            report(time, waiting);
        }
        now + limit
    }

    fn guard(&self, key: &K, value: Option<V>) -> Guard<K, V> {
        Guard {
            lock: self.clone(),
            key: key.clone(),
            value,
            is_released: false,
        }
    }

    /// Passes a key and its value to the task that has waited longest, or keeps the value if no
    /// task waits.
    fn release(&self, key: &K, value: Option<V>) {
        let mut shard = self.shard(key);
        let mut guard = self.guard(key, value);
        // In the common case no task waits, and this one look-up removes the key for good.
        let held = shard.held.remove(key);
        let mut waiting = held.map(|held| held.waiting).unwrap_or_default();
        while let Some(next) = waiting.pop_front() {
            match next.send(guard) {
                // The waiting task may be dropped before it receives the guard. Then the guard is
                // dropped with the channel, on that side, and releases the key again.
                Ok(()) => {
                    shard.held.insert(key.clone(), Held::new(waiting));
                    return;
                }
                // The waiting task has gone: the next one in the queue gets the key.
                Err(returned) => guard = returned,
            }
        }
        guard.is_released = true;
        if let Some(value) = guard.value.take() {
            shard.idle.insert(key.clone(), value);
        }
    }

    /// Forgets the values of keys that no task holds.
    pub(crate) fn forget_idle(&self) {
        for shard in &*self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.idle.retain(|_, _| false);
        }
    }
}

/// The right to work on a key until the guard is dropped.
pub(crate) struct Guard<K: Hash + Eq + Clone, V> {
    lock: KeyedLock<K, V>,
    key: K,
    value: Option<V>,
    is_released: bool,
}

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
        // Even if nothing is kept for keys that no task holds.
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
            // This holder keeps nothing.
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
    fn values_of_free_keys_can_be_forgotten() {
        let locks = Locks::new(100);
        lock(&locks, 1).unwrap().keep(7);
        let mut held = lock(&locks, 2).unwrap();
        locks.forget_idle();
        assert_eq!(lock(&locks, 1).unwrap().take(), None);
        held.keep(8);
        drop(held);
        assert_eq!(lock(&locks, 2).unwrap().take(), Some(8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_who_holds_a_key_for_long_is_reported_once() {
        const LIMIT: Duration = Duration::from_secs(30);
        let (locks, reports) = (Locks::new(0), Mutex::new(Vec::new()));
        let report =
            |time: Duration, waiting| reports.lock().unwrap().push((time.as_secs(), waiting));
        // Two tasks wait, from different times on, while the key changes hands once.
        let hold = async {
            let first = locks.lock(&1).await;
            tokio::time::sleep(100 * Duration::from_secs(1)).await;
            drop(first);
        };
        let wait = |after: u64, holds: u64| {
            let (locks, report) = (&locks, &report);
            async move {
                tokio::time::sleep(Duration::from_secs(after)).await;
                let guard = locks.lock_or_report(&1, LIMIT, report).await;
                tokio::time::sleep(Duration::from_secs(holds)).await;
                drop(guard);
            }
        };
        tokio::join!(hold, wait(10, 20), wait(20, 0));
        // At 40 s the first waiter finds that the key is held since 0 s. The second holder takes it
        // for 20 s only.
        assert_eq!(*reports.lock().unwrap(), [(40, 2)]);
        assert_eq!(held(&locks), (0, 0));
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

    /// Tasks on several threads lock, wait, keep and go away at any point. A key never has two
    /// holders, no kept value is older than one that was seen, and nothing is left at the end.
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
