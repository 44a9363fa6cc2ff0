//! Append: conditional writes, and how their outcome is settled.
//!
//! One commit that fits an item is one put. A larger one is split between events, and several streams are written
//! together: both are one transaction, which checks also the streams that were only read. Every item is written only if
//! its slot, the place after the head that the writer saw, is empty.
//!
//! Why the request is not left to the SDK's retries: after an attempt whose answer was lost, "throttled" or "expired
//! credentials" on the next one does not mean "not applied". So each request is sent once, and this module knows what is
//! still open. A definite answer that waiting may cure is repeated with backoff; a lost one is settled by reading a
//! slot: my commit id there is success (a transaction is applied whole), another's is a conflict, and while the slot is
//! empty the same commits go once more (same slots, same ids: at most one of the attempts can land). What then is still
//! open is `Unavailable { pending }`.
//!
//! Which condition failed tells what became of the append:
//!
//! ```text
//! my id in one of my slots        an earlier attempt was applied: Repeated, with the *stored* commits
//! another's id in one of them     Conflict
//! only on a checked stream        one of my slots is read: mine -> Repeated. Else Conflict: a stream that moved never moves
//!                                 back, so no earlier attempt can land any more
//! ```
//!
//! A cancelled transaction without a failed condition applied nothing. It is transient where every reason is a conflict
//! with another transaction or throttling; any other reason must be cured first.
mod wire;

use self::wire::{Answer, Place, Taken};
use super::{
    decode::StoredItem,
    events::Names,
    query::{From, Items, Query, try_get_item},
};
use crate::{attributes::Attributes, client::Connection, error::Failure};
use foldstream::{
    BoxError, StreamHead, Version, VersionConflict,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventStoreError, PendingAppend},
};

type Outcome = Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>;

/// Stores all commits or none. They are valid, and their streams are few enough.
pub(super) async fn append(
    connection: &Connection,
    commits: &[Append],
    unchanged: &[StreamHead],
) -> Outcome {
    let work = Work {
        connection,
        commits,
        unchanged,
    };
    let mut requests = connection.requests();
    loop {
        work.confirm().await?;
        let failure = match wire::send(&work).await? {
            Answer::Applied => return Ok(work.appended()),
            Answer::Taken(taken) => return work.judge(taken, Sent::Now).await,
            Answer::Failed(failure) => failure,
        };
        if failure.maybe_applied() {
            let (stream, id) = (commits[0].head.stream(), commits[0].commit_id);
            tracing::debug!(%stream, commit = %id, ?failure, "append lost: reading its slot");
            return work.settle().await;
        }
        if !requests.wait(failure.failure_class()).await {
            return Err(failure.into_event_store());
        }
    }
}

/// Whether this call has already sent the commits, with an outcome that is not known.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    Now,
    Before,
}

/// One append.
#[derive(Debug)]
struct Work<'a> {
    connection: &'a Connection,
    /// At least one.
    commits: &'a [Append],
    unchanged: &'a [StreamHead],
}

impl Work<'_> {
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

    /// Looks for the heads in the table, if it was missing or replaced since this process has connected: what the caller
    /// has read may be of another history, and a condition on the slot alone would let it through.
    ///
    /// # Errors
    /// `Replaced` for a head that is not in the table, or why that cannot be known.
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

    /// The answer was lost.
    async fn settle(&self) -> Outcome {
        if let Some(stored) = self.slot(0).await? {
            return self.occupied(0, stored, Sent::Before).await;
        }
        // The first attempt is still open, whatever this one meets.
        self.confirm().await.map_err(|error| self.open(error))?;
        match wire::send(self).await? {
            Answer::Applied => Ok(self.appended()),
            Answer::Taken(taken) => self.judge(taken, Sent::Before).await,
            Answer::Failed(failure) => match self.slot(0).await? {
                Some(stored) => self.occupied(0, stored, Sent::Before).await,
                // Absent does not mean "not applied": either attempt may still land.
                None => Err(failure.into_pending(self.pending())),
            },
        }
    }

    /// What was found in a slot after the commits had been sent.
    async fn occupied(&self, index: usize, stored: StoredItem, sent: Sent) -> Outcome {
        if stored.commit_id != self.commits[index].commit_id {
            return Ok(self.conflict(&self.commits[index].head, Some(&stored)));
        }
        self.stored(self.known(index, stored), sent).await
    }

    /// Conditions failed, at least one of them.
    async fn judge(&self, taken: Vec<Taken>, sent: Sent) -> Outcome {
        let mut known = self.nothing_known();
        let (mut is_mine, mut theirs, mut moved) = (false, None, None);
        for Taken { place, item } in taken {
            match place {
                Place::Slot(index) => {
                    let append = &self.commits[index];
                    let stored = match item {
                        Some(item) => Some(self.read(index, item)?),
                        // An emulator that does not return the old item.
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
                Place::Check(index) => {
                    // It only tells how far the stream has moved at least.
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
        AppendOutcome::Conflict(VersionConflict::new(stream, expected, actual))
    }

    fn nothing_known(&self) -> Vec<Option<StoredItem>> {
        self.commits.iter().map(|_| None).collect()
    }
    fn known(&self, index: usize, stored: StoredItem) -> Vec<Option<StoredItem>> {
        let mut known = self.nothing_known();
        known[index] = Some(stored);
        known
    }

    /// One of my commits is in its slot, so all are: they were stored together. `known`: the first items of some.
    async fn stored(&self, known: Vec<Option<StoredItem>>, sent: Sent) -> Outcome {
        let mut commits = Vec::with_capacity(known.len());
        for (index, (append, known)) in self.commits.iter().zip(known).enumerate() {
            let first = match known {
                Some(first) => Some(first),
                None => self.slot(index).await?,
            };
            match first {
                Some(first) if first.commit_id == append.commit_id => {
                    commits.push(self.whole(append, first).await?);
                }
                // A caller who gave the id of a commit that was stored alone to one of several.
                other => return Ok(self.conflict(&append.head, other.as_ref())),
            }
        }
        // The same id with other content: a command that was decided twice. The stored events count.
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

    /// What stands in the slot of a commit, while it is open whether that is mine.
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

    /// The stored commit that starts with this item, which has my id.
    async fn whole(&self, append: &Append, first: StoredItem) -> Result<Commit, EventStoreError> {
        let stream = append.head.stream().clone();
        let mut items = Items::new(self.connection.clone(), stream, first.last.next(), None);
        let commit = items.complete(first, &mut Names::default()).await;
        // It is applied, though it cannot be told with what: never "certainly not applied".
        commit.map_err(|error| self.open(error))
    }
}
