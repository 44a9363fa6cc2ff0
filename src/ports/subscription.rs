//! Subscriptions: requests to join a consumer group.
use super::{MessageBusError, Offset, PartitionId};
use std::sync::Arc;

/// A position in a partition, at which a consumer starts to read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartOffset {
    /// The partition to read.
    pub partition: PartitionId,
    /// The next offset to read: the one after the last offset that is done.
    pub next: Offset,
}
impl StartOffset {
    /// Creates a position in a partition.
    #[must_use]
    pub const fn new(partition: PartitionId, next: Offset) -> Self {
        Self { partition, next }
    }
}

/// A request to join a consumer group.
///
/// # Example
/// ```
/// use foldstream::ports::{Offset, StartOffset, PartitionId, Subscription};
/// let start = StartOffset::new(PartitionId::new("orders", 0), Offset::new(0));
/// let subscription = Subscription::new("billing", ["orders"])
///     .with_start(vec![start])
///     .with_instance_id("billing-host-1");
/// assert_eq!(subscription.instance_id.as_deref(), Some("billing-host-1"));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Subscription {
    /// The consumer group, whose members share the partitions. The name has 1 to
    /// [`MAX_GROUP`](Self::MAX_GROUP) bytes without NUL.
    pub group: String,
    /// The topics to read. All of them must exist.
    pub topics: Vec<Arc<str>>,
    /// The positions for partitions where the group has committed nothing; empty by default. There
    /// is no "oldest" or "newest": the bus would resolve such a word again after each loss of a
    /// commit, and skip or repeat records silently.
    pub start: Vec<StartOffset>,
    /// The id of a static member: 1 to [`MAX_INSTANCE_ID`](Self::MAX_INSTANCE_ID) ASCII letters,
    /// digits, `.`, `_` and `-`, but not `.` or `..` alone. `None`, the default, joins as a dynamic
    /// member.
    pub instance_id: Option<String>,
}
impl Subscription {
    /// The largest size of a group's name in bytes: the limit of a text in Kafka's protocol.
    pub const MAX_GROUP: usize = 32_767;
    /// The largest number of characters in the name of a topic, which is Kafka's limit.
    pub const MAX_TOPIC: usize = 249;
    /// The largest number of characters in an instance id, which is Kafka's limit.
    pub const MAX_INSTANCE_ID: usize = 249;

    /// Creates a request to join `group` as a dynamic member that starts where the group has
    /// committed.
    #[must_use]
    pub fn new(
        group: impl Into<String>,
        topics: impl IntoIterator<Item = impl Into<Arc<str>>>,
    ) -> Self {
        Self {
            group: group.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            start: Vec::new(),
            instance_id: None,
        }
    }
    /// Sets the positions for the partitions where the group has committed nothing.
    #[must_use]
    pub fn with_start(mut self, start: Vec<StartOffset>) -> Self {
        self.start = start;
        self
    }
    /// Joins as a static member with this id, which must be unique within the group.
    ///
    /// After a restart, a static member gets its partitions back without a rebalance.
    /// [`Consumer`](super::Consumer) describes what that means for leaving.
    /// [`instance_id`](Self::instance_id) says what an id may hold; to subscribe with another one
    /// is [`Invalid`](MessageBusError::Invalid).
    #[must_use]
    pub fn with_instance_id(mut self, id: impl Into<String>) -> Self {
        self.instance_id = Some(id.into());
        self
    }

    /// Checks the name of the group, the topics and the instance id.
    ///
    /// # Errors
    /// [`Invalid`](MessageBusError::Invalid) if a name or the instance id is not allowed, or if
    /// there is no topic. It names what is wrong.
    #[doc(hidden)]
    pub fn check(&self) -> Result<(), MessageBusError> {
        Self::check_group(&self.group)?;
        let mut topics = self.topics.iter();
        topics.try_for_each(|topic| Self::check_topic(topic))?;
        let invalid = |reason: &str| {
            let reason = reason.into();
            Err(MessageBusError::Invalid { reason })
        };
        if self.topics.is_empty() {
            return invalid("a subscription names at least one topic");
        }
        let Some(id) = &self.instance_id else {
            return Ok(());
        };
        let is_legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if id.is_empty() || id.len() > Self::MAX_INSTANCE_ID {
            return invalid("an instance id has 1 to 249 characters");
        }
        if id == "." || id == ".." || !id.bytes().all(is_legal) {
            return invalid(
                "an instance id has only ASCII letters, digits, '.', '_' and '-', and is not \".\" nor \"..\"",
            );
        }
        Ok(())
    }

    /// Checks the name of a topic, in any call that has one.
    ///
    /// # Errors
    /// [`Invalid`](MessageBusError::Invalid) if the name is empty, longer than
    /// [`MAX_TOPIC`](Self::MAX_TOPIC) characters, `.` or `..`, or holds anything but ASCII letters,
    /// digits, `.`, `_` and `-`.
    #[doc(hidden)]
    pub fn check_topic(topic: &str) -> Result<(), MessageBusError> {
        let is_legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let reason = if topic.is_empty() || topic.len() > Self::MAX_TOPIC {
            "the name of a topic must have 1 to 249 characters"
        } else if topic == "." || topic == ".." {
            "the name of a topic must not be \".\" nor \"..\""
        } else if !topic.bytes().all(is_legal) {
            "the name of a topic may have only ASCII letters, digits, '.', '_' and '-'"
        } else {
            return Ok(());
        };
        let reason = reason.into();
        Err(MessageBusError::Invalid { reason })
    }

    /// Checks the name of a group.
    ///
    /// # Errors
    /// [`Invalid`](MessageBusError::Invalid) if it is empty, longer than
    /// [`MAX_GROUP`](Self::MAX_GROUP) bytes, or holds a NUL.
    #[doc(hidden)]
    pub fn check_group(group: &str) -> Result<(), MessageBusError> {
        if group.is_empty() || group.len() > Self::MAX_GROUP || group.contains('\0') {
            return Err(MessageBusError::Invalid {
                reason: "the name of a group has 1 to 32767 bytes and no NUL".into(),
            });
        }
        Ok(())
    }
}
