//! Topics, members and checks that the cases share.
use super::BusFixture;
use crate::contract::support::unique;
use foldstream::{
    Timestamp,
    adapter::kafka_partition,
    ports::{
        AssignmentEpoch, Consumer, ConsumerEvent, Delivery, Message, MessageBus, MessageBusError,
        Offset, OffsetCommit, PartitionId, RefusedKind, StartOffset, Subscription,
    },
};
use std::{collections::BTreeMap, fmt::Debug, future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// The fixture that every case takes.
pub(super) type Fixture = Arc<dyn BusFixture>;

/// The time that a case waits for a group. It is below the usual session timeouts, so that no case
/// passes because a member was declared dead.
pub(super) const GROUP_PATIENCE: Duration = Duration::from_secs(40);

/// A topic that no other test uses, and a group of its own.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) partitions: u32,
    pub(super) group: String,
    pub(super) bus: Arc<dyn MessageBus>,
}

impl Topic {
    pub(super) async fn fresh(fixture: &Fixture, partitions: u32) -> Self {
        let name = format!("contract-{}", unique());
        fixture.create_topic(&name, partitions).await;
        Self {
            name: name.into(),
            partitions,
            group: format!("contract-{}", unique()),
            bus: fixture.bus(),
        }
    }

    pub(super) fn partition(&self, partition: u32) -> PartitionId {
        PartitionId::new(self.name.clone(), partition)
    }

    pub(super) fn all_partitions(&self) -> Vec<PartitionId> {
        (0..self.partitions).map(|p| self.partition(p)).collect()
    }

    /// Returns a message for a partition. Its value contains its number.
    pub(super) fn message(&self, partition: u32, n: usize) -> Message {
        let lands = |key: &String| kafka_partition(key.as_bytes(), self.partitions) == partition;
        let mut keys = (0..).map(|i| format!("key-{i}"));
        let key = keys.find(lands).unwrap();
        let value = format!("message {n} of partition {partition}");
        Message::new(self.name.clone(), Timestamp::now())
            .with_key(key)
            .with_value(value)
    }

    /// Publishes `count` messages to a partition, and returns where they must be delivered.
    pub(super) async fn publish(&self, partition: u32, count: usize) -> Vec<Place> {
        let mut places = Vec::new();
        for n in 0..count {
            let message = self.message(partition, n);
            let (found, offset) = self.bus.publish(&message).await.unwrap();
            assert_eq!(found, self.partition(partition), "the partition of the key");
            places.push((found, offset));
        }
        places
    }

    /// Publishes `count` messages to every partition.
    pub(super) async fn publish_everywhere(&self, count: usize) -> Vec<Place> {
        let mut places = Vec::new();
        for partition in 0..self.partitions {
            places.extend(self.publish(partition, count).await);
        }
        places
    }

    /// Returns a subscription of the topic's group that starts at the beginning of every partition
    /// without a commit.
    pub(super) fn subscription(&self) -> Subscription {
        let begin = |partition| StartOffset::new(partition, Offset::new(0));
        let start = self.all_partitions().into_iter().map(begin).collect();
        Subscription::new(self.group.clone(), [self.name.clone()]).with_start(start)
    }

    /// Returns the offsets that the group has committed, by partition number.
    pub(super) async fn committed(&self) -> Vec<Option<u64>> {
        let committed = self.bus.committed(&self.group, &self.name).await.unwrap();
        let partitions: Vec<_> = committed.iter().map(|(p, _)| p.clone()).collect();
        assert_eq!(
            partitions,
            self.all_partitions(),
            "every partition, in order"
        );
        committed
            .into_iter()
            .map(|(_, offset)| offset.map(Offset::get))
            .collect()
    }
}

/// The partition and offset of a message.
pub(super) type Place = (PartitionId, Offset);

pub(super) fn place(delivery: &Delivery) -> Place {
    (delivery.partition.clone(), delivery.offset)
}

/// Asserts that the two lists contain the same places, each once.
pub(super) fn assert_same_places(mut found: Vec<Place>, mut expected: Vec<Place>) {
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "the places of the deliveries");
}

/// Asserts that an answer is a refusal of this kind.
#[track_caller]
pub(super) fn assert_refused<T: Debug>(answer: &Result<T, MessageBusError>, expected: RefusedKind) {
    let refused = matches!(
        answer,
        Err(MessageBusError::Refused { kind, .. }) if *kind == expected
    );
    assert!(refused, "expected Refused({expected:?}), found {answer:?}");
}

/// Asserts that an answer is `Invalid`.
#[track_caller]
pub(super) fn assert_invalid<T: Debug>(answer: &Result<T, MessageBusError>, what: &str) {
    assert!(
        matches!(answer, Err(MessageBusError::Invalid { .. })),
        "{what}: expected Invalid, found {answer:?}"
    );
}

/// Asserts that an answer is a refusal of a topic that does not exist.
#[track_caller]
pub(super) fn assert_missing_topic<T: Debug>(answer: &Result<T, MessageBusError>) {
    assert_refused(answer, RefusedKind::MissingTopic);
}

/// Asserts that an answer says that an assignment has ended.
pub(super) fn assert_stale<T: Debug>(answer: &Result<T, MessageBusError>, expected: &PartitionId) {
    match answer {
        Err(MessageBusError::StaleAssignment { partition }) => assert_eq!(partition, expected),
        other => panic!("expected StaleAssignment of {expected}, found {other:?}"),
    }
}

/// The partitions that a member holds by its events. Checks the rules that hold for every event of
/// every member.
#[derive(Debug, Default)]
pub(super) struct Held {
    partitions: BTreeMap<PartitionId, Holding>,
    epochs: BTreeMap<PartitionId, AssignmentEpoch>,
}

#[derive(Debug)]
struct Holding {
    epoch: AssignmentEpoch,
    next: Offset,
}

impl Held {
    pub(super) fn partitions(&self) -> Vec<PartitionId> {
        self.partitions.keys().cloned().collect()
    }

    /// Returns the offset commit of a partition: one past its last delivery.
    pub(super) fn offset_commit(&self, partition: &PartitionId) -> OffsetCommit {
        let holding = &self.partitions[partition];
        OffsetCommit::new(partition.clone(), holding.epoch, holding.next)
    }

    /// Returns the offset commits of all partitions.
    pub(super) fn offset_commits(&self) -> Vec<OffsetCommit> {
        self.partitions
            .keys()
            .map(|p| self.offset_commit(p))
            .collect()
    }

    pub(super) fn observe(&mut self, event: &ConsumerEvent) {
        match event {
            ConsumerEvent::Assigned(assignment) => {
                for added in &assignment.partitions {
                    let earlier = self.epochs.insert(added.partition.clone(), added.epoch);
                    assert!(
                        earlier < Some(added.epoch),
                        "the epoch of {} is not new",
                        added.partition
                    );
                    let holding = Holding {
                        epoch: added.epoch,
                        next: added.next,
                    };
                    let held = self.partitions.insert(added.partition.clone(), holding);
                    assert!(held.is_none(), "{} was assigned twice", added.partition);
                }
            }
            ConsumerEvent::Revoking(revocation) => self.forget(revocation.partitions()),
            ConsumerEvent::Lost(partitions) => self.forget(partitions),
            ConsumerEvent::Delivery(delivery) => self.observe_delivery(delivery),
            ConsumerEvent::Reached(partition, epoch, next) => {
                let holding = self.holding(partition, "an offset was reached");
                assert_eq!(*epoch, holding.epoch, "the epoch of a reached offset");
                assert!(
                    *next > holding.next,
                    "{partition}: {next} reached after {}: it says nothing new",
                    holding.next
                );
                holding.next = *next;
            }
            _ => {}
        }
    }

    fn holding(&mut self, partition: &PartitionId, what: &str) -> &mut Holding {
        let holding = self.partitions.get_mut(partition);
        holding.unwrap_or_else(|| panic!("{what} of {partition}, which is not assigned"))
    }

    fn observe_delivery(&mut self, delivery: &Delivery) {
        let holding = self.holding(&delivery.partition, "a message was delivered");
        assert_eq!(delivery.epoch, holding.epoch, "the epoch of a delivery");
        assert!(
            delivery.offset >= holding.next,
            "{} at {} after {}: repeated, out of order, or below what was reached",
            delivery.partition,
            delivery.offset,
            holding.next
        );
        holding.next = delivery.offset.next();
    }

    fn forget(&mut self, partitions: &[PartitionId]) {
        for partition in partitions {
            self.partitions.remove(partition);
        }
    }
}

/// Waits for something that a group does, at most for [`GROUP_PATIENCE`].
pub(super) async fn within<T>(what: &str, job: impl Future<Output = T>) -> T {
    let answer = timeout(GROUP_PATIENCE, job).await;
    answer.unwrap_or_else(|_| panic!("{what}: not within {GROUP_PATIENCE:?}"))
}

/// Waits for the next event, and retries while the bus is busy, as a caller does.
pub(super) async fn next_event(consumer: &dyn Consumer) -> Result<ConsumerEvent, MessageBusError> {
    let deadline = Instant::now() + GROUP_PATIENCE;
    loop {
        match consumer.next().await {
            Err(error) if error.is_transient() && Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            answer => return answer,
        }
    }
}

/// One member that the case itself polls.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) consumer: Arc<dyn Consumer>,
    pub(super) held: Held,
}

impl Member {
    pub(super) async fn join(topic: &Topic) -> Self {
        Self::subscribe(&*topic.bus, topic.subscription()).await
    }

    pub(super) async fn subscribe(bus: &dyn MessageBus, subscription: Subscription) -> Self {
        Self {
            consumer: bus.subscribe(subscription).await.unwrap(),
            held: Held::default(),
        }
    }

    pub(super) async fn next(&mut self, what: &str) -> ConsumerEvent {
        let event = within(what, next_event(&*self.consumer)).await.unwrap();
        self.held.observe(&event);
        event
    }

    /// Returns the next deliveries. The member must be alone in its group.
    pub(super) async fn deliveries(&mut self, count: usize) -> Vec<Delivery> {
        let mut found = Vec::new();
        while found.len() < count {
            let what = format!("delivery {} of {count}", found.len() + 1);
            match self.next(&what).await {
                ConsumerEvent::Delivery(delivery) => found.push(delivery),
                ConsumerEvent::Assigned(_) => {}
                other => panic!("{what}: found {other:?}"),
            }
        }
        found
    }

    /// Asserts that there is no delivery for a while, although the member asks for one.
    pub(super) async fn nothing_for(&mut self, pause: Duration) {
        let asked = timeout(pause, next_event(&*self.consumer)).await;
        if let Ok(event) = asked {
            panic!("expected nothing, found {event:?}");
        }
    }

    /// Waits until the member holds these partitions.
    pub(super) async fn holds(&mut self, partitions: &[PartitionId]) {
        while self.held.partitions() != partitions {
            match self.next("the assignment").await {
                ConsumerEvent::Assigned(_) => {}
                other => panic!("expected the assignment, found {other:?}"),
            }
        }
    }

    pub(super) async fn leave(self) {
        within("leaving the group", self.consumer.leave())
            .await
            .unwrap();
    }
}
