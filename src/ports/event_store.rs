//! `EventStore`: streams of commits.
use super::{Append, AppendAll, AppendOutcome, Commit, CommitKey, RefusedKind};
use crate::{BoxError, StreamHead, StreamId, Version};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::{fmt::Debug, num::NonZeroU32, time::Duration};

/// Direction and start of a read. Commits come whole: one that holds the start is returned with its earlier events.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// Oldest first, from the commit that starts right after this head. After [`StreamHead::empty`]: from the beginning.
    After(StreamHead),
    /// Oldest first, from the commit that holds this event version; 0 counts as 1. Nothing if the stream is shorter.
    Event(Version),
    /// Newest first, from the tail.
    Newest,
    /// Newest first, from the newest commit that *ends* at or below this version.
    NewestAtOrBelow(Version),
}

/// One of `total` disjoint parts of a scan: every commit is in exactly one, a stream's commits may be in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    index: u32,
    total: u32,
}
impl Segment {
    /// The whole store.
    pub const ALL: Self = Self { index: 0, total: 1 };

    /// All parts of a scan in `total` (0 counts as 1).
    pub fn split(total: u32) -> impl Iterator<Item = Self> {
        let total = total.max(1);
        (0..total).map(move |index| Self { index, total })
    }
    /// From 0.
    pub const fn index(self) -> u32 {
        self.index
    }
    /// Returns the number of parts.
    pub const fn total(self) -> u32 {
        self.total
    }
}

/// The place at which a scan or listing continues; meaningful only to the adapter that gave it, for the same segment.
/// May be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanCursor(Bytes);
impl ScanCursor {
    /// For adapters and checkpoints.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }
    /// To be stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The parts of commits that a scan returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScanWhat {
    /// Whole commits.
    Commits,
    /// Only where commits end: cheaper to transfer, enough to compare tails with watermarks.
    Tails,
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq)]
pub enum ScanItems {
    /// For [`ScanWhat::Commits`]. Those of one stream are in version order.
    Commits(Vec<Commit>),
    /// For [`ScanWhat::Tails`]. A stream may come again with a later version: the last one seen is its tail.
    Tails(Vec<StreamHead>),
}

/// A page of a scan, and where to go on once it is dealt with.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ScanPage {
    /// May be empty before the end.
    pub items: ScanItems,
    /// Start of the next page; `None` on the last.
    pub next: Option<ScanCursor>,
    /// The cost of the page in the backend's own read units, if the backend says so.
    pub read_units: Option<f64>,
}
impl ScanPage {
    /// One page.
    #[must_use]
    pub const fn new(items: ScanItems, next: Option<ScanCursor>) -> Self {
        Self {
            items,
            next,
            read_units: None,
        }
    }
    /// Adds what it cost.
    #[must_use]
    pub const fn with_read_units(mut self, units: Option<f64>) -> Self {
        self.read_units = units;
        self
    }
}

/// Streams of one aggregate type, and where to go on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StreamPage {
    /// May be empty before the end.
    pub streams: Vec<StreamId>,
    /// Start of the next page; `None` on the last.
    pub next: Option<ScanCursor>,
}
impl StreamPage {
    /// One page.
    #[must_use]
    pub const fn new(streams: Vec<StreamId>, next: Option<ScanCursor>) -> Self {
        Self { streams, next }
    }
}

/// Commits that are not yet cleared, and where to go on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct UnpublishedPage {
    /// May be empty before the end.
    pub keys: Vec<CommitKey>,
    /// Start of the next page; `None` on the last.
    pub next: Option<ScanCursor>,
}
impl UnpublishedPage {
    /// One page.
    #[must_use]
    pub const fn new(keys: Vec<CommitKey>, next: Option<ScanCursor>) -> Self {
        Self { keys, next }
    }
}

/// The capabilities of an adapter. A rule of the contract that needs more does not apply to that adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Streams that one [`EventStore::append_all`] may touch, written or only checked. 1: no atomic append of several. Where
    /// a backend splits large commits, each part may count as a stream: an append with so many parts that the backend's
    /// transaction cannot hold them is `Refused(Unsupported)`, though it is within this number.
    pub max_streams_per_append: u32,
    /// The size of one commit in bytes, as [`Append::bytes`] counts them, above which an append is
    /// [`EventStoreError::TooLarge`]. The commits of an atomic append share it. A backend that adds bytes to each commit may
    /// answer so for many commits that are together slightly below it.
    pub max_commit_bytes: usize,
    /// The size of one event in bytes, as [`EventData::bytes`](super::EventData::bytes) counts them, above which an append
    /// is [`EventStoreError::TooLarge`]: smaller than a commit where a backend splits large commits between events.
    pub max_event_bytes: usize,
    /// True if [`EventStore::unpublished`] lists commits. False where a change stream drives the publisher.
    pub lists_unpublished: bool,
    /// True if an append is a conflict whenever its head is not in the stream's history, commit id included. False where a
    /// backend looks at nothing but the slot after the head. Such a store may take a head above the tail or of another
    /// history, and the stream then has a hole.
    pub checks_heads: bool,
}
impl Capabilities {
    /// Creates capabilities of one stream per append, events as large as commits, no list of unpublished commits, and heads
    /// that are checked.
    #[must_use]
    pub const fn new(max_commit_bytes: usize) -> Self {
        Self {
            max_streams_per_append: 1,
            max_commit_bytes,
            max_event_bytes: max_commit_bytes,
            lists_unpublished: false,
            checks_heads: true,
        }
    }
    /// Sets how many streams one append may touch; 0 counts as 1.
    #[must_use]
    pub const fn with_streams_per_append(mut self, streams: u32) -> Self {
        self.max_streams_per_append = if streams == 0 { 1 } else { streams };
        self
    }
    /// Sets the size of one event.
    #[must_use]
    pub const fn with_max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }
    /// Sets whether heads that are not in the stream's history are always a conflict.
    #[must_use]
    pub const fn with_checked_heads(mut self, checked: bool) -> Self {
        self.checks_heads = checked;
        self
    }
    /// Sets whether unpublished commits are listed.
    #[must_use]
    pub const fn with_unpublished_list(mut self, listed: bool) -> Self {
        self.lists_unpublished = listed;
        self
    }
}

/// An append whose outcome is not known: a request may still land. Settle it by reading its slots.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingAppend(Box<AppendAll>);
impl PendingAppend {
    /// For adapters: this one may or may not have been applied.
    #[must_use]
    pub fn new(all: AppendAll) -> Self {
        Self(Box::new(all))
    }
    /// Returns the append that was sent.
    pub fn append(&self) -> &AppendAll {
        &self.0
    }
}

/// The error returned by an [`EventStore`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventStoreError {
    /// Too many requests; wait first.
    #[error("the event store throttles")]
    Throttled {
        /// The least pause, if the backend named one.
        retry_after: Option<Duration>,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// Not reachable, timed out, or busy.
    #[error("the event store is unavailable{}", if pending.is_some() { "; whether the append was applied is not known" } else { "" })]
    Unavailable {
        /// The append that may have been applied nevertheless. `None`: certainly nothing was written.
        pending: Option<PendingAppend>,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// An event, the metadata, a commit, or all commits of an atomic append together are over their limit. Found before any
    /// call.
    #[error(
        "the append to {stream} has {bytes} bytes where {limit} are the limit: split the command, or keep large content \
         elsewhere and store a reference to it (metadata has at most {} bytes)",
        Append::MAX_METADATA_BYTES
    )]
    TooLarge {
        /// The stream; of several, the one with the largest commit.
        stream: StreamId,
        /// The size in bytes of what is over its limit.
        bytes: usize,
        /// The limit in bytes: of one event, of the metadata, or of one append.
        limit: usize,
    },
    /// An empty commit, a stream twice in one append, a payload that is not what it says, a cursor of another store.
    #[error("invalid request: {reason}")]
    Invalid {
        /// A description of the mistake.
        reason: String,
    },
    /// Stored data breaks a rule of the store: a hole, an overlap, a row that cannot be read.
    #[error("stream {stream} is corrupt after version {after}: {reason}")]
    Corrupt {
        /// The stream.
        stream: StreamId,
        /// The last version that was read whole.
        after: Version,
        /// A description of what was found.
        reason: String,
    },
    /// A stored row is of a format that this build does not know.
    #[error(
        "stream {stream} has format {found} at version {version}: deploy the build that reads it"
    )]
    UnknownFormat {
        /// The stream.
        stream: StreamId,
        /// Version of the row's first event.
        version: Version,
        /// The format's number.
        found: u64,
    },
    /// Something must be changed first: table, credentials, permission, request.
    #[error("the event store refuses: {reason}")]
    Refused {
        /// The kind of refusal: what must change.
        kind: RefusedKind,
        /// A description of the refusal and of its remedy.
        reason: String,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// The table is not the one that the adapter has used so far: it was deleted and made again, or restored from a
    /// backup under its old name. Heads and states that were read before may be of another history. Nothing was stored.
    /// The next load starts from what the table holds now.
    #[error("the table was replaced: {reason}")]
    Replaced {
        /// The table, how the adapter found out, and what to do.
        reason: String,
        /// The cause, as the adapter met it.
        #[source]
        source: BoxError,
    },
}
impl EventStoreError {
    /// Returns true if the same call may succeed later. A retry asks nothing else.
    ///
    /// [`Replaced`](Self::Replaced) is not transient: the same append never succeeds, one on a fresh head may.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }
    /// The least pause before a retry, if the backend named one.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
    /// Returns true if it is certain that nothing of an append was applied.
    pub const fn is_certainly_not_applied(&self) -> bool {
        !matches!(
            self,
            Self::Unavailable {
                pending: Some(_),
                ..
            }
        )
    }
}

/// Streams of commits.
///
/// # Contract
/// **Append**
/// - A commit whose head is the tail is stored, and the answer is the new head.
/// - The versions of a stream are 1, 2, 3, ... without gaps; the events of a commit are neighbours.
/// - A head before the tail is a conflict, nothing is stored, and `actual` never exceeds the real tail.
/// - A head above the tail or of another history is a conflict too where `checks_heads` says so. Elsewhere it may be
///   stored in the slot after it. What was there before is then read as before and can be appended on, and every read
///   across a hole or an overlap is `Corrupt`. Callers append only on heads that they have read from this store.
/// - The same append sent again, also by others at the same time, is stored once; the answer is `Repeated` with the *stored* commit.
/// - A commit id that is stored in another slot does not make a repeat: a slot that is taken is a conflict.
/// - Of several writers with the same head exactly one wins.
/// - A commit is visible whole or not at all.
/// - Name, schema version, payload bytes, codec, metadata, commit id and time come back as they were given. A payload
///   without codec is JSON and comes back byte for byte; one that is no JSON is `Invalid`.
/// - No event, or more than [`Append::MAX_EVENTS`], is `Invalid`. So are a time outside of the years 0 to 9999 and texts
///   that no header of a record could carry: whatever is stored can be published. A commit over `max_commit_bytes`, an
///   event over `max_event_bytes`, or metadata over [`Append::MAX_METADATA_BYTES`] is `TooLarge`. All before any call.
///   [`Append::validate_for`] has these rules, and every store measures by it.
/// - A dropped future leaves the commit stored or not, never in part.
/// - From the moment that [`incarnation`](Self::incarnation) changes, an append on a head that is not in the table is
///   refused as [`Replaced`](EventStoreError::Replaced) or is a conflict, and nothing is stored.
///
/// **Atomic append** (`max_streams_per_append` > 1)
/// - All commits are stored, or none; heads come back in the order of the request.
/// - A stream that is only checked must still be at its head, or it is a conflict that names it.
/// - A stream named twice, or no commit, is `Invalid`.
/// - A commit over its limits stores none. Commits that are together over `max_commit_bytes` are `TooLarge`.
///
/// More streams than `max_streams_per_append` are `Refused(Unsupported)`, and fewer may be where a backend splits a commit
/// of several events and counts the parts. Then nothing is stored. One commit without checks behaves as
/// [`append`](Self::append) everywhere.
///
/// **Read** is strongly consistent: every acknowledged commit is seen by every later read.
/// - To the tail, however many pages; never a shorter history: a hole is repaired by reading again or is `Corrupt`.
/// - An unknown stream, or one without what was asked for, is empty.
/// - `limit` counts commits. Direction and start are as [`ReadFrom`] says.
/// - Streams whose ids are prefixes of each other are not mixed up.
///
/// **Scan and lists**
/// - A scan sees everything that was stored before it began, each commit in one segment; a cursor survives the process.
/// - `streams` and `unpublished` may lag for a moment, but come to list everything.
/// - A stored commit is listed by `unpublished` until it is cleared, the keys of a stream next to each other within a
///   page. Clearing an unknown or cleared key does nothing, also where nothing is listed.
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event store",
    label = "not an `EventStore`",
    note = "use an adapter such as `foldstream_dynamodb::DynamoDbEventStore`, by value or in an `Arc`, or implement `foldstream::ports::EventStore`"
)]
pub trait EventStore: Debug + Send + Sync + 'static {
    /// What this adapter can do. Constant.
    fn capabilities(&self) -> Capabilities;

    /// A number that changes whenever the adapter finds that its table was missing or was replaced.
    ///
    /// A head or state that was read under another number may be of another history and must not be appended on: callers
    /// that keep states ask for the number *before* they read, keep it with the state, and drop the state once the number
    /// differs. The default, for a backend that cannot be replaced while a process uses it, is always 0. A wrapper
    /// returns the number of what it wraps.
    fn incarnation(&self) -> u64 {
        0
    }

    /// A number that two handles share if, and only if, they are the same store.
    ///
    /// A [`Transaction`](crate::Transaction) compares it with that of each repository, since its commits all go to one
    /// store. The default is the address of the object. An adapter whose clones share one connection returns the address
    /// of what they share; a wrapper keeps the default, since calls around it are not calls through it.
    fn identity(&self) -> usize {
        std::ptr::from_ref(self).cast::<()>().addr()
    }

    /// Stores one commit if the stream is still at `append.head`.
    ///
    /// # Errors
    /// [`EventStoreError`]; with `Unavailable { pending: Some(_) }` the commit may have been stored.
    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError>;

    /// Stores all commits or none.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>;

    /// Reads whole commits of one stream, lazily; at most `limit` commits.
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>>;

    /// Lists the streams of an aggregate type, a page at a time.
    ///
    /// # Errors
    /// [`EventStoreError`]; `Invalid` for a cursor that is not this listing's.
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError>;

    /// Reads a segment, a page of at most `max_items` commits at a time.
    ///
    /// # Errors
    /// [`EventStoreError`]; `Invalid` for a cursor that is not this scan's.
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanWhat,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError>;

    /// Lists commits that are not yet cleared, at most `limit` a page.
    ///
    /// # Errors
    /// [`EventStoreError`]; `Refused(Unsupported)` where `lists_unpublished` is false.
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError>;

    /// Clears these commits from the list of unpublished ones and touches nothing else. Idempotent.
    ///
    /// # Errors
    /// [`EventStoreError`]; some of the keys may have been cleared.
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError>;
}
