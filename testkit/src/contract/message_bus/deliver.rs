//! Cases of deliveries and positions of a single member.
use super::given::{Fixture, GROUP_PATIENCE, Member, Topic, assert_same_places, place, within};
use bytes::Bytes;
use foldstream::{
    Timestamp,
    ports::{
        ConsumerEvent, HeaderName, Message, NoPosition, Offset, StartOffset, StartedFrom,
        Subscription,
    },
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, timeout};

/// Key, value, headers and the timestamp's milliseconds arrive as sent.
///
/// Absent fields stay absent, empty ones stay empty, and bytes, header names and their order do not
/// change. The received message names its partition.
pub async fn everything_of_a_message_arrives_as_sent(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let all_bytes: Bytes = (0..=255u8).collect::<Vec<_>>().into();
    // A broker may delete records that are older than the topic keeps them, at any moment.
    let now = Timestamp::now().as_micros();
    let before = |micros: i64| Timestamp::from_micros(now - micros);
    let header = HeaderName::from_static;
    let message = |key: &'static str, value: Option<Bytes>, age: i64| {
        let mut message = Message::new(topic.name.clone(), before(age)).with_key(key);
        message.value = value;
        message
    };
    let sent = [
        message("cart#1", Some("{}".into()), 1)
            .with_header(header("ce_id"), "1")
            .with_header(header("twice"), "first")
            .with_header(header("a"), "")
            .with_header(header("twice"), "second")
            .with_header(header("größe 🛒"), all_bytes.clone()),
        message("tombstone", None, 1_000_000).with_null_header(header("null")),
        Message::new(topic.name.clone(), before(0))
            .with_value("no key")
            .with_partition(0),
        message("", Some("empty key".into()), 0),
        message("empty", Some(Bytes::new()), 3_600_000_000),
        message("größe 🛒", Some(all_bytes), 999).with_header(header("b"), "x"),
        message("large", Some(vec![b'x'; 500_000].into()), 500),
    ];
    let mut places = Vec::new();
    for message in &sent {
        places.push(topic.bus.publish(message).await.unwrap());
    }
    let mut member = Member::join(&topic).await;
    let found = member.deliveries(sent.len()).await;
    assert_eq!(found.iter().map(place).collect::<Vec<_>>(), places);
    for (delivery, sent) in found.into_iter().zip(sent) {
        let mut found = delivery.message;
        let millis = |t: Timestamp| t.as_micros().div_euclid(1000);
        assert_eq!(millis(found.timestamp), millis(sent.timestamp));
        found.timestamp = sent.timestamp;
        assert_eq!(found.partition, Some(0), "the partition of a delivery");
        found.partition = sent.partition;
        assert!(found == sent, "found {found:.500?}, sent {sent:.500?}");
    }
    member.leave().await;
}

/// Each group receives all messages.
pub async fn each_group_gets_all_messages(fixture: Fixture) {
    let mut topic = Topic::fresh(&fixture, 2).await;
    let mut places = topic.publish_everywhere(5).await;
    let mut one = Member::join(&topic).await;
    topic.group.push_str("-other");
    let mut other = Member::join(&topic).await;
    let (first, second) = tokio::join!(one.deliveries(10), other.deliveries(10));
    assert_same_places(first.iter().map(place).collect(), places.clone());
    assert_same_places(second.iter().map(place).collect(), places);
    places = topic.publish_everywhere(2).await;
    let (first, second) = tokio::join!(one.deliveries(4), other.deliveries(4));
    assert_same_places(first.iter().map(place).collect(), places.clone());
    assert_same_places(second.iter().map(place).collect(), places);
}

/// A member receives `Assigned` before the first delivery, with the position and the reason of its
/// start.
pub async fn an_assignment_comes_before_the_first_delivery(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 3).await;
    topic.publish_everywhere(1).await;
    let mut member = Member::join(&topic).await;
    let (mut assigned, mut delivered) = (Vec::new(), 0);
    // `Held` checks at every event that a delivery is within its assignment.
    while delivered < 3 {
        match member.next("an assignment and three deliveries").await {
            ConsumerEvent::Assigned(assignment) => assigned.extend(assignment.partitions),
            ConsumerEvent::Delivery(_) => delivered += 1,
            other => panic!("found {other:?}"),
        }
    }
    assigned.sort_by(|a, b| a.partition.cmp(&b.partition));
    let partitions: Vec<_> = assigned.iter().map(|a| a.partition.clone()).collect();
    assert_eq!(partitions, topic.all_partitions());
    for found in assigned {
        assert_eq!(
            (found.next, found.from),
            (Offset::new(0), StartedFrom::Configured)
        );
    }
    member.leave().await;
}

/// Deliveries of a partition are in offset order, without repeats or gaps.
pub async fn deliveries_of_a_partition_are_in_order_without_repeats(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 3).await;
    let mut expected = topic.publish_everywhere(40).await;
    let mut member = Member::join(&topic).await;
    let mut found = member.deliveries(60).await;
    // Messages published while the member reads come after those that were there before.
    expected.extend(topic.publish_everywhere(20).await);
    found.extend(member.deliveries(120).await);
    let mut by_partition: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for delivery in &found {
        let offsets = by_partition.entry(delivery.partition.clone()).or_default();
        offsets.push(delivery.offset.get());
    }
    for (partition, offsets) in by_partition {
        assert_eq!(
            offsets,
            (0..60).collect::<Vec<_>>(),
            "offsets of {partition}"
        );
    }
    assert_same_places(found.iter().map(place).collect(), expected);
    member.leave().await;
}

/// A subscription of several topics receives the messages of each.
pub async fn a_subscription_of_several_topics_gets_all_of_them(fixture: Fixture) {
    let one = Topic::fresh(&fixture, 2).await;
    let two = Topic::fresh(&fixture, 1).await;
    let expected = [
        one.publish_everywhere(3).await,
        two.publish_everywhere(3).await,
    ]
    .concat();
    let begin = |partition| StartOffset::new(partition, Offset::new(0));
    let start = one.all_partitions().into_iter().chain(two.all_partitions());
    let subscription = Subscription::new(one.group.clone(), [one.name.clone(), two.name.clone()])
        .with_start(start.map(begin).collect());
    let mut member = Member::subscribe(&*one.bus, subscription).await;
    let found = member.deliveries(expected.len()).await;
    assert_same_places(found.iter().map(place).collect(), expected);
    member.leave().await;
}

/// A partition starts at its start offset if nothing is committed, and otherwise at the committed
/// offset.
pub async fn a_partition_starts_at_the_committed_offset_else_at_its_start_offset(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    topic.publish(0, 6).await;
    let from_two = vec![StartOffset::new(topic.partition(0), Offset::new(2))];
    let subscription = topic.subscription().with_start(from_two);
    let mut member = Member::subscribe(&*topic.bus, subscription).await;
    let found = member.deliveries(2).await;
    assert_eq!(found[0].offset, Offset::new(2), "the start offset");
    member
        .consumer
        .commit(&member.held.offset_commits())
        .await
        .unwrap();
    // The commit is durable when the call returns.
    assert_eq!(topic.committed().await, [Some(4)]);
    member.leave().await;

    let mut member = Member::join(&topic).await;
    let ConsumerEvent::Assigned(assignment) = member.next("the assignment").await else {
        panic!("no assignment");
    };
    let started = &assignment.partitions[0];
    assert_eq!(
        (started.next, started.from),
        (Offset::new(4), StartedFrom::Committed)
    );
    let found = member.deliveries(2).await;
    assert_eq!(found[0].offset, Offset::new(4), "the committed offset");
    member.leave().await;
}

/// Waits for `NoPosition` of one partition, while the other one delivers this many messages.
async fn no_position(member: &mut Member, topic: &Topic, mut others: usize) -> NoPosition {
    let mut found = None;
    while found.is_none() || others > 0 {
        match member
            .next("NoPosition, and what the other partition holds")
            .await
        {
            ConsumerEvent::NoPosition(partition, why) => {
                assert_eq!(partition, topic.partition(0));
                found = Some(why);
            }
            ConsumerEvent::Delivery(delivery) => {
                assert_eq!(delivery.partition, topic.partition(1), "without a position");
                others -= 1;
            }
            ConsumerEvent::Assigned(assignment) => {
                let assigned = assignment.partitions.iter();
                let named = assigned.filter(|a| a.partition == topic.partition(0));
                assert_eq!(named.count(), 0, "assigned without a position");
            }
            other => panic!("found {other:?}"),
        }
    }
    found.unwrap()
}

/// A partition with neither a committed offset nor a start offset is `NoPosition(Missing)` and
/// delivers nothing.
pub async fn a_partition_without_position_is_missing_and_delivers_nothing(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    topic.publish_everywhere(3).await;
    let start = vec![StartOffset::new(topic.partition(1), Offset::new(0))];
    let subscription = topic.subscription().with_start(start);
    let mut member = Member::subscribe(&*topic.bus, subscription).await;
    assert_eq!(
        no_position(&mut member, &topic, 3).await,
        NoPosition::Missing
    );
    topic.publish(0, 1).await;
    member.nothing_for(Duration::from_millis(500)).await;
    assert_eq!(
        topic.committed().await[0],
        None,
        "a position out of nothing"
    );
    member.leave().await;
}

/// A start offset after the end of a partition is `NoPosition(OutOfRange)`. A start offset at the
/// end waits for the next message.
pub async fn a_position_after_the_end_is_out_of_range(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    topic.publish_everywhere(3).await;
    let start = vec![
        StartOffset::new(topic.partition(0), Offset::new(4)),
        StartOffset::new(topic.partition(1), Offset::new(3)),
    ];
    let subscription = topic.subscription().with_start(start);
    let mut member = Member::subscribe(&*topic.bus, subscription).await;
    let why = no_position(&mut member, &topic, 0).await;
    let (begin, end) = (Offset::new(0), Offset::new(3));
    assert_eq!(why, NoPosition::OutOfRange { begin, end });
    let next = topic.publish(1, 1).await;
    let found = member.deliveries(1).await;
    assert_same_places(found.iter().map(place).collect(), next);
    member.leave().await;
}

/// A position that retention has passed is `NoPosition(OutOfRange)` and is never skipped, for
/// committed offsets and for start offsets.
pub async fn a_position_that_retention_has_passed_is_out_of_range(fixture: Fixture) {
    let mut topic = Topic::fresh(&fixture, 2).await;
    topic.publish_everywhere(6).await;
    let mut member = Member::join(&topic).await;
    member.deliveries(12).await;
    let mut commits = member.held.offset_commits();
    commits[0].next = Offset::new(2);
    member.consumer.commit(&commits).await.unwrap();
    member.leave().await;

    fixture
        .delete_records_before(&topic.partition(0), Offset::new(4))
        .await;
    let offsets = topic.bus.offsets(&topic.name).await.unwrap();
    assert_eq!(
        (offsets[0].begin, offsets[0].end),
        (Offset::new(4), Offset::new(6))
    );
    let (begin, end) = (Offset::new(4), Offset::new(6));
    let mut member = Member::join(&topic).await;
    let why = no_position(&mut member, &topic, 0).await;
    assert_eq!(why, NoPosition::OutOfRange { begin, end }, "committed");
    member.leave().await;

    topic.group.push_str("-other");
    let mut member = Member::join(&topic).await;
    let why = no_position(&mut member, &topic, 6).await;
    assert_eq!(why, NoPosition::OutOfRange { begin, end }, "declared");
    member.leave().await;
}

/// Messages that are delivered but not committed are delivered again after the consumer was
/// dropped.
pub async fn what_is_not_committed_comes_again(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let places = topic.publish(0, 6).await;
    let mut member = Member::join(&topic).await;
    let found = member.deliveries(5).await;
    let mut commit = member.held.offset_commit(&topic.partition(0));
    commit.next = found[1].offset.next();
    member.consumer.commit(&[commit]).await.unwrap();
    // A message that is delivered after a commit is not covered by it.
    member.deliveries(1).await;
    drop(member);
    assert_eq!(
        topic.committed().await,
        [Some(2)],
        "dropping commits nothing"
    );
    let mut member = Member::join(&topic).await;
    let found = member.deliveries(4).await;
    assert_same_places(found.iter().map(place).collect(), places[2..].to_vec());
    member.leave().await;
}

/// Asks for the next event for a very short time, or only if it is there already, and drops the
/// future if there is none yet.
async fn hasty_next(member: &mut Member, attempt: u64) -> Option<ConsumerEvent> {
    let patience = Duration::from_micros(attempt % 7 * 150);
    let answer = match attempt % 7 {
        0 => member.consumer.try_next(),
        _ => timeout(patience, member.consumer.next()).await.ok(),
    };
    // The runtime can do here what it does between two calls.
    tokio::task::yield_now().await;
    let event = answer?.unwrap();
    member.held.observe(&event);
    Some(event)
}

/// Dropping the future of `next` loses nothing, neither while no message is there nor while
/// messages arrive, and neither does `try_next`.
pub async fn a_dropped_next_loses_nothing(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let mut member = Member::join(&topic).await;
    member.holds(&topic.all_partitions()).await;
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for round in 0..6 {
        for attempt in 0..20 {
            let early = hasty_next(&mut member, attempt).await;
            assert!(early.is_none(), "all was delivered, found {early:?}");
        }
        let bus = topic.bus.clone();
        let messages: Vec<_> = (0..10).map(|n| topic.message(n % 2, round)).collect();
        let publisher = tokio::spawn(async move {
            let mut places = Vec::new();
            for message in messages {
                places.push(bus.publish(&message).await.unwrap());
            }
            places
        });
        let deadline = Instant::now() + GROUP_PATIENCE;
        let mut attempts = 0..;
        while found.len() < (round + 1) * 10 {
            assert!(Instant::now() < deadline, "{} deliveries", found.len());
            let attempt = attempts.next().unwrap_or_default();
            if let Some(ConsumerEvent::Delivery(delivery)) = hasty_next(&mut member, attempt).await
            {
                found.push(place(&delivery));
            }
        }
        expected.extend(within("publishing", publisher).await.unwrap());
    }
    assert_same_places(found, expected);
    member.leave().await;
}
