//! One attempt: a put where one item will do, a transaction otherwise.
//!
//! Why no request token is made from the commit ids: DynamoDB answers a token that it has seen within ten minutes
//! without looking at the conditions. A repeat, perhaps by another process, would be told "stored" and not what is
//! stored, and a commit id with other content (a command that was decided twice) would be an error until the window
//! ends. The commit ids in the slots answer both, and forever. So each request has a fresh token, which the SDK makes.
use super::Work;
use crate::{
    attributes::{Attributes, MAX_TRANSACTION_BYTES, MAX_TRANSACTION_ITEMS, item_bytes},
    error::Failure,
    event_store::{encode, unsupported},
};
use aws_sdk_dynamodb::{
    error::{BuildError, SdkError},
    operation::{put_item::PutItemError, transact_write_items::TransactWriteItemsError},
    types::{
        CancellationReason, ConditionCheck, Put, ReturnValuesOnConditionCheckFailure,
        TransactWriteItem,
    },
};
use foldstream::ports::EventStoreError;

const ABSENT: &str = "attribute_not_exists(pk)";
const CONDITION_FAILED: &str = "ConditionalCheckFailed";

/// What one attempt was answered.
#[derive(Debug)]
pub(super) enum Answer {
    Applied,
    /// Nothing was applied, since these conditions failed; at least one.
    Taken(Vec<Taken>),
    Failed(Failure),
}

/// A condition that failed, and what stands in its place, if DynamoDB said it.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) place: Place,
    pub(super) item: Option<Attributes>,
}

/// Whose condition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// An item of this commit.
    Slot(usize),
    /// The slot after this stream's head, which is only checked.
    Check(usize),
}

/// Sends the append once.
///
/// # Errors
/// Checks an append before any call: `Invalid`, `TooLarge`, `Refused(Unsupported)`.
pub(super) async fn send(work: &Work<'_>) -> Result<Answer, EventStoreError> {
    let mut items = items(work)?;
    Ok(match items.pop() {
        Some((_, item)) if items.is_empty() && work.unchanged.is_empty() => put(work, item).await,
        last => {
            items.extend(last);
            transact(work, items).await
        }
    })
}

/// The items of each commit.
fn items(work: &Work<'_>) -> Result<Vec<(Place, Attributes)>, EventStoreError> {
    let (config, may_split) = (work.connection.config(), work.connection.has_transactions());
    let mut items = Vec::with_capacity(work.commits.len());
    let (mut total, mut largest) = (0, (0, 0));
    for (index, append) in work.commits.iter().enumerate() {
        let parts = encode::items(append, config, may_split)?;
        let bytes = parts.iter().map(item_bytes).sum();
        total += bytes;
        largest = largest.max((bytes, index));
        items.extend(parts.into_iter().map(|part| (Place::Slot(index), part)));
    }
    if total > MAX_TRANSACTION_BYTES {
        return Err(EventStoreError::TooLarge {
            stream: work.commits[largest.1].head.stream().clone(),
            bytes: total,
            limit: MAX_TRANSACTION_BYTES,
        });
    }
    // The port's count of parts is higher, except for names of many quotes, which JSON escapes.
    let needed = items.len() + work.unchanged.len();
    if needed > MAX_TRANSACTION_ITEMS {
        return Err(unsupported(&format!(
            "an append needs {needed} items, and one transaction of DynamoDB has at most {MAX_TRANSACTION_ITEMS}: append to \
             fewer streams at once, or smaller commits"
        )));
    }
    Ok(items)
}

async fn put(work: &Work<'_>, item: Attributes) -> Answer {
    let connection = work.connection;
    let table = connection.events();
    let request = connection
        .once()
        .put_item()
        .table_name(table)
        .set_item(Some(item))
        .condition_expression(ABSENT)
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
    let Err(error) = request.send().await else {
        return Answer::Applied;
    };
    if let SdkError::ServiceError(service) = &error
        && let PutItemError::ConditionalCheckFailedException(failed) = service.err()
    {
        return Answer::Taken(vec![Taken {
            place: Place::Slot(0),
            item: failed.item.clone(),
        }]);
    }
    Answer::Failed(Failure::of(error, connection.at("PutItem", table)))
}

async fn transact(work: &Work<'_>, items: Vec<(Place, Attributes)>) -> Answer {
    let connection = work.connection;
    let place = connection.at("TransactWriteItems", connection.events());
    let (places, writes) = match writes(work, items) {
        Ok(writes) => writes,
        Err(e) => return Answer::Failed(Failure::incompatible(place, e.to_string())),
    };
    let request = connection.once().transact_write_items();
    let Err(error) = request.set_transact_items(Some(writes)).send().await else {
        return Answer::Applied;
    };
    let SdkError::ServiceError(service) = &error else {
        return Answer::Failed(Failure::of(error, place));
    };
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = service.err() else {
        return Answer::Failed(Failure::of(error, place));
    };
    let reasons = cancelled.cancellation_reasons();
    let taken = taken(&places, reasons);
    if taken.is_empty() {
        let source = cancelled.clone().into();
        return Answer::Failed(Failure::cancelled(reasons, place, source));
    }
    Answer::Taken(taken)
}

/// The conditions that failed. Reasons come in the order of the request.
fn taken(places: &[Place], reasons: &[CancellationReason]) -> Vec<Taken> {
    let failed = places.iter().zip(reasons);
    failed
        .filter(|(_, reason)| reason.code() == Some(CONDITION_FAILED))
        .map(|(place, reason)| Taken {
            place: *place,
            item: reason.item().cloned(),
        })
        .collect()
}

/// The request, and what each item of it stands for. The SDK's builders fail only where a required field is missing,
/// and every field is set here.
fn writes(
    work: &Work<'_>,
    items: Vec<(Place, Attributes)>,
) -> Result<(Vec<Place>, Vec<TransactWriteItem>), BuildError> {
    let table = work.connection.events();
    let mut places = Vec::with_capacity(items.len() + work.unchanged.len());
    let mut writes = Vec::with_capacity(places.capacity());
    for (place, item) in items {
        let put = Put::builder()
            .table_name(table)
            .set_item(Some(item))
            .condition_expression(ABSENT)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        places.push(place);
        writes.push(TransactWriteItem::builder().put(put.build()?).build());
    }
    for (index, head) in work.unchanged.iter().enumerate() {
        let check = ConditionCheck::builder()
            .table_name(table)
            .set_key(Some(encode::key(head.stream(), head.version().next())))
            .condition_expression(ABSENT)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        places.push(Place::Check(index));
        let check = check.build()?;
        writes.push(TransactWriteItem::builder().condition_check(check).build());
    }
    Ok((places, writes))
}
