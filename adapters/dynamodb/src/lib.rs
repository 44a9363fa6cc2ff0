#![doc = include_str!("../README.md")]

mod config;
mod event_store;
mod snapshot_store;
mod control_store;
mod tables;
mod replication;
mod format;
mod attributes;
mod client;
mod holes;
mod incarnation;
mod error;

pub use config::{ConfigError, DynamoDbConfig, PublishMode};
pub use control_store::DynamoDbControlStore;
pub use error::DynamoDbError;
pub use event_store::DynamoDbEventStore;
pub use holes::{Hole, HoleScan};
pub use replication::Replication;
pub use snapshot_store::DynamoDbSnapshotStore;
pub use tables::{
    BillingMode, Encryption, TableClass, TableOptions, create_tables, create_tables_with_client,
    set_publish_mode, set_publish_mode_with_client,
};

use aws_sdk_dynamodb::Client;
use client::Connection;

/// All three stores of one deployment over one connection.
///
/// # Example
/// ```no_run
/// use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, TableOptions, create_tables};
/// # async fn example() -> Result<(), foldstream_dynamodb::DynamoDbError> {
/// let config = DynamoDbConfig::from_env()?;
/// create_tables(&config, &TableOptions::default()).await?;
/// let dynamodb = DynamoDb::connect(config).await?;
/// let (events, control) = (dynamodb.event_store(), dynamodb.control_store());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct DynamoDb {
    connection: Connection,
}

impl DynamoDb {
    /// Connects, and checks that the tables are of this process's format and publish mode and not written by other regions.
    /// If it asks for replicas ([`Replication::Detect`]), it also checks keys, indexes and stream settings.
    ///
    /// # Errors
    /// [`DynamoDbError`]:
    /// - `Config` if the configuration cannot work,
    /// - `Refused` if a table is missing or may not be used,
    /// - `NoFormat` if the tables were not made by [`create_tables`],
    /// - `FormatMismatch` if they are of another format or publish mode,
    /// - `TableMismatch` if they have other keys, indexes or stream settings,
    /// - `AsynchronousReplicas` if other regions may write to them.
    pub async fn connect(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        Self::checked(&Connection::open(config).await?).await
    }

    /// As [`connect`](Self::connect), over the caller's client: its endpoint, region, credentials and timeouts count,
    /// not those of the configuration. Its retries do not: the stores send each request once and repeat it themselves. A
    /// client without `operation_attempt_timeout` gets [`DynamoDbConfig::attempt_timeout`] for every request of the stores.
    /// Its `connect_timeout` counts up to nine tenths of the time of a request, so that a connection that was never made is
    /// told apart from an answer that was lost. Where credentials take so long to fetch that the time of the request ends
    /// before that of the connection, the SDK does not tell them apart, and the outcome of an append is unknown.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn with_client(
        client: Client,
        config: DynamoDbConfig,
    ) -> Result<Self, DynamoDbError> {
        config.validate()?;
        Self::checked(&Connection::with_client(client, config)).await
    }

    async fn checked(connection: &Connection) -> Result<Self, DynamoDbError> {
        let ((connection, described), mode) =
            tokio::try_join!(replication::resolve(connection), format::check(connection))?;
        let connection = connection.in_mode(mode);
        if let Some((events, control)) = described {
            connection.incarnation().is_news(&events);
            tables::check_events(&connection, &events)?;
            tables::check_control(&connection, &control)?;
        }
        Ok(Self { connection })
    }

    /// The event store.
    pub fn event_store(&self) -> DynamoDbEventStore {
        DynamoDbEventStore::over(self.connection.clone())
    }
    /// The snapshot store.
    pub fn snapshot_store(&self) -> DynamoDbSnapshotStore {
        DynamoDbSnapshotStore::over(self.connection.clone())
    }
    /// The control store, by the system's clock.
    pub fn control_store(&self) -> DynamoDbControlStore {
        DynamoDbControlStore::over(self.connection.clone())
    }
    /// The SDK client as it was given or configured, for what lies beside the stores.
    pub fn client(&self) -> &Client {
        self.connection.client()
    }
}
