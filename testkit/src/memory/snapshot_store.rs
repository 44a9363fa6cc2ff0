//! `InMemorySnapshotStore`.
use super::lock;
use async_trait::async_trait;
use foldstream::{
    StreamId,
    ports::{SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// A [`SnapshotStore`] in memory. Keeps what was saved until the last clone of the `Arc` is dropped.
#[derive(Debug)]
pub struct InMemorySnapshotStore {
    snapshots: Mutex<BTreeMap<StreamId, StoredSnapshot>>,
    max_bytes: usize,
}

impl InMemorySnapshotStore {
    /// What one item of DynamoDB holds, with room for its keys.
    const MAX_BYTES: usize = 390_000;

    /// An empty store with DynamoDB's limit: 390,000 bytes of state and stream id.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_max_bytes(Self::MAX_BYTES)
    }

    /// An empty store that takes snapshots of at most `bytes` bytes of state and stream id.
    #[must_use]
    pub fn with_max_bytes(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            snapshots: Mutex::default(),
            max_bytes: bytes,
        })
    }
}

#[async_trait]
impl SnapshotStore for InMemorySnapshotStore {
    async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        Ok(lock(&self.snapshots).get(stream).cloned())
    }

    async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        let codec = snapshot.codec.as_deref().map_or(0, str::len);
        let bytes = snapshot.payload.len() + codec + snapshot.stream.as_str().len();
        if bytes > self.max_bytes {
            return Err(SnapshotStoreError::TooLarge {
                stream: snapshot.stream.clone(),
                bytes,
                limit: self.max_bytes,
            });
        }
        let mut snapshots = lock(&self.snapshots);
        if let Some(old) = snapshots.get(&snapshot.stream)
            && !snapshot.replaces(old)
        {
            return Ok(SaveOutcome::Stale);
        }
        snapshots.insert(snapshot.stream.clone(), snapshot.clone());
        Ok(SaveOutcome::Saved)
    }

    async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        lock(&self.snapshots).remove(stream);
        Ok(())
    }
}
