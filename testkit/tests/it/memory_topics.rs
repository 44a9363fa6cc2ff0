//! Topics and static members of the in-memory message bus, beyond the contract.
use crate::member::{assigned, next};
use foldstream::{
    Timestamp,
    ports::{
        Consumer, ConsumerEvent, Message, MessageBus, MessageBusError, NoPosition, Offset,
        PartitionId, RefusedKind, StartOffset, Subscription, TopicDescription,
    },
};
use foldstream_testkit::InMemoryMessageBus;
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

const TOPIC: &str = "events";
const SESSION: Duration = Duration::from_secs(10);

fn partition(n: u32) -> PartitionId {
    PartitionId::new(TOPIC, n)
}
fn message() -> Message {
    Message::new(TOPIC, Timestamp::from_micros(1_005))
        .with_key("k")
        .with_value("x")
        .with_partition(0)
}
fn subscription(partitions: u32) -> Subscription {
    let begin = |n| StartOffset::new(partition(n), Offset::new(0));
    Subscription::new("g", [TOPIC]).with_start((0..partitions).map(begin).collect())
}
async fn is_silent(consumer: &Arc<dyn Consumer>, pause: Duration) -> bool {
    timeout(pause, consumer.next()).await.is_err()
}

#[tokio::test]
async fn the_lower_limit_of_topic_and_producer_counts() {
    for (topic, producer) in [
        (Some(100), Some(50)),
        (Some(50), Some(100)),
        (None, Some(50)),
    ] {
        let bus = InMemoryMessageBus::new();
        let description = TopicDescription::new(1).with_max_message_bytes(topic);
        bus.create_topic_as(TOPIC, description.with_max_producer_bytes(producer));
        let sized = |bytes: usize| {
            let message = message();
            let rest = bytes - message.size() + 1;
            message.with_value(vec![b'x'; rest])
        };
        let over = bus.publish(&sized(51)).await.unwrap_err();
        assert!(
            matches!(
                over,
                MessageBusError::TooLarge {
                    bytes: 51,
                    limit: Some(50),
                    ..
                }
            ),
            "{over:?}"
        );
        bus.publish(&sized(50)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn retention_passes_offsets_without_records() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    for _ in 0..2 {
        bus.publish(&message()).await.unwrap();
        bus.skip_offsets(&partition(0), 3).unwrap();
    }
    bus.delete_records_before(&partition(0), Offset::new(6))
        .unwrap();
    let offsets = bus.offsets(TOPIC).await.unwrap();
    assert_eq!((offsets[0].begin.get(), offsets[0].end.get()), (6, 8));
    let start = vec![StartOffset::new(partition(0), Offset::new(6))];
    let reader = bus.subscribe(Subscription::new("g", [TOPIC]).with_start(start));
    let reader = reader.await.unwrap();
    assert_eq!(assigned(&reader).await, [0]);
    let reached = next(&reader).await;
    assert!(
        matches!(&reached, ConsumerEvent::Reached(p, _, next) if *p == partition(0) && next.get() == 8),
        "{reached:?}"
    );
    bus.delete_records_before(&partition(0), Offset::new(100))
        .unwrap();
    let offsets = bus.offsets(TOPIC).await.unwrap();
    assert_eq!((offsets[0].begin.get(), offsets[0].end.get()), (8, 8));
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_recreated_topic_is_told_so_for_partitions_that_it_gets_later_too() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    let reader = bus.subscribe(subscription(2)).await.unwrap();
    assert_eq!(assigned(&reader).await, [0]);
    bus.delete_topic(TOPIC);
    bus.create_topic(TOPIC, 1);
    bus.set_partitions(TOPIC, 2).unwrap();
    let lost = next(&reader).await;
    assert!(matches!(lost, ConsumerEvent::Lost(_)), "{lost:?}");
    for number in 0..2 {
        let event = next(&reader).await;
        assert!(
            matches!(&event, ConsumerEvent::NoPosition(p, NoPosition::Recreated) if *p == partition(number)),
            "{event:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_session_of_an_absent_member_ends_once_however_often_it_leaves() {
    let bus = InMemoryMessageBus::with_session_timeout(SESSION);
    bus.create_topic(TOPIC, 2);
    let own = subscription(2).with_instance_id("a");
    let (absent, other) = (
        bus.subscribe(own).await.unwrap(),
        bus.subscribe(subscription(2)).await.unwrap(),
    );
    assert_eq!(assigned(&absent).await, [0]);
    assert_eq!(assigned(&other).await, [1]);
    absent.leave().await.unwrap();
    assert!(is_silent(&other, SESSION * 6 / 10).await);
    absent.leave().await.unwrap();
    drop(absent);
    assert!(is_silent(&other, SESSION * 3 / 10).await);
    assert_eq!(assigned(&other).await, [0]);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_nothing_of_an_absent_member_before_it_is_back() {
    let bus = InMemoryMessageBus::with_session_timeout(SESSION);
    bus.create_topic(TOPIC, 2);
    let own = || subscription(2).with_instance_id("a");
    let first = bus.subscribe(own()).await.unwrap();
    assert_eq!(assigned(&first).await, [0, 1]);
    first.leave().await.unwrap();
    let newcomer = bus.subscribe(subscription(2)).await.unwrap();
    assert!(is_silent(&newcomer, SESSION / 2).await);
    // The member is back in time, so the bus treats it as if it had never left.
    let back = bus.subscribe(own()).await.unwrap();
    assert_eq!(assigned(&back).await, [0]);
    assert_eq!(assigned(&newcomer).await, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_group_with_an_absent_member_is_deleted_only_after_its_session() {
    let bus = InMemoryMessageBus::with_session_timeout(SESSION);
    bus.create_topic(TOPIC, 1);
    let own = subscription(1).with_instance_id("a");
    let member = bus.subscribe(own).await.unwrap();
    member.leave().await.unwrap();
    let refused = bus.delete_group("g").await.unwrap_err();
    assert!(
        matches!(
            refused,
            MessageBusError::Refused {
                kind: RefusedKind::Validation,
                ..
            }
        ),
        "{refused:?}"
    );
    sleep(SESSION).await;
    bus.delete_group("g").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_newer_of_two_members_with_one_instance_id_goes_on_at_once() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    bus.publish(&message()).await.unwrap();
    let own = || subscription(1).with_instance_id("a");
    let older = bus.subscribe(own()).await.unwrap();
    assert_eq!(assigned(&older).await, [0]);
    let newer = bus.subscribe(own()).await.unwrap();
    assert_eq!(assigned(&newer).await, [0]);
    for refused in [older.next().await.map(drop), older.commit(&[]).await] {
        assert!(
            matches!(
                refused,
                Err(MessageBusError::Refused {
                    kind: RefusedKind::InstanceIdInUse,
                    ..
                })
            ),
            "{refused:?}"
        );
    }
    older.leave().await.unwrap();
    assert!(matches!(older.next().await, Err(MessageBusError::Closed)));
    let event = next(&newer).await;
    assert!(matches!(event, ConsumerEvent::Delivery(_)), "{event:?}");
}

#[tokio::test]
async fn no_partition_ends_after_the_last_offset_of_kafka() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    bus.publish(&message()).await.unwrap();
    for offsets in [u64::MAX, i64::MAX.unsigned_abs()] {
        let refused = bus.skip_offsets(&partition(0), offsets);
        assert!(
            matches!(&refused, Err(MessageBusError::Invalid { reason }) if reason.contains("ends at offset 1")),
            "{refused:?}"
        );
    }
    bus.skip_offsets(&partition(0), i64::MAX.unsigned_abs() - 1)
        .unwrap();
    bus.publish(&message()).await.unwrap();
    assert!(bus.skip_offsets(&partition(0), 1).is_err());
}
