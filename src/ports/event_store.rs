//! The `EventStore` port: streams of commits, appended under optimistic concurrency.
use super::{
    Append, AppendAll, AppendOutcome, Capabilities, Commit, CommitKey, RefusedKind, ScanCursor,
    ScanPage, ScanScope, Segment, StreamPage, UnpublishedPage,
};
use crate::{BoxError, StreamHead, StreamId, Version};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{fmt::Debug, num::NonZeroU32, time::Duration};

/// The direction and the start of a read.
///
/// Commits are returned whole: the commit that holds the start is returned with its earlier events.
///
/// Later versions of this crate may add variants. An adapter answers one that it does not know with
/// [`Refused`](EventStoreError::Refused) and [`RefusedKind::Unsupported`], whether or not the
/// stream exists.
///
/// # Example
/// ```
/// use foldstream::{StreamHead, StreamId, Version, ports::ReadFrom};
///
/// // The whole history of a stream, oldest commit first.
/// let stream = StreamId::new("cart", "7")?;
/// let history = ReadFrom::After(StreamHead::empty(stream));
/// // The newest commit that ends at or before version 20, then older ones.
/// let as_of = ReadFrom::NewestAtOrBelow(Version::new(20));
/// assert_ne!(history, as_of);
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// Oldest first, from the commit that starts right after this head. After [`StreamHead::empty`]
    /// the read starts at the beginning of the stream.
    ///
    /// Only the stream and the version of the head count. A store does not look for the commit that
    /// ends there, which would cost another request: its id may be of another history, and its time
    /// may be unknown. The read is then the same. Callers that keep heads compare commit ids
    /// themselves.
    ///
    /// The version should be one at which a commit ends. If it is within a commit, the read returns
    /// no commit, since it would leave events out. It is [`Corrupt`](EventStoreError::Corrupt) if
    /// more commits follow. After the last commit it may be empty instead, as it is after a head
    /// above the tail. A head of another stream is [`Invalid`](EventStoreError::Invalid).
    After(StreamHead),
    /// Oldest first, from the commit that holds this event version; 0 counts as 1. The read is
    /// empty if the stream is shorter.
    Event(Version),
    /// Newest first, starting at the tail.
    Newest,
    /// Newest first, from the newest commit that *ends* at or below this version.
    NewestAtOrBelow(Version),
}

/// An append whose outcome is not known, because a request may still be applied.
///
/// A repository settles it by reading the slots of the append: they hold these commits, or others,
/// or nothing yet.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingAppend(Box<AppendAll>);
impl PendingAppend {
    /// Creates a pending append from the request that may or may not have been applied.
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
    /// The backend rejected the request because there are too many. Nothing was stored.
    #[error("the event store throttles")]
    Throttled {
        /// The shortest pause before a retry, if the backend named one.
        retry_after: Option<Duration>,
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
    /// The backend is not reachable, busy, or did not answer in time.
    ///
    /// After an append whose answer was lost, an adapter reads the slot of the commit. Its own
    /// commit id there means that the append was applied, and another id means a conflict. While
    /// the slot is empty, the adapter may send the same commits once more: at most one of the
    /// attempts can be stored. An outcome that stays unknown is `pending`, and
    /// [`Repository::settle`](crate::Repository::settle) finds it out later.
    #[error("the event store is unavailable{}", if pending.is_some() { "; whether the append was applied is not known" } else { "" })]
    Unavailable {
        /// The append that may have been applied nevertheless. `None` if certainly nothing was
        /// written.
        pending: Option<PendingAppend>,
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
    /// An event, the metadata, a commit, or all commits of an atomic append together are over their
    /// limit. The adapter checks this before any call to the backend.
    #[error(
        "the append to {stream} has {bytes} bytes where {limit} are the limit: split the command, or keep large content \
         elsewhere and store a reference to it (metadata has at most {} bytes)",
        Append::MAX_METADATA_BYTES
    )]
    TooLarge {
        /// The stream of the append; of several streams, the one with the largest commit.
        stream: StreamId,
        /// The size in bytes of what is over its limit.
        bytes: usize,
        /// The limit in bytes: of one event, of the metadata, or of one append.
        limit: usize,
    },
    /// The request is malformed: an empty commit, a stream named twice in one append, a payload
    /// that is not what it claims to be, a head of another stream, or a cursor of another store or
    /// another listing.
    #[error("invalid request: {reason}")]
    Invalid {
        /// A description of the mistake.
        reason: String,
    },
    /// Stored data breaks a rule of the store: a hole, an overlap, or a row that cannot be read.
    #[error("stream {stream} is corrupt after version {after}: {reason}")]
    Corrupt {
        /// The stream that cannot be read.
        stream: StreamId,
        /// The version after which the damage lies, in a read of either direction; 0 if nothing
        /// before the damage is known to be sound.
        ///
        /// Oldest first, it is the end of the last commit before the damage, or the version before
        /// the start of the read. Newest first, it is the end of the next commit below the damage,
        /// or a lower version. It never points into the damage or above it, so that an operator may
        /// repair what comes after it.
        after: Version,
        /// A description of what was found.
        reason: String,
    },
    /// A stored row has a format that this build does not know.
    #[error(
        "stream {stream} has format {found} at version {version}: deploy the build that reads it"
    )]
    UnknownFormat {
        /// The stream that holds the row.
        stream: StreamId,
        /// The version of the row's first event.
        version: Version,
        /// The number of the stored format.
        found: u64,
    },
    /// The backend refuses until something is changed: table, credentials, permission or request.
    #[error("the event store refuses: {reason}")]
    Refused {
        /// The thing that must be changed.
        kind: RefusedKind,
        /// A description of the refusal and of its remedy.
        reason: String,
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
    /// The table is not the one that the adapter has used so far: it was deleted and created again,
    /// or restored from a backup under its old name.
    ///
    /// Heads and states that were read before may belong to another history. Nothing was stored.
    /// The next load starts from what the table holds now.
    #[error("the table was replaced: {reason}")]
    Replaced {
        /// The table, the way in which the adapter noticed, and the remedy.
        reason: String,
        /// The error in which the adapter noticed the replacement.
        #[source]
        source: BoxError,
    },
}
impl EventStoreError {
    /// Returns true if the same call may succeed later. Retries depend on nothing else.
    ///
    /// [`Replaced`](Self::Replaced) is not transient: the same append never succeeds, although an
    /// append on a fresh head may.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }
    /// Returns the shortest pause before a retry, if the backend named one.
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

/// A store of event streams: ordered, gapless sequences of commits that are never changed.
///
/// An append succeeds only on the tail of its stream, so that of several concurrent writers exactly
/// one wins. Every method may be called concurrently.
///
/// # Contract
/// **Append**
/// - A commit whose head is the tail is stored, and the answer is the new head.
/// - The versions of a stream are 1, 2, 3, ... without gaps. The events of a commit have
///   consecutive versions.
/// - A head before the tail is a conflict. Nothing is stored, and `actual` is never higher than the
///   real tail.
/// - A head above the tail or of another history is a conflict too where `checks_heads` is true.
///   Elsewhere the commit may be stored in the slot after that head. Then everything before the
///   hole is read as before and can be appended to, and every read across a hole or an overlap is
///   `Corrupt`. Callers must append only on heads that they have read from this store.
/// - An append that is sent again, even by several callers at the same time, is stored once. The
///   answer is `Repeated` with the *stored* commit.
/// - A commit id that is stored in another slot does not make an append a repeat: an occupied slot
///   is a conflict.
/// - Of several writers with the same head exactly one wins.
/// - A commit is visible as a whole or not at all.
/// - Name, schema version, payload bytes, codec, metadata, commit id and time are returned as they
///   were given. A payload without a codec is JSON in UTF-8 and is returned byte for byte.
/// - An append without events, or with more than [`Append::MAX_EVENTS`], is `Invalid`. So are a
///   payload without a codec that is not JSON, a time outside the years 0 to 9999, and texts that
///   no header of a record could carry: whatever is stored can be published. A commit over
///   `max_commit_bytes`, an event over `max_event_bytes`, or metadata over
///   [`Append::MAX_METADATA_BYTES`] is `TooLarge`.
/// - All of this is checked before any call to the backend, so that a malformed append on a stale
///   head is not a conflict. [`Append::validate_for`] and [`AppendAll::validate_for`] implement
///   these rules, and every store must use them. They also define which error an append with
///   several mistakes gets: `Invalid` comes first.
/// - Where heads are checked, version and commit id must be those of the tail, as
///   [`StreamHead::is_same_commit`] compares them. The time of a head does not count.
/// - If the future of an append is dropped, the commit is stored or not, never in part.
/// - From the moment that [`incarnation`](Self::incarnation) changes, an append on a head that is
///   not in the table is refused as [`Replaced`](EventStoreError::Replaced) or is a conflict, and
///   nothing is stored.
///
/// **Atomic append** (`max_streams_per_append` > 1)
/// - All commits are stored, or none. The heads are returned in the order of the request.
/// - A stream that is only checked must still be at its head. If it is not, the answer is a
///   conflict that names the stream.
/// - A conflict names a stream that has moved from its head. Of several such streams it may name
///   any one, so callers load all of them again.
/// - A request of which only some commits are stored already is a conflict, and nothing is stored.
///   The stored commits were not stored by this request, so their streams have moved.
/// - A request that names a stream twice, or has no commit, is `Invalid`.
/// - A commit over its limits stores none. Commits that are together over `max_commit_bytes`, or
///   with what a backend adds to each of their parts over `max_append_bytes`, are `TooLarge`.
///
/// More streams than `max_streams_per_append` are `Refused(Unsupported)`. So are more parts of
/// commits and checked streams than that, where a backend splits large commits. Then nothing is
/// stored. [`AppendAll::validate_for`] implements these rules, and every store must use it. One
/// commit without checks behaves as [`append`](Self::append) everywhere.
///
/// **Read** is strongly consistent: every later read returns every acknowledged commit.
/// - A read is lazy. It does nothing before its first poll, and a read that is dropped before costs
///   nothing. It returns every commit that was acknowledged before the first poll. Commits that are
///   acknowledged later, between two polls, may be returned too, in order and without a gap.
/// - A read continues to the tail, however many pages that takes. It never returns a shorter
///   history: a hole is resolved by reading again, or it is `Corrupt`.
/// - A read of an unknown stream, or of a stream without the requested versions, is empty.
/// - `limit` counts commits. [`ReadFrom`] defines direction and start.
/// - Streams whose ids are prefixes of each other are not mixed up.
///
/// **Scan and lists** return pages, and a cursor for the next page.
/// - A cursor continues only what it was returned by: the same method, with the same segment and
///   [`ScanScope`] or the same aggregate type. Elsewhere it is `Invalid`. The size of the page may
///   change. A cursor stays valid when the process ends, while other writers append, and while
///   commits are cleared. It may be used again.
/// - A scan returns everything that was stored before it began, each commit in one segment. Commits
///   that are stored during the scan may be returned or not. They neither hide other commits nor
///   repeat them.
/// - `streams` and `unpublished` may lag for a moment, but eventually list everything.
/// - `streams` lists each stream once, in any order. The adapter chooses the size of a page. A
///   stream that is created during the listing may be missing from it.
/// - `unpublished` lists a stored commit until it is cleared, once per walk. Within a page, the
///   keys of a stream are next to each other, in any order. The next page may continue with the
///   last stream, and with lower versions of it.
///   [`next_stream`](UnpublishedPage::next_stream) leaves out the rest of that stream, and nothing
///   else. Commits that are cleared or stored during a walk may be listed or not, and no other
///   commit is passed over because of them.
/// - Clearing an unknown or already cleared key does nothing, even where nothing is listed.
///
/// # Example
/// A store that only serves an archive, and refuses to append:
/// ```
/// # use async_trait::async_trait;
/// # use bytes::Bytes;
/// use foldstream::{StreamHead, StreamId, ports::*};
/// # use foldstream::{CommitId, Metadata, Timestamp, Version};
/// use futures::{StreamExt, stream};
/// # use std::num::NonZeroU32;
///
/// #[derive(Debug)]
/// struct Archive(Vec<Commit>);
///
/// # fn refused<T>() -> Result<T, EventStoreError> {
/// #     Err(EventStoreError::Refused {
/// #         kind: RefusedKind::Unsupported,
/// #         reason: "an archive is only read".into(),
/// #         source: "read-only".into(),
/// #     })
/// # }
/// #[async_trait]
/// impl EventStore for Archive {
///     fn capabilities(&self) -> Capabilities {
///         Capabilities::new(0)
///     }
///     async fn append(&self, _: &Append) -> Result<AppendOutcome, EventStoreError> {
///         refused()
///     }
///     fn read(
///         &self,
///         stream: &StreamId,
///         from: ReadFrom,
///         limit: Option<NonZeroU32>,
///     ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
///         let mut commits: Vec<_> =
///             self.0.iter().filter(|commit| commit.stream == *stream).cloned().collect();
///         match from {
///             // A complete store also refuses a version within a commit, and another stream.
///             ReadFrom::After(head) => commits.retain(|c| c.first_version > head.version()),
///             ReadFrom::Event(version) => commits.retain(|c| c.last_version() >= version),
///             ReadFrom::Newest => commits.reverse(),
///             ReadFrom::NewestAtOrBelow(version) => {
///                 commits.retain(|c| c.last_version() <= version);
///                 commits.reverse();
///             }
///             _ => return stream::once(async { refused() }).boxed(),
///         }
///         let limit = limit.map_or(usize::MAX, |limit| limit.get() as usize);
///         stream::iter(commits.into_iter().take(limit).map(Ok)).boxed()
///     }
///     // The other methods refuse as `append` does.
/// #     async fn append_all(
/// #         &self,
/// #         _: &AppendAll,
/// #     ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
/// #         refused()
/// #     }
/// #     async fn streams(
/// #         &self,
/// #         _: &str,
/// #         _: Option<ScanCursor>,
/// #     ) -> Result<StreamPage, EventStoreError> {
/// #         refused()
/// #     }
/// #     async fn scan(
/// #         &self,
/// #         _: Segment,
/// #         _: Option<ScanCursor>,
/// #         _: ScanScope,
/// #         _: NonZeroU32,
/// #     ) -> Result<ScanPage, EventStoreError> {
/// #         refused()
/// #     }
/// #     async fn unpublished(
/// #         &self,
/// #         _: Segment,
/// #         _: Option<ScanCursor>,
/// #         _: NonZeroU32,
/// #     ) -> Result<UnpublishedPage, EventStoreError> {
/// #         refused()
/// #     }
/// #     async fn clear_unpublished(&self, _: &[CommitKey]) -> Result<(), EventStoreError> {
/// #         Ok(())
/// #     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let cart = StreamId::new("cart", "7")?;
/// # let commit = |first, id| {
/// #     let head = StreamHead::empty(cart.clone());
/// #     let event = EventData::new("Added", 1, Bytes::from("{}"));
/// #     let (id, at) = (CommitId::from_u128(id), Timestamp::default());
/// #     let append = Append::after(head, id, at, vec![event]);
/// #     let mut commit = append.to_commit();
/// #     commit.first_version = Version::new(first);
/// #     commit
/// # };
/// let archive = Archive(vec![commit(1, 10), commit(2, 20)]);
/// let mut newest = archive.read(&cart, ReadFrom::Newest, NonZeroU32::new(1));
/// let tail = newest.next().await.ok_or("the stream is empty")??;
/// assert_eq!(tail.last_version(), Version::new(2));
/// assert!(newest.next().await.is_none());
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event store",
    label = "not an `EventStore`",
    note = "use an adapter such as `foldstream_dynamodb::DynamoDbEventStore`, by value or in an `Arc`, or implement `foldstream::ports::EventStore`"
)]
pub trait EventStore: Debug + Send + Sync + 'static {
    /// Returns the capabilities of this adapter, which never change.
    fn capabilities(&self) -> Capabilities;

    /// Returns a number that changes whenever the adapter notices that its table was missing or was
    /// replaced.
    ///
    /// A head or a state that was read under another number may belong to another history and must
    /// not be appended on. Callers that keep states therefore ask for the number *before* they
    /// read, keep it with the state, and drop the state once the number differs.
    ///
    /// The default is always 0, for a backend that cannot be replaced while a process uses it. Any
    /// other store needs the number, even one that checks heads: there an append on an old head is
    /// a conflict, but the caller then reads on *after* that head, and would fold another history
    /// into a state of the old one. [`Replaced`](EventStoreError::Replaced) is needed only where
    /// heads are not checked. A wrapper returns the number of the store that it wraps.
    fn incarnation(&self) -> u64 {
        0
    }

    /// Returns a number that two handles share if, and only if, they are the same store.
    ///
    /// A [`Transaction`](crate::Transaction) compares the numbers of its repositories, since all of
    /// its commits go to one store.
    ///
    /// The default is the address of the object, which is right for a store that is not cloned. An
    /// adapter whose clones share one connection returns the address of what they share.
    ///
    /// A wrapper keeps the default and never passes on the number of the store that it wraps: a
    /// transaction sends all commits through one of its repositories, and a call that bypasses the
    /// wrapper is not a call through it. Two wrappers of one store are therefore two stores. Wrap
    /// the store once, and share the wrapper in an `Arc`, which has the identity of its content.
    fn identity(&self) -> usize {
        std::ptr::from_ref(self).cast::<()>().addr()
    }

    /// Stores one commit if the stream is still at `append.head`.
    ///
    /// # Errors
    /// [`EventStoreError`] if the commit is malformed or too large, or if the backend refuses or
    /// fails. After `Unavailable { pending: Some(_) }` the commit may have been stored.
    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError>;

    /// Stores all commits of the request, or none.
    ///
    /// # Errors
    /// - Those of [`append`](Self::append).
    /// - `Refused(Unsupported)` if the adapter cannot write that many streams atomically.
    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>;

    /// Reads whole commits of one stream lazily, at most `limit` of them; `None` is no limit.
    ///
    /// Nothing happens before the first poll. Callers often drop the stream early. They stop at the
    /// first error.
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>>;

    /// Lists the streams of an aggregate type, page by page. The adapter bounds a page, usually by
    /// about 1,000 streams.
    ///
    /// # Errors
    /// - `Invalid` if the cursor does not belong to this listing.
    /// - Another [`EventStoreError`] if the backend refuses or fails.
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError>;

    /// Reads a segment of the whole store, in pages of at most `max_items` commits or heads.
    ///
    /// A page may hold fewer, or none, before the end of the scan: a backend may count rows that
    /// are no commit of their own.
    ///
    /// # Errors
    /// - `Invalid` if the cursor does not belong to this scan.
    /// - `Refused(Unsupported)` if the adapter does not know this [`ScanScope`].
    /// - Another [`EventStoreError`] if the backend refuses or fails.
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanScope,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError>;

    /// Lists commits that are not yet cleared, in pages of at most `limit` keys.
    ///
    /// # Errors
    /// - `Invalid` if the cursor does not belong to this listing.
    /// - `Refused(Unsupported)` if [`lists_unpublished`](Capabilities::lists_unpublished) is false.
    /// - Another [`EventStoreError`] if the backend refuses or fails.
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError>;

    /// Removes these commits from the list of unpublished ones, and changes nothing else.
    /// Idempotent.
    ///
    /// # Errors
    /// [`EventStoreError`] if the backend refuses or fails. Some of the keys may have been cleared.
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError>;
}
