//! Consumer groups: the assignment of partitions, their starts, and the meaning of an offset
//! commit.
use crate::mock::{
    Mock, done, fresh, from_start, message, next, next_assigned, next_delivery, publish, quiet,
    value,
};
use foldstream::ports::{
    AssignmentEpoch, Consumer, ConsumerEvent, MessageBus, MessageBusError, NoPosition, Offset,
    OffsetCommit, PartitionId, RefusedKind, StartOffset, StartedFrom, Subscription,
};
use foldstream_kafka::KafkaMessageBus;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use std::{collections::HashSet, sync::Arc, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_position_is_told_and_delivers_nothing() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    let id = publish(&bus, &topic, "k", 2).await;
    let consumer = bus
        .subscribe(Subscription::new(&*group, [Arc::clone(&topic)]))
        .await
        .unwrap();
    let ConsumerEvent::NoPosition(partition, why) = next(&consumer).await else {
        panic!("a position out of nothing");
    };
    assert_eq!((partition, why), (id, NoPosition::Missing));
    publish(&bus, &topic, "k", 2).await;
    quiet(&consumer, SECOND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_outside_of_the_partition_is_out_of_range() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    let id = publish(&bus, &topic, "k", 3).await;
    let subscription = Subscription::new(&*group, [Arc::clone(&topic)])
        .with_start(vec![StartOffset::new(id.clone(), Offset::new(4))]);
    let consumer = bus.subscribe(subscription).await.unwrap();
    let ConsumerEvent::NoPosition(partition, why) = next(&consumer).await else {
        panic!("a position outside");
    };
    let (begin, end) = (Offset::new(0), Offset::new(3));
    assert_eq!(
        (partition, why),
        (id, NoPosition::OutOfRange { begin, end })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_continues_from_its_commit_and_ignores_the_start_offset() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    let id = publish(&bus, &topic, "k", 4).await;
    let first = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    let assigned = next_assigned(&first).await;
    assert_eq!(
        (assigned[0].next, assigned[0].from),
        (Offset::new(0), StartedFrom::Configured)
    );
    let zero = next_delivery(&first).await;
    let one = next_delivery(&first).await;
    assert_eq!((value(&zero), value(&one)), ("0", "1"));
    first.commit(&[done(&zero)]).await.unwrap();
    assert_eq!(
        bus.committed(&group, &topic).await.unwrap(),
        [(id, Some(Offset::new(1)))]
    );
    first.leave().await.unwrap();

    let second = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    let assigned = next_assigned(&second).await;
    assert_eq!(
        (assigned[0].next, assigned[0].from),
        (Offset::new(1), StartedFrom::Committed)
    );
    for expected in ["1", "2", "3"] {
        assert_eq!(value(&next_delivery(&second).await), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_has_committed_nothing_has_no_places() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(2));
    let committed = bus.committed(&fresh("group"), &topic).await.unwrap();
    assert_eq!(committed.len(), 2);
    assert!(committed.iter().all(|(_, offset)| offset.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_count_what_publish_has_returned_for() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(3));
    let id = publish(&bus, &topic, "k", 5).await;
    let offsets = bus.offsets(&topic).await.unwrap();
    let partitions: Vec<_> = offsets.iter().map(|o| o.partition.partition).collect();
    assert_eq!(partitions, [0, 1, 2]);
    for offsets in offsets {
        let end = if offsets.partition == id { 5 } else { 0 };
        assert_eq!((offsets.begin.get(), offsets.end.get()), (0, end));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribing_to_a_missing_topic_is_refused() {
    let mock = Mock::new();
    let bus = mock.bus();
    let missing = fresh("nowhere");
    let error = bus
        .subscribe(Subscription::new(
            "g",
            [mock.topic(1), missing.clone().into()],
        ))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MessageBusError::Refused { kind: RefusedKind::MissingTopic, reason, .. }
            if reason.contains(&missing)),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_partition_delivers_nothing_and_continues_without_a_gap() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(2), fresh("group"));
    // One key for each partition.
    let key_of = |partition| {
        (0..)
            .map(|n| format!("k{n}"))
            .find(|k| foldstream::adapter::kafka_partition(k.as_bytes(), 2) == partition)
            .unwrap()
    };
    let (zero, one) = (key_of(0), key_of(1));
    let paused = publish(&bus, &topic, &zero, 30).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 2)).await.unwrap();
    next_assigned(&consumer).await;
    assert_eq!(value(&next_delivery(&consumer).await), "0");
    // Other records are read ahead by now or soon, and none of them may be delivered.
    consumer.pause(std::slice::from_ref(&paused)).await.unwrap();
    publish(&bus, &topic, &one, 5).await;
    for expected in ["0", "1", "2", "3", "4"] {
        let delivery = next_delivery(&consumer).await;
        assert_ne!(delivery.partition, paused);
        assert_eq!(value(&delivery), expected);
    }
    quiet(&consumer, SECOND).await;
    consumer.resume(&[paused]).await.unwrap();
    for expected in 1..30 {
        assert_eq!(value(&next_delivery(&consumer).await), expected.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_leaving_everything_is_closed_and_leaving_again_is_fine() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    let id = publish(&bus, &topic, "k", 2).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let delivery = next_delivery(&consumer).await;
    consumer.leave().await.unwrap();
    consumer.leave().await.unwrap();
    let closed = |answer: Result<(), MessageBusError>| {
        assert!(matches!(answer, Err(MessageBusError::Closed)), "{answer:?}");
    };
    closed(consumer.next().await.map(drop));
    closed(consumer.commit(&[done(&delivery)]).await);
    closed(consumer.commit(&[]).await);
    closed(consumer.pause(std::slice::from_ref(&id)).await);
    closed(consumer.resume(&[id]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_next_ends_when_the_consumer_leaves() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let waiting = tokio::spawn({
        let consumer = Arc::clone(&consumer);
        async move { consumer.next().await.map(drop) }
    });
    consumer.leave().await.unwrap();
    let ended = tokio::time::timeout(30 * SECOND, waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(ended, Err(MessageBusError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_consumer_gives_its_partitions_to_the_next_without_its_commits() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 3).await;
    let first = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&first).await;
    next_delivery(&first).await;
    drop(first);
    // The wait is far below the session timeout of 45 s, so the member left the group instead of
    // vanishing.
    let second = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&second).await;
    assert_eq!(value(&next_delivery(&second).await), "0");
}

/// Two members of a group on a topic of two partitions, after the second has joined. The first
/// member still holds the partitions that it was asked to give up.
struct Handover {
    mock: Mock,
    bus: KafkaMessageBus,
    topic: Arc<str>,
    group: String,
    first: Arc<dyn Consumer>,
    second: Arc<dyn Consumer>,
    epochs: Vec<(PartitionId, AssignmentEpoch)>,
    revocation: foldstream::ports::Revocation,
}

impl Handover {
    async fn new(grace: Duration) -> Self {
        let mock = Mock::new();
        let bus = KafkaMessageBus::new(mock.config().with_revoke_grace(grace)).unwrap();
        let (topic, group) = (mock.topic(2), fresh("group"));
        for n in 0..20 {
            bus.publish(&message(&topic, &format!("k{n}"), "x"))
                .await
                .unwrap();
        }
        let first = bus.subscribe(from_start(&group, &topic, 2)).await.unwrap();
        let assigned = next_assigned(&first).await;
        assert_eq!(assigned.len(), 2);
        let epochs = assigned
            .into_iter()
            .map(|a| (a.partition, a.epoch))
            .collect();
        next_delivery(&first).await;
        let second = bus.subscribe(from_start(&group, &topic, 2)).await.unwrap();
        let revocation = loop {
            match next(&first).await {
                ConsumerEvent::Revoking(revocation) => break revocation,
                ConsumerEvent::Delivery(_) => {}
                other => panic!("not a revocation: {other:?}"),
            }
        };
        Self {
            mock,
            bus,
            topic,
            group,
            first,
            second,
            epochs,
            revocation,
        }
    }

    fn offset_commit(&self, id: &PartitionId, next: u64) -> OffsetCommit {
        let (_, epoch) = self.epochs.iter().find(|(i, _)| i == id).unwrap();
        OffsetCommit::new(id.clone(), *epoch, Offset::new(next))
    }

    async fn committed(&self, id: &PartitionId) -> Option<Offset> {
        let all = self.bus.committed(&self.group, &self.topic).await.unwrap();
        all.into_iter().find(|(i, _)| i == id).unwrap().1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_partition_waits_for_its_reader_whose_commit_still_counts() {
    let h = Handover::new(20 * SECOND).await;
    let given = h.revocation.partitions()[0].clone();
    quiet(&h.second, SECOND).await;
    h.first.commit(&[h.offset_commit(&given, 1)]).await.unwrap();
    assert_eq!(h.committed(&given).await, Some(Offset::new(1)));
    let commit = h.offset_commit(&given, 2);
    drop(h.revocation);
    let taken = next_assigned(&h.second).await;
    let taken = taken.iter().find(|a| a.partition == given).unwrap();
    assert_eq!(
        (taken.next, taken.from),
        (Offset::new(1), StartedFrom::Committed)
    );
    // Not a single commit is accepted after that.
    let error = h.first.commit(&[commit]).await.unwrap_err();
    assert!(matches!(error, MessageBusError::StaleAssignment { partition } if partition == given));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_is_not_released_ends_with_its_grace() {
    let h = Handover::new(2 * SECOND).await;
    let given = h.revocation.partitions()[0].clone();
    let taken = next_assigned(&h.second).await;
    assert!(taken.iter().any(|a| a.partition == given));
    let error = h
        .first
        .commit(&[h.offset_commit(&given, 1)])
        .await
        .unwrap_err();
    assert!(
        matches!(error, MessageBusError::StaleAssignment { .. }),
        "{error:?}"
    );
    drop(h.revocation);
}

/// A broker that answers late, or with a possible outage, must not keep the group waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_during_a_revocation_waits_no_longer_than_the_grace() {
    let h = Handover::new(2 * SECOND).await;
    let given = h.revocation.partitions()[0].clone();
    h.mock
        .order(|cluster| cluster.broker_round_trip_time(-1, 4 * SECOND).unwrap());
    let started = std::time::Instant::now();
    let error = h
        .first
        .commit(&[h.offset_commit(&given, 1)])
        .await
        .unwrap_err();
    let waited = started.elapsed();
    assert!(waited < 3 * SECOND, "{waited:?}: {error:?}");
    drop(h.revocation);
    // The attempt itself continues, and the test ends only after it.
    h.mock
        .order(|cluster| cluster.broker_round_trip_time(-1, SECOND / 50).unwrap());
}

/// During a rebalance librdkafka keeps such a loss to itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_expelled_during_a_revocation_loses_everything_and_starts_over() {
    let h = Handover::new(20 * SECOND).await;
    let given = h.revocation.partitions()[0].clone();
    let (kept, epoch) = h.epochs.iter().find(|(id, _)| *id != given).unwrap();
    h.first.commit(&[h.offset_commit(kept, 1)]).await.unwrap();
    // The group has forgotten its members, and tells them by their next heartbeats.
    let unknown = Answer::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID;
    h.mock.answers(Api::Heartbeat, unknown, 8);
    let lost = loop {
        match next(&h.first).await {
            ConsumerEvent::Lost(lost) => break lost,
            ConsumerEvent::Delivery(_) => {}
            other => panic!("not a loss: {other:?}"),
        }
    };
    assert_eq!(HashSet::from_iter(&lost), HashSet::from([&given, kept]));
    for id in [&given, kept] {
        let error = h.first.commit(&[h.offset_commit(id, 5)]).await.unwrap_err();
        let is_stale = matches!(error, MessageBusError::StaleAssignment { .. });
        assert!(is_stale, "{id}: {error:?}");
    }
    let committed = (h.committed(&given).await, h.committed(kept).await);
    assert_eq!(committed, (None, Some(Offset::new(1))));

    // The member comes back, under new epochs and at the committed offsets.
    h.second.leave().await.unwrap();
    let deadline = tokio::time::Instant::now() + 30 * SECOND;
    let back = loop {
        assert!(tokio::time::Instant::now() < deadline, "{kept} is gone");
        match next(&h.first).await {
            ConsumerEvent::Assigned(assignment) => {
                let mut partitions = assignment.partitions.into_iter();
                if let Some(back) = partitions.find(|back| back.partition == *kept) {
                    break back;
                }
            }
            ConsumerEvent::Delivery(_) | ConsumerEvent::Lost(_) => {}
            ConsumerEvent::Revoking(revocation) => drop(revocation),
            other => panic!("{other:?}"),
        }
    };
    assert_ne!(back.epoch, *epoch);
    assert_eq!(
        (back.next, back.from),
        (Offset::new(1), StartedFrom::Committed)
    );
    drop(h.revocation);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_with_one_stale_mark_stores_nothing() {
    let h = Handover::new(2 * SECOND).await;
    let given = h.revocation.partitions()[0].clone();
    let (kept, epoch) = h
        .epochs
        .iter()
        .find(|(id, _)| *id != given)
        .unwrap()
        .clone();
    drop(h.revocation);
    next_assigned(&h.second).await;
    let good = OffsetCommit::new(kept.clone(), epoch, Offset::new(1));
    let stale = OffsetCommit::new(kept.clone(), AssignmentEpoch::new(u64::MAX), Offset::new(1));
    let foreign = OffsetCommit::new(given.clone(), epoch, Offset::new(1));
    for bad in [stale, foreign] {
        let error = h
            .first
            .commit(&[good.clone(), bad.clone()])
            .await
            .unwrap_err();
        assert!(
            matches!(error, MessageBusError::StaleAssignment { partition } if partition == bad.partition)
        );
    }
    let all = h.bus.committed(&h.group, &h.topic).await.unwrap();
    assert!(all.iter().all(|(_, offset)| offset.is_none()), "{all:?}");
    // The partition that is kept can still be committed.
    h.first.commit(&[good]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_revocation_its_partition_delivers_nothing_more() {
    let h = Handover::new(20 * SECOND).await;
    let given: HashSet<_> = h.revocation.partitions().iter().cloned().collect();
    drop(h.revocation);
    next_assigned(&h.second).await;
    for n in 20..40 {
        h.bus
            .publish(&message(&h.topic, &format!("k{n}"), "x"))
            .await
            .unwrap();
    }
    let mut kept = 0;
    while let Ok(event) = tokio::time::timeout(5 * SECOND, h.first.next()).await {
        if let ConsumerEvent::Delivery(delivery) = event.unwrap() {
            assert!(!given.contains(&delivery.partition));
            kept += 1;
        }
    }
    assert!(kept > 0, "the kept partition delivers on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_members_partitions_go_to_the_others() {
    let h = Handover::new(20 * SECOND).await;
    drop(h.revocation);
    let mut mine: HashSet<_> = next_assigned(&h.second)
        .await
        .into_iter()
        .map(|a| a.partition)
        .collect();
    h.first.leave().await.unwrap();
    while mine.len() < 2 {
        match next(&h.second).await {
            ConsumerEvent::Assigned(more) => {
                mine.extend(more.partitions.into_iter().map(|a| a.partition));
            }
            ConsumerEvent::Revoking(revocation) => {
                for id in revocation.partitions() {
                    mine.remove(id);
                }
            }
            ConsumerEvent::Delivery(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_reads_ahead_within_bounds_and_keeps_its_membership() {
    let mock = Mock::new();
    let config = mock
        .config()
        .with_read_ahead(10, 1_000_000)
        .with_session_timeout(3 * SECOND)
        .with_max_poll_interval(4 * SECOND)
        .with_revoke_grace(SECOND);
    let bus = KafkaMessageBus::new(config).unwrap();
    let (topic, group) = (mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 500).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let first = next_delivery(&consumer).await;
    // The pause is longer than the session and the poll interval. A member that is not polled would
    // be expelled.
    tokio::time::sleep(6 * SECOND).await;
    consumer.commit(&[done(&first)]).await.unwrap();
    for expected in 1..500 {
        assert_eq!(value(&next_delivery(&consumer).await), expected.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_next_loses_nothing() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 200).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let mut expected = 0;
    while expected < 200 {
        // The future is dropped after a different time in each round.
        let patience = Duration::from_micros(expected % 7 * 50);
        if let Ok(event) = tokio::time::timeout(patience, consumer.next()).await {
            let ConsumerEvent::Delivery(delivery) = event.unwrap() else {
                panic!("not a delivery");
            };
            assert_eq!(value(&delivery), expected.to_string());
            expected += 1;
        }
    }
}

/// librdkafka treats an empty id as none, and waits forever with an id that is too long.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_id_that_kafka_cannot_keep_is_invalid_at_once() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(1));
    for id in ["", "a\0b", "a b", ".", &*"i".repeat(250)] {
        let subscription = from_start(&fresh("group"), &topic, 1).with_instance_id(id);
        let joined = bus.subscribe(subscription).await;
        assert!(
            matches!(joined, Err(MessageBusError::Invalid { .. })),
            "{id:?}: {joined:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_group_can_have_is_invalid_to_forget_too() {
    let mock = Mock::new();
    let bus = mock.bus();
    for name in ["", "a\0b", &*"g".repeat(Subscription::MAX_GROUP + 1)] {
        let answer = bus.delete_group(name).await;
        assert!(
            matches!(answer, Err(MessageBusError::Invalid { .. })),
            "{name:.5?}: {answer:?}"
        );
    }
}
