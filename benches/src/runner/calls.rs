//! The calls of a control store, recorded in memory under paused time, and their price.
//!
//! An hour passes in a moment, so polls and pauses are counted as they are. Then the same calls are
//! made again, in the same order, of DynamoDB in this process, behind the meter.
use crate::{
    BenchError,
    store::{Cost, Endpoint, config, over},
};
use foldstream::ports::{
    ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome, RangeQuery,
    Row, RowKey, RowPage,
};
use foldstream_dynamodb::{DynamoDb, PublishMode, TableOptions, create_tables};
use foldstream_testkit::intercept::{ControlStoreLayer, async_trait};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A call of a control store.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Get(RowKey),
    GetMany(Vec<RowKey>),
    Put(Row, Expect),
    Delete(RowKey, DeleteExpect),
    Range(RangeQuery),
}

/// Notes each call.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    calls: Mutex<Vec<Call>>,
    /// A sabotaged store is read and written once more with each call.
    is_sabotaged: bool,
}

impl Recorder {
    pub(crate) fn new(is_sabotaged: bool) -> Self {
        Self {
            calls: Mutex::default(),
            is_sabotaged,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, call: Call) {
        let mut calls = self.lock();
        calls.push(call);
        if self.is_sabotaged {
            let key = RowKey::new("sabotage", calls.len().to_string());
            let revision = foldstream::ports::Revision::from_u128(1);
            calls.push(Call::Get(key.clone()));
            calls.push(Call::Put(Row::new(key, "{}", revision), Expect::Any));
        }
    }

    /// Returns the number of calls so far.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.lock().clone()
    }
}

#[async_trait]
impl ControlStoreLayer for Recorder {
    async fn get(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
    ) -> Result<Option<Row>, ControlStoreError> {
        self.note(Call::Get(key.clone()));
        inner.get(key).await
    }
    async fn get_many(
        &self,
        inner: &Arc<dyn ControlStore>,
        keys: &[RowKey],
    ) -> Result<Vec<Option<Row>>, ControlStoreError> {
        self.note(Call::GetMany(keys.to_vec()));
        inner.get_many(keys).await
    }
    async fn put(
        &self,
        inner: &Arc<dyn ControlStore>,
        row: &Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        self.note(Call::Put(row.clone(), expect));
        inner.put(row, expect).await
    }
    async fn delete(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        self.note(Call::Delete(key.clone(), expect));
        inner.delete(key, expect).await
    }
    async fn range(
        &self,
        inner: &Arc<dyn ControlStore>,
        query: &RangeQuery,
    ) -> Result<RowPage, ControlStoreError> {
        self.note(Call::Range(query.clone()));
        inner.range(query).await
    }
}

/// Runs work on DynamoDB in this process, behind the meter. The tables exist, and the stores are
/// connected.
pub(crate) fn metered<T>(
    work: impl AsyncFnOnce(&Endpoint, &DynamoDb) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    metered_in(PublishMode::Stream, work)
}

/// Runs work as [`metered`] does, on tables in a publish mode.
pub(crate) fn metered_in<T>(
    mode: PublishMode,
    work: impl AsyncFnOnce(&Endpoint, &DynamoDb) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let endpoint = Endpoint::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(crate::io("no runtime"))?;
    runtime.block_on(async {
        let settings = config(&endpoint.direct, mode);
        create_tables(&settings, &TableOptions::default())
            .await
            .map_err(BenchError::other)?;
        let stores = over(&endpoint.metered, mode).await?;
        work(&endpoint, &stores).await
    })
}

/// Makes the calls again on DynamoDB, and returns the cost of those from `first` to before `end`.
pub(crate) fn price(calls: &[Call], first: usize, end: usize) -> Result<Cost, BenchError> {
    metered(async |endpoint, stores| {
        let control = stores.control_store();
        for (at, call) in calls.iter().take(end).enumerate() {
            if at == first {
                endpoint.take_cost();
            }
            make(&control, call).await.map_err(BenchError::other)?;
        }
        if first >= end {
            endpoint.take_cost();
        }
        Ok(endpoint.take_cost())
    })
}

async fn make(control: &impl ControlStore, call: &Call) -> Result<(), ControlStoreError> {
    match call {
        Call::Get(key) => drop(control.get(key).await?),
        Call::GetMany(keys) => drop(control.get_many(keys).await?),
        Call::Put(row, expect) => drop(control.put(row, *expect).await?),
        Call::Delete(key, expect) => drop(control.delete(key, *expect).await?),
        Call::Range(query) => drop(control.range(query).await?),
    }
    Ok(())
}
