use super::*;
use crate::{
    Timestamp, Version,
    control::{Fingerprint, JobId, ParkFailure, ParkId, ParkNotes, Request},
};

const ME: &str = "me";

fn failure(version: u64) -> ParkFailure {
    ParkFailure {
        version: Version::new(version),
        fingerprint: Fingerprint::from_u128(version.into()),
        attempts: 3,
        at: Timestamp::from_micros(7),
    }
}
fn parked(from: u64, high: u64) -> ParkRow {
    ParkRow::new(ParkId::from_u128(1), &failure(from)).deferred_to(Version::new(high))
}
fn asked(from: u64, high: u64, by: &str) -> ParkRow {
    let by = by.into();
    let request = Request {
        by,
        job: None,
        upto: None,
    };
    parked(from, high).requested(request).unwrap()
}
fn redriving(from: u64, high: u64, owner: &str) -> ParkRow {
    asked(from, high, "ann").claimed(owner).unwrap()
}
fn merged(wanted: &ParkRow, theirs: &ParkRow) -> ParkRow {
    merge(wanted, theirs, ME).expect("it is mine")
}

#[test]
fn the_owner_keeps_its_own_from_and_the_others_high() {
    let row = merged(&redriving(5, 9, ME), &redriving(2, 12, ME));
    assert_eq!(row, redriving(5, 12, ME).advanced(Version::new(5)));
    // Another owner has come further, and has flushed what lies below.
    let row = merged(&redriving(5, 9, ME), &redriving(7, 8, ME));
    assert_eq!((row.from.get(), row.high.get()), (7, 9));
}

#[test]
fn a_newer_request_is_never_overwritten() {
    for wanted in [redriving(5, 9, ME), redriving(2, 9, ME).failed(&failure(5))] {
        let row = merged(&wanted, &asked(2, 9, "bob"));
        assert_eq!(row.state, asked(2, 9, "bob").state);
        assert_eq!(row.from, Version::new(5));
    }
}

#[test]
fn a_row_that_names_another_owner_is_left_to_it() {
    for wanted in [redriving(5, 9, ME), redriving(2, 9, ME).failed(&failure(5))] {
        assert_eq!(merge(&wanted, &redriving(2, 9, "other"), ME), None);
    }
}

#[test]
fn a_stream_that_was_parked_again_meanwhile_is_another_parking() {
    let mut theirs = parked(2, 9);
    theirs.id = ParkId::from_u128(2);
    assert_eq!(merge(&redriving(5, 9, ME), &theirs, ME), None);
}

#[test]
fn the_failure_in_the_row_is_the_one_at_its_from() {
    let mine = redriving(2, 9, ME).failed(&failure(5));
    assert_eq!(
        merged(&mine, &parked(7, 9)).fingerprint,
        failure(7).fingerprint
    );
    assert_eq!(
        merged(&mine, &parked(2, 9)).fingerprint,
        failure(5).fingerprint
    );
}

#[test]
fn a_request_of_a_job_that_was_passed_is_no_longer_its() {
    let job = Some(JobId::from_u128(5));
    let by = "ann".into();
    let request = Request {
        by,
        job,
        upto: Some(Version::new(4)),
    };
    let theirs = parked(2, 9).requested(request).unwrap();
    let row = merged(&redriving(5, 9, ME), &theirs);
    assert_eq!(row.request().map(|request| request.job), Some(None));
}

#[test]
fn a_failure_below_from_of_a_stream_that_only_waits_for_its_lane_counts() {
    let waits = parked(5, 6).stopped();
    let failed = waits.claimed_for_discard(ME, "ann").failed(&failure(4));
    // An operator has asked meanwhile.
    let request = Request {
        by: "bob".into(),
        job: None,
        upto: None,
    };
    let row = merged(&failed, &waits.requested(request).unwrap());
    assert_eq!((row.from.get(), row.is_follower), (4, false));
    assert_eq!(row.fingerprint, failed.fingerprint);
    // Of two that only wait, the higher one counts.
    let row = merged(&parked(7, 9).stopped(), &waits);
    assert_eq!((row.from.get(), row.is_follower), (7, true));
}

#[test]
fn the_records_that_wait_are_stored_if_both_writes_say_so() {
    let stored = parked(2, 4).noting(ParkNotes {
        has_records: true,
        is_late: false,
    });
    let raised = stored.deferred_to_history(Version::new(5));
    for (wanted, theirs, has_records) in [
        (&stored, &stored, true),
        (&raised, &stored, false),
        (&stored, &raised, false),
    ] {
        let merged = merge(wanted, theirs, "me").unwrap();
        assert_eq!(merged.has_records, has_records);
    }
}
