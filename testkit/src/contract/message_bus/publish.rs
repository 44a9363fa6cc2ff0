//! Cases of publishing, and of what a topic says about itself.
use super::given::{
    Fixture, Member, Topic, assert_missing_topic, assert_refused, assert_same_places, place,
};
use crate::contract::support::{at_once, unique};
use foldstream::{
    Timestamp,
    adapter::kafka_partition,
    ports::{
        Message, MessageBusError, Offset, PartitionId, PartitionOffsets, RefusedKind, StartOffset,
        Subscription,
    },
};
use std::{collections::BTreeSet, fmt::Debug};

fn offsets(topic: &Topic, ends: &[u64]) -> Vec<PartitionOffsets> {
    let ends = topic.all_partitions().into_iter().zip(ends);
    ends.map(|(p, end)| PartitionOffsets::new(p, Offset::new(0), Offset::new(*end)))
        .collect()
}

/// `end` counts every message whose `publish` has returned. An empty partition begins where it
/// ends.
pub async fn offsets_count_every_published_message(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 3).await;
    let found = topic.bus.offsets(&topic.name).await.unwrap();
    assert_eq!(found, offsets(&topic, &[0, 0, 0]), "an empty topic");
    for n in 1..=5 {
        let (partition, offset) = topic.bus.publish(&topic.message(1, 0)).await.unwrap();
        assert_eq!(
            (partition, offset),
            (topic.partition(1), Offset::new(n - 1))
        );
        let found = topic.bus.offsets(&topic.name).await.unwrap();
        assert_eq!(found, offsets(&topic, &[0, n, 0]), "after {n} messages");
    }
}

/// Messages of one key, each awaited before the next, have rising offsets in the partition that
/// `kafka_partition` names.
pub async fn messages_of_one_key_have_rising_offsets_in_the_keys_partition(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 5).await;
    let keys = ["a", "cart#1", "order#größe 🛒", "", "x", "21", "foobar"];
    let mut last = vec![None; keys.len()];
    for round in 0..4 {
        for (n, key) in keys.iter().enumerate() {
            let message = Message::new(topic.name.clone(), Timestamp::now())
                .with_key(*key)
                .with_value(format!("{round}"));
            let (partition, offset) = topic.bus.publish(&message).await.unwrap();
            let expected = topic.partition(kafka_partition(key.as_bytes(), 5));
            assert_eq!(partition, expected, "the partition of {key:?}");
            assert!(
                last[n] < Some(offset),
                "{key:?}: {offset} after {:?}",
                last[n]
            );
            last[n] = Some(offset);
        }
    }
}

/// A message goes to the partition that it names, whatever its key, and also without a key.
pub async fn a_message_goes_to_the_partition_that_it_names(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 3).await;
    for n in 0..3 {
        for named in 0..3 {
            // The key belongs to partition 0.
            let mut message = topic.message(0, n).with_partition(named);
            let place = topic.bus.publish(&message).await.unwrap();
            let expected = |n| (topic.partition(named), Offset::new(n as u64));
            assert_eq!(place, expected(2 * n), "with a key");
            message.key = None;
            let place = topic.bus.publish(&message).await.unwrap();
            assert_eq!(place, expected(2 * n + 1), "without a key");
        }
    }
}

/// A message without key and partition is `Invalid` and takes no offset.
pub async fn a_message_without_key_and_partition_is_invalid(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let mut message = topic.message(0, 0);
    message.key = None;
    let answer = topic.bus.publish(&message).await;
    assert!(
        matches!(answer, Err(MessageBusError::Invalid { .. })),
        "expected Invalid, found {answer:?}"
    );
    let found = topic.bus.offsets(&topic.name).await.unwrap();
    assert_eq!(found, offsets(&topic, &[0, 0]));
}

/// A partition that the topic does not have is `Refused(UnknownPartition)`, and the message takes
/// no offset.
pub async fn a_partition_that_the_topic_lacks_is_refused(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    for lacking in [2, 7, u32::MAX] {
        let message = topic.message(0, 0).with_partition(lacking);
        let answer = topic.bus.publish(&message).await;
        assert_refused(&answer, RefusedKind::UnknownPartition);
    }
    let found = topic.bus.offsets(&topic.name).await.unwrap();
    assert_eq!(found, offsets(&topic, &[0, 0]));
    topic.publish(1, 1).await;
}

/// The new partitions of a topic can be named at once, and messages that name another partition
/// stay there.
pub async fn a_topic_that_grows_moves_no_message_that_names_its_partition(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let named = |partition| topic.message(0, 0).with_partition(partition);
    for partition in 0..2 {
        topic.bus.publish(&named(partition)).await.unwrap();
    }
    assert_refused(
        &topic.bus.publish(&named(4)).await,
        RefusedKind::UnknownPartition,
    );
    fixture.add_partitions(&topic.name, 5).await;
    for (partition, offset) in [(0, 1), (1, 1), (4, 0), (2, 0)] {
        let place = topic.bus.publish(&named(partition)).await.unwrap();
        let expected = (topic.partition(partition), Offset::new(offset));
        assert_eq!(place, expected, "after the growth");
    }
    let found = topic.bus.describe_topic(&topic.name).await.unwrap();
    assert_eq!(found.partitions, 5);
}

/// Messages published at the same time each have their own offset.
pub async fn messages_published_at_once_have_places_of_their_own(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let places = at_once(8, |task| {
        let bus = topic.bus.clone();
        let messages: Vec<_> = (0..10).map(|n| topic.message(task as u32 % 2, n)).collect();
        async move {
            let mut places = Vec::new();
            for message in messages {
                places.push(bus.publish(&message).await.unwrap());
            }
            places
        }
    })
    .await;
    let distinct: BTreeSet<_> = places.into_iter().flatten().collect();
    assert_eq!(distinct.len(), 80, "places");
    let found = topic.bus.offsets(&topic.name).await.unwrap();
    assert_eq!(found, offsets(&topic, &[40, 40]));
}

/// Messages that several publishers send while a member reads are delivered once each, and each
/// publisher's in its order.
pub async fn messages_published_while_a_member_reads_are_delivered_once(fixture: Fixture) {
    const EACH: usize = 25;
    let topic = Topic::fresh(&fixture, 3).await;
    let mut member = Member::join(&topic).await;
    member.holds(&topic.all_partitions()).await;
    let publishers = at_once(4, |task| {
        let bus = topic.bus.clone();
        let messages: Vec<_> = (0..EACH)
            .map(|n| topic.message(task as u32 % 3, n))
            .collect();
        async move {
            let mut places = Vec::new();
            for message in messages {
                places.push(bus.publish(&message).await.unwrap());
                tokio::task::yield_now().await;
            }
            places
        }
    });
    let (places, found) = futures::join!(publishers, member.deliveries(4 * EACH));
    for places in &places {
        assert!(places.is_sorted(), "a publisher's places: {places:?}");
    }
    assert_same_places(found.iter().map(place).collect(), places.concat());
    member.leave().await;
}

/// A topic that does not exist is `Refused(MissingTopic)` for every call, and no call creates it.
pub async fn a_missing_topic_is_refused_and_never_made(fixture: Fixture) {
    let bus = fixture.bus();
    let name = format!("contract-missing-{}", unique());
    let message = Message::new(name.clone(), Timestamp::now())
        .with_key("key")
        .with_value("v");
    for _ in 0..2 {
        assert_missing_topic(&bus.publish(&message).await);
        let named = message.clone().with_partition(0);
        assert_missing_topic(&bus.publish(&named).await);
        let run = bus.publish_run(&[named]).await;
        assert_eq!(run.durable, 0);
        assert_missing_topic(&run.error.map_or(Ok(()), Err));
        assert_missing_topic(&bus.offsets(&name).await);
        assert_missing_topic(&bus.describe_topic(&name).await);
        assert_missing_topic(&bus.committed("contract-nobody", &name).await);
        let start = StartOffset::new(PartitionId::new(name.clone(), 0), Offset::new(0));
        let there = Topic::fresh(&fixture, 1).await;
        let subscription = Subscription::new(unique(), [there.name.to_string(), name.clone()])
            .with_start(vec![start]);
        assert_missing_topic(&bus.subscribe(subscription).await.map(drop));
    }
}

fn assert_invalid<T: Debug>(answer: &Result<T, MessageBusError>) {
    assert!(
        matches!(answer, Err(MessageBusError::Invalid { .. })),
        "expected Invalid, found {answer:?}"
    );
}

/// A name that no topic can have is `Invalid` for every call.
pub async fn a_name_that_no_topic_can_have_is_invalid(fixture: Fixture) {
    let bus = fixture.bus();
    let long = "t".repeat(Subscription::MAX_TOPIC + 1);
    for name in ["", ".", "..", "a topic", "events/1", "größe", &long] {
        let message = Message::new(name, Timestamp::now())
            .with_key("key")
            .with_partition(0);
        assert_invalid(&bus.publish(&message).await);
        let run = bus.publish_run(&[message]).await;
        assert_eq!(run.durable, 0);
        assert_invalid(&run.error.map_or(Ok(()), Err));
        assert_invalid(&bus.offsets(name).await);
        assert_invalid(&bus.describe_topic(name).await);
        assert_invalid(&bus.committed("contract-nobody", name).await);
        let subscription = Subscription::new(unique(), [name]);
        assert_invalid(&bus.subscribe(subscription).await.map(drop));
    }
}

/// A timestamp before the first millisecond after the start of 1970 is `Invalid`, and the message
/// takes no offset.
pub async fn a_timestamp_that_the_bus_cannot_keep_is_invalid(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let mut message = topic.message(0, 0);
    for micros in [i64::MIN, -1_000_000, -1, 0, 999] {
        message.timestamp = Timestamp::from_micros(micros);
        assert_invalid(&topic.bus.publish(&message).await);
        let run = topic
            .bus
            .publish_run(&[message.clone().with_partition(0)])
            .await;
        assert_invalid(&run.error.map_or(Ok(()), Err));
    }
    topic.publish(0, 1).await;
    let found = topic.bus.offsets(&topic.name).await.unwrap();
    assert_eq!(found, offsets(&topic, &[1]));
}

/// A message over the limit of topic or producer is `TooLarge` and takes no offset, and the bus
/// remains usable.
pub async fn a_message_over_the_limit_is_too_large(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let limit = topic
        .bus
        .describe_topic(&topic.name)
        .await
        .unwrap()
        .message_limit();
    let bytes = limit.unwrap_or(24 << 20) as usize + 1024;
    assert!(
        bytes <= 64 << 20,
        "make topics with a limit that a test can reach, at most 64 MiB"
    );
    let mut noise = vec![0; bytes];
    // A message that can be compressed might fit after all.
    fastrand::Rng::with_seed(7).fill(&mut noise);
    let mut message = topic.message(0, 0);
    message.value = Some(noise.into());
    match topic.bus.publish(&message).await {
        Err(MessageBusError::TooLarge {
            topic: named,
            bytes: found,
            ..
        }) => {
            assert_eq!(named, topic.name);
            assert!(found >= bytes, "{found} bytes of {bytes}");
        }
        other => panic!("expected TooLarge, found {other:?}"),
    }
    topic.publish(0, 1).await;
    let found = topic.bus.offsets(&topic.name).await.unwrap();
    assert_eq!(found, offsets(&topic, &[1]));
}

/// A topic is described with the number of its partitions.
pub async fn a_topic_is_described_with_its_partitions(fixture: Fixture) {
    for partitions in [1, 6] {
        let topic = Topic::fresh(&fixture, partitions).await;
        let found = topic.bus.describe_topic(&topic.name).await.unwrap();
        assert_eq!(found.partitions, partitions);
        assert_ne!(
            found.compacted,
            Some(true),
            "a fixture makes topics that keep history"
        );
    }
}

/// A group that has committed nothing has no offset in any partition.
pub async fn an_unknown_group_has_committed_nothing(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 3).await;
    topic.publish(1, 2).await;
    assert_eq!(topic.committed().await, [None, None, None]);
}
