//! Control stores that each break one rule of the contract, and the proof that every case is needed.
mod conditions;
mod range;
mod rows;

use crate::matrix::{Suspect, assert_every_case_is_needed};
use async_trait::async_trait;
use foldstream::ports::{
    ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome, RangeQuery,
    Row, RowKey, RowPage,
};
use foldstream_testkit::{InMemoryControlStore, contract};
use std::{fmt::Debug, sync::Arc};

type Got = Result<Option<Row>, ControlStoreError>;
type GotMany = Result<Vec<Option<Row>>, ControlStoreError>;
type Put = Result<PutOutcome, ControlStoreError>;
type Deleted = Result<DeleteOutcome, ControlStoreError>;
type Page = Result<RowPage, ControlStoreError>;

/// What a broken store does otherwise than the sound one that it wraps.
#[async_trait]
trait Sabotage: Debug + Default + Send + Sync + 'static {
    /// Changes a row before it is written.
    fn written(&self, row: Row) -> Row {
        row
    }
    /// Changes what any read found, if there is anything.
    fn found(&self, row: Row) -> Row {
        row
    }
    async fn get(&self, store: &InMemoryControlStore, key: &RowKey) -> Got {
        store.get(key).await
    }
    async fn get_many(&self, store: &InMemoryControlStore, keys: &[RowKey]) -> GotMany {
        store.get_many(keys).await
    }
    async fn put(&self, store: &InMemoryControlStore, row: &Row, expect: Expect) -> Put {
        store.put(row, expect).await
    }
    async fn delete(
        &self,
        store: &InMemoryControlStore,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Deleted {
        store.delete(key, expect).await
    }
    async fn range(&self, store: &InMemoryControlStore, query: &RangeQuery) -> Page {
        store.range(query).await
    }
}

/// A sound store with one thing changed.
#[derive(Debug)]
struct Broken<S> {
    store: Arc<InMemoryControlStore>,
    sabotage: S,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: Sabotage> ControlStore for Broken<S> {
    async fn get(&self, key: &RowKey) -> Got {
        let found = self.sabotage.get(&self.store, key).await?;
        Ok(found.map(|row| self.sabotage.found(row)))
    }
    async fn get_many(&self, keys: &[RowKey]) -> GotMany {
        let found = self.sabotage.get_many(&self.store, keys).await?;
        let changed = |row: Option<Row>| row.map(|row| self.sabotage.found(row));
        Ok(found.into_iter().map(changed).collect())
    }
    async fn put(&self, row: &Row, expect: Expect) -> Put {
        let row = self.sabotage.written(row.clone());
        self.sabotage.put(&self.store, &row, expect).await
    }
    async fn delete(&self, key: &RowKey, expect: DeleteExpect) -> Deleted {
        self.sabotage.delete(&self.store, key, expect).await
    }
    async fn range(&self, query: &RangeQuery) -> Page {
        let mut page = self.sabotage.range(&self.store, query).await?;
        let rows = page.rows.into_iter();
        page.rows = rows.map(|row| self.sabotage.found(row)).collect();
        Ok(page)
    }
}

/// All rows of a query, not page by page.
async fn all(store: &InMemoryControlStore, query: &RangeQuery) -> Vec<Row> {
    let (mut rows, mut query) = (Vec::new(), query.clone());
    loop {
        let page = store.range(&query).await.unwrap();
        rows.extend(page.rows);
        if page.next.is_none() {
            return rows;
        }
        query = query.with_after(page.next);
    }
}

/// Changes nothing: the wrapper itself must not break a rule.
#[derive(Debug, Default)]
struct Nothing;
#[async_trait]
impl Sabotage for Nothing {}

type Suspects = Vec<Suspect<Arc<dyn ControlStore>>>;

fn broken<S: Sabotage>(rejected_by: &'static [&'static str]) -> Suspect<Arc<dyn ControlStore>> {
    Suspect::new::<S>(
        &[],
        || {
            Arc::new(Broken {
                store: InMemoryControlStore::new(),
                sabotage: S::default(),
            })
        },
        rejected_by,
    )
}

#[test]
fn every_case_rejects_a_broken_control_store() {
    let suspects: Suspects = [
        vec![broken::<Nothing>(&[])],
        rows::suspects(),
        conditions::suspects(),
        range::suspects(),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert_every_case_is_needed(&contract::control_store::cases(), &suspects);
}
