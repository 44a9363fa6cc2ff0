//! One attempt of an append: a put if one item is enough, a transaction otherwise.
//!
//! # Why is the request token not derived from the commit ids?
//! DynamoDB answers a token that it has seen within ten minutes without looking at the conditions.
//! A repetition, perhaps by another process, would learn "stored" but not what is stored. A commit
//! id with other content (a command that was decided twice) would be an error until the ten minutes
//! end. The commit ids in the slots answer both questions, and forever. So each request has a fresh
//! token, which the SDK generates.
use super::AtomicAppend;
use crate::{
    attributes::{Attributes, item_bytes},
    error::Failure,
    event_store::{encode, unsupported},
    limits::{MAX_TRANSACTION_BYTES, MAX_TRANSACTION_ITEMS},
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

/// The answer to one attempt of an append.
#[derive(Debug)]
pub(super) enum Answer {
    Applied,
    /// These conditions failed, at least one, and nothing was applied.
    ConditionsFailed(Vec<FailedCondition>),
    Failed(Failure),
}

/// A failed condition, and the item in its slot if DynamoDB returned it.
#[derive(Debug)]
pub(super) struct FailedCondition {
    pub(super) condition: Condition,
    pub(super) item: Option<Attributes>,
}

/// The item of the request that has the condition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Condition {
    /// An item of this commit, by its index.
    Slot(usize),
    /// The slot after the head of this unchanged stream, by its index. It is checked, not written.
    Unchanged(usize),
}

/// Sends the append once.
///
/// # Errors
/// Before any request:
/// - `Invalid` if a commit cannot be encoded.
/// - `TooLarge` if an item or the transaction is too large.
/// - `Refused(Unsupported)` if the transaction has too many items.
pub(super) async fn send(append: &AtomicAppend<'_>) -> Result<Answer, EventStoreError> {
    let mut items = items(append)?;
    Ok(match items.pop() {
        Some((_, item)) if items.is_empty() && append.unchanged.is_empty() => {
            put(append, item).await
        }
        last => {
            items.extend(last);
            transact(append, items).await
        }
    })
}

/// Encodes the items of each commit.
fn items(append: &AtomicAppend<'_>) -> Result<Vec<(Condition, Attributes)>, EventStoreError> {
    let (config, may_split) = (
        append.connection.config(),
        append.connection.has_transactions(),
    );
    let mut items = Vec::with_capacity(append.commits.len());
    let (mut total, mut largest) = (0, (0, 0));
    for (index, commit) in append.commits.iter().enumerate() {
        let parts = encode::items(commit, config, may_split)?;
        let bytes = parts.iter().map(item_bytes).sum();
        total += bytes;
        largest = largest.max((bytes, index));
        items.extend(parts.into_iter().map(|part| (Condition::Slot(index), part)));
    }
    if total > MAX_TRANSACTION_BYTES {
        return Err(EventStoreError::TooLarge {
            stream: append.commits[largest.1].head.stream().clone(),
            bytes: total,
            limit: MAX_TRANSACTION_BYTES,
        });
    }
    // The port's count of parts is higher, except for names of many quotes, which JSON escapes.
    let needed = items.len() + append.unchanged.len();
    if needed > MAX_TRANSACTION_ITEMS {
        return Err(unsupported(&format!(
            "an append needs {needed} items, and one transaction of DynamoDB has at most {MAX_TRANSACTION_ITEMS}: append to \
             fewer streams at once, or smaller commits"
        )));
    }
    Ok(items)
}

async fn put(append: &AtomicAppend<'_>, item: Attributes) -> Answer {
    let connection = append.connection;
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
        return Answer::ConditionsFailed(vec![FailedCondition {
            condition: Condition::Slot(0),
            item: failed.item.clone(),
        }]);
    }
    Answer::Failed(Failure::of(error, connection.at("PutItem", table)))
}

async fn transact(append: &AtomicAppend<'_>, items: Vec<(Condition, Attributes)>) -> Answer {
    let connection = append.connection;
    let target = connection.at("TransactWriteItems", connection.events());
    let (conditions, writes) = match writes(append, items) {
        Ok(writes) => writes,
        Err(e) => return Answer::Failed(Failure::incompatible(target, e.to_string())),
    };
    let request = connection.once().transact_write_items();
    let Err(error) = request.set_transact_items(Some(writes)).send().await else {
        return Answer::Applied;
    };
    let SdkError::ServiceError(service) = &error else {
        return Answer::Failed(Failure::of(error, target));
    };
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = service.err() else {
        return Answer::Failed(Failure::of(error, target));
    };
    let reasons = cancelled.cancellation_reasons();
    let failed = failed_conditions(&conditions, reasons);
    if failed.is_empty() {
        let source = cancelled.clone().into();
        return Answer::Failed(Failure::cancelled(reasons, target, source));
    }
    Answer::ConditionsFailed(failed)
}

/// Returns the conditions that failed. Reasons have the order of the items in the request.
fn failed_conditions(
    conditions: &[Condition],
    reasons: &[CancellationReason],
) -> Vec<FailedCondition> {
    let answers = conditions.iter().zip(reasons);
    answers
        .filter(|(_, reason)| reason.code() == Some(CONDITION_FAILED))
        .map(|(condition, reason)| FailedCondition {
            condition: *condition,
            item: reason.item().cloned(),
        })
        .collect()
}

/// Builds the items of the request, and the condition of each.
///
/// The SDK's builders fail only if a required field is missing, and every field is set here.
fn writes(
    append: &AtomicAppend<'_>,
    items: Vec<(Condition, Attributes)>,
) -> Result<(Vec<Condition>, Vec<TransactWriteItem>), BuildError> {
    let table = append.connection.events();
    let mut conditions = Vec::with_capacity(items.len() + append.unchanged.len());
    let mut writes = Vec::with_capacity(conditions.capacity());
    for (condition, item) in items {
        let put = Put::builder()
            .table_name(table)
            .set_item(Some(item))
            .condition_expression(ABSENT)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        conditions.push(condition);
        writes.push(TransactWriteItem::builder().put(put.build()?).build());
    }
    for (index, head) in append.unchanged.iter().enumerate() {
        let check = ConditionCheck::builder()
            .table_name(table)
            .set_key(Some(encode::key(head.stream(), head.version().next())))
            .condition_expression(ABSENT)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        conditions.push(Condition::Unchanged(index));
        let check = check.build()?;
        writes.push(TransactWriteItem::builder().condition_check(check).build());
    }
    Ok((conditions, writes))
}
