//! The in-memory event store.
use super::{
    cursor::{Position, Walk},
    lock,
    locked::Locked,
    shard::{Look, ReadAt, Shard, Slot},
};
use async_trait::async_trait;
use foldstream::{
    StreamHead, StreamId, Version,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, RefusedKind, ScanCursor, ScanItems, ScanPage, ScanScope,
        Segment, StreamPage, UnpublishedPage,
    },
};
use futures::{StreamExt, stream};
use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

/// An [`EventStore`] in memory.
///
/// Clones of the `Arc` share the store, which keeps acknowledged commits until the last clone is
/// dropped. So a test simulates a crash by dropping everything but the store. Appends cost O(1).
/// Reads take one page of commits at a time and clone reference counts, not payloads.
///
/// # Limits
/// The store refuses what DynamoDB refuses, with the same errors, see [`DYNAMODB`](Self::DYNAMODB).
/// For example, an atomic append of 98 streams of which one is split into three parts is
/// `Refused(Unsupported)` here too. The store differs from DynamoDB in three ways:
/// - It checks heads, unless [`with_capabilities`](Self::with_capabilities) says otherwise.
///   DynamoDB checks only that no commit starts right after a head.
/// - `streams` and `unpublished` do not lag, unless [`Fault::Lag`](crate::faults::Fault::Lag) makes
///   them.
/// - Every conflict names the tail. DynamoDB may name a lower version, or none.
///
/// # Example
/// ```
/// use foldstream::{CommitId, StreamHead, StreamId, Timestamp, ports::*};
/// use foldstream_testkit::InMemoryEventStore;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let store = InMemoryEventStore::new();
/// let empty = StreamHead::empty(StreamId::new("cart", "a")?);
/// let added = [EventData::new("Added", 1, r#"{"sku":"x"}"#)];
/// let append = Append::after(empty, CommitId::random(), Timestamp::now(), added);
/// assert!(matches!(store.append(&append).await?, AppendOutcome::Appended(_)));
/// assert!(matches!(store.append(&append).await?, AppendOutcome::Repeated(_)));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Debug)]
pub struct InMemoryEventStore {
    shards: Vec<Mutex<Shard>>,
    capabilities: Capabilities,
    incarnation: AtomicU64,
}

impl InMemoryEventStore {
    /// The number of shards, each under its own lock.
    ///
    /// A stream is in shard `murmur2(stream) % SHARDS`. A segment of a scan takes every `total`-th
    /// shard, so some segments are empty if there are more segments than shards.
    const SHARDS: u32 = 64;
    /// The number of commits that a read takes under the lock at a time.
    const READ_PAGE: usize = 256;
    /// The number of streams that [`EventStore::streams`] visits for one page.
    const STREAMS_PAGE: usize = 1000;
    /// The capabilities of the DynamoDB event store in the publish modes `poller` and `both`.
    ///
    /// They are 100 streams per append, 3,900 KiB per commit, 390 KiB per event and per part of a
    /// commit, 4,000,000 bytes per append, and heads that are not checked. A store with these
    /// capabilities accepts an append after a head above the tail, as DynamoDB does, and the stream
    /// then has a hole.
    ///
    /// # Example
    /// ```
    /// use foldstream::{CommitId, StreamHead, StreamId, Timestamp, Version, ports::*};
    /// use foldstream_testkit::InMemoryEventStore;
    /// use futures::TryStreamExt;
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let store = InMemoryEventStore::with_capabilities(InMemoryEventStore::DYNAMODB);
    /// let id = StreamId::new("cart", "a")?;
    /// let (now, version) = (Timestamp::now(), Version::new(7));
    /// let above = StreamHead::observed(id.clone(), version, CommitId::random(), now);
    /// let added = [EventData::new("Added", 1, "{}")];
    /// let append = Append::after(above, CommitId::random(), now, added);
    /// assert!(matches!(store.append(&append).await?, AppendOutcome::Appended(_)));
    /// // Every read across the hole reports it.
    /// let read = store.read(&id, ReadFrom::Newest, None).try_collect::<Vec<_>>().await;
    /// assert!(matches!(read, Err(EventStoreError::Corrupt { .. })));
    /// # Ok::<(), foldstream::BoxError>(())
    /// # })?;
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    pub const DYNAMODB: Capabilities = Capabilities::new(3_900 * 1024)
        .with_max_event_bytes(390 * 1024)
        .with_max_part_bytes(390 * 1024)
        .with_max_append_bytes(4_000_000)
        .with_streams_per_append(100)
        .with_unpublished_list(true)
        .with_checked_heads(false);

    /// Creates an empty store that has the limits of [`DYNAMODB`](Self::DYNAMODB) and checks heads.
    ///
    /// An append after a head that is not the tail is always a conflict.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_capabilities(Self::DYNAMODB.with_checked_heads(true))
    }

    /// Creates an empty store with other limits, for instance those of a backend without atomic
    /// appends.
    ///
    /// With [`Capabilities::with_checked_heads`]`(false)` the store checks only that no commit
    /// starts right after a head, as DynamoDB does. An append after a head above the tail then
    /// leaves a hole.
    #[must_use]
    pub fn with_capabilities(capabilities: Capabilities) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..Self::SHARDS).map(|_| Mutex::default()).collect(),
            capabilities,
            incarnation: AtomicU64::new(0),
        })
    }

    /// Replaces everything that is stored by other commits and changes the incarnation.
    ///
    /// This simulates a table that is deleted and restored from a backup while the process runs.
    /// The commits of a stream are stored at their versions, even if there are holes between them.
    pub fn replace(&self, commits: impl IntoIterator<Item = Commit>) {
        // All locks are taken in ascending order, as for appends to several streams: otherwise the
        // two could wait for each other.
        let mut shards: Vec<_> = self.shards.iter().map(lock).collect();
        for shard in &mut shards {
            **shard = Shard::default();
        }
        for commit in commits {
            let number = commit.stream.shard(Self::SHARDS) as usize;
            let shard = &mut shards[number];
            let known = shard.number(&commit.stream);
            shard.store(known, commit, self.capabilities.lists_unpublished);
        }
        self.incarnation.fetch_add(1, Ordering::SeqCst);
    }

    const fn look(&self) -> Look {
        match self.capabilities.checks_heads {
            true => Look::AtTheTail,
            false => Look::AtTheSlot,
        }
    }
    /// Returns true if an append must look for its head in the history.
    ///
    /// Callers may have read the head before the content was replaced. If heads are checked, such
    /// an append is a conflict anyway.
    fn confirms(&self) -> bool {
        self.look() == Look::AtTheSlot && self.incarnation() > 0
    }

    fn shard(&self, number: u32) -> MutexGuard<'_, Shard> {
        lock(&self.shards[number as usize])
    }
    fn shard_of(&self, stream: &StreamId) -> MutexGuard<'_, Shard> {
        self.shard(stream.shard(Self::SHARDS))
    }

    /// Checks everything that does not depend on the stored commits.
    pub(crate) fn validate(&self, append: &Append) -> Result<(), EventStoreError> {
        append.validate_for(&self.capabilities)
    }

    /// Returns the start of the next page without the rest of the stream of the last key.
    fn past_last_stream(
        &self,
        walk: Walk,
        keys: &[CommitKey],
        next: Option<&ScanCursor>,
    ) -> Result<Option<ScanCursor>, EventStoreError> {
        let Some(next) = next else { return Ok(None) };
        let mut position = Position::decode(Some(next), walk)?;
        let next_key = self.shard(position.shard).first_key(position.stream);
        if keys.last().map(|key| &key.stream) == next_key.as_ref().map(|key| &key.stream) {
            position.stream += 1;
            position.commit = 0;
        }
        Ok(Some(position.encode(walk)))
    }

    /// Visits the shards of a scan or list, each under its own lock, from a cursor on.
    ///
    /// Returns the cursor of the next page if `visit` stops the walk, or `None` at the end.
    fn walk(
        &self,
        walk: Walk,
        after: Option<&ScanCursor>,
        mut visit: impl FnMut(&Shard, usize, usize) -> Option<(usize, usize)>,
    ) -> Result<Option<ScanCursor>, EventStoreError> {
        let start = Position::decode(after, walk)?;
        for shard in walk.shards(Self::SHARDS).skip_while(|s| *s < start.shard) {
            let (stream, commit) = if shard == start.shard {
                (start.stream, start.commit)
            } else {
                (0, 0)
            };
            let stopped = visit(&self.shard(shard), stream, commit);
            if let Some((stream, commit)) = stopped {
                let next = Position {
                    shard,
                    stream,
                    commit,
                };
                return Ok(Some(next.encode(walk)));
            }
        }
        Ok(None)
    }
}

fn replaced(head: &StreamHead) -> EventStoreError {
    EventStoreError::Replaced {
        reason: format!(
            "it does not hold the commit that ends {} at version {}: load the stream again",
            head.stream(),
            head.version()
        ),
        source: "the head is of another history".into(),
    }
}

pub(super) fn unsupported(reason: String) -> EventStoreError {
    EventStoreError::Refused {
        kind: RefusedKind::Unsupported,
        source: "see the store's capabilities".into(),
        reason,
    }
}

/// A read as an iterator, which locks the shard only to take its next page.
#[derive(Debug)]
struct Read<'a> {
    store: &'a InMemoryEventStore,
    stream: StreamId,
    from: ReadFrom,
    /// The number of the stream in its shard and the position of the read; `None` before the first
    /// page.
    at: Option<(usize, ReadAt)>,
    /// The number of commits that the read may still return.
    remaining: usize,
    page: std::vec::IntoIter<Commit>,
    ended: bool,
    /// The version at which the next commit must start, or end if the read goes backwards.
    expected: Option<Version>,
}

impl Read<'_> {
    fn next_page(&mut self) -> Result<(), EventStoreError> {
        let shard = self.store.shard_of(&self.stream);
        let at = match self.at {
            Some(at) => Some(at),
            None => shard.start(&self.stream, &self.from)?,
        };
        let Some((number, at)) = at else {
            self.ended = true;
            return Ok(());
        };
        let max = self.remaining.min(InMemoryEventStore::READ_PAGE);
        let (page, at) = shard.page(number, at, max);
        self.at = Some((number, at));
        self.remaining -= page.len();
        // A short page has reached the end under the lock, so the read does not lock again.
        self.ended = page.len() < InMemoryEventStore::READ_PAGE;
        self.page = page.into_iter();
        Ok(())
    }
}

impl Read<'_> {
    fn is_backwards(&self) -> bool {
        matches!(self.at, Some((_, ReadAt::Backwards(_))))
    }

    /// Returns the commit if it is adjacent to the previous one, or else an error.
    ///
    /// Only a store that does not check heads has commits that are not adjacent.
    fn adjacent(&mut self, commit: Commit) -> Result<Commit, EventStoreError> {
        let (first, last) = (commit.first_version, commit.last_version());
        let (found, next) = match self.is_backwards() {
            true => (last, Version::new(first.get() - 1)),
            false => (first, last.next()),
        };
        let expected = match (self.expected, &self.from) {
            (Some(expected), _) => expected,
            // A read by version may start within a commit, but not before its first one.
            (None, ReadFrom::Event(version)) => first.min((*version).max(Version::new(1))),
            (None, _) => found,
        };
        if found != expected {
            let after = match self.is_backwards() {
                true => last,
                false => Version::new(expected.get() - 1),
            };
            self.fail();
            return Err(self.corrupt(expected, found, after));
        }
        self.expected = Some(next);
        Ok(commit)
    }

    /// Returns the error of a backwards read that has ended before version 1.
    fn without_beginning(&mut self) -> Option<EventStoreError> {
        let is_over = self.remaining > 0 && self.is_backwards();
        let missing = self.expected.take().filter(|v| *v > Version::NONE)?;
        is_over.then(|| self.corrupt(missing, Version::NONE, Version::NONE))
    }

    fn fail(&mut self) {
        self.page = Vec::new().into_iter();
        (self.ended, self.expected) = (true, None);
    }

    fn corrupt(&self, expected: Version, found: Version, after: Version) -> EventStoreError {
        EventStoreError::Corrupt {
            stream: self.stream.clone(),
            after,
            reason: format!("a commit at {expected} is missing or overlaps one at {found}"),
        }
    }
}

impl Iterator for Read<'_> {
    type Item = Result<Commit, EventStoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(commit) = self.page.next() {
                return Some(self.adjacent(commit));
            }
            if self.ended {
                return self.without_beginning().map(Err);
            }
            if let Err(error) = self.next_page() {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }
}

#[async_trait]
impl EventStore for InMemoryEventStore {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::SeqCst)
    }

    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        // Lets other tasks run now and then, as a call over a network would.
        tokio::task::coop::consume_budget().await;
        self.validate(append)?;
        let mut shard = self.shard_of(append.head.stream());
        let number = shard.number(append.head.stream());
        if self.confirms() && !shard.holds(number, &append.head) {
            return Err(replaced(&append.head));
        }
        Ok(match shard.slot(number, append, self.look()) {
            Slot::Free => {
                let listed = self.capabilities.lists_unpublished;
                AppendOutcome::Appended(shard.push(number, append, listed))
            }
            Slot::Mine(stored) => AppendOutcome::Repeated(vec![stored]),
            Slot::Taken(conflict) => AppendOutcome::Conflict(conflict),
        })
    }

    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        tokio::task::coop::consume_budget().await;
        all.validate_for(&self.capabilities)?;

        let mut locked = Locked::new(&self.shards, all, self.look());
        if self.confirms()
            && let Some(head) = locked.unknown(all)
        {
            return Err(replaced(&head));
        }
        Ok(locked.append(all, self.capabilities.lists_unpublished))
    }

    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        stream::iter(Read {
            store: self,
            stream: stream.clone(),
            from,
            at: None,
            remaining: limit.map_or(usize::MAX, |limit| limit.get() as usize),
            page: Vec::new().into_iter(),
            ended: false,
            expected: None,
        })
        .boxed()
    }

    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        let mut streams = Vec::new();
        let mut seen = 0;
        let next = self.walk(
            Walk::streams(aggregate),
            after.as_ref(),
            |shard, stream, _| {
                shard.walk_streams(stream, |id| {
                    if seen == Self::STREAMS_PAGE {
                        return false;
                    }
                    seen += 1;
                    if id.aggregate() == aggregate {
                        streams.push(id.clone());
                    }
                    true
                })
            },
        )?;
        Ok(StreamPage::new(streams, next))
    }

    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanScope,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        let max = max_items.get() as usize;
        let (walk, mut items) = match what {
            ScanScope::Commits => (Walk::Scan(segment), ScanItems::Commits(Vec::new())),
            // Returns the end of every commit, as a backend does that only projects attributes. So
            // tests notice callers that do not take the last one per stream.
            ScanScope::Tails => (Walk::Tails(segment), ScanItems::Tails(Vec::new())),
            other => return Err(unsupported(format!("a scan for {other:?}"))),
        };
        let mut taken = 0;
        let next = self.walk(walk, after.as_ref(), |shard, stream, commit| {
            shard.walk_commits(stream, commit, |commit| {
                if taken == max {
                    return false;
                }
                taken += 1;
                match &mut items {
                    ScanItems::Commits(commits) => commits.push(commit.clone()),
                    ScanItems::Tails(tails) => tails.push(commit.head()),
                }
                true
            })
        })?;
        Ok(ScanPage::new(items, next))
    }

    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        if !self.capabilities.lists_unpublished {
            return Err(unsupported(
                "this store does not list unpublished commits".into(),
            ));
        }
        let limit = limit.get() as usize;
        let mut keys = Vec::new();
        let next = self.walk(
            Walk::Unpublished(segment),
            after.as_ref(),
            |shard, stream, commit| {
                shard.walk_unpublished(stream, commit, |key| {
                    let room = keys.len() < limit;
                    if room {
                        keys.push(key);
                    }
                    room
                })
            },
        )?;
        let next_stream =
            self.past_last_stream(Walk::Unpublished(segment), &keys, next.as_ref())?;
        Ok(UnpublishedPage::new(keys, next).with_next_stream(next_stream))
    }

    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        for key in commits {
            self.shard_of(&key.stream).clear_unpublished(key);
        }
        Ok(())
    }
}
