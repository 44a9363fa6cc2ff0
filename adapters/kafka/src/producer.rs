//! The producer: idempotent publishes, acknowledged one by one, to the partition of the key.
//!
//! # Why is the partition computed here?
//! librdkafka's `murmur2` partitioner returns the same number, but by its own view of the topic. It
//! waits for topics that it does not know, and asks the brokers to create them. Here one metadata
//! answer says if the topic exists and how many partitions it has, and
//! [`foldstream::adapter::kafka_partition`] decides.
//!
//! The number of partitions is requested again after a minute. The producer therefore notices that
//! a topic has grown within that minute, and the new partitions remain empty until then.
use crate::{
    client::{DropElsewhere, Listening, blocking, kafka_number, partition_count, until_shown},
    config::KafkaConfig,
    error::{Class, Errors, class, code, invalid},
    worked_before::{Access, Uses},
};
use foldstream::{
    Backoff, RetryPolicy,
    adapter::{check_topic, kafka_partition},
    ports::{Message, MessageBusError, Offset, PartitionId, RefusedKind},
    resilience::Attempts,
};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The time after which the partitions of a topic are counted again.
const COUNT_AGE: Duration = Duration::from_secs(60);
/// The pauses before a record is offered again to a client whose queue is full.
const FULL_QUEUE_PAUSES: Backoff =
    Backoff::new(Duration::from_millis(10), Duration::from_millis(20));

type Client = FutureProducer<Listening>;

/// A producer client, which is replaced after a fatal error.
#[derive(Debug)]
pub(crate) struct Producer {
    config: KafkaConfig,
    errors: Arc<Errors>,
    client: Mutex<Option<Arc<DropElsewhere<Client>>>>,
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
}

/// The partition count of one topic, and its age.
#[derive(Debug, Default)]
struct Topic {
    counted: Mutex<Option<(u32, Instant)>>,
    /// Held by the caller that counts while others wait for its answer. It guards no data.
    asking: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Topic {
    fn partitions(&self, age: Duration) -> Option<u32> {
        let (count, at) = (*lock(&self.counted))?;
        (at.elapsed() < age).then_some(count)
    }
}

impl Producer {
    pub(crate) fn new(config: KafkaConfig, errors: Arc<Errors>) -> Self {
        Self {
            config,
            errors,
            client: Mutex::new(None),
            topics: Mutex::new(HashMap::new()),
        }
    }

    /// Publishes one message, and returns its partition and offset once it is durable.
    pub(crate) async fn publish(
        &self,
        message: &Message,
    ) -> Result<(PartitionId, Offset), MessageBusError> {
        let record = Record::new(message)?;
        let partition = self.partition_of(message).await?;
        let client = self.client()?;
        match self.send(&client, record.into_partition(partition)).await {
            Ok(offset) => {
                self.errors
                    .succeeded(Uses::topic(Access::Write, &message.topic));
                let id = PartitionId::new(Arc::clone(&message.topic), partition);
                Ok((id, offset))
            }
            Err(error) => {
                self.mend(&client, &message.topic, &error);
                let max_bytes = self.config.max_message_bytes;
                Err(self.errors.publish_failed(message, max_bytes, error))
            }
        }
    }

    async fn send(
        &self,
        client: &DropElsewhere<Client>,
        mut record: FutureRecord<'_, [u8], [u8]>,
    ) -> Result<Offset, KafkaError> {
        let client = client.get()?;
        let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
        let policy = RetryPolicy::new(FULL_QUEUE_PAUSES, self.config.publish_timeout);
        let mut attempts = Attempts::new(policy);
        let acknowledged = loop {
            match client.send_result(record) {
                Ok(acknowledged) => break acknowledged,
                Err((error, back)) => {
                    // The client empties its queue by itself.
                    if !attempts.wait((error == full).into()).await {
                        return Err(error);
                    }
                    record = back;
                }
            }
        };
        // If the caller drops this future, the client still has the record. It is sent or not, as
        // after a crash.
        match acknowledged.await {
            Ok(Ok(delivery)) => u64::try_from(delivery.offset)
                .map(Offset::new)
                // An acknowledgement without an offset is not an acknowledgement, since the record
                // may be lost. The leader of a partition accepts any sequence number from a
                // producer that it does not know. If the leader refuses the first request of a new
                // producer while the second is on its way, it stores the second. librdkafka then
                // takes that success as a proof that the first was stored too, and acknowledges its
                // records without an offset. An answer that a record is a duplicate ends the same
                // way. In both cases the record must be sent again.
                .map_err(|_| {
                    KafkaError::MessageProduction(RDKafkaErrorCode::DuplicateSequenceNumber)
                }),
            Ok(Err((error, _))) => Err(error),
            Err(_) => Err(KafkaError::Canceled),
        }
    }

    /// Recovers after an error: replaces the client if the error is fatal, and forgets the topic if
    /// it was refused.
    fn mend(&self, client: &Arc<DropElsewhere<Client>>, topic: &str, error: &KafkaError) {
        let fatal = code(error) == Some(RDKafkaErrorCode::Fatal)
            || client
                .get()
                .is_ok_and(|c| c.client().fatal_error().is_some());
        if fatal {
            tracing::warn!(
                error = foldstream::chain(error),
                "the Kafka producer failed for good and is created again"
            );
            let mut current = lock(&self.client);
            // Another caller may have replaced the failed client already.
            if current.as_ref().is_some_and(|c| Arc::ptr_eq(c, client)) {
                *current = None;
            }
        }
        let refused = matches!(code(error).map(class), Some(Class::Refused(_)));
        if refused || code(error) == Some(RDKafkaErrorCode::UnknownPartition) {
            // The client also remembers refusals of a topic. Another request for the topic clears
            // them.
            lock(&self.topics).remove(topic);
        }
    }

    fn client(&self) -> Result<Arc<DropElsewhere<Client>>, MessageBusError> {
        let mut current = lock(&self.client);
        if let Some(client) = current.as_ref() {
            return Ok(Arc::clone(client));
        }
        let context = Listening {
            errors: Arc::clone(&self.errors),
        };
        let client = self
            .config
            .producer()
            .create_with_context(context)
            .map_err(|error| {
                let doing = "creating the producer";
                self.errors.failed(doing, Uses::nothing(), error)
            })?;
        let client = Arc::new(DropElsewhere::new(client));
        *current = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Returns the partition that a message names, or else the partition of its key.
    async fn partition_of(&self, message: &Message) -> Result<u32, MessageBusError> {
        let topic = &message.topic;
        let Some(named) = message.partition else {
            let key = message.key.as_ref().ok_or_else(|| {
                invalid("a message has neither a key nor a partition: set one of them")
            })?;
            return Ok(kafka_partition(key, self.partitions(topic).await?));
        };
        if named < self.partitions(topic).await? {
            return Ok(named);
        }
        // The topic may have grown since its partitions were counted.
        lock(&self.topics).remove(topic);
        let partitions = self.partitions(topic).await?;
        if named < partitions {
            return Ok(named);
        }
        Err(MessageBusError::Refused {
            kind: RefusedKind::UnknownPartition,
            reason: format!(
                "topic {topic} has {partitions} partitions and no partition {named}: name another, or add partitions"
            ),
            source: KafkaError::MessageProduction(RDKafkaErrorCode::UnknownPartition).into(),
        })
    }

    async fn partitions(&self, name: &Arc<str>) -> Result<u32, MessageBusError> {
        let topic = Arc::clone(lock(&self.topics).entry(Arc::clone(name)).or_default());
        if let Some(count) = topic.partitions(COUNT_AGE) {
            return Ok(count);
        }
        let _one = topic.asking.lock().await;
        if let Some(count) = topic.partitions(COUNT_AGE) {
            return Ok(count);
        }
        match self.count_partitions(name).await {
            Ok(count) => {
                *lock(&topic.counted) = Some((count, Instant::now()));
                Ok(count)
            }
            // The old count is right unless the topic has grown. If the brokers are away, the
            // publish itself fails.
            Err(error) if error.is_transient() => topic.partitions(Duration::MAX).ok_or(error),
            Err(error) => {
                lock(&self.topics).remove(name);
                Err(error)
            }
        }
    }

    /// Counts the partitions by the producer itself, so that the producer knows them too.
    async fn count_partitions(&self, topic: &Arc<str>) -> Result<u32, MessageBusError> {
        let (client, errors) = (self.client()?, Arc::clone(&self.errors));
        let (topic, timeout) = (Arc::clone(topic), self.config.request_timeout);
        blocking(move || {
            let uses = Uses::topic(Access::Describe, &topic);
            let look = || {
                let client = client.get()?.client();
                let metadata = client.fetch_metadata(Some(&topic), timeout)?;
                partition_count(&metadata, &topic)
            };
            until_shown(&errors, &topic, || match look() {
                Ok(count) => {
                    errors.succeeded(uses);
                    Ok(count)
                }
                Err(error) => {
                    let doing = format_args!("looking for the topic {topic}");
                    Err(errors.failed(doing, uses, error))
                }
            })
        })
        .await
    }
}

/// A message in the types of Kafka.
struct Record<'a> {
    message: &'a Message,
    headers: OwnedHeaders,
    millis: i64,
}

impl<'a> Record<'a> {
    fn new(message: &'a Message) -> Result<Self, MessageBusError> {
        check_topic(&message.topic)?;
        let millis = message.timestamp.as_micros().div_euclid(1_000);
        // librdkafka reads 0 as "now", and Kafka reads -1 as "none". Neither would arrive as sent.
        if millis <= 0 {
            return Err(invalid(format!(
                "the timestamp {} is not after 1970-01-01T00:00:00Z, which Kafka cannot keep",
                message.timestamp
            )));
        }
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (name, value) in &message.headers {
            headers = headers.insert(Header {
                key: name,
                value: value.as_deref(),
            });
        }
        Ok(Self {
            message,
            headers,
            millis,
        })
    }

    fn into_partition(self, partition: u32) -> FutureRecord<'a, [u8], [u8]> {
        let mut record = FutureRecord::to(&self.message.topic)
            .partition(kafka_number(partition))
            .timestamp(self.millis)
            .headers(self.headers);
        record.key = self.message.key.as_deref();
        record.payload = self.message.value.as_deref();
        record
    }
}
