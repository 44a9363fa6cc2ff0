//! The conversion of Kafka's records into messages of the port.
use bytes::{Bytes, BytesMut};
use foldstream::{
    Timestamp,
    ports::{HeaderName, Message, PartitionId},
};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message as _};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// The header names that one consumer has seen. Records repeat a few of them forever.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<String, HeaderName>);

/// The most names that are kept, so that a sender of random names does not fill the memory.
const MOST_NAMES: usize = 256;

impl Names {
    /// Copies a record out of the client. One allocation holds key, value and headers.
    pub(super) fn message(&mut self, id: &PartitionId, record: &BorrowedMessage<'_>) -> Message {
        let headers = readable_headers(record);
        let (key, value) = (record.key(), record.payload());
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let values = headers.iter().map(|h| length(h.value));
        let size = length(key) + length(value) + values.sum::<usize>();
        let mut copy = BytesMut::with_capacity(size);
        let mut part = |bytes: &[u8]| {
            copy.extend_from_slice(bytes);
            copy.split().freeze()
        };
        let key: Option<Bytes> = key.map(&mut part);
        let value: Option<Bytes> = value.map(&mut part);
        let millis = record.timestamp().to_millis().unwrap_or_default();
        let timestamp = Timestamp::from_micros(millis.saturating_mul(1_000));
        let mut message =
            Message::new(Arc::clone(&id.topic), timestamp).with_partition(id.partition);
        (message.key, message.value) = (key, value);
        message.headers.reserve_exact(headers.len());
        for header in headers {
            let Some(name) = self.name(header.key) else {
                continue;
            };
            message.headers.push((name, header.value.map(&mut part)));
        }
        message
    }

    /// Returns the shared name. `None` for a name with a NUL, which librdkafka never returns, since
    /// its names are C strings.
    fn name(&mut self, name: &str) -> Option<HeaderName> {
        if let Some(known) = self.0.get(name) {
            return Some(known.clone());
        }
        let new = HeaderName::new(name).ok()?;
        if self.0.len() < MOST_NAMES {
            self.0.insert(name.to_owned(), new.clone());
        }
        Some(new)
    }
}

/// Returns the headers whose names are UTF-8, as Kafka's protocol demands.
///
/// rdkafka panics on other names, and a foreign sender's mistake must not end this consumer.
fn readable_headers<'r>(record: &'r BorrowedMessage<'_>) -> Vec<Header<'r, &'r [u8]>> {
    let Some(headers) = record.headers() else {
        return Vec::new();
    };
    let mut readable = Vec::with_capacity(headers.count());
    for index in 0..headers.count() {
        match catch_unwind(AssertUnwindSafe(|| headers.try_get(index))) {
            Ok(header) => readable.extend(header),
            Err(_) => tracing::warn!(
                topic = record.topic(),
                partition = record.partition(),
                offset = record.offset(),
                "a header whose name is not UTF-8 is left out"
            ),
        }
    }
    readable
}
