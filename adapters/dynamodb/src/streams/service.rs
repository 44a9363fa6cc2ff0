//! The calls of the streams API, as a trait, so that a scripted service can stand in for DynamoDB.
use async_trait::async_trait;
use foldstream::{
    BoxError, Timestamp,
    publisher::Notice,
    resilience::{Failure, FailureClass},
};
use std::{cmp::Ordering, fmt, fmt::Debug, time::Duration};

/// The calls of the streams API that a reader makes.
///
/// [`StreamsReader::new`](super::StreamsReader::new) makes them with the AWS SDK. Tests implement
/// the trait with a script. An implementation sends each request once: the reader repeats it.
#[async_trait]
pub trait StreamService: Debug + Send + Sync + 'static {
    /// Returns the stream that the events table has now, or `None` if it has none that is enabled.
    async fn stream(&self) -> Result<Option<ChangeStream>, StreamServiceError>;

    /// Returns a page of the shards of the stream, those after `after` in the order of the service.
    async fn shards(
        &self,
        stream: &ChangeStream,
        after: Option<&str>,
    ) -> Result<ShardPage, StreamServiceError>;

    /// Returns an iterator over a shard.
    async fn iterator(
        &self,
        stream: &ChangeStream,
        shard: &str,
        start: &ShardStart,
    ) -> Result<String, StreamServiceError>;

    /// Returns the next records of an iterator. A page may be empty although there are more.
    async fn records(&self, iterator: &str) -> Result<RecordPage, StreamServiceError>;
}

/// A change stream of the events table. A stream that is disabled and enabled again is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeStream {
    /// The ARN of the stream.
    pub arn: String,
    /// The label of the stream, which is the time of its creation and distinguishes the streams of
    /// one table.
    pub label: String,
}

/// A shard as the stream's description lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDescription {
    /// The id of the shard.
    pub id: String,
    /// The shard whose records come before those of this one. The description may no longer list
    /// it.
    pub parent: Option<String>,
}

/// A page of a stream's description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardPage {
    /// The shards of the page.
    pub shards: Vec<ShardDescription>,
    /// The shard after which the next page starts; `None` on the last page.
    pub next: Option<String>,
}

/// The place in a shard at which an iterator starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardStart {
    /// The oldest record that the shard still has.
    Horizon,
    /// The record after this sequence number.
    After(SequenceNumber),
}

/// A page of records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordPage {
    /// The records of the page, in the order of the shard.
    pub records: Vec<StreamRecord>,
    /// The iterator of the next page; `None` at the end of a closed shard.
    pub next: Option<String>,
}

/// A record of a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRecord {
    /// The place of the record in its shard.
    pub sequence: SequenceNumber,
    /// The time at which the item was written, to the second. `None` counts as now.
    pub created_at: Option<Timestamp>,
    /// The commit that the record reports; `None` for a record that is no concern of a publisher.
    pub notice: Option<Notice>,
}

/// The sequence number of a record: a number with up to 40 digits.
#[derive(Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SequenceNumber(String);

impl SequenceNumber {
    /// Creates a sequence number from the text of the service.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// Returns the text of the service.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
    fn digits(&self) -> (usize, &str) {
        let digits = self.0.trim_start_matches('0');
        (digits.len(), digits)
    }
}
impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
/// Sequence numbers are ordered as numbers, whatever their lengths.
impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_number = self.digits().cmp(&other.digits());
        by_number.then_with(|| self.0.cmp(&other.0))
    }
}
impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The error of a call of the streams API.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamServiceError {
    /// The iterator is older than 15 minutes. Another one can be made.
    #[error("the iterator has expired")]
    ExpiredIterator,
    /// The records at this place are older than 24 hours and deleted.
    #[error("the records at this place of the shard are deleted")]
    Trimmed,
    /// The shard or stream does not exist any more.
    #[error("the shard or stream does not exist")]
    Gone,
    /// The service asks for fewer requests.
    #[error("the streams API throttles")]
    Throttled {
        /// The pause that the service asks for.
        retry_after: Option<Duration>,
        /// The answer of the service.
        #[source]
        source: BoxError,
    },
    /// The service does not answer, or cannot.
    #[error("the streams API is unavailable")]
    Unavailable {
        /// The failure of the request.
        #[source]
        source: BoxError,
    },
    /// The service refuses, and a repeat does not help.
    #[error("the streams API refuses")]
    Refused {
        /// The answer of the service, which says what to change.
        #[source]
        source: BoxError,
    },
}
impl Failure for StreamServiceError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Throttled { retry_after, .. } => FailureClass::Throttled {
                retry_after: retry_after.unwrap_or_default(),
            },
            Self::Unavailable { .. } => FailureClass::Transient,
            _ => FailureClass::Permanent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_are_ordered_as_numbers() {
        let ascending = ["", "9", "0010", "11", "100000000003498069978"];
        let numbers = ascending.map(SequenceNumber::new);
        assert!(numbers.is_sorted(), "{numbers:?}");
        assert!(numbers[0] < numbers[4]);
    }
}
