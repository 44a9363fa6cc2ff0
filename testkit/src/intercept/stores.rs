//! Layers over a snapshot store and over a control store.
use super::Intercepted;
use async_trait::async_trait;
use foldstream::{
    StreamId,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome,
        RangeQuery, Row, RowKey, RowPage, SaveOutcome, SnapshotStore, SnapshotStoreError,
        StoredSnapshot,
    },
};
use std::sync::Arc;

/// A layer over a snapshot store. Every method passes the call on unless the layer overrides it.
///
/// # Example
/// A store whose loads never find a snapshot.
/// ```
/// use foldstream::{StreamId, ports::{SnapshotStore, SnapshotStoreError, StoredSnapshot}};
/// use foldstream_testkit::{
///     InMemorySnapshotStore,
///     intercept::{self, SnapshotStoreLayer, async_trait},
/// };
/// use std::sync::Arc;
///
/// struct Forgetful;
///
/// #[async_trait]
/// impl SnapshotStoreLayer for Forgetful {
///     async fn load(
///         &self,
///         _: &Arc<dyn SnapshotStore>,
///         _: &StreamId,
///     ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
///         Ok(None)
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let below = InMemorySnapshotStore::new();
/// let snapshots = intercept::snapshot_store(below, Forgetful);
/// assert!(snapshots.load(&StreamId::new("cart", "a")?).await?.is_none());
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
pub trait SnapshotStoreLayer: Send + Sync + 'static {
    /// Loads the snapshot of a stream.
    async fn load(
        &self,
        inner: &Arc<dyn SnapshotStore>,
        stream: &StreamId,
    ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        inner.load(stream).await
    }
    /// Saves a snapshot of a stream.
    async fn save(
        &self,
        inner: &Arc<dyn SnapshotStore>,
        snapshot: &StoredSnapshot,
    ) -> Result<SaveOutcome, SnapshotStoreError> {
        inner.save(snapshot).await
    }
    /// Deletes the snapshot of a stream.
    async fn delete(
        &self,
        inner: &Arc<dyn SnapshotStore>,
        stream: &StreamId,
    ) -> Result<(), SnapshotStoreError> {
        inner.delete(stream).await
    }
}

// Denied because a method with a default must pass through the layer too; likewise below.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<L: SnapshotStoreLayer> SnapshotStore for Intercepted<dyn SnapshotStore, L> {
    async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        self.layer.load(&self.inner, stream).await
    }
    async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        self.layer.save(&self.inner, snapshot).await
    }
    async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        self.layer.delete(&self.inner, stream).await
    }
}

/// A layer over a control store. Every method passes the call on unless the layer overrides it.
///
/// # Example
/// A store whose rows expire as soon as they are written.
/// ```
/// use foldstream::{Timestamp, ports::*};
/// use foldstream_testkit::{
///     InMemoryControlStore,
///     intercept::{self, ControlStoreLayer, async_trait},
/// };
/// use std::sync::Arc;
///
/// struct ShortLived;
///
/// #[async_trait]
/// impl ControlStoreLayer for ShortLived {
///     async fn put(
///         &self,
///         inner: &Arc<dyn ControlStore>,
///         row: &Row,
///         expect: Expect,
///     ) -> Result<PutOutcome, ControlStoreError> {
///         inner.put(&row.clone().with_expiry(Some(Timestamp::MIN)), expect).await
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let rows = intercept::control_store(InMemoryControlStore::new(), ShortLived);
/// let row = Row::new(RowKey::new("leases", "billing"), "1", Revision::from_u128(7));
/// assert_eq!(rows.put(&row, Expect::Absent).await?, PutOutcome::Written);
/// assert_eq!(rows.get(&row.key).await?, None);
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
pub trait ControlStoreLayer: Send + Sync + 'static {
    /// Reads the row of one key.
    async fn get(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
    ) -> Result<Option<Row>, ControlStoreError> {
        inner.get(key).await
    }
    /// Reads the rows of several keys.
    async fn get_many(
        &self,
        inner: &Arc<dyn ControlStore>,
        keys: &[RowKey],
    ) -> Result<Vec<Option<Row>>, ControlStoreError> {
        inner.get_many(keys).await
    }
    /// Writes a row if the stored row is as expected.
    async fn put(
        &self,
        inner: &Arc<dyn ControlStore>,
        row: &Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        inner.put(row, expect).await
    }
    /// Deletes a row if the stored row is as expected.
    async fn delete(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        inner.delete(key, expect).await
    }
    /// Reads a page of a range of rows.
    async fn range(
        &self,
        inner: &Arc<dyn ControlStore>,
        query: &RangeQuery,
    ) -> Result<RowPage, ControlStoreError> {
        inner.range(query).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<L: ControlStoreLayer> ControlStore for Intercepted<dyn ControlStore, L> {
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        self.layer.get(&self.inner, key).await
    }
    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
        self.layer.get_many(&self.inner, keys).await
    }
    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        self.layer.put(&self.inner, row, expect).await
    }
    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        self.layer.delete(&self.inner, key, expect).await
    }
    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        self.layer.range(&self.inner, query).await
    }
}
