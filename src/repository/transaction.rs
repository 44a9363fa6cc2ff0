//! Commands on several streams that are stored together or not at all.
mod stream;
mod values;

pub use values::{Committed, TransactionExecuted, TransactionLoaded};

use super::{AppendError, ExecuteError, LoadError, Repository, Settled, settle};
use crate::{
    Aggregate, ConflictRetry, Decide, Metadata, StreamHead, StreamId, VersionConflict,
    ports::{
        Append, AppendAll, AppendOutcome, EventStore, EventStoreError, PendingAppend, ReadFrom,
        shared,
    },
    resilience::{Attempts, Failure, FailureClass},
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use stream::{Part, Stream};

/// Commands on several streams, possibly of several aggregate types, that are stored together or
/// not at all.
///
/// Each command is decided when it is added, on the state that the transaction has read or made
/// before. [`commit`](Self::commit) stores all events, provided that no stream that was read has
/// moved. [`run`](Self::run) does both, and starts again after a conflict. The store limits the
/// number of streams in one transaction:
/// [`Capabilities::max_streams_per_append`](crate::ports::Capabilities).
///
/// A transaction is a cheap handle. Its clones, even in other tasks, add to the same transaction.
///
/// # Several commands on one stream
/// A later command on a stream starts from the state after the earlier one. All their events become
/// *one* commit, with the time of the first command, since a stream has one commit in an atomic
/// append. A commit has one metadata: that of the first command that stored anything. A later
/// command with other metadata that is not empty is refused.
///
/// # Without events
/// A transaction that only read streams, and in which no command stored anything, has nothing to
/// write. Its commit reads the end of every stream again, one by one, and a stream that has moved
/// is a conflict. That check is *not atomic*: a stream may move while the next one is read.
///
/// # Example
/// ```
/// use foldstream_testkit::InMemoryEventStore;
/// # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Repository, id};
/// use foldstream::{ConflictRetry, ExecuteError, Transaction};
/// # id!(AccountId);
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "account")]
/// # enum AccountEvent { Deposited { amount: u64 }, Withdrawn { amount: u64 } }
/// # #[derive(Clone, Default)]
/// # struct Account { balance: u64 }
/// # impl Aggregate for Account {
/// #     type Id = AccountId;
/// #     type Event = AccountEvent;
/// #     fn evolve(&mut self, event: &AccountEvent) {
/// #         match event {
/// #             AccountEvent::Deposited { amount } => self.balance += amount,
/// #             AccountEvent::Withdrawn { amount } => self.balance -= amount,
/// #         }
/// #     }
/// # }
/// # #[derive(Debug, thiserror::Error)]
/// # #[error("not enough money")]
/// # struct NotEnough;
/// # struct Deposit(u64);
/// # struct Withdraw(u64);
/// # impl Decide<Deposit> for Account {
/// #     type Error = NotEnough;
/// #     fn decide(&self, command: &Deposit, _: &Context) -> Decision<Self, NotEnough> {
/// #         Ok(vec![AccountEvent::Deposited { amount: command.0 }])
/// #     }
/// # }
/// # impl Decide<Withdraw> for Account {
/// #     type Error = NotEnough;
/// #     fn decide(&self, command: &Withdraw, _: &Context) -> Decision<Self, NotEnough> {
/// #         if command.0 > self.balance { return Err(NotEnough) }
/// #         Ok(vec![AccountEvent::Withdrawn { amount: command.0 }])
/// #     }
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let store = InMemoryEventStore::new();
/// let accounts = Repository::<Account>::new(store.clone());
/// accounts.execute(&"ann".into(), Deposit(100)).await?;
///
/// let moved = Transaction::run(&store, ConflictRetry::default(), |tx| {
///     let accounts = accounts.clone();
///     async move {
///         let ann = tx.load(&accounts, &"ann".into()).await?;
///         let half = ann.state().balance / 2;
///         tx.execute(&accounts, &"ann".into(), Withdraw(half)).await?;
///         tx.execute(&accounts, &"bob".into(), Deposit(half)).await?;
///         Ok::<_, ExecuteError<NotEnough>>(half)
///     }
/// })
/// .await?;
/// assert_eq!((moved.value, moved.heads.len()), (50, 2));
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone)]
pub struct Transaction {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn EventStore>,
    parts: Mutex<Parts>,
    /// The repositories of the streams, kept even after the transaction is over, because they keep
    /// states of the store's history.
    repositories: Mutex<Vec<Box<dyn Listener>>>,
}

/// A repository of any aggregate type that must learn of a store that has lost its history.
trait Listener: Send + Sync {
    fn met(&self, error: &EventStoreError);
}
impl<A: Aggregate> Listener for Repository<A> {
    fn met(&self, error: &EventStoreError) {
        Self::met(self, error);
    }
}

/// The streams that a transaction has read, and its decisions on them.
#[derive(Default)]
struct Parts {
    streams: BTreeMap<StreamId, Box<dyn Part>>,
    /// The streams, in the order in which they were added.
    order: Vec<StreamId>,
    /// The heads that the caller wants to be checked.
    required: Vec<StreamHead>,
    is_over: bool,
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.inner.lock();
        f.debug_struct("Transaction")
            .field("store", &self.inner.store)
            .field("streams", &parts.order)
            .field("is_over", &parts.is_over)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Parts> {
        // Only a user's `decide` can panic under the lock, and it has changed nothing.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Returns the streams and heads, as long as the transaction is not committed.
    fn open(&self) -> Result<MutexGuard<'_, Parts>, EventStoreError> {
        let parts = self.lock();
        if parts.is_over {
            let reason = "the transaction is over: it was committed, or its attempt has ended";
            return Err(EventStoreError::Invalid {
                reason: reason.into(),
            });
        }
        Ok(parts)
    }
    fn repositories(&self) -> MutexGuard<'_, Vec<Box<dyn Listener>>> {
        let repositories = self.repositories.lock();
        repositories.unwrap_or_else(PoisonError::into_inner)
    }
    /// Tells every repository of the transaction about a failure.
    fn met(&self, error: &EventStoreError) {
        for repository in &*self.repositories() {
            repository.met(error);
        }
    }
    /// Tells every repository of the transaction about a failed read.
    fn met_in_load(&self, error: &LoadError) {
        if let LoadError::Store(error) = error {
            self.met(error);
        }
    }
    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        let outcome = self.store.append_all(all).await;
        outcome.inspect_err(|error| self.met(error))
    }
}

impl Transaction {
    /// Creates an empty transaction. Every repository used with it must be over the same store.
    #[must_use]
    pub fn new(store: impl EventStore) -> Self {
        Self::over(shared::event_store(store))
    }

    fn over(store: Arc<dyn EventStore>) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                parts: Mutex::default(),
                repositories: Mutex::default(),
            }),
        }
    }

    /// Runs `work` in a transaction and commits it.
    ///
    /// After a conflict, `work` is run again in a new transaction, within the time of the policy.
    /// If the outcome of a commit is unknown, it is settled: the streams are read, and the same
    /// commit is sent again while it may still be applied.
    ///
    /// `work` may run several times, so it must not have effects that cannot be repeated. An error
    /// that it returns ends the attempt without a commit, and is returned at once. It gets a
    /// handle, which it may clone into tasks. A task that outlives its attempt gets an error.
    ///
    /// # Cancellation
    /// If this future is dropped, the commits of at most one attempt are stored, all of them or
    /// none.
    ///
    /// # Errors
    /// The error that `work` returns, or an [`AppendError`] converted into it:
    /// - `Conflict` if other writers kept the streams moving for longer than the policy allows,
    /// - `Store(Unavailable { pending: Some(_) })` if the outcome stayed unknown.
    ///   [`Repository::settle`] of any of the repositories finds it out.
    pub async fn run<S, T, E, W, F>(
        store: &S,
        policy: ConflictRetry,
        mut work: W,
    ) -> Result<Committed<T>, E>
    where
        S: EventStore + Clone,
        W: FnMut(Self) -> F,
        F: Future<Output = Result<T, E>>,
        E: From<AppendError>,
    {
        let store = shared::event_store(store.clone());
        let mut attempts = Attempts::new(policy.policy());
        loop {
            let transaction = Self::over(store.clone());
            let value = match work(transaction.clone()).await {
                Ok(value) => value,
                Err(error) => {
                    // A task that still runs adds to nothing from here on.
                    transaction.inner.lock().is_over = true;
                    return Err(error);
                }
            };
            match transaction.commit_and_settle(&mut attempts).await {
                Ok(heads) => return Ok(Committed { value, heads }),
                Err(AppendError::Conflict(conflict)) => {
                    if !attempts.wait(FailureClass::Transient).await {
                        return Err(AppendError::Conflict(conflict).into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads a stream into the transaction. The stream must not move until the commit.
    ///
    /// A command on the stream starts from this state. A stream that is in the transaction already
    /// is returned with the events that the transaction has made.
    ///
    /// # Errors
    /// - `Load` if the stream cannot be read.
    /// - `Store(Invalid)` if the repository is over another store, or the transaction is over.
    pub async fn load<A: Aggregate>(
        &self,
        repository: &Repository<A>,
        id: &A::Id,
    ) -> Result<TransactionLoaded<A>, AppendError> {
        let stream = self.enlist(repository, id).await?;
        self.with(&stream, |part: &mut Stream<A>| {
            Ok(TransactionLoaded {
                loaded: part.loaded.clone(),
                version: part.version(),
            })
        })
    }

    /// Decides a command on the stream's state in the transaction, and adds its events. The state
    /// is read if it is not in the transaction yet.
    ///
    /// If there is nothing to do, the stream must still not move until the commit, since the
    /// decision rests on its state.
    ///
    /// # Errors
    /// [`ExecuteError`] if the command is refused, or its events cannot be encoded or folded;
    /// `Store(Invalid)` if the repository is over another store, or the transaction is over. A
    /// command that is refused adds nothing, and the transaction continues without it, but the
    /// stream must still not move.
    pub async fn execute<A, C>(
        &self,
        repository: &Repository<A>,
        id: &A::Id,
        command: C,
    ) -> Result<TransactionExecuted<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
        C: Send + Sync,
    {
        self.execute_with(repository, id, command, Metadata::new())
            .await
    }

    /// Executes a command as [`execute`](Self::execute) does, with metadata.
    ///
    /// # Errors
    /// As [`execute`](Self::execute), and `Store(Invalid)`
    /// - if the metadata has a command id, since a command id cannot make a transaction idempotent,
    /// - if the metadata differs from that of an earlier command on the same stream.
    pub async fn execute_with<A, C>(
        &self,
        repository: &Repository<A>,
        id: &A::Id,
        command: C,
        metadata: Metadata,
    ) -> Result<TransactionExecuted<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
        C: Send + Sync,
    {
        if metadata.command_id().is_some() {
            return Err(invalid(
                "a transaction takes no command id: it cannot be settled by one mark",
            ));
        }
        let stream = self.enlist(repository, id).await?;
        self.with(&stream, |part: &mut Stream<A>| {
            part.decide(&command, metadata)
        })
    }

    /// Requires that a stream that was read elsewhere has not moved. A transaction that is over
    /// ignores the call.
    pub fn require_unchanged(&self, head: &StreamHead) {
        self.inner.lock().required.push(head.clone());
    }

    /// Stores all events or none, and returns the new heads in the order in which the streams were
    /// added.
    ///
    /// # Cancellation
    /// If this future is dropped, all commits are stored or none.
    ///
    /// # Errors
    /// - `Conflict` if a stream has moved.
    /// - `Store(Invalid)` if another handle has committed already.
    /// - `Store(Unavailable { pending: Some(_) })` if the outcome is unknown.
    ///   [`Repository::settle`] of any of the repositories finds it out.
    /// - Another [`AppendError`] if the events cannot be stored.
    pub async fn commit(self) -> Result<Vec<StreamHead>, AppendError> {
        let all = self.close().await?;
        if all.commits.is_empty() {
            self.check(&all.unchanged).await?;
            return Ok(Vec::new());
        }
        match self.inner.append_all(&all).await? {
            AppendOutcome::Appended(heads) => Ok(heads),
            AppendOutcome::Repeated(_) => Ok(heads_after(&all)),
            AppendOutcome::Conflict(conflict) => Err(AppendError::Conflict(conflict)),
        }
    }

    /// Reads a stream, if the transaction does not have it yet.
    async fn enlist<A: Aggregate>(
        &self,
        repository: &Repository<A>,
        id: &A::Id,
    ) -> Result<StreamId, AppendError> {
        let stream = Repository::<A>::stream_id(id)?;
        if self.inner.store.identity() != repository.inner.store.identity() {
            let reason = "the repository is over another store than the transaction";
            return Err(EventStoreError::Invalid {
                reason: reason.into(),
            }
            .into());
        }
        if self.inner.open()?.streams.contains_key(&stream) {
            return Ok(stream);
        }
        let loaded = repository.load(id).await;
        let loaded = loaded.inspect_err(|error| self.inner.met_in_load(error))?;
        let mut parts = self.inner.open()?;
        let Parts { streams, order, .. } = &mut *parts;
        // Another task of this transaction may have read the stream meanwhile. Its state is as
        // good.
        if let Entry::Vacant(free) = streams.entry(stream.clone()) {
            free.insert(Box::new(Stream {
                repository: repository.clone(),
                loaded,
                commit: None,
            }));
            order.push(stream.clone());
            self.inner.repositories().push(Box::new(repository.clone()));
        }
        Ok(stream)
    }

    /// Calls a function with a stream that is in the transaction.
    fn with<A: Aggregate, T, E: From<EventStoreError>>(
        &self,
        stream: &StreamId,
        act: impl FnOnce(&mut Stream<A>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut parts = self.inner.open()?;
        let part = parts.streams.get_mut(stream);
        match part.and_then(|part| part.as_any().downcast_mut::<Stream<A>>()) {
            Some(part) => act(part),
            None => Err(EventStoreError::Invalid {
                reason: format!(
                    "stream {stream} is in the transaction already, as another aggregate"
                ),
            }
            .into()),
        }
    }

    /// Ends the transaction, and returns what is to be stored and to be checked.
    async fn close(&self) -> Result<AppendAll, AppendError> {
        let mut parts = {
            let mut open = self.inner.open()?;
            let over = Parts {
                is_over: true,
                ..Parts::default()
            };
            std::mem::replace(&mut *open, over)
        };
        let mut heads: BTreeMap<StreamId, StreamHead> = BTreeMap::new();
        let read = parts.streams.values().map(|part| part.head().clone());
        for head in read.chain(parts.required) {
            match heads.entry(head.stream().clone()) {
                Entry::Vacant(free) => {
                    free.insert(head);
                }
                Entry::Occupied(seen) if *seen.get() != head => {
                    // The stream has moved between the two reads.
                    return Err(AppendError::Conflict(conflict_at(&head, seen.get())));
                }
                Entry::Occupied(_) => {}
            }
        }
        let mut commits = Vec::new();
        for stream in &parts.order {
            let Some(part) = parts.streams.remove(stream) else {
                continue;
            };
            if let Some(append) = part.into_append().await? {
                heads.remove(stream);
                commits.push(append);
            }
        }
        Ok(AppendAll::new(commits).with_unchanged(heads.into_values().collect()))
    }

    /// Reads the end of each stream again, which is not atomic.
    async fn check(&self, unchanged: &[StreamHead]) -> Result<(), AppendError> {
        for expected in unchanged {
            let stream = expected.stream();
            let newest = settle::first(&*self.inner.store, stream, ReadFrom::Newest).await;
            let newest = newest.inspect_err(|error| self.inner.met_in_load(error))?;
            let found = newest.map_or_else(|| StreamHead::empty(stream.clone()), |c| c.head());
            if (found.version(), found.commit_id()) != (expected.version(), expected.commit_id()) {
                return Err(AppendError::Conflict(conflict_at(expected, &found)));
            }
        }
        Ok(())
    }

    /// Repeats [`commit`](Self::commit) until its outcome is known or its time is over.
    async fn commit_and_settle(
        &self,
        attempts: &mut Attempts<'_>,
    ) -> Result<Vec<StreamHead>, AppendError> {
        let all = self.close().await?;
        let Some(first) = all.commits.first() else {
            self.check(&all.unchanged).await?;
            return Ok(Vec::new());
        };
        let superseded = || {
            let (stream, version) = (first.head.stream().clone(), first.head.version());
            AppendError::Conflict(VersionConflict::new(stream, version, None))
        };
        // Once an outcome is unknown, it stays unknown until the slots tell. A later "throttled"
        // says nothing about it.
        let mut unknown: Option<EventStoreError> = None;
        loop {
            let error = match self.inner.append_all(&all).await {
                Ok(AppendOutcome::Appended(heads)) => return Ok(heads),
                Ok(AppendOutcome::Repeated(_)) => return Ok(heads_after(&all)),
                Ok(AppendOutcome::Conflict(conflict)) if unknown.is_none() => {
                    return Err(AppendError::Conflict(conflict));
                }
                Ok(AppendOutcome::Conflict(_)) => None,
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                let class = error.failure_class();
                if !error.is_certainly_not_applied() {
                    unknown = Some(error);
                } else if unknown.is_none() {
                    if !attempts.wait(class).await {
                        return Err(error.into());
                    }
                    continue;
                }
            }
            let pending = PendingAppend::new(all.clone());
            let settled = settle::settle(&*self.inner.store, &pending).await;
            match settled.inspect_err(|error| self.inner.met_in_load(error)) {
                Ok(Settled::Applied(heads)) => return Ok(heads),
                Ok(Settled::Superseded) => return Err(superseded()),
                // The slots are still open, or cannot be read now.
                Ok(Settled::Open) => {}
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(unknown.map_or_else(|| error.into(), AppendError::from)),
            }
            if !attempts.wait(FailureClass::Transient).await {
                return Err(unknown.map_or_else(superseded, AppendError::from));
            }
        }
    }
}

fn heads_after(all: &AppendAll) -> Vec<StreamHead> {
    all.commits.iter().map(Append::head_after).collect()
}

fn conflict_at(expected: &StreamHead, found: &StreamHead) -> VersionConflict {
    let (stream, version) = (expected.stream().clone(), expected.version());
    VersionConflict::new(stream, version, Some(found.version()))
}

fn invalid<E>(reason: &str) -> ExecuteError<E> {
    ExecuteError::Store(EventStoreError::Invalid {
        reason: reason.into(),
    })
}
