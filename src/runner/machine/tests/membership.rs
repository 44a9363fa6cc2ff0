//! Joining the group, and joining it again.
use super::{
    super::{Effect, Input, Setback, testing::partition},
    driven::{Driven, SECOND, has, policy, starts},
};
use crate::{ports::NoPosition, runner::streams::Progress};
use std::time::Duration;

/// Lets a partition have no start, and returns the time until the group is left and joined again.
fn rejoin(driven: &mut Driven, number: u32) -> Duration {
    let missing = Input::NoPosition(partition(number), NoPosition::Missing, false);
    let mut effects = driven.on(missing);
    let began = driven.now;
    while !has(&effects, |e| matches!(e, Effect::Leave)) {
        assert!(driven.now - began < 60 * SECOND, "the group is never left");
        let later = driven.pass(SECOND / 20);
        effects = driven.settle(later);
    }
    let took = driven.now - began;
    let effects = driven.on(Input::Left);
    assert!(has(&effects, |e| matches!(e, Effect::Join)), "{effects:?}");
    let _ = driven.on(Input::Joined("group".into(), None));
    took
}

#[test]
fn rejoining_backs_off_although_the_group_is_joined_and_partitions_begin() {
    let mut driven = Driven::projector(policy());
    driven.join();
    let mut pauses = Vec::new();
    for n in 0..20 {
        // Both partitions start well, and the second has lost its start a moment later.
        for number in [0, 1] {
            let _ = driven.assign(number, n + 1);
            let _ = driven.begin(number, n + 1);
        }
        pauses.push(rejoin(&mut driven, 1));
    }
    // The pauses are drawn from 0 to a bound, which grows to ten seconds.
    let late: Duration = pauses[10..].iter().sum();
    assert!(late >= 20 * SECOND, "{pauses:?}");
    assert!(
        pauses.iter().all(|pause| *pause <= 11 * SECOND),
        "{pauses:?}"
    );
}

/// Returns the time that three more memberships in a row take to begin.
fn next_three(driven: &mut Driven) -> Duration {
    (0..3).map(|_| rejoin(driven, 1)).sum()
}

/// A machine that has joined again and again.
fn worn() -> Driven {
    let mut driven = Driven::projector(policy());
    driven.join();
    for _ in 0..10 {
        let _ = rejoin(&mut driven, 1);
    }
    assert!(next_three(&mut driven) >= 4 * SECOND);
    driven
}

#[test]
fn progress_in_the_partition_without_a_start_ends_the_backing_off() {
    let mut driven = worn();
    let _ = driven.assign(1, 1);
    let _ = driven.begin(1, 1);
    let _ = driven.deliver(1, 0, "a", 1);
    let effects = driven.finish("a");
    let _ = driven.settle(effects);
    let effects = driven.pass(2 * SECOND);
    let _ = driven.settle(effects);
    assert!(next_three(&mut driven) < 2 * SECOND);
}

#[test]
fn a_membership_that_has_lasted_ends_the_backing_off() {
    let mut driven = worn();
    let _ = driven.pass(61 * SECOND);
    assert!(next_three(&mut driven) < 2 * SECOND);
}

#[test]
fn an_outage_at_the_start_is_waited_for_with_growing_pauses_and_is_visible() {
    let mut driven = Driven::projector(policy());
    let began = driven.now;
    let mut effects = driven.on(Input::Timer);
    let mut joins = 0;
    while driven.now - began < 600 * SECOND {
        if has(&effects, |e| matches!(e, Effect::Join)) {
            joins += 1;
            effects = driven.on(Input::NotJoined(Setback::Wait("away".into())));
        } else {
            effects = driven.pass(SECOND / 10);
        }
        assert!(!has(&effects, |e| matches!(e, Effect::End(_))));
        let failing = driven.machine.snapshot(driven.now).failing;
        assert_eq!(failing.len(), 1, "{failing:?}");
        assert_eq!(failing[0].since, began);
    }
    assert!((60..150).contains(&joins), "{joins}");
    while !has(&effects, |e| matches!(e, Effect::Join)) {
        effects = driven.pass(SECOND);
    }
    let _ = driven.on(Input::Joined("group".into(), None));
    assert!(driven.machine.snapshot(driven.now).failing.is_empty());
}

#[test]
fn the_other_partitions_go_on_until_the_group_is_left_for_one_without_a_start() {
    let mut driven = worn();
    let _ = driven.assign(0, 1);
    let _ = driven.begin(0, 1);
    let missing = || Input::NoPosition(partition(1), NoPosition::Missing, false);
    let effects = driven.on(missing());
    assert!(!has(&effects, |e| matches!(e, Effect::Leave)));
    assert_eq!(starts(&driven.deliver(0, 0, "goes", 1)), ["goes"]);
    // Another member gets the partition: there is nothing to join again for.
    let _ = driven.lose(1);
    let effects = driven.pass(30 * SECOND);
    assert!(!has(&effects, |e| matches!(e, Effect::Leave)));
    let mut effects = driven.on(missing());
    effects.extend(driven.pass(30 * SECOND));
    assert!(has(&effects, |e| matches!(e, Effect::Finish(_))));
}

#[test]
fn an_attempt_says_nothing_about_its_partition_once_the_group_was_joined_again() {
    let mut driven = Driven::projector(policy().with_drain(SECOND));
    driven.join_and_serve(&[0]);
    assert_eq!(starts(&driven.deliver(0, 0, "a", 1)), ["a"]);
    // It blocks its thread for longer than the membership lasts.
    let _ = rejoin(&mut driven, 1);
    // The epochs of the next membership may begin with 1 again, as those of Kafka do.
    let _ = driven.assign(0, 1);
    let _ = driven.begin(0, 1);
    assert!(starts(&driven.deliver(0, 0, "a", 1)).is_empty());
    // What it has buffered was dropped with its partition, so the event is handled again.
    let effects = driven.finish("a");
    let mut effects = driven.settle(effects);
    assert_eq!(starts(&effects), ["a"]);
    let again = driven.attempt_at("a").unwrap();
    assert_eq!(driven.started[&again].progress, Progress::Unknown);
    effects.extend(driven.pass(30 * SECOND));
    assert!(!has(&effects, |e| matches!(e, Effect::Commit(_))));
}
