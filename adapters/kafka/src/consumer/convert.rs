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

/// The header names of events. A name of the program is copied without touching a counter that the
/// threads of this consumer and of its caller would pass back and forth.
const NAMES_OF_EVENTS: [HeaderName; 18] = [
    HeaderName::from_static("content-type"),
    HeaderName::from_static("ce_specversion"),
    HeaderName::from_static("ce_id"),
    HeaderName::from_static("ce_source"),
    HeaderName::from_static("ce_type"),
    HeaderName::from_static("ce_time"),
    HeaderName::from_static("ce_subject"),
    HeaderName::from_static("ce_fsversion"),
    HeaderName::from_static("ce_fsschema"),
    HeaderName::from_static("ce_fscommitlast"),
    HeaderName::from_static("ce_fsprev"),
    HeaderName::from_static("ce_fscodec"),
    HeaderName::from_static("ce_correlationid"),
    HeaderName::from_static("ce_causationid"),
    HeaderName::from_static("ce_traceparent"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("fs_command"),
    HeaderName::from_static("fs_actor"),
];

/// The header names that one consumer has seen. Records repeat a few of them forever.
#[derive(Debug)]
pub(super) struct Names {
    known: HashMap<String, HeaderName>,
    /// The names of the last record, by position: most records have the same ones.
    last: Vec<HeaderName>,
}

impl Default for Names {
    fn default() -> Self {
        let known = NAMES_OF_EVENTS.map(|name| (name.to_string(), name));
        Self {
            known: known.into(),
            last: Vec::new(),
        }
    }
}

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
        for (at, header) in headers.into_iter().enumerate() {
            let Some(name) = self.name(at, header.key) else {
                continue;
            };
            message.headers.push((name, header.value.map(&mut part)));
        }
        message
    }

    /// Returns the shared name of the header at a position. `None` for a name with a NUL, which
    /// librdkafka never returns, since its names are C strings.
    fn name(&mut self, at: usize, name: &str) -> Option<HeaderName> {
        if let Some(last) = self.last.get(at)
            && **last == *name
        {
            return Some(last.clone());
        }
        let found = match self.known.get(name) {
            Some(known) => known.clone(),
            None => {
                let new = HeaderName::new(name).ok()?;
                if self.known.len() < MOST_NAMES {
                    self.known.insert(name.to_owned(), new.clone());
                }
                new
            }
        };
        if at < MOST_NAMES {
            self.last.truncate(at);
            self.last.push(found.clone());
        }
        Some(found)
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
