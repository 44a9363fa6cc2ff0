//! `InMemoryMessageBus`.
use super::{
    consumer::InMemoryConsumer,
    group::{Group, MemberId, Surroundings, Timeouts},
    lock,
    topic::{MetadataLag, Topics},
};
use async_trait::async_trait;
use foldstream::ports::{
    Consumer, Message, MessageBus, MessageBusError, Offset, PartitionId, PartitionOffsets,
    RefusedKind, Subscription, TopicDescription,
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
/// Topics are made by [`create_topic`](Self::create_topic); publishing makes none. A key's partition is the one that
/// Kafka's Java clients choose. Members of a group share the partitions round-robin, by when they joined; a partition
/// changes hands once its old owner has dropped the revocation, or the grace has passed on tokio's clock (the runtime
/// needs its time driver), which a test may pause. What was published and committed stays until the last clone of the `Arc` and the last consumer are gone.
///
/// Retention and compaction are described, not done: [`delete_records_before`](Self::delete_records_before) trims, and
/// [`remove_records`](Self::remove_records) leaves offsets without records. Topics grow
/// ([`set_partitions`](Self::set_partitions)), vanish ([`delete_topic`](Self::delete_topic)) and are created again while
/// members read, and [`set_metadata_lag`](Self::set_metadata_lag) lets everyone hear of it late.
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
/// let wish = Subscription::new("g", ["events"]).with_start(vec![start]);
/// let consumer = bus.subscribe(wish).await?;
/// assert!(matches!(consumer.next().await?, ConsumerEvent::Assigned(_)));
/// let ConsumerEvent::Delivery(first) = consumer.next().await? else { panic!("a message is there") };
/// consumer.commit(&[OffsetCommit::new(first.partition, first.epoch, first.offset.next())]).await?;
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Debug)]
pub struct InMemoryMessageBus(Arc<Shared>);

/// What the bus and its consumers share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    timeouts: Timeouts,
}

#[derive(Debug, Default)]
struct State {
    topics: Topics,
    groups: BTreeMap<String, Group>,
    /// The last member's number.
    members: u64,
    /// The last epoch. One count for all: greater than any earlier one of any partition at any consumer.
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

    /// Counts a call that asks for a topic: a change of the topic that is shown with it concerns the groups too.
    fn ask(&mut self, topic: &str, timeouts: Timeouts) {
        if self.topics.ask(topic) {
            self.settle_all(timeouts);
        }
    }

    /// Shows the changes of topics whose time has come.
    fn show_due(&mut self, timeouts: Timeouts) {
        if self.topics.show_due(Instant::now()) {
            self.settle_all(timeouts);
        }
    }

    /// Lets every group look at its assignment again, after the topics have changed.
    fn settle_all(&mut self, timeouts: Timeouts) {
        let (groups, mut around) = self.split(timeouts);
        for group in groups.values_mut() {
            group.settle(&mut around);
        }
    }
}

impl Shared {
    /// `None`: there is no such group.
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
    /// The time for which a group waits for the release of a revocation, unless [`with_grace`](Self::with_grace) says
    /// otherwise.
    pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
    /// The size in bytes of the largest record that a topic takes, unless its description says otherwise: Kafka's default.
    pub const DEFAULT_MAX_MESSAGE_BYTES: u64 = 1_048_588;
    /// The size in bytes of the largest record that is sent, unless the description of the topic says otherwise: the
    /// default of `foldstream_kafka::KafkaConfig`.
    pub const DEFAULT_MAX_PRODUCER_BYTES: u64 = 1_000_000;
    /// The bytes that both limits count beyond the size of a message, as the Kafka adapter describes them.
    const RECORD_OVERHEAD: u64 = 97;

    /// The time for which a group waits for a static member that is absent, unless
    /// [`with_session_timeout`](Self::with_session_timeout) says otherwise: Kafka's default.
    pub const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(45);

    /// Creates a bus without topics.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_timeouts(Self::DEFAULT_GRACE, Self::DEFAULT_SESSION_TIMEOUT)
    }

    /// Creates a bus without topics, whose groups wait this long for a revocation to be dropped.
    #[must_use]
    pub fn with_grace(grace: Duration) -> Arc<Self> {
        Self::with_timeouts(grace, Self::DEFAULT_SESSION_TIMEOUT)
    }

    /// Creates a bus without topics, whose groups wait this long for a static member that has left.
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

    /// Creates a topic of that many partitions (0 counts as 1) that keeps everything and has Kafka's limits. Returns true if
    /// the topic was created now; one that exists is left alone.
    ///
    /// # Panics
    /// If no topic can have this name.
    pub fn create_topic(&self, name: impl Into<Arc<str>>, partitions: u32) -> bool {
        let description = TopicDescription::new(partitions)
            .with_compacted(Some(false))
            .with_retention(Some(Duration::MAX))
            .with_max_message_bytes(Some(Self::DEFAULT_MAX_MESSAGE_BYTES))
            .with_max_producer_bytes(Some(Self::DEFAULT_MAX_PRODUCER_BYTES))
            .with_record_overhead(Self::RECORD_OVERHEAD);
        self.create_topic_as(name, description)
    }

    /// Creates a topic of this description, with a topic id of its own. Returns true if the topic was created now; one that
    /// exists is left alone.
    ///
    /// # Panics
    /// If no topic can have this name.
    pub fn create_topic_as(
        &self,
        name: impl Into<Arc<str>>,
        description: TopicDescription,
    ) -> bool {
        let name = name.into();
        if let Err(error) = Subscription::check_topic(&name) {
            panic!("the topic {name:?} cannot be created: {error}");
        }
        let mut state = lock(&self.0.state);
        let is_new = state.topics.create(name, description);
        state.settle_all(self.0.timeouts);
        is_new
    }

    /// Sets how long metadata lags after topics that are created, or get more partitions, from now on. The default is
    /// [`MetadataLag::None`].
    ///
    /// Until then a new topic is `Refused(MissingTopic)`, and a topic that has grown shows the old number of partitions to
    /// publishers, to members of groups, and in `describe_topic`, `offsets` and `committed`. A message that names a new
    /// partition is `Refused(UnknownPartition)`, and the key of one that names none is counted on the old number. The Kafka
    /// adapter looks again for up to 2 s for a topic that it has never used; this bus gives the last answer at once.
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

    /// Deletes a topic with its records and with everything that groups have committed for it, as brokers do. Its readers
    /// lose its partitions. If a topic is created again under the name, those readers are told
    /// [`NoPosition::Recreated`](foldstream::ports::NoPosition::Recreated). If none is, a reader that waits is told
    /// `Unavailable`, and after 5 min `Refused(MissingTopic)`, as by the Kafka adapter.
    pub fn delete_topic(&self, name: &str) {
        let mut state = lock(&self.0.state);
        state.topics.delete(name);
        for group in state.groups.values_mut() {
            group.forget_topic(name);
        }
        state.settle_all(self.0.timeouts);
    }

    /// Gives a topic more partitions. Messages that name no partition then move to others, as in Kafka. The members of a
    /// group keep the partitions that they have and share the new ones, which are
    /// [`NoPosition::Missing`](foldstream::ports::NoPosition::Missing) for a member without a start mark for them.
    ///
    /// # Errors
    /// `Refused(MissingTopic)` if the topic does not exist; `Invalid` for fewer partitions than there are.
    pub fn set_partitions(&self, name: &str, partitions: u32) -> Result<(), MessageBusError> {
        let mut state = lock(&self.0.state);
        state.topics.grow(name, partitions)?;
        state.settle_all(self.0.timeouts);
        Ok(())
    }

    /// Moves the end of a partition over offsets that hold nothing, as the markers of transactions do. Its reader is told
    /// [`Reached`](foldstream::ports::ConsumerEvent::Reached).
    ///
    /// # Errors
    /// `Refused(MissingTopic)` if the topic does not exist; `Invalid` for a partition that does not exist.
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

    /// Removes the records at these offsets, as compaction does. The offsets stay and hold nothing: a reader goes past them
    /// and is told [`Reached`](foldstream::ports::ConsumerEvent::Reached) where no record follows.
    ///
    /// # Errors
    /// `Refused(MissingTopic)` if the topic does not exist; `Invalid` for a partition that does not exist.
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

    /// Deletes the records below `offset`, as retention does. Readers before it find their position out of range.
    ///
    /// # Errors
    /// `Refused(MissingTopic)` if the topic does not exist; `Invalid` for a partition that does not exist.
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

    /// Throws all members out of a group, as when their sessions end: each is told what it lost, and joins again when
    /// it then asks for its next event.
    pub fn expel(&self, group: &str) {
        self.0.with_group(group, |group, around| {
            group.expel(&group.member_ids(), around);
        });
    }

    /// The same for the member that reads this partition; the other members take over.
    pub fn expel_owner(&self, group: &str, partition: &PartitionId) {
        self.0.with_group(group, |group, around| {
            let owner = group.owner(partition);
            group.expel(owner.as_slice(), around);
        });
    }

    /// Forgets what a group has committed, as a broker does when its offsets expire. Its members go on from where they are.
    pub fn forget_committed(&self, group: &str) {
        self.0
            .with_group(group, |group, _| group.forget_committed());
    }
}

#[async_trait]
impl MessageBus for InMemoryMessageBus {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        // As a send over a network would, let others run now and then.
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
        subscription.check()?;
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
        Subscription::check_group(group)?;
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
        Subscription::check_group(group)?;
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
