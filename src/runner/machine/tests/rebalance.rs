//! Partitions that come and go do not hold up each other, nor a revocation its group.
use super::{
    super::{
        Effect, Input, Outcome,
        testing::{partition, record},
    },
    driven::{Driven, SECOND, away, commits, flushes, has, policy, releases, starts},
};
use crate::ports::MessageBusError;
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(10);

#[test]
fn a_partition_that_starts_holds_up_no_other() {
    let mut driven = Driven::serving(policy(), &[0]);
    let effects = driven.assign(1, 1);
    assert!(has(&effects, |e| matches!(e, Effect::Begin(_))));
    // Its start is not durable for an hour.
    let _ = driven.pass(3_600 * SECOND);
    assert_eq!(starts(&driven.deliver(1, 0, "waits", 1)), [""; 0]);
    assert_eq!(starts(&driven.deliver(0, 0, "goes", 1)), ["goes"]);
    let mut effects = driven.finish("goes");
    effects.extend(driven.pass(2 * SECOND));
    assert!(flushes(&effects));
    let effects = driven.on(Input::Flushed(Ok(())));
    assert_eq!(commits(&effects), [(partition(0), 1)]);
    assert_eq!(starts(&driven.begin(1, 1)), ["waits"]);
}

#[test]
fn a_partition_that_leaves_holds_up_no_other() {
    let mut driven = Driven::serving(policy(), &[0, 1]);
    let _ = driven.deliver(1, 0, "drains", 1);
    let _ = driven.revoke(1, GRACE);
    // What runs of it is waited for, and nothing of it is begun.
    assert_eq!(starts(&driven.deliver(1, 1, "late", 1)), [""; 0]);
    assert_eq!(starts(&driven.deliver(0, 0, "goes", 1)), ["goes"]);
    let mut effects = driven.finish("goes");
    effects.extend(driven.pass(2 * SECOND));
    assert!(flushes(&effects));
    let effects = driven.on(Input::Flushed(Ok(())));
    assert_eq!(commits(&effects), [(partition(0), 1)]);
    let effects = driven.on(Input::Committed(Ok(())));
    assert!(!releases(&effects));
    // What was done of the partition is committed before the group gets it.
    let effects = driven.finish("drains");
    assert!(flushes(&effects) && !releases(&effects));
    let effects = driven.on(Input::Flushed(Ok(())));
    assert_eq!(commits(&effects), [(partition(1), 1)]);
    assert!(releases(&driven.on(Input::Committed(Ok(())))));
}

/// Drives a machine whose commits never succeed until it releases the revocation, and returns the
/// time that this took.
fn released_after(driven: &mut Driven, mut effects: Vec<Effect>, answers: bool) -> Duration {
    let began = driven.now;
    for _ in 0..10_000 {
        if releases(&effects) {
            return driven.now - began;
        }
        effects = if flushes(&effects) {
            driven.on(Input::Flushed(Ok(())))
        } else if !commits(&effects).is_empty() && answers {
            driven.on(Input::Committed(Err(away())))
        } else {
            driven.pass(SECOND / 10)
        };
    }
    panic!("the revocation is never released");
}

#[test]
fn a_commit_that_can_never_succeed_holds_a_revocation_no_longer_than_its_grace() {
    for is_ending in [false, true] {
        for answers in [true, false] {
            let mut driven = Driven::serving(policy(), &[0, 1]);
            let _ = driven.deliver(0, 0, "a", 1);
            let _ = driven.deliver(1, 0, "b", 1);
            let _ = driven.finish("a");
            let mut effects = Vec::new();
            if is_ending {
                let by = driven.now + 25 * SECOND;
                effects.extend(driven.on(Input::Stop(by)));
            }
            effects.extend(driven.revoke(0, GRACE));
            let took = released_after(&mut driven, effects, answers);
            assert_eq!(took, GRACE, "ending: {is_ending}, answers: {answers}");
            let _ = driven.finish("b");
            assert!(driven.started.is_empty());
        }
    }
}

#[test]
fn partitions_that_are_lost_during_a_revocation_are_not_committed() {
    let mut driven = Driven::serving(policy(), &[0, 1]);
    for (number, id) in [(0, "kept"), (1, "done"), (1, "runs")] {
        let offset = u64::from(id == "runs");
        let _ = driven.deliver(number, offset, id, 1);
    }
    let mut effects = driven.finish("done");
    effects.extend(driven.finish("kept"));
    effects.extend(driven.revoke(1, GRACE));
    let lost = driven.lose(1);
    assert!(has(&lost, |e| matches!(e, Effect::Cancel(_))));
    assert!(releases(&lost), "nothing of the revocation is left");
    effects.extend(lost);
    effects.extend(driven.finish("runs"));
    effects = driven.settle(effects);
    let later = driven.pass(20 * SECOND);
    effects.extend(driven.settle(later));
    assert_eq!(commits(&effects), [(partition(0), 1)]);
}

#[test]
fn a_partition_that_is_lost_while_it_is_committed_voids_no_other() {
    let mut driven = Driven::serving(policy(), &[0, 1]);
    for (number, id) in [(0, "kept"), (1, "gone")] {
        let _ = driven.deliver(number, 0, id, 1);
        let _ = driven.finish(id);
    }
    let _ = driven.pass(2 * SECOND);
    let effects = driven.on(Input::Flushed(Ok(())));
    assert_eq!(commits(&effects).len(), 2);
    // The bus knows before the consumer tells.
    let stale = MessageBusError::StaleAssignment {
        partition: partition(1),
    };
    let effects = driven.on(Input::Committed(Err(stale)));
    assert_eq!(commits(&effects), [(partition(0), 1)]);
}

#[test]
fn a_handler_that_blocks_is_waited_for_one_second_after_its_cancellation() {
    let mut driven = Driven::serving(policy().with_drain(2 * SECOND), &[0, 1]);
    let _ = driven.deliver(1, 0, "blocks", 1);
    let _ = driven.revoke(1, 30 * SECOND);
    let effects = driven.pass(2 * SECOND);
    assert!(has(&effects, |e| matches!(e, Effect::Cancel(_))));
    assert!(!releases(&effects));
    assert_eq!(driven.machine.counts().abandoned, 0);
    // Its partition is given up long before the group insists, and that is told.
    let effects = driven.pass(SECOND);
    assert!(has(&effects, |e| matches!(e, Effect::Abandon(_))));
    assert!(releases(&effects));
    assert_eq!(driven.machine.counts().abandoned, 1);
    // Its stream is not handled beside it when the partition comes back.
    let _ = driven.assign(1, 2);
    let _ = driven.begin(1, 2);
    assert_eq!(
        starts(&driven.deliver_under(2, record(1, 0, "blocks", 1))),
        [""; 0]
    );
    assert_eq!(
        starts(&driven.deliver_under(2, record(1, 1, "other", 1))),
        ["other"]
    );
    let blocked = driven.attempt_at("blocks").unwrap();
    let mut effects = driven.end(blocked, Outcome::Cancelled);
    // The effects that it may have buffered are dropped first.
    assert!(has(&effects, |e| matches!(e, Effect::Forget(_))));
    effects.extend(driven.on(Input::Forgotten(Ok(()))));
    assert_eq!(starts(&effects), ["blocks"]);
}

#[test]
fn a_handler_that_blocks_does_not_hold_up_a_shutdown() {
    let mut driven = Driven::serving(policy().with_drain(2 * SECOND), &[0]);
    let _ = driven.deliver(0, 0, "blocks", 1);
    let by = driven.now + 25 * SECOND;
    let _ = driven.on(Input::Stop(by));
    let effects = driven.pass(2 * SECOND);
    assert!(has(&effects, |e| matches!(e, Effect::Cancel(_))));
    assert!(!has(&effects, |e| matches!(e, Effect::Leave)));
    let effects = driven.pass(SECOND);
    assert!(has(&effects, |e| matches!(e, Effect::Leave)));
    let effects = driven.on(Input::Left);
    assert!(has(&effects, |e| matches!(e, Effect::End(Ok(())))));
    assert_eq!(driven.machine.counts().abandoned, 1);
}
