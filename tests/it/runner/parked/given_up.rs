//! Projectors that give single events up: the note in the letter decides what a redrive does, since
//! the position of the processor has passed the event.
use super::views::*;
use foldstream::Version;
use foldstream::runner::{DeliveryLevel, FailureAction, ProcessorPolicy};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::time::Duration;

/// A projector that goes on without the events that fail.
fn giving_up() -> ProcessorPolicy {
    policy().with_on_failure(|_| FailureAction::DeadLetter)
}

const LEVELS: [DeliveryLevel; 2] = [DeliveryLevel::AtLeastOnce, DeliveryLevel::Deduplicated];

#[tokio::test(start_paused = true)]
async fn a_redrive_handles_what_a_projector_gave_up_whatever_its_position_says() {
    for level in LEVELS {
        for (restarts, is_buffered) in [(false, false), (true, false), (false, true)] {
            let shop = Shop::new(&[("a", 2)]);
            let views = || match is_buffered {
                true => shop.views.buffered(),
                false => shop.views.clone(),
            };
            shop.deposits(&["a", "a", "a"]).await;
            let mut running = shop.start_as(views(), giving_up().with_level(level));
            seconds(15).await;
            assert_eq!(shop.views.of("a"), [1, 3]);
            assert_eq!(shop.operator.letter("a", 2).await.unwrap()["g"], true);
            if restarts {
                running.stop().await;
                running = shop.start_as(views(), giving_up().with_level(level));
                // The process knows the position.
                shop.deposits(&["a"]).await;
                seconds(15).await;
            }
            let before = shop.views.of("a");
            // It fails again: the letter still says that the event was not handled.
            shop.operator.ask("a", 2, "redrive").await;
            seconds(20).await;
            assert_eq!(shop.operator.letter("a", 2).await.unwrap()["g"], true);
            shop.views.fix();
            shop.operator.ask("a", 2, "redrive").await;
            seconds(20).await;
            assert_eq!(shop.views.of("a"), [&before[..], &[2]].concat());
            shop.assert_at_rest().await;
            running.stop().await;
        }
    }
}

fn is_about(call: &Call<'_>, kind: &str) -> bool {
    match call {
        Call::Put { row, .. } => row.key.partition.starts_with(kind),
        Call::Delete { key, .. } => key.partition.starts_with(kind),
        _ => false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_letter_whose_writer_died_before_it_parked_the_stream_is_not_handled_again() {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a", "a"]).await;
    let policy = || policy().with_level(DeliveryLevel::Deduplicated);
    let start = |faults: &Faults| shop.start_with(faults, shop.views.clone(), policy());
    // The letter is written, and the park row is not.
    let no_row = Fault::Unavailable
        .on(Op::Put)
        .matching(|c| is_about(c, "park/"));
    let running = start(&Faults::script([no_row]));
    seconds(15).await;
    running.crash().await;
    assert_eq!(shop.operator.letters("a").await, [2]);
    assert_eq!(shop.operator.all("park").await, [""; 0]);
    // The next owner handles the event, and dies before it deletes the letter.
    shop.views.fix();
    let no_delete = Fault::Unavailable
        .on([Op::Put, Op::Delete])
        .matching(|c| is_about(c, "dlq/"));
    let running = start(&Faults::script([no_delete]));
    seconds(40).await;
    running.crash().await;
    assert_eq!(shop.views.of("a"), [1, 2, 3]);
    assert_eq!(shop.operator.letters("a").await, [2]);
    // The position says that it was handled, also to a process that has not met the stream.
    let running = start(&Faults::none());
    seconds(5).await;
    shop.operator.ask("a", 2, "redrive").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3]);
    shop.assert_at_rest().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_redrive_of_what_was_given_up_survives_a_death_at_any_row_operation() {
    for level in LEVELS {
        let mut deaths = 0;
        for point in 1.. {
            for fault in [Fault::CrashBefore, Fault::CrashAfter] {
                let shop = Shop::new(&[("a", 2)]);
                shop.deposits(&["a", "a", "a"]).await;
                let policy = || {
                    giving_up()
                        .with_level(level)
                        .with_commit_interval(Duration::from_secs(3))
                };
                let running = shop.start_as(shop.views.clone(), policy());
                seconds(15).await;
                running.stop().await;
                shop.views.fix();
                shop.operator.ask("a", 2, "redrive").await;
                let is_row = |c: &Call<'_>| ["dlq/", "ask/"].iter().any(|k| is_about(c, k));
                let dies = fault.on([Op::Put, Op::Delete]).matching(is_row).at(point);
                let faults = Faults::script([dies]);
                let running = shop.start_with(&faults, shop.views.buffered(), policy());
                seconds(20).await;
                running.crash().await;
                deaths += u64::from(faults.is_crashed());
                // An owner without faults ends what was begun.
                let running = shop.start_as(shop.views.buffered(), policy());
                seconds(30).await;
                let handled = shop.views.of("a");
                let times = handled.iter().filter(|version| **version == 2).count();
                // Only a death between the effect and the deletion of the letter repeats it.
                assert!((1..=2).contains(&times), "{level:?} {point}: {handled:?}");
                assert!(times == 1 || faults.is_crashed());
                assert!(handled.starts_with(&[1, 3]), "{handled:?}");
                shop.assert_at_rest().await;
                running.stop().await;
            }
            if deaths < 2 * point {
                break;
            }
        }
        assert!(deaths >= 4, "{deaths} deaths");
    }
}

/// Gives version 1 up by a dead letter, and parks a stream at any other version.
fn mixed() -> ProcessorPolicy {
    policy().with_on_failure(|event| match event.version() {
        Some(version) if version.get() == 1 => FailureAction::DeadLetter,
        _ => FailureAction::Park,
    })
}

#[tokio::test(start_paused = true)]
async fn a_redrive_of_a_parked_stream_keeps_the_letters_of_what_was_given_up_before_it() {
    for level in LEVELS {
        for restarts in [false, true] {
            let shop = Shop::new(&[("a", 1), ("a", 3)]);
            shop.deposits(&["a", "a", "a"]).await;
            let mut running = shop.start_as(shop.views.clone(), mixed().with_level(level));
            seconds(10).await;
            assert_eq!(shop.operator.letters("a").await, [1, 3]);
            if restarts {
                running.stop().await;
                running = shop.start_as(shop.views.clone(), mixed().with_level(level));
                seconds(10).await;
            }
            shop.views.fix();
            shop.operator.redrive("a").await;
            seconds(20).await;
            assert_eq!(shop.views.of("a"), [2, 3]);
            assert_eq!(shop.operator.parked("a").await, None);
            assert_eq!(shop.operator.letters("a").await, [1]);
            shop.operator.ask("a", 1, "redrive").await;
            seconds(20).await;
            assert_eq!(shop.views.of("a"), [2, 3, 1]);
            shop.assert_at_rest().await;
            running.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_for_what_was_given_up_is_served_while_its_stream_is_parked() {
    for (what, handled) in [("redrive", &[2, 1][..]), ("discard", &[2])] {
        let shop = Shop::new(&[("a", 1), ("a", 3)]);
        shop.deposits(&["a", "a", "a"]).await;
        let running = shop.start_as(shop.views.clone(), mixed());
        seconds(10).await;
        let one = ("a".to_owned(), 1);
        shop.views.bad.lock().unwrap().remove(&one);
        shop.operator.ask("a", 1, what).await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), handled);
        assert_eq!(shop.operator.letters("a").await, [3]);
        let parked = Some((3, 3, "parked".into()));
        assert_eq!(shop.operator.parked("a").await, parked);
        // The event at which the stream is parked waits for a redrive of the stream.
        shop.views.fix();
        shop.operator.ask("a", 3, "redrive").await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), handled);
        shop.operator.redrive("a").await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [handled, &[3]].concat());
        shop.assert_at_rest().await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_clearing_of_a_stale_row_keeps_the_letters_of_what_was_given_up() {
    let shop = Shop::new(&[("a", 1)]);
    shop.deposits(&["a", "a", "a"]).await;
    let running = shop.start_as(shop.views.clone(), mixed());
    seconds(10).await;
    assert_eq!(shop.views.of("a"), [2, 3]);
    // An owner that has lost the partition parks the stream at an event that is handled.
    let (from, high) = (Version::new(2), Version::new(3));
    shop.operator.write_park_row("a", from, high).await;
    shop.operator.announce().await;
    seconds(20).await;
    assert_eq!(shop.operator.parked("a").await, None);
    assert_eq!(shop.operator.letters("a").await, [1]);
    running.stop().await;
}
