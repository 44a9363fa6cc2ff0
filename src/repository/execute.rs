//! The execution of a command: its decision, and the append of the events that follow from it.
use super::{
    ExecuteError, Executed, LoadError, Loaded, Repository, fold, prepare::Prepared,
    spans::append_span,
};
use crate::{
    Aggregate, Context, Decide, ExpectedVersion, Metadata, StreamHead, StreamId, Timestamp,
    VersionConflict,
    ports::{AppendOutcome, Commit, EventStoreError},
    resilience::{Attempts, FailureClass},
};
use futures::{Stream, StreamExt};
use std::time::Duration;
use tracing::Instrument;

/// The result of executing a command `C` on an aggregate `A`.
pub type ExecuteResult<A, C> = Result<Executed<A>, ExecuteError<<A as Decide<C>>::Error>>;

/// A command, and what its caller said about it.
pub(super) struct Request<'a, C> {
    pub(super) stream: &'a StreamId,
    pub(super) command: &'a C,
    pub(super) metadata: &'a Metadata,
    /// The state of the stream that the caller expects.
    pub(super) expected: ExpectedVersion,
}

/// The state on which a decision starts.
pub(super) enum Start<A> {
    /// A state that was kept. The stream may have moved in the store since.
    Cached(Loaded<A>),
    /// A state that was read during this command.
    Read(Loaded<A>),
}

/// A decision, and the state that it was made on.
pub(super) enum Decided<A: Aggregate, E> {
    Facts(Facts<A>),
    NoFacts(NoFacts<A, E>),
}

/// Events that follow from a command and are not stored yet.
pub(super) struct Facts<A: Aggregate> {
    pub(super) loaded: Loaded<A>,
    pub(super) events: Vec<A::Event>,
    pub(super) now: Timestamp,
}

/// The outcome of a command that stores nothing.
pub(super) struct NoFacts<A, E> {
    pub(super) loaded: Loaded<A>,
    pub(super) reason: Reason<E>,
}

/// The reason why a command stores nothing.
pub(super) enum Reason<E> {
    Rejected(E),
    NothingToDo,
    /// The stream is not at the version that the caller expects.
    Elsewhere(VersionConflict),
}

impl<A: Aggregate, E> NoFacts<A, E> {
    /// Returns the answer to the caller.
    pub(super) fn end(self) -> Result<Executed<A>, ExecuteError<E>> {
        match self.reason {
            Reason::Rejected(rejection) => Err(ExecuteError::Rejected(rejection)),
            Reason::NothingToDo => Ok(Executed::new(self.loaded, Vec::new(), false)),
            Reason::Elsewhere(conflict) => Err(ExecuteError::Conflict(conflict)),
        }
    }
}

impl<A: Aggregate> Repository<A> {
    /// Decides a command on the current state and stores the events that follow. After a conflict
    /// the command is decided again on the newer state, for at most the time that
    /// [`with_conflict_retry`](Self::with_conflict_retry) sets (default: 2 s).
    ///
    /// Commands and appends on one stream take turns within this process. A future that is not
    /// polled, or that waits for a store that does not answer, holds its turn meanwhile. After 30 s
    /// with others waiting a warning is logged. A command that must not wait needs a timeout around
    /// it.
    ///
    /// With a [cache](Self::with_cache) a command on a known stream takes one round trip. A refusal
    /// or "nothing to do" that was decided on a cached state is confirmed by a read first.
    ///
    /// # Cancellation
    /// If this future is dropped, the commit is stored as a whole or not at all.
    ///
    /// # Errors
    /// [`ExecuteError`] if the command had no effect, or none that is known. After
    /// `Store(Unavailable { pending: Some(_) })` the outcome is unknown: the caller must
    /// [`settle`](Self::settle) it before the command is sent again, because otherwise the command
    /// may be applied twice.
    pub async fn execute<C: Send + Sync>(
        &self,
        id: &A::Id,
        command: C,
    ) -> Result<Executed<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        self.execute_with(id, command, Metadata::new()).await
    }

    /// Executes a command as [`execute`](Self::execute) does, with a command id, correlation,
    /// causation, actor, trace, or entries of the user.
    ///
    /// A command id makes the command take effect once if the repository [is told
    /// to](Self::with_idempotency). Otherwise the id is only recorded.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn execute_with<C: Send + Sync>(
        &self,
        id: &A::Id,
        command: C,
        metadata: Metadata,
    ) -> Result<Executed<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        self.execute_at_with(id, ExpectedVersion::Any, command, metadata)
            .await
    }

    /// Decides a command on the state at exactly this version, as an HTTP request with `If-Match`
    /// demands. If the stream is at another version, or another writer is faster, the answer is a
    /// conflict at once.
    ///
    /// A command id still makes the command take effect once. A command that is sent again after it
    /// was stored is answered with the stored events, although those events have moved the stream.
    ///
    /// # Errors
    /// As [`execute`](Self::execute), and
    /// - `Conflict` if the stream is not as expected,
    /// - `Store(Invalid)` if the head belongs to another stream.
    ///
    /// # Example
    /// ```
    /// use foldstream_testkit::InMemoryEventStore;
    /// # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent};
    /// # use foldstream::{ExecuteError, Repository, Version, id};
    /// # id!(NoteId);
    /// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
    /// # #[event(aggregate = "note")]
    /// # enum NoteEvent { Written { text: String } }
    /// # #[derive(Clone, Default)]
    /// # struct Note;
    /// # impl Aggregate for Note {
    /// #     type Id = NoteId;
    /// #     type Event = NoteEvent;
    /// #     fn evolve(&mut self, _: &NoteEvent) {}
    /// # }
    /// # struct Write(&'static str);
    /// # impl Decide<Write> for Note {
    /// #     type Error = std::convert::Infallible;
    /// #     fn decide(&self, command: &Write, _: &Context) -> Decision<Self, Self::Error> {
    /// #         Ok(vec![NoteEvent::Written { text: command.0.into() }])
    /// #     }
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let notes = Repository::<Note>::new(InMemoryEventStore::new());
    /// let first = notes.execute_at(&"n".into(), Version::NONE, Write("milk")).await?;
    /// let etag = first.version();
    /// notes.execute_at(&"n".into(), etag, Write("milk, bread")).await?;
    /// // The other browser tab still shows the first version: 412 Precondition Failed.
    /// let late = notes.execute_at(&"n".into(), etag, Write("milk, eggs")).await;
    /// assert!(matches!(late, Err(ExecuteError::Conflict(_))));
    /// # Ok::<(), foldstream::BoxError>(()) })?;
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    pub async fn execute_at<C: Send + Sync>(
        &self,
        id: &A::Id,
        expected: impl Into<ExpectedVersion> + Send,
        command: C,
    ) -> Result<Executed<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        self.execute_at_with(id, expected, command, Metadata::new())
            .await
    }

    /// Executes a command as [`execute_at`](Self::execute_at) does, with metadata.
    ///
    /// # Errors
    /// As [`execute_at`](Self::execute_at).
    pub async fn execute_at_with<C: Send + Sync>(
        &self,
        id: &A::Id,
        expected: impl Into<ExpectedVersion> + Send,
        command: C,
        metadata: Metadata,
    ) -> Result<Executed<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        let stream = Self::stream_id(id)?;
        let expected = expected.into();
        if let Some(reason) = expected.head_of_another(&stream) {
            return Err(EventStoreError::Invalid { reason }.into());
        }
        let span = self.span::<C>(&stream, &metadata);
        let metadata = self.traced(&span, metadata);
        let request = Request {
            stream: &stream,
            command: &command,
            metadata: &metadata,
            expected,
        };
        let executed = async {
            match (&self.inner.idempotency, metadata.command_id()) {
                (Some(idempotency), Some(id)) => self.execute_once(request, id, idempotency).await,
                _ => self.execute_on(request).await,
            }
        };
        let executed = executed.instrument(span).await;
        executed.inspect_err(|error| match error {
            ExecuteError::Store(error) => self.met(error),
            ExecuteError::Load(error) => self.met_in_load(error),
            _ => {}
        })
    }

    /// Executes a command that takes effect as often as it is sent.
    async fn execute_on<C: Send + Sync>(
        &self,
        request: Request<'_, C>,
    ) -> Result<Executed<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        let mut turn = self.inner.turns.take(request.stream).await;
        let mut start = self.start(request.stream, &mut turn).await?;
        let mut attempts = Attempts::new(self.inner.retry.policy());
        loop {
            let facts = match self.decide(start, &request).await? {
                Decided::Facts(facts) => facts,
                Decided::NoFacts(end) => {
                    turn.keep(end.loaded.clone());
                    return end.end();
                }
            };
            // A new decision is new content, so it gets a new id.
            let commit_id = self.inner.ids.commit_id();
            // After a conflict, other writers are likely to be faster again. The state before the
            // events is kept then, so that the next attempt reads only what is new.
            let before = (attempts.failed() > 0).then(|| facts.loaded.clone());
            let prepared = self.prepare(facts, commit_id, request.metadata).await?;
            let stored = self.inner.store.append(&prepared.append);
            match stored.instrument(append_span(request.stream)).await {
                Ok(AppendOutcome::Appended(head)) => {
                    let executed = self.stored(prepared, head);
                    turn.keep(executed.loaded.clone());
                    return Ok(executed);
                }
                Ok(AppendOutcome::Repeated(commits)) => {
                    let executed = self.repeated(prepared, commits).await?;
                    turn.keep(executed.loaded.clone());
                    return Ok(executed);
                }
                Ok(AppendOutcome::Conflict(conflict)) => {
                    // A caller that expects a version is not served by a decision on a later one.
                    if request.expected != ExpectedVersion::Any
                        || !attempts.wait(FailureClass::Transient).await
                    {
                        return Err(ExecuteError::Conflict(conflict));
                    }
                    start = Start::Read(match before {
                        Some(before) => self.fold_on(before.into_fold()).await?.finish(),
                        None => self.load_stream(request.stream).await?,
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Executes many commands, `concurrency` at a time (0 counts as 1), and returns each result as
    /// soon as it is available. Commands on one stream are executed in the given order.
    ///
    /// While the stream of results is not polled, commands that have begun hold their turns. Drive
    /// it to its end before the same task awaits another command on one of these streams.
    pub fn execute_many<'a, C>(
        &'a self,
        commands: impl IntoIterator<Item = (A::Id, C), IntoIter: Send> + 'a,
        concurrency: usize,
    ) -> impl Stream<Item = (A::Id, ExecuteResult<A, C>)> + 'a
    where
        A: Decide<C>,
        C: Send + Sync + 'a,
    {
        let executions = commands.into_iter().map(move |(id, command)| async move {
            let result = self.execute(&id, command).await;
            (id, result)
        });
        futures::stream::iter(executions).buffer_unordered(concurrency.max(1))
    }

    /// Decides a command on a state.
    ///
    /// If a refusal, "nothing to do" or an unexpected version results from a cached state, it is
    /// confirmed by a read of what is new. A state that was just read needs no confirmation.
    pub(super) async fn decide<C>(
        &self,
        start: Start<A>,
        request: &Request<'_, C>,
    ) -> Result<Decided<A, A::Error>, LoadError>
    where
        A: Decide<C>,
    {
        let (mut loaded, mut is_cached) = match start {
            Start::Cached(loaded) => (loaded, true),
            Start::Read(loaded) => (loaded, false),
        };
        loop {
            let now = self.inner.clock.now();
            self.inner.skew.check(&loaded.head, now);
            let now = loaded.head.next_at(now);
            let decided = match request.expected.conflict(&loaded.head) {
                Some(conflict) => Err(Reason::Elsewhere(conflict)),
                None => {
                    let ctx = Context::new(loaded.head.stream().clone(), loaded.version(), now)
                        .with_metadata(request.metadata.clone());
                    match loaded.state.decide(request.command, &ctx) {
                        Ok(events) if events.is_empty() => Err(Reason::NothingToDo),
                        decided => decided.map_err(Reason::Rejected),
                    }
                }
            };
            if is_cached && decided.is_err() {
                let seen = loaded.version();
                loaded = self.fold_on(loaded.into_fold()).await?.finish();
                is_cached = false;
                if loaded.version() > seen {
                    continue;
                }
            }
            return Ok(match decided {
                Ok(events) => Decided::Facts(Facts {
                    loaded,
                    events,
                    now,
                }),
                Err(reason) => Decided::NoFacts(NoFacts { loaded, reason }),
            });
        }
    }

    /// Returns the result of prepared events that were stored and end at this head.
    pub(super) fn stored(&self, prepared: Prepared<A>, head: StreamHead) -> Executed<A> {
        let Prepared { after, events, .. } = prepared;
        let mut fold = after.into_fold();
        fold.move_to(head);
        Executed::new(self.offered(fold.finish()), events, false)
    }

    /// Offers a stored state to the snapshot writer.
    fn offered(&self, mut loaded: Loaded<A>) -> Loaded<A> {
        if let Some(snapshots) = &self.inner.snapshots {
            snapshots.offer(&mut loaded, Duration::ZERO, || self.inner.clock.now());
        }
        loaded
    }

    /// Returns the result of a commit that was in its slot already: the stored events count.
    pub(super) async fn repeated<E>(
        &self,
        prepared: Prepared<A>,
        commits: Vec<Commit>,
    ) -> Result<Executed<A>, ExecuteError<E>> {
        match &commits[..] {
            // The request was sent twice, which is the common case. The state needs no further
            // read, which could fail although the command was stored.
            [commit] if commit.events == prepared.append.events => {
                let mut executed = self.stored(prepared, commit.head());
                executed.repeated = true;
                Ok(executed)
            }
            // An earlier attempt with this command id made another decision.
            _ => {
                let loaded = self.load_stream(prepared.append.head.stream()).await?;
                self.stored_before(loaded, commits).await
            }
        }
    }

    /// Returns the answer of an earlier execution: its stored events, and the current state.
    pub(super) async fn stored_before<E>(
        &self,
        loaded: Loaded<A>,
        commits: Vec<Commit>,
    ) -> Result<Executed<A>, ExecuteError<E>> {
        let mut events = Vec::new();
        for commit in commits {
            let commit = self.open(commit).await?;
            for recorded in fold::decode_recorded(&commit, self.upcasters()?) {
                events.push(recorded?.event);
            }
        }
        Ok(Executed::new(loaded, events, true))
    }
}
