//! The same shop on DynamoDB and Kafka. Creates missing tables and topics, and puts the adapters
//! into a [`Backend`].
mod read_model;
mod row;

pub use read_model::DynamoDbReadModel;

use crate::backend::{Backend, PARTITIONS, Uses};
use foldstream::{InvalidSourceUri, Timestamp, ports::MessageBusError};
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, DynamoDbError, TableOptions, create_tables};
use foldstream_kafka::{KafkaConfig, KafkaConfigError, KafkaMessageBus, TopicSpec};
use std::{sync::Arc, time::Duration};

/// The read model's table, without the prefix.
pub const READ_TABLE: &str = "shop-orders";

/// The addresses of the servers. Missing ones are read from the environment, as the adapters'
/// `from_env()` does.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    /// The URL of DynamoDB.
    pub dynamodb: Option<String>,
    /// The addresses of the Kafka brokers.
    pub kafka: Option<String>,
}

/// The error of a connection to the servers.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// DynamoDB cannot be used.
    #[error(transparent)]
    DynamoDb(#[from] DynamoDbError),
    /// The settings for Kafka are not valid.
    #[error(transparent)]
    KafkaConfig(#[from] KafkaConfigError),
    /// Kafka cannot create the topic.
    #[error("the topic cannot be made")]
    Topic(#[from] MessageBusError),
    /// The source that the events carry is not valid.
    #[error(transparent)]
    Source(#[from] InvalidSourceUri),
}

impl ConnectError {
    /// Returns true if a server does not answer.
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

    /// Connects, and creates the tables and the topic that are used and missing.
    ///
    /// # Errors
    /// [`ConnectError`] if a server cannot be used; it says what to do.
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
            listing_delay: Duration::from_secs(2),
        })
    }

    /// Connects to the read model alone, for the report, which reads nothing else.
    ///
    /// # Errors
    /// [`ConnectError`] if DynamoDB cannot be used; it says what to do.
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
