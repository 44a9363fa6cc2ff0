//! Append: one conditional put, and how its outcome is settled.
//!
//! Why the put is not left to the SDK's retries: after an attempt whose answer was lost, "throttled" or "expired
//! credentials" on the next one does not mean "not applied". So each put is sent once, and this module knows what is
//! still open. A definite answer that waiting may cure is repeated with backoff; a lost one is settled by reading the
//! slot: my commit id there is success, another's is a conflict, and while the slot is empty the same bytes go once
//! more (same slot, same id: at most one of them can land). What then is still open is `Unavailable { pending }`.
use super::{
    item::{self, StoredItem},
    items::{Items, try_get_item},
    payload::Names,
};
use crate::{attributes::Attributes, client::Connection, error::Failure};
use aws_sdk_dynamodb::{
    error::SdkError, operation::put_item::PutItemError, types::ReturnValuesOnConditionCheckFailure,
};
use foldstream::{
    Backoff, StreamId, Version, VersionConflict,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventStoreError, PendingAppend},
};
use std::time::Duration;

/// Pauses between repeats of a put that was certainly not applied. A longer pause that DynamoDB asks for is left to the
/// caller, who may have better things to do.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(25), Duration::from_secs(1));

pub(super) async fn append(
    connection: &Connection,
    append: &Append,
) -> Result<AppendOutcome, EventStoreError> {
    append.validate()?;
    let attempts = connection.config().max_attempts.max(1);
    for attempt in 1.. {
        let item = item::encode(append, connection.config())?;
        match put(connection, append.head.stream(), item).await {
            Ok(()) => break,
            Err(Refusal::Taken(stored)) => {
                return taken(connection, append, stored, Sent::Now).await;
            }
            Err(Refusal::Unreadable(error)) => return Err(error),
            Err(Refusal::Failed(failure)) if failure.maybe_applied() => {
                let stream = append.head.stream();
                tracing::debug!(%stream, commit = %append.commit_id, ?failure, "append lost: reading its slot");
                return settle(connection, append).await;
            }
            Err(Refusal::Failed(failure)) => {
                let pause = failure
                    .retry_after()
                    .unwrap_or_default()
                    .max(PAUSES.delay(attempt));
                if attempt >= attempts || !failure.is_transient() || pause > PAUSES.max {
                    return Err(failure.into_event_store());
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
    Ok(AppendOutcome::Appended(append.head_after()))
}

/// Why a put did not succeed.
enum Refusal {
    /// The slot has an item: this one, if DynamoDB returned it.
    Taken(Option<StoredItem>),
    /// The slot has an item that this build cannot read.
    Unreadable(EventStoreError),
    Failed(Failure),
}

async fn put(connection: &Connection, stream: &StreamId, item: Attributes) -> Result<(), Refusal> {
    let table = connection.events();
    let request = connection
        .once()
        .put_item()
        .table_name(table)
        .set_item(Some(item))
        .condition_expression("attribute_not_exists(pk)")
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
    let Err(error) = request.send().await else {
        return Ok(());
    };
    match error {
        SdkError::ServiceError(service)
            if service.err().is_conditional_check_failed_exception() =>
        {
            let PutItemError::ConditionalCheckFailedException(failed) = service.into_err() else {
                return Err(Refusal::Taken(None));
            };
            match failed.item.map(StoredItem::read).transpose() {
                Ok(stored) => Err(Refusal::Taken(stored)),
                Err(e) => Err(Refusal::Unreadable(e.into_error(stream, Version::NONE))),
            }
        }
        error => Err(Refusal::Failed(Failure::of(
            error,
            connection.at("PutItem", table),
        ))),
    }
}

/// Something stands in the slot. `sent`: an attempt of this very call may have put it there.
async fn taken(
    connection: &Connection,
    append: &Append,
    stored: Option<StoredItem>,
    sent: Sent,
) -> Result<AppendOutcome, EventStoreError> {
    let stored = match stored {
        Some(stored) => Some(stored),
        // An emulator that does not return the old item.
        None => slot(connection, append).await?,
    };
    let conflict = |actual| {
        let (stream, expected) = (append.head.stream().clone(), append.head.version());
        AppendOutcome::Conflict(VersionConflict::new(stream, expected, actual))
    };
    let Some(stored) = stored else {
        return Ok(conflict(None));
    };
    if stored.commit_id != append.commit_id {
        return Ok(conflict(Some(stored.last)));
    }
    let stored = whole(connection, append, stored).await?;
    // The same id with other content: a command that was decided twice. The stored events count.
    Ok(if sent == Sent::Before && stored == append.to_commit() {
        AppendOutcome::Appended(append.head_after())
    } else {
        AppendOutcome::Repeated(vec![stored])
    })
}

/// Whether this call has already sent the commit, with an outcome that is not known.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    Now,
    Before,
}

/// The answer to a put was lost.
async fn settle(
    connection: &Connection,
    append: &Append,
) -> Result<AppendOutcome, EventStoreError> {
    let stream = append.head.stream();
    if let Some(stored) = slot(connection, append).await? {
        return taken(connection, append, Some(stored), Sent::Before).await;
    }
    let item = item::encode(append, connection.config())?;
    match put(connection, stream, item).await {
        Ok(()) => Ok(AppendOutcome::Appended(append.head_after())),
        Err(Refusal::Taken(stored)) => taken(connection, append, stored, Sent::Before).await,
        Err(Refusal::Unreadable(error)) => Err(error),
        Err(Refusal::Failed(failure)) => match slot(connection, append).await? {
            Some(stored) => taken(connection, append, Some(stored), Sent::Before).await,
            // Absent does not mean "not applied": either attempt may still land.
            None => Err(failure.into_pending(pending(append))),
        },
    }
}

fn pending(append: &Append) -> PendingAppend {
    PendingAppend::new(AppendAll::new(vec![append.clone()]))
}

/// What stands in the slot, while it is open whether that is mine.
async fn slot(
    connection: &Connection,
    append: &Append,
) -> Result<Option<StoredItem>, EventStoreError> {
    let (stream, slot) = (append.head.stream(), append.head.version().next());
    let found = try_get_item(connection, stream, slot).await;
    let found = found.map_err(|failure| failure.into_pending(pending(append)))?;
    found
        .map(StoredItem::read)
        .transpose()
        .map_err(|e| e.into_error(stream, append.head.version()))
}

/// The stored commit that starts with this item, which has my id.
async fn whole(
    connection: &Connection,
    append: &Append,
    first: StoredItem,
) -> Result<Commit, EventStoreError> {
    let stream = append.head.stream().clone();
    let mut items = Items::new(connection.clone(), stream, first.last.next(), None);
    let commit = items.complete(first, &mut Names::default()).await;
    commit.map_err(|error| match error {
        // It is applied, though not by whom and with what: never "certainly not applied".
        error if error.is_transient() => EventStoreError::Unavailable {
            pending: Some(pending(append)),
            source: error.into(),
        },
        error => error,
    })
}
