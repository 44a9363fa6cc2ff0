//! Messages, and the positions at which a bus stores them.
use super::{HeaderName, Headers, MessageBusError};
use crate::Timestamp;
use bytes::Bytes;
use std::{cmp::Ordering, fmt, sync::Arc, time::Duration};

/// A message to send, or one that was received.
///
/// Messages in one partition keep their order. The sender names the partition, or gives a key and
/// leaves the partition to the bus.
///
/// # Example
/// ```
/// use foldstream::{Timestamp, ports::{HeaderName, Message}};
/// let message = Message::new("orders", Timestamp::now())
///     .with_key("order#7")
///     .with_value(r#"{"total":3}"#)
///     .with_header(HeaderName::from_static("content-type"), "application/json")
///     .with_partition(2);
/// assert_eq!(message.header("content-type"), Some("application/json"));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// The topic that holds the message.
    pub topic: Arc<str>,
    /// The key of the message. `None` differs from an empty key: a message without a key must name
    /// its partition.
    pub key: Option<Bytes>,
    /// The payload of the message. `None` differs from an empty payload: it is a tombstone, which
    /// deletes the key in a compacted topic.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Headers,
    /// The partition to send to. `None` stands for the partition that
    /// [`kafka_partition`](crate::adapter::kafka_partition) computes from the key and the
    /// adapter's count of the topic's partitions. A message that was received holds the partition
    /// that holds it.
    pub partition: Option<u32>,
    /// The time of sending, from which the bus counts the topic's retention. Buses keep
    /// milliseconds.
    pub timestamp: Timestamp,
}
impl Message {
    /// Creates a message without key, value, headers and partition.
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>, timestamp: Timestamp) -> Self {
        Self {
            topic: topic.into(),
            key: None,
            value: None,
            headers: Headers::new(),
            partition: None,
            timestamp,
        }
    }
    /// Sets the key, which the bus may use to choose the partition.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }
    /// Sets the payload of the message.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }
    /// Appends a header to the message.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: impl AsRef<[u8]>) -> Self {
        self.headers.push(name, Some(value.as_ref()));
        self
    }
    /// Appends a header that has no value.
    #[must_use]
    pub fn with_null_header(mut self, name: HeaderName) -> Self {
        self.headers.push(name, None);
        self
    }
    /// Sets the partition to send to.
    #[must_use]
    pub const fn with_partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }
    /// Returns the value of the first header of that name, if that value is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.headers.get(name)?).ok()
    }
    /// Returns the size of key, value and headers in bytes. It counts the bytes that tell the
    /// lengths of a header's name and value, as Kafka writes them, and nothing else of what the bus
    /// adds: that is [`record_overhead`](TopicDescription::record_overhead), the same for every
    /// message.
    pub fn size(&self) -> usize {
        let bytes = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let with_length = |length: usize| varint_size(length) + length;
        let headers = self.headers.iter();
        let headers = headers.map(|(n, v)| with_length(n.len()) + with_length(bytes(v)));
        bytes(self.key.as_deref()) + bytes(self.value.as_deref()) + headers.sum::<usize>()
    }

    /// Checks that these messages form a run: they name one partition, and they have the same
    /// topic, key and partition.
    ///
    /// # Errors
    /// [`Invalid`](MessageBusError::Invalid) if they do not, naming the first message that differs.
    #[doc(hidden)]
    pub fn check_run(run: &[Self]) -> Result<(), MessageBusError> {
        let Some(first) = run.first() else {
            return Ok(());
        };
        let invalid = |reason: String| Err(MessageBusError::Invalid { reason });
        for (index, message) in run.iter().enumerate() {
            let differs = |what: &str| {
                invalid(format!(
                    "message {index} of the run has another {what} than the first: send it in a run of its own"
                ))
            };
            if message.partition.is_none() {
                return invalid(format!("message {index} of the run names no partition"));
            }
            if message.topic != first.topic {
                return differs("topic");
            }
            if message.key != first.key {
                return differs("key");
            }
            if message.partition != first.partition {
                return differs("partition");
            }
        }
        Ok(())
    }
}

/// The answer to [`MessageBus::publish_run`](super::MessageBus::publish_run).
///
/// Messages after the first `durable` ones may be durable too, but never without the messages
/// before them.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "a run may be durable only in part"]
pub struct RunOutcome {
    /// The number of messages, from the first, that are certainly durable.
    pub durable: usize,
    /// The reason why the run ended early. `None` only if all messages are durable.
    pub error: Option<MessageBusError>,
}
impl RunOutcome {
    /// Creates the outcome of a run of `len` messages that are all durable.
    pub const fn complete(len: usize) -> Self {
        Self {
            durable: len,
            error: None,
        }
    }
    /// Creates the outcome of a run that ended after its first `durable` messages.
    pub const fn broken_off(durable: usize, error: MessageBusError) -> Self {
        Self {
            durable,
            error: Some(error),
        }
    }
}

/// The id of a partition: a topic, and the number of the partition.
///
/// # Example
/// ```
/// use foldstream::ports::PartitionId;
/// assert_eq!(PartitionId::new("orders", 2).to_string(), "orders[2]");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PartitionId {
    /// The topic of the partition.
    pub topic: Arc<str>,
    /// The number of the partition, from 0.
    pub partition: u32,
}
impl PartitionId {
    /// Creates the id of a partition.
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>, partition: u32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}
/// By the topic, then by the number.
impl Ord for PartitionId {
    fn cmp(&self, other: &Self) -> Ordering {
        // Ids of one origin share the text of their topic.
        let topics = if Arc::ptr_eq(&self.topic, &other.topic) {
            Ordering::Equal
        } else {
            self.topic.cmp(&other.topic)
        };
        topics.then_with(|| self.partition.cmp(&other.partition))
    }
}
impl PartialOrd for PartitionId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// The position of a record in its partition, from 0.
///
/// # Example
/// ```
/// use foldstream::ports::Offset;
/// assert_eq!(Offset::new(7).next(), Offset::new(8));
/// ```
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Offset(u64);
impl Offset {
    /// Creates an offset from its number.
    pub const fn new(offset: u64) -> Self {
        Self(offset)
    }
    /// Returns the number of the offset.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Returns the offset after this one; the greatest offset is its own successor.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}
impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The range of offsets that a partition holds, at some instant during the call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionOffsets {
    /// The partition that holds these offsets.
    pub partition: PartitionId,
    /// The oldest offset that retention has left, or `end`.
    pub begin: Offset,
    /// One past the newest offset, whether that offset holds a record or not.
    pub end: Offset,
}
impl PartitionOffsets {
    /// Creates the range of a partition's offsets.
    #[must_use]
    pub const fn new(partition: PartitionId, begin: Offset, end: Offset) -> Self {
        Self {
            partition,
            begin,
            end,
        }
    }
}

/// The id that a bus gives to one life of a topic: a topic that is deleted and created again has
/// another id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicId(Arc<str>);
impl TopicId {
    /// Creates an id from the text that the bus shows.
    #[must_use]
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }
    /// Returns the text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of bytes in which Kafka writes a length: seven bits each, one of them all for the
/// sign.
const fn varint_size(length: usize) -> usize {
    let bits = usize::BITS - length.leading_zeros() + 1;
    bits.div_ceil(7) as usize
}

/// The settings of a topic, and the limits of the producer that sends to it. `None` stands for a
/// setting that the bus does not report.
///
/// # Example
/// ```
/// use foldstream::ports::TopicDescription;
///
/// let orders = TopicDescription::new(12)
///     .with_compacted(Some(false))
///     .with_max_message_bytes(Some(1_048_588))
///     .with_record_overhead(588);
/// assert_eq!(orders.message_limit(), Some(1_048_000));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// The number of partitions, at least 1.
    pub partitions: u32,
    /// The id of this life of the topic.
    pub topic_id: Option<TopicId>,
    /// True if the bus may drop old records of a key. That loses history, so an event topic must
    /// not be compacted.
    pub compacted: Option<bool>,
    /// The time for which records are kept; `Duration::MAX` stands for forever.
    pub retention: Option<Duration>,
    /// The size in bytes of the largest record that the topic takes, as it is set: with
    /// [`record_overhead`](Self::record_overhead).
    pub max_message_bytes: Option<u64>,
    /// The size in bytes of the largest record that this bus sends, whatever the topic takes, as it
    /// is set: with [`record_overhead`](Self::record_overhead).
    pub max_producer_bytes: Option<u64>,
    /// The number of bytes that the two limits count at most beyond a message's
    /// [`size`](Message::size): what a record has besides its parts, and the batch that it is sent
    /// in. 0 if they count the size alone.
    pub record_overhead: u64,
}
impl TopicDescription {
    /// Creates a description that says only the number of partitions.
    #[must_use]
    pub const fn new(partitions: u32) -> Self {
        Self {
            partitions,
            topic_id: None,
            compacted: None,
            retention: None,
            max_message_bytes: None,
            max_producer_bytes: None,
            record_overhead: 0,
        }
    }
    /// Sets the id of this life of the topic.
    #[must_use]
    pub fn with_topic_id(mut self, id: Option<TopicId>) -> Self {
        self.topic_id = id;
        self
    }
    /// Sets whether the topic is compacted.
    #[must_use]
    pub const fn with_compacted(mut self, compacted: Option<bool>) -> Self {
        self.compacted = compacted;
        self
    }
    /// Sets the time for which records are kept.
    #[must_use]
    pub const fn with_retention(mut self, retention: Option<Duration>) -> Self {
        self.retention = retention;
        self
    }
    /// Sets the size in bytes of the largest record that the topic takes.
    #[must_use]
    pub const fn with_max_message_bytes(mut self, bytes: Option<u64>) -> Self {
        self.max_message_bytes = bytes;
        self
    }
    /// Sets the size in bytes of the largest record that the producer sends.
    #[must_use]
    pub const fn with_max_producer_bytes(mut self, bytes: Option<u64>) -> Self {
        self.max_producer_bytes = bytes;
        self
    }
    /// Sets the number of bytes that the two limits count at most beyond a message's
    /// [`size`](Message::size).
    #[must_use]
    pub const fn with_record_overhead(mut self, bytes: u64) -> Self {
        self.record_overhead = bytes;
        self
    }
    /// Returns the limit of a message's [`size`](Message::size): the lower of the two limits, less
    /// the overhead. A message up to it is not `TooLarge`. One above it is, or may be by the few
    /// bytes of the overhead.
    pub fn message_limit(&self) -> Option<u64> {
        let limits = [self.max_message_bytes, self.max_producer_bytes];
        let lower = limits.into_iter().flatten().min()?;
        Some(lower.saturating_sub(self.record_overhead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message::new("t", Timestamp::default())
            .with_key("k")
            .with_partition(1)
    }

    #[test]
    fn a_run_has_one_topic_one_key_and_one_named_partition() {
        let nowhere = Message::new("t", Timestamp::default()).with_key("k");
        let mut elsewhere = message();
        elsewhere.topic = "other".into();
        let mut keyless = message();
        keyless.key = None;
        assert!(Message::check_run(&[]).is_ok());
        assert!(Message::check_run(&[message(), message()]).is_ok());
        assert!(Message::check_run(&[keyless.clone(), keyless.clone()]).is_ok());
        for (what, odd) in [
            ("names no partition", nowhere),
            ("another topic", elsewhere),
            ("another key", message().with_key("l")),
            ("another key", keyless),
            ("another partition", message().with_partition(2)),
        ] {
            let error = Message::check_run(&[message(), odd]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("message 1") && text.contains(what), "{text}");
        }
    }

    #[test]
    fn the_size_counts_each_headers_lengths_as_kafka_writes_them() {
        let sized = |name: usize, value: usize| {
            let name = HeaderName::new("n".repeat(name)).unwrap();
            let with = message().with_header(name, vec![0; value]);
            with.size() - message().size()
        };
        for (length, own) in [
            (0, 1),
            (63, 1),
            (64, 2),
            (8_191, 2),
            (8_192, 3),
            (1_048_575, 3),
            (1_048_576, 4),
        ] {
            assert_eq!(sized(1, length), 1 + 1 + own + length, "value of {length}");
        }
        assert_eq!(sized(64, 0), 2 + 64 + 1);
        let null = message().with_null_header(HeaderName::from_static("n"));
        assert_eq!(null.size() - message().size(), 3);
        assert_eq!(message().with_value("four").size(), 5);
    }

    #[test]
    fn the_overhead_of_a_record_is_taken_from_the_limit_of_a_message() {
        let limited = |bytes| {
            let description = TopicDescription::new(1).with_max_message_bytes(bytes);
            description.with_record_overhead(97).message_limit()
        };
        assert_eq!(limited(None), None);
        assert_eq!(limited(Some(1_000)), Some(903));
        assert_eq!(limited(Some(50)), Some(0));
    }

    #[test]
    fn the_lower_of_the_limits_counts_and_what_is_not_said_does_not() {
        let of = |topic, producer| {
            let description = TopicDescription::new(1).with_max_message_bytes(topic);
            description
                .with_max_producer_bytes(producer)
                .message_limit()
        };
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(5), None), Some(5));
        assert_eq!(of(None, Some(4)), Some(4));
        assert_eq!(
            (of(Some(5), Some(4)), of(Some(3), Some(4))),
            (Some(4), Some(3))
        );
    }
}
