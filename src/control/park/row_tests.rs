use super::*;

pub(crate) fn failure(version: u64) -> ParkFailure {
    ParkFailure {
        version: Version::new(version),
        fingerprint: Fingerprint::from_u128(version.into()),
        attempts: 3,
        at: Timestamp::from_micros(7),
    }
}
fn row(from: u64, high: u64) -> ParkRow {
    ParkRow::new(ParkId::from_u128(1), &failure(from)).deferred_to(Version::new(high))
}
fn request(job: Option<u128>, upto: Option<u64>) -> Request {
    Request {
        by: "ann".into(),
        job: job.map(JobId::from_u128),
        upto: upto.map(Version::new),
    }
}
fn requested(from: u64, high: u64, upto: Option<u64>) -> ParkRow {
    let request = request(upto.map(|_| 5), upto);
    row(from, high).requested(request).unwrap()
}

#[test]
fn the_stored_form_of_a_park_row_is_fixed() {
    let id = |n: u128| format!("{n:032x}");
    let parked = format!(
        r#"{{"i":"{}","f":2,"h":4,"s":"parked","p":"{}","n":3,"t":7}}"#,
        id(1),
        id(2)
    );
    assert_eq!(serde_json::to_string(&row(2, 4)).unwrap(), parked);
    let asked = requested(2, 4, Some(3));
    let text = parked.replace(
        r#""s":"parked""#,
        &format!(r#""s":"requested","b":"ann","j":"{}","u":3"#, id(5)),
    );
    assert_eq!(serde_json::to_string(&asked).unwrap(), text);
    let text = text.replace(r#""s":"requested""#, r#""s":"redriving","o":"host-1""#);
    let claimed = asked.claimed("host-1").unwrap();
    assert_eq!(serde_json::to_string(&claimed).unwrap(), text);
    let text = parked.replace('}', &format!(r#","l":"{}"}}"#, id(5)));
    let failed = claimed.failed(&failure(2));
    assert_eq!(serde_json::to_string(&failed).unwrap(), text);
    for row in [row(2, 4), asked, claimed, failed] {
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(serde_json::from_str::<ParkRow>(&text).unwrap(), row);
    }
}

#[test]
fn fields_of_a_newer_build_survive_every_step_and_its_states_are_refused() {
    let text = serde_json::to_string(&row(2, 4)).unwrap();
    let newer = text.replace('}', r#","zz":{"a":[1]}}"#);
    let read: ParkRow = serde_json::from_str(&newer).unwrap();
    let asked = read.requested(request(None, None)).unwrap();
    for row in [
        read.deferred_to(Version::new(9)),
        asked.claimed("a").unwrap(),
        asked.advanced(Version::new(3)),
        asked.failed(&failure(3)),
        read.claimed_for_discard("a", "ann"),
    ] {
        let text = serde_json::to_string(&row).unwrap();
        assert!(text.contains(r#""zz":{"a":[1]}"#), "{text}");
    }
    for odd in [
        text.replace("parked", "frozen"),
        text.replace("parked", "requested"),
        text.replace(r#""parked""#, r#""redriving","b":"ann""#),
    ] {
        assert!(serde_json::from_str::<ParkRow>(&odd).is_err(), "{odd}");
    }
}

#[test]
fn a_redrive_goes_on_page_by_page_and_ends_a_page_where_the_selection_of_its_job_ends() {
    let range = |row: &ParkRow, page| row.next_range(page).map(|(a, b)| (a.get(), b.get()));
    assert_eq!(range(&requested(2, 500, None), 100), Some((2, 101)));
    assert_eq!(range(&requested(2, 50, None), 100), Some((2, 50)));
    assert_eq!(range(&requested(2, 50, Some(7)), 100), Some((2, 7)));
    assert_eq!(range(&requested(2, 50, Some(7)), 3), Some((2, 4)));
    // A selection that is passed already does not end the redrive.
    assert_eq!(range(&requested(8, 50, Some(7)), 100), Some((8, 50)));
    assert_eq!(range(&row(5, 5).advanced(Version::new(6)), 100), None);
    assert_eq!(
        range(&row(u64::MAX, u64::MAX), 100),
        Some((u64::MAX, u64::MAX))
    );
}

#[test]
fn what_lies_above_the_selection_of_a_job_is_not_redriven_on_its_behalf() {
    let claimed = requested(2, 9, Some(4)).claimed("a").unwrap();
    let within = claimed.advanced(Version::new(4));
    assert_eq!(within.request(), Some(&request(Some(5), Some(4))));
    let follows = within.advanced(Version::new(5));
    assert_eq!(follows.request(), Some(&request(None, None)));
    assert!(follows.wants_redrive());
    // A failure up there is none of the job.
    assert_eq!(follows.failed(&failure(7)).last_job, None);
    assert_eq!(
        within.failed(&failure(4)).last_job,
        Some(JobId::from_u128(5))
    );
}

#[test]
fn a_failure_that_follows_an_operators_redrive_leaves_the_job_that_has_asked_before() {
    let job = requested(2, 9, Some(4))
        .claimed("a")
        .unwrap()
        .failed(&failure(2));
    let by_hand = job.requested(request(None, None)).unwrap();
    let failed = by_hand.claimed("a").unwrap().failed(&failure(3));
    assert_eq!(failed.last_job, Some(JobId::from_u128(5)));
}

#[test]
fn from_never_moves_down_and_high_only_up() {
    assert_eq!(row(5, 9).advanced(Version::new(3)).from, Version::new(5));
    assert_eq!(row(5, 9).failed(&failure(3)).from, Version::new(5));
    assert_eq!(row(5, 9).deferred_to(Version::new(7)).high, Version::new(9));
    assert_eq!(
        row(5, 9).deferred_to(Version::new(11)).high,
        Version::new(11)
    );
    // A redrive may fail at a version that was never deferred: the history goes on.
    assert_eq!(row(5, 5).failed(&failure(6)).high, Version::new(6));
}

#[test]
fn a_version_below_from_is_a_duplicate_and_one_up_to_high_waits() {
    let row = row(5, 9);
    let at = |version| {
        (
            row.is_duplicate(Version::new(version)),
            row.covers(Version::new(version)),
        )
    };
    assert_eq!(at(4), (true, false));
    assert_eq!(at(5), (false, true));
    assert_eq!(at(9), (false, true));
    assert_eq!(at(10), (false, false));
    assert!(!row.is_drained() && row.advanced(Version::new(10)).is_drained());
}

#[test]
fn a_row_is_stale_only_by_what_is_known_to_be_done() {
    let row = row(5, 9);
    for (progress, expected) in [
        (None, false),
        (Some(8), false),
        (Some(9), true),
        (Some(10), true),
    ] {
        assert_eq!(
            row.is_stale(progress.map(Version::new)),
            expected,
            "{progress:?}"
        );
    }
}

#[test]
fn a_request_is_taken_only_where_the_stream_waits_and_taken_back_only_by_its_own_job() {
    let (mine, other) = (JobId::from_u128(5), JobId::from_u128(6));
    let asked = requested(2, 9, Some(4));
    assert_eq!(asked.requested(request(None, None)), None);
    assert_eq!(asked.without_request_of(other), None);
    assert_eq!(asked.without_request_of(mine), Some(row(2, 9)));
    // What an owner has begun it ends.
    assert_eq!(asked.claimed("a").unwrap().without_request_of(mine), None);
    assert_eq!(requested(2, 9, None).without_request_of(mine), None);
}

#[test]
fn an_owner_goes_on_with_the_redrive_of_any_other_under_its_own_name() {
    let theirs = requested(2, 9, None).claimed("dead").unwrap();
    let ParkState::Redriving { owner, .. } = theirs.claimed("me").unwrap().state else {
        panic!("it is being redriven");
    };
    assert_eq!(owner, "me");
    assert_eq!(row(2, 9).claimed("me"), None);
    // A discard of the version at `from` goes on as a redrive although nobody has asked for one.
    let after = row(2, 9).claimed_for_discard("me", "ann");
    assert_eq!(after.request().map(|request| &*request.by), Some("ann"));
}

#[test]
fn a_follower_of_its_lane_has_a_stored_form_and_is_one_until_its_first_move() {
    let followed = Followed {
        from: Version::new(5),
        high: Version::new(6),
        fingerprint: Fingerprint::from_u128(2),
        at: Timestamp::from_micros(7),
        notes: ParkNotes::default(),
    };
    let row = ParkRow::following(ParkId::from_u128(1), &followed);
    let id = |n: u128| format!("{n:032x}");
    let text = format!(
        r#"{{"i":"{}","f":5,"h":6,"s":"parked","p":"{}","n":0,"t":7,"w":true}}"#,
        id(1),
        id(2)
    );
    assert_eq!(serde_json::to_string(&row).unwrap(), text);
    assert_eq!(serde_json::from_str::<ParkRow>(&text).unwrap(), row);
    // Nobody has looked for a gap before it: a failure there moves `from` back.
    let failed = row.failed(&failure(4));
    assert_eq!((failed.from, failed.is_follower), (Version::new(4), false));
    let moved = row.advanced(Version::new(6));
    assert_eq!((moved.from, moved.is_follower), (Version::new(6), false));
    assert!(row.advanced(Version::new(5)).is_follower);
    assert!(row.deferred_to(Version::new(9)).is_follower);
    // It waits again if another stream of its lane fails.
    let request = request(Some(3), Some(6));
    let stopped = moved.claimed_for_discard("host-1", "ann").stopped();
    assert_eq!(stopped.state, ParkState::Parked);
    assert!(stopped.is_follower);
    let stopped = moved.requested(request).unwrap().stopped();
    assert_eq!(stopped.last_job, Some(JobId::from_u128(3)));
}

#[test]
fn a_row_says_whether_the_records_that_wait_are_stored_until_one_is_not() {
    let notes = ParkNotes {
        has_records: true,
        is_late: false,
    };
    let stored = row(2, 4).noting(notes);
    let text = serde_json::to_string(&row(2, 4)).unwrap();
    let text = text.replace('}', r#","d":true}"#);
    assert_eq!(serde_json::to_string(&stored).unwrap(), text);
    assert_eq!(serde_json::from_str::<ParkRow>(&text).unwrap(), stored);
    let version = Version::new;
    for (row, has_records) in [
        (stored.deferred_to(version(9)), true),
        (stored.advanced(version(3)), true),
        (stored.failed(&failure(3)), true),
        (stored.stopped(), true),
        (stored.deferred_to_history(version(4)), true),
        (stored.deferred_to_history(version(5)), false),
        (row(2, 4).deferred_to(version(5)), false),
    ] {
        assert_eq!(row.has_records, has_records, "{row:?}");
    }
}

#[test]
fn a_row_of_late_events_is_never_stale_by_the_position_in_its_stream() {
    let late = row(1, 2).noting(ParkNotes {
        has_records: false,
        is_late: true,
    });
    let text = serde_json::to_string(&row(1, 2)).unwrap();
    let text = text.replace('}', r#","y":true}"#);
    assert_eq!(serde_json::to_string(&late).unwrap(), text);
    assert_eq!(serde_json::from_str::<ParkRow>(&text).unwrap(), late);
    assert!(row(1, 2).is_stale(Some(Version::new(3))));
    let again = late.advanced(Version::new(2)).failed(&failure(2));
    for row in [late, again] {
        assert!(!row.is_stale(Some(Version::new(3))));
    }
}
