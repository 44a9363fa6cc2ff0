//! Turns: one command at a time on a stream in this process, and what is known of the stream between them.
//!
//! A command takes the state out and hands it on when it is done, so that in the common case nobody else holds it and it
//! is changed in place. A second command on that stream waits here instead of loading and meeting a conflict. A turn that
//! ends without a word (the future was dropped, or the outcome is not known) hands on nothing: the next one loads.
//!
//! # Tables that are replaced
//! A state is of the history that the store had when it was read. Every turn notes the number of that history as it
//! begins, before anything is read in it, and what it keeps carries the number. Once the store names another one
//! (`EventStore::incarnation`), or a call found the table missing or replaced, whatever carries an older number is
//! dropped where it is met.
use super::Loaded;
use crate::{ExpectedVersion, StreamHead, StreamId};
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{runtime::Handle, sync::oneshot, time::Instant};

const SHARDS: u32 = 64;

/// A turn that is held for longer while others wait is logged.
const LONG_TURN: Duration = Duration::from_secs(30);

/// Asks the store for its incarnation.
pub(super) type Incarnation = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What is known of about so many streams, and who is at work on which.
pub(super) struct Turns<A> {
    incarnation: Incarnation,
    shards: Arc<[Mutex<Shard<A>>]>,
    /// Grows whenever everything that is known becomes void.
    epoch: Arc<AtomicU64>,
    /// States kept in each generation of a shard; 0 keeps none.
    capacity: usize,
}

/// A number of the history that the store has: the adapter's, and how often this process has heard that it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct History {
    incarnation: u64,
    epoch: u64,
}

/// What a turn leaves to the next one.
pub(super) struct Known<A> {
    /// Where the stream ended at the end of the turn.
    pub(super) head: StreamHead,
    /// A state, at the head or before it.
    pub(super) loaded: Option<Loaded<A>>,
    since: Instant,
    history: History,
}

impl<A> Known<A> {
    /// Returns whether the head is what the caller of an append expects, as far as this process knows.
    pub(super) fn is_at(&self, expected: &ExpectedVersion) -> bool {
        match expected {
            ExpectedVersion::Any => true,
            ExpectedVersion::Number(version) => self.head.version() == *version,
            // These say themselves where the append goes.
            ExpectedVersion::NoStream | ExpectedVersion::Head(_) => false,
        }
    }
    /// The time since the head was seen in the store.
    pub(super) fn idle(&self) -> Duration {
        self.since.elapsed()
    }
}

/// A turn that is taken, and those who wait for it.
struct Busy<A> {
    since: Instant,
    is_reported: bool,
    waiting: VecDeque<oneshot::Sender<Turn<A>>>,
}

impl<A> Busy<A> {
    fn new(waiting: VecDeque<oneshot::Sender<Turn<A>>>) -> Self {
        Self {
            since: Instant::now(),
            is_reported: false,
            waiting,
        }
    }
}

struct Shard<A> {
    busy: HashMap<StreamId, Busy<A>>,
    /// Two generations: when the young one is full it becomes the old one. What is used comes back young, so about the
    /// least recently used is forgotten, in constant time.
    young: HashMap<StreamId, Known<A>>,
    old: HashMap<StreamId, Known<A>>,
}

impl<A> Shard<A> {
    /// Takes out of the cache what is known of a stream.
    fn forget(&mut self, stream: &StreamId) -> Option<Known<A>> {
        let young = self.young.remove(stream);
        young.or_else(|| self.old.remove(stream))
    }
}

impl<A> Clone for Turns<A> {
    fn clone(&self) -> Self {
        Self {
            incarnation: self.incarnation.clone(),
            shards: self.shards.clone(),
            epoch: self.epoch.clone(),
            capacity: self.capacity,
        }
    }
}

impl<A> Turns<A> {
    pub(super) fn new(incarnation: Incarnation, streams: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                busy: HashMap::new(),
                young: HashMap::new(),
                old: HashMap::new(),
            })
        };
        Self {
            incarnation,
            shards: (0..SHARDS).map(|_| shard()).collect(),
            epoch: Arc::default(),
            // Two generations in each shard hold about the number asked for.
            capacity: streams.div_ceil(2 * SHARDS as usize),
        }
    }

    /// Returns an empty cache of another size.
    pub(super) fn sized(&self, streams: usize) -> Self {
        Self::new(self.incarnation.clone(), streams)
    }

    /// Returns an empty cache of the same size.
    pub(super) fn emptied(&self) -> Self {
        self.sized(self.capacity * 2 * SHARDS as usize)
    }

    /// Makes void whatever is known of any stream: the store has another history now.
    pub(super) fn forget_all(&self) {
        self.epoch.fetch_add(1, SeqCst);
        for shard in self.shards.iter() {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.young.clear();
            shard.old.clear();
        }
    }

    fn history(&self) -> History {
        History {
            incarnation: (self.incarnation)(),
            epoch: self.epoch.load(SeqCst),
        }
    }

    fn shard(&self, stream: &StreamId) -> MutexGuard<'_, Shard<A>> {
        let shard = &self.shards[stream.shard(SHARDS) as usize];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody in this process works on the stream, and takes what is known of it.
    pub(super) async fn take(&self, stream: &StreamId) -> Turn<A> {
        let taken = {
            let mut shard = self.shard(stream);
            match shard.busy.entry(stream.clone()) {
                Entry::Vacant(free) => {
                    free.insert(Busy::new(VecDeque::new()));
                    // Without a cache there is nothing to look for.
                    Ok(if self.capacity > 0 {
                        shard.forget(stream)
                    } else {
                        None
                    })
                }
                Entry::Occupied(mut busy) => {
                    let (hand_over, handed) = oneshot::channel();
                    busy.get_mut().waiting.push_back(hand_over);
                    Err(handed)
                }
            }
        };
        let handed = match taken {
            Ok(known) => return self.turn(stream, known),
            Err(handed) => handed,
        };
        match self.wait(stream, handed).await {
            Some(mut turn) => {
                // The turn begins now, not when it was handed over.
                turn.history = self.history();
                turn
            }
            // A sender is dropped only after it was used, so this is not reached; a turn that loads is always right.
            None => self.turn(stream, None),
        }
    }

    /// Waits for a turn, and reports who holds it for long.
    async fn wait(
        &self,
        stream: &StreamId,
        mut handed: oneshot::Receiver<Turn<A>>,
    ) -> Option<Turn<A>> {
        // Without a runtime there is no timer, and nothing to report with it.
        if Handle::try_current().is_err() {
            return handed.await.ok();
        }
        let mut look = Instant::now() + LONG_TURN;
        loop {
            tokio::select! {
                biased;
                turn = &mut handed => return turn.ok(),
                () = tokio::time::sleep_until(look) => look = self.report(stream),
            }
        }
    }

    /// Logs a turn that is held for long, once, and returns when to look again.
    fn report(&self, stream: &StreamId) -> Instant {
        let mut shard = self.shard(stream);
        let now = Instant::now();
        let Some(busy) = shard.busy.get_mut(stream) else {
            return now + LONG_TURN;
        };
        let held = now.saturating_duration_since(busy.since);
        if held < LONG_TURN {
            return busy.since + LONG_TURN;
        }
        if !std::mem::replace(&mut busy.is_reported, true) {
            tracing::warn!(
                %stream,
                ?held,
                waiting = busy.waiting.len(),
                "a command has held its stream's turn for long while others wait: its future is not polled, or a store does not answer"
            );
        }
        now + LONG_TURN
    }

    fn turn(&self, stream: &StreamId, known: Option<Known<A>>) -> Turn<A> {
        Turn {
            turns: self.clone(),
            stream: stream.clone(),
            history: self.history(),
            known,
            is_over: false,
        }
    }

    /// Ends a turn: to whoever waits longest, else into the cache.
    fn end(&self, stream: &StreamId, known: Option<Known<A>>) {
        let mut turn = self.turn(stream, known);
        let mut shard = self.shard(stream);
        // Taken out for good if nobody waits, which is the common case and one look-up.
        let busy = shard.busy.remove(stream);
        let mut waiting = busy.map(|busy| busy.waiting).unwrap_or_default();
        while let Some(next) = waiting.pop_front() {
            match next.send(turn) {
                // If the one who waits goes away before it looks, the turn ends by being dropped.
                Ok(()) => {
                    shard.busy.insert(stream.clone(), Busy::new(waiting));
                    return;
                }
                Err(returned) => turn = returned,
            }
        }
        turn.is_over = true;
        if let Some(known) = turn.known.take().filter(|_| self.capacity > 0) {
            if shard.young.len() >= self.capacity {
                shard.old = std::mem::take(&mut shard.young);
            }
            shard.young.insert(stream.clone(), known);
        }
    }
}

/// The right to work on a stream. Dropping it hands on what was [`keep`](Self::keep)-ed, by default nothing.
pub(super) struct Turn<A> {
    turns: Turns<A>,
    stream: StreamId,
    /// The history that the store had when the turn began.
    history: History,
    known: Option<Known<A>>,
    is_over: bool,
}

impl<A> Turn<A> {
    /// Takes what the last turn left, if it is of the history that the store has. Other processes may have written since.
    pub(super) fn take_known(&mut self) -> Option<Known<A>> {
        self.known
            .take()
            .filter(|known| known.history == self.history)
    }
    /// Leaves a state that was read or stored in this turn to the next one.
    pub(super) fn keep(&mut self, loaded: Loaded<A>) {
        self.keep_known(loaded.head.clone(), Some(loaded));
    }
    /// Leaves a head that was read or stored in this turn to the next one, with a state at or before it.
    pub(super) fn keep_known(&mut self, head: StreamHead, loaded: Option<Loaded<A>>) {
        self.known = Some(Known {
            head,
            loaded,
            since: Instant::now(),
            history: self.history,
        });
    }
    /// Leaves to the next one what the last turn left, where the store was not asked.
    pub(super) fn keep_as_it_was(&mut self, known: Known<A>) {
        self.known = Some(known);
    }
}

impl<A> Drop for Turn<A> {
    fn drop(&mut self) {
        if !self.is_over {
            self.turns.end(&self.stream, self.known.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StreamHead, repository::fold::LastSnapshot};
    use futures::FutureExt;

    fn stream(n: u64) -> StreamId {
        StreamId::new("s", &n).unwrap()
    }
    fn turns(streams: usize) -> Turns<u64> {
        Turns::new(Arc::new(|| 0), streams)
    }
    fn loaded(n: u64) -> Loaded<u64> {
        Loaded {
            state: Arc::new(n),
            head: StreamHead::empty(stream(n)),
            snapshot: LastSnapshot::default(),
        }
    }
    fn state(turn: &mut Turn<u64>) -> Option<u64> {
        turn.take_known().and_then(|k| k.loaded).map(|l| *l.state())
    }

    #[test]
    fn a_second_turn_waits_and_gets_what_the_first_kept() {
        let (turns, one) = (turns(100), stream(1));
        let mut first = turns.take(&one).now_or_never().unwrap();
        assert_eq!(state(&mut first), None);
        let mut second = Box::pin(turns.take(&one));
        assert!(second.as_mut().now_or_never().is_none());
        first.keep(loaded(7));
        drop(first);
        let mut second = second.now_or_never().unwrap();
        assert_eq!(state(&mut second), Some(7));
        // It keeps nothing, so the next one loads.
        drop(second);
        assert_eq!(state(&mut turns.take(&one).now_or_never().unwrap()), None);
    }

    #[test]
    fn a_waiter_that_went_away_is_passed_over() {
        let (turns, one) = (turns(100), stream(1));
        let mut first = turns.take(&one).now_or_never().unwrap();
        let mut gone = Box::pin(turns.take(&one));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut second = Box::pin(turns.take(&one));
        assert!(second.as_mut().now_or_never().is_none());
        drop(gone);
        first.keep(loaded(7));
        drop(first);
        assert_eq!(state(&mut second.now_or_never().unwrap()), Some(7));
    }

    #[test]
    fn a_waiter_that_goes_away_with_the_turn_in_hand_does_not_block_the_stream() {
        let (turns, one) = (turns(100), stream(1));
        let first: Turn<u64> = turns.take(&one).now_or_never().unwrap();
        let mut second = Box::pin(turns.take(&one));
        assert!(second.as_mut().now_or_never().is_none());
        // Handed over, but never polled again.
        drop(first);
        drop(second);
        assert!(turns.take(&one).now_or_never().is_some());
    }

    #[test]
    fn what_was_kept_under_another_incarnation_is_dropped() {
        let incarnation = Arc::new(AtomicU64::new(0));
        let now = incarnation.clone();
        let (turns, one) = (
            Turns::new(Arc::new(move || now.load(SeqCst)), 100),
            stream(1),
        );
        let take = || turns.take(&one).now_or_never().unwrap();
        take().keep(loaded(7));
        assert_eq!(state(&mut take()), Some(7));
        take().keep(loaded(7));
        incarnation.store(1, SeqCst);
        assert_eq!(state(&mut take()), None);
        // A turn that began before keeps what may be of the history before, also where another one waits for it.
        let mut first = take();
        let mut second = Box::pin(turns.take(&one));
        assert!(second.as_mut().now_or_never().is_none());
        incarnation.store(2, SeqCst);
        first.keep(loaded(7));
        drop(first);
        assert_eq!(state(&mut second.now_or_never().unwrap()), None);
        let mut first = take();
        turns.forget_all();
        first.keep(loaded(7));
        drop(first);
        assert_eq!(state(&mut take()), None);
    }

    #[test]
    fn the_cache_is_bounded() {
        let turns = turns(1000);
        for n in 0..100_000 {
            turns
                .take(&stream(n))
                .now_or_never()
                .unwrap()
                .keep(loaded(n));
        }
        let held: usize = (turns.shards.iter())
            .map(|s| s.lock().unwrap())
            .map(|s| s.young.len() + s.old.len() + s.busy.len())
            .sum();
        assert!((500..=1100).contains(&held), "{held}");
    }
}
