//! The state on which a command starts: the one that the last turn left if it can be trusted,
//! otherwise the store's.
//!
//! A head that is not the tail of the store's history is dangerous on a backend that looks only at
//! a slot, as DynamoDB does. An append after it leaves a hole, and the stream is unreadable from
//! then on. After a table was restored under its old name, everything that a running process
//! remembers has such heads. Three checks prevent their use:
//! ```text
//! the adapter's incarnation changes         states that were kept under another number are dropped
//! a call finds the table missing, replaced  all kept states are dropped
//! a stream was idle for minutes             the store is asked for the commit at the head; unless
//!                                           it has the commit id, the state is dropped
//! ```
//! A restore takes minutes in which calls fail, so a stream that is not idle meets the first or the
//! second check.
use super::{LoadError, Loaded, Repository, execute::Start, turns::Known, turns::Turn};
use crate::{
    Aggregate, StreamHead, StreamId,
    ports::{Commit, EventStoreError, ReadFrom, RefusedKind},
};
use std::time::Duration;

impl<A: Aggregate> Repository<A> {
    /// Returns the state that the last turn left, or else the store's.
    pub(super) async fn start(
        &self,
        stream: &StreamId,
        turn: &mut Turn<A>,
    ) -> Result<Start<A>, LoadError> {
        Ok(match self.known(turn).await? {
            Some(Known {
                head,
                loaded: Some(loaded),
                ..
            }) if loaded.head == head => Start::Cached(loaded),
            // Events were appended after the state was read: only they are missing.
            Some(Known {
                loaded: Some(loaded),
                ..
            }) => Start::Read(self.caught_up(loaded).await?),
            _ => Start::Read(self.load_stream(stream).await?),
        })
    }

    /// Returns the state that the last turn left, if a command may be decided on it without asking
    /// the store.
    pub(super) fn kept(&self, turn: &mut Turn<A>) -> Option<Loaded<A>> {
        let known = turn.take_known()?;
        match known {
            Known {
                ref head,
                loaded: Some(ref loaded),
                ..
            } if loaded.head == *head && !self.is_old(&known) => known.loaded,
            _ => {
                turn.keep_as_it_was(known);
                None
            }
        }
    }

    /// Returns the current state: the given one with what is new after it, or the store's.
    pub(super) async fn latest(
        &self,
        stream: &StreamId,
        loaded: Option<Loaded<A>>,
    ) -> Result<Loaded<A>, LoadError> {
        match loaded {
            Some(loaded) => self.caught_up(loaded).await,
            None => self.load_stream(stream).await,
        }
    }

    /// Reads and folds the events after a state.
    pub(super) async fn caught_up(&self, loaded: Loaded<A>) -> Result<Loaded<A>, LoadError> {
        Ok(self.fold_on(loaded.into_fold()).await?.finish())
    }

    /// Returns what the last turn left. If it is old, the store has confirmed it.
    pub(super) async fn known(&self, turn: &mut Turn<A>) -> Result<Option<Known<A>>, LoadError> {
        let Some(known) = turn.take_known() else {
            return Ok(None);
        };
        if !self.is_old(&known) || self.is_stored(&known.head).await? {
            return Ok(Some(known));
        }
        let stream = known.head.stream();
        tracing::warn!(%stream, version = %known.head.version(), "the store does not have the commit that this process remembers: the history was replaced, the stream is loaded again");
        Ok(None)
    }

    /// Returns true if the store must confirm what is known.
    fn is_old(&self, known: &Known<A>) -> bool {
        let after = self.inner.confirm_after;
        after > Duration::ZERO && known.idle() >= after
    }

    /// Returns true if the store has the commit that ends at this head.
    async fn is_stored(&self, head: &StreamHead) -> Result<bool, LoadError> {
        let Some(id) = head.commit_id() else {
            // An append at the beginning of a stream cannot leave a hole.
            return Ok(true);
        };
        let at = ReadFrom::NewestAtOrBelow(head.version());
        let found = self.first(head.stream(), at).await?;
        let is_it = |commit: &Commit| commit.id == id && commit.last_version() == head.version();
        Ok(found.as_ref().is_some_and(is_it))
    }

    /// Takes note of a failure: if the table was missing or replaced, all kept states are void.
    pub(super) fn met(&self, error: &EventStoreError) {
        let is_another = matches!(
            error,
            EventStoreError::Replaced { .. }
                | EventStoreError::Refused {
                    kind: RefusedKind::MissingTable,
                    ..
                }
        );
        if is_another {
            self.inner.turns.forget_all();
        }
    }
    /// Takes note of a failed read, as [`met`](Self::met) does.
    pub(super) fn met_in_load(&self, error: &LoadError) {
        if let LoadError::Store(error) = error {
            self.met(error);
        }
    }
}
