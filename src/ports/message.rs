//! Messages, and the places where they lie.
use crate::{EventName, Timestamp};
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};

/// What is sent. Messages of one key go to one partition and keep their order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// Topic.
    pub topic: Arc<str>,
    /// Decides the partition, as Kafka's Java clients do: [`kafka_partition`](crate::kafka_partition).
    pub key: Bytes,
    /// Payload; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// In order; names may repeat.
    pub headers: Vec<(EventName, Bytes)>,
    /// Time of the record; buses keep milliseconds.
    pub timestamp: Timestamp,
}
impl Message {
    /// A message without headers.
    #[must_use]
    pub fn new(
        topic: impl Into<Arc<str>>,
        key: impl Into<Bytes>,
        value: Option<Bytes>,
        timestamp: Timestamp,
    ) -> Self {
        Self {
            topic: topic.into(),
            key: key.into(),
            value,
            headers: Vec::new(),
            timestamp,
        }
    }
    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<EventName>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
    /// The first header of that name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| *n == *name)?;
        std::str::from_utf8(value).ok()
    }
    /// About what it takes on the wire: key, value and headers, in bytes.
    pub fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(n, v)| n.len() + v.len() + 4)
            .sum();
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + headers
    }
}

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct PartitionId {
    /// Topic.
    pub topic: Arc<str>,
    /// From 0.
    pub partition: u32,
}
impl PartitionId {
    /// A partition.
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>, partition: u32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}
impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// Place of a record in a partition, from 0.
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
    /// An offset.
    pub const fn new(offset: u64) -> Self {
        Self(offset)
    }
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// One further; saturates.
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

/// What a partition holds, at some instant during the call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionOffsets {
    /// Which partition.
    pub partition: PartitionId,
    /// The oldest record that is still there, or `end`.
    pub begin: Offset,
    /// One past the newest record.
    pub end: Offset,
}
impl PartitionOffsets {
    /// For adapters.
    #[must_use]
    pub const fn new(partition: PartitionId, begin: Offset, end: Offset) -> Self {
        Self {
            partition,
            begin,
            end,
        }
    }
}

/// How a topic is set up. `None`: the bus does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// Partitions, at least 1.
    pub partitions: u32,
    /// Whether old records of a key may be dropped, which loses history: an event topic must not be.
    pub compacted: Option<bool>,
    /// How long records are kept; `Duration::MAX` is for ever.
    pub retention: Option<Duration>,
    /// Size of the largest record in bytes.
    pub max_message_bytes: Option<u64>,
}
impl TopicDescription {
    /// For adapters.
    #[must_use]
    pub const fn new(partitions: u32) -> Self {
        Self {
            partitions,
            compacted: None,
            retention: None,
            max_message_bytes: None,
        }
    }
    /// Adds whether it is compacted.
    #[must_use]
    pub const fn with_compacted(mut self, compacted: Option<bool>) -> Self {
        self.compacted = compacted;
        self
    }
    /// Adds how long records are kept.
    #[must_use]
    pub const fn with_retention(mut self, retention: Option<Duration>) -> Self {
        self.retention = retention;
        self
    }
    /// Adds the size of the largest record.
    #[must_use]
    pub const fn with_max_message_bytes(mut self, bytes: Option<u64>) -> Self {
        self.max_message_bytes = bytes;
        self
    }
}
