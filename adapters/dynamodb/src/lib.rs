#![doc = include_str!("../README.md")]

mod config;
mod event_store;
mod snapshot_store;
mod control_store;
mod read_model;
mod tables;
mod replication;
mod format;
mod attributes;
mod client;
mod holes;
mod limits;
mod incarnation;
mod error;
pub mod stream_record;
#[cfg(feature = "streams")]
pub mod streams;

pub use config::{ConfigError, DynamoDbConfig, PublishMode};
pub use control_store::DynamoDbControlStore;
pub use error::DynamoDbError;
pub use event_store::DynamoDbEventStore;
pub use holes::{Hole, HoleScan};
pub use read_model::{IndexKey, IndexQuery, ReadModel, ReadModelError, ReadModelRow, RowKeys};
pub use replication::Replication;
pub use snapshot_store::DynamoDbSnapshotStore;
pub use tables::{
    BillingMode, Encryption, TableClass, TableOptions, create_tables, create_tables_with_client,
    set_publish_mode, set_publish_mode_with_client,
};

use aws_sdk_dynamodb::Client;
use client::Connection;

/// The event, snapshot and control stores of one deployment, over one connection.
///
/// Cloning a `DynamoDb` or a store is a reference count.
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
    /// Connects and checks that this process may use the tables: that they have its format and
    /// publish mode, and that no other region writes to them.
    ///
    /// With [`Replication::Detect`] (the default), `connect` also describes the events and control
    /// tables and checks their keys, indexes and stream settings.
    ///
    /// # Errors
    /// [`DynamoDbError`]:
    /// - `Config` if the configuration cannot work,
    /// - `Refused` if a table is missing or may not be used,
    /// - `NoFormat` if the tables were not created by [`create_tables`],
    /// - `FormatMismatch` if the tables have another format or publish mode,
    /// - `TableMismatch` if the tables have other keys, indexes or stream settings,
    /// - `AsynchronousReplicas` if other regions may write to the tables,
    /// - `Throttled` or `Unavailable` if DynamoDB cannot answer now.
    pub async fn connect(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        Self::checked(&Connection::open(config).await?).await
    }

    /// Connects as [`connect`](Self::connect) does, over the caller's client.
    ///
    /// The client's endpoint, region, credentials and timeouts apply, and those of the
    /// configuration are ignored. The client's retries do not apply: the stores send each request
    /// once and repeat it themselves.
    ///
    /// A client without `operation_attempt_timeout` gets [`DynamoDbConfig::attempt_timeout`] for
    /// every request of the stores. The client's `connect_timeout` is cut to nine tenths of the
    /// time of a request, so that a connection that was never established can be told apart from a
    /// lost answer. If fetching credentials takes so long that a request times out before its
    /// connection does, the SDK cannot tell them apart, and the outcome of an append is unknown.
    ///
    /// # Errors
    /// The same as [`connect`](Self::connect).
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

    /// Returns the event store of this deployment.
    pub fn event_store(&self) -> DynamoDbEventStore {
        DynamoDbEventStore::over(self.connection.clone())
    }
    /// Returns the snapshot store of this deployment.
    pub fn snapshot_store(&self) -> DynamoDbSnapshotStore {
        DynamoDbSnapshotStore::over(self.connection.clone())
    }
    /// Returns the control store of this deployment, on the system clock.
    pub fn control_store(&self) -> DynamoDbControlStore {
        DynamoDbControlStore::over(self.connection.clone())
    }
    /// Returns the read model of these rows, which is also their projector.
    pub fn read_model<T: ReadModelRow>(&self) -> ReadModel<T> {
        ReadModel::over(self.connection.clone())
    }
    /// Returns the SDK client as it was given or configured, for the application's own requests.
    pub fn client(&self) -> &Client {
        self.connection.client()
    }
}
