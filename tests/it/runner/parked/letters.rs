//! Dead letters of listeners, and of records that cannot be read.
use super::super::harness::{SEEN, SENT_AT, Seen, TOPIC, World};
use super::{operator::Operator, views::*};
use foldstream::{
    RetryPolicy,
    ports::{EventData, Message, MessageBus},
    runner::{DeliveryLevel, FailureAction, HandlerError},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_listener_stores_a_letter_and_goes_on() {
    let desk = Desk::new(&[("a", 2)]);
    for id in ["a", "a", "a", "b"] {
        desk.world.deposit(id).await;
    }
    let running = desk.start(listening());
    seconds(5).await;
    assert_eq!(
        (desk.seen.of("a"), desk.seen.of("b")),
        (vec![1, 3], vec![1])
    );
    assert_eq!(desk.operator.letters("a").await, [2]);
    assert_eq!(desk.operator.all("park").await, [""; 0]);
    assert_eq!(desk.world.committed(SEEN).await, 4);
    // A redrive that fails again keeps the letter, and counts.
    desk.operator.ask("a", 2, "redrive").await;
    seconds(20).await;
    let letter = desk.operator.letter("a", 2).await.unwrap();
    assert_eq!((desk.seen.of("a"), &letter["n"]), (vec![1, 3], &2.into()));
    assert_eq!(desk.operator.all("ask").await, [""; 0]);
    desk.bad.lock().unwrap().clear();
    desk.operator.ask("a", 2, "redrive").await;
    seconds(20).await;
    assert_eq!(desk.seen.of("a"), [1, 3, 2]);
    for kind in ["dlq", "ask"] {
        assert_eq!(desk.operator.all(kind).await, [""; 0]);
    }
    let report = running.stop().await;
    assert_eq!((report.dead_letters, report.redrives), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_redriven_letter_is_retried_as_any_event_is() {
    let world = World::new(1);
    let operator = Operator::new(world.control.clone(), "seen", 1);
    let mode = Arc::new(Mutex::new("refused"));
    let how = mode.clone();
    let seen = Seen::failing(move |_, _, attempt| match *how.lock().unwrap() {
        "refused" => Err(HandlerError::permanent("refused")),
        "away" => Err(HandlerError::transient("away")),
        "busy" if attempt == 2 => Err(HandlerError::throttled(Duration::from_secs(30), "busy")),
        "busy" if attempt < 4 => Err(HandlerError::transient("away")),
        _ => Ok(()),
    });
    let retry = RetryPolicy::default().with_max_elapsed(MINUTE);
    // A breaker would wait for the service without an end.
    let policy = listening().with_retry(retry).without_breaker();
    world.deposit("a").await;
    let builder = world.builder().listener_with(seen.clone(), policy);
    let running = Running::start(builder.build().unwrap());
    seconds(5).await;
    assert_eq!(operator.letters("a").await, [1]);

    // The limit of the policy holds, and an operator's request ends with it.
    *mode.lock().unwrap() = "away";
    operator.ask("a", 1, "redrive").await;
    seconds(40).await;
    assert_eq!(operator.all("ask").await.len(), 1);
    seconds(60).await;
    assert_eq!(operator.all("ask").await, [""; 0]);
    let letter = operator.letter("a", 1).await.unwrap();
    assert_eq!(letter["c"], "transient");
    assert!(letter["n"].as_u64() > Some(2), "{letter}");

    *mode.lock().unwrap() = "busy";
    operator.ask("a", 1, "redrive").await;
    seconds(25).await;
    assert_eq!(seen.len(), 0);
    seconds(35).await;
    assert_eq!(seen.of("a"), [1]);
    for kind in ["dlq", "ask"] {
        assert_eq!(operator.all(kind).await, [""; 0]);
    }
    let report = running.stop().await;
    assert_eq!((report.dead_letters, report.redrives), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_discarded_letter_is_deleted_and_its_event_is_not_handled() {
    let desk = Desk::new(&[("a", 1)]);
    desk.world.deposit("a").await;
    let running = desk.start(listening());
    seconds(5).await;
    desk.bad.lock().unwrap().clear();
    desk.operator.ask_discard("a", 1).await;
    desk.operator.ask("a", 1, "discard").await;
    seconds(20).await;
    assert_eq!(desk.seen.of("a"), [0; 0]);
    assert_eq!(
        desk.operator.discarded("a", 1).await.as_deref(),
        Some("passed")
    );
    for kind in ["dlq", "ask"] {
        assert_eq!(desk.operator.all(kind).await, [""; 0]);
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_of_an_event_that_was_given_up_keeps_its_letter() {
    for level in [DeliveryLevel::AtLeastOnce, DeliveryLevel::Deduplicated] {
        let desk = Desk::new(&[("a", 2)]);
        desk.world.deposit("a").await;
        let commit = desk.world.store("a", 1).await;
        desk.world.publish(&commit).await;
        let running = desk.start(listening().with_level(level));
        seconds(15).await;
        desk.world.publish(&commit).await;
        seconds(15).await;
        assert_eq!(running.stop().await.duplicates, 1);
        assert_eq!(desk.operator.letters("a").await, [2]);
        // Nor does the position say that it was handled.
        let running = desk.start(listening().with_level(level));
        desk.bad.lock().unwrap().clear();
        desk.operator.ask("a", 2, "redrive").await;
        seconds(15).await;
        assert_eq!(desk.seen.of("a"), [1, 2]);
        assert_eq!(desk.operator.letters("a").await, [0; 0]);
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_with_a_newer_schema_is_a_letter_of_a_listener_and_parks_a_projector() {
    let newer = || EventData::new("Deposited", 9, &br#"{"sum":1}"#[..]);
    let broken = || EventData::new("Deposited", 1, &b"{"[..]);
    for event in [newer, broken as fn() -> EventData] {
        let desk = Desk::new(&[]);
        desk.world.publish_raw("a", 1, event()).await;
        let running = desk.start(listening());
        seconds(5).await;
        let letter = desk.operator.letter("a", 1).await.unwrap();
        assert_eq!(letter["c"], "poison");
        assert_eq!(running.stop().await.retries, 0);
        let shop = Shop::new(&[]).without_store();
        shop.world.publish_raw("a", 1, event()).await;
        let running = shop.start();
        seconds(5).await;
        assert_eq!(
            shop.operator.parked("a").await,
            Some((1, 1, "parked".into()))
        );
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_record_is_a_letter_by_its_offset() {
    let desk = Desk::new(&[]);
    desk.world.deposit("a").await;
    let foreign = Message::new(TOPIC, SENT_AT)
        .with_key("x")
        .with_value("hello")
        .with_partition(0);
    desk.world.bus.publish(&foreign).await.unwrap();
    desk.world.deposit("a").await;
    let running = desk.start(listening());
    seconds(5).await;
    assert_eq!(desk.seen.of("a"), [1, 2]);
    assert_eq!(desk.world.committed(SEEN).await, 3);
    let letters = desk.operator.all("dlq").await;
    assert_eq!(letters, ["!\u{1f}00000000000000000001"]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn foreign_records_over_the_limit_hold_the_processor_without_a_busy_loop() {
    let desk = Desk::new(&[]);
    for value in ["1", "2"] {
        let foreign = Message::new(TOPIC, SENT_AT)
            .with_key("x")
            .with_value(value)
            .with_partition(0);
        desk.world.bus.publish(&foreign).await.unwrap();
    }
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = asked.clone();
    let policy = listening().with_limits(1, 1, 1).with_on_failure(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        FailureAction::DeadLetter
    });
    let running = desk.start(policy);
    seconds(300).await;
    assert_eq!(desk.operator.all("dlq").await.len(), 1);
    assert_eq!(desk.world.committed(SEEN).await, 1);
    let asked = asked.load(std::sync::atomic::Ordering::SeqCst);
    assert!((2..12).contains(&asked), "{asked}");
    running.stop().await;
}
