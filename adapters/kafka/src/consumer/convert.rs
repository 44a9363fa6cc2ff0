//! Records as the port's messages.
use bytes::{Bytes, BytesMut};
use foldstream::{EventName, Timestamp, ports::Message};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message as _};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// Header names seen by one consumer: records repeat a few of them for ever.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<String, EventName>);

/// Names beyond this are not kept, so that a sender of random names takes no memory.
const MOST_NAMES: usize = 256;

impl Names {
    /// Copies a record out of the client: one allocation holds key, value and headers.
    pub(super) fn message(&mut self, topic: &Arc<str>, record: &BorrowedMessage<'_>) -> Message {
        let headers = readable_headers(record);
        let key = record.key().unwrap_or_default();
        let value = record.payload();
        let values = headers.iter().map(|h| h.value.map_or(0, <[u8]>::len));
        let size = key.len() + value.map_or(0, <[u8]>::len) + values.sum::<usize>();
        let mut copy = BytesMut::with_capacity(size);
        let mut part = |bytes: &[u8]| {
            copy.extend_from_slice(bytes);
            copy.split().freeze()
        };
        let key = part(key);
        let value: Option<Bytes> = value.map(&mut part);
        let millis = record.timestamp().to_millis().unwrap_or_default();
        let timestamp = Timestamp::from_micros(millis.saturating_mul(1_000));
        let mut message = Message::new(Arc::clone(topic), key, value, timestamp);
        message.headers.reserve_exact(headers.len());
        for header in headers {
            // Kafka tells a header without a value from an empty one; the port does not.
            let value = part(header.value.unwrap_or_default());
            message.headers.push((self.name(header.key), value));
        }
        message
    }

    fn name(&mut self, name: &str) -> EventName {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let new = EventName::from(name.to_owned());
        if self.0.len() < MOST_NAMES {
            self.0.insert(name.to_owned(), new.clone());
        }
        new
    }
}

/// The headers whose names are text, as Kafka's protocol demands. The binding panics at others, which a careless
/// foreign sender must not turn into the end of this consumer.
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
