//! The writes of a flush: one conditional put per row, and the resolution of its outcome.
use super::{
    Model, ReadModelError, ReadModelRow,
    buffer::{Next, Put},
    decode::{self, Stored},
    encode::{self, At, Positions},
    error::classified,
    read,
};
use crate::{client::Connection, error::Failure};
use aws_sdk_dynamodb::{
    error::SdkError,
    operation::put_item::{PutItemError, builders::PutItemFluentBuilder},
    types::ReturnValuesOnConditionCheckFailure,
};
use foldstream::{
    Backoff, RetryPolicy, StreamId,
    resilience::{Attempts, FailureClass},
    runner::{HandlerError, HandlerResult},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::time::Duration;

/// The number of rows that are written at the same time.
const CONCURRENT: usize = 16;
/// The most writes of one row in a flush. Only other processes that write the same row make a
/// second one necessary, and each time one of them has succeeded.
const MAX_WRITES: u32 = 100;
/// The most reads of one row in a flush. Only events that fail meanwhile make a second one
/// necessary.
const MAX_READS: u32 = 100;
/// The pauses between these writes, and the time after which a flush gives up.
const CONTENTION: RetryPolicy = RetryPolicy::new(
    Backoff::new(Duration::from_millis(5), Duration::from_millis(250)),
    Duration::from_secs(10),
);

/// Stores the rows that the buffer holds, and then the positions that have items of their own.
///
/// In this order a crash leaves rows that are ahead of such a position, and never the reverse. The
/// events in between are delivered again, and the rows, which have positions too, pass them over.
pub(super) async fn flush<T: ReadModelRow>(
    connection: &Connection,
    model: &Model<T>,
) -> HandlerResult {
    let batch = model.buffer().batch();
    stream::iter(batch.keys)
        .map(|key| async move { row(connection, model, &key).await })
        .buffer_unordered(CONCURRENT)
        .try_collect::<()>()
        .await?;
    positions(connection, model, batch.positions).await
}

/// Stores one row. Returns when all its events are stored, by this process or by another one.
async fn row<T: ReadModelRow>(
    connection: &Connection,
    model: &Model<T>,
    key: &str,
) -> HandlerResult {
    let location = &model.location;
    let mut contention = Attempts::new(CONTENTION);
    let (mut writes, mut reads) = (0, 0);
    while writes < MAX_WRITES {
        // The guard must not live until the end of the match.
        let next = model.buffer().next(key);
        let put = match next {
            Next::Nothing => return Ok(()),
            Next::Read(base) => {
                reads += 1;
                if reads > MAX_READS {
                    break;
                }
                let stored = read::row(connection, location, key, true).await;
                let stored = stored.map_err(classified)?;
                model.buffer().read(location, key, base, stored)?;
                continue;
            }
            Next::Put(put) => put,
        };
        writes += 1;
        match put_row(connection, model, key, &put).await? {
            Outcome::Written => {
                model.buffer().written(key, put);
                return Ok(());
            }
            Outcome::Conflict(stored) => {
                model.buffer().conflict(location, key, &put, stored)?;
            }
        }
        let is_done = matches!(model.buffer().next(key), Next::Nothing);
        if !is_done && !contention.wait(FailureClass::Transient).await {
            break;
        }
    }
    Err(classified(ReadModelError::Contended {
        model: location.model.clone(),
        key: key.into(),
        attempts: writes,
    }))
}

/// The outcome of a conditional put.
enum Outcome<T> {
    Written,
    /// The stored row has other positions than expected.
    Conflict(Stored<T>),
}

async fn put_row<T: ReadModelRow>(
    connection: &Connection,
    model: &Model<T>,
    key: &str,
    put: &Put,
) -> Result<Outcome<T>, HandlerError> {
    let location = &model.location;
    let (condition, base) = encode::condition(location, &put.base);
    let mut request = connection
        .once()
        .put_item()
        .table_name(&location.table)
        .set_item(Some(put.item.clone()))
        .condition_expression(condition)
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
    if let Some(base) = base {
        request = request.expression_attribute_values(":base", base);
    }
    match send(connection, &location.table, request).await {
        Ok(None) => Ok(Outcome::Written),
        Ok(Some(failed)) => {
            let stored = match failed.item {
                Some(item) => decode::row(location, key, Some(item)),
                // Nothing is stored, or this emulator does not return the old item.
                None => read::row(connection, location, key, true).await,
            };
            stored.map(Outcome::Conflict).map_err(classified)
        }
        Err(failure) => Err(classified(read::failed(location, failure))),
    }
}

/// Sends a conditional put. Returns the answer if the condition failed.
///
/// A put whose answer was lost is repeated. If the first one took effect, the condition of the
/// repetition fails on it, and the caller finds its own positions stored.
async fn send(
    connection: &Connection,
    table: &str,
    request: PutItemFluentBuilder,
) -> Result<Option<aws_sdk_dynamodb::types::error::ConditionalCheckFailedException>, Failure> {
    let place = connection.at("PutItem", table);
    let error = match connection.send(place, || request.clone().send()).await {
        Ok(_) => return Ok(None),
        Err(error) => error,
    };
    if let SdkError::ServiceError(service) = &error
        && let PutItemError::ConditionalCheckFailedException(failed) = service.err()
    {
        return Ok(Some(failed.clone()));
    }
    Err(Failure::of(error, place))
}

/// Stores the positions that have items of their own, unless later ones are stored.
async fn positions<T: ReadModelRow>(
    connection: &Connection,
    model: &Model<T>,
    positions: Positions,
) -> HandlerResult {
    stream::iter(positions.clone())
        .map(|(stream, at)| position(connection, model, stream, at))
        .buffer_unordered(CONCURRENT)
        .try_collect::<()>()
        .await?;
    model.buffer().stored_positions(&positions);
    Ok(())
}

async fn position<T: ReadModelRow>(
    connection: &Connection,
    model: &Model<T>,
    stream: StreamId,
    at: At,
) -> HandlerResult {
    let location = &model.location;
    let item = encode::position(location, &stream, at);
    let version = item.get("v").cloned();
    let request = connection
        .once()
        .put_item()
        .table_name(&location.table)
        .set_item(Some(item))
        .condition_expression("attribute_not_exists(pk) OR v < :v")
        .set_expression_attribute_values(version.map(|v| [(":v".to_owned(), v)].into()));
    match send(connection, &location.table, request).await {
        // If the condition fails, this position or a later one is stored.
        Ok(_) => Ok(()),
        Err(failure) => Err(classified(read::failed(location, failure))),
    }
}
