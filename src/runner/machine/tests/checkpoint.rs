//! The checkpoint: its order, and what leaves it with a partition.
use super::{
    super::{
        Effect, Input, Outcome, Setback,
        testing::{partition, record},
    },
    driven::{Driven, SECOND, away, commits, flushes, has, policy, starts},
};
use crate::{
    ports::AssignmentEpoch,
    runner::{DeliveryLevel, HandlerError},
};

/// Returns the streams and versions of the positions that are to be stored.
fn stored(effects: &[Effect]) -> Vec<(String, u64)> {
    let positions = effects.iter().filter_map(|effect| match effect {
        Effect::StorePositions(positions) => Some(positions),
        _ => None,
    });
    let positions = positions.flatten();
    positions
        .map(|p| (p.stream.id().to_owned(), p.version.get()))
        .collect()
}

fn forgets(effects: &[Effect]) -> Vec<String> {
    let streams = effects.iter().filter_map(|effect| match effect {
        Effect::Forget(streams) => Some(streams),
        _ => None,
    });
    streams
        .flatten()
        .map(|stream| stream.id().to_owned())
        .collect()
}

/// A projector at the level Deduplicated, in the middle of a flush, with one event done in each of
/// two partitions.
fn flushing() -> Driven {
    let policy = policy().with_level(DeliveryLevel::Deduplicated);
    let mut driven = Driven::serving(policy.with_commit_interval(SECOND), &[0, 1]);
    for (number, id) in [(0, "kept"), (1, "gone")] {
        let _ = driven.deliver(number, 0, id, 1);
        let _ = driven.finish(id);
    }
    assert!(flushes(&driven.pass(2 * SECOND)));
    driven
}

#[test]
fn an_offset_is_committed_only_after_the_positions_before_it_are_stored() {
    let mut driven = flushing();
    // This is done during the flush, and need not be durable after it.
    let _ = driven.deliver(0, 1, "kept", 2);
    let _ = driven.finish("kept");
    let effects = driven.on(Input::Flushed(Ok(())));
    let both = [("gone".to_owned(), 1), ("kept".to_owned(), 1)];
    assert_eq!((stored(&effects), commits(&effects)), (both.into(), vec![]));
    // A store that is away is asked again, and the offset waits.
    let setback = Setback::Wait("away".into());
    let mut effects = driven.on(Input::PositionsStored(Err(setback)));
    assert_eq!(commits(&effects), []);
    effects.extend(driven.pass(2 * SECOND));
    assert!(flushes(&effects));
    let effects = driven.on(Input::Flushed(Ok(())));
    let both = [("gone".to_owned(), 1), ("kept".to_owned(), 2)];
    assert_eq!((stored(&effects), commits(&effects)), (both.into(), vec![]));
    let effects = driven.on(Input::PositionsStored(Ok(())));
    assert_eq!(commits(&effects), [(partition(0), 2), (partition(1), 1)]);
}

#[test]
fn the_streams_of_lost_partitions_leave_the_checkpoint_before_positions_and_commit() {
    let mut driven = flushing();
    let _ = driven.lose(1);
    let effects = driven.on(Input::Flushed(Ok(())));
    assert_eq!(stored(&effects), [("kept".to_owned(), 1)]);
    // The second partition goes as well, after the positions were sent.
    let _ = driven.deliver(0, 1, "kept", 2);
    let _ = driven.lose(0);
    let effects = driven.on(Input::PositionsStored(Ok(())));
    assert_eq!(commits(&effects), []);
}

#[test]
fn the_streams_of_a_partition_leave_the_checkpoint_when_its_grace_is_over() {
    let mut driven = flushing();
    let _ = driven.revoke(1, SECOND);
    let effects = driven.pass(SECOND);
    assert!(has(&effects, |e| matches!(e, Effect::Release(_))));
    let effects = driven.on(Input::Flushed(Ok(())));
    assert_eq!(stored(&effects), [("kept".to_owned(), 1)]);
    let effects = driven.on(Input::PositionsStored(Ok(())));
    assert_eq!(commits(&effects), [(partition(0), 1)]);
}

#[test]
fn what_is_buffered_of_a_lost_partition_is_forgotten_after_the_flush_that_runs() {
    let mut driven = flushing();
    let mut effects = driven.lose(1);
    effects.extend(driven.assign(1, 2));
    effects.extend(driven.begin(1, 2));
    effects.extend(driven.deliver_under(2, record(1, 0, "gone", 1)));
    effects.extend(driven.pass(10 * SECOND));
    assert_eq!((forgets(&effects), starts(&effects)), (vec![], vec![]));
    let mut effects = driven.on(Input::Flushed(Ok(())));
    effects.extend(driven.on(Input::PositionsStored(Ok(()))));
    effects.extend(driven.on(Input::Committed(Ok(()))));
    assert_eq!(
        (forgets(&effects), starts(&effects)),
        (vec!["gone".into()], vec![])
    );
    // Nothing is flushed before it is forgotten, and the stream is not projected either.
    let effects = driven.pass(10 * SECOND);
    assert!(!flushes(&effects) && starts(&effects).is_empty());
    assert_eq!(starts(&driven.on(Input::Forgotten(Ok(())))), ["gone"]);
}

#[test]
fn a_flush_has_all_its_retries_once_what_could_not_be_flushed_is_gone() {
    for is_lost in [true, false] {
        let mut driven = Driven::serving(policy().with_commit_interval(SECOND), &[0]);
        let _ = driven.deliver(0, 0, "a", 1);
        let _ = driven.finish("a");
        assert!(flushes(&driven.pass(2 * SECOND)));
        let away = || Input::Flushed(Err(HandlerError::transient("away")));
        let _ = driven.on(away());
        if is_lost {
            // The first retry has begun at once.
            let mut again = driven.lose(0);
            again.extend(driven.on(away()));
            assert_eq!(forgets(&again), ["a"]);
            again.extend(driven.on(Input::Forgotten(Ok(()))));
            again.extend(driven.assign(0, 2));
            again.extend(driven.begin(0, 2));
            let _ = driven.settle(again);
            // Longer than a flush is tried again.
            let _ = driven.pass(3_600 * SECOND);
            let _ = driven.deliver_under(2, record(0, 0, "a", 1));
            let _ = driven.finish("a");
        }
        assert_eq!(flushes(&driven.pass(3_600 * SECOND)), is_lost);
        let mut effects = driven.on(away());
        effects.extend(driven.pass(60 * SECOND));
        let has_halted = has(&effects, |e| matches!(e, Effect::Leave));
        assert_eq!(has_halted, !is_lost, "{effects:?}");
    }
}

#[test]
fn what_a_cancelled_attempt_may_have_buffered_is_forgotten_once_it_has_ended() {
    let mut driven = Driven::serving(policy(), &[0]);
    let _ = driven.deliver(0, 0, "gone", 1);
    let _ = driven.finish("gone");
    let _ = driven.deliver(0, 1, "gone", 2);
    let mut effects = driven.lose(0);
    let cancelled = driven.attempt_at("gone").unwrap();
    effects.extend(driven.pass(SECOND / 2));
    assert_eq!(forgets(&effects), [""; 0]);
    let effects = driven.end(cancelled, Outcome::Cancelled);
    assert_eq!(forgets(&effects), ["gone"]);
}

#[test]
fn commits_succeed_again_after_the_broker_has_restarted() {
    let mut driven = Driven::serving(policy(), &[0]);
    let _ = driven.deliver(0, 0, "a", 1);
    let mut effects = driven.finish("a");
    // An outage of ten minutes. Records come and go on meanwhile, as far as the window allows.
    let restarted = driven.now + 600 * SECOND;
    let mut commits_sent = 0;
    while driven.now < restarted {
        effects = if flushes(&effects) {
            driven.on(Input::Flushed(Ok(())))
        } else if !commits(&effects).is_empty() {
            commits_sent += 1;
            driven.on(Input::Committed(Err(away())))
        } else {
            driven.pass(SECOND)
        };
    }
    assert!(commits_sent > 10, "{commits_sent}");
    let failing = driven.machine.snapshot(driven.now).failing;
    assert_eq!(failing.len(), 1, "{failing:?}");
    let mut committed = Vec::new();
    for _ in 0..60 {
        effects = if flushes(&effects) {
            driven.on(Input::Flushed(Ok(())))
        } else if !commits(&effects).is_empty() {
            committed.extend(commits(&effects));
            driven.on(Input::Committed(Ok(())))
        } else {
            driven.pass(SECOND)
        };
    }
    assert_eq!(committed, [(partition(0), 1)]);
    assert!(driven.machine.snapshot(driven.now).failing.is_empty());
}

#[test]
fn a_hole_at_the_end_is_committed_once_all_before_it_is_done() {
    let mut driven = Driven::serving(policy(), &[0]);
    let _ = driven.deliver(0, 0, "a", 1);
    let reached = Input::Reached(
        partition(0),
        AssignmentEpoch::new(1),
        crate::ports::Offset::new(5),
    );
    let mut effects = driven.on(reached);
    effects.extend(driven.pass(5 * SECOND));
    assert!(!flushes(&effects), "the record before the hole is not done");
    let mut effects = driven.finish("a");
    effects.extend(driven.pass(2 * SECOND));
    assert!(flushes(&effects));
    let effects = driven.on(Input::Flushed(Ok(())));
    assert_eq!(commits(&effects), [(partition(0), 5)]);
}
