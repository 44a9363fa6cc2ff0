//! A message in the types of Kafka.
use crate::{client::kafka_number, error::invalid};
use foldstream::{
    adapter::check_topic,
    ports::{Message, MessageBusError},
};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::FutureRecord,
};

/// The timestamp of a record in milliseconds.
fn millis(message: &Message) -> i64 {
    message.timestamp.as_micros().div_euclid(1_000)
}

/// Checks what librdkafka would not refuse, or would refuse only after a while.
pub(super) fn check(message: &Message) -> Result<(), MessageBusError> {
    check_topic(&message.topic)?;
    // librdkafka reads 0 as "now", and Kafka reads -1 as "none". Neither would arrive as sent.
    if millis(message) <= 0 {
        return Err(invalid(format!(
            "the timestamp {} is not after 1970-01-01T00:00:00Z, which Kafka cannot keep",
            message.timestamp
        )));
    }
    Ok(())
}

/// Converts a message that passed [`check`] to a record for a partition.
pub(super) fn to_record(message: &Message, partition: u32) -> FutureRecord<'_, [u8], [u8]> {
    let mut record = FutureRecord::to(&message.topic)
        .partition(kafka_number(partition))
        .timestamp(millis(message));
    if !message.headers.is_empty() {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (name, value) in &message.headers {
            headers = headers.insert(Header { key: name, value });
        }
        record = record.headers(headers);
    }
    record.key = message.key.as_deref();
    record.payload = message.value.as_deref();
    record
}
