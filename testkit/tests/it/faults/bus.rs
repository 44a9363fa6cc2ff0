//! The effects of faults on a message bus and its consumers.
use foldstream::{
    Timestamp,
    ports::{
        Consumer, ConsumerEvent, Delivery, Message, MessageBus, MessageBusError, Offset,
        OffsetCommit, PartitionId, StartOffset, Subscription,
    },
};
use foldstream_testkit::{
    InMemoryMessageBus,
    faults::{Fault, Faults, Op},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

const TOPIC: &str = "events";

/// Creates a bus with two partitions, and a key for each.
fn bus(faults: &Faults) -> (Arc<InMemoryMessageBus>, Arc<dyn MessageBus>, [String; 2]) {
    let inner = InMemoryMessageBus::new();
    inner.create_topic(TOPIC, 2);
    let bus = faults.message_bus(inner.clone());
    let key = |partition| {
        let mut keys = (0..).map(|n| format!("key-{n}"));
        let lands =
            |key: &String| foldstream::adapter::kafka_partition(key.as_bytes(), 2) == partition;
        keys.find(lands).unwrap()
    };
    (inner, bus, [key(0), key(1)])
}
fn message(key: &str) -> Message {
    Message::new(TOPIC, Timestamp::from_micros(1_000))
        .with_key(key.to_owned())
        .with_value("{}")
}
fn subscription() -> Subscription {
    let start = |n| StartOffset::new(PartitionId::new(TOPIC, n), Offset::new(0));
    Subscription::new("g", [TOPIC]).with_start(vec![start(0), start(1)])
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
fn place(delivery: &Delivery) -> (u32, u64) {
    (delivery.partition.partition, delivery.offset.get())
}
async fn places(consumer: &dyn Consumer, count: usize) -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(place(&delivery(consumer).await));
    }
    found
}

#[tokio::test]
async fn a_message_that_is_sent_twice_is_delivered_twice() {
    let faults = Faults::script([Fault::Duplicate.on(Op::Publish).at(1)]);
    let (_, bus, [key, _]) = bus(&faults);
    let (_, offset) = bus.publish(&message(&key)).await.unwrap();
    assert_eq!(offset.get(), 1);
    let consumer = bus.subscribe(subscription()).await.unwrap();
    assert_eq!(places(&*consumer, 2).await, [(0, 0), (0, 1)]);
}

#[tokio::test]
async fn a_lost_acknowledgement_hides_that_the_message_is_there() {
    let faults = Faults::script([Fault::LoseReply.on(Op::Publish).at(1)]);
    let (inner, bus, [key, _]) = bus(&faults);
    let lost = bus.publish(&message(&key)).await.unwrap_err();
    assert!(lost.is_transient());
    assert_eq!(inner.offsets(TOPIC).await.unwrap()[0].end.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_held_back_is_overtaken_and_keeps_its_order() {
    let held = Duration::from_secs(5);
    // The first call reports the assignment, the second takes the first delivery.
    let faults = Faults::script([Fault::HoldBack(held).on(Op::Next).at(2)]);
    let (_, bus, [first, second]) = bus(&faults);
    for key in [&first, &first, &second, &second] {
        bus.publish(&message(key)).await.unwrap();
    }
    let consumer = bus.subscribe(subscription()).await.unwrap();
    let started = Instant::now();
    let overtaking = places(&*consumer, 2).await;
    assert!(started.elapsed() < held);
    let late = places(&*consumer, 2).await;
    assert_eq!(started.elapsed(), held);
    let (a, b) = (overtaking[0].0, late[0].0);
    assert_ne!(a, b);
    assert_eq!(overtaking, [(a, 0), (a, 1)]);
    assert_eq!(late, [(b, 0), (b, 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_back_of_a_paused_partition_waits_until_it_is_resumed() {
    let faults = Faults::script([Fault::HoldBack(Duration::from_secs(1)).on(Op::Next).at(2)]);
    let (_, bus, [key, _]) = bus(&faults);
    bus.publish(&message(&key)).await.unwrap();
    let consumer = bus.subscribe(subscription()).await.unwrap();
    assert!(matches!(
        consumer.next().await,
        Ok(ConsumerEvent::Assigned(_))
    ));
    let taken = timeout(Duration::from_millis(10), consumer.next()).await;
    assert!(taken.is_err());
    let partition = [PartitionId::new(TOPIC, 0)];
    consumer.pause(&partition).await.unwrap();
    let quiet = timeout(Duration::from_secs(60), consumer.next()).await;
    assert!(quiet.is_err());
    consumer.resume(&partition).await.unwrap();
    assert_eq!(places(&*consumer, 1).await, [(0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_while_a_partition_is_resumed_gets_what_was_held_back_of_it() {
    let faults = Faults::script([Fault::HoldBack(Duration::from_secs(1)).on(Op::Next).at(2)]);
    let (_, bus, [key, _]) = bus(&faults);
    bus.publish(&message(&key)).await.unwrap();
    let consumer = bus.subscribe(subscription()).await.unwrap();
    assert!(matches!(
        consumer.next().await,
        Ok(ConsumerEvent::Assigned(_))
    ));
    let taken = timeout(Duration::from_millis(10), consumer.next()).await;
    assert!(taken.is_err());
    let partition = [PartitionId::new(TOPIC, 0)];
    consumer.pause(&partition).await.unwrap();
    let resumed = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        consumer.resume(&partition).await.unwrap();
    };
    let (found, ()) = tokio::join!(
        timeout(Duration::from_secs(60), places(&*consumer, 1)),
        resumed
    );
    assert_eq!(found.unwrap(), [(0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn an_expelled_consumer_is_told_and_gets_again_what_it_has_not_committed() {
    let faults = Faults::script([Fault::LoseSession.on(Op::Next).at(4)]);
    let (_, bus, [key, _]) = bus(&faults);
    for _ in 0..3 {
        bus.publish(&message(&key)).await.unwrap();
    }
    let consumer = bus.subscribe(subscription()).await.unwrap();
    let first = delivery(&*consumer).await;
    let commit = |d: &Delivery| OffsetCommit::new(d.partition.clone(), d.epoch, d.offset.next());
    consumer.commit(&[commit(&first)]).await.unwrap();
    let second = delivery(&*consumer).await;
    let ConsumerEvent::Lost(lost) = consumer.next().await.unwrap() else {
        panic!("it was expelled")
    };
    assert_eq!(lost.len(), 2);
    let stale = consumer.commit(&[commit(&second)]).await;
    assert!(matches!(
        stale,
        Err(MessageBusError::StaleAssignment { .. })
    ));
    let again = delivery(&*consumer).await;
    assert_eq!(place(&again), place(&second));
    assert!(again.epoch > second.epoch);
    let stale = consumer.commit(&[commit(&second)]).await;
    assert!(matches!(
        stale,
        Err(MessageBusError::StaleAssignment { .. })
    ));
    consumer.commit(&[commit(&again)]).await.unwrap();
    consumer.leave().await.unwrap();
    let closed = consumer.commit(&[commit(&second)]).await;
    assert!(matches!(closed, Err(MessageBusError::Closed)));
    assert!(matches!(
        consumer.next().await,
        Err(MessageBusError::Closed)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_failing_next_loses_no_delivery() {
    let faults = Faults::seeded(5)
        .with(Fault::Unavailable.on(Op::Next).one_in(3))
        .with(
            Fault::Delay(Duration::from_millis(20))
                .on(Op::Next)
                .one_in(2),
        )
        .with(
            Fault::HoldBack(Duration::from_millis(70))
                .on(Op::Next)
                .one_in(4),
        );
    let (_, bus, keys) = bus(&faults);
    for n in 0..40 {
        bus.publish(&message(&keys[n % 2])).await.unwrap();
    }
    let consumer = bus.subscribe(subscription()).await.unwrap();
    let mut found = Vec::new();
    while found.len() < 40 {
        // Dropped futures lose no delivery either.
        let asked = timeout(Duration::from_millis(15), consumer.next()).await;
        if let Ok(Ok(ConsumerEvent::Delivery(delivery))) = asked {
            found.push(place(&delivery));
        }
    }
    for partition in [0, 1] {
        let of = found.iter().filter(|(p, _)| *p == partition);
        let offsets: Vec<_> = of.map(|(_, offset)| *offset).collect();
        assert_eq!(offsets, (0..20).collect::<Vec<_>>());
    }
}

fn run(key: &str) -> Vec<Message> {
    vec![message(key).with_partition(0); 3]
}

#[tokio::test]
async fn a_run_whose_reply_is_lost_is_there_and_nothing_of_it_is_known_to_be_durable() {
    let faults = Faults::script([
        Fault::Unavailable.on(Op::PublishRun).at(1),
        Fault::LoseReply.on(Op::PublishRun).at(2),
    ]);
    let (inner, bus, [key, _]) = bus(&faults);
    for there in [0, 3] {
        let outcome = bus.publish_run(&run(&key)).await;
        assert_eq!(outcome.durable, 0);
        assert!(outcome.error.is_some_and(|error| error.is_transient()));
        assert_eq!(inner.offsets(TOPIC).await.unwrap()[0].end.get(), there);
    }
    assert_eq!(bus.publish_run(&run(&key)).await.durable, 3);
    assert_eq!(
        (faults.calls(Op::PublishRun), faults.calls(Op::Publish)),
        (3, 0)
    );
}

#[tokio::test]
async fn a_run_that_the_bus_refuses_is_refused_although_replies_are_lost() {
    let faults = Faults::script([Fault::LoseReply.on(Op::PublishRun)]);
    let (_, bus, [key, _]) = bus(&faults);
    let mut mixed = run(&key);
    mixed[2].partition = None;
    let outcome = bus.publish_run(&mixed).await;
    assert!(
        matches!(outcome.error, Some(MessageBusError::Invalid { .. })),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_cut_run_is_durable_as_far_as_the_script_says_and_reports_no_more_than_that() {
    let all = usize::MAX;
    // Each case: durable and reported as in the script, then as found of a run of three.
    for (script, found) in [
        ((0, 0), (0, 0)),
        ((2, 2), (2, 2)),
        ((2, 1), (2, 1)),
        ((all, 0), (3, 0)),
        ((all, 2), (3, 2)),
        // No more is reported than is durable.
        ((1, 2), (1, 1)),
    ] {
        let (durable, reported) = script;
        let cut = Fault::CutRun { durable, reported };
        let faults = Faults::script([cut.on(Op::PublishRun).at(1)]);
        let (inner, bus, [key, _]) = bus(&faults);
        let outcome = bus.publish_run(&run(&key)).await;
        assert!(outcome.error.is_some_and(|error| error.is_transient()));
        let end = inner.offsets(TOPIC).await.unwrap()[0].end.get();
        assert_eq!((end, outcome.durable), found, "{script:?}");
        let again = bus.publish_run(&run(&key)).await;
        assert!(again.error.is_none() && again.durable == 3, "{again:?}");
    }
}

#[tokio::test]
async fn a_cut_after_the_end_of_a_run_and_a_cut_of_an_invalid_run_change_nothing() {
    let cut = Fault::CutRun {
        durable: 3,
        reported: 3,
    };
    let faults = Faults::script([cut.anywhere()]);
    let (inner, bus, [key, _]) = bus(&faults);
    let outcome = bus.publish_run(&run(&key)).await;
    assert!(
        outcome.error.is_none() && outcome.durable == 3,
        "{outcome:?}"
    );
    let mut mixed = run(&key);
    mixed.push(message(&key));
    let outcome = bus.publish_run(&mixed).await;
    assert!(
        matches!(outcome.error, Some(MessageBusError::Invalid { .. })),
        "{outcome:?}"
    );
    assert_eq!(inner.offsets(TOPIC).await.unwrap()[0].end.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_offset_without_a_record_is_reached_after_what_is_held_back() {
    let held = Duration::from_secs(5);
    let faults = Faults::script([Fault::HoldBack(held).on(Op::Next).at(2)]);
    let (inner, bus, [key, _]) = bus(&faults);
    bus.publish(&message(&key)).await.unwrap();
    inner.skip_offsets(&PartitionId::new(TOPIC, 0), 1).unwrap();
    let consumer = bus.subscribe(subscription()).await.unwrap();
    let started = Instant::now();
    assert_eq!(places(&*consumer, 1).await, [(0, 0)]);
    assert_eq!(started.elapsed(), held);
    let event = consumer.next().await.unwrap();
    assert!(
        matches!(event, ConsumerEvent::Reached(_, _, next) if next.get() == 2),
        "{event:?}"
    );
}
