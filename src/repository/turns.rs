//! Turns: one command at a time on a stream in this process, and the states between them.
//!
//! A command takes the state out and hands it on when it is done, so that in the common case nobody else holds it and it
//! is changed in place. A second command on that stream waits here instead of loading and meeting a conflict. A turn that
//! ends without a word (the future was dropped, or the outcome is not known) hands on nothing: the next one loads.
use super::Loaded;
use crate::StreamId;
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

const SHARDS: u32 = 64;

/// The states of about so many streams, and who is at work on which.
pub(super) struct Turns<A> {
    shards: Arc<[Mutex<Shard<A>>]>,
    /// States kept in each generation of a shard; 0 keeps none.
    capacity: usize,
}

struct Shard<A> {
    busy: HashMap<StreamId, VecDeque<oneshot::Sender<Turn<A>>>>,
    /// Two generations: when the young one is full it becomes the old one. What is used comes back young, so about the
    /// least recently used is forgotten, in constant time.
    young: HashMap<StreamId, Loaded<A>>,
    old: HashMap<StreamId, Loaded<A>>,
}

impl<A> Shard<A> {
    /// Takes a state out of the cache.
    fn forget(&mut self, stream: &StreamId) -> Option<Loaded<A>> {
        let young = self.young.remove(stream);
        young.or_else(|| self.old.remove(stream))
    }
}

impl<A> Clone for Turns<A> {
    fn clone(&self) -> Self {
        Self {
            shards: self.shards.clone(),
            capacity: self.capacity,
        }
    }
}

impl<A> Turns<A> {
    pub(super) fn new(streams: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                busy: HashMap::new(),
                young: HashMap::new(),
                old: HashMap::new(),
            })
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            // Two generations in each shard hold about the number asked for.
            capacity: streams.div_ceil(2 * SHARDS as usize),
        }
    }

    /// An empty cache of the same size.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.capacity * 2 * SHARDS as usize)
    }

    fn shard(&self, stream: &StreamId) -> MutexGuard<'_, Shard<A>> {
        let shard = &self.shards[stream.shard(SHARDS) as usize];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody in this process works on the stream, and takes its state, if it is known.
    pub(super) async fn take(&self, stream: &StreamId) -> Turn<A> {
        let handed = {
            let mut shard = self.shard(stream);
            match shard.busy.entry(stream.clone()) {
                Entry::Vacant(free) => {
                    free.insert(VecDeque::new());
                    // Without a cache there is nothing to look for.
                    let state = if self.capacity > 0 {
                        shard.forget(stream)
                    } else {
                        None
                    };
                    return self.turn(stream, state);
                }
                Entry::Occupied(mut waiting) => {
                    let (hand_over, handed) = oneshot::channel();
                    waiting.get_mut().push_back(hand_over);
                    handed
                }
            }
        };
        match handed.await {
            Ok(turn) => turn,
            // A sender is dropped only after it was used, so this is not reached; a turn that loads is always right.
            Err(_) => self.turn(stream, None),
        }
    }

    fn turn(&self, stream: &StreamId, state: Option<Loaded<A>>) -> Turn<A> {
        Turn {
            turns: self.clone(),
            stream: stream.clone(),
            state,
            is_over: false,
        }
    }

    /// Ends a turn: to whoever waits longest, else into the cache.
    fn end(&self, stream: &StreamId, state: Option<Loaded<A>>) {
        let mut shard = self.shard(stream);
        let mut turn = self.turn(stream, state);
        // Taken out for good if nobody waits, which is the common case and one look-up.
        let mut waiting = shard.busy.remove(stream).unwrap_or_default();
        while let Some(next) = waiting.pop_front() {
            match next.send(turn) {
                // If the one who waits goes away before it looks, the turn ends by being dropped.
                Ok(()) => {
                    shard.busy.insert(stream.clone(), waiting);
                    return;
                }
                Err(returned) => turn = returned,
            }
        }
        turn.is_over = true;
        if let Some(state) = turn.state.take().filter(|_| self.capacity > 0) {
            if shard.young.len() >= self.capacity {
                shard.old = std::mem::take(&mut shard.young);
            }
            shard.young.insert(stream.clone(), state);
        }
    }
}

/// The right to work on a stream. Dropping it hands on what was [`keep`](Self::keep)-ed, by default nothing.
pub(super) struct Turn<A> {
    turns: Turns<A>,
    stream: StreamId,
    state: Option<Loaded<A>>,
    is_over: bool,
}

impl<A> Turn<A> {
    /// The state as the last turn left it; may be behind the store.
    pub(super) const fn take_state(&mut self) -> Option<Loaded<A>> {
        self.state.take()
    }
    /// What the next turn starts from.
    pub(super) fn keep(&mut self, loaded: Loaded<A>) {
        self.state = Some(loaded);
    }
}

impl<A> Drop for Turn<A> {
    fn drop(&mut self) {
        if !self.is_over {
            self.turns.end(&self.stream, self.state.take());
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
    fn loaded(n: u64) -> Loaded<u64> {
        Loaded {
            state: Arc::new(n),
            head: StreamHead::empty(stream(n)),
            snapshot: LastSnapshot::default(),
        }
    }
    fn state(turn: &mut Turn<u64>) -> Option<u64> {
        turn.take_state().map(|l| *l.state())
    }

    #[test]
    fn a_second_turn_waits_and_gets_what_the_first_kept() {
        let (turns, one) = (Turns::new(100), stream(1));
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
        let (turns, one) = (Turns::new(100), stream(1));
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
        let (turns, one) = (Turns::new(100), stream(1));
        let first: Turn<u64> = turns.take(&one).now_or_never().unwrap();
        let mut second = Box::pin(turns.take(&one));
        assert!(second.as_mut().now_or_never().is_none());
        // Handed over, but never polled again.
        drop(first);
        drop(second);
        assert!(turns.take(&one).now_or_never().is_some());
    }

    #[test]
    fn the_cache_is_bounded() {
        let turns = Turns::new(1000);
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
