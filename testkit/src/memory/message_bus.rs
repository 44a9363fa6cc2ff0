//! The in-memory message bus.
use super::{
    consumer::InMemoryConsumer,
    group::{Group, MemberId, Surroundings, Timeouts},
    lock,
    topic::{MetadataLag, Topics},
};
use async_trait::async_trait;
use foldstream::{
    adapter::{check_group, check_subscription, check_topic},
    ports::{
        Consumer, Message, MessageBus, MessageBusError, Offset, PartitionId, PartitionOffsets,
        RefusedKind, Subscription, TopicDescription,
    },
};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// A [`MessageBus`] in memory, with real consumer groups.
///
/// Topics are created by [`create_topic`](Self::create_topic) and never by publishing. A key gets
/// the partition that Kafka's Java clients choose. The bus keeps messages and committed offsets
/// until the last clone of the `Arc` and the last consumer are dropped.
///
/// Members of a group share the partitions round-robin, in the order in which they joined. A
/// partition moves to another member after its old owner has dropped the revocation, or after the
/// grace has passed. The grace is measured with tokio's clock, which a test may pause, so the
/// runtime needs its time driver.
///
/// The bus does not apply the retention and compaction of a topic's description. Instead,
/// [`delete_records_before`](Self::delete_records_before) deletes old records, and
/// [`remove_records`](Self::remove_records) leaves offsets without records. While members read,
/// topics can get more partitions ([`set_partitions`](Self::set_partitions)), be deleted
/// ([`delete_topic`](Self::delete_topic)) and be created again.
/// [`set_metadata_lag`](Self::set_metadata_lag) delays the moment at which clients learn of that.
///
/// # Example
/// ```
/// use foldstream::{Timestamp, ports::*};
/// use foldstream_testkit::InMemoryMessageBus;
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let bus = InMemoryMessageBus::new();
/// bus.create_topic("events", 1);
/// let message = Message::new("events", Timestamp::now()).with_key("cart#a").with_value("{}");
/// bus.publish(&message).await?;
///
/// let start = StartOffset::new(PartitionId::new("events", 0), Offset::new(0));
/// let subscription = Subscription::new("g", ["events"]).with_start(vec![start]);
/// let consumer = bus.subscribe(subscription).await?;
/// assert!(matches!(consumer.next().await?, ConsumerEvent::Assigned(_)));
/// let ConsumerEvent::Delivery(first) = consumer.next().await? else {
///     panic!("the message was not delivered")
/// };
/// let next = OffsetCommit::new(first.partition, first.epoch, first.offset.next());
/// consumer.commit(&[next]).await?;
/// let committed = bus.committed("g", "events").await?;
/// assert_eq!(committed[0].1, Some(Offset::new(1)));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Debug)]
pub struct InMemoryMessageBus(Arc<Shared>);

/// The state that the bus and its consumers share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    timeouts: Timeouts,
}

#[derive(Debug, Default)]
struct State {
    topics: Topics,
    groups: BTreeMap<String, Group>,
    /// The number of the member that joined last.
    members: u64,
    /// The highest epoch so far. All partitions and consumers share one count, so that a new epoch
    /// is higher than all earlier ones.
    epochs: u64,
}

impl State {
    fn split(&mut self, timeouts: Timeouts) -> (&mut BTreeMap<String, Group>, Surroundings<'_>) {
        let around = Surroundings {
            topics: &self.topics,
            epochs: &mut self.epochs,
            now: Instant::now(),
            timeouts,
        };
        (&mut self.groups, around)
    }

    /// Counts a call that asks for a topic. If the call shows a change of the topic, all groups are
    /// updated.
    fn ask(&mut self, topic: &str, timeouts: Timeouts) {
        if self.topics.ask(topic) {
            self.settle_all(timeouts);
        }
    }

    /// Shows all changes of topics that are due, and updates the groups.
    fn show_due(&mut self, timeouts: Timeouts) {
        if self.topics.show_due(Instant::now()) {
            self.settle_all(timeouts);
        }
    }

    /// Updates the assignment of every group after a change of the topics.
    fn settle_all(&mut self, timeouts: Timeouts) {
        let (groups, mut around) = self.split(timeouts);
        for group in groups.values_mut() {
            group.settle(&mut around);
        }
    }
}

impl Shared {
    /// Runs a function on a group under the lock. Returns `None` if there is no such group.
    pub(super) fn with_group<T>(
        &self,
        name: &str,
        act: impl FnOnce(&mut Group, &mut Surroundings<'_>) -> T,
    ) -> Option<T> {
        let mut state = lock(&self.state);
        state.show_due(self.timeouts);
        let (groups, mut around) = state.split(self.timeouts);
        Some(act(groups.get_mut(name)?, &mut around))
    }
}

impl InMemoryMessageBus {
    /// The default time for which a group waits for the release of a revocation.
    ///
    /// [`with_grace`](Self::with_grace) sets another.
    pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
    /// The default size in bytes of the largest record that a topic takes, which is Kafka's
    /// default.
    pub const DEFAULT_MAX_MESSAGE_BYTES: u64 = 1_048_588;
    /// The default size in bytes of the largest record that is sent, which is the default of
    /// `foldstream_kafka::KafkaConfig`.
    pub const DEFAULT_MAX_PRODUCER_BYTES: u64 = 1_000_000;
    /// The bytes that both limits count in addition to the size of a message, as in the Kafka
    /// adapter.
    const RECORD_OVERHEAD: u64 = 97;

    /// The default time for which a group waits for an absent static member, which is Kafka's
    /// default.
    ///
    /// [`with_session_timeout`](Self::with_session_timeout) sets another.
    pub const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(45);

    /// Creates a bus without topics.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_timeouts(Self::DEFAULT_GRACE, Self::DEFAULT_SESSION_TIMEOUT)
    }

    /// Creates a bus without topics whose groups wait this long for a revocation to be dropped.
    #[must_use]
    pub fn with_grace(grace: Duration) -> Arc<Self> {
        Self::with_timeouts(grace, Self::DEFAULT_SESSION_TIMEOUT)
    }

    /// Creates a bus without topics whose groups wait this long for a static member that has left.
    #[must_use]
    pub fn with_session_timeout(session: Duration) -> Arc<Self> {
        Self::with_timeouts(Self::DEFAULT_GRACE, session)
    }

    fn with_timeouts(grace: Duration, session: Duration) -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared {
            state: Mutex::default(),
            timeouts: Timeouts { grace, session },
        })))
    }

    /// Creates a topic that keeps all records and has Kafka's limits.
    ///
    /// 0 partitions count as 1. Returns true if the topic was created, or false if it existed, in
    /// which case it is not changed.
    ///
    /// # Panics
    /// If the name is not a valid topic name.
    pub fn create_topic(&self, name: impl Into<Arc<str>>, partitions: u32) -> bool {
        let description = TopicDescription::new(partitions)
            .with_compacted(Some(false))
            .with_retention(Some(Duration::MAX))
            .with_max_message_bytes(Some(Self::DEFAULT_MAX_MESSAGE_BYTES))
            .with_max_producer_bytes(Some(Self::DEFAULT_MAX_PRODUCER_BYTES))
            .with_record_overhead(Self::RECORD_OVERHEAD);
        self.create_topic_as(name, description)
    }

    /// Creates a topic with this description and a new topic id.
    ///
    /// Returns true if the topic was created, or false if it existed, in which case it is not
    /// changed.
    ///
    /// # Panics
    /// If the name is not a valid topic name.
    pub fn create_topic_as(
        &self,
        name: impl Into<Arc<str>>,
        description: TopicDescription,
    ) -> bool {
        let name = name.into();
        if let Err(error) = check_topic(&name) {
            panic!("the topic {name:?} cannot be created: {error}");
        }
        let mut state = lock(&self.0.state);
        let is_new = state.topics.create(name, description);
        state.settle_all(self.0.timeouts);
        is_new
    }

    /// Sets the metadata lag of topics that are created or get more partitions from now on.
    ///
    /// The default is [`MetadataLag::None`]. During the lag a new topic is `Refused(MissingTopic)`.
    /// A topic that got more partitions shows the old number to publishers, to members of groups,
    /// and in `describe_topic`, `offsets` and `committed`. A message that names a new partition is
    /// `Refused(UnknownPartition)`, and a message that names none gets its partition from its key
    /// and the old number. The Kafka adapter waits up to 2 s for a topic that it has never used;
    /// this bus returns the error at once.
    ///
    /// # Example
    /// ```
    /// use foldstream::ports::{MessageBus, MessageBusError, RefusedKind};
    /// use foldstream_testkit::{InMemoryMessageBus, MetadataLag};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// let bus = InMemoryMessageBus::new();
    /// bus.set_metadata_lag(MetadataLag::Calls(1));
    /// bus.create_topic("events", 4);
    /// let unknown = bus.describe_topic("events").await;
    /// assert!(matches!(
    ///     unknown,
    ///     Err(MessageBusError::Refused { kind: RefusedKind::MissingTopic, .. })
    /// ));
    /// assert_eq!(bus.describe_topic("events").await?.partitions, 4);
    /// # Ok::<(), foldstream::BoxError>(())
    /// # })?;
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    pub fn set_metadata_lag(&self, lag: MetadataLag) {
        lock(&self.0.state).topics.set_lag(lag);
    }

    /// Deletes a topic with its records and the offsets that groups have committed for it.
    ///
    /// Consumers lose the partitions of the topic. If a topic with the same name is created again,
    /// they get [`NoPosition::Recreated`](foldstream::ports::NoPosition::Recreated). Otherwise a
    /// waiting consumer gets `Unavailable`, and after 5 minutes `Refused(MissingTopic)`, as with
    /// the Kafka adapter. Deleting a topic that does not exist changes nothing.
    pub fn delete_topic(&self, name: &str) {
        let mut state = lock(&self.0.state);
        state.topics.delete(name);
        for group in state.groups.values_mut() {
            group.forget_topic(name);
        }
        state.settle_all(self.0.timeouts);
    }

    /// Raises the number of a topic's partitions.
    ///
    /// Later messages with a key may go to other partitions than before, as in Kafka. The members
    /// of a group keep their partitions and share the new ones, which are
    /// [`NoPosition::Missing`](foldstream::ports::NoPosition::Missing) for a member without a start
    /// offset for them.
    ///
    /// # Errors
    /// - `Refused(MissingTopic)` if the topic does not exist.
    /// - `Invalid` if the topic has more partitions already.
    pub fn set_partitions(&self, name: &str, partitions: u32) -> Result<(), MessageBusError> {
        let mut state = lock(&self.0.state);
        state.topics.grow(name, partitions)?;
        state.settle_all(self.0.timeouts);
        Ok(())
    }

    /// Adds offsets without records at the end of a partition, as the markers of transactions do.
    ///
    /// A consumer of the partition gets [`Reached`](foldstream::ports::ConsumerEvent::Reached).
    ///
    /// # Errors
    /// - `Refused(MissingTopic)` if the topic does not exist.
    /// - `Invalid` if the partition does not exist, or would end after the last offset of Kafka,
    ///   2^63 - 1.
    ///
    /// # Example
    /// ```
    /// use foldstream::ports::{MessageBus, Offset, PartitionId};
    /// # use foldstream_testkit::InMemoryMessageBus;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// let bus = InMemoryMessageBus::new();
    /// bus.create_topic("events", 1);
    /// bus.skip_offsets(&PartitionId::new("events", 0), 2)?;
    /// assert_eq!(bus.offsets("events").await?[0].end, Offset::new(2));
    /// # Ok::<(), foldstream::BoxError>(())
    /// # })?;
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    pub fn skip_offsets(
        &self,
        partition: &PartitionId,
        offsets: u64,
    ) -> Result<(), MessageBusError> {
        let mut state = lock(&self.0.state);
        state.topics.skip(partition, offsets)?;
        for group in state.groups.values() {
            group.wake_owner(partition);
        }
        Ok(())
    }

    /// Removes the records at these offsets, as compaction does.
    ///
    /// The offsets stay, without records. A consumer that gets to them gets
    /// [`Reached`](foldstream::ports::ConsumerEvent::Reached) with the next record's offset, or
    /// with the end of the partition.
    ///
    /// # Errors
    /// - `Refused(MissingTopic)` if the topic does not exist.
    /// - `Invalid` if the partition does not exist.
    pub fn remove_records(
        &self,
        partition: &PartitionId,
        offsets: Range<Offset>,
    ) -> Result<(), MessageBusError> {
        let offsets = offsets.start.get()..offsets.end.get();
        let mut state = lock(&self.0.state);
        state.topics.remove(partition, offsets)?;
        for group in state.groups.values() {
            group.wake_owner(partition);
        }
        Ok(())
    }

    /// Deletes the records before an offset, as retention does.
    ///
    /// The position of a consumer before that offset is out of range. An offset after the end of
    /// the partition deletes all records.
    ///
    /// # Errors
    /// - `Refused(MissingTopic)` if the topic does not exist.
    /// - `Invalid` if the partition does not exist.
    pub fn delete_records_before(
        &self,
        partition: &PartitionId,
        offset: Offset,
    ) -> Result<(), MessageBusError> {
        let mut state = lock(&self.0.state);
        state.topics.delete_before(partition, offset)?;
        for group in state.groups.values() {
            group.wake_owner(partition);
        }
        Ok(())
    }

    /// Expels all members of a group, as a broker does when their sessions expire.
    ///
    /// Each member gets `Lost` for its partitions and joins again when it asks for its next event
    /// after that.
    pub fn expel(&self, group: &str) {
        self.0.with_group(group, |group, around| {
            group.expel(&group.member_ids(), around);
        });
    }

    /// Expels the member that owns a partition, so that the other members take over its partitions.
    pub fn expel_owner(&self, group: &str, partition: &PartitionId) {
        self.0.with_group(group, |group, around| {
            let owner = group.owner(partition);
            group.expel(owner.as_slice(), around);
        });
    }

    /// Deletes the committed offsets of a group, as a broker does when they expire.
    ///
    /// The members of the group keep their positions.
    pub fn forget_committed(&self, group: &str) {
        self.0
            .with_group(group, |group, _| group.forget_committed());
    }
}

#[async_trait]
impl MessageBus for InMemoryMessageBus {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        // Lets other tasks run now and then, as a send over a network would.
        tokio::task::coop::consume_budget().await;
        let mut state = lock(&self.0.state);
        state.ask(&message.topic, self.0.timeouts);
        let (partition, offset) = state.topics.publish(message)?;
        for group in state.groups.values() {
            group.wake_owner(&partition);
        }
        Ok((partition, offset))
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        check_subscription(&subscription)?;
        let mut state = lock(&self.0.state);
        for topic in &subscription.topics {
            state.ask(topic, self.0.timeouts);
            state.topics.describe(topic)?;
        }
        state.members += 1;
        let id = MemberId(state.members);
        let name = subscription.group.clone();
        let changed = Arc::new(Notify::new());
        let (groups, mut around) = state.split(self.0.timeouts);
        let group = groups.entry(name.clone()).or_default();
        group.join(id, subscription, changed.clone(), &mut around);
        Ok(Arc::new(InMemoryConsumer {
            shared: self.0.clone(),
            group: name,
            id,
            changed,
        }))
    }

    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        let mut state = lock(&self.0.state);
        state.ask(topic, self.0.timeouts);
        state.topics.offsets(topic)
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        check_group(group)?;
        let mut state = lock(&self.0.state);
        state.ask(topic, self.0.timeouts);
        let group = state.groups.get(group);
        let committed = |partition: PartitionId| {
            let offset = group.and_then(|group| group.committed(&partition));
            (partition, offset)
        };
        let partitions = state.topics.partitions(topic)?;
        Ok(partitions.into_iter().map(committed).collect())
    }

    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        let mut state = lock(&self.0.state);
        state.ask(topic, self.0.timeouts);
        state.topics.describe(topic)
    }

    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        check_group(group)?;
        let mut state = lock(&self.0.state);
        let (groups, mut around) = state.split(self.0.timeouts);
        let Some(found) = groups.get_mut(group) else {
            return Ok(());
        };
        found.expire(&mut around);
        if found.has_active_members() {
            return Err(MessageBusError::Refused {
                kind: RefusedKind::Validation,
                reason: format!("group {group} has members: stop them first"),
                source: "the group is not empty".into(),
            });
        }
        found.forget_committed();
        if found.is_empty() {
            groups.remove(group);
        }
        Ok(())
    }
}
