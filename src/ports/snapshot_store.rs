//! The `SnapshotStore` port: at most one folded state per stream.
use super::RefusedKind;
use crate::{BoxError, CommitId, StreamId, Version};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt::Debug, sync::Arc, time::Duration};

/// The folded state of a stream at the end of one of its commits, as it is stored.
///
/// # Example
/// ```
/// use foldstream::{CommitId, StreamId, Version, ports::StoredSnapshot};
///
/// let cart = StreamId::new("cart", "7")?;
/// let at = |version, state_version| {
///     let commit_id = CommitId::from_u128(u128::from(version));
///     let state = br#"{"items":3}"#.as_slice().into();
///     StoredSnapshot::new(cart.clone(), Version::new(version), commit_id, state_version, state)
/// };
/// assert!(at(20, 1).replaces(&at(10, 1)));
/// // A new shape of the state replaces the old one at the same version.
/// assert!(at(20, 2).replaces(&at(20, 1)));
/// assert!(!at(10, 2).replaces(&at(20, 1)));
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredSnapshot {
    /// The stream whose state this is.
    pub stream: StreamId,
    /// The version of the last event that the state includes. It is the end of a commit.
    pub version: Version,
    /// The commit that ends at `version`. A version alone does not identify a history.
    pub commit_id: CommitId,
    /// The [`Snapshot::STATE_VERSION`](crate::Snapshot::STATE_VERSION) of the build that encoded
    /// the state.
    pub state_version: u32,
    /// The encoded state: JSON, unless `codec` names another format.
    pub payload: Bytes,
    /// The tag of the codec that wrote the payload; `None` for JSON.
    pub codec: Option<Arc<str>>,
}
impl StoredSnapshot {
    /// Creates a snapshot of `stream` at `version` with a JSON payload.
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
    /// Sets the tag of the codec that wrote the payload; `None` stands for JSON.
    #[must_use]
    pub fn with_codec(mut self, codec: Option<Arc<str>>) -> Self {
        self.codec = codec;
        self
    }
    /// The bytes that [`StoredSnapshot::bytes`] counts beside stream id, payload and codec. No
    /// backend adds more to a snapshot.
    pub const OVERHEAD_BYTES: usize = 64;

    /// Returns the size in bytes by which every snapshot store limits snapshots: stream id, payload
    /// and codec, and [`StoredSnapshot::OVERHEAD_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        let codec = self.codec.as_deref().map_or(0, str::len);
        self.stream.as_str().len() + self.payload.len() + codec + Self::OVERHEAD_BYTES
    }
    /// Returns true if this snapshot replaces `old`: it has a higher version, or the same version
    /// and a higher state version.
    #[must_use]
    pub fn replaces(&self, old: &Self) -> bool {
        (self.version, self.state_version) > (old.version, old.state_version)
    }
}

/// The outcome of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveOutcome {
    /// The saved snapshot is now the snapshot of its stream.
    Saved,
    /// The store has a snapshot that the given one does not replace, and kept it.
    Stale,
}

/// The error returned by a [`SnapshotStore`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotStoreError {
    /// The backend rejected the request because there are too many. Nothing was stored.
    #[error("the snapshot store throttles")]
    Throttled {
        /// The shortest pause before a retry, if the backend named one.
        retry_after: Option<Duration>,
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
    /// The backend is not reachable, busy, or did not answer in time.
    #[error("the snapshot store is unavailable")]
    Unavailable {
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
    /// The snapshot is over the backend's limit. The adapter checks this before any call to the
    /// backend.
    #[error("the snapshot of {stream} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The stream of the snapshot.
        stream: StreamId,
        /// The size of the snapshot in bytes, as [`StoredSnapshot::bytes`] counts it.
        bytes: usize,
        /// The limit of that size in bytes.
        limit: usize,
    },
    /// The backend refuses until something is changed: table, credentials or permission.
    #[error("the snapshot store refuses: {reason}")]
    Refused {
        /// The thing that must be changed.
        kind: RefusedKind,
        /// A description of the refusal and of its remedy.
        reason: String,
        /// The answer of the backend.
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

/// A store that keeps at most one snapshot per stream, and never replaces it by an older one.
///
/// Snapshots are a cache: losing all of them costs time, never correctness.
///
/// # Contract
/// - A saved snapshot is loaded as it was given, including its codec. An unknown stream has no
///   snapshot.
/// - A save of a higher version replaces the stored snapshot. A save of a lower version is `Stale`,
///   and the stored one stays.
/// - At the same version, a save of a higher `state_version` replaces. A save of the same or a
///   lower one is `Stale`.
/// - Of several concurrent saves the one with the highest version stays.
/// - The snapshots of different streams are independent of each other.
/// - A deleted snapshot is gone, and an older one may be saved afterwards. Deleting a snapshot that
///   does not exist does nothing.
/// - A snapshot over the backend's limit is `TooLarge` before any call, and the old one stays.
///   Every store measures by [`StoredSnapshot::bytes`].
///
/// # Example
/// A store for one process:
/// ```
/// # use async_trait::async_trait;
/// use foldstream::{StreamId, ports::*};
/// # use foldstream::{CommitId, Version};
/// use std::{collections::HashMap, sync::Mutex};
///
/// #[derive(Debug, Default)]
/// struct Snapshots(Mutex<HashMap<StreamId, StoredSnapshot>>);
///
/// #[async_trait]
/// impl SnapshotStore for Snapshots {
///     async fn load(
///         &self,
///         stream: &StreamId,
///     ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
///         let snapshots = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
///         Ok(snapshots.get(stream).cloned())
///     }
///     async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
///         let mut snapshots = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
///         match snapshots.get(&snapshot.stream) {
///             Some(stored) if !snapshot.replaces(stored) => return Ok(SaveOutcome::Stale),
///             _ => snapshots.insert(snapshot.stream.clone(), snapshot.clone()),
///         };
///         Ok(SaveOutcome::Saved)
///     }
///     async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
///         self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(stream);
///         Ok(())
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let store = Snapshots::default();
/// # let cart = StreamId::new("cart", "7")?;
/// # let at = |version| {
/// #     let commit_id = CommitId::from_u128(1);
/// #     StoredSnapshot::new(cart.clone(), Version::new(version), commit_id, 1, "{}".into())
/// # };
/// assert_eq!(store.save(&at(20)).await?, SaveOutcome::Saved);
/// assert_eq!(store.save(&at(10)).await?, SaveOutcome::Stale);
/// assert_eq!(store.load(&cart).await?, Some(at(20)));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a snapshot store",
    label = "not a `SnapshotStore`",
    note = "use an adapter such as `foldstream_dynamodb::DynamoDbSnapshotStore`, by value or in an `Arc`, or implement `foldstream::ports::SnapshotStore`"
)]
pub trait SnapshotStore: Debug + Send + Sync + 'static {
    /// Returns the stream's snapshot, which may for a moment be older than the last save.
    ///
    /// # Errors
    /// [`SnapshotStoreError`] if the backend refuses or fails.
    async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError>;

    /// Stores the snapshot if there is none that it does not [replace](StoredSnapshot::replaces).
    ///
    /// # Errors
    /// [`SnapshotStoreError`] if the snapshot is too large, or if the backend refuses or fails.
    /// After `Unavailable` the snapshot may have been stored.
    async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError>;

    /// Deletes the stream's snapshot. Idempotent.
    ///
    /// # Errors
    /// [`SnapshotStoreError`] if the backend refuses or fails. After `Unavailable` the snapshot may
    /// have been deleted.
    async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError>;
}
