//! The in-memory snapshot store.
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

/// A [`SnapshotStore`] in memory.
///
/// The store keeps its snapshots until the last clone of the `Arc` is dropped. A load sees every
/// save at once, unless [`set_lag`](Self::set_lag) says otherwise. Loads from DynamoDB may return
/// an older snapshot or none for a moment.
///
/// # Example
/// ```
/// use foldstream::{StreamId, ports::SnapshotStore};
/// use foldstream_testkit::InMemorySnapshotStore;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let snapshots = InMemorySnapshotStore::new();
/// assert!(snapshots.load(&StreamId::new("cart", "a")?).await?.is_none());
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Debug)]
pub struct InMemorySnapshotStore {
    state: Mutex<State>,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    snapshots: BTreeMap<StreamId, StoredSnapshot>,
    /// The number of loads of a stream that do not see its next save.
    lag: u32,
    /// The old snapshot that loads of a stream still see, and the number of such loads that remain.
    lagging: BTreeMap<StreamId, (Option<StoredSnapshot>, u32)>,
}

impl State {
    /// Lets the next loads of a stream see the snapshot that is stored before a write.
    fn hold(&mut self, stream: &StreamId) {
        if self.lag == 0 {
            return;
        }
        let seen = match self.lagging.remove(stream) {
            Some((seen, _)) => seen,
            None => self.snapshots.get(stream).cloned(),
        };
        self.lagging.insert(stream.clone(), (seen, self.lag));
    }

    fn load(&mut self, stream: &StreamId) -> Option<StoredSnapshot> {
        if let Some((seen, left)) = self.lagging.get_mut(stream) {
            if *left > 0 {
                *left -= 1;
                return seen.clone();
            }
            self.lagging.remove(stream);
        }
        self.snapshots.get(stream).cloned()
    }
}

impl InMemorySnapshotStore {
    /// The limit of the DynamoDB snapshot store: 390 KiB, as [`StoredSnapshot::bytes`] counts them.
    const MAX_BYTES: usize = 390 * 1024;

    /// Creates an empty store with the limit of the DynamoDB snapshot store: 390 KiB per snapshot.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_max_bytes(Self::MAX_BYTES)
    }

    /// Creates an empty store that takes snapshots of at most `bytes`, as [`StoredSnapshot::bytes`]
    /// counts them.
    #[must_use]
    pub fn with_max_bytes(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            max_bytes: bytes,
        })
    }

    /// Sets the number of loads of a stream that do not see a later save or deletion.
    ///
    /// The default is 0, which shows every write at once and ends a lag. Saves always compare with
    /// the stored snapshot.
    pub fn set_lag(&self, loads: u32) {
        let mut state = lock(&self.state);
        state.lag = loads;
        if loads == 0 {
            state.lagging.clear();
        }
    }
}

#[async_trait]
impl SnapshotStore for InMemorySnapshotStore {
    async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        Ok(lock(&self.state).load(stream))
    }

    async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        let bytes = snapshot.bytes();
        if bytes > self.max_bytes {
            return Err(SnapshotStoreError::TooLarge {
                stream: snapshot.stream.clone(),
                bytes,
                limit: self.max_bytes,
            });
        }
        let mut state = lock(&self.state);
        if let Some(old) = state.snapshots.get(&snapshot.stream)
            && !snapshot.replaces(old)
        {
            return Ok(SaveOutcome::Stale);
        }
        state.hold(&snapshot.stream);
        let stream = snapshot.stream.clone();
        state.snapshots.insert(stream, snapshot.clone());
        Ok(SaveOutcome::Saved)
    }

    async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        let mut state = lock(&self.state);
        state.hold(stream);
        state.snapshots.remove(stream);
        Ok(())
    }
}
