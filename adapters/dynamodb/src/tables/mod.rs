//! Making the tables: idempotent, and waiting until they can be used.
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
    /// By request.
    #[default]
    PayPerRequest,
    /// By the hour, so many units for each table and each index.
    Provisioned {
        /// Read units a second.
        read: u32,
        /// Write units a second.
        write: u32,
    },
}

/// The key that encrypts the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// AWS's key for DynamoDB in this account (`aws/dynamodb`).
    AwsManaged,
    /// A KMS key of your own: its ARN, id or alias.
    CustomerManaged(String),
}

/// The price class: the cost of storage relative to that of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableClass {
    /// For tables that are used often.
    Standard,
    /// Cheaper storage, dearer requests.
    InfrequentAccess,
}

/// Options of new tables. What is not set is not sent, so that emulators without it work, and AWS's default holds.
/// Tables that exist already are not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableOptions {
    /// Default: by request.
    pub billing_mode: BillingMode,
    /// Continuous backups of the events and control tables. Default: not set (AWS: off). Recommended in production;
    /// DynamoDB Local does not have them.
    pub point_in_time_recovery: Option<bool>,
    /// Default: not set (AWS: a key that DynamoDB owns).
    pub encryption: Option<Encryption>,
    /// Refuses to delete the tables. Default: not set (AWS: off). Recommended in production.
    pub deletion_protection: Option<bool>,
    /// Of the events and snapshots tables. Default: not set (AWS: standard).
    pub table_class: Option<TableClass>,
    /// The longest wait for one table to become active. Default 5 min.
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
    /// Sets how capacity is paid for.
    #[must_use]
    pub const fn with_billing_mode(mut self, mode: BillingMode) -> Self {
        self.billing_mode = mode;
        self
    }
    /// Sets continuous backups.
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
    /// Sets whether the tables refuse to be deleted.
    #[must_use]
    pub const fn with_deletion_protection(mut self, enabled: Option<bool>) -> Self {
        self.deletion_protection = enabled;
        self
    }
    /// Sets the table class.
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

/// Makes the three tables with their indexes, change stream and expiry, and writes the row `meta/format`.
///
/// Idempotent: a table that exists is checked and left as it is. Returns when all can be used. Several processes may
/// call it at the same time.
///
/// # Errors
/// [`DynamoDbError`]:
/// - `TableMismatch` if a table of that name has other keys, indexes or stream settings, if the rows of the control table
///   expire by another attribute, or if events or snapshots would expire,
/// - `FormatMismatch` if the tables were made with other shard counts, or are in another publish mode,
/// - `NotActive` if a table is not active after [`TableOptions::wait`].
pub async fn create_tables(
    config: &DynamoDbConfig,
    options: &TableOptions,
) -> Result<(), DynamoDbError> {
    create(&Connection::open(config.clone()).await?, options).await
}

/// As [`create_tables`], over the caller's client.
///
/// # Errors
/// As [`create_tables`].
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
    // Strongly consistent global tables cannot have it, and a table that has it cannot become one.
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

async fn back_up(connection: &Connection, table: &str, enabled: bool) -> Result<(), DynamoDbError> {
    let recovery =
        PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(enabled);
    let recovery = built(connection, table, recovery.build())?;
    let place = connection.at("UpdateContinuousBackups", table);
    let request = connection
        .once()
        .update_continuous_backups()
        .table_name(table);
    let request = request.point_in_time_recovery_specification(recovery);
    let sent = connection.send(place, || request.clone().send());
    sent.await.map_err(|e| Failure::of(e, place))?;
    Ok(())
}
