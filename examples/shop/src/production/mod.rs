//! The same shop on DynamoDB and Kafka. Creates missing tables and topics, and puts the adapters
//! into a [`Backend`].

use crate::{
    backend::{Backend, PARTITIONS, Uses},
    cart::CartEvent,
    hot_products::{AddedRow, HotProducts, ItemEvent},
    read_model::{OrderEntry, OrderRow, ReadModelError, SalesModel},
};
use foldstream::{
    InvalidSourceUri, StreamId, Timestamp,
    ports::{BoxStream, MessageBusError, RefusedKind},
    runner::{EventContext, HandlerResult, ModelId, ResultExt},
};
use foldstream_dynamodb::{
    DynamoDb, DynamoDbConfig, DynamoDbControlStore, DynamoDbError, PublishMode, ReadModel,
    ReadModelError as Failure, ReadModelRow, TableOptions, create_tables, streams::StreamsReader,
};
use foldstream_kafka::{KafkaConfig, KafkaConfigError, KafkaMessageBus, TopicSpec};
use futures::StreamExt;
use std::{sync::Arc, time::Duration};

/// All that DynamoDB needs to know about the rows: `ReadModel<OrderRow>` is then the projector.
impl ReadModelRow for OrderRow {
    const NAME: &'static str = OrderRow::NAME;
    type Events = CartEvent;

    fn apply(row: &mut Option<Self>, event: &CartEvent, _: &EventContext) -> HandlerResult {
        OrderRow::apply(row, event).permanent()
    }
}

impl ReadModelRow for AddedRow {
    const NAME: &'static str = AddedRow::NAME;
    type Events = ItemEvent;

    fn apply(row: &mut Option<Self>, event: &ItemEvent, _: &EventContext) -> HandlerResult {
        AddedRow::apply(row, event).permanent()
    }
}

/// The rows of the read model in a table of DynamoDB.
#[derive(Clone, Debug)]
pub struct DynamoDbRows {
    dynamodb: DynamoDb,
    reader: ReadModel<OrderRow>,
}

impl DynamoDbRows {
    /// Creates the rows over a connection.
    pub fn new(dynamodb: DynamoDb) -> Self {
        let reader = dynamodb.read_model();
        Self { dynamodb, reader }
    }

    /// Returns a projector of these rows with a buffer of its own.
    pub fn projector(&self) -> ReadModel<OrderRow> {
        self.dynamodb.read_model()
    }

    /// Returns the control store beside the rows.
    pub fn control(&self) -> DynamoDbControlStore {
        self.dynamodb.control_store()
    }

    pub(crate) fn all(&self, model: &ModelId) -> BoxStream<'_, Result<OrderEntry, ReadModelError>> {
        self.reader.all(model).map(entry).boxed()
    }
}

/// The key of a row is the stream of its order.
fn entry(found: Result<(String, OrderRow), Failure>) -> Result<OrderEntry, ReadModelError> {
    match found {
        Ok((key, row)) => match StreamId::parse(&key) {
            Ok(order) => Ok((order, row)),
            Err(error) => Err(ReadModelError::Failed(error.into())),
        },
        Err(Failure::NoTable { model, .. }) => Err(ReadModelError::Missing(model)),
        Err(error) => Err(ReadModelError::Failed(error.into())),
    }
}

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

    /// Connects to the tables, which are created if they are missing.
    async fn tables(&self) -> Result<DynamoDb, DynamoDbError> {
        let mut config = self.dynamodb()?;
        let is_new = match DynamoDb::connect(config.clone()).await {
            Err(DynamoDbError::NoFormat { .. }) => true,
            Err(DynamoDbError::Refused { kind, .. }) => kind == RefusedKind::MissingTable,
            _ => false,
        };
        if is_new && config.publish_mode.is_none() {
            // `shop publish` polls, which needs markers, and `shop stream` reads the change stream.
            // Tables that exist keep their mode.
            config = config.with_publish_mode(PublishMode::Both);
        }
        create_tables(&config, &TableOptions::default()).await?;
        DynamoDb::connect(config).await
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
        Ok(self.open(uses).await?.1)
    }

    /// Connects as [`connect`](Self::connect) does. Returns the reader of the change stream too,
    /// which publishes what it reads.
    ///
    /// # Errors
    /// [`ConnectError`] if a server cannot be used; it says what to do.
    pub async fn reader(&self) -> Result<(StreamsReader, Backend), ConnectError> {
        let (dynamodb, backend) = self.open(Uses::Everything).await?;
        let reader = StreamsReader::new(&dynamodb, backend.publisher()).await?;
        Ok((reader, backend))
    }

    async fn open(&self, uses: Uses) -> Result<(DynamoDb, Backend), ConnectError> {
        let dynamodb = self.tables().await?;
        let kafka = self.kafka()?;
        let topic: Arc<str> = kafka.events_topic().into();
        let group_prefix = kafka.group_id().unwrap_or("shop").into();
        let bus = KafkaMessageBus::new(kafka)?;
        if uses == Uses::Everything {
            bus.create_topic(&TopicSpec::new(topic.as_ref(), PARTITIONS))
                .await?;
        }
        let backend = Backend {
            store: Arc::new(dynamodb.event_store()),
            bus: Arc::new(bus),
            control: Arc::new(dynamodb.control_store()),
            hot_products: HotProducts::DynamoDb(dynamodb.read_model()),
            read_model: SalesModel::DynamoDb(DynamoDbRows::new(dynamodb.clone())),
            topic,
            source: "urn:foldstream:shop".parse()?,
            group_prefix,
            cart_prefix: format!("c{:x}-", Timestamp::now().as_micros()),
            // The poller's index is eventually consistent.
            listing_delay: Duration::from_secs(2),
        };
        Ok((dynamodb, backend))
    }

    /// Connects to DynamoDB alone, for the report, which reads nothing else.
    ///
    /// # Errors
    /// [`ConnectError`] if DynamoDB cannot be used; it says what to do.
    pub async fn rows(&self) -> Result<DynamoDbRows, ConnectError> {
        Ok(DynamoDbRows::new(
            DynamoDb::connect(self.dynamodb()?).await?,
        ))
    }
}
