//! The append: conditional writes, and the resolution of their outcome.
//!
//! A commit that fits into one item is one put. A larger commit is split between events, and
//! several streams are written together. Both are one transaction, which also checks the streams
//! that were only read. Every item is written only if its slot is empty. The condition `ABSENT` in
//! `request.rs` says so, and decides which of two writers at one slot wins. The slot of a commit is
//! the key after the head that its writer saw.
//!
//! # Why are the SDK's retries not used?
//! If the answer to an attempt was lost, "throttled" or "expired credentials" as the answer to the
//! next one does not mean "not applied". So each request is sent once, and this module knows which
//! attempts are still open:
//!
//! - A definite failure against which waiting may help is repeated with backoff.
//! - A lost answer is resolved by reading a slot. The append's own commit id in it is a success,
//!   since a transaction is applied as a whole. Another commit id is a conflict.
//! - While the slot is empty, the same commits are sent once more. Slots and ids are the same, so
//!   at most one of the attempts can be applied.
//! - If the outcome is open after that, the error is `Unavailable` with the pending append.
//!
//! # Which outcome follows from a failed condition?
//! - If an own slot holds the own id, an earlier attempt was applied. The outcome is `Repeated`,
//!   with the *stored* commits.
//! - If an own slot holds another id, the outcome is `Conflict`.
//! - If only the condition of a checked stream failed, one of the own slots is read. With the own
//!   id in it, the outcome is `Repeated`. Otherwise it is `Conflict`: a stream never returns to an
//!   earlier version, so no earlier attempt can be applied any more.
//!
//! A cancelled transaction in which no condition failed applied nothing. It is transient if every
//! reason is throttling or a conflict with another transaction. Any other reason needs a change
//! first.
mod request;

use self::request::{Answer, Condition, FailedCondition};
use super::{
    decode::StoredItem,
    events_attribute::Names,
    gapless::Items,
    query::{From, Query, try_get_item},
};
use crate::{attributes::Attributes, client::Connection, error::Failure};
use foldstream::{
    BoxError, StreamHead, Version,
    adapter::version_conflict,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventStoreError, PendingAppend},
};

type Outcome = Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>;

/// Stores all commits or none. The caller has validated them and their number.
pub(super) async fn append(
    connection: &Connection,
    commits: &[Append],
    unchanged: &[StreamHead],
) -> Outcome {
    let append = AtomicAppend {
        connection,
        commits,
        unchanged,
    };
    let mut requests = connection.requests();
    loop {
        append.confirm().await?;
        let failure = match request::send(&append).await? {
            Answer::Applied => return Ok(append.appended()),
            Answer::ConditionsFailed(failed) => {
                return append.resolve_conditions(failed, Sent::Now).await;
            }
            Answer::Failed(failure) => failure,
        };
        if failure.maybe_applied() {
            let (stream, id) = (commits[0].head.stream(), commits[0].commit_id);
            tracing::debug!(%stream, commit = %id, ?failure, "append lost: reading its slot");
            return append.resolve_lost_answer().await;
        }
        if !requests.wait(failure.failure_class()).await {
            return Err(failure.into_event_store());
        }
    }
}

/// The history of an append within this call: sent for the first time, or sent before with an
/// unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    Now,
    Before,
}

/// An append of one or more commits, which are stored together or not at all.
#[derive(Debug)]
struct AtomicAppend<'a> {
    connection: &'a Connection,
    /// The commits to store, at least one.
    commits: &'a [Append],
    unchanged: &'a [StreamHead],
}

impl AtomicAppend<'_> {
    fn appended(&self) -> AppendOutcome<Vec<StreamHead>> {
        AppendOutcome::Appended(self.commits.iter().map(Append::head_after).collect())
    }
    fn open(&self, error: impl Into<BoxError>) -> EventStoreError {
        EventStoreError::Unavailable {
            pending: Some(self.pending()),
            source: error.into(),
        }
    }
    fn pending(&self) -> PendingAppend {
        let all = AppendAll::new(self.commits.to_vec());
        PendingAppend::new(all.with_unchanged(self.unchanged.to_vec()))
    }

    /// Checks that the heads are in the table, if the table was missing or replaced since this
    /// process connected.
    ///
    /// The caller may have read them from another history, and a condition on the slot alone would
    /// not notice.
    ///
    /// # Errors
    /// - `Replaced` if a head is not in the table.
    /// - Another error if the heads cannot be read.
    async fn confirm(&self) -> Result<(), EventStoreError> {
        if self.connection.incarnation().number() == 0 {
            return Ok(());
        }
        let heads = self.commits.iter().map(|append| &append.head);
        for head in heads.chain(self.unchanged) {
            let (stream, version) = (head.stream(), head.version());
            if version == Version::NONE {
                continue;
            }
            let upto = From::AtMost(Some(version));
            let mut newest = Query::new(self.connection.clone(), stream.clone(), upto, Some(1));
            let found = newest.next(version).await?;
            let is_there = found.is_some_and(|item| {
                item.last == version && Some(item.commit_id) == head.commit_id()
            });
            if !is_there {
                return Err(EventStoreError::Replaced {
                    reason: format!(
                        "table {} was missing or replaced while this process used it, and does not hold the commit that \
                         ends {stream} at version {version}: load the stream again",
                        self.connection.events()
                    ),
                    source: "the head is of another history".into(),
                });
            }
        }
        Ok(())
    }

    /// Resolves an append whose answer was lost.
    async fn resolve_lost_answer(&self) -> Outcome {
        if let Some(stored) = self.slot(0).await? {
            return self.occupied(0, stored, Sent::Before).await;
        }
        // The first attempt may still be applied, whatever happens to this one.
        self.confirm().await.map_err(|error| self.open(error))?;
        match request::send(self).await? {
            Answer::Applied => Ok(self.appended()),
            Answer::ConditionsFailed(failed) => self.resolve_conditions(failed, Sent::Before).await,
            Answer::Failed(failure) => match self.slot(0).await? {
                Some(stored) => self.occupied(0, stored, Sent::Before).await,
                // An empty slot does not mean "not applied": either attempt may still be applied.
                None => Err(failure.into_pending(self.pending())),
            },
        }
    }

    /// Returns the outcome for an occupied slot that was found after the commits had been sent.
    async fn occupied(&self, index: usize, stored: StoredItem, sent: Sent) -> Outcome {
        if stored.commit_id != self.commits[index].commit_id {
            return Ok(self.conflict(&self.commits[index].head, Some(&stored)));
        }
        self.stored(self.known(index, stored), sent).await
    }

    /// Returns the outcome for failed conditions, of which there is at least one.
    async fn resolve_conditions(&self, failed: Vec<FailedCondition>, sent: Sent) -> Outcome {
        let mut known = self.nothing_known();
        let (mut is_mine, mut theirs, mut moved) = (false, None, None);
        for FailedCondition { condition, item } in failed {
            match condition {
                Condition::Slot(index) => {
                    let append = &self.commits[index];
                    let stored = match item {
                        Some(item) => Some(self.read(index, item)?),
                        // Some emulators do not return the old item.
                        None => self.slot(index).await?,
                    };
                    match stored {
                        Some(stored) if stored.commit_id == append.commit_id => {
                            is_mine = true;
                            if stored.first == append.head.version().next() {
                                known[index] = Some(stored);
                            }
                        }
                        stored => {
                            let conflict = self.conflict(&append.head, stored.as_ref());
                            theirs.get_or_insert(conflict);
                        }
                    }
                }
                Condition::Unchanged(index) => {
                    // The item only tells a version that the stream has reached at least.
                    let stored = item.and_then(|item| StoredItem::read(item).ok());
                    let conflict = self.conflict(&self.unchanged[index], stored.as_ref());
                    moved.get_or_insert(conflict);
                }
            }
        }
        if is_mine {
            return self.stored(known, sent).await;
        }
        if let Some(conflict) = theirs {
            return Ok(conflict);
        }
        let stored = self.slot(0).await?;
        match (stored, moved) {
            (Some(stored), _) => self.occupied(0, stored, sent).await,
            (None, Some(conflict)) => Ok(conflict),
            (None, None) => Ok(self.conflict(&self.commits[0].head, None)),
        }
    }

    fn conflict(
        &self,
        head: &StreamHead,
        stored: Option<&StoredItem>,
    ) -> AppendOutcome<Vec<StreamHead>> {
        let (stream, expected) = (head.stream().clone(), head.version());
        let actual = stored.map(|stored| stored.last);
        AppendOutcome::Conflict(version_conflict(stream, expected, actual))
    }

    fn nothing_known(&self) -> Vec<Option<StoredItem>> {
        self.commits.iter().map(|_| None).collect()
    }
    fn known(&self, index: usize, stored: StoredItem) -> Vec<Option<StoredItem>> {
        let mut known = self.nothing_known();
        known[index] = Some(stored);
        known
    }

    /// Returns the outcome if one of the commits is in its slot. Then all are, since they were
    /// stored together.
    ///
    /// `known` holds the first items of some of the commits.
    async fn stored(&self, known: Vec<Option<StoredItem>>, sent: Sent) -> Outcome {
        let mut commits = Vec::with_capacity(known.len());
        let mut known_heads = self.commits.iter().zip(&known);
        let moved = known_heads.find_map(|(append, item)| {
            let item = item.as_ref()?;
            Some(self.conflict(&append.head, Some(item)))
        });
        for (index, (append, known)) in self.commits.iter().zip(known).enumerate() {
            let first = match known {
                Some(first) => Some(first),
                None => self.slot(index).await?,
            };
            match first {
                Some(first) if first.commit_id == append.commit_id => {
                    commits.push(self.whole(append, first).await?);
                }
                // The caller reused the id of a commit that was stored alone. A stream whose slot
                // is free has not moved, so the conflict names the stream of the stored commit.
                other => {
                    let theirs = || self.conflict(&append.head, other.as_ref());
                    return Ok(match (&other, moved) {
                        (None, Some(moved)) => moved,
                        _ => theirs(),
                    });
                }
            }
        }
        // The same id with other content is a command that was decided twice. The stored events
        // count.
        let as_sent = || {
            self.commits
                .iter()
                .map(Append::to_commit)
                .eq(commits.iter().cloned())
        };
        Ok(if sent == Sent::Before && as_sent() {
            self.appended()
        } else {
            AppendOutcome::Repeated(commits)
        })
    }

    /// Reads the slot of a commit, while it is unknown if the commit is in it.
    async fn slot(&self, index: usize) -> Result<Option<StoredItem>, EventStoreError> {
        let head = &self.commits[index].head;
        let found = try_get_item(self.connection, head.stream(), head.version().next()).await;
        let found = found.map_err(|failure: Failure| failure.into_pending(self.pending()))?;
        found.map(|item| self.read(index, item)).transpose()
    }

    fn read(&self, index: usize, item: Attributes) -> Result<StoredItem, EventStoreError> {
        let head = &self.commits[index].head;
        StoredItem::read(item).map_err(|e| e.into_error(head.stream(), head.version()))
    }

    /// Reads the rest of the stored commit that starts with this item, which has the id of
    /// `append`.
    async fn whole(&self, append: &Append, first: StoredItem) -> Result<Commit, EventStoreError> {
        let stream = append.head.stream().clone();
        let mut items = Items::new(self.connection.clone(), stream, first.last.next(), None);
        let commit = items.complete(first, &mut Names::default()).await;
        // The append was applied, although its content cannot be read now. The error must not say
        // "certainly not applied".
        commit.map_err(|error| self.open(error))
    }
}
