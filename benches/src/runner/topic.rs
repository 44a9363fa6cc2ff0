//! The topics that both sides read, on one Kafka broker.
use crate::{
    BenchError,
    account::{AccountEvent, Deposit},
};
use foldstream::{
    CommitId, DomainEvent, EventHeader, RecordedEvent, SourceUri, StreamId, Timestamp, Version,
    adapter::to_message, ports::Message,
};
use foldstream_kafka::{KafkaConfig, KafkaMessageBus, TopicSpec};
use foldstream_testkit::containers::Kafka;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// The time that the last records of a topic may take until the broker has acknowledged them.
const ACKNOWLEDGED: Duration = Duration::from_secs(60);

/// The contents of a topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents {
    pub(super) events: u64,
    pub(super) streams: u64,
    pub(super) partitions: u32,
}

/// A topic with events.
#[derive(Clone, Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) contents: Contents,
}

/// The broker, and what was made on it.
pub(crate) struct Broker {
    kafka: Kafka,
    /// Tells apart the runs of this program on a broker that outlives them.
    run: String,
    made: u64,
}

impl Broker {
    pub(crate) async fn start() -> Result<Self, BenchError> {
        Ok(Self {
            kafka: Kafka::start().await.map_err(BenchError::other)?,
            run: CommitId::random().to_string(),
            made: 0,
        })
    }

    pub(crate) fn address(&self) -> &str {
        self.kafka.brokers()
    }

    /// Returns a name that nobody has used on this broker.
    pub(crate) fn new_name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}-{}-{}", self.run, self.made)
    }

    pub(crate) fn bus(&self) -> Result<KafkaMessageBus, BenchError> {
        let config = KafkaConfig::default().with_brokers(self.address());
        KafkaMessageBus::new(config).map_err(BenchError::other)
    }

    /// Creates a topic and fills it. The events of all streams are mixed, always in the same way.
    pub(super) async fn fill(&mut self, contents: Contents) -> Result<Topic, BenchError> {
        let name: Arc<str> = self.new_name("events").into();
        let spec = TopicSpec::new(&*name, contents.partitions);
        self.bus()?
            .create_topic(&spec)
            .await
            .map_err(BenchError::other)?;
        // Idempotent, since a repeated request must not change the order of a stream.
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.address())
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("queue.buffering.max.messages", "200000")
            .create()
            .map_err(BenchError::other)?;
        let topic = name.clone();
        let sent = tokio::task::spawn_blocking(move || send(&producer, &topic, contents));
        sent.await.map_err(BenchError::other)??;
        Ok(Topic { name, contents })
    }
}

fn send(producer: &BaseProducer, topic: &Arc<str>, contents: Contents) -> Result<(), BenchError> {
    for message in messages(topic, contents)? {
        send_one(producer, &message)?;
    }
    producer.flush(ACKNOWLEDGED).map_err(BenchError::other)
}

/// Returns the records of a topic. Streams come in an order that is random, but always the same.
pub(super) fn messages(
    topic: &Arc<str>,
    contents: Contents,
) -> Result<impl Iterator<Item = Message> + use<'_>, BenchError> {
    let source = SourceUri::new("urn:bench").map_err(BenchError::other)?;
    let mut state = 1_u64;
    let mut versions = HashMap::new();
    let mut streams = Vec::new();
    for n in 0..contents.streams {
        streams.push(StreamId::new("account", &format!("a-{n:06}")).map_err(BenchError::other)?);
    }
    Ok((0..contents.events).filter_map(move |n| {
        // Knuth's linear congruential generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let chosen = (state >> 33) % contents.streams;
        let stream = streams.get(usize::try_from(chosen).ok()?)?;
        let version = versions.entry(chosen).or_insert(Version::NONE);
        *version = version.next();
        let event = event(stream, *version, n);
        Some(to_message(&event, topic, &source, Timestamp::now()))
    }))
}

/// Creates an event of 80 bytes.
pub(crate) fn event(stream: &StreamId, version: Version, n: u64) -> RecordedEvent {
    let event = AccountEvent::Deposited(Deposit::of_80_bytes(n % 1_000_000));
    let mut payload = Vec::new();
    let kind = event.event_type();
    // A deposit is numbers and texts, which JSON has.
    let _ = event.encode(&mut payload);
    let id = CommitId::random().event_id(0);
    let header = EventHeader::new(id, stream.clone(), version, kind.name(), Timestamp::now());
    RecordedEvent::new(header, payload.into())
}

/// Sends one record, and waits while the queue of the producer is full.
fn send_one(producer: &BaseProducer, message: &Message) -> Result<(), BenchError> {
    let key = message.key.as_deref().unwrap_or_default();
    let value = message.value.as_deref().unwrap_or_default();
    loop {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value });
        }
        let record = BaseRecord::to(&message.topic)
            .key(key)
            .payload(value)
            .headers(headers);
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                producer.poll(Duration::from_millis(10));
            }
            Err((error, _)) => return Err(BenchError::other(error)),
        }
    }
}
