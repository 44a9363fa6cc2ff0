//! `MessageBus`: an ordered, partitioned log with consumer groups.
use super::{Message, Offset, PartitionId, PartitionOffsets, RefusedKind, TopicDescription};
use crate::BoxError;
use async_trait::async_trait;
use std::{fmt, fmt::Debug, sync::Arc, time::Duration};

/// Counts the assignments of one partition to one consumer; what belongs to an older one is void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignmentEpoch(u64);
impl AssignmentEpoch {
    /// For adapters.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A place in a partition: the next offset to read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffsetMark {
    /// Which partition.
    pub partition: PartitionId,
    /// The next offset to read: one past the last that is done.
    pub next: Offset,
}
impl OffsetMark {
    /// A place.
    #[must_use]
    pub const fn new(partition: PartitionId, next: Offset) -> Self {
        Self { partition, next }
    }
}

/// A place that is committed under one assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnedMark {
    /// Which partition.
    pub partition: PartitionId,
    /// Under which assignment.
    pub epoch: AssignmentEpoch,
    /// The next offset to read: one past the last that is done.
    pub next: Offset,
}
impl OwnedMark {
    /// A place.
    #[must_use]
    pub const fn new(partition: PartitionId, epoch: AssignmentEpoch, next: Offset) -> Self {
        Self {
            partition,
            epoch,
            next,
        }
    }
}

/// A message as received.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Delivery {
    /// From where.
    pub partition: PartitionId,
    /// Its place.
    pub offset: Offset,
    /// Under which assignment.
    pub epoch: AssignmentEpoch,
    /// What was sent.
    pub message: Message,
}
impl Delivery {
    /// For adapters.
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

/// A wish to consume.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Subscription {
    /// Members of a group share the partitions.
    pub group: String,
    /// Topics; all must exist.
    pub topics: Vec<Arc<str>>,
    /// Where to start, only for partitions where the group has committed nothing. There is no "oldest" or "newest":
    /// the bus would resolve it anew after each loss of a commit, and skip or repeat silently.
    pub start: Vec<OffsetMark>,
}
impl Subscription {
    /// Joins `group`, from where it committed.
    #[must_use]
    pub fn new(
        group: impl Into<String>,
        topics: impl IntoIterator<Item = impl Into<Arc<str>>>,
    ) -> Self {
        Self {
            group: group.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            start: Vec::new(),
        }
    }
    /// Where to start if nothing is committed.
    #[must_use]
    pub fn with_start(mut self, start: Vec<OffsetMark>) -> Self {
        self.start = start;
        self
    }
}

/// Why a partition starts where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartedFrom {
    /// The group's committed offset.
    Committed,
    /// Nothing was committed: the subscription's start mark.
    Declared,
}

/// A partition that this consumer now reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssignedPartition {
    /// Which.
    pub partition: PartitionId,
    /// Under which assignment; greater than every earlier one of this partition at this consumer.
    pub epoch: AssignmentEpoch,
    /// The offset of the first delivery, at the earliest.
    pub next: Offset,
    /// Why there.
    pub from: StartedFrom,
}
impl AssignedPartition {
    /// For adapters.
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

/// Partitions that were added to what this consumer reads. Comes before their first delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Assignment {
    /// The added partitions; those that have no position come as [`ConsumerEvent::NoPosition`] instead.
    pub partitions: Vec<AssignedPartition>,
}
impl Assignment {
    /// For adapters.
    #[must_use]
    pub const fn new(partitions: Vec<AssignedPartition>) -> Self {
        Self { partitions }
    }
}

/// Partitions about to be taken away. Until this is dropped, or `grace` has passed, a commit still counts for them.
pub struct Revocation {
    partitions: Vec<PartitionId>,
    grace: Duration,
    release: Option<Box<dyn FnOnce() + Send>>,
}
impl Revocation {
    /// For adapters: `release` lets the rebalance go on. It runs once, when this is dropped.
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
    /// Which.
    pub fn partitions(&self) -> &[PartitionId] {
        &self.partitions
    }
    /// How long the group waits.
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

/// Why an assigned partition cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoPosition {
    /// Nothing is committed, and the subscription names no start for it.
    Missing,
    /// The position is not within the partition any more: retention has passed it, or the topic was made anew.
    OutOfRange {
        /// The oldest offset that is there.
        begin: Offset,
        /// One past the newest.
        end: Offset,
    },
}

/// What a consumer tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConsumerEvent {
    /// A message, in order within its partition.
    Delivery(Delivery),
    /// Partitions were added.
    Assigned(Assignment),
    /// Partitions will be taken: finish, commit, then drop it.
    Revoking(Revocation),
    /// Partitions are gone already: commit nothing.
    Lost(Vec<PartitionId>),
    /// The partition is assigned, but delivers nothing. Subscribe again with a start mark, or give up.
    NoPosition(PartitionId, NoPosition),
}

/// Why the bus could not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageBusError {
    /// Not reachable or busy; a message may have been sent, and sending it again may deliver it twice.
    #[error("the message bus is unavailable")]
    Unavailable {
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// Over the limit of the bus.
    #[error("a message for {topic} has {bytes} bytes, more than the bus takes{}", limit.map_or_else(String::new, |l| format!(" ({l})")))]
    TooLarge {
        /// The topic.
        topic: Arc<str>,
        /// About the size of the record.
        bytes: usize,
        /// The most it takes, if known.
        limit: Option<usize>,
    },
    /// A commit under an assignment that ended; the messages will come again, perhaps elsewhere.
    #[error("the assignment of {partition} has ended")]
    StaleAssignment {
        /// Whose.
        partition: PartitionId,
    },
    /// The consumer has left its group.
    #[error("the consumer has left its group")]
    Closed,
    /// A malformed request.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// Something must be changed first: topic, credentials, permission, configuration.
    #[error("the message bus refuses: {reason}")]
    Refused {
        /// What must change.
        kind: RefusedKind,
        /// What was refused and what to do about it.
        reason: String,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
}
impl MessageBusError {
    /// Whether the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// An ordered, partitioned log.
///
/// # Contract
/// **Publish**
/// - Returns once the message is durable; it is then delivered to every group, at or behind the returned place.
/// - Messages of one key, each awaited before the next, have rising offsets in one partition: the one that
///   [`kafka_partition`](crate::kafka_partition) names.
/// - Key, value (also none, also empty), headers in order (names may repeat) and the timestamp's milliseconds arrive as sent.
/// - A topic that does not exist is `Refused(MissingTopic)`; it is never made by publishing. A message over the limit is `TooLarge`.
///
/// **Groups**
/// - Each message is delivered to one member of a group; each group gets all messages.
/// - A partition has one reader in a group at a time; members share the partitions, and a leaving member's go to the others.
/// - A member is told `Assigned` before the first delivery of a partition, and `Revoking` or `Lost` before another member gets it.
/// - A partition starts at the committed offset, else at its start mark, else it is `NoPosition(Missing)`; outside of
///   what the partition holds it is `NoPosition(OutOfRange)`. Nothing is ever skipped silently.
/// - Deliveries of a partition are in offset order without repeats under one assignment.
/// - What is delivered but not committed comes again after the consumer has gone.
///
/// **Offsets** are as of some instant during the call; `end` counts messages that `publish` has returned for.
#[async_trait]
pub trait MessageBus: Debug + Send + Sync + 'static {
    /// Sends one message and returns its place once it is durable.
    ///
    /// # Errors
    /// [`MessageBusError`]; after `Unavailable` the message may be there, also twice after a retry.
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError>;

    /// Joins a group.
    ///
    /// # Errors
    /// [`MessageBusError`]; `Refused(MissingTopic)` if a topic does not exist.
    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError>;

    /// What every partition of a topic holds, by partition.
    ///
    /// # Errors
    /// [`MessageBusError`]; `Refused(MissingTopic)`.
    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError>;

    /// Where a group is in every partition of a topic, by partition; `None` where it has committed nothing.
    ///
    /// # Errors
    /// [`MessageBusError`]; `Refused(MissingTopic)`.
    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError>;

    /// How a topic is set up.
    ///
    /// # Errors
    /// [`MessageBusError`]; `Refused(MissingTopic)`.
    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError>;

    /// Forgets a group without members and what it committed. A group that is not there is forgotten already.
    ///
    /// # Errors
    /// [`MessageBusError`]; `Refused(Validation)` while the group has members.
    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError>;
}

/// One member of a group. Dropping it leaves the group without committing.
///
/// # Contract
/// - Dropping the future of `next` loses nothing. One caller of `next` at a time.
/// - `commit` is durable when it returns, and never moves a partition that this consumer does not own under that epoch:
///   then it is `StaleAssignment`, and nothing of the call is stored.
/// - Until a revocation is dropped, or its grace has passed, a commit for its partitions counts.
/// - A paused partition delivers nothing, while membership goes on as `next` is called; a resumed one goes on without a
///   gap. A pause ends with its assignment.
/// - `leave` gives the partitions to the others at once; afterwards everything is `Closed`, save `leave` itself.
#[async_trait]
pub trait Consumer: Debug + Send + Sync + 'static {
    /// The next message or change of assignment; waits for one.
    ///
    /// # Errors
    /// [`MessageBusError`]; after a transient one, call again.
    async fn next(&self) -> Result<ConsumerEvent, MessageBusError>;

    /// Stores the group's places.
    ///
    /// # Errors
    /// [`MessageBusError`].
    async fn commit(&self, marks: &[OwnedMark]) -> Result<(), MessageBusError>;

    /// Stops deliveries of these partitions. One that is not assigned is ignored.
    ///
    /// # Errors
    /// [`MessageBusError`].
    async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError>;

    /// Ends a pause. One that is not assigned is ignored.
    ///
    /// # Errors
    /// [`MessageBusError`].
    async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError>;

    /// Leaves the group, so that others need not wait for the session to end. Idempotent.
    ///
    /// # Errors
    /// [`MessageBusError`]; the membership then ends by itself after the session timeout.
    async fn leave(&self) -> Result<(), MessageBusError>;
}
