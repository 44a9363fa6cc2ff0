//! `InMemoryMessageBus`.
use super::{
    consumer::InMemoryConsumer,
    group::{Group, MemberId, Surroundings},
    lock,
    topic::Topics,
};
use async_trait::async_trait;
use foldstream::ports::{
    Consumer, Message, MessageBus, MessageBusError, Offset, PartitionId, PartitionOffsets,
    RefusedKind, Subscription, TopicDescription,
};
use std::{
    collections::BTreeMap,
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
/// Retention and compaction are described, not done: [`delete_records_before`](Self::delete_records_before) trims.
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
/// let start = OffsetMark::new(PartitionId::new("events", 0), Offset::new(0));
/// let wish = Subscription::new("g", ["events"]).with_start(vec![start]);
/// let consumer = bus.subscribe(wish).await?;
/// assert!(matches!(consumer.next().await?, ConsumerEvent::Assigned(_)));
/// let ConsumerEvent::Delivery(first) = consumer.next().await? else { panic!("a message is there") };
/// consumer.commit(&[OwnedMark::new(first.partition, first.epoch, first.offset.next())]).await?;
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
    grace: Duration,
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
    fn split(&mut self, grace: Duration) -> (&mut BTreeMap<String, Group>, Surroundings<'_>) {
        let around = Surroundings {
            topics: &self.topics,
            epochs: &mut self.epochs,
            now: Instant::now(),
            grace,
        };
        (&mut self.groups, around)
    }

    /// The topics have changed: every group looks at its assignment again.
    fn settle_all(&mut self, grace: Duration) {
        let (groups, mut around) = self.split(grace);
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
        let (groups, mut around) = state.split(self.grace);
        Some(act(groups.get_mut(name)?, &mut around))
    }
}

impl InMemoryMessageBus {
    /// How long a revocation is waited for, unless [`with_grace`](Self::with_grace) says otherwise.
    pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
    /// Size of the largest record of a topic in bytes, unless its description says otherwise: Kafka's default.
    pub const DEFAULT_MAX_MESSAGE_BYTES: u64 = 1_048_588;

    /// A bus without topics.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_grace(Self::DEFAULT_GRACE)
    }

    /// A bus without topics whose groups wait this long for a revocation to be dropped.
    #[must_use]
    pub fn with_grace(grace: Duration) -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared {
            state: Mutex::default(),
            grace,
        })))
    }

    /// Makes a topic of so many partitions (0 counts as 1) that keeps everything. One that exists is left alone; the
    /// answer is whether it was made now.
    pub fn create_topic(&self, name: impl Into<Arc<str>>, partitions: u32) -> bool {
        let description = TopicDescription::new(partitions)
            .with_compacted(Some(false))
            .with_retention(Some(Duration::MAX))
            .with_max_message_bytes(Some(Self::DEFAULT_MAX_MESSAGE_BYTES));
        self.create_topic_as(name, description)
    }

    /// Makes a topic of this description. One that exists is left alone; the answer is whether it was made now.
    pub fn create_topic_as(
        &self,
        name: impl Into<Arc<str>>,
        description: TopicDescription,
    ) -> bool {
        let mut state = lock(&self.0.state);
        let is_new = state.topics.create(name.into(), description);
        state.settle_all(self.0.grace);
        is_new
    }

    /// Deletes a topic: its readers lose its partitions. What groups committed stays, so a topic made anew under the
    /// name has positions that are out of range.
    pub fn delete_topic(&self, name: &str) {
        let mut state = lock(&self.0.state);
        state.topics.delete(name);
        state.settle_all(self.0.grace);
    }

    /// Gives a topic more partitions: keys move, as in Kafka.
    ///
    /// # Errors
    /// `Refused(MissingTopic)`; `Invalid` for fewer than there are.
    pub fn set_partitions(&self, name: &str, partitions: u32) -> Result<(), MessageBusError> {
        let mut state = lock(&self.0.state);
        state.topics.grow(name, partitions)?;
        state.settle_all(self.0.grace);
        Ok(())
    }

    /// Deletes the records below `offset`, as retention does. Readers behind it find their position out of range.
    ///
    /// # Errors
    /// `Refused(MissingTopic)`; `Invalid` for a partition that does not exist.
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

fn invalid(reason: &str) -> MessageBusError {
    MessageBusError::Invalid {
        reason: reason.into(),
    }
}

#[async_trait]
impl MessageBus for InMemoryMessageBus {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        // As a send over a network would, let others run now and then.
        tokio::task::coop::consume_budget().await;
        let mut state = lock(&self.0.state);
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
        if subscription.group.is_empty() {
            return Err(invalid("a group has a name"));
        }
        if subscription.topics.is_empty() {
            return Err(invalid("a subscription names at least one topic"));
        }
        let mut state = lock(&self.0.state);
        for topic in &subscription.topics {
            state.topics.describe(topic)?;
        }
        state.members += 1;
        let id = MemberId(state.members);
        let name = subscription.group.clone();
        let changed = Arc::new(Notify::new());
        let (groups, mut around) = state.split(self.0.grace);
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
        lock(&self.0.state).topics.offsets(topic)
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        let state = lock(&self.0.state);
        let group = state.groups.get(group);
        let committed = |partition: PartitionId| {
            let offset = group.and_then(|group| group.committed(&partition));
            (partition, offset)
        };
        let partitions = state.topics.partitions(topic)?;
        Ok(partitions.into_iter().map(committed).collect())
    }

    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        lock(&self.0.state).topics.describe(topic)
    }

    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        let mut state = lock(&self.0.state);
        let Some(found) = state.groups.get_mut(group) else {
            return Ok(());
        };
        if found.has_active_members() {
            return Err(MessageBusError::Refused {
                kind: RefusedKind::Validation,
                reason: format!("group {group} has members: stop them first"),
                source: "the group is not empty".into(),
            });
        }
        found.forget_committed();
        if found.is_empty() {
            state.groups.remove(group);
        }
        Ok(())
    }
}
