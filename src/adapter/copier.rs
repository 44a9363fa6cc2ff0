//! The copy of a message out of the memory of a bus's client.
use crate::{
    Timestamp,
    ports::{Message, NamesSeen, PartitionId},
};
use bytes::BytesMut;
use std::sync::Arc;

/// The most bytes for which room is made before the values of headers are seen.
const MOST_EXPECTED: usize = 4_096;
/// The bytes by which these values may be larger than those of the message before.
const SLACK: usize = 32;

/// Copies the messages that one consumer receives out of the memory of its client.
///
/// One allocation holds key, value and the values of the headers of a message. Messages share the
/// names of their headers.
///
/// # Example
/// ```
/// use foldstream::{Timestamp, adapter::MessageCopier, ports::PartitionId};
///
/// let mut copier = MessageCopier::new();
/// let headers = [("ce_type", Some(&b"cart.CartItemAdded"[..]))];
/// let of = PartitionId::new("orders", 2);
/// let message = copier.copy(&of, Timestamp::now(), Some(b"cart#1"), Some(b"{}"), headers);
/// assert_eq!(message.header("ce_type"), Some("cart.CartItemAdded"));
/// ```
#[derive(Clone, Debug)]
pub struct MessageCopier {
    names: NamesSeen,
    /// The bytes of the header values of the last message. The next one seldom has many more.
    values: usize,
}

impl Default for MessageCopier {
    fn default() -> Self {
        Self::new()
    }
}

impl MessageCopier {
    /// Creates a copier that knows the names of the headers of events.
    #[must_use]
    pub fn new() -> Self {
        Self {
            names: NamesSeen::new(crate::wire::NAMES),
            values: 0,
        }
    }

    /// Begins a batch: the next messages share nothing with those before. A consumer that hands
    /// messages to another thread in batches calls it before each batch, so that the two threads
    /// do not change the same reference counts at the same time.
    pub fn begin_batch(&mut self) {
        self.names.begin_batch();
    }

    /// Copies a message of a partition. A header whose name holds a NUL character is left out.
    pub fn copy<'m>(
        &mut self,
        partition: &PartitionId,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'m str, Option<&'m [u8]>)>,
    ) -> Message {
        let size = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let expected = self.values.min(MOST_EXPECTED) + SLACK;
        let mut buffer = BytesMut::with_capacity(expected + size(key) + size(value));
        let headers = self.names.copy(headers, &mut buffer);
        let values = buffer.len();
        self.values = values;
        for part in [key, value].into_iter().flatten() {
            buffer.extend_from_slice(part);
        }
        let headers = headers.with_values(buffer.split_to(values));
        let key_copy = buffer.split_to(size(key)).freeze();
        let value_copy = buffer.freeze();
        Message {
            topic: Arc::clone(&partition.topic),
            key: key.map(|_| key_copy),
            value: value.map(|_| value_copy),
            headers,
            partition: Some(partition.partition),
            timestamp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::HeaderName;

    #[test]
    fn absent_and_empty_parts_stay_what_they_are() {
        let mut copier = MessageCopier::default();
        let of = PartitionId::new("t", 3);
        let at = Timestamp::from_micros(5_000);
        for key in [None, Some(&b""[..]), Some(b"key")] {
            for value in [None, Some(&b""[..]), Some(b"value")] {
                for headers in [&[][..], &[("a", Some(&b"1"[..])), ("b", None)]] {
                    let copy = copier.copy(&of, at, key, value, headers.iter().copied());
                    let mut expected = Message::new("t", at).with_partition(3);
                    expected.key = key.map(bytes::Bytes::from_static);
                    expected.value = value.map(bytes::Bytes::from_static);
                    for (name, value) in headers {
                        let name = HeaderName::from_static(name);
                        expected.headers.push(name, *value);
                    }
                    assert_eq!(copy, expected);
                    assert_eq!(copy.size(), expected.size());
                }
            }
        }
    }
}
