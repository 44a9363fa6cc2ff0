//! Topics that are unknown for a moment, and partitions without a position, as faults.
use crate::member::kind;
use foldstream::{
    CommitId, DomainEvent, EventHeader, SourceUri, StreamId, Timestamp, Version,
    adapter::{recorded_event, to_message},
    ports::{
        Consumer, ConsumerEvent, Delivery, Message, MessageBus, MessageBusError, NoPosition,
        Offset, OffsetCommit, PartitionId, RefusedKind, StartOffset, Subscription,
    },
    runner::{
        EventContext, HandlerResult, Listener, ProcessorPolicy, Runner, RunnerError, RunnerReport,
        Start,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryMessageBus,
    faults::{Fault, Faults, Op, Rule},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};

const TOPIC: &str = "events";
const MINUTE: Duration = Duration::from_secs(60);

fn bus(faults: &Faults, partitions: u32) -> Arc<dyn MessageBus> {
    let inner = InMemoryMessageBus::new();
    inner.create_topic(TOPIC, partitions);
    faults.message_bus(inner)
}
fn partition(n: u32) -> PartitionId {
    PartitionId::new(TOPIC, n)
}
fn message(n: u32) -> Message {
    Message::new(TOPIC, Timestamp::now())
        .with_value("{}")
        .with_partition(n)
}
fn subscription(partitions: u32) -> Subscription {
    let start = |n| StartOffset::new(partition(n), Offset::new(0));
    Subscription::new("g", [TOPIC]).with_start((0..partitions).map(start).collect())
}
fn is_outage<T>(answer: &Result<T, MessageBusError>) -> bool {
    matches!(answer, Err(MessageBusError::Unavailable { .. }))
}
async fn delivery(consumer: &dyn Consumer) -> Delivery {
    loop {
        match consumer.next().await.unwrap() {
            ConsumerEvent::Delivery(delivery) => return delivery,
            ConsumerEvent::Assigned(_) => {}
            other => panic!("{other:?}"),
        }
    }
}
fn after(delivery: &Delivery) -> OffsetCommit {
    OffsetCommit::new(
        delivery.partition.clone(),
        delivery.epoch,
        delivery.offset.next(),
    )
}

#[tokio::test(start_paused = true)]
async fn an_unknown_topic_is_an_outage_only_where_it_has_worked_before() {
    let faults = Faults::none();
    let bus = bus(&faults, 1);
    let unknown = || Fault::UnknownTopic.anywhere();
    faults.set([unknown()]);
    // On first contact, every call refuses the topic.
    let refused = [
        kind(bus.publish(&message(0)).await),
        kind(
            bus.publish_run(&[message(0)])
                .await
                .error
                .map_or(Ok(()), Err),
        ),
        kind(bus.subscribe(subscription(1)).await),
        kind(bus.offsets(TOPIC).await),
        kind(bus.committed("g", TOPIC).await),
        kind(bus.describe_topic(TOPIC).await),
    ];
    assert_eq!(refused, [Some(RefusedKind::MissingTopic); 6]);
    faults.set([]);
    let end = bus.offsets(TOPIC).await.unwrap()[0].end;
    assert_eq!(end.get(), 0, "nothing was done");
    let consumer = bus.subscribe(subscription(1)).await.unwrap();
    bus.publish(&message(0)).await.unwrap();
    let first = delivery(&*consumer).await;

    faults.set([unknown()]);
    assert!(is_outage(&bus.publish(&message(0)).await));
    let run = bus.publish_run(&[message(0)]).await;
    assert!(is_outage(&run.error.map_or(Ok(()), Err)));
    assert!(is_outage(&bus.subscribe(subscription(1)).await));
    assert!(is_outage(&bus.offsets(TOPIC).await));
    assert!(is_outage(&bus.committed("g", TOPIC).await));
    assert!(is_outage(&bus.describe_topic(TOPIC).await));
    assert!(is_outage(&consumer.next().await));
    assert!(is_outage(&consumer.commit(&[after(&first)]).await));
    // Calls that need no metadata succeed.
    consumer.pause(&[partition(0)]).await.unwrap();
    consumer.resume(&[partition(0)]).await.unwrap();
    faults.set([]);
    consumer.commit(&[after(&first)]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_topic_is_refused_after_five_minutes_in_a_row() {
    let faults = Faults::none();
    let bus = bus(&faults, 1);
    bus.publish(&message(0)).await.unwrap();
    for _ in 0..2 {
        faults.set([Fault::UnknownTopic.anywhere()]);
        assert!(is_outage(&bus.publish(&message(0)).await));
        sleep(MINUTE * 4).await;
        assert!(is_outage(&bus.publish(&message(0)).await));
        sleep(MINUTE).await;
        assert_eq!(
            kind(bus.publish(&message(0)).await),
            Some(RefusedKind::MissingTopic)
        );
        faults.set([]);
        bus.publish(&message(0)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_loses_its_position_is_told_once_and_delivers_nothing_more() {
    let (begin, end) = (Offset::new(3), Offset::new(9));
    let why = NoPosition::OutOfRange { begin, end };
    // The first call reports the assignment.
    let faults = Faults::script([Fault::NoPosition(why).on(Op::Next).at(2)]);
    let bus = bus(&faults, 2);
    for _ in 0..3 {
        for n in 0..2 {
            bus.publish(&message(n)).await.unwrap();
        }
    }
    let consumer = bus.subscribe(subscription(2)).await.unwrap();
    let assigned = consumer.next().await.unwrap();
    let ConsumerEvent::Assigned(assignment) = assigned else {
        panic!("{assigned:?}")
    };
    let told = consumer.next().await.unwrap();
    assert!(
        matches!(&told, ConsumerEvent::NoPosition(p, found) if *p == partition(0) && *found == why),
        "{told:?}"
    );
    for offset in 0..3 {
        let found = delivery(&*consumer).await;
        assert_eq!(
            (found.partition, found.offset.get()),
            (partition(1), offset)
        );
    }
    assert!(timeout(MINUTE, consumer.next()).await.is_err());
    // The partition is still assigned.
    let own = &assignment.partitions[0];
    let commit = OffsetCommit::new(own.partition.clone(), own.epoch, Offset::new(0));
    consumer.commit(&[commit]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_partition_without_position_from_the_start_is_not_assigned() {
    let faults = Faults::script([Fault::NoPosition(NoPosition::Missing).on(Op::Next).at(1)]);
    let bus = bus(&faults, 2);
    bus.publish(&message(0)).await.unwrap();
    bus.publish(&message(1)).await.unwrap();
    let consumer = bus.subscribe(subscription(2)).await.unwrap();
    let (mut assigned, mut without, mut delivered) = (Vec::new(), Vec::new(), Vec::new());
    while let Ok(event) = timeout(MINUTE, consumer.next()).await {
        match event.unwrap() {
            ConsumerEvent::Assigned(found) => {
                assigned.extend(found.partitions.into_iter().map(|p| p.partition));
            }
            ConsumerEvent::NoPosition(p, NoPosition::Missing) => without.push(p),
            ConsumerEvent::Delivery(found) => delivered.push(found.partition),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (assigned, without),
        (vec![partition(1)], vec![partition(0)])
    );
    assert_eq!(delivered, [partition(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_commit_for_a_recreated_topic_is_stale_until_the_partition_is_assigned_again() {
    let faults = Faults::script([
        Fault::NoPosition(NoPosition::Recreated).on(Op::Next).at(3),
        Fault::LoseSession.on(Op::Next).at(4),
    ]);
    let bus = bus(&faults, 1);
    bus.publish(&message(0)).await.unwrap();
    let consumer = bus.subscribe(subscription(1)).await.unwrap();
    let first = delivery(&*consumer).await;
    let told = consumer.next().await.unwrap();
    assert!(
        matches!(told, ConsumerEvent::NoPosition(_, NoPosition::Recreated)),
        "{told:?}"
    );
    let late = consumer.commit(&[after(&first)]).await;
    assert!(
        matches!(late, Err(MessageBusError::StaleAssignment { .. })),
        "{late:?}"
    );
    let lost = consumer.next().await.unwrap();
    assert!(matches!(lost, ConsumerEvent::Lost(_)), "{lost:?}");
    let again = delivery(&*consumer).await;
    consumer.commit(&[after(&again)]).await.unwrap();
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
enum Happened {
    Deposited {},
}

struct Count(Arc<AtomicU64>);
impl Listener for Count {
    const NAME: &'static str = "count";
    type Events = Happened;
    async fn handle(&self, _: &Happened, _: &EventContext) -> HandlerResult {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Runs a processor over six records under these rules for ten minutes.
async fn processed(rules: impl IntoIterator<Item = Rule>) -> (u64, RunnerReport) {
    let faults = Faults::none();
    let bus = bus(&faults, 1);
    for n in 0..6 {
        let stream = StreamId::new("account", &n).unwrap();
        let id = CommitId::random().event_id(0);
        let header = EventHeader::new(id, stream, Version::new(1), "Deposited", Timestamp::now());
        let event = recorded_event(header, "{}".into());
        let (topic, source) = (TOPIC.into(), SourceUri::default());
        let message = to_message(&event, &topic, &source, Timestamp::now());
        bus.publish(&message).await.unwrap();
    }
    faults.set(rules);
    let count = Arc::<AtomicU64>::default();
    let policy = ProcessorPolicy::listener().with_start(Start::Beginning);
    let runner = Runner::builder(bus, InMemoryControlStore::new(), "test")
        .with_topics([TOPIC])
        .listener_with(Count(count.clone()), policy)
        .build()
        .unwrap();
    let report = runner.run(sleep(MINUTE * 10)).await;
    (count.load(Ordering::SeqCst), report)
}

#[tokio::test(start_paused = true)]
async fn a_processor_outlives_a_topic_that_is_unknown_for_a_moment() {
    for op in [Op::Offsets, Op::Next, Op::Commit, Op::Subscribe] {
        let (count, report) = processed([Fault::UnknownTopic.on(op).first(5)]).await;
        assert_eq!(count, 6, "{op:?}");
        report.into_result().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_processor_halts_where_a_partition_has_no_position() {
    for why in [
        NoPosition::Recreated,
        NoPosition::OutOfRange {
            begin: Offset::new(50),
            end: Offset::new(60),
        },
    ] {
        let (count, report) = processed([Fault::NoPosition(why).on(Op::Next).from(3)]).await;
        let error = report.into_result().unwrap_err();
        assert!(
            matches!(*error, RunnerError::PositionLost { .. }),
            "{why:?}: {error:?}"
        );
        assert!(count < 6, "{why:?}");
    }
}
