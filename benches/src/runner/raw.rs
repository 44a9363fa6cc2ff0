//! The other side: a loop over rdkafka's `StreamConsumer`, as one would write it by hand.
use super::meter::{Meter, Stopwatch};
use crate::{
    BenchError,
    account::{AccountEvent, Deposit},
};
use foldstream::{
    CausationId, CommandId, CorrelationId, EventHeader, EventId, Metadata, StreamId, Timestamp,
    Version,
};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{CommitMode, Consumer as _, StreamConsumer},
    message::{BorrowedMessage, Headers as _},
};
use std::time::Duration;

/// The waits of the fetches of a loop.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waits {
    /// Those of librdkafka: a loop as one writes it. It stands still for up to a second each time
    /// that its queue was full.
    Default,
    /// Those of our adapter: what the runner itself costs.
    OfAdapter,
}

impl Waits {
    /// Returns the settings of the consumer that are not librdkafka's defaults.
    pub(super) fn settings(self) -> Vec<(&'static str, &'static str)> {
        let mut settings = vec![
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "earliest"),
        ];
        if let Self::OfAdapter = self {
            settings.push(("fetch.queue.backoff.ms", "10"));
            settings.push(("fetch.wait.max.ms", "50"));
        }
        settings
    }
}

/// The number of records after which the loop commits, without waiting for the answer.
pub(super) const COMMIT_EVERY: u64 = 1_000;

/// Reads a topic from its beginning until `events` events were handled.
pub(super) async fn run(
    brokers: &str,
    group: &str,
    topic: &str,
    waits: Waits,
    (events, pause): (u64, Option<Duration>),
) -> Result<Stopwatch, BenchError> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", group);
    for (property, value) in waits.settings() {
        config.set(property, value);
    }
    let consumer: StreamConsumer = config.create().map_err(BenchError::other)?;
    consumer.subscribe(&[topic]).map_err(BenchError::other)?;
    let meter = Meter::new(events);
    let mut received = 0;
    while !meter.is_over() {
        let record = consumer.recv().await.map_err(BenchError::other)?;
        if let Some((header, event)) = decode(&record)? {
            handle(&meter, &header, &event, pause).await;
        }
        received += 1;
        if received % COMMIT_EVERY == 0 {
            consumer
                .commit_consumer_state(CommitMode::Async)
                .map_err(BenchError::other)?;
        }
    }
    meter.stopped()
}

async fn handle(
    meter: &Meter,
    header: &EventHeader,
    event: &AccountEvent,
    pause: Option<Duration>,
) {
    if let Some(pause) = pause {
        tokio::time::sleep(pause).await;
    }
    meter.handled(header, event);
}

/// Decodes the headers and the payload. `None` for events of others.
fn decode(record: &BorrowedMessage<'_>) -> Result<Option<(EventHeader, AccountEvent)>, BenchError> {
    let malformed = |what: &'static str| BenchError::other(format!("{what} cannot be read"));
    let key = record
        .key()
        .and_then(|key| std::str::from_utf8(key).ok())
        .ok_or_else(|| malformed("the key"))?;
    let stream: StreamId = key.parse().map_err(BenchError::other)?;
    if stream.aggregate() != "account" {
        return Ok(None);
    }
    let headers = record.headers().ok_or_else(|| malformed("the headers"))?;
    let (mut id, mut kind, mut time, mut version) = (None, None, None, None);
    let (mut last, mut schema) = (None, 1);
    let mut metadata = Metadata::new();
    for header in headers.iter() {
        let Some(text) = header.value.map(std::str::from_utf8) else {
            continue;
        };
        let text = text.map_err(BenchError::other)?;
        match header.key {
            "ce_id" => id = Some(text.parse::<EventId>().map_err(BenchError::other)?),
            "ce_type" => kind = text.strip_prefix("account."),
            "ce_time" => time = Some(text.parse::<Timestamp>().map_err(BenchError::other)?),
            "ce_fsversion" => version = Some(text.parse::<u64>().map_err(BenchError::other)?),
            "ce_fscommitlast" => last = Some(text.parse::<u64>().map_err(BenchError::other)?),
            "ce_fsschema" => schema = text.parse::<u16>().map_err(BenchError::other)?,
            "ce_correlationid" => {
                metadata = metadata.with_correlation_id(CorrelationId::from(text));
            }
            "ce_causationid" => metadata = metadata.with_causation_id(CausationId::from(text)),
            "fs_command" => metadata = metadata.with_command_id(CommandId::from(text)),
            _ => {}
        }
    }
    let (Some(id), Some(kind), Some(time), Some(version)) = (id, kind, time, version) else {
        return Err(malformed("a header"));
    };
    if kind != "Deposited" {
        return Ok(None);
    }
    let payload = record.payload().ok_or_else(|| malformed("the value"))?;
    let deposit: Deposit = serde_json::from_slice(payload)?;
    let header = EventHeader::new(id, stream, Version::new(version), kind.to_owned(), time)
        .with_commit_last(Version::new(last.unwrap_or(version)))
        .with_schema_version(schema)
        .with_metadata(metadata);
    Ok(Some((header, AccountEvent::Deposited(deposit))))
}
