//! Commands on several streams that happen together or not at all.
use super::{
    AppendError, ExecuteError, Repository,
    execute::{Decided, Request, Start},
};
use crate::{
    Decide, ExpectedVersion, Metadata, StreamHead,
    ports::{Append, AppendAll, AppendOutcome, EventStore, EventStoreError, shared},
};
use std::sync::Arc;

/// Commands on several streams, possibly of several aggregate types, that happen together or not at all.
///
/// Each command is decided when it is added; [`commit`](Self::commit) stores all of them, provided that no stream that
/// was decided on has moved. It is not decided again after a conflict: make a new transaction. How many streams one may
/// touch is up to the store: [`Capabilities::max_streams_per_append`](crate::ports::Capabilities).
#[derive(Debug)]
pub struct Transaction {
    store: Arc<dyn EventStore>,
    all: AppendAll,
}

impl Transaction {
    /// An empty one. Every repository used with it must be over the same store.
    #[must_use]
    pub fn new(store: impl EventStore) -> Self {
        Self {
            store: shared::event_store(store),
            all: AppendAll::default(),
        }
    }

    /// Decides a command on the stream's state as of now and adds its events, which are returned. If there is nothing to
    /// do, the stream must still not move until the commit, since the decision rests on it.
    ///
    /// # Errors
    /// [`ExecuteError`]; `Store(Invalid)` for a stream that is in the transaction already, or a repository over another store.
    pub async fn execute<A, C>(
        &mut self,
        repository: &Repository<A>,
        id: &A::Id,
        command: C,
    ) -> Result<Vec<A::Event>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
        C: Send + Sync,
    {
        self.execute_with(repository, id, command, Metadata::new())
            .await
    }

    /// [`execute`](Self::execute) with metadata.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); `Store(Invalid)` for a command id, since a transaction cannot be made idempotent by one.
    pub async fn execute_with<A, C>(
        &mut self,
        repository: &Repository<A>,
        id: &A::Id,
        command: C,
        metadata: Metadata,
    ) -> Result<Vec<A::Event>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
        C: Send + Sync,
    {
        if metadata.command_id().is_some() {
            return Err(invalid(
                "a transaction takes no command id: it cannot be settled by one mark",
            ));
        }
        if self.store.identity() != repository.inner.store.identity() {
            return Err(invalid(
                "the repository is over another store than the transaction",
            ));
        }
        let loaded = repository.load(id).await?;
        let stream = loaded.head().stream();
        let mut heads = self
            .all
            .commits
            .iter()
            .map(|a| &a.head)
            .chain(&self.all.unchanged);
        if heads.any(|head| head.stream() == stream) {
            return Err(invalid(&format!(
                "stream {stream} is in the transaction already"
            )));
        }
        let stream = stream.clone();
        let request = Request {
            stream: &stream,
            command: &command,
            metadata: &metadata,
            expected: ExpectedVersion::Any,
        };
        match repository.decide(Start::Read(loaded), &request).await? {
            Decided::NoFacts(end) => {
                let nothing = end.end()?;
                self.all.unchanged.push(nothing.loaded.head);
                Ok(Vec::new())
            }
            Decided::Facts(facts) => {
                let id = repository.inner.ids.commit_id();
                let prepared = repository.prepare(facts, id, &metadata).await?;
                self.all.commits.push(prepared.append);
                Ok(prepared.events)
            }
        }
    }

    /// Requires that a stream that was only read has not moved.
    pub fn require_unchanged(&mut self, head: &StreamHead) {
        self.all.unchanged.push(head.clone());
    }

    /// Stores all or nothing; the new heads, in the order of the commands that had something to store.
    ///
    /// # Errors
    /// [`AppendError`]: `Conflict` if a stream has moved; `Store(Unavailable { pending: Some(_) })` if the outcome is
    /// unknown: [`Repository::settle`] of any of the repositories tells.
    pub async fn commit(self) -> Result<Vec<StreamHead>, AppendError> {
        if self.all.commits.is_empty() {
            return Ok(Vec::new());
        }
        match self.store.append_all(&self.all).await? {
            AppendOutcome::Appended(heads) => Ok(heads),
            AppendOutcome::Repeated(_) => {
                Ok(self.all.commits.iter().map(Append::head_after).collect())
            }
            AppendOutcome::Conflict(conflict) => Err(AppendError::Conflict(conflict)),
        }
    }
}

fn invalid<E>(reason: &str) -> ExecuteError<E> {
    ExecuteError::Store(EventStoreError::Invalid {
        reason: reason.into(),
    })
}
