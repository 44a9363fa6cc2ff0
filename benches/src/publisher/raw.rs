//! The other side: an idempotent producer of rdkafka that awaits nothing before the end.
use super::Streams;
use crate::BenchError;
use foldstream::ports::Message;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{DeliveryFuture, FutureProducer, FutureRecord},
};
use std::time::Duration;

/// The settings of the producer that are not librdkafka's defaults.
const SETTINGS: [(&str, &str); 4] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("linger.ms", "5"),
    ("batch.size", "1000000"),
];

pub(super) fn settings() -> String {
    SETTINGS
        .map(|(name, value)| format!("{name}={value}"))
        .join(", ")
}

pub(super) fn producer(brokers: &str) -> Result<FutureProducer, BenchError> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    for (property, value) in SETTINGS {
        config.set(property, value);
    }
    config.create().map_err(BenchError::other)
}

/// Queues all records, the first version of every stream first, and awaits all of them.
pub(super) async fn send(producer: &FutureProducer, streams: &Streams) -> Result<(), BenchError> {
    let mut in_flight = Vec::new();
    let longest = streams.iter().map(|stream| stream.len()).max();
    for version in 0..longest.unwrap_or_default() {
        for message in streams.iter().filter_map(|stream| stream.get(version)) {
            in_flight.push(queue(producer, message).await?);
        }
    }
    for acknowledged in in_flight {
        let stored = acknowledged.await.map_err(BenchError::other)?;
        stored.map_err(|(error, _)| BenchError::other(error))?;
    }
    Ok(())
}

async fn queue(producer: &FutureProducer, message: &Message) -> Result<DeliveryFuture, BenchError> {
    loop {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value });
        }
        let partition = message.partition.unwrap_or_default();
        let record = FutureRecord::to(&message.topic)
            .partition(partition.cast_signed())
            .key(message.key.as_deref().unwrap_or_default())
            .payload(message.value.as_deref().unwrap_or_default())
            .timestamp(message.timestamp.as_micros() / 1_000)
            .headers(headers);
        match producer.send_result(record) {
            Ok(acknowledged) => return Ok(acknowledged),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err((error, _)) => return Err(BenchError::other(error)),
        }
    }
}
