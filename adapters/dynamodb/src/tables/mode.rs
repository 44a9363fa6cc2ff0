//! The change of the publish mode of existing tables.
use super::{
    TableOptions,
    spec::{self, UNPUBLISHED, built, schema},
};
use crate::{
    DynamoDbConfig, DynamoDbError, PublishMode, client::Connection, error::Failure, format,
};
use aws_sdk_dynamodb::{
    Client,
    types::{
        AttributeDefinition, BillingMode, CreateGlobalSecondaryIndexAction,
        GlobalSecondaryIndexUpdate, Projection, ProjectionType, ProvisionedThroughput,
        TableDescription,
    },
};

/// Changes the publish mode of existing tables, and adds the index `unpublished` if the mode needs
/// it.
///
/// Returns when the tables can be used in the new mode. The mode in the configuration is ignored.
/// The call is idempotent.
///
/// From then on `connect` refuses processes that are configured for another mode. Processes that
/// are already connected continue in the old mode, so restart them all. To change without a pause,
/// use [`PublishMode::Both`] in between: change to it, restart every process, run both publishers
/// until the new one has caught up, and then change to the final mode.
///
/// # Example
/// ```no_run
/// use foldstream_dynamodb::{DynamoDbConfig, PublishMode, set_publish_mode};
/// # async fn example() -> Result<(), foldstream_dynamodb::DynamoDbError> {
/// set_publish_mode(&DynamoDbConfig::from_env()?, PublishMode::Both).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`DynamoDbError`]:
/// - `NoFormat` if the tables were not created by `create_tables`,
/// - `FormatMismatch` if the tables have another format or other shard counts,
/// - `TableMismatch` if the events table has other keys, indexes or stream settings than the mode
///   needs,
/// - `NotActive` if the new index is not active within five minutes: call it again.
pub async fn set_publish_mode(
    config: &DynamoDbConfig,
    mode: PublishMode,
) -> Result<(), DynamoDbError> {
    set(&Connection::open(config.clone()).await?, mode).await
}

/// Changes the publish mode as [`set_publish_mode`] does, over the caller's client.
///
/// # Errors
/// The same as [`set_publish_mode`].
pub async fn set_publish_mode_with_client(
    client: Client,
    config: &DynamoDbConfig,
    mode: PublishMode,
) -> Result<(), DynamoDbError> {
    config.validate()?;
    set(&Connection::with_client(client, config.clone()), mode).await
}

async fn set(connection: &Connection, mode: PublishMode) -> Result<(), DynamoDbError> {
    let connection = connection.in_mode(mode);
    let table = spec::describe(&connection, connection.events()).await?;
    if mode.marks_commits() && !has_index(&table) {
        add_index(&connection, &table).await?;
    }
    // The index exists before the first process in the new mode looks for it.
    let events = spec::events(&connection);
    let wait = TableOptions::default().wait;
    let remedy = "call set_publish_mode again, which goes on waiting; the mode is not changed yet";
    events.wait_until_active(&connection, wait, remedy).await?;
    format::set_mode(&connection, mode).await
}

fn has_index(table: &TableDescription) -> bool {
    let mut indexes = table.global_secondary_indexes().iter();
    indexes.any(|index| index.index_name() == Some(UNPUBLISHED.0))
}

/// Adds the index of markers, which is empty at first, since no commit has a marker yet.
async fn add_index(connection: &Connection, table: &TableDescription) -> Result<(), DynamoDbError> {
    let events = connection.events();
    let (name, key) = UNPUBLISHED;
    let keys_only = Projection::builder().projection_type(ProjectionType::KeysOnly);
    let index = CreateGlobalSecondaryIndexAction::builder()
        .index_name(name)
        .set_key_schema(Some(schema(connection, events, &key)?))
        .projection(keys_only.build())
        .set_provisioned_throughput(throughput(connection, table)?);
    let index = built(connection, events, index.build())?;
    let mut request = connection
        .once()
        .update_table()
        .table_name(events)
        .global_secondary_index_updates(
            GlobalSecondaryIndexUpdate::builder().create(index).build(),
        );
    for (name, kind) in key {
        let attribute = AttributeDefinition::builder()
            .attribute_name(name)
            .attribute_type(kind)
            .build();
        request = request.attribute_definitions(built(connection, events, attribute)?);
    }
    let target = connection.at("UpdateTable", events);
    let sent = connection.send_again(target, 0, || request.clone().send());
    match sent.await {
        Ok(_) => Ok(()),
        // Another process may add the index at the same time. DynamoDB then reports a malformed
        // request, or one that comes too early.
        Err(_) if has_index(&spec::describe(connection, events).await?) => Ok(()),
        Err(e) => Err(Failure::of(e, target).into()),
    }
}

/// Returns the throughput of the table for its index, if capacity is paid per hour.
fn throughput(
    connection: &Connection,
    table: &TableDescription,
) -> Result<Option<ProvisionedThroughput>, DynamoDbError> {
    let mode = table.billing_mode_summary().and_then(|b| b.billing_mode());
    let Some(units) = table.provisioned_throughput() else {
        return Ok(None);
    };
    let is_provisioned = mode.is_none_or(|mode| *mode == BillingMode::Provisioned);
    let (read, write) = (units.read_capacity_units(), units.write_capacity_units());
    match (is_provisioned, read, write) {
        (true, Some(read @ 1..), Some(write @ 1..)) => {
            let units = ProvisionedThroughput::builder()
                .read_capacity_units(read)
                .write_capacity_units(write);
            Ok(Some(built(connection, connection.events(), units.build())?))
        }
        _ => Ok(None),
    }
}
