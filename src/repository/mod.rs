//! [`Repository`]: loads a state, decides a command on it, and appends the events.
//!
//! ```text
//! load (a snapshot that fits the history, then what follows) -> decide -> append
//!   stored    the new events are folded; the background writer gets a state whose snapshot is due
//!   repeated  the slot holds this very commit, whose answer was lost: the *stored* events count
//!   conflict  read what is new, decide again under a new commit id; bounded, with jitter
//!   unknown   `Unavailable { pending }`: the caller settles it with `Repository::settle`
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
mod timeline;
mod difference;
mod fold;
mod error;
mod metrics;
mod skew;
mod snapshots;
mod spans;
mod turns;
mod values;

pub use difference::{Difference, InapplicableDifference};
pub use error::{AppendError, ExecuteError, FoldError, ForgetError, LoadError, Rejection};
pub use execute::ExecuteResult;
pub use metrics::{LoadMetrics, RepositoryMetrics, SnapshotMetrics};
pub use timeline::{StateStep, TimelineError, TimelineStep};
pub use transaction::{Committed, Transaction, TransactionExecuted, TransactionLoaded};
pub use travel::{AsOf, Historical};
pub use values::{Executed, Loaded, Settled, StepEffect};

pub(crate) use prepare::seal_append;

use crate::{
    Aggregate, Clock, ConflictRetry, DomainEvent, IdSource, InvalidStreamId, InvalidUpcasters,
    LoadPolicy, PayloadCodecs, Recorded, Snapshot, SnapshotPolicy, StreamHead, StreamId,
    SystemClock, SystemIds, TraceContext, Upcasters,
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

/// The default time that a load waits for the snapshot store.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_millis(250);

/// The default time after which the state of an idle stream is confirmed before the next append.
const CONFIRM_AFTER: Duration = Duration::from_secs(300);

/// The streams of one aggregate type: loads their states, executes commands on them, and appends
/// events.
///
/// Cloning a repository is cheap, and the clones share the cache and the snapshot writer.
///
/// # Example
/// ```
/// use foldstream_testkit::InMemoryEventStore;
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
/// #     fn evolve(&mut self, event: &CounterEvent) {
/// #         let CounterEvent::Counted { by } = event;
/// #         self.total += by;
/// #     }
/// # }
/// # struct Count(u64);
/// # impl Decide<Count> for Counter {
/// #     type Error = std::convert::Infallible;
/// #     fn decide(&self, command: &Count, _: &Context) -> Decision<Self, Self::Error> {
/// #         Ok(vec![CounterEvent::Counted { by: command.0 }])
/// #     }
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let counters = Repository::<Counter>::new(InMemoryEventStore::new());
/// let done = counters.execute(&"visits".into(), Count(2)).await?;
/// assert_eq!((done.state().total, done.version().get()), (2, 1));
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
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
    /// The upcasters, with those of the event type; or the reason why they do not go together.
    upcasters: Result<Upcasters, InvalidUpcasters>,
    codecs: PayloadCodecs,
    read_back: ReadBack,
    retry: ConflictRetry,
    confirm_after: Duration,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    trace: Option<Arc<dyn TraceContext>>,
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
            trace: self.trace.clone(),
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
    /// Creates a repository over a store.
    ///
    /// It has no snapshots, no cache, no idempotency and no additional upcasters. It uses
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
            trace: None,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner<A>)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }

    /// Reads snapshots, and takes them according to the policy.
    ///
    /// Snapshots are written in the background and never delay or fail a command. Outside a tokio
    /// runtime none is taken. [`close`](Self::close) waits for the writer.
    ///
    /// The tokio runtime needs its time driver (`enable_time`), since a load waits for the snapshot
    /// store for a [bounded time](Self::with_snapshot_timeout). With `Duration::MAX` as that time
    /// it needs none.
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
    /// Sets the way in which a load reads snapshots: in one round-trip time, or with as little to
    /// read as possible. Default: [`LoadPolicy::Auto`].
    #[must_use]
    pub fn with_load_policy(self, policy: LoadPolicy) -> Self {
        self.edit(|i| i.load_policy = policy)
    }
    /// Sets the time that a load waits for the snapshot store, from the beginning of the load.
    /// Default: 250 ms.
    ///
    /// After that time the load folds the events without a snapshot, so that a slow snapshot store
    /// does not delay commands. Zero uses only a snapshot that is available at once. A time longer
    /// than the fold of the longest stream is useless. [`Duration::MAX`] waits for any answer.
    #[must_use]
    pub fn with_snapshot_timeout(self, timeout: Duration) -> Self {
        self.edit(|i| i.snapshot_timeout = timeout)
    }
    /// Keeps the states of about this many recently used streams in memory. 0, the default, keeps
    /// none.
    ///
    /// A command on a cached stream takes one round trip. The cost is the memory of the states.
    #[must_use]
    pub fn with_cache(self, streams: usize) -> Self {
        self.edit(|i| i.turns = i.turns.sized(streams))
    }
    /// Sets how long a stream may be idle before its cached state is confirmed. Default: 5 minutes.
    /// `Duration::ZERO` turns confirmation off.
    ///
    /// To confirm a state, the repository reads one commit before the next append, which shows that
    /// the store still has that history. This protects against a table that was replaced by its own
    /// backup while the process was running, on backends that cannot see that an append is after
    /// the head of another history.
    #[must_use]
    pub fn with_confirm_after(self, idle: Duration) -> Self {
        self.edit(|i| i.confirm_after = idle)
    }
    /// Adds upcasters for an event type of another crate that has none of its own
    /// ([`DomainEvent::upcasters`](crate::DomainEvent::upcasters)).
    ///
    /// A name that the event type lifts itself is a mistake. Then every load, command and append of
    /// this repository fails with [`LoadError::Upcasters`].
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "as every other setting is given"
    )]
    pub fn with_upcasters(self, upcasters: Upcasters) -> Self {
        self.edit(|i| {
            i.upcasters = upcasters.with_own_of::<A::Event>();
            // What other repositories have cached was folded with their upcasters.
            i.turns = i.turns.emptied();
        })
    }
    /// Stores payloads and snapshots in another form, such as encrypted or compressed.
    ///
    /// Every reader of these streams needs the same codecs, including a
    /// [runner](crate::runner::RunnerBuilder::with_payload_codecs).
    #[must_use]
    pub fn with_payload_codecs(self, codecs: PayloadCodecs) -> Self {
        self.edit(|i| {
            i.snapshots = i.snapshots.take().map(|s| s.with_codecs(codecs.clone()));
            i.codecs = codecs;
            i.turns = i.turns.emptied();
        })
    }
    /// Stores events and snapshots without decoding them first.
    ///
    /// By default every new event is decoded again before it is stored, through upcasters and
    /// payload codecs, and compared with the event that was decided. States are compared in the
    /// same way before they become snapshots. An event that does not survive is
    /// [`CodecError::Encode`](crate::CodecError::Encode). The check costs one decoding of each new
    /// event, and one opening where payload codecs sealed it.
    /// [`DomainEvent::equals_decoded`](crate::DomainEvent::equals_decoded) and
    /// [`Snapshot::equals_decoded`](crate::Snapshot::equals_decoded) describe the differences that
    /// it sees.
    ///
    /// Without the check, a single event with NaN in an `f64`, or with a field that
    /// `skip_serializing_if` left out and that has no default, makes its stream unreadable forever,
    /// although its command was acknowledged. Other values silently come back changed. Turn the
    /// check off only if the values of all events are known to survive, or if the process may seal
    /// payloads but not open them.
    #[must_use]
    pub fn without_encode_check(self) -> Self {
        self.edit(|i| {
            i.read_back = ReadBack::Unchecked;
            i.snapshots = i.snapshots.take().map(|s| s.with_check(i.read_back));
        })
    }
    /// Lets a command that carries a [command id](crate::Metadata::with_command_id) take effect at
    /// most once within `retention`.
    ///
    /// `retention` must be at least as long as callers repeat a command; one day is a good start. A
    /// command id that is used again after its retention is a new command. A retention under one
    /// minute makes every command with an id fail with [`ExecuteError::RetentionTooShort`].
    ///
    /// The price is one more write and, where the state is not [cached](Self::with_cache), one more
    /// concurrent read. In total a command takes two round-trip times with a cached state, and
    /// three without.
    #[must_use]
    pub fn with_idempotency(self, control: impl ControlStore, retention: Duration) -> Self {
        self.edit(|i| {
            let control = shared::control_store(control);
            i.idempotency = Some(Idempotency { control, retention });
        })
    }
    /// Sets how long a command that meets conflicts is decided again. Its pauses need a tokio
    /// runtime with its time driver, as the publisher and the runner do.
    #[must_use]
    pub fn with_conflict_retry(self, retry: ConflictRetry) -> Self {
        self.edit(|i| i.retry = retry)
    }
    /// Stores the trace context of a command's span with its events, if the caller gives none by
    /// [`Metadata::with_traceparent`](crate::Metadata::with_traceparent). Without this, only what
    /// the caller gives is stored. Transactions store what the caller gives.
    #[must_use]
    pub fn with_trace_context(self, trace: impl TraceContext) -> Self {
        self.edit(|i| i.trace = Some(Arc::new(trace)))
    }
    /// Sets the clock that the repository uses. Default: the system's clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        self.edit(|i| i.clock = clock)
    }
    /// Sets the source of commit ids. Default: the system's clock and randomness.
    #[must_use]
    pub fn with_ids(self, ids: Arc<dyn IdSource>) -> Self {
        self.edit(|i| i.ids = ids)
    }

    /// Returns the stream of an aggregate id.
    ///
    /// # Errors
    /// [`InvalidStreamId`] if the id cannot name a stream, for instance because it is empty or too
    /// long.
    pub fn stream_id(id: &A::Id) -> Result<StreamId, InvalidStreamId> {
        StreamId::new(A::Event::AGGREGATE, id)
    }

    /// Loads the current state from the store. A stream that does not exist has the default state
    /// at version 0.
    ///
    /// # Errors
    /// [`LoadError`] if the store cannot be read, or if an event cannot be decoded or folded. The
    /// state is never that of a shorter history.
    pub async fn load(&self, id: &A::Id) -> Result<Loaded<A>, LoadError> {
        let loaded = self.load_stream(&Self::stream_id(id)?).await;
        loaded.inspect_err(|error| self.met_in_load(error))
    }

    /// Returns the decoded events of a stream lazily, oldest first. Retired events are left out.
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

    /// Drops everything that this process and the snapshot store keep of a stream's state, so that
    /// the next load starts from the events.
    ///
    /// Call it after an encryption key was deleted, in every process that has a
    /// [cache](Self::with_cache): states in memory are not encrypted. A load or a snapshot that
    /// began before the call may still store a snapshot after it. Call it once nothing works on the
    /// stream, or twice. A snapshot that is sealed with the deleted key is useless in any case.
    ///
    /// # Errors
    /// [`ForgetError`] if the id cannot name a stream, or if the stored snapshot could not be
    /// deleted. The call may be repeated.
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

    /// Waits until every due snapshot has been written or given up. Call it before the process
    /// ends.
    pub async fn close(&self) {
        if let Some(snapshots) = &self.inner.snapshots {
            snapshots.settle().await;
        }
    }

    /// Returns the upcasters through which every event goes that is read.
    fn upcasters(&self) -> Result<&Upcasters, LoadError> {
        let upcasters = self.inner.upcasters.as_ref();
        upcasters.map_err(|error| error.clone().into())
    }

    /// Opens a commit, as it was before it was sealed. Every commit that is read goes through here
    /// before it is folded.
    async fn open(&self, commit: Commit) -> Result<Commit, LoadError> {
        if !is_sealed(&commit) {
            return Ok(commit);
        }
        Box::pin(self.inner.codecs.open_commit(commit)).await
    }
}

/// Returns true if a payload codec wrote one of the commit's payloads.
fn is_sealed(commit: &Commit) -> bool {
    commit.events.iter().any(|event| event.codec.is_some())
}
