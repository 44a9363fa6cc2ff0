//! [`Repository`]: load, decide, append.
//!
//! ```text
//! load (a snapshot that fits the history, then what follows) -> decide -> append
//!   stored    fold the new facts, hand the state to the background snapshot writer if the policy says so
//!   repeated  my own commit is in the slot already (its answer was lost): the *stored* facts count
//!   conflict  read what is new, decide again under a new commit id; bounded, with jitter
//!   unknown   `Unavailable { pending }`: settle it with [`Repository::settle`]
//! ```
mod load;
mod execute;
mod known;
mod prepare;
mod idempotent;
mod append;
mod settle;
mod transaction;
mod travel;
mod fold;
mod error;
mod metrics;
mod skew;
mod snapshots;
mod turns;
mod values;

pub use error::{AppendError, ExecuteError, FoldError, ForgetError, LoadError, Rejection};
pub use execute::ExecuteResult;
pub use metrics::{LoadMetrics, RepositoryMetrics, SnapshotMetrics};
pub use transaction::{Committed, Transaction, TransactionExecuted, TransactionLoaded};
pub use travel::{AsOf, Historical};
pub use values::{Executed, Loaded, Settled};

pub(crate) use prepare::seal_append;

use crate::{
    Aggregate, Clock, ConflictRetry, DomainEvent, IdSource, InvalidStreamId, InvalidUpcasters,
    LoadPolicy, PayloadCodecs, Recorded, Snapshot, SnapshotPolicy, StreamHead, StreamId,
    SystemClock, SystemIds, Upcasters,
    codec::ReadBack,
    ports::{BoxStream, Commit, ControlStore, EventStore, ReadFrom, SnapshotStore, shared},
};
use futures::StreamExt;
use idempotent::Idempotency;
use metrics::Counters;
use skew::SkewWarnings;
use snapshots::Snapshots;
use std::{fmt, sync::Arc, time::Duration};
use turns::Turns;

/// The time that a load waits for the snapshot store.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_millis(250);

/// The time after which the state of an idle stream is confirmed before the next append.
const CONFIRM_AFTER: Duration = Duration::from_secs(300);

/// The streams of one aggregate type. Cloning shares everything.
///
/// # Example
/// ```
/// # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Repository, id};
/// # id!(CounterId);
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "counter")]
/// # enum CounterEvent { Counted { by: u64 } }
/// # #[derive(Clone, Default)]
/// # struct Counter { total: u64 }
/// # impl Aggregate for Counter {
/// #     type Id = CounterId;
/// #     type Event = CounterEvent;
/// #     fn evolve(&mut self, event: &CounterEvent) { let CounterEvent::Counted { by } = event; self.total += by; }
/// # }
/// # struct Count(u64);
/// # impl Decide<Count> for Counter {
/// #     type Error = std::convert::Infallible;
/// #     fn decide(&self, command: &Count, _: &Context) -> Decision<Self, Self::Error> { Ok(vec![CounterEvent::Counted { by: command.0 }]) }
/// # }
/// # async fn example(store: impl foldstream::ports::EventStore) -> Result<(), foldstream::BoxError> {
/// let counters = Repository::<Counter>::new(store);
/// let done = counters.execute(&"visits".into(), Count(2)).await?;
/// assert_eq!((done.state().total, done.version().get()), (2, 1));
/// # Ok(())
/// # }
/// ```
pub struct Repository<A: Aggregate> {
    inner: Arc<Inner<A>>,
}

struct Inner<A: Aggregate> {
    store: Arc<dyn EventStore>,
    snapshots: Option<Snapshots<A>>,
    load_policy: LoadPolicy,
    snapshot_timeout: Duration,
    counters: Arc<Counters>,
    skew: Arc<SkewWarnings>,
    turns: Turns<A>,
    idempotency: Option<Idempotency>,
    /// With those of the event type; or why they do not go together.
    upcasters: Result<Upcasters, InvalidUpcasters>,
    codecs: PayloadCodecs,
    read_back: ReadBack,
    retry: ConflictRetry,
    confirm_after: Duration,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl<A: Aggregate> Clone for Inner<A> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            snapshots: self.snapshots.clone(),
            load_policy: self.load_policy,
            snapshot_timeout: self.snapshot_timeout,
            counters: self.counters.clone(),
            skew: self.skew.clone(),
            turns: self.turns.clone(),
            idempotency: self.idempotency.clone(),
            upcasters: self.upcasters.clone(),
            codecs: self.codecs.clone(),
            read_back: self.read_back,
            retry: self.retry,
            confirm_after: self.confirm_after,
            clock: self.clock.clone(),
            ids: self.ids.clone(),
        }
    }
}
impl<A: Aggregate> Clone for Repository<A> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}
impl<A: Aggregate> fmt::Debug for Repository<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("aggregate", &A::Event::AGGREGATE)
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}

impl<A: Aggregate> Repository<A> {
    /// Creates a repository without snapshots, cache, command ids or upcasters of other crates, with
    /// [`ConflictRetry::default`] and the system's clock and ids.
    #[must_use]
    pub fn new(store: impl EventStore) -> Self {
        let store = shared::event_store(store);
        let asked = store.clone();
        let incarnation = Arc::new(move || asked.incarnation());
        let inner = Inner {
            turns: Turns::new(incarnation, 0),
            store,
            snapshots: None,
            load_policy: LoadPolicy::default(),
            snapshot_timeout: SNAPSHOT_TIMEOUT,
            counters: Arc::default(),
            skew: Arc::default(),
            idempotency: None,
            upcasters: Upcasters::new().with_own_of::<A::Event>(),
            codecs: PayloadCodecs::new(),
            read_back: ReadBack::default(),
            retry: ConflictRetry::default(),
            confirm_after: CONFIRM_AFTER,
            clock: Arc::new(SystemClock),
            ids: Arc::new(SystemIds),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner<A>)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }

    /// Reads snapshots, and takes them as the policy says: in the background, never delaying or failing a command.
    /// Outside of a tokio runtime none is taken. See [`close`](Self::close).
    ///
    /// A tokio runtime needs time for it (`enable_time`), since a load waits for the snapshot store for a
    /// [bounded time](Self::with_snapshot_timeout). With `Duration::MAX` for that time it needs none.
    #[must_use]
    pub fn with_snapshots(self, store: impl SnapshotStore, policy: SnapshotPolicy) -> Self
    where
        A: Snapshot,
    {
        self.edit(|i| {
            let store = shared::snapshot_store(store);
            let (codecs, counters) = (i.codecs.clone(), i.counters.clone());
            i.snapshots =
                Some(Snapshots::new(store, policy, codecs, counters).with_check(i.read_back));
        })
    }
    /// Sets the way of a load with snapshots: one round-trip time, or as little to read as possible. Default
    /// [`LoadPolicy::Auto`].
    #[must_use]
    pub fn with_load_policy(self, policy: LoadPolicy) -> Self {
        self.edit(|i| i.load_policy = policy)
    }
    /// Sets how long a load waits for the snapshot store, from the load's begin. Then the events are folded without a
    /// snapshot, so that a slow snapshot store does not hold up commands. Default 250 ms. Zero uses only a snapshot that is
    /// there at once; more than the fold of the longest stream takes is a waste. [`Duration::MAX`] waits for any answer.
    #[must_use]
    pub fn with_snapshot_timeout(self, timeout: Duration) -> Self {
        self.edit(|i| i.snapshot_timeout = timeout)
    }
    /// Keeps the states of about this many streams in memory, those used last: a command on one of them is one round
    /// trip. Costs the memory of the states; 0 keeps none, which is the default.
    #[must_use]
    pub fn with_cache(self, streams: usize) -> Self {
        self.edit(|i| i.turns = i.turns.sized(streams))
    }
    /// Sets how long a stream may be idle before the state that is kept of it is confirmed: before the next append, one
    /// read of one commit shows that the store still has that history. Default 5 min. `Duration::ZERO` turns it off.
    ///
    /// It guards against a table that was replaced by a backup of itself under a living process, on backends that cannot
    /// see that an append is after another history's head.
    #[must_use]
    pub fn with_confirm_after(self, idle: Duration) -> Self {
        self.edit(|i| i.confirm_after = idle)
    }
    /// Lifts older payloads of an event type that brings no upcasters of its own
    /// ([`DomainEvent::upcasters`](crate::DomainEvent::upcasters)), since it is of another crate.
    ///
    /// A name that the event type lifts itself is a mistake. Then every load, command and append of this repository fails
    /// with [`LoadError::Upcasters`].
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "as every other setting is given"
    )]
    pub fn with_upcasters(self, upcasters: Upcasters) -> Self {
        self.edit(|i| {
            i.upcasters = upcasters.with_own_of::<A::Event>();
            // What others have cached was folded with theirs.
            i.turns = i.turns.emptied();
        })
    }
    /// Stores payloads, and snapshots, in another form: encrypted, compressed. Everybody who reads these streams needs
    /// the same codecs, a [runner](crate::runner::RunnerBuilder::with_payload_codecs) too.
    #[must_use]
    pub fn with_payload_codecs(self, codecs: PayloadCodecs) -> Self {
        self.edit(|i| {
            i.snapshots = i.snapshots.take().map(|s| s.with_codecs(codecs.clone()));
            i.codecs = codecs;
            i.turns = i.turns.emptied();
        })
    }
    /// Stores events and snapshots without reading them back first.
    ///
    /// By default every new event is decoded again before it is stored, through upcasters and payload codecs, and compared
    /// with the event that was decided; the same is done with states for snapshots. An event that does not survive is
    /// [`CodecError::Encode`](crate::CodecError::Encode). That costs one decoding of each new event, and one opening where
    /// payload codecs sealed it. An equality that ignores a difference does not see the difference:
    /// [`DomainEvent::equals_decoded`](crate::DomainEvent::equals_decoded) and
    /// [`Snapshot::equals_decoded`](crate::Snapshot::equals_decoded) say what they see.
    ///
    /// Without the check a single event with NaN in an `f64`, or with a field that `skip_serializing_if` left out and that
    /// has no default, makes its stream unreadable forever, although its command was acknowledged. Other values silently
    /// come back changed. Switch the check off only where the events' values are known to survive, or where a process may
    /// seal payloads but not open them.
    #[must_use]
    pub fn without_encode_check(self) -> Self {
        self.edit(|i| {
            i.read_back = ReadBack::Unchecked;
            i.snapshots = i.snapshots.take().map(|s| s.with_check(i.read_back));
        })
    }
    /// Lets a command that carries a [command id](crate::Metadata::with_command_id) take effect at most once within
    /// `retention`. The price is one more write, and where the state is not [cached](Self::with_cache) one more read beside
    /// it: two round-trip times in all for a cached state, else three.
    ///
    /// `retention` must be at least as long as callers repeat a command; a day is a good start. Under a minute is refused by
    /// every command that carries an id ([`ExecuteError::RetentionTooShort`]). A command id that is used again after its
    /// retention is a new command.
    #[must_use]
    pub fn with_idempotency(self, control: impl ControlStore, retention: Duration) -> Self {
        self.edit(|i| {
            let control = shared::control_store(control);
            i.idempotency = Some(Idempotency { control, retention });
        })
    }
    /// Sets for how long a command that meets conflicts is decided again. Its pauses need a tokio runtime with time, as the
    /// publisher and the runner do.
    #[must_use]
    pub fn with_conflict_retry(self, retry: ConflictRetry) -> Self {
        self.edit(|i| i.retry = retry)
    }
    /// Replaces the system's clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        self.edit(|i| i.clock = clock)
    }
    /// Replaces the source of commit ids.
    #[must_use]
    pub fn with_ids(self, ids: Arc<dyn IdSource>) -> Self {
        self.edit(|i| i.ids = ids)
    }

    /// The stream of an id.
    ///
    /// # Errors
    /// [`InvalidStreamId`] if the id is empty or too long.
    pub fn stream_id(id: &A::Id) -> Result<StreamId, InvalidStreamId> {
        StreamId::new(A::Event::AGGREGATE, id)
    }

    /// The state as of now, from the store. A stream that does not exist is the default state at version 0.
    ///
    /// # Errors
    /// [`LoadError`]; never a state of a shorter history.
    pub async fn load(&self, id: &A::Id) -> Result<Loaded<A>, LoadError> {
        let loaded = self.load_stream(&Self::stream_id(id)?).await;
        loaded.inspect_err(|error| self.met_in_load(error))
    }

    /// The decoded events of a stream, oldest first, lazily. Retired events are left out.
    pub fn history(&self, id: &A::Id) -> BoxStream<'_, Result<Recorded<A::Event>, LoadError>> {
        let failed = |e: LoadError| futures::stream::once(async move { Err(e) }).boxed();
        let stream = match Self::stream_id(id) {
            Ok(stream) => stream,
            Err(e) => return failed(e.into()),
        };
        let upcasters = match self.upcasters() {
            Ok(upcasters) => upcasters,
            Err(e) => return failed(e),
        };
        let start = ReadFrom::After(StreamHead::empty(stream.clone()));
        let commits = self.inner.store.read(&stream, start, None);
        commits
            .then(async move |commit| {
                let opened = match commit {
                    Ok(commit) => self.open(commit).await,
                    Err(e) => {
                        self.met(&e);
                        Err(e.into())
                    }
                };
                futures::stream::iter(match opened {
                    Ok(commit) => fold::decode_recorded(&commit, upcasters),
                    Err(e) => vec![Err(e)],
                })
            })
            .flatten()
            .boxed()
    }

    /// Drops what this process and the snapshot store keep of a stream's state, so that the next load starts from the
    /// events. Call it after a key was deleted, in every process that has a [cache](Self::with_cache): states in
    /// memory are not encrypted.
    ///
    /// A load or a snapshot that had begun before may still store a snapshot after it: call it once nothing works on
    /// the stream, or twice. Snapshots that are sealed under the deleted key are of no use to anybody either way.
    ///
    /// # Errors
    /// [`ForgetError`]; ask again.
    pub async fn forget(&self, id: &A::Id) -> Result<(), ForgetError> {
        let stream = Self::stream_id(id)?;
        let mut turn = self.inner.turns.take(&stream).await;
        drop(turn.take_known());
        match &self.inner.snapshots {
            Some(snapshots) => Ok(snapshots.forget(&stream).await?),
            None => Ok(()),
        }
    }

    /// Returns the counts of this repository and its clones so far.
    pub fn metrics(&self) -> RepositoryMetrics {
        self.inner.counters.read()
    }

    /// Waits until every snapshot that is due has been written or given up. Call it before a process ends.
    pub async fn close(&self) {
        if let Some(snapshots) = &self.inner.snapshots {
            snapshots.settle().await;
        }
    }

    /// The upcasters that every event goes through that is read.
    fn upcasters(&self) -> Result<&Upcasters, LoadError> {
        let upcasters = self.inner.upcasters.as_ref();
        upcasters.map_err(|error| error.clone().into())
    }

    /// A commit as it was before it was sealed. Every commit that is read goes through here before it is folded.
    async fn open(&self, commit: Commit) -> Result<Commit, LoadError> {
        if !is_sealed(&commit) {
            return Ok(commit);
        }
        Box::pin(self.inner.codecs.open_commit(commit)).await
    }
}

/// Returns true if a codec wrote one of the commit's payloads.
fn is_sealed(commit: &Commit) -> bool {
    commit.events.iter().any(|event| event.codec.is_some())
}
