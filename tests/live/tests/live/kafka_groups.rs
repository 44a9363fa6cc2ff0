//! Members of groups on a real broker, by the classic protocol and by that of KIP-848.
use crate::{
    costs::{Happened, publish},
    kafka::{SESSION, config, next, unique},
};
use foldstream::{
    Timestamp,
    ports::{
        AssignedPartition, Consumer, ConsumerEvent, Message, MessageBus, MessageBusError, Offset,
        OffsetCommit, PartitionId, RefusedKind, Revocation, StartOffset, Subscription,
    },
    runner::{EventContext, HandlerResult, Listener, ProcessorPolicy, Runner, RunnerHandle, Start},
};
use foldstream_kafka::{GroupProtocol, KafkaMessageBus, TopicSpec};
use foldstream_testkit::InMemoryControlStore;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const BOTH: [GroupProtocol; 2] = [GroupProtocol::Classic, GroupProtocol::Consumer];

/// A group of its own on a topic of its own with two partitions.
struct Group {
    bus: KafkaMessageBus,
    topic: String,
    name: String,
}

impl Group {
    /// Creates a group whose members may be away for 7 s.
    async fn new(protocol: GroupProtocol) -> Self {
        let mut config = config()
            .await
            .with_group_protocol(protocol)
            .with_max_poll_interval(7 * SECOND)
            .with_revoke_grace(2 * SECOND);
        if protocol == GroupProtocol::Classic {
            config = config.with_session_timeout(SESSION);
        }
        // The default is 45 s, and the check of both is for classic groups only.
        let bus = KafkaMessageBus::new(config).unwrap();
        let (topic, name) = (unique("topic"), unique("group"));
        let spec = TopicSpec::new(&topic, 2);
        bus.create_topic(&spec).await.unwrap();
        Self { bus, topic, name }
    }
    fn subscription(&self) -> Subscription {
        let start = |number| StartOffset::new(self.partition(number), Offset::new(0));
        Subscription::new(&*self.name, [&*self.topic]).with_start(vec![start(0), start(1)])
    }
    fn partition(&self, number: u32) -> PartitionId {
        PartitionId::new(&*self.topic, number)
    }
    async fn publish(&self, number: u32) {
        let message = Message::new(&*self.topic, Timestamp::now()).with_key("k");
        let message = message.with_partition(number).with_value("v");
        self.bus.publish(&message).await.unwrap();
    }
    async fn join(&self, instance: Option<&str>) -> Member {
        let mut subscription = self.subscription();
        if let Some(instance) = instance {
            subscription = subscription.with_instance_id(instance);
        }
        Member {
            consumer: self.bus.subscribe(subscription).await.unwrap(),
            held: Vec::new(),
        }
    }
}

/// A member, and what it was assigned.
struct Member {
    consumer: Arc<dyn Consumer>,
    held: Vec<AssignedPartition>,
}

impl Member {
    fn numbers(&self) -> BTreeSet<u32> {
        self.held
            .iter()
            .map(|own| own.partition.partition)
            .collect()
    }
    /// Takes in an event. Returns it if it is a delivery or a revocation.
    fn take(&mut self, event: ConsumerEvent) -> Option<ConsumerEvent> {
        match event {
            ConsumerEvent::Assigned(assignment) => self.held.extend(assignment.partitions),
            ConsumerEvent::Lost(lost) => panic!("{lost:?} are lost"),
            ConsumerEvent::Delivery(_) => return Some(event),
            ConsumerEvent::Revoking(ref revocation) => {
                let gone = revocation.partitions();
                self.held.retain(|own| !gone.contains(&own.partition));
                return Some(event);
            }
            _ => {}
        }
        None
    }
    async fn holds(&mut self, count: usize) {
        while self.held.len() < count {
            let event = next(&self.consumer).await;
            self.take(event);
        }
    }
    /// Returns the next delivery.
    async fn delivered(&mut self) -> (PartitionId, Offset) {
        loop {
            let event = next(&self.consumer).await;
            if let Some(ConsumerEvent::Delivery(delivery)) = self.take(event) {
                return (delivery.partition, delivery.offset);
            }
        }
    }
    async fn revoked(&mut self) -> Revocation {
        loop {
            let event = next(&self.consumer).await;
            if let Some(ConsumerEvent::Revoking(revocation)) = self.take(event) {
                return revocation;
            }
        }
    }
    /// Takes in what comes within a time, and releases revocations at once.
    async fn serve(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(rest) = until.checked_duration_since(Instant::now()) {
            if let Ok(event) = timeout(rest, self.consumer.next()).await {
                drop(self.take(event.unwrap()));
            }
        }
    }
    fn commits(&self, next: u64) -> Vec<OffsetCommit> {
        let held = self.held.iter();
        held.map(|own| OffsetCommit::new(own.partition.clone(), own.epoch, Offset::new(next)))
            .collect()
    }
}

async fn a_paused_reader_outlives_its_poll_interval(protocol: GroupProtocol) {
    let group = Group::new(protocol).await;
    let mut member = group.join(None).await;
    member.holds(2).await;
    let all = [group.partition(0), group.partition(1)];
    member.consumer.pause(&all).await.unwrap();
    for number in [0, 1] {
        group.publish(number).await;
    }
    // Nobody asks for the next event for longer than the interval, nor than the session.
    sleep(9 * SECOND).await;
    // A member that was expelled could not commit under its epochs.
    member.consumer.commit(&member.commits(0)).await.unwrap();
    let quiet = timeout(SECOND, member.consumer.next()).await;
    assert!(quiet.is_err(), "{protocol:?}: {quiet:?}");
    member.consumer.resume(&all).await.unwrap();
    let found = [member.delivered().await, member.delivered().await];
    let found: BTreeSet<_> = found.into_iter().map(|(id, _)| id.partition).collect();
    assert_eq!(found, [0, 1].into(), "{protocol:?}");
    member.consumer.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn paused_partitions_stay_with_a_reader_that_is_away_for_longer_than_the_poll_interval() {
    let [classic, consumer] = BOTH.map(a_paused_reader_outlives_its_poll_interval);
    tokio::join!(classic, consumer);
}

async fn one_partition_moves(protocol: GroupProtocol) {
    let group = Group::new(protocol).await;
    let mut first = group.join(None).await;
    first.holds(2).await;
    let epochs = first.held.clone();
    let mut second = group.join(None).await;
    // The second member is served by its own thread.
    let revocation = first.revoked().await;
    assert_eq!(revocation.partitions().len(), 1, "{protocol:?}");
    assert_eq!(first.held.len(), 1, "{protocol:?}");
    let stays = first.held[0].clone();
    assert!(epochs.contains(&stays), "{protocol:?}");
    // While the other partition is held back, the one that stays is read and committed.
    for offset in 0..3 {
        group.publish(stays.partition.partition).await;
        let found = first.delivered().await;
        assert_eq!(
            found,
            (stays.partition.clone(), Offset::new(offset)),
            "{protocol:?}"
        );
        first
            .consumer
            .commit(&first.commits(offset + 1))
            .await
            .unwrap();
    }
    assert_eq!(first.held, [stays], "{protocol:?}: the same epoch");
    drop(revocation);
    second.holds(1).await;
    assert!(
        second.numbers().is_disjoint(&first.numbers()),
        "{protocol:?}"
    );
    first.consumer.leave().await.unwrap();
    second.consumer.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_partition_that_stays_is_read_under_its_epoch_while_another_is_revoked() {
    let [classic, consumer] = BOTH.map(one_partition_moves);
    tokio::join!(classic, consumer);
}

/// The broker refuses the newcomer here, where the classic protocol refuses the member that was
/// there before.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_static_member_of_the_consumer_protocol_comes_back_to_its_partitions_and_has_no_double() {
    let group = Group::new(GroupProtocol::Consumer).await;
    let mut first = group.join(Some("node-1")).await;
    first.holds(2).await;
    let mut second = group.join(Some("node-2")).await;
    drop(first.revoked().await);
    second.holds(1).await;
    let (held, others) = (first.numbers(), second.held.clone());

    first.consumer.leave().await.unwrap();
    second.serve(5 * SECOND).await;
    assert_eq!(second.held, others, "the partition waits for its member");
    let mut first = group.join(Some("node-1")).await;
    first.holds(1).await;
    assert_eq!((first.numbers(), &second.held), (held, &others));

    let double = group.join(Some("node-1")).await;
    let refused = timeout(30 * SECOND, double.consumer.next()).await.unwrap();
    let Err(MessageBusError::Refused { kind, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(kind, RefusedKind::InstanceIdInUse);
    let number = *first.numbers().first().unwrap();
    group.publish(number).await;
    assert_eq!(
        first.delivered().await,
        (group.partition(number), Offset::new(0))
    );
    first.consumer.commit(&first.commits(1)).await.unwrap();
}

/// Notes the events of both runners.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<BTreeSet<String>>>);
impl Listener for Notes {
    const NAME: &'static str = "notes";
    type Events = Happened;
    async fn handle(&self, _: &Happened, ctx: &EventContext) -> HandlerResult {
        self.0.lock().unwrap().insert(ctx.stream().id().to_owned());
        Ok(())
    }
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + 60 * SECOND;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(SECOND / 10).await;
    }
}

fn partitions_of(runner: &RunnerHandle) -> u32 {
    runner.health().processors[0].partitions
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn two_runners_in_a_group_of_kip_848_share_its_partitions_and_handle_every_event() {
    let group = Group::new(GroupProtocol::Consumer).await;
    let (notes, control) = (Notes::default(), InMemoryControlStore::new());
    let start = || {
        let policy = ProcessorPolicy::listener().with_start(Start::Beginning);
        let runner = Runner::builder(group.bus.clone(), control.clone(), &*group.name);
        let runner = runner.with_topics([&*group.topic]);
        let runner = runner.listener_with(notes.clone(), policy);
        runner.build().unwrap().start()
    };
    let handled = |count| {
        let notes = notes.clone();
        move || notes.0.lock().unwrap().len() == count
    };
    publish(&group.bus, &group.topic, 2, 0..100).await;
    let first = start();
    until("one runner handles all", handled(100)).await;
    until("it has both partitions", || partitions_of(&first) == 2).await;

    let second = start();
    let share = || (partitions_of(&first), partitions_of(&second)) == (1, 1);
    until("each runner has a partition", share).await;
    publish(&group.bus, &group.topic, 2, 100..200).await;
    until("both runners handle the rest", handled(200)).await;

    first.stop();
    first.wait().await.into_result().unwrap();
    publish(&group.bus, &group.topic, 2, 200..300).await;
    until("the other runner takes over", handled(300)).await;
    until("it has both partitions", || partitions_of(&second) == 2).await;
    second.stop();
    let report = second.wait().await;
    assert!(report.processor("notes").unwrap().handled >= 150);
    let name = format!("{}.notes.g1", group.name);
    let committed = group.bus.committed(&name, &group.topic).await.unwrap();
    let ends: Vec<_> = committed.into_iter().map(|(_, next)| next).collect();
    assert_eq!(ends, [Some(Offset::new(150)); 2]);
}
