//! The same shop on DynamoDB and Kafka: makes what is missing there, and puts the adapters into a [`Backend`].
mod read_model;
mod row;

pub use read_model::DynamoDbReadModel;

use crate::backend::{Backend, PARTITIONS, Uses};
use foldstream::{InvalidSourceUri, Timestamp, ports::MessageBusError};
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, DynamoDbError, TableOptions, create_tables};
use foldstream_kafka::{KafkaConfig, KafkaConfigError, KafkaMessageBus, TopicSpec};
use std::{sync::Arc, time::Duration};

/// The read model's table, behind the prefix.
pub const READ_TABLE: &str = "shop-orders";

/// Where the servers are. What is not given is read from the environment, as the adapters do by `from_env()`.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    /// URL of DynamoDB.
    pub dynamodb: Option<String>,
    /// Brokers of Kafka.
    pub kafka: Option<String>,
}

/// Why the servers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// DynamoDB.
    #[error(transparent)]
    DynamoDb(#[from] DynamoDbError),
    /// The settings for Kafka.
    #[error(transparent)]
    KafkaConfig(#[from] KafkaConfigError),
    /// Kafka.
    #[error("the topic cannot be made")]
    Topic(#[from] MessageBusError),
    /// The source that the events carry.
    #[error(transparent)]
    Source(#[from] InvalidSourceUri),
}

impl ConnectError {
    /// Whether a server does not answer.
    pub const fn is_unavailable(&self) -> bool {
        match self {
            Self::DynamoDb(error) => error.is_transient(),
            Self::Topic(error) => error.is_transient(),
            Self::KafkaConfig(_) | Self::Source(_) => false,
        }
    }
}

impl Servers {
    fn dynamodb(&self) -> Result<DynamoDbConfig, DynamoDbError> {
        let config = DynamoDbConfig::from_env()?;
        Ok(match &self.dynamodb {
            Some(url) => config.with_endpoint(url),
            None => config,
        })
    }

    fn kafka(&self) -> Result<KafkaConfig, KafkaConfigError> {
        let config = KafkaConfig::from_env()?;
        Ok(match &self.kafka {
            Some(brokers) => config.with_brokers(brokers),
            None => config,
        })
    }

    /// Connects, and makes what is used and missing: the tables of the event store, the topic.
    ///
    /// # Errors
    /// [`ConnectError`] says what to do.
    pub async fn connect(&self, uses: Uses) -> Result<Backend, ConnectError> {
        let config = self.dynamodb()?;
        create_tables(&config, &TableOptions::default()).await?;
        let read_table = read_table(&config);
        let dynamodb = DynamoDb::connect(config).await?;
        let read_model = DynamoDbReadModel::new(dynamodb.client().clone(), read_table);
        let kafka = self.kafka()?;
        let topic: Arc<str> = kafka.events_topic().into();
        let group_prefix = kafka.group_id().unwrap_or("shop").into();
        let bus = KafkaMessageBus::new(kafka)?;
        if uses == Uses::Everything {
            bus.create_topic(&TopicSpec::new(topic.as_ref(), PARTITIONS))
                .await?;
        }
        Ok(Backend {
            store: Arc::new(dynamodb.event_store()),
            bus: Arc::new(bus),
            control: Arc::new(dynamodb.control_store()),
            read_model: Arc::new(read_model),
            topic,
            source: "urn:foldstream:shop".parse()?,
            group_prefix,
            cart_prefix: format!("c{:x}-", Timestamp::now().as_micros()),
            // The poller's index is eventually consistent.
            settling: Duration::from_secs(2),
        })
    }

    /// The read model alone: for the report, which reads nothing else.
    ///
    /// # Errors
    /// [`ConnectError`] says what to do.
    pub async fn read_model(&self) -> Result<DynamoDbReadModel, ConnectError> {
        let config = self.dynamodb()?;
        let table = read_table(&config);
        let dynamodb = DynamoDb::connect(config).await?;
        Ok(DynamoDbReadModel::new(dynamodb.client().clone(), table))
    }
}

fn read_table(config: &DynamoDbConfig) -> String {
    format!("{}{READ_TABLE}", config.prefix)
}
