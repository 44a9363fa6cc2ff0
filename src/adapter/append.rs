//! The decision of a store about an append, apart from its requests.
use super::version_conflict;
use crate::{
    StreamHead,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventStore, EventStoreError},
};

/// Answers [`EventStore::append`] by [`EventStore::append_all`] with one commit.
///
/// A store that writes both in the same way implements only `append_all`.
///
/// # Errors
/// Those of `append_all`.
pub async fn append_alone(
    store: &(impl EventStore + ?Sized),
    append: &Append,
) -> Result<AppendOutcome, EventStoreError> {
    let all = AppendAll::new(vec![append.clone()]);
    Ok(match store.append_all(&all).await? {
        AppendOutcome::Appended(_) => AppendOutcome::Appended(append.head_after()),
        AppendOutcome::Repeated(stored) => AppendOutcome::Repeated(stored),
        AppendOutcome::Conflict(conflict) => AppendOutcome::Conflict(conflict),
    })
}

/// Decides on an append by the commits that are stored: it is a repeat, it is a conflict, or it is
/// `None` and must be stored.
///
/// `slots` holds, for each of [`AppendAll::commits`] in order, the commit that is stored under the
/// version after its head. `tails` holds the heads of the streams as they are stored: for each of
/// the commits, then for each of [`AppendAll::unchanged`].
///
/// A repeat comes before a conflict, since a repeated append stays one however far the streams have
/// moved since. Stored commits of which only some are of this append are a conflict. Both lists
/// must be read in the transaction, or under the lock, in which the commits are then inserted.
///
/// # Example
/// ```
/// use foldstream::{CommitId, StreamHead, StreamId, Timestamp, adapter::append_answer, ports::*};
///
/// let empty = StreamHead::empty(StreamId::new("cart", "7")?);
/// let append = |events: Vec<EventData>| {
///     let append = Append::after(empty.clone(), CommitId::random(), Timestamp::now(), events);
///     AppendAll::new(vec![append])
/// };
/// let mine = append(vec![EventData::new("Opened", 1, "{}")]);
/// assert_eq!(append_answer(&mine, vec![None], &[empty.clone()]), None);
///
/// // The answer was lost, and the append is sent again.
/// let stored = mine.commits[0].to_commit();
/// let tail = [stored.head()];
/// let answer = append_answer(&mine, vec![Some(stored.clone())], &tail);
/// assert!(matches!(answer, Some(AppendOutcome::Repeated(_))));
///
/// let other = append(vec![EventData::new("Opened", 1, "{}")]);
/// let answer = append_answer(&other, vec![Some(stored)], &tail);
/// assert!(matches!(answer, Some(AppendOutcome::Conflict(_))));
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[must_use]
pub fn append_answer(
    all: &AppendAll,
    slots: Vec<Option<Commit>>,
    tails: &[StreamHead],
) -> Option<AppendOutcome<Vec<StreamHead>>> {
    let mine = all.commits.iter().zip(slots);
    let mine = mine.filter_map(|(append, slot)| slot.filter(|c| c.id == append.commit_id));
    let stored: Vec<Commit> = mine.collect();
    if stored.len() == all.commits.len() {
        return Some(AppendOutcome::Repeated(stored));
    }
    let heads = all.commits.iter().map(|append| &append.head);
    let heads = heads.chain(&all.unchanged);
    let (head, tail) = heads
        .zip(tails)
        .find(|(head, tail)| !tail.is_same_commit(head))?;
    let (stream, actual) = (head.stream().clone(), Some(tail.version()));
    let conflict = version_conflict(stream, head.version(), actual);
    Some(AppendOutcome::Conflict(conflict))
}
