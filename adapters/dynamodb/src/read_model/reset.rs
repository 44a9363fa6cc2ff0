//! The reset of a model: deletes its items by pages.
use super::{ReadModelError, ReadModelRow, location::Location, read};
use crate::{
    attributes::{Attributes, text},
    client::Connection,
    error::{Failure, failure_class},
};
use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{BuildError, SdkError},
    operation::batch_write_item::BatchWriteItemError,
    types::{DeleteRequest, WriteRequest},
};
use foldstream::{
    Backoff, RetryPolicy,
    resilience::{Attempts, FailureClass},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::time::Duration;

/// The most items of one `BatchWriteItem` (a limit of DynamoDB).
const BATCH: usize = 25;
/// The keys of one page, which are in memory together.
const PAGE: i32 = 1_000;
/// The number of partitions that are emptied at the same time.
const CONCURRENT: usize = 8;
/// The retries of a batch of which DynamoDB deleted nothing, before it counts as throttled.
const UNPROCESSED: RetryPolicy = RetryPolicy::new(
    Backoff::new(Duration::from_millis(25), Duration::from_secs(1)),
    Duration::from_secs(5),
);

/// Deletes the items of a model.
///
/// Positions that have items of their own are deleted before the rows. If the reset is interrupted,
/// no position is ahead of its rows, and the next reset deletes what is left.
pub(super) async fn reset<T: ReadModelRow>(
    connection: &Connection,
    location: &Location<T>,
) -> Result<(), ReadModelError> {
    empty(connection, location, location.position_partitions()).await?;
    empty(connection, location, location.row_partitions()).await
}

async fn empty<T: ReadModelRow>(
    connection: &Connection,
    location: &Location<T>,
    partitions: impl Iterator<Item = String>,
) -> Result<(), ReadModelError> {
    stream::iter(partitions)
        .map(|partition| empty_partition(connection, location, partition))
        .buffer_unordered(CONCURRENT)
        .try_collect()
        .await
}

async fn empty_partition<T: ReadModelRow>(
    connection: &Connection,
    location: &Location<T>,
    partition: String,
) -> Result<(), ReadModelError> {
    let request = connection
        .once()
        .query()
        .table_name(&location.table)
        .key_condition_expression("pk = :pk")
        .expression_attribute_values(":pk", text(partition))
        .projection_expression("pk, sk")
        .consistent_read(true)
        .limit(PAGE);
    let mut next = Some(request);
    while let Some(request) = next {
        let (keys, following) = read::page(connection, location, request).await?;
        for batch in keys.chunks(BATCH) {
            delete(connection, location, batch).await?;
        }
        next = following;
    }
    Ok(())
}

/// Deletes one batch, and repeats the request until every item is deleted.
async fn delete<T: ReadModelRow>(
    connection: &Connection,
    location: &Location<T>,
    keys: &[Attributes],
) -> Result<(), ReadModelError> {
    let place = connection.at("BatchWriteItem", &location.table);
    let failed = |error: SdkError<BatchWriteItemError, HttpResponse>| {
        read::failed(location, Failure::of(error, place))
    };
    let deletes: Result<Vec<_>, BuildError> = keys.iter().map(delete_request).collect();
    let mut open = deletes.map_err(|e| failed(SdkError::construction_failure(e)))?;
    let mut requests = connection.requests();
    let mut unprocessed = Attempts::new(UNPROCESSED);
    while !open.is_empty() {
        let request = connection.once().batch_write_item();
        let request = request.request_items(&location.table, open.clone());
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if requests.wait(failure_class(&error, place)).await => continue,
            Err(error) => return Err(failed(error)),
        };
        let left = answer.unprocessed_items.unwrap_or_default();
        let left: Vec<_> = left.into_values().flatten().collect();
        if left.len() < open.len() {
            unprocessed.reset();
        }
        open = left;
        let throttled = FailureClass::Throttled {
            retry_after: Duration::ZERO,
        };
        if !open.is_empty() && !unprocessed.wait(throttled).await {
            return Err(read::failed(location, Failure::unprocessed(place)));
        }
    }
    Ok(())
}

fn delete_request(key: &Attributes) -> Result<WriteRequest, BuildError> {
    let delete = DeleteRequest::builder()
        .set_key(Some(key.clone()))
        .build()?;
    Ok(WriteRequest::builder().delete_request(delete).build())
}
