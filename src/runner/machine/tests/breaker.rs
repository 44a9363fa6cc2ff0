//! The circuit breaker is asked only for calls that can be made: the right to probe that comes back
//! unused would wake whoever waits for it, the processor itself included, again and again.
use super::{
    super::{
        Effect, Input, Loaded, Outcome, RowAnswer, RowOp,
        tasks::TaskId,
        testing::{record, stream},
    },
    driven::{Driven, SECOND, flushes, has, starts, with_breaker},
};
use crate::{
    Timestamp, Version,
    breaker::{CircuitBreaker, CircuitState, Outcome as CallOutcome},
    control::{
        AskKind, AskRow, DeadLetter, Failed, Fingerprint, LetterBody, LetterClass, LetterId,
        LetterKey, ParkFailure, ParkId, ParkRow, PutIf, Request, Stored,
    },
    ports::Revision,
    runner::ErrorClass,
};

/// Returns true if a processor that waits for the breaker is woken by what it does itself.
fn wakes_itself(driven: &mut Driven, breaker: &CircuitBreaker) -> bool {
    let mut changes = breaker.changes();
    for _ in 0..3 {
        let _ = driven.on(Input::Timer);
    }
    changes.take()
}

/// Opens the circuit by calls of others, and waits until one call is admitted as a probe.
fn half_open(driven: &mut Driven, breaker: &CircuitBreaker) {
    while breaker.state_at(driven.now) == CircuitState::Closed {
        let permit = breaker.permit(driven.now).expect("it is closed");
        let _ = permit.settle(CallOutcome::from(ErrorClass::Transient), driven.now);
    }
    let _ = driven.pass(2 * SECOND);
    assert_eq!(breaker.state_at(driven.now), CircuitState::HalfOpen);
}

fn stored<T>(value: T) -> Stored<T> {
    let revision = Revision::from_u128(1);
    Stored { value, revision }
}

/// Returns the operation on a row that is to be done.
pub(super) fn row(effects: &[Effect]) -> Option<(TaskId, RowOp)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Row(id, _, op) => Some((*id, (**op).clone())),
        _ => None,
    })
}

/// Rows with a request to handle version 1 of a stream once more.
pub(super) fn asked(id: &str) -> Loaded {
    let letter = LetterKey::event(stream(id), Version::new(1));
    let row = AskRow {
        letter: LetterId::from_u128(0),
        what: AskKind::Redrive,
        by: "ann".into(),
        job: None,
        at: Timestamp::from_micros(7),
    };
    Loaded {
        letters: vec![(letter.clone(), false)],
        asks: vec![(letter, stored(row))],
        ..Loaded::default()
    }
}

pub(super) fn letter(id: &str) -> Box<DeadLetter> {
    let failed = Failed {
        class: LetterClass::from(ErrorClass::Permanent),
        error_type: "Refused",
        error: "refused",
        event_type: None,
        stream: Some(&stream(id)),
        attempts: 1,
        first: Timestamp::from_micros(7),
        last: Timestamp::from_micros(7),
    };
    let event = record(0, 0, id, 1).event.clone();
    Box::new(DeadLetter::new(&failed, LetterBody::Event(event)))
}

/// Rows with a parked stream that an operator wants to be redriven.
fn redrive(id: &str) -> Loaded {
    let failure = ParkFailure {
        version: Version::new(1),
        fingerprint: Fingerprint::from_u128(1),
        attempts: 1,
        at: Timestamp::from_micros(7),
    };
    let request = Request {
        by: "ann".into(),
        job: None,
        upto: None,
    };
    let row = ParkRow::new(ParkId::from_u128(1), &failure).requested(request);
    Loaded {
        parked: vec![(stream(id), stored(row.expect("it is parked")), None)],
        ..Loaded::default()
    }
}

#[test]
fn a_lane_that_may_not_run_takes_no_permit() {
    let breaker = CircuitBreaker::default();
    let mut driven = Driven::serving(with_breaker(&breaker), &[0, 1]);
    let _ = driven.deliver(0, 0, "gone", 1);
    let mut effects = driven.finish("gone");
    effects.extend(driven.pass(2 * SECOND));
    assert!(flushes(&effects));
    let _ = driven.lose(0);
    let _ = driven.assign(0, 2);
    let _ = driven.begin(0, 2);
    half_open(&mut driven, &breaker);
    // What was buffered under the lost assignment is forgotten after the flush, which hangs.
    let effects = driven.deliver_under(2, record(0, 0, "gone", 1));
    assert_eq!(starts(&effects), [""; 0]);
    assert!(!wakes_itself(&mut driven, &breaker));
    // The others go on.
    assert_eq!(starts(&driven.deliver(1, 0, "goes", 1)), ["goes"]);
}

#[test]
fn a_request_for_a_letter_waits_for_an_attempt_of_an_ended_assignment_without_a_permit() {
    let breaker = CircuitBreaker::default();
    let mut driven = Driven::with(with_breaker(&breaker), false);
    driven.join_and_serve(&[0]);
    let _ = driven.deliver(0, 5, "a", 2);
    let _ = driven.lose(0);
    let _ = driven.assign(0, 2);
    // A processor without partitions has closed its circuit.
    half_open(&mut driven, &breaker);
    let effects = driven.begin_with(0, 2, asked("a"));
    let (task, _) = row(&effects).expect("the letter is read");
    let effects = driven.on(Input::Row(task, Ok(RowAnswer::Letter(Some(letter("a"))))));
    assert_eq!(starts(&effects), [""; 0], "two attempts at one stream");
    assert!(!wakes_itself(&mut driven, &breaker));
    let attempt = driven.attempt_at("a").expect("it still runs");
    assert_eq!(starts(&driven.end(attempt, Outcome::Cancelled)), ["a"]);
}

#[test]
fn a_redrive_of_a_partition_that_leaves_takes_no_permit() {
    let breaker = CircuitBreaker::default();
    let mut driven = Driven::serving(with_breaker(&breaker), &[]);
    let _ = driven.assign(0, 1);
    let effects = driven.begin_with(0, 1, redrive("a"));
    // This keeps the revocation from being released.
    assert_eq!(starts(&driven.deliver(0, 0, "drains", 1)), ["drains"]);
    half_open(&mut driven, &breaker);
    let Some((task, RowOp::ReplacePark(_, claimed, _))) = row(&effects) else {
        panic!("{effects:?}")
    };
    // The partition is to be given up while the claim is written.
    let _ = driven.revoke(0, 30 * SECOND);
    let written = RowAnswer::Park(PutIf::Written(stored(claimed)));
    let mut effects = driven.on(Input::Row(task, Ok(written)));
    if let Some((task, _)) = row(&effects) {
        effects = driven.on(Input::Row(task, Ok(RowAnswer::Discards(Vec::new()))));
    }
    assert_eq!(starts(&effects), [""; 0]);
    assert!(!wakes_itself(&mut driven, &breaker));
}

/// Opens the circuit by failures of other streams.
fn open(driven: &mut Driven, breaker: &CircuitBreaker) {
    for n in 0..5 {
        let id = format!("down{n}");
        let _ = driven.deliver(0, n, &id, 1);
        let _ = driven.fail(&id, ErrorClass::Transient);
    }
    assert!(breaker.state_at(driven.now) != CircuitState::Closed);
}

#[test]
fn redrives_and_requests_wait_while_the_circuit_is_open_and_one_probe_is_made() {
    for is_parked in [true, false] {
        let breaker = CircuitBreaker::default();
        let mut driven = Driven::with(with_breaker(&breaker), false);
        driven.join_and_serve(&[0]);
        open(&mut driven, &breaker);
        let _ = driven.assign(1, 1);
        let rows = if is_parked { redrive("a") } else { asked("a") };
        let mut effects = driven.begin_with(1, 1, rows);
        while let Some((task, op)) = row(&effects) {
            let answer = match op {
                RowOp::GetLetter(_) => RowAnswer::Letter(Some(letter("a"))),
                RowOp::ReplacePark(_, row, _) => RowAnswer::Park(PutIf::Written(stored(row))),
                _ => RowAnswer::Discards(Vec::new()),
            };
            effects = driven.on(Input::Row(task, Ok(answer)));
        }
        assert_eq!(starts(&effects), [""; 0], "parked: {is_parked}");
        assert!(!wakes_itself(&mut driven, &breaker));
        // The first open time is a second: then one call is the probe, and all others wait for it.
        let effects = driven.pass(SECOND);
        assert_eq!(starts(&effects).len(), 1, "{effects:?}");
        assert!(!wakes_itself(&mut driven, &breaker));
        let probe = starts(&effects).remove(0);
        if probe == "a" {
            // It was cancelled: the slot is free for the others.
            let attempt = driven.attempt_at("a").expect("it runs");
            let effects = driven.end(attempt, Outcome::Cancelled);
            assert!(starts(&effects).len() <= 1, "{effects:?}");
        } else {
            let effects = driven.finish(&probe);
            assert!(starts(&effects).contains(&"a".to_owned()), "{effects:?}");
        }
        assert!(!has(&effects, |e| matches!(e, Effect::End(_))));
    }
}
