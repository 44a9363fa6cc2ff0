//! Replays as operators see them.
use super::world::*;
use foldstream::{
    operate::{OperateError, Operator, Reason},
    replay::{CancelOutcome, RunId, RunState},
};

#[tokio::test(start_paused = true)]
async fn operators_list_watch_and_cancel_replays_and_the_audit_says_who() {
    let world = World::new(1);
    world.fill(4, 3).await;
    let operator = Operator::new(world.control.clone());
    let first = world.replay().with_operator("ann").start().await.unwrap();
    let first = first.wait().await.unwrap().run;
    let (status, counts) = operator.replay(first).await.unwrap();
    assert_eq!(
        (status.state, status.by.as_str()),
        (RunState::CatchUp, "ann")
    );
    let processor = &status.processors[0];
    assert_eq!(
        (processor.name.as_str(), processor.generation),
        ("accounts", 2)
    );
    assert!(!processor.serves);
    assert_eq!((counts.events, counts.commits, counts.streams), (24, 12, 4));
    assert_eq!(counts.segments_done, status.segments);

    let reason = Reason::new("bob", "the wrong projector").unwrap();
    let outcome = operator.cancel_replay(first, &reason).await.unwrap();
    assert_eq!(outcome, CancelOutcome::Cancelled);
    assert_eq!(world.proc().await["st"], "live");
    let second = to_the_end(world.replay()).await.unwrap().run;
    let page = operator.replays(None).await.unwrap();
    let listed: Vec<_> = page.replays.iter().map(|of| (of.run, of.state)).collect();
    let expected = [(second, RunState::CatchUp), (first, RunState::Cancelled)];
    assert_eq!(listed, expected, "the newest first");
    assert_eq!(page.next, None);

    let today = foldstream::Clock::now(&foldstream::SystemClock);
    let audit = operator.audit(today, None).await.unwrap();
    let entry = &audit.entries[0];
    assert_eq!(
        (entry.who.as_str(), entry.action.as_str()),
        ("bob", "cancel replay")
    );
    assert_eq!(entry.affected, Some(1));

    let unknown = operator.cancel_replay(RunId::from_u128(7), &reason).await;
    assert!(
        matches!(unknown, Err(OperateError::UnknownReplay { .. })),
        "{unknown:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_has_switched_is_not_cancelled_any_more() {
    let world = World::new(1);
    world.fill(2, 2).await;
    let run = to_the_end(world.replay()).await.unwrap().run;
    // An instance has switched, and has died before it noted that.
    let key = foldstream::ports::RowKey::new("proc", "accounts");
    use foldstream::ports::{ControlStore, Expect, Revision, Row};
    let live = &br#"{"a":2,"st":"live","e":9,"m":1,"t":2}"#[..];
    let row = Row::new(key, live, Revision::from_u128(99));
    let put = world.control.put(&row, Expect::Any).await.unwrap();
    assert_eq!(put, foldstream::ports::PutOutcome::Written);
    let reason = Reason::new("bob", "too late").unwrap();
    let operator = Operator::new(world.control.clone());
    let outcome = operator.cancel_replay(run, &reason).await.unwrap();
    assert_eq!(outcome, CancelOutcome::TooLate);
    assert_eq!(world.proc().await["a"], 2, "the new generation serves on");
    assert_eq!(operator.replay(run).await.unwrap().0.state, RunState::Done);
}
