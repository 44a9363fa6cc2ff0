//! The writing of dead letters: what holds while a letter cannot be written, and after a crash.
use super::super::{
    handle::pass,
    harness::{SEEN, partition},
};
use super::views::*;
use crate::support::stream;
use foldstream::{
    Version,
    operate::{DeadLetter, LetterAddress, LetterBody, LetterKey, Operator},
    ports::{EventData, RefusedKind},
    runner::{ProcessorState, TroubleSource},
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};

fn is_letter(call: &Call<'_>) -> bool {
    matches!(call, Call::Put { row, .. } if is_of_letters(&row.key.partition))
}

/// Heads of letters, and the chunks of large ones.
fn is_of_letters(partition: &str) -> bool {
    partition.starts_with("dlq/") || partition.starts_with("chunk/dlq/")
}

#[tokio::test(start_paused = true)]
async fn while_a_letter_cannot_be_written_the_offset_stays_attempts_back_off_and_health_says_so() {
    let desk = Desk::new(&[("a", 2)]);
    for id in ["a", "a", "a", "b"] {
        desk.world.deposit(id).await;
    }
    let faults = Faults::script([Fault::Unavailable.on(Op::Put).matching(is_letter)]);
    let runner = desk.world.faulty_builder(&faults);
    let runner = runner.listener_with(desk.seen.clone(), listening());
    let handle = runner.build().unwrap().start();
    pass(300).await;
    // The stream waits behind its event, and no other stream does.
    assert_eq!((desk.seen.of("a"), desk.seen.of("b")), (vec![1], vec![1]));
    assert_eq!(desk.world.committed(SEEN).await, 1);
    let attempts = faults.log().len();
    assert!((10..300).contains(&attempts), "{attempts}");
    let health = handle.health();
    let seen = health.processor("seen").unwrap();
    assert_eq!(seen.state, ProcessorState::Unreachable);
    assert!(!health.readiness().is_ok());
    let trouble = seen.trouble.as_ref().unwrap();
    assert_eq!(trouble.source, TroubleSource::ControlStore);
    faults.set([]);
    pass(60).await;
    assert_eq!(desk.seen.of("a"), [1, 3]);
    assert_eq!(desk.operator.letters("a").await, [2]);
    assert_eq!(desk.world.committed(SEEN).await, 4);
    assert!(handle.health().readiness().is_ok());
    handle.stop();
    handle.wait().await.into_result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_is_refused_for_good_ends_the_processor_with_that_error() {
    let desk = Desk::new(&[("a", 2)]);
    for id in ["a", "a", "a"] {
        desk.world.deposit(id).await;
    }
    let refused = Fault::Refused(RefusedKind::Permission);
    let faults = Faults::script([refused.on(Op::Put).matching(is_letter)]);
    let runner = desk.world.faulty_builder(&faults);
    let runner = runner.listener_with(desk.seen.clone(), listening());
    let report = runner.build().unwrap().run_until_caught_up().await;
    let error = report.processors[0].error.as_ref().unwrap();
    let text = with_sources(error);
    assert!(text.contains("refused"), "{text}");
    assert_eq!(desk.seen.of("a"), [1]);
    assert_eq!(desk.world.committed(SEEN).await, 1);
    // Nothing is lost: a process that may write goes on.
    let running = desk.start(listening());
    seconds(10).await;
    assert_eq!(desk.operator.letters("a").await, [2]);
    assert_eq!(desk.world.committed(SEEN).await, 3);
    running.stop().await;
}

/// Returns an error and its sources as one text.
fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The letter of the first event of `a`.
async fn whole(desk: &Desk) -> Option<DeadLetter> {
    let operator = Operator::new(desk.world.control.clone());
    let key = LetterKey::event(stream("a"), Version::new(1));
    let address = LetterAddress::new("seen", 1, partition(0), key);
    operator.letter(&address).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_large_letter_is_whole_and_one_wherever_the_process_dies_and_then_the_offset_passes() {
    // A schema that only a newer build knows, and more than one row can hold.
    let payload = format!(r#"{{"note":"{}"}}"#, "x".repeat(700 * 1024));
    let (mut deaths, mut written_before) = (0, 0);
    for point in 1.. {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            let desk = Desk::new(&[]);
            let event = EventData::new("Deposited", 9, payload.clone().into_bytes());
            desk.world.publish_raw("a", 1, event).await;
            desk.world.deposit("b").await;
            let of_letter = |call: &Call<'_>| matches!(call, Call::Commit(_)) || is_letter(call);
            let dies = fault
                .on([Op::Put, Op::Commit])
                .matching(of_letter)
                .at(point);
            let faults = Faults::script([dies]);
            let runner = desk.world.faulty_builder(&faults);
            let runner = runner.listener_with(desk.seen.clone(), listening());
            let running = Running::start(runner.build().unwrap());
            seconds(20).await;
            running.crash().await;
            deaths += u64::from(faults.is_crashed());
            let before = desk.operator.all("dlq").await;
            let id = whole(&desk).await.map(|letter| letter.head.id);
            written_before += usize::from(faults.is_crashed() && !before.is_empty());
            let committed = desk.world.committed(SEEN).await;
            assert!(committed == 0 || before.len() == 1, "{point}: {committed}");
            let running = desk.start(listening());
            seconds(20).await;
            running.stop().await;
            assert_eq!(desk.world.committed(SEEN).await, 2);
            assert_eq!(desk.operator.letters("a").await, [1], "{point}");
            // The same entry, and not another one of the same event.
            let letter = whole(&desk).await.unwrap();
            assert!(id.is_none_or(|id| letter.head.id == id), "{point}");
            let LetterBody::Record(record) = letter.body else {
                panic!("{point}: {:?}", letter.body)
            };
            assert_eq!(record.message.value.unwrap(), payload.as_bytes(), "{point}");
        }
        if deaths < 2 * point {
            break;
        }
    }
    assert!(
        deaths >= 6 && written_before >= 2,
        "{deaths} {written_before}"
    );
}
