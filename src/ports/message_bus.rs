//! The `MessageBus` port: an ordered, partitioned log with consumer groups.
//!
//! The rules for a member of a group (offset commits, epochs, pauses, static members) are the
//! contract of [`Consumer`], in `consumer.rs`.
use super::{
    Consumer, Message, Offset, PartitionId, PartitionOffsets, RefusedKind, RunOutcome,
    Subscription, TopicDescription,
};
use crate::BoxError;
use async_trait::async_trait;
use std::{fmt::Debug, sync::Arc};

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
///   [`kafka_partition`](crate::adapter::kafka_partition) computes from its key and the
///   adapter's count of the topic's partitions. If it has no key either, it is `Invalid`.
/// - When a topic gets more partitions, messages may name them at once. Messages that name an older
///   partition still go there.
/// - Messages for one partition, each awaited before the next, have rising offsets.
/// - Key, value, headers in order (names may repeat) and the timestamp's milliseconds arrive as
///   sent. A key, a value or a header's value that is absent stays absent, and an empty one stays
///   empty. The received message names its partition.
/// - A timestamp before 1970-01-01T00:00:00.001Z, which Kafka cannot keep, is `Invalid`.
/// - A topic that does not exist is `Refused(MissingTopic)`, and publishing never creates one. A
///   name that no topic can have ([`Subscription::check_topic`]) is `Invalid` in every call.
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
