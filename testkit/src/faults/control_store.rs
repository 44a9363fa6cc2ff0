//! The wrapper that injects faults into a control store.
use super::{Call, Fault, Faults, pass::Late, start};
use crate::intercept::ControlStoreLayer;
use async_trait::async_trait;
use foldstream::ports::{
    ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome, RangeQuery,
    Row, RowKey, RowPage,
};
use std::sync::Arc;

pub(super) struct FaultyControlStore(pub(super) Faults);

type Store = Arc<dyn ControlStore>;

impl FaultyControlStore {
    /// Writes over the stored row as another writer. Writes a change of `wanted` if no row is
    /// stored.
    async fn write_concurrently(
        &self,
        inner: &Store,
        key: &RowKey,
        wanted: Option<&Row>,
    ) -> Result<(), ControlStoreError> {
        let found = inner.get(key).await?;
        let expect = found
            .as_ref()
            .map_or(Expect::Absent, |row| Expect::Revision(row.revision));
        if let Some(row) = found.as_ref().or(wanted) {
            // If a third writer is faster, the put conflicts, but then that writer has changed the
            // row: the caller's expectation fails all the same.
            let _ = inner.put(&self.0.plan.written(row), expect).await?;
        }
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ControlStoreLayer for FaultyControlStore {
    async fn get(&self, inner: &Store, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        self.0.ask(Call::Get(key), || inner.get(key)).await
    }

    async fn get_many(
        &self,
        inner: &Store,
        keys: &[RowKey],
    ) -> Result<Vec<Option<Row>>, ControlStoreError> {
        let act = || inner.get_many(keys);
        self.0.ask(Call::GetMany(keys), act).await
    }

    async fn put(
        &self,
        inner: &Store,
        row: &Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        let call = Call::Put { row, expect };
        let fault = self.0.arrive(&call).await;
        if matches!(fault, Some(Fault::ConcurrentWrite)) && expect != Expect::Any {
            self.write_concurrently(inner, &row.key, Some(row)).await?;
        }
        let late = || -> Late {
            let (faults, inner, row) = (self.0.clone(), inner.clone(), row.clone());
            Box::pin(async move {
                let sent = inner.put(&row, expect);
                let call = Call::Put { row: &row, expect };
                // The caller has given up and does not get the answer; likewise below.
                let _ = faults.reach(&call, sent).await;
            })
        };
        let act = || inner.put(row, expect);
        self.0.finish(call, fault, act, late).await
    }

    async fn delete(
        &self,
        inner: &Store,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        let call = Call::Delete { key, expect };
        let fault = self.0.arrive(&call).await;
        if matches!(fault, Some(Fault::ConcurrentWrite)) && expect != DeleteExpect::Any {
            self.write_concurrently(inner, key, None).await?;
        }
        let late = || -> Late {
            let (faults, inner, key) = (self.0.clone(), inner.clone(), key.clone());
            Box::pin(async move {
                let sent = inner.delete(&key, expect);
                let call = Call::Delete { key: &key, expect };
                let _ = faults.reach(&call, sent).await;
            })
        };
        let act = || inner.delete(key, expect);
        self.0.finish(call, fault, act, late).await
    }

    async fn range(&self, inner: &Store, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        let again = start::again_after(query.after.as_deref());
        let mut query = query.clone();
        query.after = start::resolved_sort(query.after);
        let call = Call::Range(&query);
        let fault = self.0.arrive(&call).await;
        if matches!(fault, Some(Fault::EmptyPage)) {
            inner.range(&query).await?;
            return Ok(RowPage::new(Vec::new(), Some(again)));
        }
        let act = || inner.range(&query);
        self.0.finish_asking(call, fault, act).await
    }
}
