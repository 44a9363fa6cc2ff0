//! A control store through faults.
use super::{Call, Fault, Faults, pass::Late, start};
use async_trait::async_trait;
use foldstream::ports::{
    ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome, RangeQuery,
    Row, RowKey, RowPage,
};
use std::sync::Arc;

pub(super) fn wrap(faults: Faults, inner: Arc<dyn ControlStore>) -> Arc<dyn ControlStore> {
    Arc::new(FaultyControlStore { faults, inner })
}

#[derive(Clone, Debug)]
struct FaultyControlStore {
    faults: Faults,
    inner: Arc<dyn ControlStore>,
}

impl FaultyControlStore {
    /// Somebody else writes the row, over what it is now. `wanted` is what they write where there is none.
    async fn steal(&self, key: &RowKey, wanted: Option<&Row>) -> Result<(), ControlStoreError> {
        let found = self.inner.get(key).await?;
        let expect = found
            .as_ref()
            .map_or(Expect::Absent, |row| Expect::Revision(row.revision));
        if let Some(row) = found.as_ref().or(wanted) {
            // If a third one is faster, the row is stolen all the same.
            let _ = self
                .inner
                .put(&self.faults.plan.stolen(row), expect)
                .await?;
        }
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ControlStore for FaultyControlStore {
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        self.faults
            .ask(Call::Get(key), || self.inner.get(key))
            .await
    }

    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
        let act = || self.inner.get_many(keys);
        self.faults.ask(Call::GetMany(keys), act).await
    }

    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        let call = Call::Put { row, expect };
        let fault = self.faults.arrive(&call).await;
        if matches!(fault, Some(Fault::Steal)) && expect != Expect::Any {
            self.steal(&row.key, Some(row)).await?;
        }
        let late = || -> Late {
            let (this, row) = (self.clone(), row.clone());
            Box::pin(async move {
                let sent = this.inner.put(&row, expect);
                let call = Call::Put { row: &row, expect };
                // Nobody waits for the answer any more; likewise below.
                let _ = this.faults.reach(&call, sent).await;
            })
        };
        let act = || self.inner.put(row, expect);
        self.faults.finish(call, fault, act, late).await
    }

    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        let call = Call::Delete { key, expect };
        let fault = self.faults.arrive(&call).await;
        if matches!(fault, Some(Fault::Steal)) && expect != DeleteExpect::Any {
            self.steal(key, None).await?;
        }
        let late = || -> Late {
            let (this, key) = (self.clone(), key.clone());
            Box::pin(async move {
                let sent = this.inner.delete(&key, expect);
                let call = Call::Delete { key: &key, expect };
                let _ = this.faults.reach(&call, sent).await;
            })
        };
        let act = || self.inner.delete(key, expect);
        self.faults.finish(call, fault, act, late).await
    }

    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        let again = start::again_behind(query.after.as_deref());
        let mut query = query.clone();
        query.after = start::resolved_sort(query.after);
        let call = Call::Range(&query);
        let fault = self.faults.arrive(&call).await;
        if matches!(fault, Some(Fault::EmptyPage)) {
            self.inner.range(&query).await?;
            return Ok(RowPage::new(Vec::new(), Some(again)));
        }
        let act = || self.inner.range(&query);
        self.faults.finish_asking(call, fault, act).await
    }
}
