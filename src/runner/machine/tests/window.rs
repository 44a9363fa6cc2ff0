//! The window bounds what is not committed.
use super::{
    super::{
        Input,
        testing::{partition, record},
    },
    driven::{Driven, SECOND, away, commits, flushes, pauses, policy},
};
use crate::runner::ProcessorPolicy;
use std::time::Duration;

/// Room for ten records of 100 bytes, by each of the bounds.
fn bounds() -> [(&'static str, ProcessorPolicy); 3] {
    let large = 1 << 30;
    [
        ("records", policy().with_window(10, large)),
        ("bytes", policy().with_window(1_000_000, 1_000)),
        ("memory", policy().with_max_memory(1_000)),
    ]
}

#[test]
fn a_partition_is_paused_at_its_bound_and_resumed_once_half_of_it_is_committed() {
    for (bound, policy) in bounds() {
        let mut driven = Driven::serving(policy, &[0]);
        for n in 0..9 {
            let effects = driven.deliver(0, n, &n.to_string(), 1);
            assert_eq!(pauses(&effects), (vec![], vec![]), "{bound}: record {n}");
        }
        let effects = driven.deliver(0, 9, "9", 1);
        assert_eq!(pauses(&effects), (vec![0], vec![]), "{bound}");
        let _ = driven.on(Input::PauseChanged(Ok(())));
        // What is done counts until it is committed.
        let mut effects = Vec::new();
        for n in 0..4 {
            effects.extend(driven.finish(&n.to_string()));
        }
        effects = driven.settle(effects);
        let later = driven.pass(2 * SECOND);
        effects.extend(driven.settle(later));
        assert_eq!(commits(&effects).last(), Some(&(partition(0), 4)));
        assert_eq!(pauses(&effects), (vec![], vec![]), "{bound}: six are left");
        let mut effects = Vec::new();
        for n in 4..10 {
            effects.extend(driven.finish(&n.to_string()));
        }
        effects.extend(driven.pass(2 * SECOND));
        assert_eq!(pauses(&effects), (vec![], vec![]), "{bound}: six are left");
        let effects = driven.settle(effects);
        assert_eq!(pauses(&effects), (vec![], vec![0]), "{bound}");
    }
}

#[test]
fn a_quarter_of_the_bound_is_committed_without_waiting_for_the_interval() {
    for (bound, policy) in bounds() {
        let hour = Duration::from_secs(3_600);
        let mut driven = Driven::serving(policy.with_commit_interval(hour), &[0]);
        let mut effects = driven.pass(SECOND);
        // What is not done does not count.
        for n in 0..5 {
            effects.extend(driven.deliver(0, n, &n.to_string(), 1));
        }
        for n in 0..3 {
            assert!(!flushes(&effects), "{bound}: {n}");
            effects = driven.finish(&n.to_string());
        }
        assert!(flushes(&effects), "{bound}");
    }
}

#[test]
fn the_memory_of_a_processor_pauses_all_of_its_partitions() {
    let mut driven = Driven::serving(policy().with_max_memory(1_000), &[0, 1]);
    for n in 0..4 {
        let _ = driven.deliver(0, n, &format!("a{n}"), 1);
        let effects = driven.deliver(1, n, &format!("b{n}"), 1);
        assert_eq!(pauses(&effects), (vec![], vec![]));
    }
    let _ = driven.deliver(0, 4, "a4", 1);
    let effects = driven.deliver(1, 4, "b4", 1);
    assert_eq!(pauses(&effects), (vec![0, 1], vec![]));
}

#[test]
fn a_commit_that_fails_for_long_pauses_instead_of_taking_in_more() {
    let mut driven = Driven::serving(policy().with_window(10, 1 << 30), &[0]);
    for n in 0..10 {
        let _ = driven.deliver(0, n, &n.to_string(), 1);
        let _ = driven.finish(&n.to_string());
    }
    let mut effects = driven.on(Input::Flushed(Ok(())));
    let mut failed = 0;
    for _ in 0..600 {
        if !commits(&effects).is_empty() {
            failed += 1;
            effects = driven.on(Input::Committed(Err(away())));
        } else if flushes(&effects) {
            effects = driven.on(Input::Flushed(Ok(())));
            continue;
        } else {
            effects.clear();
        }
        effects.extend(driven.on(Input::PauseChanged(Ok(()))));
        assert!(pauses(&effects).1.is_empty(), "nothing is committed");
        effects.extend(driven.pass(SECOND));
    }
    // Ten minutes, with pauses that grow to ten seconds.
    assert!((40..150).contains(&failed), "{failed}");
    assert_eq!(driven.machine.snapshot(driven.now).held_records, 10);
}

#[test]
fn nothing_is_taken_in_between_the_last_record_that_has_room_and_the_pause() {
    for (bound, policy) in bounds() {
        let mut driven = Driven::serving(policy, &[0]);
        for n in 0..10 {
            assert!(driven.machine.receives() && !driven.machine.is_full());
            let input = Input::Delivered(record(0, n, &n.to_string(), 1));
            driven.machine.take(input, driven.now);
        }
        // The driver takes in what is there until the machine says so.
        assert!(driven.machine.is_full(), "{bound}");
        let effects = driven.on(Input::Timer);
        assert_eq!(pauses(&effects), (vec![0], vec![]), "{bound}");
        assert!(!driven.machine.receives(), "{bound}");
        let _ = driven.on(Input::PauseChanged(Ok(())));
        assert!(driven.machine.receives() && !driven.machine.is_full());
    }
}

#[test]
fn a_pause_without_an_answer_does_not_keep_rebalances_waiting() {
    let mut driven = Driven::serving(policy().with_window(1, 1 << 30), &[0]);
    let _ = driven.deliver(0, 0, "a", 1);
    assert!(!driven.machine.receives());
    let _ = driven.pass(SECOND);
    assert!(driven.machine.receives());
    let mut driven = Driven::serving(policy().with_window(1, 1 << 30), &[0]);
    let _ = driven.deliver(0, 0, "a", 1);
    let _ = driven.on(Input::PauseChanged(Err(away())));
    assert!(driven.machine.receives());
}

#[test]
fn a_partition_that_comes_back_full_is_paused_although_it_may_be_paused_still() {
    let mut driven = Driven::serving(policy().with_max_memory(1_000), &[0, 1]);
    for n in 0..10 {
        let _ = driven.deliver(1, n, &format!("b{n}"), 1);
    }
    let _ = driven.on(Input::PauseChanged(Ok(())));
    // The consumer may keep a pause for the next assignment, or may not.
    let _ = driven.lose(0);
    let mut effects = driven.assign(0, 2);
    effects.extend(driven.begin(0, 2));
    assert_eq!(pauses(&effects), (vec![0], vec![]));
}
