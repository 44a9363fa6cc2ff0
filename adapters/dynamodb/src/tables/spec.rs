//! The definitions of the tables: creating tables, and checking existing ones.
use super::{BillingMode, Encryption, TableClass, TableOptions};
use crate::{DynamoDbError, client::Connection, error::Failure};
use aws_sdk_dynamodb::{
    error::BuildError,
    operation::create_table::builders::CreateTableFluentBuilder,
    types::{
        self, AttributeDefinition, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection,
        ProjectionType, ProvisionedThroughput, ScalarAttributeType, SseSpecification, SseType,
        StreamSpecification, StreamViewType, TableDescription,
    },
};
use std::time::Duration;
use tokio::time::Instant;

/// The name and type of a key attribute.
pub(super) type Key = (&'static str, ScalarAttributeType);
/// The name and key of an index.
pub(super) type Index = (&'static str, [Key; 2]);
/// The index of the markers of commits.
pub(super) const UNPUBLISHED: Index = ("unpublished", [string("mk"), string("pk")]);

const fn string(name: &'static str) -> Key {
    (name, ScalarAttributeType::S)
}

/// The definition that a table must have.
pub(super) struct Spec<'a> {
    table: &'a str,
    key: Vec<Key>,
    /// The name and key of each index.
    indexes: Vec<Index>,
    /// The attributes that the indexes hold.
    projection: ProjectionType,
    has_stream: bool,
    takes_class: bool,
}

pub(super) fn events(connection: &Connection) -> Spec<'_> {
    let mut indexes = vec![("streams", [string("ls"), string("pk")])];
    if connection.config().marks_commits() {
        indexes.push(UNPUBLISHED);
    }
    Spec {
        table: connection.events(),
        key: vec![string("pk"), ("sk", ScalarAttributeType::N)],
        indexes,
        projection: ProjectionType::KeysOnly,
        has_stream: true,
        takes_class: true,
    }
}
pub(super) fn snapshots(connection: &Connection) -> Spec<'_> {
    Spec {
        table: connection.snapshots(),
        key: vec![string("pk")],
        indexes: Vec::new(),
        projection: ProjectionType::KeysOnly,
        has_stream: false,
        takes_class: true,
    }
}
pub(super) fn control(connection: &Connection) -> Spec<'_> {
    Spec {
        table: connection.control(),
        key: vec![string("pk"), string("sk")],
        indexes: Vec::new(),
        projection: ProjectionType::KeysOnly,
        has_stream: false,
        takes_class: false,
    }
}

/// The table of read models. Its index holds whole rows, so that a list is one query.
pub(super) fn read_models(table: &str) -> Spec<'_> {
    Spec {
        table,
        key: vec![string("pk"), string("sk")],
        indexes: vec![("rows", [string("ip"), string("is")])],
        projection: ProjectionType::All,
        has_stream: false,
        takes_class: true,
    }
}

/// Converts the error of an SDK builder. A builder fails only if a required field is missing, and
/// every field is set here.
pub(super) fn built<T>(
    connection: &Connection,
    table: &str,
    made: Result<T, BuildError>,
) -> Result<T, Failure> {
    made.map_err(|e| Failure::incompatible(connection.at("CreateTable", table), e.to_string()))
}

impl Spec<'_> {
    pub(super) async fn request(
        &self,
        connection: &Connection,
        options: &TableOptions,
    ) -> Result<(), DynamoDbError> {
        let request = self.define(connection, options)?;
        let target = connection.at("CreateTable", self.table);
        let sent = connection.send_again(target, 0, || request.clone().send());
        match sent.await {
            Ok(_) => Ok(()),
            // The table exists, or another process is creating it.
            Err(e)
                if e.as_service_error()
                    .is_some_and(|e| e.is_resource_in_use_exception()) =>
            {
                Ok(())
            }
            Err(e) => Err(Failure::of(e, target).into()),
        }
    }

    fn define(
        &self,
        connection: &Connection,
        options: &TableOptions,
    ) -> Result<CreateTableFluentBuilder, Failure> {
        let mut request = connection.once().create_table().table_name(self.table);
        let (mode, throughput) = billing(connection, self.table, options.billing_mode)?;
        request = request
            .billing_mode(mode)
            .set_provisioned_throughput(throughput.clone())
            .set_key_schema(Some(schema(connection, self.table, &self.key)?))
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
            let projection = Projection::builder().projection_type(self.projection.clone());
            let index = GlobalSecondaryIndex::builder()
                .index_name(*name)
                .set_key_schema(Some(schema(connection, self.table, key)?))
                .projection(projection.build())
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

    pub(super) async fn wait_until_active(
        &self,
        connection: &Connection,
        wait: Duration,
        remedy: &'static str,
    ) -> Result<(), DynamoDbError> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(20);
        loop {
            let status = match describe(connection, self.table).await {
                Ok(described) => match unready(&described) {
                    None => return self.check(&described),
                    Some(status) => status,
                },
                // `DescribeTable` is eventually consistent: a table that was just created may not
                // be visible yet.
                Err(failure) if failure.is_missing_table() => "CREATING".into(),
                Err(failure) => return Err(failure.into()),
            };
            if started.elapsed() + pause > wait {
                return Err(DynamoDbError::NotActive {
                    table: self.table.into(),
                    status,
                    waited: started.elapsed(),
                    remedy,
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Checks that a table, which other tools may have created, is what the stores need.
    pub(super) fn check(&self, found: &TableDescription) -> Result<(), DynamoDbError> {
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
        let defined = found.attribute_definitions();
        let other_type = |key: &[Key]| {
            let is_defined = |(name, kind): &Key| {
                defined
                    .iter()
                    .any(|a| a.attribute_name == *name && a.attribute_type == *kind)
            };
            key.iter().find(|key| !is_defined(key)).cloned()
        };
        if let Some((name, kind)) = other_type(&self.key) {
            return mismatch(format!("its key attribute {name} is not of type {kind}"));
        }
        for (index, wanted) in &self.indexes {
            let indexes = found.global_secondary_indexes();
            let there = indexes.iter().find(|i| i.index_name() == Some(index));
            if there.map(|i| key(i.key_schema())) != Some(names(wanted)) {
                return mismatch(format!(
                    "it has no index {index} on {:?}: add it ({}){}",
                    names(wanted),
                    self.projection,
                    if *index == UNPUBLISHED.0 {
                        ", or call set_publish_mode, which adds it"
                    } else {
                        ""
                    }
                ));
            }
            if let Some((name, kind)) = other_type(wanted) {
                return mismatch(format!(
                    "the key attribute {name} of its index {index} is not of type {kind}, so no commit with {name} can be \
                     written: delete the index and add it with {name} of type {kind}"
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

pub(super) fn schema(
    connection: &Connection,
    table: &str,
    key: &[Key],
) -> Result<Vec<KeySchemaElement>, Failure> {
    let types = [KeyType::Hash, KeyType::Range];
    let elements = key.iter().zip(types).map(|((name, _), kind)| {
        let element = KeySchemaElement::builder()
            .attribute_name(*name)
            .key_type(kind);
        built(connection, table, element.build())
    });
    elements.collect()
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
    let target = connection.at("DescribeTable", table);
    let request = connection.once().describe_table().table_name(table);
    let sent = connection.send(target, || request.clone().send());
    let answer = sent.await.map_err(|e| Failure::of(e, target))?;
    answer
        .table
        .ok_or_else(|| Failure::incompatible(target, "the answer has no table".into()))
}

/// Checks the keys, indexes and stream settings of a description of the events table.
pub(crate) fn check_events(
    connection: &Connection,
    found: &TableDescription,
) -> Result<(), DynamoDbError> {
    events(connection).check(found)
}

/// Checks the key of a description of the control table.
pub(crate) fn check_control(
    connection: &Connection,
    found: &TableDescription,
) -> Result<(), DynamoDbError> {
    control(connection).check(found)
}

/// Returns the status of the table or of the first index that is not active yet.
fn unready(table: &TableDescription) -> Option<String> {
    use types::{IndexStatus, TableStatus};
    match table.table_status() {
        Some(TableStatus::Active) => {}
        // An update is under way, and the table can be used.
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
