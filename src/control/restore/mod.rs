//! After a restore from a backup: brings what other tables remember about streams back in line with
//! the events.
//!
//! A restored event store has a shorter history, and later appends reuse the versions that were
//! lost. Everything that remembers a version also remembers the commit id, so that the two
//! histories are never confused: publishers stop with `HistoryForked`, and repositories ignore
//! snapshots that do not fit. [`RestoreRepair`] repairs both:
//!
//! - **A watermark above the tail is lowered.** Otherwise nothing would be published before the
//!   stream has grown past it.
//! - **A watermark of another history** is lowered too. If a writer has already appended after the
//!   restored tail, it is lowered to the last commit before that append, so that everything
//!   appended since is published. Only the operator knows whether there were such writes, and since
//!   when: [`WritesSinceRestore`]. A stream that contradicts [`WritesSinceRestore::NoneYet`] is
//!   reported and left as it is.
//! - **A snapshot that is above the tail or of another history is deleted.**
//!
//! # Why in pages?
//! A store may hold millions of streams, and each of them costs reads. The work is therefore done
//! in pages, with a cursor that can be stored.
//!
//! # Why are streams found by their watermarks?
//! The watermarks include the streams that are gone from the events altogether. Streams that were
//! never published have no watermark. They are found by [`RestoreRepair::with_aggregates`], and
//! matter only for their snapshots.
//!
//! Publishers must be stopped meanwhile, because they keep watermarks in memory. Consumers have
//! seen what was lost, so their read models must be rebuilt.
mod cursor;
mod report;

pub use cursor::{InvalidRestoreCursor, RestoreCursor};
pub use report::{Finding, RestoreError, RestorePage};

use self::cursor::Place;
use super::{Rows, Stored, Watermark, Watermarks};
use crate::{
    CommitId, IdSource, StreamHead, StreamId, SystemIds, Timestamp, Version,
    ports::{
        Commit, ControlStore, EventStore, EventStoreError, RangeQuery, ReadFrom, RowKey,
        SnapshotStore, shared,
    },
};
use futures::TryStreamExt;
use std::{num::NonZeroU32, sync::Arc};

const ONE: Option<NonZeroU32> = NonZeroU32::new(1);

/// Compares watermarks and snapshots with a restored event store, and repairs them.
///
/// # Example
/// ```
/// use foldstream::control::{RestoreRepair, WritesSinceRestore};
/// use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemorySnapshotStore};
/// use std::num::NonZeroU32;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let (events, control) = (InMemoryEventStore::new(), InMemoryControlStore::new());
/// let restore = RestoreRepair::new(events, control, WritesSinceRestore::NoneYet)
///     .with_snapshots(InMemorySnapshotStore::new())
///     .with_aggregates(["cart"]);
/// let hundred = NonZeroU32::new(100).ok_or("not zero")?;
/// let (mut findings, mut next) = (Vec::new(), None);
/// loop {
///     // `repair` returns the same findings, and repairs them.
///     let page = restore.check(next.as_ref(), hundred).await?;
///     findings.extend(page.findings);
///     next = page.next;
///     if next.is_none() {
///         break;
///     }
/// }
/// assert!(findings.is_empty(), "these do not fit the restored events: {findings:?}");
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RestoreRepair {
    events: Arc<dyn EventStore>,
    control: Arc<dyn ControlStore>,
    rows: Rows,
    snapshots: Option<Arc<dyn SnapshotStore>>,
    aggregates: Vec<String>,
    writes: WritesSinceRestore,
}

impl RestoreRepair {
    /// Creates a check of the restored events against the watermarks in this control store.
    pub fn new(
        events: impl EventStore,
        control: impl ControlStore,
        writes: WritesSinceRestore,
    ) -> Self {
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds);
        let control = shared::control_store(control);
        Self {
            events: shared::event_store(events),
            rows: Rows::new(control.clone(), ids),
            control,
            snapshots: None,
            aggregates: Vec::new(),
            writes,
        }
    }
    /// Also checks the snapshots of every stream that is visited.
    #[must_use]
    pub fn with_snapshots(mut self, snapshots: impl SnapshotStore) -> Self {
        self.snapshots = Some(shared::snapshot_store(snapshots));
        self
    }
    /// Also visits all streams of these aggregate types, for their snapshots. Streams that were
    /// never published have no watermark by which they could be found.
    #[must_use]
    pub fn with_aggregates<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.aggregates = names.into_iter().map(Into::into).collect();
        self
    }
    /// Sets the source of revisions. Default: the system's randomness.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.rows = Rows::new(self.control.clone(), ids);
        self
    }

    /// Reports what [`repair`](Self::repair) would do to the next `streams` streams, and changes
    /// nothing.
    ///
    /// A stream in order costs one read of one commit for its watermark and one load of its
    /// snapshot. A stream with a snapshot costs one more read. A stream that is not in order costs
    /// one or two additional reads.
    ///
    /// # Errors
    /// [`RestoreError`] if a store cannot be read. Continuing from the same cursor is safe.
    pub async fn check(
        &self,
        after: Option<&RestoreCursor>,
        streams: NonZeroU32,
    ) -> Result<RestorePage, RestoreError> {
        self.page(after, streams, Mode::Check).await
    }

    /// Repairs the next `streams` streams, and reports what it did. Idempotent: a repaired stream
    /// is in order afterwards.
    ///
    /// # Errors
    /// - `InUse` if a publisher is running.
    /// - Another [`RestoreError`] if a store cannot be read or written. Continuing from the same
    ///   cursor is safe.
    pub async fn repair(
        &self,
        after: Option<&RestoreCursor>,
        streams: NonZeroU32,
    ) -> Result<RestorePage, RestoreError> {
        self.page(after, streams, Mode::Repair).await
    }

    async fn page(
        &self,
        after: Option<&RestoreCursor>,
        streams: NonZeroU32,
        mode: Mode,
    ) -> Result<RestorePage, RestoreError> {
        let mut place = after.map_or(Place::START, |cursor| cursor.0.clone());
        let mut page = RestorePage::default();
        while page.streams < streams.get() {
            let room = NonZeroU32::new(streams.get() - page.streams).unwrap_or(streams);
            let next = match place {
                Place::Watermarks { shard, after } => {
                    self.watermarks(shard, after, room, mode, &mut page).await?
                }
                Place::Streams { aggregate, after } => {
                    self.streams(aggregate, after, mode, &mut page).await?
                }
            };
            let Some(next) = next else {
                return Ok(page);
            };
            place = next;
        }
        page.next = Some(RestoreCursor(place));
        Ok(page)
    }

    /// Checks some rows of one partition of watermarks.
    async fn watermarks(
        &self,
        shard: u32,
        after: Option<String>,
        room: NonZeroU32,
        mode: Mode,
        page: &mut RestorePage,
    ) -> Result<Option<Place>, RestoreError> {
        let query = RangeQuery::new(Watermarks::partition(shard))
            .with_after(after)
            .with_limit(room);
        let rows = self.control.range(&query).await?;
        for row in rows.rows {
            let (key, seen) = (row.key.clone(), super::rows::decode::<Watermark>(row)?);
            let Ok(stream) = StreamId::parse(&key.sort) else {
                return Err(RestoreError::Foreign { key });
            };
            page.streams += 1;
            let looked = async {
                self.watermark(&stream, &key, seen, mode, page).await?;
                self.snapshot(&stream, mode, page).await
            };
            let looked = looked.await;
            note_corrupt(looked, &stream, page)?;
        }
        let after = rows.next;
        Ok(if after.is_some() {
            Some(Place::Watermarks { shard, after })
        } else if shard + 1 < Watermarks::SHARDS {
            let shard = shard + 1;
            Some(Place::Watermarks { shard, after })
        } else {
            self.first_of(0)
        })
    }

    /// Returns the place at which the streams of an aggregate type begin.
    fn first_of(&self, aggregate: usize) -> Option<Place> {
        let is_there = self.snapshots.is_some() && aggregate < self.aggregates.len();
        is_there.then_some(Place::Streams {
            aggregate,
            after: None,
        })
    }

    /// Checks a page of streams of one aggregate type. Streams with a watermark were visited
    /// before, and cost a read again.
    async fn streams(
        &self,
        aggregate: usize,
        after: Option<crate::ports::ScanCursor>,
        mode: Mode,
        page: &mut RestorePage,
    ) -> Result<Option<Place>, RestoreError> {
        let Some(name) = self.aggregates.get(aggregate) else {
            return Ok(None);
        };
        let listed = self.events.streams(name, after).await?;
        for stream in listed.streams {
            page.streams += 1;
            let looked = self.snapshot(&stream, mode, page).await;
            note_corrupt(looked, &stream, page)?;
        }
        Ok(match listed.next {
            Some(next) => Some(Place::Streams {
                aggregate,
                after: Some(next),
            }),
            None => self.first_of(aggregate + 1),
        })
    }

    async fn watermark(
        &self,
        stream: &StreamId,
        key: &RowKey,
        seen: Stored<Watermark>,
        mode: Mode,
        page: &mut RestorePage,
    ) -> Result<(), RestoreError> {
        let Watermark {
            version, commit_id, ..
        } = seen.value;
        let tail = match self.fit(stream, version, commit_id).await? {
            Fit::Fits => return Ok(()),
            Fit::Above(tail) | Fit::Forked(tail) => tail,
        };
        let to = match self.writes {
            WritesSinceRestore::NoneYet => Some(tail.clone()),
            WritesSinceRestore::Since(time) => self.last_before(stream, time).await?,
        };
        // A watermark is only ever lowered. If it would not be, another writer has appended,
        // although the operator says that there was none, or before the time that the operator
        // gave. Then no one knows what was published.
        if to.as_ref().is_some_and(|to| to.version() >= version) {
            page.findings.push(Finding::Forked {
                stream: stream.clone(),
                watermark: seen.value,
                tail: tail.version(),
            });
            return Ok(());
        }
        // An empty stream has no commit to be the watermark.
        let to = to.and_then(|head| Some(seen.value.lowered_to(head.version(), head.commit_id()?)));
        if mode == Mode::Repair && !self.rows.replace(key, seen.revision, to).await? {
            let stream = stream.clone();
            return Err(RestoreError::InUse { stream });
        }
        page.findings.push(Finding::Watermark {
            stream: stream.clone(),
            from: seen.value,
            to,
        });
        Ok(())
    }

    async fn snapshot(
        &self,
        stream: &StreamId,
        mode: Mode,
        page: &mut RestorePage,
    ) -> Result<(), RestoreError> {
        let Some(snapshots) = &self.snapshots else {
            return Ok(());
        };
        let Some(found) = snapshots.load(stream).await? else {
            return Ok(());
        };
        let tail = match self.fit(stream, found.version, found.commit_id).await? {
            Fit::Fits => return Ok(()),
            Fit::Above(tail) | Fit::Forked(tail) => tail.version(),
        };
        if mode == Mode::Repair {
            snapshots.delete(stream).await?;
        }
        page.findings.push(Finding::Snapshot {
            stream: stream.clone(),
            version: found.version,
            tail,
        });
        Ok(())
    }

    /// Returns whether a commit with this id ends at this version.
    async fn fit(
        &self,
        stream: &StreamId,
        version: Version,
        id: CommitId,
    ) -> Result<Fit, EventStoreError> {
        let below = self
            .newest(stream, ReadFrom::NewestAtOrBelow(version))
            .await?;
        match below {
            Some(commit) if commit.last_version() == version && commit.id == id => {
                return Ok(Fit::Fits);
            }
            _ => {}
        }
        let tail = self.newest(stream, ReadFrom::Newest).await?;
        let tail = tail.map_or_else(|| StreamHead::empty(stream.clone()), |c| c.head());
        Ok(if tail.version() < version {
            Fit::Above(tail)
        } else {
            Fit::Forked(tail)
        })
    }

    async fn newest(
        &self,
        stream: &StreamId,
        from: ReadFrom,
    ) -> Result<Option<Commit>, EventStoreError> {
        self.events.read(stream, from, ONE).try_next().await
    }

    /// Returns the head at which the stream ended before this time. The times of a stream never
    /// decrease.
    async fn last_before(
        &self,
        stream: &StreamId,
        time: Timestamp,
    ) -> Result<Option<StreamHead>, EventStoreError> {
        let mut commits = self.events.read(stream, ReadFrom::Newest, None);
        while let Some(commit) = commits.try_next().await? {
            if commit.recorded_at < time {
                return Ok(Some(commit.head()));
            }
        }
        Ok(None)
    }
}

/// Notes a stream that cannot be read, so that it does not stop the check of the others.
fn note_corrupt(
    looked: Result<(), RestoreError>,
    stream: &StreamId,
    page: &mut RestorePage,
) -> Result<(), RestoreError> {
    match looked {
        Err(RestoreError::Events(EventStoreError::Corrupt { reason, .. })) => {
            let stream = stream.clone();
            page.findings.push(Finding::Corrupt { stream, reason });
            Ok(())
        }
        looked => looked,
    }
}

/// The writes to the restored events before the repair.
///
/// They decide what must still be published, so a wrong answer leaves events unpublished. In doubt,
/// choose [`Since`](Self::Since) with the time of the restore.
///
/// # Example
/// ```
/// use foldstream::{Timestamp, control::WritesSinceRestore};
/// let restored_at: Timestamp = "2026-03-01T04:30:00Z".parse()?;
/// assert_ne!(WritesSinceRestore::Since(restored_at), WritesSinceRestore::NoneYet);
/// # Ok::<(), foldstream::InvalidTimestamp>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WritesSinceRestore {
    /// Nothing was written: every commit was there before the restore.
    NoneYet,
    /// Commits recorded at or after this time were appended after the restored history. Those that
    /// were already published, or older ones by mistake, are published again under the same event
    /// ids.
    Since(Timestamp),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Check,
    Repair,
}

/// The relation of a remembered version to the history as it is, with the tail of the stream if it
/// does not fit.
#[derive(Debug)]
enum Fit {
    Fits,
    Above(StreamHead),
    Forked(StreamHead),
}
