//! Making the tables: idempotent, and waiting until they can be used.
use crate::{
    DynamoDbConfig, DynamoDbError, PublishMode, Replication, client::Connection, error::Failure,
    format,
};
use aws_sdk_dynamodb::{
    Client,
    error::BuildError,
    operation::create_table::builders::CreateTableFluentBuilder,
    types::{
        self, AttributeDefinition, GlobalSecondaryIndex, KeySchemaElement, KeyType,
        PointInTimeRecoverySpecification, Projection, ProjectionType, ProvisionedThroughput,
        ScalarAttributeType, SseSpecification, SseType, StreamSpecification, StreamViewType,
        TableDescription, TimeToLiveSpecification, TimeToLiveStatus,
    },
};
use std::time::Duration;
use tokio::time::Instant;

/// How capacity is paid for.
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

/// Which key encrypts the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// AWS's key for DynamoDB in this account (`aws/dynamodb`).
    AwsManaged,
    /// A KMS key of your own: its ARN, id or alias.
    CustomerManaged(String),
}

/// What storage and requests cost relative to each other.
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
/// [`DynamoDbError`]; `TableMismatch` for a table of that name which is not made for this, `FormatMismatch` for tables
/// that were made with other shard counts, `NotActive` after [`TableOptions::wait`].
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
    let specs = [
        events(connection),
        snapshots(connection),
        control(connection),
    ];
    for spec in &specs {
        spec.request(connection, options).await?;
    }
    for spec in &specs {
        spec.wait_until_active(connection, options.wait).await?;
    }
    // Strongly consistent global tables cannot have it, and a table that has it cannot become one.
    if connection.config().replication != Replication::StronglyConsistent {
        expire_control_rows(connection).await?;
    }
    if let Some(enabled) = options.point_in_time_recovery {
        for table in [connection.events(), connection.control()] {
            back_up(connection, table, enabled).await?;
        }
    }
    format::write(connection).await
}

/// Name and type of a key attribute.
type Key = (&'static str, ScalarAttributeType);
const fn string(name: &'static str) -> Key {
    (name, ScalarAttributeType::S)
}

/// What a table must be.
struct Spec<'a> {
    table: &'a str,
    key: Vec<Key>,
    /// Name and key of each index, `KEYS_ONLY`.
    indexes: Vec<(&'static str, [Key; 2])>,
    has_stream: bool,
    takes_class: bool,
}

fn events(connection: &Connection) -> Spec<'_> {
    let mut indexes = vec![("streams", [string("ls"), string("pk")])];
    if connection.config().publish_mode == PublishMode::Poller {
        indexes.push(("unpublished", [string("mk"), string("pk")]));
    }
    Spec {
        table: connection.events(),
        key: vec![string("pk"), ("sk", ScalarAttributeType::N)],
        indexes,
        has_stream: true,
        takes_class: true,
    }
}
fn snapshots(connection: &Connection) -> Spec<'_> {
    Spec {
        table: connection.snapshots(),
        key: vec![string("pk")],
        indexes: Vec::new(),
        has_stream: false,
        takes_class: true,
    }
}
fn control(connection: &Connection) -> Spec<'_> {
    Spec {
        table: connection.control(),
        key: vec![string("pk"), string("sk")],
        indexes: Vec::new(),
        has_stream: false,
        takes_class: false,
    }
}

/// The SDK's builders fail only where a required field is missing, and every field is set here.
fn built<T>(
    connection: &Connection,
    table: &str,
    made: Result<T, BuildError>,
) -> Result<T, Failure> {
    made.map_err(|e| Failure::incompatible(connection.at("CreateTable", table), e.to_string()))
}

impl Spec<'_> {
    async fn request(
        &self,
        connection: &Connection,
        options: &TableOptions,
    ) -> Result<(), DynamoDbError> {
        let request = self.define(connection, options)?;
        match request.send().await {
            Ok(_) => Ok(()),
            // It exists, or another process is making it.
            Err(e)
                if e.as_service_error()
                    .is_some_and(|e| e.is_resource_in_use_exception()) =>
            {
                Ok(())
            }
            Err(e) => Err(Failure::of(e, connection.at("CreateTable", self.table)).into()),
        }
    }

    fn define(
        &self,
        connection: &Connection,
        options: &TableOptions,
    ) -> Result<CreateTableFluentBuilder, Failure> {
        let mut request = connection.client().create_table().table_name(self.table);
        let (mode, throughput) = billing(connection, self.table, options.billing_mode)?;
        request = request
            .billing_mode(mode)
            .set_provisioned_throughput(throughput.clone())
            .set_key_schema(Some(self.schema(connection, &self.key)?))
            .set_deletion_protection_enabled(options.deletion_protection);
        let keys = self.indexes.iter().flat_map(|(_, key)| key);
        let mut defined = Vec::new();
        for (name, kind) in self.key.iter().chain(keys) {
            if !defined.contains(&name) {
                defined.push(name);
                let attribute = AttributeDefinition::builder()
                    .attribute_name(*name)
                    .attribute_type(kind.clone())
                    .build();
                request = request.attribute_definitions(built(connection, self.table, attribute)?);
            }
        }
        for (name, key) in &self.indexes {
            let keys_only = Projection::builder().projection_type(ProjectionType::KeysOnly);
            let index = GlobalSecondaryIndex::builder()
                .index_name(*name)
                .set_key_schema(Some(self.schema(connection, key)?))
                .projection(keys_only.build())
                .set_provisioned_throughput(throughput.clone())
                .build();
            request = request.global_secondary_indexes(built(connection, self.table, index)?);
        }
        if self.has_stream {
            let stream = StreamSpecification::builder()
                .stream_enabled(true)
                .stream_view_type(StreamViewType::NewImage)
                .build();
            request = request.stream_specification(built(connection, self.table, stream)?);
        }
        if self.takes_class {
            request = request.set_table_class(options.table_class.map(|class| match class {
                TableClass::Standard => types::TableClass::Standard,
                TableClass::InfrequentAccess => types::TableClass::StandardInfrequentAccess,
            }));
        }
        Ok(request.set_sse_specification(options.encryption.as_ref().map(encryption)))
    }

    fn schema(
        &self,
        connection: &Connection,
        key: &[Key],
    ) -> Result<Vec<KeySchemaElement>, Failure> {
        let types = [KeyType::Hash, KeyType::Range];
        let elements = key.iter().zip(types).map(|((name, _), kind)| {
            let element = KeySchemaElement::builder()
                .attribute_name(*name)
                .key_type(kind);
            built(connection, self.table, element.build())
        });
        elements.collect()
    }

    async fn wait_until_active(
        &self,
        connection: &Connection,
        wait: Duration,
    ) -> Result<(), DynamoDbError> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(20);
        loop {
            let status = match describe(connection, self.table).await {
                Ok(described) => match unready(&described) {
                    None => return self.check(&described),
                    Some(status) => status,
                },
                // Describing is eventually consistent: a table just made may not be there yet.
                Err(failure) if failure.is_missing_table() => "CREATING".into(),
                Err(failure) => return Err(failure.into()),
            };
            if started.elapsed() + pause > wait {
                return Err(DynamoDbError::NotActive {
                    table: self.table.into(),
                    status,
                    waited: started.elapsed(),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Whether a table that may have been made by other means is what the stores need.
    fn check(&self, found: &TableDescription) -> Result<(), DynamoDbError> {
        let mismatch = |reason: String| {
            let table = self.table.into();
            Err(DynamoDbError::TableMismatch { table, reason })
        };
        let key = |schema: &[KeySchemaElement]| -> Vec<String> {
            schema.iter().map(|k| k.attribute_name.clone()).collect()
        };
        let names = |key: &[Key]| -> Vec<String> { key.iter().map(|(n, _)| (*n).into()).collect() };
        if key(found.key_schema()) != names(&self.key) {
            return mismatch(format!(
                "its key is {:?}, not {:?}: it belongs to something else; choose another DYNAMODB_PREFIX",
                key(found.key_schema()),
                names(&self.key)
            ));
        }
        for (name, kind) in &self.key {
            let defined = found.attribute_definitions();
            if !defined
                .iter()
                .any(|a| a.attribute_name == *name && a.attribute_type == *kind)
            {
                return mismatch(format!("its key attribute {name} is not of type {kind}"));
            }
        }
        for (index, wanted) in &self.indexes {
            let indexes = found.global_secondary_indexes();
            let there = indexes.iter().find(|i| i.index_name() == Some(index));
            if there.map(|i| key(i.key_schema())) != Some(names(wanted)) {
                return mismatch(format!(
                    "it has no index {index} on {:?}: add it (KEYS_ONLY), or set publish_mode as it was made with",
                    names(wanted)
                ));
            }
        }
        let image = found
            .stream_specification()
            .and_then(|s| s.stream_view_type());
        let fits = matches!(
            image,
            Some(StreamViewType::NewImage | StreamViewType::NewAndOldImages)
        );
        if self.has_stream && !fits {
            return mismatch(
                "its change stream has no new images: enable it with NEW_IMAGE".into(),
            );
        }
        Ok(())
    }
}

fn billing(
    connection: &Connection,
    table: &str,
    mode: BillingMode,
) -> Result<(types::BillingMode, Option<ProvisionedThroughput>), Failure> {
    Ok(match mode {
        BillingMode::PayPerRequest => (types::BillingMode::PayPerRequest, None),
        BillingMode::Provisioned { read, write } => {
            let throughput = ProvisionedThroughput::builder()
                .read_capacity_units(read.into())
                .write_capacity_units(write.into());
            let throughput = built(connection, table, throughput.build())?;
            (types::BillingMode::Provisioned, Some(throughput))
        }
    })
}

fn encryption(encryption: &Encryption) -> SseSpecification {
    let kms = SseSpecification::builder()
        .enabled(true)
        .sse_type(SseType::Kms);
    match encryption {
        Encryption::AwsManaged => kms.build(),
        Encryption::CustomerManaged(key) => kms.kms_master_key_id(key).build(),
    }
}

pub(crate) async fn describe(
    connection: &Connection,
    table: &str,
) -> Result<TableDescription, Failure> {
    let place = connection.at("DescribeTable", table);
    let request = connection.client().describe_table().table_name(table);
    let answer = request.send().await.map_err(|e| Failure::of(e, place))?;
    answer
        .table
        .ok_or_else(|| Failure::incompatible(place, "the answer has no table".into()))
}

/// The status of what is not yet active, the table or one of its indexes.
fn unready(table: &TableDescription) -> Option<String> {
    use types::{IndexStatus, TableStatus};
    match table.table_status() {
        Some(TableStatus::Active) => {}
        // Usable, though something about it is being changed.
        Some(TableStatus::Updating) => {}
        other => return Some(other.map_or("unknown", TableStatus::as_str).to_owned()),
    }
    table
        .global_secondary_indexes()
        .iter()
        .find_map(|index| match index.index_status() {
            None | Some(IndexStatus::Active | IndexStatus::Updating) => None,
            Some(status) => Some(format!(
                "index {} {status}",
                index.index_name().unwrap_or_default()
            )),
        })
}

/// Rows past `x` are deleted by DynamoDB, hours later perhaps.
async fn expire_control_rows(connection: &Connection) -> Result<(), DynamoDbError> {
    if rows_expire(connection).await? {
        return Ok(());
    }
    let table = connection.control();
    let expiry = TimeToLiveSpecification::builder()
        .enabled(true)
        .attribute_name("x");
    let request = connection.client().update_time_to_live().table_name(table);
    let request = request.time_to_live_specification(built(connection, table, expiry.build())?);
    let place = connection.at("UpdateTimeToLive", table);
    match request.send().await {
        Ok(_) => Ok(()),
        // Another process that makes the tables was faster, which DynamoDB calls a malformed request.
        Err(_) if rows_expire(connection).await? => Ok(()),
        Err(error) => Err(Failure::of(error, place).into()),
    }
}

/// Whether the control table's rows end by themselves.
async fn rows_expire(connection: &Connection) -> Result<bool, DynamoDbError> {
    let table = connection.control();
    let place = connection.at("DescribeTimeToLive", table);
    let request = connection
        .client()
        .describe_time_to_live()
        .table_name(table);
    let answer = request.send().await.map_err(|e| Failure::of(e, place))?;
    let status = answer
        .time_to_live_description
        .and_then(|t| t.time_to_live_status);
    Ok(matches!(
        status,
        Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)
    ))
}

async fn back_up(connection: &Connection, table: &str, enabled: bool) -> Result<(), DynamoDbError> {
    let recovery =
        PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(enabled);
    let recovery = built(connection, table, recovery.build())?;
    let place = connection.at("UpdateContinuousBackups", table);
    let request = connection
        .client()
        .update_continuous_backups()
        .table_name(table);
    let request = request.point_in_time_recovery_specification(recovery);
    request.send().await.map_err(|e| Failure::of(e, place))?;
    Ok(())
}
