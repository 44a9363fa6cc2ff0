//! Events and resets that fail during a replay.
use super::world::*;
use crate::support::stream;
use foldstream::{
    ports::{ControlStore, RangeQuery},
    replay::{Replay, ReplayError, RunId},
    runner::{ErrorClass, FailureAction, ProcessorPolicy},
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};

async fn parked(world: &World, generation: u32) -> Vec<serde_json::Value> {
    let mut found = Vec::new();
    for partition in 0..3 {
        let of = format!("park/accounts/{generation}/{TOPIC}/{partition}");
        let page = world.control.range(&RangeQuery::new(of)).await.unwrap();
        let rows = page
            .rows
            .iter()
            .map(|row| serde_json::from_slice(&row.value).unwrap());
        found.extend(rows);
    }
    found
}

async fn letters(world: &World, generation: u32) -> usize {
    let mut found = 0;
    for partition in 0..3 {
        let of = format!("dlq/accounts/{generation}/{TOPIC}/{partition}");
        let page = world.control.range(&RangeQuery::new(of)).await.unwrap();
        found += page.rows.len();
    }
    found
}

fn fail(world: &World, id: &str, version: u64) {
    world
        .model
        .failing
        .lock()
        .unwrap()
        .insert((id.into(), version));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_is_parked_in_the_new_generation_and_the_others_go_on() {
    let world = World::new(1);
    world.fill(4, 5).await;
    fail(&world, "2", 4);
    let report = to_the_end(world.replay()).await.unwrap();
    let mut expected = world.history();
    expected.insert("2".into(), vec![1, 2, 3]);
    assert_eq!(world.model.versions(2), expected);
    let rows = parked(&world, 2).await;
    assert_eq!(rows.len(), 1);
    // All versions that the scan has met wait, so that the runner knows of them.
    assert_eq!((&rows[0]["f"], &rows[0]["h"]), (&4.into(), &10.into()));
    assert_eq!(letters(&world, 2).await, 1);
    assert_eq!(
        parked(&world, 1).await.len(),
        0,
        "the live generation is as it was"
    );
    assert_eq!(report.progress.events, 40);
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_is_resumed_knows_the_streams_that_it_has_parked() {
    let world = World::new(1);
    world.fill(4, 5).await;
    fail(&world, "2", 4);
    let faults = Faults::script([]);
    let runner = world.runner_on(&faults, world.store.clone(), ProcessorPolicy::projector());
    let replay = Replay::all(&runner)
        .with_page(std::num::NonZeroU32::MIN)
        .with_segments(1);
    let handle = replay.start().await.unwrap();
    while parked(&world, 2).await.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let run = handle.run();
    drop(handle);
    world.model.crash();
    // The event would not fail any more. Its stream waits for an operator all the same.
    world.model.failing.lock().unwrap().clear();
    let resumed = world.replay().resume(run).await.unwrap();
    resumed.wait().await.unwrap();
    assert_eq!(world.model.versions(2)["2"], [1, 2, 3]);
    let rows = parked(&world, 2).await;
    assert_eq!((&rows[0]["f"], &rows[0]["h"]), (&4.into(), &10.into()));
}

#[tokio::test(start_paused = true)]
async fn the_policy_decides_about_an_event_that_fails() {
    for (action, versions, letter_count) in [
        (FailureAction::DeadLetter, vec![1, 3, 4], 1),
        (FailureAction::Discard("a test".into()), vec![1, 3, 4], 0),
    ] {
        let world = World::new(1);
        world.fill(1, 2).await;
        fail(&world, "0", 2);
        let policy = ProcessorPolicy::projector().with_on_failure(move |event| {
            assert_eq!(event.class(), ErrorClass::Permanent);
            action.clone()
        });
        let replay = Replay::all(&world.runner(policy));
        to_the_end(replay).await.unwrap();
        assert_eq!(world.model.versions(2)["0"], versions);
        assert_eq!(letters(&world, 2).await, letter_count);
        assert_eq!(parked(&world, 2).await.len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_halts_ends_the_process_and_the_replay_can_be_resumed() {
    let world = World::new(1);
    world.fill(3, 3).await;
    fail(&world, "1", 5);
    let policy = ProcessorPolicy::projector().with_on_failure(|_| FailureAction::Halt);
    let replay = Replay::all(&world.runner(policy.clone()));
    let handle = replay.start().await.unwrap();
    let run = handle.run();
    let error = handle.wait().await.unwrap_err();
    let text = foldstream::chain(&error).to_string();
    assert!(text.contains("version 5 of account#1"), "{text}");
    assert_eq!(
        world.proc().await["st"],
        "preparing",
        "the live generation serves"
    );
    world.model.failing.lock().unwrap().clear();
    world.model.crash();
    let replay = Replay::all(&world.runner(policy));
    replay.resume(run).await.unwrap().wait().await.unwrap();
    assert_eq!(world.model.versions(2), world.history());
}

#[tokio::test(start_paused = true)]
async fn a_replay_ends_where_too_many_streams_would_be_parked() {
    let world = World::new(1);
    world.fill(5, 1).await;
    for id in ["0", "1", "2"] {
        fail(&world, id, 1);
    }
    let policy = ProcessorPolicy::projector().with_limits(2, 100, 100);
    let replay = Replay::all(&world.runner(policy));
    let error = to_the_end(replay).await.unwrap_err();
    let text = foldstream::chain(&error).to_string();
    assert!(text.contains("2 streams are parked"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_fails_is_not_repeated_but_another_generation_is_taken() {
    let world = World::new(1);
    world.fill(3, 3).await;
    *world.model.failing_resets.lock().unwrap() = 1;
    to_the_end(world.replay()).await.unwrap();
    assert_eq!((world.model.resets(2), world.model.resets(3)), (1, 1));
    assert_eq!(world.model.versions(3), world.history());
    let proc = world.proc().await;
    assert_eq!((&proc["n"], &proc["t"]), (&3.into(), &3.into()));
}

#[tokio::test(start_paused = true)]
async fn resets_that_fail_again_and_again_cancel_the_replay() {
    let world = World::new(1);
    world.fill(3, 3).await;
    *world.model.failing_resets.lock().unwrap() = 9;
    let error = to_the_end(world.replay()).await.unwrap_err();
    assert!(
        matches!(error, ReplayError::Reset { attempts: 3, .. }),
        "{error:?}"
    );
    let proc = world.proc().await;
    assert_eq!((&proc["st"], &proc["t"]), (&"live".into(), &4.into()));
    assert!(proc.get("r").is_none());
    assert_eq!(stream("0").id(), "0");
}

/// Returns the generations that runners are told to delete.
async fn left(world: &World) -> Vec<String> {
    let query = RangeQuery::new(format!("old/{}", Model::NAME));
    let page = world.control.range(&query).await.unwrap();
    page.rows.into_iter().map(|row| row.key.sort).collect()
}

/// Starts a replay whose process dies before it names its generation for the `nth` time.
async fn dies_before_it_names(world: &World, nth: u64) -> RunId {
    let names = |call: &Call<'_>| matches!(call, Call::Put { row, .. } if row.key.partition == "proc" && row.value.windows(9).any(|text| text == b"preparing"));
    let dies = Fault::CrashBefore.on(Op::Put).matching(names).at(nth);
    let faults = Faults::script([dies]);
    let runner = world.runner_on(&faults, world.store.clone(), ProcessorPolicy::projector());
    let handle = Replay::all(&runner).start().await.unwrap();
    let run = handle.run();
    assert!(faults.run(handle.wait()).await.is_none(), "it has died");
    run
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_a_dead_process_has_not_named_is_built_by_the_next_and_not_deleted() {
    let world = World::new(1);
    world.fill(3, 3).await;
    let run = dies_before_it_names(&world, 1).await;
    let resumed = world.replay().resume(run).await.unwrap();
    resumed.wait().await.unwrap();
    assert_eq!(world.proc().await["n"], 2);
    // A runner would delete it while it is built: a scan may take longer than old ones are kept.
    assert_eq!(left(&world).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_a_cancelled_replay_has_not_named_is_built_by_the_next_and_not_deleted() {
    let world = World::new(1);
    world.fill(3, 3).await;
    // The first reset fails, and the process dies before it names the next generation.
    *world.model.failing_resets.lock().unwrap() = 1;
    let run = dies_before_it_names(&world, 2).await;
    world.replay().cancel(run).await.unwrap();
    to_the_end(world.replay()).await.unwrap();
    assert_eq!(world.proc().await["n"], 3);
    assert_eq!(left(&world).await, ["0000000002"]);
}
