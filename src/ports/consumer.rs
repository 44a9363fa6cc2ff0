//! The `Consumer` port: a member of a consumer group, and the events that it receives.
use super::{Message, MessageBusError, Offset, PartitionId};
use async_trait::async_trait;
use futures::FutureExt;
use std::{fmt, fmt::Debug, time::Duration};

/// The number of an assignment of one partition to one consumer. Commits under an older assignment
/// of the partition are void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignmentEpoch(u64);
impl AssignmentEpoch {
    /// Creates an epoch from its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
    /// Returns the number of the epoch.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A position to commit, under the assignment that delivered the messages before it.
///
/// # Example
/// ```
/// use foldstream::Timestamp;
/// use foldstream::ports::{AssignmentEpoch, Delivery, Message, Offset, OffsetCommit, PartitionId};
///
/// let partition = PartitionId::new("orders", 2);
/// let message = Message::new("orders", Timestamp::now());
/// let delivery = Delivery::new(partition, Offset::new(41), AssignmentEpoch::new(1), message);
/// // The message at offset 41 is done.
/// let done = OffsetCommit::new(delivery.partition, delivery.epoch, delivery.offset.next());
/// assert_eq!(done.next, Offset::new(42));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffsetCommit {
    /// The partition whose position is committed.
    pub partition: PartitionId,
    /// The number of the assignment under which this consumer owns the partition.
    pub epoch: AssignmentEpoch,
    /// The next offset to read: the one after the last offset that is done.
    pub next: Offset,
}
impl OffsetCommit {
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
    /// Creates a delivery of a message.
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

/// The source of a partition's first position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartedFrom {
    /// The offset that the group has committed.
    Committed,
    /// The start position of the subscription, since the group has committed nothing.
    Configured,
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
    /// Creates an assigned partition.
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
    /// Creates an assignment of these partitions.
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
    /// Creates a revocation of these partitions. `release` lets the rebalance continue. It is
    /// called once, when this value is dropped.
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
#[allow(
    clippy::large_enum_variant,
    reason = "almost all events are deliveries"
)]
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

/// A member of a consumer group. Dropping it has the same effect as [`leave`](Self::leave), without
/// waiting for it.
///
/// # Contract
/// - Dropping the future of `next` loses nothing. Only one caller at a time may wait for `next`,
///   and nobody calls `try_next` meanwhile.
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
///     committed: Mutex<Vec<OffsetCommit>>,
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
///     async fn commit(&self, offsets: &[OffsetCommit]) -> Result<(), MessageBusError> {
///         let mut committed = self.committed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
///         committed.extend_from_slice(offsets);
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
/// let done = OffsetCommit::new(delivery.partition, delivery.epoch, delivery.offset.next());
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

    /// Returns what [`next`](Self::next) would return, if it is there already.
    ///
    /// The default polls `next` once. An adapter whose `next` costs more than a look at a queue
    /// overrides it: a runner calls it for most messages.
    fn try_next(&self) -> Option<Result<ConsumerEvent, MessageBusError>> {
        self.next().now_or_never()
    }

    /// Stores positions of the group.
    ///
    /// # Errors
    /// - `StaleAssignment` if this consumer does not own one of the partitions under that epoch.
    /// - Another [`MessageBusError`] if the bus refuses or fails.
    async fn commit(&self, offsets: &[OffsetCommit]) -> Result<(), MessageBusError>;

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
