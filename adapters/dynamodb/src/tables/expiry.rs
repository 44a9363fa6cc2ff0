//! Expiry: rows of the control table expire, events and snapshots never do.
use super::spec::built;
use crate::{DynamoDbError, client::Connection, error::Failure};
use aws_sdk_dynamodb::types::{TimeToLiveDescription, TimeToLiveSpecification, TimeToLiveStatus};

/// The attribute of control rows that holds the time of their expiry.
const EXPIRES_AT: &str = "x";

/// Enables the expiry of control rows. Refuses tables whose rows expire by another attribute, and
/// events or snapshots that would expire.
pub(super) async fn check(connection: &Connection) -> Result<(), DynamoDbError> {
    for table in [connection.events(), connection.snapshots()] {
        if let Some(attribute) = expires_by(connection, table).await? {
            return Err(DynamoDbError::TableMismatch {
                table: table.into(),
                reason: format!(
                    "DynamoDB would delete its items by the attribute {attribute} (TimeToLive), and nothing in it may ever \
                     be deleted that way: disable TimeToLive on it"
                ),
            });
        }
    }
    expire_control_rows(connection).await
}

/// Lets DynamoDB delete rows past `x`. It may do so hours later.
async fn expire_control_rows(connection: &Connection) -> Result<(), DynamoDbError> {
    if control_rows_expire(connection).await? {
        return Ok(());
    }
    let table = connection.control();
    let expiry = TimeToLiveSpecification::builder()
        .enabled(true)
        .attribute_name(EXPIRES_AT);
    let request = connection.once().update_time_to_live().table_name(table);
    let request = request.time_to_live_specification(built(connection, table, expiry.build())?);
    let target = connection.at("UpdateTimeToLive", table);
    let sent = connection.send_again(target, 0, || request.clone().send());
    match sent.await {
        Ok(_) => Ok(()),
        // Another process that creates the tables was faster, which DynamoDB reports as a malformed
        // request.
        Err(_) if control_rows_expire(connection).await? => Ok(()),
        Err(error) => Err(Failure::of(error, target).into()),
    }
}

/// Returns true if rows of the control table expire by the attribute `x`.
async fn control_rows_expire(connection: &Connection) -> Result<bool, DynamoDbError> {
    let table = connection.control();
    match expires_by(connection, table).await? {
        None => Ok(false),
        Some(attribute) if attribute == EXPIRES_AT => Ok(true),
        Some(attribute) => Err(DynamoDbError::TableMismatch {
            table: table.into(),
            reason: format!(
                "its rows expire by the attribute {attribute} and not by {EXPIRES_AT}: disable TimeToLive on it (that takes \
                 up to an hour) and run create_tables again"
            ),
        }),
    }
}

/// Returns the attribute by which DynamoDB deletes items of a table. Also while expiry is being
/// disabled, since items are still deleted then.
async fn expires_by(connection: &Connection, table: &str) -> Result<Option<String>, DynamoDbError> {
    let target = connection.at("DescribeTimeToLive", table);
    let request = connection.once().describe_time_to_live().table_name(table);
    let sent = connection.send(target, || request.clone().send());
    let answer = sent.await.map_err(|e| Failure::of(e, target))?;
    let found = answer.time_to_live_description;
    let status = found
        .as_ref()
        .and_then(TimeToLiveDescription::time_to_live_status);
    Ok(match status {
        None | Some(TimeToLiveStatus::Disabled) => None,
        Some(_) => {
            let attribute = found.and_then(|found| found.attribute_name);
            Some(attribute.unwrap_or_else(|| "(not named)".into()))
        }
    })
}
