//! The topic that gets a copy of each dead letter.
use super::super::harness::{SEEN, SENT_AT, TOPIC, World};
use super::views::*;
use foldstream::{
    ports::{
        ConsumerEvent, HeaderName, Message, MessageBus, Offset, StartOffset, Subscription,
        TopicDescription,
    },
    runner::{BuildError, HandlerError, ProcessorPolicy, Runner},
};
use foldstream_testkit::{
    InMemoryMessageBus,
    faults::{Fault, Faults, Op},
};
use std::time::Duration;

const DEAD: &str = "Dead";

fn copying() -> ProcessorPolicy {
    listening().with_dead_letter_topic(DEAD)
}

/// Returns the copies, in the order of partition and offset.
async fn copies(bus: &InMemoryMessageBus) -> Vec<Message> {
    let offsets = bus.offsets(DEAD).await.unwrap();
    let start = offsets
        .iter()
        .map(|o| StartOffset::new(o.partition.clone(), Offset::new(0)));
    let subscription = Subscription::new("copies", [DEAD]).with_start(start.collect());
    let consumer = bus.subscribe(subscription).await.unwrap();
    let count: u64 = offsets.iter().map(|o| o.end.get()).sum();
    let mut found = Vec::new();
    while (found.len() as u64) < count {
        if let ConsumerEvent::Delivery(delivery) = consumer.next().await.unwrap() {
            found.push((delivery.partition, delivery.offset, delivery.message));
        }
    }
    consumer.leave().await.unwrap();
    found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    found.into_iter().map(|(.., message)| message).collect()
}

fn headers<'a>(message: &'a Message, names: &[&str]) -> Vec<Option<&'a str>> {
    names.iter().map(|name| message.header(name)).collect()
}

const CONNECT: [&str; 3] = [
    "__connect.errors.topic",
    "__connect.errors.partition",
    "__connect.errors.offset",
];

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_copied_to_its_topic_with_the_record_and_the_failure() {
    let desk = Desk::new(&[("a", 2)]);
    assert!(desk.world.bus.create_topic(DEAD, 1));
    desk.world.deposit("a").await;
    let commit = desk.world.store("a", 1).await;
    desk.world.publish(&commit).await;
    desk.world.deposit("a").await;
    let running = desk.start(copying());
    seconds(5).await;
    let found = copies(&desk.world.bus).await;
    let [copy] = &found[..] else {
        panic!("{found:?}")
    };
    let event = commit.recorded().next().unwrap();
    assert_eq!(copy.key.as_deref(), Some(&b"account#a"[..]));
    assert_eq!(copy.value.as_deref(), Some(&event.payload[..]));
    assert_eq!(copy.header("ce_type"), Some("account.Deposited"));
    assert_eq!(headers(copy, &CONNECT), [Some(TOPIC), Some("0"), Some("1")]);
    let letter = desk.operator.letter("a", 2).await.unwrap();
    let names = ["exception.class.name", "exception.message"];
    let names = names.map(|name| format!("__connect.errors.{name}"));
    assert_eq!(copy.header(&names[0]), letter["y"].as_str());
    assert_eq!(copy.header(&names[1]), Some("refused"));
    let ours = ["fs_processor", "fs_attempts", "fs_fingerprint"];
    let ours = headers(copy, &ours);
    assert_eq!(ours, [Some("seen"), Some("1"), letter["p"].as_str()]);
    assert_eq!(copy.header("fs_value_omitted"), None);
    let report = running.stop().await;
    assert_eq!(
        (
            report.dead_letters,
            report.dead_letters_sent,
            report.dead_letters_not_sent
        ),
        (1, 1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn letters_of_parked_streams_and_of_unreadable_records_are_copied_too() {
    let shop = Shop::new(&[("a", 1), ("a", 3)]);
    assert!(shop.world.bus.create_topic(DEAD, 1));
    shop.deposits(&["a", "a", "a"]).await;
    let name = HeaderName::new("h").unwrap();
    let foreign = Message::new(TOPIC, SENT_AT)
        .with_value("hello")
        .with_null_header(name)
        .with_partition(0);
    shop.world.bus.publish(&foreign).await.unwrap();
    let policy = policy().with_dead_letter_topic(DEAD);
    let running = shop.start_as(shop.views.clone(), policy);
    seconds(5).await;
    // A redrive that fails at another event has the record of the event store.
    shop.views.bad.lock().unwrap().remove(&("a".into(), 1));
    shop.operator.redrive("a").await;
    seconds(20).await;
    let found = copies(&shop.world.bus).await;
    let of = |copy: &Message| copy.header(CONNECT[2]).map(str::to_owned);
    let offsets: Vec<_> = found.iter().map(of).collect();
    assert_eq!(offsets, [Some("0".into()), Some("3".into()), None]);
    let (unreadable, redriven) = (&found[1], &found[2]);
    assert_eq!(
        (&unreadable.key, unreadable.value.as_deref()),
        (&None, Some(&b"hello"[..]))
    );
    assert_eq!(unreadable.headers.iter().next().unwrap().1, None);
    assert_eq!(redriven.header("ce_fsversion"), Some("3"));
    assert_eq!(redriven.key.as_deref(), Some(&b"account#a"[..]));
    assert_eq!(running.stop().await.dead_letters_sent, 3);
}

#[tokio::test(start_paused = true)]
async fn a_copy_goes_to_the_partition_of_the_same_number_or_else_to_that_of_its_key() {
    for partitions in [1, 4] {
        let world = World::new(4);
        assert!(world.bus.create_topic(DEAD, partitions));
        for number in 0..4 {
            let foreign = Message::new(TOPIC, SENT_AT)
                .with_value(number.to_string())
                .with_partition(number);
            // Only some have a key.
            let foreign = match number % 2 {
                0 => foreign.with_key("k"),
                _ => foreign,
            };
            world.bus.publish(&foreign).await.unwrap();
        }
        let desk = Desk {
            world,
            ..Desk::new(&[])
        };
        let running = desk.start(copying());
        seconds(5).await;
        let found = copies(&desk.world.bus).await;
        assert_eq!(found.len(), 4);
        for copy in &found {
            let from: u32 = copy.header(CONNECT[1]).unwrap().parse().unwrap();
            let expected = if partitions == 4 { from } else { 0 };
            assert_eq!(copy.partition, Some(expected));
        }
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_over_the_limit_of_the_topic_is_left_out_and_named() {
    // The limit is described, or only the refusal tells.
    for is_described in [true, false] {
        let desk = Desk::new(&[]);
        let limit = if is_described { 2_000 } else { 2_000_000 };
        let dead = TopicDescription::new(1)
            .with_max_message_bytes(Some(limit))
            .with_record_overhead(100);
        assert!(desk.world.bus.create_topic_as(DEAD, dead));
        for size in [100, 3_000] {
            let foreign = Message::new(TOPIC, SENT_AT)
                .with_key("k")
                .with_value("x".repeat(size))
                .with_partition(0);
            desk.world.bus.publish(&foreign).await.unwrap();
        }
        let faults =
            match is_described {
                true => Faults::none(),
                false => Faults::script([Fault::error(|| {
                    foldstream::ports::MessageBusError::TooLarge {
                        topic: DEAD.into(),
                        bytes: 3_000,
                        limit: None,
                    }
                })
                .on(Op::Publish)
                .at(2)]),
            };
        let builder = desk.world.faulty_builder(&faults);
        let runner = builder.listener_with(desk.seen.clone(), copying()).build();
        let running = Running::start(runner.unwrap());
        seconds(5).await;
        let found = copies(&desk.world.bus).await;
        // A value that is known to be too large is not sent in vain.
        let sent = faults.calls(Op::Publish);
        assert_eq!(sent, if is_described { 2 } else { 3 });
        let omitted: Vec<_> = found.iter().map(|c| c.header("fs_value_omitted")).collect();
        assert_eq!(omitted, [None, Some("3000")]);
        assert_eq!(found[1].value, None);
        assert_eq!(found[1].key.as_deref(), Some(&b"k"[..]));
        assert_eq!(
            headers(&found[1], &CONNECT),
            [Some(TOPIC), Some("0"), Some("1")]
        );
        assert_eq!(running.stop().await.dead_letters_sent, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_message_of_an_error_is_cut_to_4_kib_at_the_border_of_a_character() {
    let world = World::new(1);
    assert!(world.bus.create_topic(DEAD, 1));
    world.deposit("a").await;
    let seen = super::super::harness::Seen::failing(|_, _, _| {
        Err(HandlerError::permanent(format!(
            "a{}",
            "\u{20ac}".repeat(2_000)
        )))
    });
    let runner = world.builder().listener_with(seen, copying()).build();
    let running = Running::start(runner.unwrap());
    seconds(5).await;
    let found = copies(&world.bus).await;
    let message = found[0]
        .header("__connect.errors.exception.message")
        .unwrap();
    assert!(
        (4_090..=4_096).contains(&message.len()),
        "{}",
        message.len()
    );
    assert!(message.ends_with("\u{20ac}..."));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_offset_waits_for_a_copy_and_each_that_is_not_sent_is_counted() {
    let hang = Fault::Hang.on(Op::Publish);
    let away = Fault::Unavailable.on([Op::Publish, Op::DescribeTopic]);
    // The topic may also be missing.
    for (fault, has_topic) in [(Some(hang), true), (Some(away), true), (None, false)] {
        let bad: Vec<_> = (1..=100).map(|version| ("a", version)).collect();
        let desk = Desk::new(&bad);
        if has_topic {
            assert!(desk.world.bus.create_topic(DEAD, 1));
        }
        for _ in 0..100 {
            desk.world.deposit("a").await;
        }
        desk.world.deposit("b").await;
        let faults = Faults::script(fault);
        let builder = desk.world.faulty_builder(&faults);
        let runner: Runner = builder
            .listener_with(desk.seen.clone(), copying())
            .build()
            .unwrap();
        let handle = runner.start();
        seconds(5).await;
        assert_eq!(desk.world.committed(SEEN).await, 101);
        assert_eq!(desk.seen.of("b"), [1]);
        assert_eq!(desk.operator.all("dlq").await.len(), 100);
        seconds(20).await;
        let health = handle.health();
        let health = health.processor("seen").unwrap();
        assert_eq!(health.dead_letters_not_sent, 100);
        handle.stop();
        let report = tokio::time::timeout(Duration::from_secs(10), handle.wait()).await;
        let report = report.unwrap().into_result().unwrap().remove(0);
        assert_eq!(
            (report.dead_letters_sent, report.dead_letters_not_sent),
            (0, 100)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn copies_that_are_being_sent_at_the_end_have_a_moment_and_are_counted() {
    for (slow, sent) in [
        (Duration::from_millis(500), 1),
        (Duration::from_secs(60), 0),
    ] {
        let desk = Desk::new(&[("a", 1)]);
        assert!(desk.world.bus.create_topic(DEAD, 1));
        desk.world.deposit("a").await;
        let faults = Faults::script([Fault::Delay(slow).on(Op::Publish)]);
        let builder = desk.world.faulty_builder(&faults);
        let runner = builder.listener_with(desk.seen.clone(), copying()).build();
        let report = runner.unwrap().run_until_caught_up().await;
        let report = &report.processors[0];
        let counts = (report.dead_letters_sent, report.dead_letters_not_sent);
        assert_eq!(counts, (sent, 1 - sent));
    }
}

#[test]
fn a_topic_that_the_runner_reads_or_that_cannot_exist_is_refused() {
    for topic in [TOPIC, "no topic!", ""] {
        let desk = Desk::new(&[]);
        let policy = listening().with_dead_letter_topic(topic);
        let built = desk
            .world
            .builder()
            .listener_with(desk.seen, policy)
            .build();
        let field = match built {
            Err(BuildError::Invalid { field, .. }) => field,
            other => panic!("{:?}", other.map(|_| ())),
        };
        assert_eq!(field, "dead_letter_topic", "{topic}");
    }
}
