//! `SnapshotStore`: at most one folded state per stream.
use super::RefusedKind;
use crate::{BoxError, CommitId, StreamId, Version};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt::Debug, sync::Arc, time::Duration};

/// A folded state, as of a commit end.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredSnapshot {
    /// The stream.
    pub stream: StreamId,
    /// Version of the last event folded in: a commit end.
    pub version: Version,
    /// The commit that ends there. Versions alone do not identify history.
    pub commit_id: CommitId,
    /// [`Snapshot::STATE_VERSION`](crate::Snapshot::STATE_VERSION) of the writer.
    pub state_version: u32,
    /// Encoded state.
    pub payload: Bytes,
    /// The tag of the codec that wrote the payload; `None` for JSON.
    pub codec: Option<Arc<str>>,
}
impl StoredSnapshot {
    /// A snapshot of `stream` at `version`.
    #[must_use]
    pub const fn new(
        stream: StreamId,
        version: Version,
        commit_id: CommitId,
        state_version: u32,
        payload: Bytes,
    ) -> Self {
        Self {
            stream,
            version,
            commit_id,
            state_version,
            payload,
            codec: None,
        }
    }
    /// Says that the payload is not JSON.
    #[must_use]
    pub fn with_codec(mut self, codec: Option<Arc<str>>) -> Self {
        self.codec = codec;
        self
    }
    /// Returns true if this snapshot replaces `old`: it has a later version, or the same version and a later state version.
    #[must_use]
    pub fn replaces(&self, old: &Self) -> bool {
        (self.version, self.state_version) > (old.version, old.state_version)
    }
}

/// The outcome of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveOutcome {
    /// Now the stream's snapshot.
    Saved,
    /// The store has one that this one does not replace, and kept it.
    Stale,
}

/// The error returned by a [`SnapshotStore`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotStoreError {
    /// Too many requests; wait first.
    #[error("the snapshot store throttles")]
    Throttled {
        /// The least pause, if the backend named one.
        retry_after: Option<Duration>,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// Try later.
    #[error("the snapshot store is unavailable")]
    Unavailable {
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// Over the backend's limit, found before any call.
    #[error("the snapshot of {stream} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The stream.
        stream: StreamId,
        /// Bytes as the adapter counts them.
        bytes: usize,
        /// The most it takes.
        limit: usize,
    },
    /// Something must be changed first: table, credentials, permission.
    #[error("the snapshot store refuses: {reason}")]
    Refused {
        /// The kind of refusal: what must change.
        kind: RefusedKind,
        /// A description of the refusal and of its remedy.
        reason: String,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
}
impl SnapshotStoreError {
    /// Returns true if the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }
}

/// One snapshot per stream, moving forward only. Losing all of it costs time, never correctness.
///
/// # Contract
/// - A saved snapshot is loaded as it was given, codec and all; an unknown stream has none.
/// - A save of a later version replaces; of an earlier one it is `Stale`, and the later one stays.
/// - At the same version a later `state_version` replaces; the same or an earlier one is `Stale`.
/// - Of several savers at the same time the latest version stays.
/// - Streams do not touch each other.
/// - A deleted snapshot is gone, and an older one may be saved after it; deleting what is not there does nothing.
/// - A snapshot that the backend cannot hold is `TooLarge` before any call; the old one stays.
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a snapshot store",
    label = "not a `SnapshotStore`",
    note = "use an adapter such as `foldstream_dynamodb::DynamoDbSnapshotStore`, by value or in an `Arc`, or implement `foldstream::ports::SnapshotStore`"
)]
pub trait SnapshotStore: Debug + Send + Sync + 'static {
    /// The stream's snapshot. May for a moment be older than the last save.
    ///
    /// # Errors
    /// [`SnapshotStoreError`].
    async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError>;

    /// Replaces the snapshot if this one [`replaces`](StoredSnapshot::replaces) it.
    ///
    /// # Errors
    /// [`SnapshotStoreError`].
    async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError>;

    /// Forgets the stream's snapshot. Idempotent.
    ///
    /// # Errors
    /// [`SnapshotStoreError`].
    async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError>;
}
