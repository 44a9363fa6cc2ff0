//! The preparation of new events before they are stored.
//!
//! ```text
//! encode -> decode and compare -> seal -> open and compare -> fold into the state -> store
//! ```
//! Nothing is stored that a later load could not read or fold. Each step runs code of the user. A
//! failure or a panic in any step is a typed error, and the command has no effect.
//!
//! The fold is done in place, without a copy of the state. The state before the events is therefore
//! gone when the store answers, and after any answer but "stored" the next attempt reads the stream
//! again. A caller that wants to keep the state before the events holds a clone of the [`Loaded`],
//! which makes the fold copy the state.
use super::{AppendError, ExecuteError, FoldError, Loaded, Repository, execute::Facts};
use crate::{
    Aggregate, CommitId, Metadata, PayloadCodecs,
    codec::{self, ReadBack, SealedBut},
    ports::{Append, EventData},
};
use futures::FutureExt;
use std::{panic::AssertUnwindSafe, sync::Arc};

/// Events that are ready to be stored.
pub(super) struct Prepared<A: Aggregate> {
    pub(super) append: Append,
    pub(super) events: Vec<A::Event>,
    /// The state with the events. Its head is still the one before them.
    pub(super) after: Loaded<A>,
}

impl<A: Aggregate> Repository<A> {
    /// Creates the request that stores events, and the state after them.
    pub(super) async fn prepare<E>(
        &self,
        facts: Facts<A>,
        commit_id: CommitId,
        metadata: &Metadata,
    ) -> Result<Prepared<A>, ExecuteError<E>> {
        let Facts {
            loaded,
            events,
            now,
        } = facts;
        let encoded = self.encode(&events)?;
        let append = Append::after(loaded.head.clone(), commit_id, now, encoded)
            .with_metadata(metadata.clone());
        let append = self.seal(append).await?;
        let after = ahead(loaded, &events)?;
        Ok(Prepared {
            append,
            events,
            after,
        })
    }

    /// Encodes events in the form that the store takes.
    pub(super) fn encode(&self, events: &[A::Event]) -> Result<Arc<[EventData]>, AppendError> {
        let encoded = codec::encode_events(events, self.upcasters()?, self.inner.read_back);
        Ok(encoded?)
    }

    /// Seals the payloads of an append, as it is sent to the store.
    pub(super) fn seal(
        &self,
        append: Append,
    ) -> impl Future<Output = Result<Append, AppendError>> + Send {
        seal_append(append, &self.inner.codecs, self.inner.read_back)
    }
}

/// Validates an append, and seals its payloads as a repository with these codecs does.
pub(crate) async fn seal_append(
    append: Append,
    codecs: &PayloadCodecs,
    check: ReadBack,
) -> Result<Append, AppendError> {
    append.validate()?;
    if codecs.is_empty() {
        return Ok(append);
    }
    // Boxed, so that a repository without codecs does not carry the size of this future.
    let sealing = Box::pin(codecs.seal_append(append, check));
    match AssertUnwindSafe(sealing).catch_unwind().await {
        Ok(sealed) => Ok(sealed?),
        Err(_) => Err(codec::not_opened("an event", SealedBut::Panicked).into()),
    }
}

/// Returns a state with events that are not stored yet.
pub(super) fn ahead<A: Aggregate>(
    loaded: Loaded<A>,
    events: &[A::Event],
) -> Result<Loaded<A>, FoldError> {
    let mut fold = loaded.into_fold();
    fold.take_new(events)?;
    Ok(fold.finish())
}
