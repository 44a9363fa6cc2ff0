//! Topics of the in-memory message bus that are created, grow, vanish and are compacted while
//! others use them.
use crate::member::{assigned, kind, next};
use foldstream::{
    Timestamp,
    adapter::kafka_partition,
    ports::{
        Consumer, ConsumerEvent, Message, MessageBus, MessageBusError, NoPosition, Offset,
        OffsetCommit, PartitionId, RefusedKind, StartOffset, Subscription, TopicDescription,
    },
};
use foldstream_testkit::{InMemoryMessageBus, MetadataLag};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

const TOPIC: &str = "events";
const MINUTE: Duration = Duration::from_secs(60);

fn partition(n: u32) -> PartitionId {
    PartitionId::new(TOPIC, n)
}
fn message() -> Message {
    Message::new(TOPIC, Timestamp::now())
        .with_key("k")
        .with_value("x")
}
fn from_start(partitions: u32) -> Subscription {
    let begin = |n| StartOffset::new(partition(n), Offset::new(0));
    Subscription::new("g", [TOPIC]).with_start((0..partitions).map(begin).collect())
}
async fn is_silent(consumer: &Arc<dyn Consumer>) -> bool {
    timeout(MINUTE, consumer.next()).await.is_err()
}

#[tokio::test]
async fn a_new_topic_is_unknown_for_so_many_calls() {
    let bus = InMemoryMessageBus::new();
    bus.set_metadata_lag(MetadataLag::Calls(6));
    bus.create_topic(TOPIC, 2);
    bus.create_topic("other", 1);
    let run = [message().with_partition(0)];
    let missing = [
        kind(bus.publish(&message()).await),
        kind(bus.publish_run(&run).await.error.map_or(Ok(()), Err)),
        kind(bus.subscribe(from_start(2)).await),
        kind(bus.offsets(TOPIC).await),
        kind(bus.committed("g", TOPIC).await),
        kind(bus.describe_topic(TOPIC).await),
    ];
    assert_eq!(missing, [Some(RefusedKind::MissingTopic); 6]);
    assert!(!bus.create_topic(TOPIC, 2), "the topic is there");
    assert_eq!(bus.describe_topic(TOPIC).await.unwrap().partitions, 2);
    bus.publish(&message()).await.unwrap();
    // Each topic counts its partitions separately.
    assert_eq!(
        kind(bus.offsets("other").await),
        Some(RefusedKind::MissingTopic)
    );
    bus.set_metadata_lag(MetadataLag::None);
    bus.create_topic("third", 1);
    bus.offsets("third").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_topic_is_unknown_for_so_long() {
    let bus = InMemoryMessageBus::new();
    bus.set_metadata_lag(MetadataLag::Time(MINUTE));
    bus.create_topic(TOPIC, 1);
    for _ in 0..3 {
        sleep(MINUTE / 4).await;
        assert_eq!(
            kind(bus.describe_topic(TOPIC).await),
            Some(RefusedKind::MissingTopic)
        );
    }
    sleep(MINUTE / 4).await;
    bus.publish(&message()).await.unwrap();
}

#[tokio::test]
async fn a_topic_that_has_grown_shows_the_old_count_for_so_many_calls() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    bus.set_metadata_lag(MetadataLag::Calls(5));
    bus.set_partitions(TOPIC, 4).unwrap();
    let key = (0..)
        .map(|n: u32| n.to_string())
        .find(|key| kafka_partition(key.as_bytes(), 4) == 3);
    let message = message().with_key(key.unwrap());
    assert_eq!(bus.describe_topic(TOPIC).await.unwrap().partitions, 1);
    assert_eq!(bus.offsets(TOPIC).await.unwrap().len(), 1);
    assert_eq!(bus.committed("g", TOPIC).await.unwrap().len(), 1);
    assert_eq!(bus.publish(&message).await.unwrap().0, partition(0));
    let named = message.clone().with_partition(3);
    assert_eq!(
        kind(bus.publish(&named).await),
        Some(RefusedKind::UnknownPartition)
    );
    assert_eq!(bus.publish(&message).await.unwrap().0, partition(3));
    assert_eq!(bus.offsets(TOPIC).await.unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn members_hear_of_growth_when_the_metadata_shows_it() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    let reader = bus.subscribe(from_start(3)).await.unwrap();
    assert_eq!(assigned(&reader).await, [0]);
    bus.set_metadata_lag(MetadataLag::Time(MINUTE));
    bus.set_partitions(TOPIC, 2).unwrap();
    let started = Instant::now();
    assert_eq!(assigned(&reader).await, [1]);
    assert_eq!(started.elapsed(), MINUTE);
    // By calls: the call that reaches the count shows the change, whoever makes it.
    bus.set_metadata_lag(MetadataLag::Calls(1));
    bus.set_partitions(TOPIC, 3).unwrap();
    assert!(is_silent(&reader).await);
    bus.offsets(TOPIC).await.unwrap();
    assert!(is_silent(&reader).await);
    bus.offsets(TOPIC).await.unwrap();
    assert_eq!(assigned(&reader).await, [2]);
}

#[tokio::test(start_paused = true)]
async fn growth_gives_members_new_partitions_and_takes_none_away() {
    let bus = InMemoryMessageBus::new();
    // If partitions were ordered by name and number, growth of the first topic would move those of
    // the second.
    bus.create_topic("a-topic", 1);
    bus.create_topic(TOPIC, 3);
    let begin = |id: PartitionId| StartOffset::new(id, Offset::new(0));
    let ids = (0..3)
        .map(partition)
        .chain([PartitionId::new("a-topic", 0)]);
    let both = Subscription::new("g", ["a-topic", TOPIC]).with_start(ids.map(begin).collect());
    let members = [
        bus.subscribe(both.clone()).await.unwrap(),
        bus.subscribe(both).await.unwrap(),
    ];
    for member in &members {
        let assigned = next(member).await;
        assert!(
            matches!(&assigned, ConsumerEvent::Assigned(a) if a.partitions.len() == 2),
            "{assigned:?}"
        );
    }
    bus.set_partitions("a-topic", 3).unwrap();
    // Without a start offset, a new partition has no position. Nothing is revoked before that.
    let mut new = BTreeSet::new();
    for member in &members {
        match next(member).await {
            ConsumerEvent::NoPosition(partition, NoPosition::Missing) => {
                new.insert(partition);
            }
            other => panic!("{other:?}"),
        }
        assert!(is_silent(member).await);
    }
    assert_eq!(
        new.into_iter().collect::<Vec<_>>(),
        [
            PartitionId::new("a-topic", 1),
            PartitionId::new("a-topic", 2)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_deleted_topic_is_refused_after_five_minutes() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    let reader = bus.subscribe(from_start(1)).await.unwrap();
    assert_eq!(assigned(&reader).await, [0]);
    let deleted = Instant::now();
    bus.delete_topic(TOPIC);
    let lost = next(&reader).await;
    assert!(matches!(lost, ConsumerEvent::Lost(_)), "{lost:?}");
    let outage = reader.next().await.unwrap_err();
    assert!(outage.is_transient(), "{outage:?}");
    let refused = timeout(60 * MINUTE, reader.next()).await.unwrap();
    assert_eq!(kind(refused), Some(RefusedKind::MissingTopic));
    assert_eq!(deleted.elapsed(), 5 * MINUTE);
    // A topic created under this name later is another topic.
    bus.create_topic(TOPIC, 1);
    let event = next(&reader).await;
    assert!(
        matches!(event, ConsumerEvent::NoPosition(_, NoPosition::Recreated)),
        "{event:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_recreated_in_time_ends_the_outage() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    let reader = bus.subscribe(from_start(1)).await.unwrap();
    assert_eq!(assigned(&reader).await, [0]);
    for _ in 0..2 {
        bus.delete_topic(TOPIC);
        while reader.next().await.is_ok() {}
        assert!(is_silent(&reader).await, "it was told once");
        bus.create_topic(TOPIC, 1);
        let event = next(&reader).await;
        assert!(
            matches!(event, ConsumerEvent::NoPosition(_, NoPosition::Recreated)),
            "{event:?}"
        );
        assert!(is_silent(&reader).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_compacted_partition_is_read_without_the_removed_records() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    for _ in 0..6 {
        bus.publish(&message()).await.unwrap();
    }
    for (start, end) in [(1, 3), (5, 6)] {
        let offsets = Offset::new(start)..Offset::new(end);
        bus.remove_records(&partition(0), offsets).unwrap();
    }
    let offsets = bus.offsets(TOPIC).await.unwrap();
    assert_eq!((offsets[0].begin.get(), offsets[0].end.get()), (0, 6));
    let reader = bus.subscribe(from_start(1)).await.unwrap();
    assert_eq!(assigned(&reader).await, [0]);
    let (mut found, mut end) = (Vec::new(), None);
    while end.is_none() {
        match next(&reader).await {
            ConsumerEvent::Delivery(delivery) => found.push(delivery.offset.get()),
            ConsumerEvent::Reached(_, epoch, next) if next.get() == 6 => end = Some(epoch),
            ConsumerEvent::Reached(..) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(found, [0, 3, 4]);
    let commit = OffsetCommit::new(partition(0), end.unwrap(), Offset::new(6));
    reader.commit(&[commit]).await.unwrap();
    let missing = bus.remove_records(&partition(1), Offset::new(0)..Offset::new(1));
    assert!(matches!(missing, Err(MessageBusError::Invalid { .. })));
}

#[tokio::test]
async fn a_compacted_topic_takes_no_message_without_a_key() {
    let bus = InMemoryMessageBus::new();
    let description = TopicDescription::new(1).with_compacted(Some(true));
    bus.create_topic_as(TOPIC, description);
    let mut keyless = message().with_partition(0);
    keyless.key = None;
    assert_eq!(
        kind(bus.publish(&keyless).await),
        Some(RefusedKind::Validation)
    );
    assert_eq!(bus.offsets(TOPIC).await.unwrap()[0].end.get(), 0);
    bus.publish(&message()).await.unwrap();
}

#[tokio::test]
async fn a_topic_has_the_limits_of_the_kafka_adapter() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    let limit = bus.describe_topic(TOPIC).await.unwrap().message_limit();
    // The producer's default of 1,000,000 bytes, minus the overhead of a record and its batch.
    assert_eq!(limit, Some(999_903));
    let sized = |bytes: usize| {
        let message = message();
        let rest = bytes + 1 - message.size();
        message.with_value(vec![b'x'; rest])
    };
    bus.publish(&sized(999_903)).await.unwrap();
    let over = bus.publish(&sized(999_904)).await;
    assert!(
        matches!(over, Err(MessageBusError::TooLarge { .. })),
        "{over:?}"
    );
}

#[test]
#[should_panic(expected = "ASCII letters")]
fn a_topic_that_no_broker_would_create_is_not_created() {
    InMemoryMessageBus::new().create_topic("events/eu", 1);
}
