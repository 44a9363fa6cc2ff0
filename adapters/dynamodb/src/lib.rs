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
mod error;

pub use config::{ConfigError, DynamoDbConfig, PublishMode};
pub use control_store::DynamoDbControlStore;
pub use error::DynamoDbError;
pub use event_store::DynamoDbEventStore;
pub use replication::Replication;
pub use snapshot_store::DynamoDbSnapshotStore;
pub use tables::{
    BillingMode, Encryption, TableClass, TableOptions, create_tables, create_tables_with_client,
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
    /// Connects, and checks that the tables are of this process's format and not written by other regions.
    ///
    /// # Errors
    /// [`DynamoDbError`]: a configuration that cannot work, a table that is missing or of another format, asynchronous
    /// replicas that nothing is said about ([`Replication`]).
    pub async fn connect(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        Self::checked(&Connection::open(config).await?).await
    }

    /// As [`connect`](Self::connect), over the caller's client: its endpoint, region, credentials and timeouts count,
    /// not those of the configuration.
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
        let (connection, ()) =
            tokio::try_join!(replication::resolve(connection), format::check(connection))?;
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
    /// The SDK client that the stores use, for what lies beside them.
    pub fn client(&self) -> &Client {
        self.connection.client()
    }
}
