//! Full replays: the next generation is built beside the live one.
use super::world::*;
use crate::support::stream;
use foldstream::{
    BoxError, Version,
    ports::{EventStore, EventStoreError, ScanPage},
    replay::{CancelOutcome, Replay, ReplayError, RunState},
    runner::{DeliveryLevel, ProcessorPolicy},
};
use foldstream_testkit::{
    faults::{Fault, Faults, Op},
    intercept::{self, EventStoreLayer, Scan, async_trait},
};
use futures::StreamExt;
use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

fn page(commits: u32) -> NonZeroU32 {
    NonZeroU32::new(commits).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_full_replay_builds_the_next_generation_and_hands_it_over() {
    let world = World::new(1);
    world.fill(5, 4).await;
    let ends = world.ends().await;
    let handle = world.replay().start().await.unwrap();
    let report = handle.wait().await.unwrap();
    assert_eq!(world.model.versions(2), world.history());
    assert_eq!(world.model.resets(2), 1);
    let proc = world.proc().await;
    assert_eq!(
        (&proc["a"], &proc["n"], &proc["t"]),
        (&1.into(), &2.into(), &2.into())
    );
    assert_eq!(
        (&proc["st"], &proc["s"]),
        (&"catch_up".into(), &false.into())
    );
    assert_eq!(world.boot(2).await, ends);
    let progress = report.progress;
    assert_eq!(
        (progress.events, progress.commits, progress.streams),
        (40, 20, 5)
    );
    assert_eq!(
        (progress.segments_done, progress.segments, progress.handled),
        (8, 8, 40)
    );
    assert_eq!(
        (progress.state, progress.fraction()),
        (RunState::CatchUp, Some(1.0))
    );
    let run = world.row("run", &report.run.to_string()).await.unwrap();
    assert_eq!(run["s"], "catch_up");
}

#[tokio::test(start_paused = true)]
async fn an_empty_store_is_replayed_too() {
    let world = World::new(1);
    let report = to_the_end(world.replay()).await.unwrap();
    assert_eq!(report.progress.events, 0);
    assert_eq!(world.proc().await["n"], 2);
}

#[tokio::test(start_paused = true)]
async fn commits_of_a_stream_in_several_segments_are_projected_in_order_and_once() {
    for level in [DeliveryLevel::AtLeastOnce, DeliveryLevel::Deduplicated] {
        let world = World::new(1);
        world.fill(6, 9).await;
        let policy = ProcessorPolicy::projector().with_level(level);
        let runner = world.runner_on(&Faults::none(), scattered(world.store.clone()), policy);
        let replay = Replay::all(&runner).with_segments(4).with_page(page(3));
        let report = to_the_end(replay).await.unwrap();
        assert_eq!(world.model.versions(2), world.history());
        assert_eq!(*world.model.holes.lock().unwrap(), Vec::<String>::new());
        assert_eq!(world.model.generations.lock().unwrap()[&2].repeated, 0);
        assert!(report.progress.read_units > 0.0);
    }
}

/// Commits and publishes while the scan runs, at each page.
struct Appending(Arc<World>, Mutex<u32>);

#[async_trait]
impl EventStoreLayer for Appending {
    async fn scan(
        &self,
        inner: &Arc<dyn EventStore>,
        scan: Scan,
    ) -> Result<ScanPage, EventStoreError> {
        let left = {
            let mut left = self.1.lock().unwrap();
            *left = left.saturating_sub(1);
            *left
        };
        if left > 0 {
            self.0.deposit(&(left % 5).to_string(), 2).await;
        }
        scan.pass(inner).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_hand_over_is_taken_before_the_scan_so_that_nothing_falls_between() {
    let world = World::new(1);
    world.fill(5, 4).await;
    let before = world.ends().await;
    let layer = Appending(world.clone(), Mutex::new(12));
    let store = intercept::event_store(world.store.clone(), layer);
    let runner = world.runner_on(&Faults::none(), store, ProcessorPolicy::projector());
    let replay = Replay::all(&runner).with_page(page(2));
    let report = to_the_end(replay).await.unwrap();
    assert_eq!(world.boot(2).await, before);
    assert_ne!(
        world.ends().await,
        before,
        "the test appends during the scan"
    );
    let run = world.row("run", &report.run.to_string()).await.unwrap();
    let noted = run["u"][TOPIC].as_array().unwrap();
    let noted: Vec<_> = noted.iter().map(|end| end.as_u64().unwrap()).collect();
    assert_eq!(noted, world.ends().await, "the ends after the scan");
}

#[tokio::test(start_paused = true)]
async fn a_second_replay_is_refused_while_one_works_on_the_projector() {
    let world = World::new(1);
    world.fill(2, 2).await;
    let first = to_the_end(world.replay()).await.unwrap();
    let second = world.replay().start().await.unwrap();
    let run = second.run();
    let error = second.wait().await.unwrap_err();
    let ReplayError::AlreadyRunning {
        processor,
        run: other,
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(
        (processor.as_str(), other),
        ("accounts", &first.run.to_string())
    );
    assert_eq!(world.proc().await["r"], first.run.to_string());
    let refused = world.row("run", &run.to_string()).await.unwrap();
    assert_eq!(refused["s"], "cancelled");
    // Once the first one is cancelled, another may begin, with another number.
    let cancelled = world.replay().cancel(first.run).await.unwrap();
    assert_eq!(cancelled, CancelOutcome::Cancelled);
    to_the_end(world.replay()).await.unwrap();
    assert_eq!(world.proc().await["n"], 3);
    assert_eq!(world.model.versions(3), world.history());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_replay_leaves_the_live_generation_as_it_was() {
    let world = World::new(1);
    world.fill(5, 10).await;
    let faults = Faults::script([Fault::Delay(Duration::from_secs(1)).on(Op::Scan)]);
    let runner = world.runner_on(&faults, world.store.clone(), ProcessorPolicy::projector());
    let replay = Replay::all(&runner).with_page(page(1));
    let handle = replay.start().await.unwrap();
    let mut progress = handle.progress();
    while progress.next().await.unwrap().events == 0 {}
    assert_eq!(world.proc().await["st"], "preparing");
    assert_eq!(handle.cancel().await.unwrap(), CancelOutcome::Cancelled);
    let proc = world.proc().await;
    assert_eq!((&proc["a"], &proc["st"]), (&1.into(), &"live".into()));
    assert!(proc.get("r").is_none() && proc.get("n").is_none());
    let run = handle.run();
    let error = handle.wait().await.unwrap_err();
    assert!(
        matches!(error, ReplayError::Cancelled { run: of } if of == run),
        "{error:?}"
    );
    assert_eq!(world.model.resets(1), 0);
    let resumed = Replay::all(&runner).resume(run).await.unwrap_err();
    assert!(matches!(resumed, ReplayError::Over { .. }), "{resumed:?}");
    let cancelled = world.replay().cancel(run).await.unwrap();
    assert_eq!(
        cancelled,
        CancelOutcome::Cancelled,
        "a cancellation can be repeated"
    );
}

#[tokio::test(start_paused = true)]
async fn a_replay_of_a_dead_process_is_resumed_at_its_cursors() {
    let world = World::new(1);
    world.fill(20, 10).await;
    let (seen, policy) = (Arc::new(Mutex::new(0)), ProcessorPolicy::projector());
    let faults = Faults::script([Fault::Delay(Duration::from_secs(1)).on(Op::Scan)]);
    let runner = world.runner_on(&faults, world.store.clone(), policy.clone());
    let replay = Replay::all(&runner).with_page(page(5)).with_segments(2);
    let handle = replay.start().await.unwrap();
    let run = handle.run();
    let mut progress = handle.progress();
    while progress.next().await.unwrap().events < 200 {}
    drop(handle);
    world.model.crash();

    let counting = seen.clone();
    let faults = Faults::none().with_probe(move |moment, call| {
        if call.op() == Op::Scan && matches!(moment, foldstream_testkit::faults::Moment::Reaches) {
            *counting.lock().unwrap() += 1;
        }
    });
    let runner = world.runner_on(&faults, world.store.clone(), policy);
    // The number of segments stays, whatever is asked for.
    let replay = Replay::all(&runner).with_page(page(5)).with_segments(7);
    let handle = replay.resume(run).await.unwrap();
    let report = handle.wait().await.unwrap();
    assert_eq!(report.progress.segments, 2);
    assert_eq!(world.model.versions(2), world.history());
    assert_eq!(
        world.model.resets(2),
        1,
        "the model is filled, and is not emptied again"
    );
    let pages = *seen.lock().unwrap();
    assert!(
        (1..=25).contains(&pages),
        "{pages} pages: the scan began again"
    );
    assert!(report.progress.events >= 400, "{:?}", report.progress);
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_another_process_works_on_is_not_resumed() {
    let world = World::new(1);
    world.fill(5, 10).await;
    let faults = Faults::script([Fault::Delay(Duration::from_secs(20)).on(Op::Scan)]);
    let runner = world.runner_on(&faults, world.store.clone(), ProcessorPolicy::projector());
    let first = Replay::all(&runner)
        .with_page(page(1))
        .start()
        .await
        .unwrap();
    let mut progress = first.progress();
    while progress.next().await.unwrap().state != RunState::Scanning {}
    let second = world.replay().resume(first.run()).await.unwrap();
    let error = second.wait().await.unwrap_err();
    assert!(matches!(error, ReplayError::Held { .. }), "{error:?}");
    first.wait().await.unwrap();
    assert_eq!(world.model.versions(2), world.history());
}

#[tokio::test(start_paused = true)]
async fn a_scan_keeps_to_its_read_budget_and_waits_while_the_store_throttles() {
    let world = World::new(1);
    world.fill(10, 4).await;
    let throttled = Fault::Throttled(Some(Duration::from_secs(2)));
    let faults = Faults::script([throttled.on(Op::Scan).at(3)]);
    let store = scattered(world.store.clone());
    let runner = world.runner_on(&faults, store, ProcessorPolicy::projector());
    let began = tokio::time::Instant::now();
    let replay = Replay::all(&runner)
        .with_page(page(2))
        .with_segments(2)
        .with_read_units_per_second(4.0);
    let report = to_the_end(replay).await.unwrap();
    // Each of the 20 pages costs two units.
    assert_eq!(report.progress.read_units, 40.0);
    let took = began.elapsed().as_secs_f64();
    assert!(
        (9.0..14.0).contains(&took),
        "{took} s for 40 units at 4 per second"
    );
    assert_eq!(world.model.versions(2), world.history());
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_what_is_read_is_bounded() {
    let world = World::new(1);
    world.fill(10, 10).await;
    let replay = world.replay().with_memory(1).with_page(page(7));
    to_the_end(replay).await.unwrap();
    assert_eq!(world.model.versions(2), world.history());
}

#[tokio::test(start_paused = true)]
async fn records_that_the_topic_has_deleted_during_the_scan_cancel_the_replay() {
    let world = World::new(1);
    world.fill(5, 4).await;
    let layer = Deleting(world.clone());
    let store = intercept::event_store(world.store.clone(), layer);
    let runner = world.runner_on(&Faults::none(), store, ProcessorPolicy::projector());
    let error = to_the_end(Replay::all(&runner)).await.unwrap_err();
    assert!(
        matches!(error, ReplayError::RetentionTooShort { .. }),
        "{error:?}"
    );
    let proc = world.proc().await;
    assert_eq!((&proc["a"], &proc["st"]), (&1.into(), &"live".into()));
}

/// Publishes, and then deletes all records of the topic, while the scan runs.
struct Deleting(Arc<World>);

#[async_trait]
impl EventStoreLayer for Deleting {
    async fn scan(
        &self,
        inner: &Arc<dyn EventStore>,
        scan: Scan,
    ) -> Result<ScanPage, EventStoreError> {
        let world = &self.0;
        world.deposit("0", 1).await;
        for (number, end) in (0..).zip(world.ends().await) {
            let partition = foldstream::ports::PartitionId::new(TOPIC, number);
            let end = foldstream::ports::Offset::new(end);
            world
                .bus
                .delete_records_before(&partition, end)
                .map_err(|e| {
                    let source: BoxError = e.into();
                    EventStoreError::Unavailable {
                        pending: None,
                        source,
                    }
                })?;
        }
        scan.pass(inner).await
    }
}

#[tokio::test(start_paused = true)]
async fn positions_are_stored_at_the_level_that_stores_them() {
    let world = World::new(1);
    world.fill(3, 3).await;
    let policy = ProcessorPolicy::projector().with_level(DeliveryLevel::Deduplicated);
    let replay = Replay::all(&world.runner(policy));
    to_the_end(replay).await.unwrap();
    for id in ["0", "1", "2"] {
        let shard = stream(id).shard(64);
        let row = world
            .row(&format!("pos/accounts/2/{shard}"), stream(id).as_str())
            .await;
        assert_eq!(row.unwrap()["v"], Version::new(6).get());
    }
}
