//! Message buses that each break one rule of the contract, and the proof that every case is needed.
mod deliver;
mod group;
mod holes;
mod publish;
mod runs;
mod topics;

use crate::matrix::{Suspect, assert_every_case_is_needed};
use async_trait::async_trait;
use foldstream::ports::{
    Consumer, ConsumerEvent, Message, MessageBus, MessageBusError, Offset, OffsetCommit,
    PartitionId, PartitionOffsets, RunOutcome, Subscription, TopicDescription,
};
use foldstream_testkit::{
    InMemoryMessageBus,
    contract::{self, message_bus::BusFixture},
};
use futures::FutureExt;
use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

type Published = Result<(PartitionId, Offset), MessageBusError>;
type Offsets = Result<Vec<PartitionOffsets>, MessageBusError>;
type Committed = Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError>;
type Next = Result<ConsumerEvent, MessageBusError>;
type Done = Result<(), MessageBusError>;

/// The differences of a broken bus from the sound bus that it wraps.
#[async_trait]
trait Sabotage: Debug + Default + Send + Sync + 'static {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        bus.publish(message).await
    }
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        bus.publish_run(run).await
    }
    /// Changes a subscription before the bus receives it.
    async fn subscription(
        &self,
        _: &InMemoryMessageBus,
        subscription: Subscription,
    ) -> Subscription {
        subscription
    }
    async fn offsets(&self, bus: &InMemoryMessageBus, topic: &str) -> Offsets {
        bus.offsets(topic).await
    }
    async fn committed(&self, bus: &InMemoryMessageBus, group: &str, topic: &str) -> Committed {
        bus.committed(group, topic).await
    }
    fn described(&self, sound: TopicDescription) -> TopicDescription {
        sound
    }
    async fn delete_group(&self, bus: &InMemoryMessageBus, group: &str) -> Done {
        bus.delete_group(group).await
    }
    async fn next(&self, member: &Member) -> Next {
        member.inner.next().await
    }
    /// Changes what the bus returns if it is there already.
    fn tried(&self, found: Option<Next>) -> Option<Next> {
        found
    }
    async fn commit(&self, member: &Member, commits: &[OffsetCommit]) -> Done {
        member.inner.commit(commits).await
    }
    async fn pause(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        member.inner.pause(partitions).await
    }
    async fn resume(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        member.inner.resume(partitions).await
    }
    async fn leave(&self, member: &Member) -> Done {
        member.inner.leave().await
    }
}

/// A member of a group, with the notes of the sabotage about it.
#[derive(Debug)]
struct Member {
    inner: Arc<dyn Consumer>,
    bus: Arc<InMemoryMessageBus>,
    group: String,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    deliveries: usize,
    owned: BTreeSet<PartitionId>,
    paused: BTreeSet<PartitionId>,
    pending: Vec<OffsetCommit>,
    has_left: bool,
}

/// A sound bus with one change.
#[derive(Debug)]
struct Broken<S> {
    bus: Arc<InMemoryMessageBus>,
    sabotage: Arc<S>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: Sabotage> MessageBus for Broken<S> {
    async fn publish(&self, message: &Message) -> Published {
        self.sabotage.publish(&self.bus, message).await
    }
    async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        self.sabotage.publish_run(&self.bus, run).await
    }
    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        let subscription = self.sabotage.subscription(&self.bus, subscription).await;
        let group = subscription.group.clone();
        let member = Member {
            inner: self.bus.subscribe(subscription).await?,
            bus: self.bus.clone(),
            group,
            notes: Mutex::default(),
        };
        Ok(Arc::new(BrokenConsumer {
            member,
            sabotage: self.sabotage.clone(),
        }))
    }
    async fn offsets(&self, topic: &str) -> Offsets {
        self.sabotage.offsets(&self.bus, topic).await
    }
    async fn committed(&self, group: &str, topic: &str) -> Committed {
        self.sabotage.committed(&self.bus, group, topic).await
    }
    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        let sound = self.bus.describe_topic(topic).await?;
        Ok(self.sabotage.described(sound))
    }
    async fn delete_group(&self, group: &str) -> Done {
        self.sabotage.delete_group(&self.bus, group).await
    }
}

#[derive(Debug)]
struct BrokenConsumer<S> {
    member: Member,
    sabotage: Arc<S>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: Sabotage> Consumer for BrokenConsumer<S> {
    async fn next(&self) -> Next {
        self.sabotage.next(&self.member).await
    }
    fn try_next(&self) -> Option<Next> {
        self.sabotage.tried(self.next().now_or_never())
    }
    async fn commit(&self, commits: &[OffsetCommit]) -> Done {
        self.sabotage.commit(&self.member, commits).await
    }
    async fn pause(&self, partitions: &[PartitionId]) -> Done {
        self.sabotage.pause(&self.member, partitions).await
    }
    async fn resume(&self, partitions: &[PartitionId]) -> Done {
        self.sabotage.resume(&self.member, partitions).await
    }
    async fn leave(&self) -> Done {
        self.sabotage.leave(&self.member).await
    }
}

#[async_trait]
impl<S: Sabotage> BusFixture for Broken<S> {
    fn bus(&self) -> Arc<dyn MessageBus> {
        Arc::new(Self {
            bus: self.bus.clone(),
            sabotage: self.sabotage.clone(),
        })
    }
    async fn create_topic(&self, name: &str, partitions: u32) {
        self.bus.create_topic(name, partitions);
    }
    async fn delete_records_before(&self, partition: &PartitionId, offset: Offset) {
        self.bus.delete_records_before(partition, offset).unwrap();
    }
    async fn add_partitions(&self, name: &str, partitions: u32) {
        self.bus.set_partitions(name, partitions).unwrap();
    }
    async fn leave_hole(&self, partition: &PartitionId) {
        self.bus.skip_offsets(partition, 2).unwrap();
    }
    async fn recreate_topic(&self, name: &str, partitions: u32) {
        self.bus.delete_topic(name);
        self.bus.create_topic(name, partitions);
    }
    fn session_timeout(&self) -> Duration {
        SESSION
    }
}

type Suspects = Vec<Suspect<Arc<dyn BusFixture>>>;

/// The groups of cases that a sound bus in memory passes.
const GROUPS: &[&str] = &[
    "trim",
    "grow",
    "holes",
    "recreate",
    "static_members",
    "delete_group",
];
/// The session timeout that every broken bus reports.
const SESSION: Duration = Duration::from_secs(10);

fn sabotaged<S: Sabotage>(session: Duration) -> Arc<dyn BusFixture> {
    Arc::new(Broken {
        bus: InMemoryMessageBus::with_session_timeout(session),
        sabotage: Arc::new(S::default()),
    })
}

fn broken<S: Sabotage>(rejected_by: &'static [&'static str]) -> Suspect<Arc<dyn BusFixture>> {
    Suspect::new::<S>(GROUPS, || sabotaged::<S>(SESSION), rejected_by)
}

/// A sabotage that changes nothing, which shows that the wrapper itself breaks no rule.
#[derive(Debug, Default)]
struct Nothing;
#[async_trait]
impl Sabotage for Nothing {}

#[test]
fn every_case_rejects_a_broken_message_bus() {
    let suspects: Suspects = [
        vec![broken::<Nothing>(&[])],
        publish::suspects(),
        runs::suspects(),
        deliver::suspects(),
        holes::suspects(),
        topics::suspects(),
        group::suspects(),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert_every_case_is_needed(&contract::message_bus::cases(), &suspects);
}
