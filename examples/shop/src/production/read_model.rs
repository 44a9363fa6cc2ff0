//! The read model in a DynamoDB table: durable, and shared by all processes that run the projector.
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

/// The time that a new table may take to become active.
const CREATION: Duration = Duration::from_secs(120);
/// DynamoDB's error code for a missing table.
const NOT_FOUND: &str = "ResourceNotFoundException";
/// The number of rows that are deleted concurrently.
const CONCURRENT_DELETES: usize = 16;

/// A read model with one item per order.
#[derive(Clone, Debug)]
pub struct DynamoDbReadModel {
    client: Client,
    table: String,
}

impl DynamoDbReadModel {
    /// Creates a read model on a table that exists or that [`create`](ReadModel::create) makes.
    pub const fn new(client: Client, table: String) -> Self {
        Self { client, table }
    }

    async fn status(&self) -> Result<Option<TableStatus>, ReadModelError> {
        let request = self.client.describe_table().table_name(&self.table);
        match request.send().await {
            Ok(described) => Ok(described.table.and_then(|table| table.table_status)),
            Err(error) if error.code() == Some(NOT_FOUND) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn refused(&self, todo: &str, error: impl Error + Send + Sync + 'static) -> ReadModelError {
        let todo = format!("table {}: {todo}", self.table);
        ReadModelError::Refused {
            todo,
            source: error.into(),
        }
    }

    /// Maps the SDK's errors to those of the read model. No other function does.
    fn failed<E>(&self, error: SdkError<E>) -> ReadModelError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        // Unknown errors may be transient: the runner retries them within bounds.
        let todo = match error.code() {
            Some(NOT_FOUND) => {
                "it is missing; `shop run` makes it, and a new --name fills it from the beginning"
            }
            Some("ValidationException") => "it is not the shop's; use another DYNAMODB_PREFIX",
            Some("AccessDeniedException") => "allow this account to use it",
            Some(
                "ExpiredTokenException"
                | "UnrecognizedClientException"
                | "InvalidSignatureException",
            ) => "renew the AWS credentials",
            _ => return ReadModelError::Unavailable(error.into()),
        };
        self.refused(todo, error)
    }

    async fn delete(&self, order: AttributeValue) -> Result<(), ReadModelError> {
        let request = self
            .client
            .delete_item()
            .table_name(&self.table)
            .key(ORDER, order);
        request.send().await.map_err(|error| self.failed(error))?;
        Ok(())
    }
}

#[async_trait]
impl ReadModel for DynamoDbReadModel {
    async fn exists(&self) -> Result<bool, ReadModelError> {
        Ok(self.status().await?.is_some())
    }

    async fn create(&self) -> Result<(), ReadModelError> {
        let built = |error| self.refused("its key cannot be described", error);
        let key = KeySchemaElement::builder()
            .attribute_name(ORDER)
            .key_type(KeyType::Hash);
        let text = AttributeDefinition::builder()
            .attribute_name(ORDER)
            .attribute_type(ScalarAttributeType::S);
        let request = self
            .client
            .create_table()
            .table_name(&self.table)
            .key_schema(key.build().map_err(built)?)
            .attribute_definitions(text.build().map_err(built)?)
            .billing_mode(BillingMode::PayPerRequest);
        match request.send().await {
            Ok(_) => {}
            // Another process has created the table since the check.
            Err(error) if error.code() == Some("ResourceInUseException") => {}
            Err(error) => return Err(self.failed(error)),
        }
        let started = Instant::now();
        while !matches!(
            self.status().await?,
            Some(TableStatus::Active | TableStatus::Updating)
        ) {
            if started.elapsed() > CREATION {
                let waited = format!("table {} is not active after {CREATION:?}", self.table);
                return Err(ReadModelError::Unavailable(waited.into()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

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
        let request = self
            .client
            .scan()
            .table_name(&self.table)
            .consistent_read(true);
        // The paginator follows LastEvaluatedKey, because a page before the end may be empty.
        let items = stream::unfold(
            request.into_paginator().items().send(),
            |mut items| async move { Some((items.next().await?, items)) },
        );
        items
            .map(|item| row::from_item(&item.map_err(|error| self.failed(error))?))
            .boxed()
    }

    async fn clear(&self) -> Result<(), ReadModelError> {
        let orders = self
            .rows()
            .map_ok(|(order, _)| AttributeValue::S(order.as_str().into()));
        let deletes = orders.map_ok(|order| self.delete(order));
        deletes
            .try_buffer_unordered(CONCURRENT_DELETES)
            .try_collect()
            .await
    }
}
