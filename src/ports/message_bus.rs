//! The `MessageBus` port: an ordered, partitioned log with consumer groups.
use super::{
    Message, Offset, PartitionId, PartitionOffsets, RefusedKind, RunOutcome, TopicDescription,
};
use crate::BoxError;
use async_trait::async_trait;
use std::{fmt, fmt::Debug, sync::Arc, time::Duration};

/// The number of an assignment of one partition to one consumer. Commits under an older assignment
/// of the partition are void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignmentEpoch(u64);
impl AssignmentEpoch {
    /// Creates an epoch from its number. For adapters.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
    /// Returns the number of the epoch.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A position in a partition, at which a consumer starts to read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffsetMark {
    /// The partition to read.
    pub partition: PartitionId,
    /// The next offset to read: the one after the last offset that is done.
    pub next: Offset,
}
impl OffsetMark {
    /// Creates a position in a partition.
    #[must_use]
    pub const fn new(partition: PartitionId, next: Offset) -> Self {
        Self { partition, next }
    }
}

/// A position to commit, under the assignment that delivered the messages before it.
///
/// # Example
/// ```
/// use foldstream::Timestamp;
/// use foldstream::ports::{AssignmentEpoch, Delivery, Message, Offset, OwnedMark, PartitionId};
///
/// let partition = PartitionId::new("orders", 2);
/// let message = Message::new("orders", Timestamp::now());
/// let delivery = Delivery::new(partition, Offset::new(41), AssignmentEpoch::new(1), message);
/// // The message at offset 41 is done.
/// let done = OwnedMark::new(delivery.partition, delivery.epoch, delivery.offset.next());
/// assert_eq!(done.next, Offset::new(42));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnedMark {
    /// The partition whose position is committed.
    pub partition: PartitionId,
    /// The number of the assignment under which this consumer owns the partition.
    pub epoch: AssignmentEpoch,
    /// The next offset to read: the one after the last offset that is done.
    pub next: Offset,
}
impl OwnedMark {
    /// Creates a position to commit.
    #[must_use]
    pub const fn new(partition: PartitionId, epoch: AssignmentEpoch, next: Offset) -> Self {
        Self {
            partition,
            epoch,
            next,
        }
    }
}

/// A message that a consumer has received.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Delivery {
    /// The partition that holds the message, which `message.partition` names too.
    pub partition: PartitionId,
    /// The offset of the message.
    pub offset: Offset,
    /// The number of the assignment under which this consumer owns the partition.
    pub epoch: AssignmentEpoch,
    /// The message as it was sent.
    pub message: Message,
}
impl Delivery {
    /// Creates a delivery of a message. For adapters.
    #[must_use]
    pub const fn new(
        partition: PartitionId,
        offset: Offset,
        epoch: AssignmentEpoch,
        message: Message,
    ) -> Self {
        Self {
            partition,
            offset,
            epoch,
            message,
        }
    }
}

/// A request to join a consumer group.
///
/// # Example
/// ```
/// use foldstream::ports::{Offset, OffsetMark, PartitionId, Subscription};
/// let start = OffsetMark::new(PartitionId::new("orders", 0), Offset::new(0));
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
    pub start: Vec<OffsetMark>,
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
    pub fn with_start(mut self, start: Vec<OffsetMark>) -> Self {
        self.start = start;
        self
    }
    /// Joins as a static member with this id, which must be unique within the group.
    ///
    /// After a restart, a static member gets its partitions back without a rebalance. [`Consumer`]
    /// describes what that means for leaving. [`instance_id`](Self::instance_id) says what an id
    /// may hold; to subscribe with another one is [`Invalid`](MessageBusError::Invalid).
    #[must_use]
    pub fn with_instance_id(mut self, id: impl Into<String>) -> Self {
        self.instance_id = Some(id.into());
        self
    }

    /// Checks the name of the group, the topics and the instance id, and that there is a topic. For adapters.
    ///
    /// # Errors
    /// [`Invalid`](MessageBusError::Invalid), naming what is wrong.
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

    /// Checks the name of a topic, in whatever call it stands. For adapters.
    ///
    /// # Errors
    /// [`Invalid`](MessageBusError::Invalid) if it is empty, longer than [`MAX_TOPIC`](Self::MAX_TOPIC) characters, `.` or
    /// `..`, or holds anything but ASCII letters, digits, `.`, `_` and `-`.
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

    /// Checks the name of a group. For adapters.
    ///
    /// # Errors
    /// [`Invalid`](MessageBusError::Invalid) if it is empty, longer than
    /// [`MAX_GROUP`](Self::MAX_GROUP) bytes, or holds a NUL.
    pub fn check_group(group: &str) -> Result<(), MessageBusError> {
        if group.is_empty() || group.len() > Self::MAX_GROUP || group.contains('\0') {
            return Err(MessageBusError::Invalid {
                reason: "the name of a group has 1 to 32767 bytes and no NUL".into(),
            });
        }
        Ok(())
    }
}

/// The source of a partition's first position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartedFrom {
    /// The offset that the group has committed.
    Committed,
    /// The start position of the subscription, since the group has committed nothing.
    Declared,
}

/// A partition that was assigned to this consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssignedPartition {
    /// The partition that was assigned.
    pub partition: PartitionId,
    /// The number of this assignment. It is greater than the number of every earlier assignment of
    /// the partition to this consumer.
    pub epoch: AssignmentEpoch,
    /// The lowest offset that the first delivery can have.
    pub next: Offset,
    /// The source of the position in `next`.
    pub from: StartedFrom,
}
impl AssignedPartition {
    /// Creates an assigned partition. For adapters.
    #[must_use]
    pub const fn new(
        partition: PartitionId,
        epoch: AssignmentEpoch,
        next: Offset,
        from: StartedFrom,
    ) -> Self {
        Self {
            partition,
            epoch,
            next,
            from,
        }
    }
}

/// Partitions that were added to those of this consumer. The event is delivered before their first
/// message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Assignment {
    /// The partitions that were added. A partition without a position is reported as
    /// [`ConsumerEvent::NoPosition`] instead.
    pub partitions: Vec<AssignedPartition>,
}
impl Assignment {
    /// Creates an assignment of these partitions. For adapters.
    #[must_use]
    pub const fn new(partitions: Vec<AssignedPartition>) -> Self {
        Self { partitions }
    }
}

/// Partitions that are about to be taken from this consumer.
///
/// Until this value is dropped, or `grace` has passed, the consumer may still commit offsets for
/// the partitions.
pub struct Revocation {
    partitions: Vec<PartitionId>,
    grace: Duration,
    release: Option<Box<dyn FnOnce() + Send>>,
}
impl Revocation {
    /// Creates a revocation of these partitions. For adapters: `release` lets the rebalance
    /// continue. It is called once, when this value is dropped.
    #[must_use]
    pub fn new(
        partitions: Vec<PartitionId>,
        grace: Duration,
        release: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self {
            partitions,
            grace,
            release: Some(Box::new(release)),
        }
    }
    /// Returns the partitions that are about to be taken away.
    pub fn partitions(&self) -> &[PartitionId] {
        &self.partitions
    }
    /// Returns the time for which the group waits before it gives the partitions away.
    pub const fn grace(&self) -> Duration {
        self.grace
    }
}
impl Drop for Revocation {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}
impl fmt::Debug for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocation")
            .field("partitions", &self.partitions)
            .field("grace", &self.grace)
            .finish_non_exhaustive()
    }
}

/// The reason why an assigned partition cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoPosition {
    /// The group has committed nothing, and the subscription names no start for the partition.
    Missing,
    /// The partition does not hold the position: retention has passed it, or it is after the end.
    OutOfRange {
        /// The oldest offset that the partition holds.
        begin: Offset,
        /// The offset after the newest one.
        end: Offset,
    },
    /// The topic was deleted and created again after this consumer joined. Its positions and start
    /// positions refer to records that are gone.
    Recreated,
}

/// A message, or a change of the partitions that a consumer reads.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConsumerEvent {
    /// The next message of its partition.
    Delivery(Delivery),
    /// Everything before this offset has been delivered under this assignment, or holds nothing to
    /// deliver: offsets of transaction markers, aborted records and compacted keys.
    Reached(PartitionId, AssignmentEpoch, Offset),
    /// Partitions were added to those of this consumer.
    Assigned(Assignment),
    /// Partitions are about to be taken away. The consumer finishes their messages, commits, and
    /// then drops the revocation.
    Revoking(Revocation),
    /// Partitions have been taken away already. The consumer must not commit for them.
    Lost(Vec<PartitionId>),
    /// The partition is assigned, but delivers nothing. The caller subscribes again with a start
    /// position, or gives up.
    NoPosition(PartitionId, NoPosition),
}

/// The error returned by a [`MessageBus`] and by its consumers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageBusError {
    /// The bus is not reachable or busy. A message may have been sent, and sending it again may
    /// deliver it twice.
    #[error("the message bus is unavailable")]
    Unavailable {
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
    /// The message is larger than the limit of the topic or of the producer, which
    /// [`TopicDescription::message_limit`] returns.
    #[error("a message for {topic} has {bytes} bytes, more than the bus takes{}", limit.map_or_else(String::new, |l| format!(" ({l})")))]
    TooLarge {
        /// The topic of the message.
        topic: Arc<str>,
        /// The [`size`](Message::size) of the message in bytes.
        bytes: usize,
        /// The limit of that size in bytes, if it is known.
        limit: Option<usize>,
    },
    /// The commit belongs to an assignment that has ended. The messages are delivered again,
    /// perhaps to another member.
    #[error("the assignment of {partition} has ended")]
    StaleAssignment {
        /// The partition of the ended assignment.
        partition: PartitionId,
    },
    /// The consumer has left its group.
    #[error("the consumer has left its group")]
    Closed,
    /// The request is malformed, and nothing was sent.
    #[error("invalid request: {reason}")]
    Invalid {
        /// A description of the malformed part.
        reason: String,
    },
    /// The bus refuses until something is changed: topic, credentials, permission, configuration.
    #[error("the message bus refuses: {reason}")]
    Refused {
        /// The thing that must be changed.
        kind: RefusedKind,
        /// A description of the refused call and of the remedy.
        reason: String,
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
}
impl MessageBusError {
    /// Returns true if the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// An ordered, partitioned log with consumer groups. Every method may be called concurrently.
///
/// # Contract
/// **Publish**
/// - `publish` returns once the message is durable. Every group then receives the message, at the
///   returned offset or after it.
/// - A message goes to the partition that it names, and nowhere else. A partition that the topic
///   does not have is `Refused(UnknownPartition)`.
/// - A message that names no partition goes to the one that
///   [`kafka_partition`](crate::kafka_partition) computes from its key and the adapter's count of
///   the topic's partitions. If it has no key either, it is `Invalid`.
/// - When a topic gets more partitions, messages may name them at once. Messages that name an older
///   partition still go there.
/// - Messages for one partition, each awaited before the next, have rising offsets.
/// - Key, value, headers in order (names may repeat) and the timestamp's milliseconds arrive as
///   sent. A key, a value or a header's value that is absent stays absent, and an empty one stays
///   empty. The received message names its partition.
/// - A timestamp before 1970-01-01T00:00:00.001Z, which Kafka cannot keep, is `Invalid`.
/// - A topic that does not exist is `Refused(MissingTopic)`, and publishing never creates one. A name
///   that no topic can have ([`Subscription::check_topic`]) is `Invalid` in every call.
/// - A message over the limit of the topic or of the producer is `TooLarge`. A message whose size
///   is at most the described [`message_limit`](TopicDescription::message_limit) is not.
/// - A message that is refused takes no offset.
///
/// **Runs**
/// - The messages of a run have the same topic, key and named partition; otherwise the run is
///   `Invalid` and nothing is sent. An empty run is durable at once.
/// - The first `durable` messages of the outcome are durable, in their order. Messages after them
///   may be durable too, but never without the messages before them. `error` is `None` only if all
///   messages are durable.
/// - If the future is dropped, some first part of the run is durable, possibly none or all of it.
///   When the caller then sends the run again, the first occurrences of its messages are still in
///   order.
///
/// **Groups**
/// - Each message is delivered to one member of a group. Each group receives all messages.
/// - A partition has one reader in a group at a time. The members share the partitions.
/// - A member is told `Assigned` before the first delivery of a partition, and `Revoking` or `Lost`
///   before another member gets that partition.
/// - A partition starts at the committed offset. Without one it starts at the start position of the
///   subscription, and without either it is `NoPosition(Missing)`. A position outside the range
///   that the partition holds is `NoPosition(OutOfRange)`. No record is ever skipped silently.
/// - Deliveries of a partition are in the order of their offsets, without repeats under one
///   assignment.
/// - A message that was delivered but not committed is delivered again after its consumer has gone.
///
/// **Offsets without records**
/// - When a position passes offsets that hold nothing, and no record follows them yet, the consumer
///   is told `Reached` with the offset after them: once per offset, after the records before them,
///   and not while the partition is paused. If a record follows, its delivery implies the same, and
///   `Reached` may be sent before it.
/// - A consumer may commit the offset of `Reached`.
///
/// **Recreated topics**
/// - When a topic is deleted, the offsets that groups have committed for it are forgotten.
/// - A consumer whose topic was deleted and created again never continues at an old position, nor
///   at a start position that was meant for the old topic. It is told `NoPosition` for every
///   partition of the topic that it gets; `Recreated` where the bus knows the reason. Its old
///   assignments have ended, so that a commit under one of them is `StaleAssignment`.
/// - Where the bus has topic ids, the new topic has another one.
///
/// **Offsets** are as of some instant during the call. `end` counts all messages for which
/// `publish` has returned.
///
/// # Example
/// A bus for a program that only publishes. It counts the records of its one partition, and refuses
/// consumers:
/// ```
/// # use async_trait::async_trait;
/// use foldstream::{Timestamp, ports::*};
/// use std::sync::{Arc, Mutex};
///
/// #[derive(Debug, Default)]
/// struct Outbox(Mutex<Vec<Message>>);
///
/// # fn refused<T>() -> Result<T, MessageBusError> {
/// #     Err(MessageBusError::Refused {
/// #         kind: RefusedKind::Unsupported,
/// #         reason: "an outbox has no consumers".into(),
/// #         source: "write-only".into(),
/// #     })
/// # }
/// #[async_trait]
/// impl MessageBus for Outbox {
///     async fn publish(
///         &self,
///         message: &Message,
///     ) -> Result<(PartitionId, Offset), MessageBusError> {
///         let mut sent = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
///         let offset = Offset::new(sent.len() as u64);
///         sent.push(message.clone());
///         Ok((PartitionId::new(message.topic.clone(), 0), offset))
///     }
///     async fn describe_topic(&self, _: &str) -> Result<TopicDescription, MessageBusError> {
///         Ok(TopicDescription::new(1))
///     }
///     async fn subscribe(&self, _: Subscription) -> Result<Arc<dyn Consumer>, MessageBusError> {
///         refused()
///     }
///     // `offsets`, `committed` and `delete_group` refuse as `subscribe` does.
/// #     async fn offsets(&self, _: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
/// #         refused()
/// #     }
/// #     async fn committed(
/// #         &self,
/// #         _: &str,
/// #         _: &str,
/// #     ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
/// #         refused()
/// #     }
/// #     async fn delete_group(&self, _: &str) -> Result<(), MessageBusError> {
/// #         refused()
/// #     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let outbox = Outbox::default();
/// let message = Message::new("orders", Timestamp::now()).with_key("order#7").with_partition(0);
/// assert_eq!(outbox.publish(&message).await?.1, Offset::new(0));
/// // The provided method sends a run one message after the other.
/// let outcome = outbox.publish_run(&[message.clone(), message]).await;
/// assert_eq!((outcome.durable, outcome.error.is_none()), (2, true));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message bus",
    label = "not a `MessageBus`",
    note = "use an adapter such as `foldstream_kafka::KafkaMessageBus`, by value or in an `Arc`, or implement `foldstream::ports::MessageBus`"
)]
pub trait MessageBus: Debug + Send + Sync + 'static {
    /// Sends one message, and returns its partition and offset once it is durable.
    ///
    /// # Errors
    /// - `Invalid` if the message names no partition and has no key.
    /// - `TooLarge` if the message is over the limit of the topic or of the producer.
    /// - `Refused` if the topic or the partition does not exist, or until something else is
    ///   changed.
    /// - `Unavailable` if the bus is not reachable or busy. The message may have been sent, and a
    ///   retry may then send a duplicate.
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError>;

    /// Sends the messages of one key in order, and returns the number of messages that are durable.
    ///
    /// The provided method awaits one message before it sends the next. An adapter may have several
    /// in flight as long as it keeps the contract of runs.
    async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        if let Err(error) = Message::check_run(run) {
            return RunOutcome::broken_off(0, error);
        }
        for (durable, message) in run.iter().enumerate() {
            if let Err(error) = self.publish(message).await {
                return RunOutcome::broken_off(durable, error);
            }
        }
        RunOutcome::complete(run.len())
    }

    /// Joins a consumer group.
    ///
    /// # Errors
    /// - `Refused(MissingTopic)` if a topic does not exist.
    /// - `Invalid`, at once, if the group's name or the instance id is not one that a
    ///   [`Subscription`] may have.
    /// - Another [`MessageBusError`] if the bus refuses or fails.
    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError>;

    /// Returns the range of offsets of every partition of a topic, ordered by partition.
    ///
    /// # Errors
    /// - `Refused(MissingTopic)` if the topic does not exist.
    /// - Another [`MessageBusError`] if the bus refuses or fails.
    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError>;

    /// Returns the offset that a group has committed for every partition of a topic, ordered by
    /// partition. It is `None` where the group has committed nothing.
    ///
    /// # Errors
    /// - `Refused(MissingTopic)` if the topic does not exist.
    /// - `Invalid` if no group can have this name.
    /// - Another [`MessageBusError`] if the bus refuses or fails.
    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError>;

    /// Returns the settings of a topic.
    ///
    /// # Errors
    /// - `Refused(MissingTopic)` if the topic does not exist.
    /// - Another [`MessageBusError`] if the bus refuses or fails.
    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError>;

    /// Deletes a group without members, and every offset that it has committed. Deleting an unknown
    /// group succeeds.
    ///
    /// # Errors
    /// - `Refused(Validation)` if the group has members, including static members that are away.
    /// - `Invalid` if no group can have this name.
    /// - Another [`MessageBusError`] if the bus refuses or fails.
    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError>;
}

/// A member of a consumer group. Dropping it has the same effect as [`leave`](Self::leave), without
/// waiting for it.
///
/// # Contract
/// - Dropping the future of `next` loses nothing. Only one caller at a time may wait for `next`.
/// - A commit is durable when `commit` returns. It never moves a partition that this consumer does
///   not own under that epoch: then the answer is `StaleAssignment`, and nothing of the call is
///   stored.
/// - A commit for the partitions of a revocation counts until the revocation is dropped or its
///   grace has passed.
/// - A paused partition delivers nothing. The membership stays alive as long as `next` is called. A
///   resumed partition continues without a gap. A pause ends with its assignment.
/// - `leave` commits nothing. Afterwards every method is `Closed`, except `leave` itself.
/// - `leave` gives the partitions of a dynamic member to the others at once.
/// - A static member does not leave the group: its partitions stay assigned to its instance id. A
///   member that joins under the same id gets them back, from the committed offsets, without a
///   change for the other members. The others get its partitions only when the session of the
///   member expires.
/// - Of two members with one instance id at the same time only one stays. The other gets
///   `Refused(InstanceIdInUse)`.
///
/// # Example
/// A consumer that delivers a fixed list of messages, for a test of code that reads one:
/// ```
/// # use async_trait::async_trait;
/// use foldstream::{Timestamp, ports::*};
/// use std::{collections::VecDeque, sync::Mutex};
///
/// #[derive(Debug, Default)]
/// struct Recorded {
///     events: Mutex<VecDeque<ConsumerEvent>>,
///     committed: Mutex<Vec<OwnedMark>>,
/// }
///
/// #[async_trait]
/// impl Consumer for Recorded {
///     async fn next(&self) -> Result<ConsumerEvent, MessageBusError> {
///         let next = self.events.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front();
///         match next {
///             Some(event) => Ok(event),
///             None => std::future::pending().await,
///         }
///     }
///     async fn commit(&self, marks: &[OwnedMark]) -> Result<(), MessageBusError> {
///         let mut committed = self.committed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
///         committed.extend_from_slice(marks);
///         Ok(())
///     }
///     async fn pause(&self, _: &[PartitionId]) -> Result<(), MessageBusError> {
///         Ok(())
///     }
///     async fn resume(&self, _: &[PartitionId]) -> Result<(), MessageBusError> {
///         Ok(())
///     }
///     async fn leave(&self) -> Result<(), MessageBusError> {
///         Ok(())
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let consumer = Recorded::default();
/// let (partition, epoch) = (PartitionId::new("orders", 0), AssignmentEpoch::new(1));
/// let message = Message::new("orders", Timestamp::now());
/// let delivery = Delivery::new(partition, Offset::new(41), epoch, message);
/// consumer.events.lock().unwrap().push_back(ConsumerEvent::Delivery(delivery));
///
/// let ConsumerEvent::Delivery(delivery) = consumer.next().await? else {
///     return Err("the first event is a delivery".into());
/// };
/// // Its effects are durable: the offset after it may be committed.
/// let done = OwnedMark::new(delivery.partition, delivery.epoch, delivery.offset.next());
/// consumer.commit(&[done]).await?;
/// assert_eq!(consumer.committed.lock().unwrap()[0].next, Offset::new(42));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
pub trait Consumer: Debug + Send + Sync + 'static {
    /// Waits for the next message or change of assignment.
    ///
    /// # Errors
    /// [`MessageBusError`] if the consumer has left, or if the bus refuses or fails. After a
    /// transient error the caller calls again.
    async fn next(&self) -> Result<ConsumerEvent, MessageBusError>;

    /// Stores positions of the group.
    ///
    /// # Errors
    /// - `StaleAssignment` if this consumer does not own one of the partitions under that epoch.
    /// - Another [`MessageBusError`] if the bus refuses or fails.
    async fn commit(&self, marks: &[OwnedMark]) -> Result<(), MessageBusError>;

    /// Stops deliveries of these partitions. A partition that is not assigned is ignored.
    ///
    /// # Errors
    /// [`MessageBusError`] if the consumer has left, or if the bus fails.
    async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError>;

    /// Resumes deliveries of these partitions. A partition that is not assigned is ignored.
    ///
    /// # Errors
    /// [`MessageBusError`] if the consumer has left, or if the bus fails.
    async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError>;

    /// Ends the membership, so that other members need not wait for the session to expire. The
    /// contract describes static members. Leaving again succeeds.
    ///
    /// # Errors
    /// [`MessageBusError`] if the bus fails. The membership then ends when the session expires.
    async fn leave(&self) -> Result<(), MessageBusError>;
}
