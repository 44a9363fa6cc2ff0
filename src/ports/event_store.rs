//! `EventStore`: streams of commits.
use super::RefusedKind;
use crate::{
    BoxError, CommitId, EventHeader, EventName, Metadata, RecordedEvent, StreamHead, StreamId,
    Timestamp, Version, VersionConflict,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::{fmt::Debug, num::NonZeroU32, sync::Arc, time::Duration};

/// One event before and after it is stored: what is not shared by its commit.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EventData {
    /// Stored name.
    pub name: EventName,
    /// Schema version of the payload, from 1.
    pub schema_version: u16,
    /// Encoded payload. JSON, unless `codec` names something else.
    pub payload: Bytes,
    /// What the payload is written in (a content type or a decorator's tag), where it is not JSON.
    pub codec: Option<Arc<str>>,
}
impl EventData {
    /// One event with a JSON payload.
    #[must_use]
    pub fn new(name: impl Into<EventName>, schema_version: u16, payload: impl Into<Bytes>) -> Self {
        Self {
            name: name.into(),
            schema_version,
            payload: payload.into(),
            codec: None,
        }
    }
    /// Says that the payload is not JSON.
    #[must_use]
    pub fn with_codec(mut self, codec: Option<Arc<str>>) -> Self {
        self.codec = codec;
        self
    }
}

/// A request to extend one stream by one commit.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Append {
    /// The stream, and the version that it must still be at.
    pub head: StreamHead,
    /// Names this content; settles an attempt whose answer was lost.
    pub commit_id: CommitId,
    /// The writer's clock, never below `head.recorded_at()`.
    pub recorded_at: Timestamp,
    /// Shared by all events of the commit.
    pub metadata: Metadata,
    /// 1 to [`Append::MAX_EVENTS`].
    pub events: Arc<[EventData]>,
}
impl Append {
    /// Events of one commit: an event id holds its index in 16 bits.
    pub const MAX_EVENTS: usize = 65_536;

    /// A commit behind `head`.
    #[must_use]
    pub fn after(
        head: StreamHead,
        commit_id: CommitId,
        recorded_at: Timestamp,
        events: impl Into<Arc<[EventData]>>,
    ) -> Self {
        let recorded_at = recorded_at.max(head.recorded_at());
        Self {
            head,
            commit_id,
            recorded_at,
            metadata: Metadata::new(),
            events: events.into(),
        }
    }
    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }
    /// The commit as it will be read back. All parts are shared, not copied.
    #[must_use]
    pub fn to_commit(&self) -> Commit {
        Commit {
            id: self.commit_id,
            stream: self.head.stream().clone(),
            first_version: self.head.version().next(),
            recorded_at: self.recorded_at,
            metadata: self.metadata.clone(),
            events: self.events.clone(),
        }
    }
    /// The head behind this commit, once it is stored.
    #[must_use]
    pub fn head_after(&self) -> StreamHead {
        StreamHead::observed(
            self.head.stream().clone(),
            self.head.version().plus(self.events.len() as u64),
            self.commit_id,
            self.recorded_at,
        )
    }
    /// Checks what every adapter must refuse before any call.
    ///
    /// # Errors
    /// [`EventStoreError::Invalid`] for no event, more than [`Append::MAX_EVENTS`], or a metadata key with a NUL in it,
    /// which no bus could carry as a header.
    pub fn validate(&self) -> Result<(), EventStoreError> {
        let reason = match self.events.len() {
            0 => "a commit needs at least one event".into(),
            n if n > Self::MAX_EVENTS => format!(
                "a commit has at most {} events, this one has {n}",
                Self::MAX_EVENTS
            ),
            _ if self.metadata.user().any(|(key, _)| key.contains('\0')) => {
                "a metadata key must not contain NUL".into()
            }
            _ => return Ok(()),
        };
        Err(EventStoreError::Invalid { reason })
    }
}

/// Several commits that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AppendAll {
    /// At least one; at most one a stream.
    pub commits: Vec<Append>,
    /// Streams only read, that must still be where they were.
    pub unchanged: Vec<StreamHead>,
}
impl AppendAll {
    /// These commits.
    #[must_use]
    pub const fn new(commits: Vec<Append>) -> Self {
        Self {
            commits,
            unchanged: Vec::new(),
        }
    }
    /// Also requires that these streams have not moved.
    #[must_use]
    pub fn with_unchanged(mut self, heads: Vec<StreamHead>) -> Self {
        self.unchanged = heads;
        self
    }
    /// Checks what every adapter must refuse before any call.
    ///
    /// # Errors
    /// [`EventStoreError::Invalid`] for no commit, a stream named twice, or a commit that is itself invalid.
    pub fn validate(&self) -> Result<(), EventStoreError> {
        if self.commits.is_empty() {
            return Err(EventStoreError::Invalid {
                reason: "an atomic append needs at least one commit".into(),
            });
        }
        let mut seen = std::collections::BTreeSet::new();
        for head in self.commits.iter().map(|a| &a.head).chain(&self.unchanged) {
            if !seen.insert(head.stream()) {
                return Err(EventStoreError::Invalid {
                    reason: format!("stream {} is named twice in one append", head.stream()),
                });
            }
        }
        self.commits.iter().try_for_each(Append::validate)
    }
}

/// What became of an append. A conflict is an ordinary answer, not an error.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum AppendOutcome<T = StreamHead> {
    /// Stored now.
    Appended(T),
    /// An earlier attempt with this commit id stored them in this very slot. These stored events count, not the ones
    /// of the request. One commit a commit of the request, in its order.
    Repeated(Vec<Commit>),
    /// Nothing was stored.
    Conflict(VersionConflict),
}

/// Several events of one stream, stored atomically. Cloning is a few reference counts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Commit {
    /// Its id.
    pub id: CommitId,
    /// Its stream.
    pub stream: StreamId,
    /// Version of its first event.
    pub first_version: Version,
    /// The writer's clock.
    pub recorded_at: Timestamp,
    /// Shared by its events.
    pub metadata: Metadata,
    /// In order; never empty.
    pub events: Arc<[EventData]>,
}
impl Commit {
    /// For adapters: a commit as read.
    #[must_use]
    pub fn new(
        key: CommitKey,
        id: CommitId,
        recorded_at: Timestamp,
        metadata: Metadata,
        events: impl Into<Arc<[EventData]>>,
    ) -> Self {
        Self {
            id,
            stream: key.stream,
            first_version: key.first_version,
            recorded_at,
            metadata,
            events: events.into(),
        }
    }
    /// Version of its last event: the commit end.
    pub fn last_version(&self) -> Version {
        Version::new(self.first_version.get() + (self.events.len() as u64).saturating_sub(1))
    }
    /// Its place.
    pub fn key(&self) -> CommitKey {
        CommitKey {
            stream: self.stream.clone(),
            first_version: self.first_version,
        }
    }
    /// The head where it ends.
    pub fn head(&self) -> StreamHead {
        StreamHead::observed(
            self.stream.clone(),
            self.last_version(),
            self.id,
            self.recorded_at,
        )
    }
    /// Its events, one envelope each.
    pub fn recorded(&self) -> impl Iterator<Item = RecordedEvent> + '_ {
        let last = self.last_version();
        (0u16..=u16::MAX)
            .zip(self.events.iter())
            .map(move |(i, event)| {
                let version = self.first_version.plus(u64::from(i));
                let header = EventHeader::new(
                    self.id.event_id(i),
                    self.stream.clone(),
                    version,
                    event.name.clone(),
                    self.recorded_at,
                )
                .with_commit_last(last)
                .with_schema_version(event.schema_version)
                .with_codec(event.codec.clone())
                .with_metadata(self.metadata.clone());
                RecordedEvent::new(header, event.payload.clone())
            })
    }
}

/// Where a commit is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct CommitKey {
    /// The stream.
    pub stream: StreamId,
    /// Version of the commit's first event.
    pub first_version: Version,
}
impl CommitKey {
    /// A place.
    #[must_use]
    pub const fn new(stream: StreamId, first_version: Version) -> Self {
        Self {
            stream,
            first_version,
        }
    }
}

/// Direction and start of a read. Commits come whole: one that holds the start is returned with its earlier events.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// Oldest first, from the commit that starts right behind this head. Behind [`StreamHead::empty`]: from the beginning.
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
    /// How many parts.
    pub const fn total(self) -> u32 {
        self.total
    }
}

/// Where a scan or listing goes on; meaningful only to the adapter that gave it, for the same segment. May be stored.
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

/// What a scan returns.
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
    /// What the page cost in the backend's own read units, if it says so.
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

/// What an adapter can do. A rule of the contract that needs more is no rule for that adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Streams that one [`EventStore::append_all`] may touch, written or only checked. 1: no atomic append of several.
    pub max_streams_per_append: u32,
    /// Size of one commit in bytes, as the adapter counts it, above which an append is [`EventStoreError::TooLarge`].
    pub max_commit_bytes: usize,
    /// Whether [`EventStore::unpublished`] lists commits. Not where a change stream drives the publisher.
    pub lists_unpublished: bool,
}
impl Capabilities {
    /// One stream an append, no list of unpublished commits.
    #[must_use]
    pub const fn new(max_commit_bytes: usize) -> Self {
        Self {
            max_streams_per_append: 1,
            max_commit_bytes,
            lists_unpublished: false,
        }
    }
    /// Sets how many streams one append may touch; 0 counts as 1.
    #[must_use]
    pub const fn with_streams_per_append(mut self, streams: u32) -> Self {
        self.max_streams_per_append = if streams == 0 { 1 } else { streams };
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
    /// What was sent.
    pub fn append(&self) -> &AppendAll {
        &self.0
    }
}

/// Why the store could not answer.
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
    /// A commit over the backend's limit, found before any call.
    #[error("the commit on {stream} has {bytes} bytes, the limit is {limit}: split the command")]
    TooLarge {
        /// The stream.
        stream: StreamId,
        /// Bytes as the adapter counts them.
        bytes: usize,
        /// The most it takes.
        limit: usize,
    },
    /// An empty commit, a stream twice in one append, a payload that is not what it says, a cursor of another store.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// Stored data breaks a rule of the store: a hole, an overlap, a row that cannot be read.
    #[error("stream {stream} is corrupt after version {after}: {reason}")]
    Corrupt {
        /// The stream.
        stream: StreamId,
        /// The last version that was read whole.
        after: Version,
        /// What was found.
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
        /// What must change.
        kind: RefusedKind,
        /// What was refused and what to do about it.
        reason: String,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
}
impl EventStoreError {
    /// Whether the same call may succeed later. The only thing that a retry asks.
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
    /// Whether nothing of an append was applied for certain.
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
/// - A head that is not the tail is a conflict, nothing is stored, and `actual` never exceeds the real tail.
/// - The same append sent again, also by others at the same time, is stored once; the answer is `Repeated` with the *stored* commit.
/// - A commit id that is stored in another slot does not make a repeat: a slot that is taken is a conflict.
/// - Of several writers with the same head exactly one wins.
/// - A commit is visible whole or not at all.
/// - Name, schema version, payload bytes, codec, metadata, commit id and time come back as they were given. A payload
///   without codec is JSON and comes back byte for byte; one that is no JSON is `Invalid`.
/// - No event, or more than [`Append::MAX_EVENTS`], is `Invalid`; over `max_commit_bytes` is `TooLarge`; both before any call.
/// - A dropped future leaves the commit stored or not, never in part.
///
/// **Atomic append** (`max_streams_per_append` > 1)
/// - All commits are stored, or none; heads come back in the order of the request.
/// - A stream that is only checked must still be at its head, or it is a conflict that names it.
/// - A stream named twice, or no commit, is `Invalid`.
///
/// More streams than `max_streams_per_append` are `Refused(Unsupported)`. One commit without checks behaves as
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
/// - `streams` and `unpublished` may lag behind for a moment, but come to list everything.
/// - A stored commit is listed by `unpublished` until it is cleared, the keys of a stream next to each other within a
///   page. Clearing an unknown or cleared key does nothing, also where nothing is listed.
#[async_trait]
pub trait EventStore: Debug + Send + Sync + 'static {
    /// What this adapter can do. Constant.
    fn capabilities(&self) -> Capabilities;

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
