//! Turns: one command at a time on a stream in this process, and the knowledge that is handed from
//! one to the next.
//!
//! A command takes the state out and hands it on when it is done, so that usually no other task
//! holds it and it is changed in place. A second command on the stream waits here, instead of
//! loading and meeting a conflict. A turn that ends without handing anything on (its future was
//! dropped, or the outcome is not known) makes the next turn load.
//!
//! # Tables that are replaced
//! A state belongs to the history that the store had when it was read. Every turn notes the number
//! of that history as it begins, before it reads anything, and everything that it keeps carries the
//! number. Once the store reports another number (`EventStore::incarnation`), or a call has found
//! the table missing or replaced, everything with an older number is dropped when it is found.
use super::Loaded;
use crate::{
    ExpectedVersion, StreamHead, StreamId,
    keyed::{Guard, KeyedLock},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::Instant;

/// The time after which a turn is logged that is held while others wait.
const LONG_TURN: Duration = Duration::from_secs(30);

/// A function that asks the store for its incarnation.
pub(super) type Incarnation = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The turns of all streams, and the last states of a bounded number of them.
pub(super) struct Turns<A> {
    incarnation: Incarnation,
    streams: KeyedLock<StreamId, Known<A>>,
    /// The number of times that everything known became void.
    epoch: Arc<AtomicU64>,
    capacity: usize,
}

/// The number of a history of the store: the adapter's incarnation, and how often this process has
/// noticed a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct History {
    incarnation: u64,
    epoch: u64,
}

/// The head, and perhaps a state, that a turn leaves to the next one.
pub(super) struct Known<A> {
    /// The end of the stream when the turn ended.
    pub(super) head: StreamHead,
    /// A state at the head or before it; `None` if no state is known.
    pub(super) loaded: Option<Loaded<A>>,
    since: Instant,
    history: History,
}

impl<A> Known<A> {
    /// Returns true if the head is what the caller of an append expects, as far as this process
    /// knows.
    pub(super) fn is_at(&self, expected: &ExpectedVersion) -> bool {
        match expected {
            ExpectedVersion::Any => true,
            ExpectedVersion::Number(version) => self.head.version() == *version,
            // These expectations say themselves where the append goes.
            ExpectedVersion::NoStream | ExpectedVersion::Head(_) => false,
        }
    }
    /// Returns the time since the head was seen in the store.
    pub(super) fn idle(&self) -> Duration {
        self.since.elapsed()
    }
}

impl<A> Clone for Turns<A> {
    fn clone(&self) -> Self {
        Self {
            incarnation: self.incarnation.clone(),
            streams: self.streams.clone(),
            epoch: self.epoch.clone(),
            capacity: self.capacity,
        }
    }
}

impl<A> Turns<A> {
    pub(super) fn new(incarnation: Incarnation, streams: usize) -> Self {
        Self {
            incarnation,
            streams: KeyedLock::new(streams),
            epoch: Arc::default(),
            capacity: streams,
        }
    }

    /// Returns an empty cache of another size.
    pub(super) fn sized(&self, streams: usize) -> Self {
        Self::new(self.incarnation.clone(), streams)
    }

    /// Returns an empty cache of the same size.
    pub(super) fn emptied(&self) -> Self {
        self.sized(self.capacity)
    }

    /// Voids everything that is known of any stream, because the store has another history now.
    pub(super) fn forget_all(&self) {
        self.epoch.fetch_add(1, SeqCst);
        self.streams.forget_idle();
    }

    fn history(&self) -> History {
        History {
            incarnation: (self.incarnation)(),
            epoch: self.epoch.load(SeqCst),
        }
    }

    /// Waits until no other turn of this process is held on the stream, and takes what the last
    /// turn left.
    pub(super) async fn take(&self, stream: &StreamId) -> Turn<A> {
        let report = |held: Duration, waiting: usize| {
            tracing::warn!(
                %stream,
                ?held,
                waiting,
                "a command has held its stream's turn for long while others wait: its future is not polled, or a store does not answer"
            );
        };
        let guard = self.streams.lock_or_report(stream, LONG_TURN, report).await;
        Turn {
            guard,
            // The turn begins now, and not when the last one handed over.
            history: self.history(),
        }
    }
}

/// The right to work on a stream. Dropping it hands on what was [kept](Self::keep), by default
/// nothing.
pub(super) struct Turn<A> {
    guard: Guard<StreamId, Known<A>>,
    /// The history that the store had when the turn began.
    history: History,
}

impl<A> Turn<A> {
    /// Takes what the last turn left, if it belongs to the history that the store has. Other
    /// processes may have written since.
    pub(super) fn take_known(&mut self) -> Option<Known<A>> {
        let known = self.guard.take();
        known.filter(|known| known.history == self.history)
    }
    /// Leaves a state that was read or stored in this turn to the next one.
    pub(super) fn keep(&mut self, loaded: Loaded<A>) {
        self.keep_known(loaded.head.clone(), Some(loaded));
    }
    /// Leaves a head that was read or stored in this turn to the next one, with a state at or
    /// before it.
    pub(super) fn keep_known(&mut self, head: StreamHead, loaded: Option<Loaded<A>>) {
        self.guard.keep(Known {
            head,
            loaded,
            since: Instant::now(),
            history: self.history,
        });
    }
    /// Leaves to the next turn what the last one left, if this turn did not ask the store.
    pub(super) fn keep_as_it_was(&mut self, known: Known<A>) {
        self.guard.keep(known);
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
        // A turn that began before the change keeps a state that may belong to the history before,
        // even if another turn waits for it.
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
}
