//! Appends of events without a decision, and the settlement of appends whose outcome is not known.
use super::{
    AppendError, FoldError, LoadError, Loaded, Repository, Settled, prepare::ahead, settle,
    spans::append_span, turns::Known,
};
use crate::{
    Aggregate, ExpectedVersion, Metadata, StreamHead, StreamId, Version, VersionConflict,
    ports::{Append, AppendOutcome, Commit, EventData, EventStoreError, PendingAppend, ReadFrom},
    resilience::{Attempts, FailureClass},
};
use std::sync::Arc;
use tracing::Instrument;

impl<A: Aggregate> Repository<A> {
    /// Stores events without a decision, and returns the new head. For events that were decided
    /// elsewhere, such as those of an import.
    ///
    /// Appends take turns with the commands on their stream in this process, and each leaves its
    /// head to the next. Many concurrent appends with [`ExpectedVersion::Any`] therefore do not
    /// conflict with each other.
    ///
    /// The events are decoded again before they are stored, as those of a command are. They are
    /// folded first only if the state at the stream's head is [cached](Self::with_cache), since an
    /// append does not load the state. Then an event that makes [`evolve`](Aggregate::evolve) panic
    /// is [`AppendError::Fold`]. Without a cached state such an event is stored, and every later
    /// load of the stream fails with [`LoadError::Fold`].
    ///
    /// # Cancellation
    /// If this future is dropped, the commit is stored as a whole or not at all.
    ///
    /// # Errors
    /// - `Conflict` if the stream is not as expected, or if no commit ends at a [`Version`] from
    ///   outside.
    /// - `Store(Invalid)` if there are no events, or if the head belongs to another stream.
    /// - Another [`AppendError`] if an event cannot be encoded, or if the store refuses or fails.
    pub async fn append(
        &self,
        id: &A::Id,
        expected: impl Into<ExpectedVersion> + Send,
        events: &[A::Event],
    ) -> Result<StreamHead, AppendError> {
        self.append_with(id, expected, events, Metadata::new())
            .await
    }

    /// Stores events as [`append`](Self::append) does, with metadata.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn append_with(
        &self,
        id: &A::Id,
        expected: impl Into<ExpectedVersion> + Send,
        events: &[A::Event],
        metadata: Metadata,
    ) -> Result<StreamHead, AppendError> {
        let expected = expected.into();
        let stream = Self::stream_id(id)?;
        if let Some(reason) = expected.head_of_another(&stream) {
            return Err(EventStoreError::Invalid { reason }.into());
        }
        let encoded = self.encode(events)?;
        let span = append_span(&stream);
        let metadata = self.traced(&span, metadata);
        let appended = self.append_in_turn(&stream, &expected, events, &encoded, &metadata);
        let appended = appended.instrument(span).await;
        appended.inspect_err(|error| match error {
            AppendError::Store(error) => self.met(error),
            AppendError::Load(error) => self.met_in_load(error),
            _ => {}
        })
    }

    /// Appends in the stream's turn and leaves the new head to the next turn, which then needs no
    /// read and meets no conflict.
    async fn append_in_turn(
        &self,
        stream: &StreamId,
        expected: &ExpectedVersion,
        events: &[A::Event],
        encoded: &Arc<[EventData]>,
        metadata: &Metadata,
    ) -> Result<StreamHead, AppendError> {
        let mut turn = self.inner.turns.take(stream).await;
        let mut known = self.known(&mut turn).await?;
        let mut attempts = Attempts::new(self.inner.retry.policy());
        loop {
            let head = match &known {
                Some(known) if known.is_at(expected) => known.head.clone(),
                _ => self.resolve(stream, expected).await?,
            };
            let after = match fold_ahead(known.as_ref(), &head, events) {
                Ok(after) => after,
                Err(error) => {
                    if let Some(known) = known {
                        turn.keep_as_it_was(known);
                    }
                    return Err(error.into());
                }
            };
            let (id, now) = (self.inner.ids.commit_id(), self.inner.clock.now());
            self.inner.skew.check(&head, now);
            let append =
                Append::after(head, id, now, encoded.clone()).with_metadata(metadata.clone());
            let append = self.seal(append).await?;
            let conflict = match self.inner.store.append(&append).await {
                Ok(AppendOutcome::Appended(_) | AppendOutcome::Repeated(_)) => {
                    let head = append.head_after();
                    let after = after.map(|after| {
                        let mut fold = after.into_fold();
                        fold.move_to(head.clone());
                        fold.finish()
                    });
                    let loaded = after.or_else(|| known.and_then(|known| known.loaded));
                    turn.keep_known(head.clone(), loaded);
                    return Ok(head);
                }
                Ok(AppendOutcome::Conflict(conflict)) => conflict,
                Err(error) => {
                    if let Some(known) = known.filter(|_| error.is_certainly_not_applied()) {
                        turn.keep_as_it_was(known);
                    }
                    return Err(error.into());
                }
            };
            // Only a caller that accepts any version is served by another attempt after the newer
            // events.
            if *expected != ExpectedVersion::Any || !attempts.wait(FailureClass::Transient).await {
                if let Some(known) = known.filter(|k| k.head.version() > append.head.version()) {
                    turn.keep_as_it_was(known);
                }
                return Err(AppendError::Conflict(conflict));
            }
            known = None;
        }
    }

    /// Returns the head that an expectation stands for.
    async fn resolve(
        &self,
        stream: &StreamId,
        expected: &ExpectedVersion,
    ) -> Result<StreamHead, AppendError> {
        match expected {
            ExpectedVersion::NoStream => Ok(StreamHead::empty(stream.clone())),
            ExpectedVersion::Any => {
                let newest = self.first(stream, ReadFrom::Newest).await?;
                Ok(newest.map_or_else(|| StreamHead::empty(stream.clone()), |c| c.head()))
            }
            ExpectedVersion::Head(head) => Ok(head.clone()),
            ExpectedVersion::Number(Version::NONE) => Ok(StreamHead::empty(stream.clone())),
            ExpectedVersion::Number(version) => {
                let found = self
                    .first(stream, ReadFrom::NewestAtOrBelow(*version))
                    .await?;
                let actual = found.as_ref().map_or(Version::NONE, Commit::last_version);
                match found {
                    Some(commit) if actual == *version => Ok(commit.head()),
                    _ => Err(AppendError::Conflict(VersionConflict::new(
                        stream.clone(),
                        *version,
                        Some(actual),
                    ))),
                }
            }
        }
    }

    /// Finds out whether an append was stored whose outcome was not known:
    /// [`EventStoreError::Unavailable`] with `pending`.
    ///
    /// # Errors
    /// [`LoadError`] if the slots of the append cannot be read. The call may be repeated.
    pub async fn settle(&self, pending: &PendingAppend) -> Result<Settled, LoadError> {
        let settled = settle::settle(&*self.inner.store, pending).await;
        settled.inspect_err(|error| self.met_in_load(error))
    }

    pub(super) async fn first(
        &self,
        stream: &StreamId,
        from: ReadFrom,
    ) -> Result<Option<Commit>, LoadError> {
        settle::first(&*self.inner.store, stream, from).await
    }
}

/// Folds events into a copy of the state that is known at the head before them; `None` if no state
/// is known there.
fn fold_ahead<A: Aggregate>(
    known: Option<&Known<A>>,
    head: &StreamHead,
    events: &[A::Event],
) -> Result<Option<Loaded<A>>, FoldError> {
    let loaded = known.and_then(|known| known.loaded.as_ref());
    let at_head = loaded.filter(|loaded| loaded.head == *head);
    at_head
        .map(|loaded| ahead(loaded.clone(), events))
        .transpose()
}
