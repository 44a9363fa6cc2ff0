//! Finds out whether appends with an unknown outcome were stored.
use super::{LoadError, Settled};
use crate::{
    StreamId,
    ports::{Append, AppendAll, Commit, EventStore, PendingAppend, ReadFrom},
};
use futures::TryStreamExt;
use std::num::NonZeroU32;

const ONE: Option<NonZeroU32> = NonZeroU32::new(1);

/// Returns the outcome of an append, from its slots and the streams that it checks.
pub(super) async fn settle(
    store: &dyn EventStore,
    pending: &PendingAppend,
) -> Result<Settled, LoadError> {
    let AppendAll {
        commits, unchanged, ..
    } = pending.append();
    // The checked streams are read before the slots. A checked stream that has moved never moves
    // back, so an append that is not in its slot at that time can never be stored afterwards.
    let mut has_moved = false;
    for head in unchanged {
        let next = first(store, head.stream(), ReadFrom::After(head.clone())).await?;
        has_moved |= next.is_some();
    }
    for append in commits {
        let slot = ReadFrom::After(append.head.clone());
        match first(store, append.head.stream(), slot).await? {
            // Appends are atomic: one of its commits stands for all.
            Some(commit) if commit.id == append.commit_id => {
                let heads = commits.iter().map(Append::head_after).collect();
                return Ok(Settled::Applied(heads));
            }
            Some(_) => return Ok(Settled::Superseded),
            None => {}
        }
    }
    Ok(if has_moved {
        Settled::Superseded
    } else {
        Settled::Open
    })
}

/// Returns the first commit of a read.
pub(super) async fn first(
    store: &dyn EventStore,
    stream: &StreamId,
    from: ReadFrom,
) -> Result<Option<Commit>, LoadError> {
    let mut commits = store.read(stream, from, ONE);
    Ok(commits.try_next().await?)
}
