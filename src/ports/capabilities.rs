//! The capabilities and limits of an event store.
#[cfg(doc)]
use super::{Append, EventStore, EventStoreError};

/// The capabilities of an adapter.
///
/// A rule of the contract that needs more than these capabilities does not apply to the adapter.
///
/// # Example
/// ```
/// use foldstream::ports::Capabilities;
///
/// let capabilities = Capabilities::new(400 * 1024)
///     .with_streams_per_append(10)
///     .with_unpublished_list(true);
/// assert_eq!(capabilities.max_event_bytes, 400 * 1024);
/// assert!(capabilities.checks_heads);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The number of streams that one [`EventStore::append_all`] may touch, written or only
    /// checked. The default is 1: no atomic append of several streams. Each part of a commit that
    /// is larger than [`max_part_bytes`](Self::max_part_bytes) counts as a stream.
    pub max_streams_per_append: u32,
    /// The limit of one commit's size in bytes, as [`Append::bytes`] counts it. A larger append is
    /// [`EventStoreError::TooLarge`]. The commits of an atomic append share the limit.
    ///
    /// An adapter chooses it so that every commit within it fits the backend. One that stores
    /// [`Commit::to_bytes`](super::Commit::to_bytes) as one value subtracts
    /// [`Commit::MAX_OVERHEAD_BYTES`](super::Commit::MAX_OVERHEAD_BYTES) from the largest value
    /// that the backend takes.
    pub max_commit_bytes: usize,
    /// The limit of one event's size in bytes, as [`EventData::bytes`](super::EventData::bytes)
    /// counts it. An append with a larger event is [`EventStoreError::TooLarge`]. The limit is
    /// lower than that of a commit where a backend splits large commits between events.
    pub max_event_bytes: usize,
    /// The size in bytes of the parts into which the backend splits a large commit between events,
    /// as [`Append::parts`] counts them. The default is `usize::MAX`: a commit of any size is one
    /// part.
    pub max_part_bytes: usize,
    /// The size in bytes of all that one append writes, as [`Append::bytes_in_parts`] counts it. An
    /// append above it is [`EventStoreError::TooLarge`]. The default is `usize::MAX`: only the size
    /// of the commits is limited.
    pub max_append_bytes: usize,
    /// True if [`EventStore::unpublished`] lists commits. The default is false, for a backend whose
    /// change stream drives the publisher.
    pub lists_unpublished: bool,
    /// True, the default, if an append is a conflict whenever its head is not in the stream's
    /// history, commit id included.
    ///
    /// False where a backend looks only at the slot after the head. Such a store may accept a head
    /// above the tail, or a head of another history, and the stream then has a hole.
    pub checks_heads: bool,
}
impl Capabilities {
    /// Creates capabilities of one stream per append, events as large as commits, commits that are
    /// not split, no list of unpublished commits, and heads that are checked.
    #[must_use]
    pub const fn new(max_commit_bytes: usize) -> Self {
        Self {
            max_streams_per_append: 1,
            max_commit_bytes,
            max_event_bytes: max_commit_bytes,
            max_part_bytes: usize::MAX,
            max_append_bytes: usize::MAX,
            lists_unpublished: false,
            checks_heads: true,
        }
    }
    /// Sets the number of streams that one append may touch; 0 counts as 1.
    #[must_use]
    pub const fn with_streams_per_append(mut self, streams: u32) -> Self {
        self.max_streams_per_append = if streams == 0 { 1 } else { streams };
        self
    }
    /// Sets the size limit of one event in bytes.
    #[must_use]
    pub const fn with_max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }
    /// Sets the size of the parts into which a large commit is split.
    #[must_use]
    pub const fn with_max_part_bytes(mut self, bytes: usize) -> Self {
        self.max_part_bytes = bytes;
        self
    }
    /// Sets the size of all that one append writes.
    #[must_use]
    pub const fn with_max_append_bytes(mut self, bytes: usize) -> Self {
        self.max_append_bytes = bytes;
        self
    }
    /// Sets whether a head that is not in the stream's history is always a conflict.
    #[must_use]
    pub const fn with_checked_heads(mut self, checked: bool) -> Self {
        self.checks_heads = checked;
        self
    }
    /// Sets whether the store lists unpublished commits.
    #[must_use]
    pub const fn with_unpublished_list(mut self, listed: bool) -> Self {
        self.lists_unpublished = listed;
        self
    }
}
