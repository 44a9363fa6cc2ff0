//! The wrapper that injects faults into a snapshot store.
use super::{
    Call, Faults,
    pass::{Late, Plain},
};
use crate::intercept::SnapshotStoreLayer;
use async_trait::async_trait;
use foldstream::{
    StreamId,
    ports::{SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot},
};
use futures::future::BoxFuture;
use std::sync::Arc;

pub(super) struct FaultySnapshotStore(pub(super) Faults);

type Store = Arc<dyn SnapshotStore>;

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl SnapshotStoreLayer for FaultySnapshotStore {
    async fn load(
        &self,
        inner: &Store,
        stream: &StreamId,
    ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        let act = || inner.load(stream);
        self.0.ask(Call::LoadSnapshot(stream), act).await
    }

    async fn save(
        &self,
        inner: &Store,
        snapshot: &StoredSnapshot,
    ) -> Result<SaveOutcome, SnapshotStoreError> {
        let late = || -> Late {
            let (faults, inner, snapshot) = (self.0.clone(), inner.clone(), snapshot.clone());
            Box::pin(async move {
                let sent = inner.save(&snapshot);
                // The caller has given up and does not get the answer; likewise below.
                let _ = faults.reach(&Call::SaveSnapshot(&snapshot), sent).await;
            })
        };
        let act = || inner.save(snapshot);
        let call = Call::SaveSnapshot(snapshot);
        self.0.pass(call, act, late).await
    }

    async fn delete(&self, inner: &Store, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        let late = || -> Late {
            let (faults, inner, stream) = (self.0.clone(), inner.clone(), stream.clone());
            Box::pin(async move {
                let sent = async { inner.delete(&stream).await.map(Plain) };
                let _ = faults.reach(&Call::DeleteSnapshot(&stream), sent).await;
            })
        };
        let act =
            || -> BoxFuture<'_, _> { Box::pin(async { inner.delete(stream).await.map(Plain) }) };
        let call = Call::DeleteSnapshot(stream);
        let done = self.0.pass(call, act, late).await;
        done.map(|Plain(())| ())
    }
}
