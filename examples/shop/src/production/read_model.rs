//! The read model in a DynamoDB table: durable, and shared by every process that runs the projector.
use super::row::{self, ORDER, VERSION};
use crate::read_model::{OrderEntry, OrderRow, ReadModel, ReadModelError};
use async_trait::async_trait;
use aws_sdk_dynamodb::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::{
        AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
        ScalarAttributeType, TableStatus,
    },
};
use foldstream::{StreamId, ports::BoxStream};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    error::Error,
    time::{Duration, Instant},
};

/// How long a new table may take to become active.
const CREATION: Duration = Duration::from_secs(120);
/// Rows that are deleted at the same time.
const CONCURRENT_DELETES: usize = 16;

/// One item for each order.
#[derive(Clone, Debug)]
pub struct DynamoDbReadModel {
    client: Client,
    table: String,
}

impl DynamoDbReadModel {
    /// Uses a table that exists, or that [`create_table`](Self::create_table) makes.
    pub const fn new(client: Client, table: String) -> Self {
        Self { client, table }
    }

    /// Makes the table if it is missing, and waits until it can be used. Whether it was missing.
    ///
    /// # Errors
    /// [`ReadModelError`].
    pub async fn create_table(&self) -> Result<bool, ReadModelError> {
        let key = KeySchemaElement::builder().attribute_name(ORDER).key_type(KeyType::Hash).build();
        let attribute = AttributeDefinition::builder()
            .attribute_name(ORDER)
            .attribute_type(ScalarAttributeType::S)
            .build();
        let request = self
            .client
            .create_table()
            .table_name(&self.table)
            .key_schema(key.map_err(|e| self.refused("this is a bug", e))?)
            .attribute_definitions(attribute.map_err(|e| self.refused("this is a bug", e))?)
            .billing_mode(BillingMode::PayPerRequest);
        let is_new = match request.send().await {
            Ok(_) => true,
            Err(error) if error.code() == Some("ResourceInUseException") => false,
            Err(error) => return Err(self.failed(error)),
        };
        self.wait_until_active().await?;
        Ok(is_new)
    }

    async fn wait_until_active(&self) -> Result<(), ReadModelError> {
        let started = Instant::now();
        loop {
            let described = self.client.describe_table().table_name(&self.table).send().await;
            let table = match described {
                Ok(described) => described.table,
                // Descriptions are eventually consistent: a new table may not show yet.
                Err(error) if error.code() == Some("ResourceNotFoundException") => None,
                Err(error) => return Err(self.failed(error)),
            };
            match table.and_then(|table| table.table_status) {
                Some(TableStatus::Active | TableStatus::Updating) => return Ok(()),
                _ if started.elapsed() > CREATION => {
                    let waited = format!("table {} is not active after {CREATION:?}", self.table);
                    return Err(ReadModelError::Unavailable(waited.into()));
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn refused(&self, todo: &str, error: impl Error + Send + Sync + 'static) -> ReadModelError {
        let todo = format!("table {}: {todo}", self.table);
        ReadModelError::Refused { todo, source: error.into() }
    }

    /// The one place where the SDK's errors become the read model's.
    fn failed<E>(&self, error: SdkError<E>) -> ReadModelError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        // What is unknown may pass: the runner repeats it within bounds.
        let todo = match error.code() {
            Some("ResourceNotFoundException") => {
                "it is missing; `shop run` makes it, and a new --name fills it from the beginning"
            }
            Some("ValidationException") => "it is not the shop's; use another DYNAMODB_PREFIX",
            Some("AccessDeniedException") => "allow this account to use it",
            Some("ExpiredTokenException" | "UnrecognizedClientException" | "InvalidSignatureException") => {
                "renew the AWS credentials"
            }
            _ => return ReadModelError::Unavailable(error.into()),
        };
        self.refused(todo, error)
    }

    async fn delete(&self, order: AttributeValue) -> Result<(), ReadModelError> {
        let request = self.client.delete_item().table_name(&self.table).key(ORDER, order);
        request.send().await.map_err(|error| self.failed(error))?;
        Ok(())
    }
}

#[async_trait]
impl ReadModel for DynamoDbReadModel {
    async fn row(&self, order: &StreamId) -> Result<Option<OrderRow>, ReadModelError> {
        let request = self
            .client
            .get_item()
            .table_name(&self.table)
            .key(ORDER, AttributeValue::S(order.as_str().into()))
            .consistent_read(true);
        let answer = request.send().await.map_err(|error| self.failed(error))?;
        let entry = answer.item.as_ref().map(row::from_item).transpose()?;
        Ok(entry.map(|(_, row)| row))
    }

    async fn put_if_newer(&self, order: &StreamId, row: &OrderRow) -> Result<(), ReadModelError> {
        let request = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(row::to_item(order, row)))
            .condition_expression("attribute_not_exists(#v) OR #v < :v")
            .expression_attribute_names("#v", VERSION)
            .expression_attribute_values(":v", AttributeValue::N(row.version.to_string()));
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn rows(&self) -> BoxStream<'_, Result<OrderEntry, ReadModelError>> {
        let request = self.client.scan().table_name(&self.table).consistent_read(true);
        // The paginator follows LastEvaluatedKey: a page may be empty before the end.
        let items = stream::unfold(request.into_paginator().items().send(), |mut items| async move {
            Some((items.next().await?, items))
        });
        items
            .map(|item| row::from_item(&item.map_err(|error| self.failed(error))?))
            .boxed()
    }

    async fn clear(&self) -> Result<(), ReadModelError> {
        let orders = self.rows().map_ok(|(order, _)| AttributeValue::S(order.as_str().into()));
        let deletes = orders.map_ok(|order| self.delete(order));
        deletes.try_buffer_unordered(CONCURRENT_DELETES).try_collect().await
    }
}
