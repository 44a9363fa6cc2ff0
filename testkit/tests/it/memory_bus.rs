//! Promises of the in-memory bus beyond the contract suite: rebalances, wake-ups, trimming,
//! expulsion.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
use bytes::Bytes;
use foldstream::{
    Timestamp,
    ports::{
        AssignedPartition, Consumer, ConsumerEvent, Delivery, Message, MessageBus, MessageBusError,
        NoPosition, Offset, OffsetCommit, PartitionId, RefusedKind, Revocation, StartOffset,
        StartedFrom, Subscription,
    },
};
use foldstream_testkit::InMemoryMessageBus;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

const TOPIC: &str = "events";

fn partition(n: u32) -> PartitionId {
    PartitionId::new(TOPIC, n)
}
fn message(key: impl std::fmt::Display, value: &'static str) -> Message {
    let value = Bytes::from_static(value.as_bytes());
    Message::new(TOPIC, Timestamp::from_micros(1_005))
        .with_key(key.to_string())
        .with_value(value)
}
fn bus(partitions: u32) -> Arc<InMemoryMessageBus> {
    let bus = InMemoryMessageBus::new();
    assert!(bus.create_topic(TOPIC, partitions));
    bus
}
/// Joins a group at the beginning of every partition.
async fn join(bus: &InMemoryMessageBus, group: &str) -> Arc<dyn Consumer> {
    let offsets = bus.offsets(TOPIC).await.unwrap();
    let start = offsets
        .into_iter()
        .map(|o| StartOffset::new(o.partition, Offset::new(0)));
    let subscription = Subscription::new(group, [TOPIC]).with_start(start.collect());
    bus.subscribe(subscription).await.unwrap()
}
/// Returns the next event. If the bus never reports it, the test fails instead of hanging.
async fn next(consumer: &Arc<dyn Consumer>) -> ConsumerEvent {
    let patience = Duration::from_secs(60);
    timeout(patience, consumer.next()).await.unwrap().unwrap()
}
async fn assigned(consumer: &Arc<dyn Consumer>) -> Vec<AssignedPartition> {
    match next(consumer).await {
        ConsumerEvent::Assigned(assignment) => assignment.partitions,
        other => panic!("not an assignment: {other:?}"),
    }
}
async fn revoking(consumer: &Arc<dyn Consumer>) -> Revocation {
    match next(consumer).await {
        ConsumerEvent::Revoking(revocation) => revocation,
        other => panic!("not a revocation: {other:?}"),
    }
}
async fn lost(consumer: &Arc<dyn Consumer>) -> Vec<PartitionId> {
    match next(consumer).await {
        ConsumerEvent::Lost(partitions) => partitions,
        other => panic!("nothing lost: {other:?}"),
    }
}
async fn delivery(consumer: &Arc<dyn Consumer>) -> Delivery {
    match next(consumer).await {
        ConsumerEvent::Delivery(delivery) => delivery,
        other => panic!("not a delivery: {other:?}"),
    }
}
/// Returns true if the consumer has no event, however long it waits. Needs a paused clock.
async fn is_silent(consumer: &Arc<dyn Consumer>) -> bool {
    timeout(Duration::from_secs(1), consumer.next())
        .await
        .is_err()
}
fn ids(partitions: &[AssignedPartition]) -> Vec<u32> {
    partitions.iter().map(|p| p.partition.partition).collect()
}
fn done(delivery: &Delivery) -> OffsetCommit {
    OffsetCommit::new(
        delivery.partition.clone(),
        delivery.epoch,
        delivery.offset.next(),
    )
}

#[tokio::test(start_paused = true)]
async fn three_members_share_the_partitions_evenly_and_each_message_is_handled_once() {
    let bus = bus(7);
    for n in 0..700 {
        bus.publish(&message(n, "x")).await.unwrap();
    }
    let members = [
        join(&bus, "g").await,
        join(&bus, "g").await,
        join(&bus, "g").await,
    ];
    let mut handled: BTreeMap<(u32, u64), usize> = BTreeMap::new();
    let mut owned = [0usize; 3];
    let mut per_member = [0usize; 3];
    while handled.len() < 700 {
        for (n, member) in members.iter().enumerate() {
            match timeout(Duration::from_millis(1), member.next()).await {
                Ok(Ok(ConsumerEvent::Assigned(a))) => owned[n] += a.partitions.len(),
                Ok(Ok(ConsumerEvent::Revoking(r))) => owned[n] -= r.partitions().len(),
                Ok(Ok(ConsumerEvent::Delivery(d))) => {
                    per_member[n] += 1;
                    *handled
                        .entry((d.partition.partition, d.offset.get()))
                        .or_default() += 1;
                    member.commit(&[done(&d)]).await.unwrap();
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        }
    }
    owned.sort_unstable();
    assert_eq!(owned, [2, 2, 3]);
    assert!(handled.values().all(|times| *times == 1));
    assert!(per_member.iter().all(|n| *n > 100), "{per_member:?}");
}

#[tokio::test(start_paused = true)]
async fn a_partition_moves_only_once_its_revocation_is_dropped_and_then_at_what_was_committed_meanwhile()
 {
    let bus = bus(2);
    bus.publish(&message("a", "x")).await.unwrap();
    let from = bus.publish(&message("a", "x")).await.unwrap().0;
    let old = join(&bus, "g").await;
    let epochs = assigned(&old).await;
    // The second member gets the second partition.
    let new = join(&bus, "g").await;
    let revocation = revoking(&old).await;
    assert_eq!(revocation.partitions(), [partition(1)]);
    assert_eq!(revocation.grace(), InMemoryMessageBus::DEFAULT_GRACE);
    assert!(is_silent(&new).await);
    let epoch = epochs[1].epoch;
    old.commit(&[OffsetCommit::new(partition(1), epoch, Offset::new(0))])
        .await
        .unwrap();
    drop(revocation);
    let moved = assigned(&new).await;
    assert_eq!(ids(&moved), [1]);
    assert_eq!(
        (moved[0].next, moved[0].from),
        (Offset::new(0), StartedFrom::Committed)
    );
    assert!(moved[0].epoch > epoch);
    let reader = if from == partition(1) { &new } else { &old };
    assert_eq!(delivery(reader).await.offset, Offset::new(0));
}

#[tokio::test(start_paused = true)]
async fn a_partition_moves_when_the_grace_has_passed_and_commits_for_it_are_stale_from_then_on() {
    let bus = InMemoryMessageBus::with_grace(Duration::from_secs(5));
    bus.create_topic(TOPIC, 2);
    let old = join(&bus, "g").await;
    let epochs = assigned(&old).await;
    let new = join(&bus, "g").await;
    let held = revoking(&old).await;
    let begun = Instant::now();
    assert_eq!(ids(&assigned(&new).await), [1]);
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    let commits = [
        OffsetCommit::new(partition(0), epochs[0].epoch, Offset::new(0)),
        OffsetCommit::new(partition(1), epochs[1].epoch, Offset::new(0)),
    ];
    let stale = old.commit(&commits).await.unwrap_err();
    assert!(
        matches!(stale, MessageBusError::StaleAssignment { partition: p } if p == partition(1))
    );
    let committed = bus.committed("g", TOPIC).await.unwrap();
    assert_eq!(committed, [(partition(0), None), (partition(1), None)]);
    // A late drop of the old consumer takes no partition from the present owner, which by now is
    // the same member again.
    new.leave().await.unwrap();
    assert_eq!(ids(&assigned(&old).await), [1]);
    drop(held);
    assert!(is_silent(&old).await);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_never_asks_loses_the_partition_when_the_grace_has_passed() {
    let bus = bus(2);
    let old = join(&bus, "g").await;
    assert_eq!(ids(&assigned(&old).await), [0, 1]);
    let new = join(&bus, "g").await;
    assert_eq!(ids(&assigned(&new).await), [1]);
    assert_eq!(lost(&old).await, [partition(1)]);
}

#[tokio::test(start_paused = true)]
async fn what_a_member_was_never_told_of_moves_without_a_handshake() {
    let bus = bus(2);
    let first = join(&bus, "g").await;
    let second = join(&bus, "g").await;
    let begun = Instant::now();
    assert_eq!(ids(&assigned(&second).await), [1]);
    assert_eq!(ids(&assigned(&first).await), [0]);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_goes_before_the_handover_leaves_the_partition_with_its_old_owner() {
    let bus = bus(2);
    let old = join(&bus, "g").await;
    let before = assigned(&old).await;
    let new = join(&bus, "g").await;
    let revocation = revoking(&old).await;
    drop(new);
    assert!(is_silent(&old).await);
    drop(revocation);
    let again = assigned(&old).await;
    assert_eq!(ids(&again), [1]);
    assert!(again[0].epoch > before[1].epoch);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_consumer_leaves_and_a_paused_partition_is_read_by_the_next() {
    let bus = bus(1);
    bus.publish(&message("a", "x")).await.unwrap();
    let first = join(&bus, "g").await;
    assigned(&first).await;
    first.pause(&[partition(0), partition(9)]).await.unwrap();
    assert!(is_silent(&first).await);
    let second = join(&bus, "g").await;
    assert!(is_silent(&second).await);
    drop(first);
    assert_eq!(ids(&assigned(&second).await), [0]);
    assert_eq!(delivery(&second).await.offset, Offset::new(0));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_member_is_woken_by_a_message_a_resume_a_newcomer_and_its_own_leaving() {
    let bus = bus(2);
    let member = join(&bus, "g").await;
    assigned(&member).await;
    let wait = || {
        let member = member.clone();
        tokio::spawn(async move {
            timeout(Duration::from_secs(60), member.next())
                .await
                .unwrap()
        })
    };

    let waiting = wait();
    tokio::task::yield_now().await;
    let (at, _) = bus.publish(&message("a", "x")).await.unwrap();
    assert!(matches!(
        waiting.await.unwrap(),
        Ok(ConsumerEvent::Delivery(_))
    ));

    member.pause(std::slice::from_ref(&at)).await.unwrap();
    bus.publish(&message("a", "y")).await.unwrap();
    let waiting = wait();
    tokio::task::yield_now().await;
    member.resume(&[at]).await.unwrap();
    assert!(matches!(
        waiting.await.unwrap(),
        Ok(ConsumerEvent::Delivery(_))
    ));

    let waiting = wait();
    tokio::task::yield_now().await;
    let newcomer = join(&bus, "g").await;
    let revocation = waiting.await.unwrap().unwrap();
    assert!(
        matches!(revocation, ConsumerEvent::Revoking(_)),
        "{revocation:?}"
    );
    drop(newcomer);
    drop(revocation);
    assigned(&member).await;

    let waiting = wait();
    tokio::task::yield_now().await;
    member.leave().await.unwrap();
    assert!(matches!(
        waiting.await.unwrap(),
        Err(MessageBusError::Closed)
    ));
}

/// A missed wake-up would leave the reader waiting forever, because no later event wakes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_between_threads() {
    let bus = bus(3);
    let reader = join(&bus, "g").await;
    assert_eq!(assigned(&reader).await.len(), 3);
    let writer = tokio::spawn({
        let bus = bus.clone();
        async move {
            for n in 0..20_000 {
                bus.publish(&message(n, "x")).await.unwrap();
                // The pause lets the reader fall asleep again and again.
                if n % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let all = async {
        for _ in 0..20_000 {
            delivery(&reader).await;
        }
    };
    timeout(Duration::from_secs(60), all).await.unwrap();
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropped_futures_of_next_lose_nothing() {
    let bus = bus(2);
    let reader = join(&bus, "g").await;
    let writer = tokio::spawn({
        let bus = bus.clone();
        async move {
            for n in 0..300 {
                bus.publish(&message(n, "x")).await.unwrap();
                tokio::time::sleep(Duration::from_millis(n % 3)).await;
            }
        }
    });
    let mut next = BTreeMap::from([(0, 0), (1, 0)]);
    let mut dropped = 0;
    while next.values().sum::<u64>() < 300 {
        match timeout(Duration::from_micros(500), reader.next()).await {
            Ok(Ok(ConsumerEvent::Delivery(d))) => {
                let next = next.get_mut(&d.partition.partition).unwrap();
                assert_eq!(d.offset.get(), *next);
                *next += 1;
            }
            Ok(other) => assert!(matches!(other, Ok(ConsumerEvent::Assigned(_))), "{other:?}"),
            Err(_) => dropped += 1,
        }
    }
    assert!(dropped > 50, "{dropped}");
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn partitions_take_turns() {
    let bus = bus(3);
    let mut left = [4u32; 3];
    for n in 0.. {
        let number = foldstream::adapter::kafka_partition(format!("{n}").as_bytes(), 3) as usize;
        if left[number] > 0 {
            left[number] -= 1;
            bus.publish(&message(n, "x")).await.unwrap();
        }
        if left == [0; 3] {
            break;
        }
    }
    let reader = join(&bus, "g").await;
    assigned(&reader).await;
    let mut order = Vec::new();
    for _ in 0..12 {
        order.push(delivery(&reader).await.partition.partition);
    }
    assert_eq!(order, [0, 1, 2].repeat(4));
}

#[tokio::test(start_paused = true)]
async fn a_backlog_does_not_starve_other_tasks_of_the_thread() {
    let bus = bus(1);
    for _ in 0..2000 {
        bus.publish(&message("a", "x")).await.unwrap();
    }
    let reader = join(&bus, "g").await;
    assigned(&reader).await;
    let other = tokio::spawn(async {});
    for _ in 0..2000 {
        delivery(&reader).await;
    }
    assert!(other.is_finished());
}

#[tokio::test(start_paused = true)]
async fn trimming_past_a_reader_is_out_of_range_never_a_silent_skip() {
    let bus = bus(1);
    for _ in 0..10 {
        bus.publish(&message("a", "x")).await.unwrap();
    }
    let reader = join(&bus, "g").await;
    let epoch = assigned(&reader).await[0].epoch;
    assert_eq!(delivery(&reader).await.offset, Offset::new(0));
    reader
        .commit(&[OffsetCommit::new(partition(0), epoch, Offset::new(1))])
        .await
        .unwrap();
    // Deleting records up to its position is not a loss.
    bus.delete_records_before(&partition(0), Offset::new(1))
        .unwrap();
    assert_eq!(delivery(&reader).await.offset, Offset::new(1));
    bus.delete_records_before(&partition(0), Offset::new(7))
        .unwrap();
    let why = NoPosition::OutOfRange {
        begin: Offset::new(7),
        end: Offset::new(10),
    };
    let is_out_of_range = |event: ConsumerEvent| matches!(event, ConsumerEvent::NoPosition(p, found) if p == partition(0) && found == why);
    assert!(is_out_of_range(next(&reader).await));
    assert!(is_silent(&reader).await);
    drop(reader);
    // The committed offset is trimmed too.
    let again = join(&bus, "g").await;
    assert!(is_out_of_range(next(&again).await));
    drop(again);
    // After the operator's decision, the group starts at the first record that is left.
    bus.delete_group("g").await.unwrap();
    let subscription = Subscription::new("g", [TOPIC])
        .with_start(vec![StartOffset::new(partition(0), Offset::new(7))]);
    let reader = bus.subscribe(subscription).await.unwrap();
    assert_eq!(assigned(&reader).await[0].from, StartedFrom::Configured);
    assert_eq!(delivery(&reader).await.offset, Offset::new(7));
    // Offsets are not used again after all records are deleted.
    bus.delete_records_before(&partition(0), Offset::new(99))
        .unwrap();
    let offsets = bus.offsets(TOPIC).await.unwrap();
    assert_eq!(
        (offsets[0].begin, offsets[0].end),
        (Offset::new(10), Offset::new(10))
    );
    assert_eq!(
        bus.publish(&message("a", "x")).await.unwrap().1,
        Offset::new(10)
    );
}

#[tokio::test(start_paused = true)]
async fn an_expelled_member_loses_all_and_joins_again_at_what_was_committed() {
    let bus = bus(1);
    for _ in 0..3 {
        bus.publish(&message("a", "x")).await.unwrap();
    }
    let reader = join(&bus, "g").await;
    let before = assigned(&reader).await[0].epoch;
    let first = delivery(&reader).await;
    reader.commit(&[done(&first)]).await.unwrap();
    let second = delivery(&reader).await;
    bus.expel("g");
    let stale = reader.commit(&[done(&second)]).await;
    assert!(matches!(
        stale,
        Err(MessageBusError::StaleAssignment { .. })
    ));
    assert_eq!(lost(&reader).await, [partition(0)]);
    let again = assigned(&reader).await;
    assert_eq!(
        (again[0].next, again[0].from),
        (Offset::new(1), StartedFrom::Committed)
    );
    assert!(again[0].epoch > before);
    assert_eq!(delivery(&reader).await.offset, Offset::new(1));
    let stale = reader.commit(&[done(&second)]).await;
    assert!(matches!(
        stale,
        Err(MessageBusError::StaleAssignment { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn the_others_take_over_from_an_expelled_member_at_once() {
    let bus = bus(2);
    let (first, second) = (join(&bus, "g").await, join(&bus, "g").await);
    assert_eq!(ids(&assigned(&first).await), [0]);
    assert_eq!(ids(&assigned(&second).await), [1]);
    bus.expel_owner("g", &partition(0));
    assert_eq!(ids(&assigned(&second).await), [0]);
    assert_eq!(lost(&first).await, [partition(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_topic_is_lost_with_its_commits_and_a_recreated_one_is_told_to_its_old_readers() {
    let bus = bus(1);
    bus.publish(&message("a", "x")).await.unwrap();
    let reader = join(&bus, "g").await;
    assigned(&reader).await;
    let first = delivery(&reader).await;
    reader.commit(&[done(&first)]).await.unwrap();
    bus.delete_topic(TOPIC);
    assert_eq!(lost(&reader).await, [partition(0)]);
    let refused = bus.publish(&message("a", "x")).await.unwrap_err();
    assert!(matches!(
        refused,
        MessageBusError::Refused {
            kind: RefusedKind::MissingTopic,
            ..
        }
    ));
    bus.create_topic(TOPIC, 1);
    for _ in 0..3 {
        bus.publish(&message("a", "x")).await.unwrap();
    }
    let committed = bus.committed("g", TOPIC).await.unwrap();
    assert_eq!(committed, [(partition(0), None)]);
    let event = next(&reader).await;
    assert!(
        matches!(event, ConsumerEvent::NoPosition(_, NoPosition::Recreated)),
        "{event:?}"
    );
    assert!(is_silent(&reader).await);
    // A member that joins now reads the new topic, also in the same group.
    reader.leave().await.unwrap();
    let newcomer = join(&bus, "g").await;
    assert_eq!(assigned(&newcomer).await[0].next, Offset::new(0));
}

#[tokio::test(start_paused = true)]
async fn a_partition_added_later_is_assigned_and_has_no_position_without_a_start_offset() {
    let bus = bus(1);
    let reader = join(&bus, "g").await;
    assigned(&reader).await;
    bus.set_partitions(TOPIC, 2).unwrap();
    let event = next(&reader).await;
    assert!(
        matches!(&event, ConsumerEvent::NoPosition(p, NoPosition::Missing) if *p == partition(1)),
        "{event:?}"
    );
    assert!(bus.set_partitions(TOPIC, 1).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_group_with_members_is_not_deleted_and_forgotten_commits_are_missing_for_the_next() {
    let bus = bus(1);
    bus.publish(&message("a", "x")).await.unwrap();
    let reader = join(&bus, "g").await;
    assigned(&reader).await;
    let first = delivery(&reader).await;
    reader.commit(&[done(&first)]).await.unwrap();
    let refused = bus.delete_group("g").await.unwrap_err();
    assert!(matches!(
        refused,
        MessageBusError::Refused {
            kind: RefusedKind::Validation,
            ..
        }
    ));
    assert_eq!(
        bus.committed("g", TOPIC).await.unwrap(),
        [(partition(0), Some(Offset::new(1)))]
    );
    bus.forget_committed("g");
    reader.leave().await.unwrap();
    let bare = bus
        .subscribe(Subscription::new("g", [TOPIC]))
        .await
        .unwrap();
    let event = next(&bare).await;
    assert!(
        matches!(event, ConsumerEvent::NoPosition(_, NoPosition::Missing)),
        "{event:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn members_of_different_topics_get_only_what_they_asked_for() {
    let bus = bus(2);
    bus.create_topic("other", 2);
    let both = bus
        .subscribe(Subscription::new("g", [TOPIC, "other"]))
        .await
        .unwrap();
    let one = bus
        .subscribe(Subscription::new("g", ["other", "other"]))
        .await
        .unwrap();
    let mut found = Vec::new();
    for member in [&both, &one] {
        while let Ok(Ok(event)) = timeout(Duration::from_secs(1), member.next()).await {
            match event {
                ConsumerEvent::NoPosition(p, _) => found.push(p.to_string()),
                other => panic!("{other:?}"),
            }
        }
        found.push("/".into());
    }
    assert_eq!(
        found,
        ["events[0]", "events[1]", "other[0]", "/", "other[1]", "/"]
    );
}
