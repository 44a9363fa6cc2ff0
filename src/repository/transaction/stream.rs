//! One stream of a transaction: its state, and the events that the transaction has made on it.
use super::{TransactionExecuted, invalid};
use crate::{
    Aggregate, CommitId, Context, Decide, Metadata, StreamHead, Timestamp, Version,
    ports::{Append, EventData},
    repository::{AppendError, ExecuteError, FoldError, Loaded, Repository, prepare::ahead},
};
use futures::future::BoxFuture;
use std::any::Any;

/// One stream of a transaction, of any aggregate type.
pub(super) trait Part: Send {
    fn as_any(&mut self) -> &mut dyn Any;
    fn head(&self) -> &StreamHead;
    /// Returns the sealed commit; `None` if there are no events.
    fn into_append(self: Box<Self>) -> BoxFuture<'static, Result<Option<Append>, AppendError>>;
}

/// One stream of a transaction, and its repository.
pub(super) struct Stream<A: Aggregate> {
    pub(super) repository: Repository<A>,
    /// The state with all events of the transaction. Its head is still the one that was read.
    pub(super) loaded: Loaded<A>,
    pub(super) commit: Option<NewCommit>,
}

/// The events of a transaction on one stream.
pub(super) struct NewCommit {
    id: CommitId,
    at: Timestamp,
    metadata: Metadata,
    events: Vec<EventData>,
}

impl<A: Aggregate> Part for Stream<A> {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
    fn head(&self) -> &StreamHead {
        &self.loaded.head
    }
    fn into_append(self: Box<Self>) -> BoxFuture<'static, Result<Option<Append>, AppendError>> {
        let Self {
            repository,
            loaded,
            commit,
        } = *self;
        Box::pin(async move {
            let Some(commit) = commit else {
                return Ok(None);
            };
            let append = Append::after(loaded.head, commit.id, commit.at, commit.events)
                .with_metadata(commit.metadata);
            repository.seal(append).await.map(Some)
        })
    }
}

impl<A: Aggregate> Stream<A> {
    /// Returns the version that the stream will have after the commit.
    pub(super) fn version(&self) -> Version {
        let new = self.commit.as_ref().map_or(0, |commit| commit.events.len());
        self.loaded.version().plus(new as u64)
    }

    pub(super) fn decide<C>(
        &mut self,
        command: &C,
        metadata: Metadata,
    ) -> Result<TransactionExecuted<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        let at = match &self.commit {
            // A commit has one time, and every decision sees it.
            Some(commit) => commit.at,
            None => {
                let now = self.repository.inner.clock.now();
                self.loaded.head.next_at(now)
            }
        };
        let ctx = Context::new(self.loaded.head.stream().clone(), self.version(), at)
            .with_metadata(metadata.clone());
        let before = self.loaded.clone();
        let events = before.state.decide(command, &ctx);
        let events = events.map_err(ExecuteError::Rejected)?;
        if !events.is_empty() {
            self.add(&events, at, metadata)?;
        }
        Ok(TransactionExecuted {
            before,
            after: self.loaded.clone(),
            version: self.version(),
            events,
        })
    }

    /// Adds events to the commit. Nothing is added if they cannot be stored.
    fn add<E>(
        &mut self,
        events: &[A::Event],
        at: Timestamp,
        metadata: Metadata,
    ) -> Result<(), ExecuteError<E>> {
        let is_other = |commit: &NewCommit| !metadata.is_empty() && commit.metadata != metadata;
        if self.commit.as_ref().is_some_and(is_other) {
            return Err(invalid(&format!(
                "two commands on {} have different metadata, but become one commit: give the same to both",
                self.loaded.head.stream()
            )));
        }
        let encoded = self.repository.encode(events)?;
        let after: Result<_, FoldError> = ahead(self.loaded.clone(), events);
        self.loaded = after?;
        let ids = &self.repository.inner.ids;
        let commit = self.commit.get_or_insert_with(|| NewCommit {
            id: ids.commit_id(),
            at,
            metadata,
            events: Vec::new(),
        });
        commit.events.extend_from_slice(&encoded);
        Ok(())
    }
}
