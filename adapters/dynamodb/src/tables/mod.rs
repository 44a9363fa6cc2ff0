//! Creation of the tables, which is idempotent and waits until they can be used.
mod expiry;
mod mode;
mod spec;

pub(crate) use self::spec::{check_control, check_events, describe};
pub use mode::{set_publish_mode, set_publish_mode_with_client};

use self::spec::{built, control, events, snapshots};
use crate::{
    DynamoDbConfig, DynamoDbError, Replication, client::Connection, error::Failure, format,
};
use aws_sdk_dynamodb::{Client, types::PointInTimeRecoverySpecification};
use std::time::Duration;

/// The way in which capacity is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BillingMode {
    /// Capacity is paid per request, and is not limited by a setting.
    #[default]
    PayPerRequest,
    /// Capacity is paid per hour, for a number of units per table and per index.
    Provisioned {
        /// The read units per second.
        read: u32,
        /// The write units per second.
        write: u32,
    },
}

/// The key that encrypts the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// The key of AWS for DynamoDB in this account (`aws/dynamodb`).
    AwsManaged,
    /// The caller's own KMS key: its ARN, id or alias.
    CustomerManaged(String),
}

/// The price class: the cost of storage relative to that of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableClass {
    /// The class for tables that are used often.
    Standard,
    /// The class with cheaper storage and more expensive requests.
    InfrequentAccess,
}

/// Options of new tables. Existing tables are not changed.
///
/// An option that is not set is not sent. The default of AWS then applies, and emulators without
/// the option work.
///
/// # Example
/// ```
/// use foldstream_dynamodb::{BillingMode, TableOptions};
/// let options = TableOptions::default().with_deletion_protection(Some(true));
/// assert_eq!(options.deletion_protection, Some(true));
/// assert_eq!(options.billing_mode, BillingMode::PayPerRequest);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableOptions {
    /// The way in which capacity is paid for. Default: per request.
    pub billing_mode: BillingMode,
    /// Continuous backups of the events and control tables. Default: not set (AWS: off).
    /// Recommended in production. DynamoDB Local does not support them.
    pub point_in_time_recovery: Option<bool>,
    /// The key that encrypts the tables. Default: not set (AWS: a key that DynamoDB owns).
    pub encryption: Option<Encryption>,
    /// Protection against deleting the tables. Default: not set (AWS: off). Recommended in
    /// production.
    pub deletion_protection: Option<bool>,
    /// The price class of the events and snapshots tables. Default: not set (AWS: standard).
    pub table_class: Option<TableClass>,
    /// The longest wait for one table to become active. Default: 5 min.
    pub wait: Duration,
}
impl Default for TableOptions {
    fn default() -> Self {
        Self {
            billing_mode: BillingMode::default(),
            point_in_time_recovery: None,
            encryption: None,
            deletion_protection: None,
            table_class: None,
            wait: Duration::from_secs(300),
        }
    }
}
impl TableOptions {
    /// Sets the way in which capacity is paid for.
    #[must_use]
    pub const fn with_billing_mode(mut self, mode: BillingMode) -> Self {
        self.billing_mode = mode;
        self
    }
    /// Enables or disables continuous backups.
    #[must_use]
    pub const fn with_point_in_time_recovery(mut self, enabled: Option<bool>) -> Self {
        self.point_in_time_recovery = enabled;
        self
    }
    /// Sets the key that encrypts the tables.
    #[must_use]
    pub fn with_encryption(mut self, encryption: Option<Encryption>) -> Self {
        self.encryption = encryption;
        self
    }
    /// Enables or disables the protection against deleting the tables.
    #[must_use]
    pub const fn with_deletion_protection(mut self, enabled: Option<bool>) -> Self {
        self.deletion_protection = enabled;
        self
    }
    /// Sets the price class of the events and snapshots tables.
    #[must_use]
    pub const fn with_table_class(mut self, class: Option<TableClass>) -> Self {
        self.table_class = class;
        self
    }
    /// Sets the longest wait for one table.
    #[must_use]
    pub const fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

/// Creates the three tables with their indexes, change stream and expiry, and writes the row
/// `meta/format`.
///
/// The call is idempotent: a table that exists is checked and not changed. It returns when all
/// tables can be used. Several processes may call it at the same time. If the future is dropped,
/// some of the tables may exist, and another call completes them.
///
/// # Errors
/// [`DynamoDbError`]:
/// - `TableMismatch` if a table of that name has other keys, indexes or stream settings, if the
///   rows of the control table expire by another attribute, or if events or snapshots would expire,
/// - `FormatMismatch` if the tables were created with other shard counts, or have another publish
///   mode,
/// - `NotActive` if a table is not active after [`TableOptions::wait`].
pub async fn create_tables(
    config: &DynamoDbConfig,
    options: &TableOptions,
) -> Result<(), DynamoDbError> {
    create(&Connection::open(config.clone()).await?, options).await
}

/// Creates the tables as [`create_tables`] does, over the caller's client.
///
/// # Errors
/// The same as [`create_tables`].
pub async fn create_tables_with_client(
    client: Client,
    config: &DynamoDbConfig,
    options: &TableOptions,
) -> Result<(), DynamoDbError> {
    config.validate()?;
    create(&Connection::with_client(client, config.clone()), options).await
}

async fn create(connection: &Connection, options: &TableOptions) -> Result<(), DynamoDbError> {
    let connection = &connection.in_mode(format::expected_mode(connection).await?);
    let specs = [
        events(connection),
        snapshots(connection),
        control(connection),
    ];
    for spec in &specs {
        spec.request(connection, options).await?;
    }
    for spec in &specs {
        let remedy = "run create_tables again, which goes on waiting";
        spec.wait_until_active(connection, options.wait, remedy)
            .await?;
    }
    // Strongly consistent global tables cannot have expiry, and a table with expiry cannot become
    // one.
    if connection.config().replication != Replication::StronglyConsistent {
        expiry::check(connection).await?;
    }
    if let Some(enabled) = options.point_in_time_recovery {
        for table in [connection.events(), connection.control()] {
            back_up(connection, table, enabled).await?;
        }
    }
    format::write(connection).await
}

/// Creates the table of a read model if it does not exist, and checks it otherwise.
pub(crate) async fn prepare_read_models(
    connection: &Connection,
    table: &str,
    options: &TableOptions,
) -> Result<(), DynamoDbError> {
    let spec = spec::read_models(table);
    match describe(connection, table).await {
        Ok(_) => {}
        Err(failure) if failure.is_missing_table() => spec.request(connection, options).await?,
        Err(failure) => return Err(failure.into()),
    }
    let remedy = "call ReadModel::create_table again, which goes on waiting";
    spec.wait_until_active(connection, options.wait, remedy)
        .await
}

async fn back_up(connection: &Connection, table: &str, enabled: bool) -> Result<(), DynamoDbError> {
    let recovery =
        PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(enabled);
    let recovery = built(connection, table, recovery.build())?;
    let target = connection.at("UpdateContinuousBackups", table);
    let request = connection
        .once()
        .update_continuous_backups()
        .table_name(table);
    let request = request.point_in_time_recovery_specification(recovery);
    let sent = connection.send(target, || request.clone().send());
    sent.await.map_err(|e| Failure::of(e, target))?;
    Ok(())
}
