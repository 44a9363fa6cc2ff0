//! A topic whose partitions change, and topics of which only some can be used.
use super::world::{TOPIC, World, is_send_of, stream};
use foldstream::{
    Backoff, RetryPolicy, StreamId,
    adapter::kafka_partition,
    ports::{MessageBus, RefusedKind},
    publisher::{PollConfig, PollReport, PublishError, Publisher, TopicError, TopicRoute},
};
use foldstream_testkit::faults::{Call, Fault, Op};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

const S: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Returns a stream whose partition among 8 differs from that among 3, where neither is 0.
fn moving_stream() -> StreamId {
    let at = |id: &StreamId, partitions| kafka_partition(id.as_str().as_bytes(), partitions);
    let mut streams = (0..).map(|n: u32| stream(&n.to_string()));
    let moves = |id: &StreamId| at(id, 3) != at(id, 8) && at(id, 3) > 0;
    streams.find(moves).unwrap()
}

/// Returns the number of records in each partition of the topic that has any.
async fn filled(world: &World) -> Vec<(u32, u64)> {
    let offsets = world.bus.offsets(TOPIC).await.unwrap();
    let ends = offsets.iter().map(|o| (o.partition.partition, o.end.get()));
    ends.filter(|(_, end)| *end > 0).collect()
}

async fn publish_one(world: &World, publisher: &Publisher, id: &StreamId) -> Option<PublishError> {
    world.append(id, 1).await;
    let mut report = publisher.publish_pending().await.unwrap();
    report.failed.pop().map(|failure| failure.error)
}

#[track_caller]
fn assert_changed(error: &Option<PublishError>) {
    assert!(
        matches!(
            error,
            Some(PublishError::Topic {
                source: TopicError::PartitionsChanged {
                    pinned: 3,
                    found: 8,
                    ..
                },
                ..
            })
        ),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_partition_until_another_number_is_accepted() {
    let world = World::new();
    let (id, publisher) = (moving_stream(), world.publisher());
    let at = |partitions| kafka_partition(id.as_str().as_bytes(), partitions);
    assert!(publish_one(&world, &publisher, &id).await.is_none());
    world.bus.set_partitions(TOPIC, 8).unwrap();
    // The publisher need not have noticed: the pinned number names the partition.
    assert!(publish_one(&world, &publisher, &id).await.is_none());
    assert_eq!(filled(&world).await, [(at(3), 2)]);

    tokio::time::sleep(61 * S).await;
    assert_changed(&publish_one(&world, &publisher, &id).await);
    assert_eq!(filled(&world).await, [(at(3), 2)]);

    // Another process accepts the number, and no restart is needed.
    world.publisher().accept_partitions(TOPIC, 8).await.unwrap();
    assert!(publish_one(&world, &publisher, &id).await.is_none());
    let mut expected = [(at(3), 2), (at(8), 2)];
    expected.sort();
    assert_eq!(filled(&world).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_grows_is_noticed_in_the_middle_of_a_long_stream() {
    let world = World::new();
    let id = moving_stream();
    for _ in 0..20 {
        world.append(&id, 1).await;
    }
    world.set_fates(|call| matches!(call, Call::Publish(_)).then_some(Fault::Delay(10 * S)));
    let publisher = world.publisher();
    let publishing = tokio::spawn(async move { publisher.publish_pending().await.unwrap() });
    tokio::time::sleep(5 * S).await;
    world.bus.set_partitions(TOPIC, 8).unwrap();
    let report = publishing.await.unwrap();
    assert!(report.messages < 10, "{report:?}");
    assert_eq!(filled(&world).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_lacks_a_partition_is_checked_at_once() {
    let world = World::new();
    let (id, publisher) = (moving_stream(), world.publisher());
    assert!(publish_one(&world, &publisher, &id).await.is_none());
    world.bus.delete_topic(TOPIC);
    world.bus.create_topic(TOPIC, 1);
    let error = publish_one(&world, &publisher, &id).await;
    assert!(
        matches!(
            error,
            Some(PublishError::Topic {
                source: TopicError::PartitionsChanged {
                    pinned: 3,
                    found: 1,
                    ..
                },
                ..
            })
        ),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_number_is_accepted_while_this_publisher_sends() {
    let world = World::new();
    let (id, publisher) = (moving_stream(), world.publisher());
    world.append(&id, 1).await;
    world.set_fates(|call| matches!(call, Call::Publish(_)).then_some(Fault::Delay(10 * S)));
    let publishing = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish_pending().await.unwrap() }
    });
    tokio::time::sleep(S).await;
    world.bus.set_partitions(TOPIC, 8).unwrap();
    let refused = publisher.accept_partitions(TOPIC, 8).await.unwrap_err();
    assert!(
        matches!(refused, TopicError::StillPublishing { streams: 1, .. }),
        "{refused}"
    );
    publishing.await.unwrap();
    world.heal();
    publisher.accept_partitions(TOPIC, 8).await.unwrap();
    assert!(publish_one(&world, &publisher, &id).await.is_none());
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_begins_while_a_number_is_accepted_goes_by_the_new_one() {
    let world = World::new();
    let (id, publisher) = (moving_stream(), world.publisher());
    publisher.check_topics([]).await.unwrap();
    world.bus.set_partitions(TOPIC, 8).unwrap();
    world.faults.set([Fault::Delay(10 * S).on(Op::Put)]);
    let accepting = publisher.accept_partitions(TOPIC, 8);
    let publishing = async {
        tokio::time::sleep(S).await;
        publish_one(&world, &publisher, &id).await
    };
    let (accepted, failed) = tokio::join!(accepting, publishing);
    accepted.unwrap();
    assert!(failed.is_none(), "{failed:?}");
    let new = kafka_partition(id.as_str().as_bytes(), 8);
    assert_eq!(filled(&world).await, [(new, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_cannot_be_repeated_for_a_moment_stops_nothing() {
    let world = World::new();
    let (id, publisher) = (moving_stream(), world.publisher());
    assert!(publish_one(&world, &publisher, &id).await.is_none());
    for fault in [Fault::Unavailable, Fault::Hang] {
        tokio::time::sleep(HOUR).await;
        world.faults.set([fault.on(Op::DescribeTopic)]);
        // One stream asks the bus, which hangs, and waits for the answer. The other streams
        // continue.
        let asking = tokio::spawn({
            let publisher = publisher.clone();
            async move { publisher.check_topics([]).await }
        });
        tokio::time::sleep(S).await;
        assert!(publish_one(&world, &publisher, &id).await.is_none());
        asking.abort();
        world.heal();
    }
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_records_timestamp_is_the_time_of_sending() {
    let world = World::new();
    let pauses = Backoff::new(HOUR, HOUR).with_seed(1);
    let publisher = world
        .publisher()
        .with_retry(RetryPolicy::new(pauses, 10 * HOUR));
    let started = Instant::now();
    let commit = world.append(&stream("a"), 1).await;
    let stamps = Arc::new(Mutex::new(Vec::new()));
    let seen = stamps.clone();
    world.set_fates(move |call| match call {
        Call::Publish(message) => {
            let mut seen = seen.lock().unwrap();
            seen.push((message.timestamp, started.elapsed()));
            (seen.len() < 3).then_some(Fault::Unavailable)
        }
        _ => None,
    });
    tokio::time::sleep(HOUR).await;
    assert_eq!(publisher.publish([commit.clone()]).await.messages, 1);
    let stamps = stamps.lock().unwrap().clone();
    assert_eq!(stamps.len(), 3);
    let mut before = commit.recorded_at;
    for (stamp, elapsed) in stamps {
        assert_eq!(stamp, commit.recorded_at.plus(elapsed));
        assert!(stamp > before);
        before = stamp;
    }
}

/// Polls carts and orders, each to a topic of its own, for two minutes.
fn polling(world: &World) -> tokio::task::JoinHandle<PollReport> {
    let prefix = "shop.".into();
    let publisher = world
        .publisher()
        .with_route(TopicRoute::ByAggregate { prefix })
        .with_concurrency(4);
    let backoff = Backoff::new(S, 8 * S).with_seed(7);
    let config = PollConfig::default().with_backoff(backoff);
    let polled = async move { publisher.poll(config, tokio::time::sleep(120 * S)).await };
    tokio::spawn(async { polled.await.unwrap() })
}

fn order(id: &str) -> StreamId {
    StreamId::new("order", id).unwrap()
}

async fn left(world: &World) -> Vec<String> {
    let keys = world.unpublished().await.into_iter();
    keys.map(|key| key.stream.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_missing_topic_concerns_only_its_streams() {
    let world = World::new();
    world.bus.create_topic("shop.cart", 2);
    world.append(&order("1"), 1).await;
    let polling = polling(&world);
    tokio::time::sleep(30 * S).await;
    world.append(&stream("later"), 1).await;
    tokio::time::sleep(2 * S).await;
    assert_eq!(left(&world).await, ["order#1"]);
    // No restart is needed once the topic exists.
    world.bus.create_topic("shop.order", 2);
    let report = polling.await.unwrap();
    assert_eq!(left(&world).await, [""; 0]);
    assert!(report.stuck.is_empty() && report.failures > 0, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_denied_grows_or_hangs_concerns_only_its_streams() {
    let denied = || Fault::Refused(RefusedKind::Permission);
    let is_order = |call: &Call<'_>| match call {
        Call::DescribeTopic { topic } => *topic == "shop.order",
        Call::Publish(message) => &*message.topic == "shop.order",
        _ => false,
    };
    for fault in [
        Some(denied().on(Op::DescribeTopic)),
        Some(denied().on(Op::Publish)),
        Some(Fault::Hang.on(Op::DescribeTopic)),
        None,
    ] {
        let world = World::new();
        world.bus.create_topic("shop.cart", 2);
        world.bus.create_topic("shop.order", 2);
        let prefix = "shop.".into();
        let publisher = world.publisher();
        let publisher = publisher.with_route(TopicRoute::ByAggregate { prefix });
        publisher.check_topics(["cart", "order"]).await.unwrap();
        match fault {
            Some(fault) => world.faults.set([fault.matching(is_order)]),
            None => world.bus.set_partitions("shop.order", 3).unwrap(),
        }
        // These are more streams than may be published concurrently.
        for n in 0..20 {
            world.append(&order(&n.to_string()), 1).await;
        }
        let polling = polling(&world);
        for n in 0..20 {
            world.append(&stream(&n.to_string()), 1).await;
            tokio::time::sleep(S).await;
            let left = left(&world).await;
            assert!(left.iter().all(|id| id.starts_with("order")), "{left:?}");
            assert_eq!(left.len(), 20);
        }
        polling.abort();
    }
}

/// An error like Kafka's `UNSUPPORTED_FOR_MESSAGE_FORMAT`, which concerns one topic only.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_one_topics_records_concerns_only_its_streams_and_passes() {
    for kind in [
        RefusedKind::MissingTopic,
        RefusedKind::UnknownPartition,
        RefusedKind::Permission,
        RefusedKind::Validation,
        RefusedKind::Incompatible,
        RefusedKind::Unsupported,
        RefusedKind::Other,
    ] {
        let world = World::new();
        world.bus.create_topic("shop.cart", 2);
        world.bus.create_topic("shop.order", 2);
        let is_order =
            |call: &Call<'_>| matches!(call, Call::Publish(m) if &*m.topic == "shop.order");
        let refusal = Fault::Refused(kind).on(Op::Publish).matching(is_order);
        world.faults.set([refusal]);
        for n in 0..3 {
            world.append(&order(&n.to_string()), 1).await;
        }
        let polling = polling(&world);
        tokio::time::sleep(10 * S).await;
        world.append(&stream("later"), 1).await;
        tokio::time::sleep(20 * S).await;
        let refused = ["order#0", "order#1", "order#2"];
        assert_eq!(left(&world).await, refused, "{kind:?}");
        world.heal();
        polling.await.unwrap();
        assert_eq!(left(&world).await, [""; 0], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_cut_short_is_not_reported_as_brought_up_to_date() {
    // The poller is stopped within the first page of the list, after it, or when all listed commits
    // of the stream are published.
    for (commits, listed) in [(5_u32, 100), (300, 100), (5, 1)] {
        let world = World::new();
        let id = stream("a");
        for _ in 0..commits {
            world.append(&id, 1).await;
        }
        world.set_fates(|call| matches!(call, Call::Publish(_)).then_some(Fault::Delay(S)));
        let config = PollConfig::default().with_batch(std::num::NonZeroU32::new(listed).unwrap());
        let publisher = world.publisher();
        let asked = tokio::time::sleep(S * commits / 2 + S / 2);
        let report = publisher.poll(config, asked).await.unwrap();
        assert!(!world.unpublished().await.is_empty());
        let counts = (report.brought_up, report.interrupted, report.failures);
        assert_eq!(counts, (0, 1, 0), "{report:?}");
        assert!(report.stuck.is_empty());
        // Sent commits are marked as sent.
        assert_eq!(
            world.watermark(&id).await.unwrap().value.version.get(),
            report.messages
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_last_event_was_in_hand_is_up_to_date() {
    let world = World::new();
    let id = stream("a");
    for _ in 0..3 {
        world.append(&id, 1).await;
    }
    let last = id.clone();
    world.set_fates(move |call| is_send_of(call, &last).then_some(Fault::Delay(S)));
    let asked = tokio::time::sleep(S * 5 / 2);
    let config = PollConfig::default();
    let report = world.publisher().poll(config, asked).await.unwrap();
    assert_eq!((report.brought_up, report.interrupted), (1, 0));
    world.assert_at_rest().await;
}
