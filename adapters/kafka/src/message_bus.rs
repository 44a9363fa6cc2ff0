//! The `MessageBus` port on Kafka: [`KafkaMessageBus`].
use crate::{
    client::{Reader, asker_of, blocking, committed_places, list, topics_of},
    config::{KafkaConfig, KafkaConfigError},
    consumer,
    error::Errors,
    producer::Producer,
    topic_admin::{Admin, TopicOutcome, TopicSpec},
    worked_before::{Access, Uses, WorkedBefore},
};
use async_trait::async_trait;
use foldstream::{
    adapter::{check_group, check_subscription, check_topic},
    ports::{
        Consumer, Message, MessageBus, MessageBusError, Offset, PartitionId, PartitionOffsets,
        RunOutcome, Subscription, TopicDescription,
    },
};
use rdkafka::{Offset as Place, consumer::Consumer as _};
use std::sync::{Arc, Mutex, PoisonError};

/// Apache Kafka as a [`MessageBus`]. Clones share the connections.
///
/// The first call connects, not the constructor. Calls need a Tokio runtime.
///
/// # Example
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use foldstream::{Timestamp, ports::{Message, MessageBus}};
/// use foldstream_kafka::{KafkaConfig, KafkaMessageBus};
///
/// let bus = KafkaMessageBus::new(KafkaConfig::from_env()?)?;
/// let message = Message::new("GlobalEvents", Timestamp::now())
///     .with_key("cart#1")
///     .with_value("{}");
/// let (partition, offset) = bus.publish(&message).await?;
/// println!("{partition} at {offset}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct KafkaMessageBus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: KafkaConfig,
    errors: Arc<Errors>,
    producer: Producer,
    reader: Mutex<Option<Arc<Reader>>>,
    admin: Admin,
}

impl KafkaMessageBus {
    /// Creates a bus from a checked configuration. Does not connect yet.
    ///
    /// # Errors
    /// [`KafkaConfigError`] if a field or a property is not accepted. The error names it.
    pub fn new(config: KafkaConfig) -> Result<Self, KafkaConfigError> {
        config.check()?;
        let worked_before = Arc::new(WorkedBefore::new(config.refusal_patience));
        let errors = Arc::new(Errors::new(config.brokers(), worked_before));
        let admin = Admin {
            config: config.clone(),
            errors: Arc::clone(&errors),
        };
        let producer = Producer::new(config.clone(), Arc::clone(&errors), admin.clone());
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                errors,
                producer,
                reader: Mutex::new(None),
                admin,
            }),
        })
    }

    /// Returns the configuration of this bus.
    pub fn config(&self) -> &KafkaConfig {
        &self.shared.config
    }

    /// Returns the number of records that are queued or in flight: those of calls that run now, and
    /// those of calls that were dropped. The client counts a record for a moment after its call has
    /// returned.
    pub fn unacknowledged(&self) -> usize {
        self.shared.producer.unacknowledged()
    }

    /// Gives up all records that are queued or in flight, and closes the connections of the
    /// producer and of the client for requests. Returns the number of records, once nothing is in
    /// flight any more. The next call connects again.
    ///
    /// A process that is about to be frozen calls this method if records of dropped calls are
    /// still [unacknowledged](Self::unacknowledged), and a process that was frozen calls it since
    /// its connections are likely to be dead. A record that was given up may be stored or not. A
    /// call that runs meanwhile continues on the next producer.
    pub async fn reconnect(&self) -> usize {
        drop(self.shared.take_reader());
        self.shared.producer.reset().await
    }

    /// Creates a topic and waits until it can be used. An existing topic of that name is not
    /// changed.
    ///
    /// # Errors
    /// [`MessageBusError`]:
    /// - `Refused(Validation)` if the brokers do not accept the settings,
    /// - `Refused` with another kind if this principal may not create topics,
    /// - `Unavailable` if the brokers cannot answer now.
    pub async fn create_topic(&self, topic: &TopicSpec) -> Result<TopicOutcome, MessageBusError> {
        let reader = self.shared.reader()?;
        self.shared.admin.create_topic(topic, reader).await
    }

    /// Creates topics as [`create_topic`](Self::create_topic) does, in this order, up to the first
    /// error.
    ///
    /// # Errors
    /// [`MessageBusError`] of the first topic that cannot be created. The topics before it exist.
    pub async fn create_topics(
        &self,
        topics: &[TopicSpec],
    ) -> Result<Vec<TopicOutcome>, MessageBusError> {
        let mut outcomes = Vec::with_capacity(topics.len());
        for topic in topics {
            outcomes.push(self.create_topic(topic).await?);
        }
        Ok(outcomes)
    }
}

impl Shared {
    fn reader(&self) -> Result<Arc<Reader>, MessageBusError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = reader.as_ref() {
            return Ok(Arc::clone(reader));
        }
        let made = Arc::new(Reader::new(&self.config, &self.errors)?);
        *reader = Some(Arc::clone(&made));
        Ok(made)
    }

    fn take_reader(&self) -> Option<Arc<Reader>> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.take()
    }

    /// Returns the committed offsets of a group. Blocks.
    fn committed(
        &self,
        group: &str,
        partitions: &[PartitionId],
    ) -> Result<Vec<Option<Offset>>, MessageBusError> {
        let topics = topics_of(partitions);
        let uses = Uses::topics(Access::Describe, &topics).with_group(group);
        let failed = |error| {
            let doing = format_args!("asking where the group {group} is");
            self.errors.failed(doing, uses, error)
        };
        let client = asker_of(&self.config, group, &self.errors).map_err(failed)?;
        let answer = list(partitions, |_| Place::Invalid)
            .and_then(|asked| client.committed_offsets(asked, self.config.request_timeout))
            .and_then(|answer| committed_places(&answer, partitions))
            .map_err(failed)?;
        self.errors.succeeded(uses);
        Ok(answer)
    }
}

fn partition_ids(topic: &Arc<str>, count: u32) -> Vec<PartitionId> {
    (0..count)
        .map(|partition| PartitionId::new(Arc::clone(topic), partition))
        .collect()
}

#[async_trait]
impl MessageBus for KafkaMessageBus {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        self.shared.producer.publish(message).await
    }

    async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        self.shared.producer.publish_run(run).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        // librdkafka treats an empty instance id as none, and never joins with an invalid one,
        // without an error.
        check_subscription(&subscription)?;
        let reader = self.shared.reader()?;
        let shared = Arc::clone(&self.shared);
        let consumer = blocking(move || {
            for topic in &subscription.topics {
                reader.partitions(topic)?;
            }
            consumer::join(&shared.config, &shared.errors, reader, subscription)
        });
        Ok(Arc::new(consumer.await?))
    }

    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        check_topic(topic)?;
        let (reader, topic) = (self.shared.reader()?, Arc::from(topic));
        blocking(move || {
            let ids = partition_ids(&topic, reader.partitions(&topic)?);
            let ranges = reader.ranges(&ids)?;
            let offsets = ids.into_iter().zip(ranges);
            Ok(offsets
                .map(|(id, range)| PartitionOffsets::new(id, range.begin, range.end))
                .collect())
        })
        .await
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        check_group(group)?;
        check_topic(topic)?;
        let (shared, reader) = (Arc::clone(&self.shared), self.shared.reader()?);
        let (group, topic) = (group.to_owned(), Arc::from(topic));
        blocking(move || {
            let ids = partition_ids(&topic, reader.partitions(&topic)?);
            let places = shared.committed(&group, &ids)?;
            Ok(ids.into_iter().zip(places).collect())
        })
        .await
    }

    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        check_topic(topic)?;
        let reader = self.shared.reader()?;
        self.shared.admin.describe_topic(topic, reader).await
    }

    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        let reader = self.shared.reader()?;
        self.shared.admin.delete_group(group, reader).await
    }
}
