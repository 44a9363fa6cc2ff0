//! A snapshot store through faults.
use super::{
    Call, Faults,
    pass::{Late, Plain},
};
use async_trait::async_trait;
use foldstream::{
    StreamId,
    ports::{SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot},
};
use futures::future::BoxFuture;
use std::sync::Arc;

pub(super) fn wrap(faults: Faults, inner: Arc<dyn SnapshotStore>) -> Arc<dyn SnapshotStore> {
    Arc::new(FaultySnapshotStore { faults, inner })
}

#[derive(Clone, Debug)]
struct FaultySnapshotStore {
    faults: Faults,
    inner: Arc<dyn SnapshotStore>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl SnapshotStore for FaultySnapshotStore {
    async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        let act = || self.inner.load(stream);
        self.faults.ask(Call::LoadSnapshot(stream), act).await
    }

    async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        let late = || -> Late {
            let (this, snapshot) = (self.clone(), snapshot.clone());
            Box::pin(async move {
                let sent = this.inner.save(&snapshot);
                // Nobody waits for the answer any more; likewise below.
                let _ = this
                    .faults
                    .reach(&Call::SaveSnapshot(&snapshot), sent)
                    .await;
            })
        };
        let act = || self.inner.save(snapshot);
        let call = Call::SaveSnapshot(snapshot);
        self.faults.pass(call, act, late).await
    }

    async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        let late = || -> Late {
            let (this, stream) = (self.clone(), stream.clone());
            Box::pin(async move {
                let sent = async { this.inner.delete(&stream).await.map(Plain) };
                let _ = this
                    .faults
                    .reach(&Call::DeleteSnapshot(&stream), sent)
                    .await;
            })
        };
        let act = || -> BoxFuture<'_, _> {
            Box::pin(async { self.inner.delete(stream).await.map(Plain) })
        };
        let call = Call::DeleteSnapshot(stream);
        let done = self.faults.pass(call, act, late).await;
        done.map(|Plain(())| ())
    }
}
