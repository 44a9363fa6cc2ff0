//! The `ControlStore` port on the control table.
mod range;
mod row;

use self::range::Plan;
use crate::{
    DynamoDb, DynamoDbConfig, DynamoDbError,
    attributes::{Attributes, text},
    client::Connection,
    error::{Failure, failure_class},
    limits::MAX_BATCH_KEYS,
};
use async_trait::async_trait;
use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        batch_get_item::BatchGetItemError, delete_item::DeleteItemError, put_item::PutItemError,
    },
    types::{KeysAndAttributes, ReturnValuesOnConditionCheckFailure},
};
use foldstream::{
    Backoff, Clock, RetryPolicy, SystemClock,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Direction, Expect,
        PutOutcome, RangeQuery, Row, RowKey, RowPage,
    },
    resilience::{Attempts, FailureClass},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::{
    collections::{BTreeSet, HashMap},
    error::Error,
    sync::Arc,
    time::Duration,
};

/// The most batches that are requested at the same time.
const BATCHES: usize = 4;
/// The retries of a batch of which DynamoDB answered no key, before the batch counts as throttled.
const UNPROCESSED: RetryPolicy = RetryPolicy::new(
    Backoff::new(Duration::from_millis(25), Duration::from_secs(1)),
    Duration::from_secs(5),
);

/// The control store on DynamoDB: rows under compare-and-set, read strongly consistently.
///
/// A row past its expiry reads as absent by this store's clock, no matter when DynamoDB deletes it.
/// Expiry is stored in whole seconds, rounded up. Cloning is a reference count.
#[derive(Clone, Debug)]
pub struct DynamoDbControlStore {
    connection: Connection,
    clock: Arc<dyn Clock>,
}

impl DynamoDbControlStore {
    /// Connects and checks that this process may use the tables.
    ///
    /// [`DynamoDb`] provides all stores over one connection, and accepts the caller's own client.
    ///
    /// # Errors
    /// The same as [`DynamoDb::connect`].
    pub async fn connect(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        Ok(DynamoDb::connect(config).await?.control_store())
    }

    pub(crate) fn over(connection: Connection) -> Self {
        let clock = Arc::new(SystemClock);
        Self { connection, clock }
    }

    /// Sets the clock by which rows expire. Default: the system clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    fn failed<E>(
        &self,
        operation: &'static str,
        error: SdkError<E, HttpResponse>,
    ) -> ControlStoreError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let target = self.connection.at(operation, self.connection.control());
        Failure::of(error, target).into_control_store()
    }

    /// Decodes an item, and returns its row unless it is past its expiry.
    fn live(&self, item: Attributes) -> Result<Option<Row>, ControlStoreError> {
        Ok(Some(row::decode(item)?).filter(|row| self.lives(row)))
    }
    fn lives(&self, row: &Row) -> bool {
        let now = self.clock.now();
        row.expires_at.is_none_or(|at| at > now)
    }

    /// Reads one batch of keys, and repeats the request until every key is answered.
    async fn batch(&self, mut open: Vec<Attributes>) -> Result<Vec<Row>, ControlStoreError> {
        let table = self.connection.control();
        let target = self.connection.at("BatchGetItem", table);
        let mut rows = Vec::new();
        let mut requests = self.connection.requests();
        let mut unprocessed = Attempts::new(UNPROCESSED);
        while !open.is_empty() {
            let asked = open.len();
            let again = open.clone();
            let keys = KeysAndAttributes::builder()
                .set_keys(Some(open))
                .consistent_read(true)
                .build()
                .map_err(|e| {
                    self.failed("BatchGetItem", SdkError::<BatchGetItemError, _>::from(e))
                })?;
            let request = self.connection.once().batch_get_item();
            let request = request.request_items(table, keys);
            let answer = match request.send().await {
                Ok(answer) => answer,
                Err(error) if requests.wait(failure_class(&error, target)).await => {
                    open = again;
                    continue;
                }
                Err(error) => return Err(self.failed("BatchGetItem", error)),
            };
            for items in answer.responses.unwrap_or_default().into_values() {
                for item in items {
                    rows.extend(self.live(item)?);
                }
            }
            let left = answer.unprocessed_keys.unwrap_or_default().into_values();
            open = left.flat_map(|k| k.keys).collect();
            if open.len() < asked {
                unprocessed.reset();
            }
            let throttled = FailureClass::Throttled {
                retry_after: Duration::ZERO,
            };
            if !open.is_empty() && !unprocessed.wait(throttled).await {
                return Err(Failure::unprocessed(target).into_control_store());
            }
        }
        Ok(rows)
    }
}

#[async_trait]
impl ControlStore for DynamoDbControlStore {
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        key.validate()?;
        let request = self
            .connection
            .once()
            .get_item()
            .table_name(self.connection.control())
            .set_key(Some(row::key(key)))
            .consistent_read(true);
        let target = self.connection.at("GetItem", self.connection.control());
        let answer = self
            .connection
            .send(target, || request.clone().send())
            .await;
        let answer = answer.map_err(|e| self.failed("GetItem", e))?;
        match answer.item {
            Some(item) => self.live(item),
            None => Ok(None),
        }
    }

    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
        keys.iter().try_for_each(RowKey::validate)?;
        // DynamoDB refuses a batch in which a key appears twice.
        let distinct: Vec<&RowKey> = keys.iter().collect::<BTreeSet<_>>().into_iter().collect();
        let batches = distinct
            .chunks(MAX_BATCH_KEYS)
            .map(|batch| self.batch(batch.iter().map(|&key| row::key(key)).collect()));
        let found: Vec<Vec<Row>> = stream::iter(batches.collect::<Vec<_>>())
            .buffer_unordered(BATCHES)
            .try_collect()
            .await?;
        let rows: HashMap<RowKey, Row> = found
            .into_iter()
            .flatten()
            .map(|row| (row.key.clone(), row))
            .collect();
        Ok(keys.iter().map(|key| rows.get(key).cloned()).collect())
    }

    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        row.validate()?;
        let now = row::now(self.clock.now());
        let request = self
            .connection
            .once()
            .put_item()
            .table_name(self.connection.control())
            .set_item(Some(row::encode(row)))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let request = match expect {
            Expect::Any => request,
            Expect::Absent => request
                .condition_expression("attribute_not_exists(pk) OR x <= :now")
                .expression_attribute_values(":now", now),
            Expect::Revision(revision) => request
                .condition_expression("r = :r AND (attribute_not_exists(x) OR x > :now)")
                .expression_attribute_values(":now", now)
                .expression_attribute_values(":r", text(row::revision(revision))),
        };
        // A lost answer is followed by one repetition, since the revision tells if the first put
        // was applied. Callers may resolve it by the same put too, and both together must not
        // exceed `max_attempts`.
        let target = self.connection.at("PutItem", self.connection.control());
        let sent = self
            .connection
            .send_again(target, 1, || request.clone().send());
        let error = match sent.await {
            Ok(_) => return Ok(PutOutcome::Written),
            Err(error) => error,
        };
        let old = match error {
            SdkError::ServiceError(e) if e.err().is_conditional_check_failed_exception() => {
                match e.into_err() {
                    PutItemError::ConditionalCheckFailedException(failed) => failed.item,
                    _ => None,
                }
            }
            error => return Err(self.failed("PutItem", error)),
        };
        let old = old.map(row::decode).transpose()?;
        // The first put was applied and its answer lost. Its repetition then meets the row that it
        // wrote itself.
        if old.as_ref().is_some_and(|old| old.revision == row.revision) {
            return Ok(PutOutcome::Written);
        }
        Ok(PutOutcome::Conflict(old.filter(|old| self.lives(old))))
    }

    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        key.validate()?;
        let request = self
            .connection
            .once()
            .delete_item()
            .table_name(self.connection.control())
            .set_key(Some(row::key(key)))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let request = match expect {
            DeleteExpect::Any => request,
            DeleteExpect::Revision(revision) => request
                .condition_expression("r = :r AND (attribute_not_exists(x) OR x > :now)")
                .expression_attribute_values(":now", row::now(self.clock.now()))
                .expression_attribute_values(":r", text(row::revision(revision))),
        };
        let target = self.connection.at("DeleteItem", self.connection.control());
        let sent = self.connection.send(target, || request.clone().send());
        let error = match sent.await {
            Ok(_) => return Ok(DeleteOutcome::Deleted),
            Err(error) => error,
        };
        let old = match error {
            SdkError::ServiceError(e) if e.err().is_conditional_check_failed_exception() => {
                match e.into_err() {
                    DeleteItemError::ConditionalCheckFailedException(failed) => failed.item,
                    _ => None,
                }
            }
            error => return Err(self.failed("DeleteItem", error)),
        };
        let old = old.map(row::decode).transpose()?;
        Ok(DeleteOutcome::Conflict(old.filter(|old| self.lives(old))))
    }

    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        RowKey::new(&*query.partition, "-").validate()?;
        let Plan::Query {
            condition,
            values,
            start,
        } = range::plan(query)?
        else {
            return Ok(RowPage::new(Vec::new(), None));
        };
        let start = start.map(|sort| row::key(&RowKey::new(&*query.partition, sort)));
        let mut request = self
            .connection
            .once()
            .query()
            .table_name(self.connection.control())
            .key_condition_expression(condition)
            .consistent_read(true)
            .scan_index_forward(query.direction == Direction::Ascending)
            .limit(i32::try_from(query.limit.get()).unwrap_or(i32::MAX))
            .set_exclusive_start_key(start);
        for (name, value) in values {
            request = request.expression_attribute_values(name, text(value));
        }
        let target = self.connection.at("Query", self.connection.control());
        let answer = self
            .connection
            .send(target, || request.clone().send())
            .await;
        let answer = answer.map_err(|e| self.failed("Query", e))?;
        let mut rows = Vec::new();
        for item in answer.items.unwrap_or_default() {
            rows.extend(self.live(item)?);
        }
        let next = match answer.last_evaluated_key {
            None => None,
            Some(last) => Some(row::sort(last)?),
        };
        Ok(RowPage::new(rows, next))
    }
}
