//! The progress in streams whose park rows and letters are settled beside their records.
use super::{
    super::{
        Effect, Input, Loaded, Outcome, RowAnswer, RowOp, Work,
        testing::{record, stream},
    },
    driven::{Driven, SECOND, policy},
};
use crate::{
    Timestamp, Version,
    control::{
        AskKind, AskRow, DeadLetter, DeleteIf, Failed, Fingerprint, LetterBody, LetterClass,
        LetterKey, ParkFailure, ParkId, ParkRow, Stored,
    },
    ports::Revision,
    runner::{DeliveryLevel, ErrorClass, streams::Progress},
};
use std::sync::Arc;

fn stored<T>(value: T) -> Stored<T> {
    let revision = Revision::from_u128(1);
    Stored { value, revision }
}

/// Answers operations on rows until there are none, and returns the attempts that were started.
fn answer_rows(
    driven: &mut Driven,
    mut effects: Vec<Effect>,
    letter: &DeadLetter,
) -> Vec<Arc<Work>> {
    let mut started = Vec::new();
    while let Some(effect) = effects.pop() {
        match effect {
            Effect::Row(id, _, op) => {
                let answer = answer(&op, letter);
                effects.extend(driven.on(Input::Row(id, Ok(answer))));
            }
            Effect::Start(_, work) => started.push(work),
            _ => {}
        }
    }
    started
}

fn answer(op: &RowOp, letter: &DeadLetter) -> RowAnswer {
    match op {
        RowOp::DeletePark(..) => RowAnswer::ParkDeleted(DeleteIf::Deleted),
        RowOp::ReadDiscards(..) => RowAnswer::Discards(Vec::new()),
        RowOp::GetLetter(_) => RowAnswer::Letter(Some(Box::new(letter.clone()))),
        _ => RowAnswer::Done,
    }
}

/// Returns a letter whose writer died before it parked the stream.
fn letter_of_a_writer_that_died() -> DeadLetter {
    let failed = Failed {
        class: LetterClass::from(ErrorClass::Permanent),
        error_type: "Refused",
        error: "refused",
        event_type: None,
        stream: Some(&stream("a")),
        attempts: 1,
        first: Timestamp::from_micros(7),
        last: Timestamp::from_micros(7),
    };
    let event = record(0, 0, "a", 1).event.clone();
    DeadLetter::new(&failed, LetterBody::Event(event))
}

/// Returns the version after which the attempt goes on in its stream.
fn known(work: &Arc<Work>) -> Option<u64> {
    match &work.progress {
        Progress::At(at) => Some(at.version.get()),
        Progress::Unknown | Progress::NoBase => None,
    }
}

#[test]
fn a_park_row_below_the_stored_position_does_not_lower_it() {
    // A late event was parked: version 8, after 9 was handled and its position stored.
    let failure = ParkFailure {
        version: Version::new(8),
        fingerprint: Fingerprint::from_u128(1),
        attempts: 1,
        at: Timestamp::from_micros(7),
    };
    let row = stored(ParkRow::new(ParkId::from_u128(1), &failure));
    let rows = Loaded {
        parked: vec![(stream("a"), row, Some(Version::new(9)))],
        ..Loaded::default()
    };
    let mut driven = Driven::projector(policy().with_level(DeliveryLevel::Deduplicated));
    driven.join();
    let _ = driven.assign(0, 1);
    let letter = letter_of_a_writer_that_died();
    let effects = driven.begin_with(0, 1, rows);
    let _ = answer_rows(&mut driven, effects, &letter);
    let effects = driven.deliver(0, 0, "a", 9);
    let started = answer_rows(&mut driven, effects, &letter);
    assert_eq!(started.iter().map(known).collect::<Vec<_>>(), [Some(9)]);
}

/// Redrives the letter of version 1 in a partition that begins at its record. Returns the attempt
/// at the record, which comes again.
fn redriven_before_its_record(letter: &DeadLetter) -> Arc<Work> {
    let key = LetterKey::event(stream("a"), Version::new(1));
    let ask = AskRow {
        letter: letter.head.id,
        what: AskKind::Redrive,
        by: "ann".into(),
        job: None,
        at: Timestamp::from_micros(7),
    };
    let rows = Loaded {
        letters: vec![(key.clone(), letter.head.is_given_up)],
        asks: vec![(key, stored(ask))],
        ..Loaded::default()
    };
    let mut driven = Driven::projector(policy());
    driven.join();
    let _ = driven.assign(0, 1);
    let effects = driven.begin_with(0, 1, rows);
    let started = answer_rows(&mut driven, effects, letter);
    assert_eq!(started.len(), 1, "the request is served");
    let attempt = driven.attempt_at("a").unwrap();
    let _ = driven.end(attempt, Outcome::Done);
    let _ = driven.pass(SECOND);
    let effects = driven.deliver(0, 0, "a", 1);
    let mut started = answer_rows(&mut driven, effects, letter);
    assert_eq!(started.len(), 1);
    started.remove(0)
}

#[test]
fn an_event_that_was_redriven_before_its_record_came_is_known_as_handled() {
    let work = redriven_before_its_record(&letter_of_a_writer_that_died());
    assert_eq!((known(&work), &work.skip[..]), (Some(1), &[][..]));
}

#[test]
fn a_given_up_event_that_was_redriven_before_its_record_came_is_passed_over() {
    // What lies below it may not be durable, so that it tells no position.
    let letter = letter_of_a_writer_that_died().given_up();
    let work = redriven_before_its_record(&letter);
    assert_eq!(
        (known(&work), &work.skip[..]),
        (None, &[Version::new(1)][..])
    );
}
