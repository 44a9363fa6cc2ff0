//! The streams API by the AWS SDK.
use super::service::{
    ChangeStream, RecordPage, SequenceNumber, ShardDescription, ShardPage, ShardStart,
    StreamRecord, StreamService, StreamServiceError,
};
use crate::{
    DynamoDbError,
    attributes::Attributes,
    client::{self, Connection},
    error::{self, Failure, Target},
    stream_record, tables,
};
use async_trait::async_trait;
use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    types::AttributeValue as TableValue,
};
use aws_sdk_dynamodbstreams::{
    Client,
    types::{AttributeValue, Record, ShardIteratorType},
};
use foldstream::{Timestamp, chain, resilience::FailureClass};
use std::{collections::HashMap, error::Error};

/// The most records of a page (a limit of DynamoDB).
const MAX_RECORDS: i32 = 1000;

#[derive(Clone, Debug)]
pub(super) struct SdkStreamService {
    client: Client,
    connection: Connection,
}

impl SdkStreamService {
    pub(super) async fn open(connection: &Connection) -> Result<Self, DynamoDbError> {
        let client = client::streams_client(connection.config()).await?;
        Ok(Self::with_client(&client, connection))
    }

    pub(super) fn with_client(client: &Client, connection: &Connection) -> Self {
        Self {
            client: client::once_streams(client, connection.config()),
            connection: connection.clone(),
        }
    }

    fn at(&self, operation: &'static str) -> Target<'_> {
        self.connection.at(operation, self.connection.events())
    }
}

#[async_trait]
impl StreamService for SdkStreamService {
    async fn stream(&self) -> Result<Option<ChangeStream>, StreamServiceError> {
        let table = tables::describe(&self.connection, self.connection.events()).await;
        let table = table.map_err(|failure| match failure.failure_class() {
            FailureClass::Permanent => StreamServiceError::Refused {
                source: Box::new(DynamoDbError::from(failure)),
            },
            _ => StreamServiceError::Unavailable {
                source: Box::new(DynamoDbError::from(failure)),
            },
        })?;
        let settings = table.stream_specification();
        if !settings.is_some_and(|settings| settings.stream_enabled) {
            return Ok(None);
        }
        let (Some(arn), Some(label)) = (table.latest_stream_arn, table.latest_stream_label) else {
            return Ok(None);
        };
        Ok(Some(ChangeStream { arn, label }))
    }

    async fn shards(
        &self,
        stream: &ChangeStream,
        after: Option<&str>,
    ) -> Result<ShardPage, StreamServiceError> {
        let request = self.client.describe_stream().stream_arn(&stream.arn);
        let request = request.set_exclusive_start_shard_id(after.map(Into::into));
        let answer = request
            .send()
            .await
            .map_err(|e| failure(e, self.at("DescribeStream")))?;
        let Some(description) = answer.stream_description else {
            return Ok(ShardPage::default());
        };
        let shards = description.shards.unwrap_or_default().into_iter();
        let shards = shards.filter_map(|shard| {
            Some(ShardDescription {
                id: shard.shard_id?,
                parent: shard.parent_shard_id,
            })
        });
        Ok(ShardPage {
            shards: shards.collect(),
            next: description.last_evaluated_shard_id,
        })
    }

    async fn iterator(
        &self,
        stream: &ChangeStream,
        shard: &str,
        start: &ShardStart,
    ) -> Result<String, StreamServiceError> {
        let request = self
            .client
            .get_shard_iterator()
            .stream_arn(&stream.arn)
            .shard_id(shard);
        let request = match start {
            ShardStart::Horizon => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            ShardStart::After(sequence) => request
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .sequence_number(sequence.as_str()),
        };
        let target = self.at("GetShardIterator");
        let answer = request.send().await.map_err(|e| failure(e, target))?;
        answer
            .shard_iterator
            .ok_or(StreamServiceError::Unavailable {
                source: "the answer has no iterator".into(),
            })
    }

    async fn records(&self, iterator: &str) -> Result<RecordPage, StreamServiceError> {
        let request = self
            .client
            .get_records()
            .shard_iterator(iterator)
            .limit(MAX_RECORDS);
        let answer = request
            .send()
            .await
            .map_err(|e| failure(e, self.at("GetRecords")))?;
        let records = answer.records.unwrap_or_default().into_iter();
        Ok(RecordPage {
            records: records.filter_map(read).collect(),
            next: answer.next_shard_iterator,
        })
    }
}

/// Reads a record. One that is no concern of a publisher still has its place in the shard.
fn read(record: Record) -> Option<StreamRecord> {
    let name = record
        .event_name
        .as_ref()
        .map_or("", |name| name.as_str())
        .to_owned();
    let content = record.dynamodb?;
    let sequence = SequenceNumber::new(content.sequence_number?);
    let created_at = content.approximate_creation_date_time;
    let created_at = created_at.map(|at| {
        Timestamp::from_micros(at.secs() * 1_000_000 + i64::from(at.subsec_nanos() / 1000))
    });
    let keys = convert(content.keys.unwrap_or_default());
    let notice = stream_record::notice(&name, keys, content.new_image.map(convert));
    let notice = notice.unwrap_or_else(|error| {
        tracing::warn!(?sequence, error = chain(&error), "a record was passed over");
        None
    });
    Some(StreamRecord {
        sequence,
        created_at,
        notice,
    })
}

fn convert(item: HashMap<String, AttributeValue>) -> Attributes {
    item.into_iter()
        .map(|(name, value)| (name, value_of(value)))
        .collect()
}

/// Converts a value to the same value in the types of the table's client.
fn value_of(value: AttributeValue) -> TableValue {
    match value {
        AttributeValue::B(bytes) => TableValue::B(bytes),
        AttributeValue::Bool(value) => TableValue::Bool(value),
        AttributeValue::Bs(all) => TableValue::Bs(all),
        AttributeValue::L(all) => TableValue::L(all.into_iter().map(value_of).collect()),
        AttributeValue::M(map) => TableValue::M(convert(map)),
        AttributeValue::N(number) => TableValue::N(number),
        AttributeValue::Ns(all) => TableValue::Ns(all),
        AttributeValue::S(text) => TableValue::S(text),
        AttributeValue::Ss(all) => TableValue::Ss(all),
        // No commit has such a value, so that an image with one is not decoded.
        _ => TableValue::Null(true),
    }
}

fn failure<E>(error: SdkError<E, HttpResponse>, target: Target<'_>) -> StreamServiceError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match error.code() {
        Some("ExpiredIteratorException") => return StreamServiceError::ExpiredIterator,
        Some("TrimmedDataAccessException") => return StreamServiceError::Trimmed,
        Some("ResourceNotFoundException") => return StreamServiceError::Gone,
        _ => {}
    }
    let class = error::failure_class(&error, target);
    let source = Box::new(DynamoDbError::from(Failure::of(error, target)));
    match class {
        FailureClass::Throttled { retry_after } => StreamServiceError::Throttled {
            retry_after: Some(retry_after),
            source,
        },
        FailureClass::Transient => StreamServiceError::Unavailable { source },
        _ => StreamServiceError::Refused { source },
    }
}
