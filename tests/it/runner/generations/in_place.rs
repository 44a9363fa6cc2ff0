//! Replays in place, and the row of an instance as a lease.
use super::harness::{
    self, Books, pass, policy, runner, runner_on, serves, start, state, stop, trouble,
};
use crate::{
    runner::harness::{World, writes_the_instance},
    support::stream,
};
use foldstream::{
    Version,
    replay::{CancelOutcome, Replay, ReplayError, ReplayProgress, RunState},
    runner::{ProcessorState, ReadModelError, Runner, RunnerError},
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use futures::{Stream, StreamExt as _};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn in_place_nothing_is_handled_from_draining_until_the_catch_up() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let handle = start(&world, &books);
    pass(20).await;
    let mut replay = harness::Replay::begin(&world).await;
    replay.in_place = true;
    replay.write_run("draining", "").await;
    replay.write_proc("draining", 1, "").await;
    pass(15).await;
    // The row says that what must stop has stopped.
    let rows = world.row_values("inst/books").await;
    assert!(rows[0].contains(r#""e":1,"g":0,"s":"waiting""#), "{rows:?}");
    let started = start(&world, &books);
    books.calls.lock().unwrap().clear();
    world.deposit("a").await;
    pass(60).await;
    assert_eq!(*books.calls.lock().unwrap(), [0; 0]);
    for handle in [&handle, &started] {
        assert_eq!(state(handle), ProcessorState::Waiting);
        assert!(trouble(handle).contains("in place"), "{}", trouble(handle));
    }
    books.scan(2, "a", 1..=2);
    replay.catch_up().await;
    world.deposit("a").await;
    pass(60).await;
    assert!(serves(&world.proc().await, 2));
    assert_eq!(books.versions(2, "a"), [1, 2, 3]);
    assert_eq!(state(&handle), ProcessorState::Running);
    // The model is that of the generation that serves: only the rows of the old one are deleted.
    pass(900).await;
    assert!(books.deleted.lock().unwrap().is_empty());
    assert_eq!(
        (
            world.rows("old/books").await,
            world.rows("boot/books/1").await
        ),
        (0, 0)
    );
    stop(started).await;
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_row_could_not_be_renewed_starts_no_attempt() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let away = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = away.clone();
    let of_row = move |call: &Call<'_>| {
        writes_the_instance(call) && asked.load(std::sync::atomic::Ordering::SeqCst)
    };
    let faults = Faults::script([Fault::Unavailable.on(Op::Put).matching(of_row)]);
    let runner = world
        .faulty_builder(&faults)
        .projector_with(books.clone(), policy());
    let handle = runner.build().unwrap().start();
    pass(20).await;
    away.store(true, std::sync::atomic::Ordering::SeqCst);
    pass(20).await;
    world.deposit("a").await;
    pass(5).await;
    assert_eq!(books.versions(1, "a"), [1], "the lease lasts");
    pass(60).await;
    world.deposit("a").await;
    pass(60).await;
    assert_eq!(books.versions(1, "a"), [1]);
    assert_eq!(state(&handle), ProcessorState::Unreachable);
    away.store(false, std::sync::atomic::Ordering::SeqCst);
    pass(15).await;
    assert_eq!(books.versions(1, "a"), [1, 2]);
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_reads_the_generations_only_after_its_row_is_written() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let row = r#"{"a":1,"st":"live","e":0,"m":1}"#;
    world.put("proc", "books", row.into()).await;
    world.deposit("a").await;
    // The row of the instance is on its way for a while, and a replay in place begins meanwhile.
    let late = Fault::Delay(std::time::Duration::from_secs(5)).on(Op::Put);
    let faults = Faults::script([late.matching(writes_the_instance).first(1)]);
    let runner = world
        .faulty_builder(&faults)
        .projector_with(books.clone(), policy());
    let handle = runner.build().unwrap().start();
    pass(2).await;
    let mut replay = harness::Replay::begin(&world).await;
    replay.in_place = true;
    replay.write_proc("draining", 1, "").await;
    pass(30).await;
    assert_eq!(*books.calls.lock().unwrap(), [0; 0]);
    assert_eq!(state(&handle), ProcessorState::Waiting);
    stop(handle).await;
}

/// Creates a runner whose scans take a while.
fn slow(world: &World, books: &Books<1>) -> Runner {
    let delay = Fault::Delay(Duration::from_secs(30));
    runner_on(&Faults::script([delay.on(Op::Scan)]), world, books)
}

/// Waits until the row of the run is in this state.
async fn reach(progress: &mut (impl Stream<Item = ReplayProgress> + Unpin), state: RunState) {
    while progress.next().await.unwrap().state != state {}
}

#[tokio::test(start_paused = true)]
async fn the_instances_stop_before_a_replay_in_place_scans_and_go_on_after_it() {
    let world = World::new(1);
    let books = Books::<1>::default();
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let runner = slow(&world, &books);
    let handles = [runner.start(), start(&world, &books)];
    pass(20).await;
    let scanning = Replay::of(&runner, ["books"]).in_place();
    let handle = scanning.start().await.unwrap();
    let run = handle.run();
    let mut progress = handle.progress();
    reach(&mut progress, RunState::Draining).await;
    world.deposit("a").await;
    reach(&mut progress, RunState::Scanning).await;
    for row in world.row_values("inst/books").await {
        assert!(row.contains(r#""g":0,"s":"waiting""#), "{row}");
    }
    let stream = stream("a");
    let models = runner.read_models();
    let wait = models.wait_for("books", &stream, Version::new(1), Duration::from_secs(1));
    let error = wait.await.unwrap_err();
    assert!(
        matches!(error, ReadModelError::Rebuilding { .. }),
        "{error:?}"
    );
    handle.wait().await.unwrap();
    world.deposit("a").await;
    pass(60).await;
    assert!(serves(&world.proc().await, 2), "{}", world.proc().await);
    assert_eq!(books.versions(2, "a"), [1, 2, 3, 4, 5]);
    let calls = books.calls.lock().unwrap().clone();
    assert!(
        calls.is_sorted(),
        "two generations were in work at once: {calls:?}"
    );
    let row = world.row("run", &run.to_string()).await.unwrap();
    assert!(row.contains(r#""s":"done""#), "{row}");
    pass(900).await;
    assert!(books.deleted.lock().unwrap().is_empty());
    for handle in handles {
        assert_eq!(state(&handle), ProcessorState::Running);
        stop(handle).await;
    }
}

/// A process that has died is waited for until its lease, an attempt and the grace are over.
#[tokio::test(start_paused = true)]
async fn a_replay_in_place_waits_until_a_dead_instance_can_do_nothing_more() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let runner = runner(&world, &books);
    let row = r#"{"l":"host-9","e":0,"g":1,"s":"running","t":7,"n":3,"d":95000}"#;
    let id = "0000000000000000000000000000000b";
    world.put("inst/books", id, row.into()).await;
    let replay = Replay::of(&runner, ["books"]).in_place();
    let handle = replay.start().await.unwrap();
    pass(90).await;
    assert_eq!(*books.calls.lock().unwrap(), [0; 0]);
    let run = handle.run().to_string();
    let waiting = world.row("run", &run).await.unwrap();
    assert!(waiting.contains(r#""s":"draining""#), "{waiting}");
    pass(10).await;
    let report = handle.wait().await.unwrap();
    assert_eq!(report.progress.state, RunState::CatchUp);
    assert_eq!(books.versions(2, "a"), [1]);
}

#[tokio::test(start_paused = true)]
async fn until_the_model_is_emptied_a_cancelled_replay_in_place_does_no_harm() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let runner = runner(&world, &books);
    let instance = start(&world, &books);
    pass(20).await;
    let replay = Replay::of(&runner, ["books"]).in_place();
    let handle = replay.start().await.unwrap();
    reach(&mut handle.progress(), RunState::Draining).await;
    // The instance looks at the generations every few seconds.
    pass(1).await;
    assert_eq!(handle.cancel().await.unwrap(), CancelOutcome::Cancelled);
    handle.wait().await.unwrap_err();
    world.deposit("a").await;
    pass(20).await;
    assert_eq!(books.versions(1, "a"), [1, 2]);
    assert_eq!(state(&instance), ProcessorState::Running);
    stop(instance).await;
}

#[tokio::test(start_paused = true)]
async fn a_model_that_a_cancelled_replay_has_emptied_serves_only_once_it_is_built() {
    for next_in_place in [true, false] {
        let world = World::new(1);
        let books = Books::<1>::default();
        for _ in 0..3 {
            world.deposit("a").await;
        }
        let runner = runner(&world, &books);
        let instance = start(&world, &books);
        pass(20).await;
        let slow = slow(&world, &books);
        let replay = Replay::of(&slow, ["books"]).in_place();
        let handle = replay.start().await.unwrap();
        reach(&mut handle.progress(), RunState::Scanning).await;
        handle.cancel().await.unwrap();
        handle.wait().await.unwrap_err();
        books.calls.lock().unwrap().clear();
        world.deposit("a").await;
        pass(60).await;
        assert_eq!(*books.calls.lock().unwrap(), [0; 0]);
        assert_eq!(state(&instance), ProcessorState::Waiting);
        assert!(
            trouble(&instance).contains("start a replay"),
            "{}",
            trouble(&instance)
        );
        let ends = slow.run_until_caught_up().await.into_result();
        let error = ends.unwrap_err();
        assert!(
            matches!(*error, RunnerError::EmptyModel { .. }),
            "{error:?}"
        );
        // A replay that is cancelled early does not make it serve, either.
        let early = Replay::of(&runner, ["books"]).in_place();
        let early = early.start().await.unwrap();
        reach(&mut early.progress(), RunState::Draining).await;
        early.cancel().await.unwrap();
        early.wait().await.unwrap_err();
        pass(20).await;
        assert_eq!(state(&instance), ProcessorState::Waiting);

        let replay = Replay::of(&runner, ["books"]);
        let replay = if next_in_place {
            replay.in_place()
        } else {
            replay
        };
        replay.start().await.unwrap().wait().await.unwrap();
        pass(60).await;
        assert_eq!(state(&instance), ProcessorState::Running);
        let proc = world.proc().await;
        let active: serde_json::Value = serde_json::from_str(&proc).unwrap();
        let active = u32::try_from(active["a"].as_u64().unwrap()).unwrap();
        assert!(serves(&proc, active), "{proc}");
        assert_eq!(books.versions(active, "a"), [1, 2, 3, 4]);
        stop(instance).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_in_place_that_fails_is_not_repeated() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let runner = runner(&world, &books);
    *books.failing_resets.lock().unwrap() = 1;
    let replay = Replay::of(&runner, ["books"]).in_place();
    let error = replay.start().await.unwrap().wait().await.unwrap_err();
    assert!(
        matches!(error, ReplayError::Reset { attempts: 1, .. }),
        "{error:?}"
    );
    let proc = world.proc().await;
    assert!(proc.contains(r#""st":"live","s":true"#), "{proc}");
}
