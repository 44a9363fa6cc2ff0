//! The end of a run in each of its states.
use super::harness::*;
use foldstream::runner::{EventContext, HandlerResult, Listener, ModelId, Projector};
use foldstream_testkit::faults::{Fault, Faults, Op, Rule};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};
use tokio::time::Instant;

/// Leaves work running that continues until it is told that it no longer counts, and never ends by
/// itself.
#[derive(Default)]
struct LeavesWork {
    left: AtomicU32,
    told: Arc<AtomicU32>,
}
impl Listener for LeavesWork {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        let (ctx, told) = (ctx.clone(), self.told.clone());
        self.left.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            ctx.cancelled().await;
            told.fetch_add(1, Ordering::SeqCst);
        });
        std::future::pending().await
    }
}
impl LeavesWork {
    fn counts(&self) -> (u32, u32) {
        let count = |n: &AtomicU32| n.load(Ordering::SeqCst);
        (count(&self.left), count(&self.told))
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_an_attempt_leaves_behind_is_told_when_the_attempt_times_out_or_is_dropped() {
    let world = World::new(1);
    world.deposit("a").await;
    let leaves = Arc::new(LeavesWork::default());
    let policy = from_beginning().with_attempt_timeout(Duration::from_secs(30));
    let runner = world.builder().listener_with(leaves.clone(), policy);
    let runner = runner.build().unwrap();
    let run = runner.run(std::future::pending());
    // The first attempt times out, the second is dropped with the run.
    let dropped = tokio::time::timeout(Duration::from_secs(45), run).await;
    assert!(dropped.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(leaves.counts(), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_an_end_is_a_drain() {
    let world = World::new(1);
    world.deposit("a").await;
    let (seen, policy) = (Seen::new(), from_beginning().with_drain(Duration::MAX));
    let runner = world.builder().listener_with(seen.clone(), policy);
    let shutdown = tokio::time::sleep(Duration::from_secs(5));
    let report = runner.build().unwrap().run(shutdown).await;
    assert!(report.into_result().is_ok());
    assert_eq!((seen.len(), world.committed(SEEN).await), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_backend_that_is_away() {
    let away = |op: Op| Fault::Unavailable.on(op);
    let calls: [Rule; 7] = [
        away(Op::Get),
        away(Op::Put),
        away(Op::Put).matching(notes_the_start),
        away(Op::Offsets),
        away(Op::Subscribe),
        away(Op::Commit),
        away(Op::Next),
    ];
    for (n, away) in calls.into_iter().enumerate() {
        let world = World::new(1);
        world.deposit("a").await;
        let runner = world.faulty_builder(&Faults::script([away]));
        let runner = runner.listener_with(Seen::new(), from_beginning());
        let started = Instant::now();
        let shutdown = tokio::time::sleep(Duration::from_secs(2));
        let report = runner.build().unwrap().run(shutdown).await;
        assert!(report.into_result().is_ok(), "call {n}");
        let waited = started.elapsed();
        assert!(waited < Duration::from_secs(3), "call {n}: {waited:?}");
    }
}

/// A projector whose flush takes two seconds, and whose event of the stream named late takes one.
#[derive(Default)]
struct SlowFlush(AtomicU32);
impl Projector for SlowFlush {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn project(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        if ctx.stream().id() == "late" {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn flush(&self, _: &ModelId) -> HandlerResult {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_done_while_a_checkpoint_is_under_way_is_committed_at_the_end() {
    let world = World::new(1);
    let projector = Arc::new(SlowFlush::default());
    let runner = world.builder().projector(projector.clone());
    let runner = runner.build().unwrap();
    let shutdown = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.deposit("early").await;
        // The checkpoint of the early event has begun, and is not over when the run ends.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        world.deposit("late").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let report = runner.run(shutdown).await;
    assert!(report.into_result().is_ok());
    let projected = projector.0.load(Ordering::SeqCst);
    assert_eq!((projected, world.committed(SEEN).await), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_by_its_deadline_however_long_the_drain_may_take() {
    let world = World::new(1);
    world.deposit("a").await;
    let limit = Duration::from_secs(3);
    let runner = world.builder().with_shutdown_timeout(limit);
    let stuck = Arc::new(LeavesWork::default());
    let runner = runner.listener_with(stuck.clone(), from_beginning());
    let shutdown = tokio::time::sleep(Duration::from_secs(5));
    let started = Instant::now();
    let report = runner.build().unwrap().run(shutdown).await;
    assert!(report.into_result().is_ok());
    let took = started.elapsed() - Duration::from_secs(5);
    assert!(took <= limit, "{took:?}");
    assert_eq!(stuck.counts().0, 1);
}

/// Blocks its thread at events of the stream named blocks, until the test lets it go.
struct Blocks(Mutex<mpsc::Receiver<()>>, mpsc::Sender<String>);
impl Listener for Blocks {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        let id = ctx.stream().id().to_owned();
        let blocks = id == "blocks";
        self.1.send(id).unwrap();
        if blocks {
            // The sender is dropped at the end of the test.
            let _ = self.0.lock().unwrap().recv();
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shutdown_ends_although_a_handler_blocks_its_thread_and_reports_it() {
    let world = World::new(1);
    for id in ["other", "blocks"] {
        world.deposit(id).await;
    }
    let (release, blocked) = mpsc::channel();
    let (entered, enters) = mpsc::channel();
    let policy = from_beginning().with_drain(Duration::from_millis(50));
    let blocks = Blocks(Mutex::new(blocked), entered);
    let runner = world.builder().listener_with(blocks, policy);
    let runner = runner.build().unwrap();
    let both_run = tokio::task::spawn_blocking(move || {
        let mut seen = [enters.recv().unwrap(), enters.recv().unwrap()];
        seen.sort_unstable();
        seen
    });
    let shutdown = async move { assert_eq!(both_run.await.unwrap(), ["blocks", "other"]) };
    let run = tokio::spawn(async move { runner.run(shutdown).await });
    // The handler blocks until the test ends, so a run that waits for it never ends.
    let ended = tokio::time::timeout(Duration::from_secs(120), run).await;
    let report = ended.expect("the run ends").unwrap().into_result().unwrap();
    assert_eq!((report[0].handled, report[0].abandoned), (1, 1));
    // What it was at comes again: the offset stays before it.
    assert_eq!(world.committed(SEEN).await, 1);
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn a_last_checkpoint_that_fails_is_tried_again_while_there_is_time() {
    for failures in [1, 3] {
        let world = World::new(1);
        for _ in 0..3 {
            world.deposit("a").await;
        }
        let (seen, faults) = (Seen::new(), Faults::none());
        let policy = from_beginning().with_commit_interval(Duration::from_secs(3_600));
        let runner = world
            .faulty_builder(&faults)
            .listener_with(seen.clone(), policy);
        let runner = runner.build().unwrap();
        let at_stop = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            faults.set([Fault::Unavailable.on(Op::Commit).first(failures)]);
        };
        let report = runner.run(at_stop).await;
        report.into_result().unwrap();
        assert_eq!(seen.of("a"), [1, 2, 3]);
        assert_eq!(world.committed(SEEN).await, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_whose_checkpoints_all_fail_ends_in_time() {
    let world = World::new(1);
    world.deposit("a").await;
    let (seen, faults) = (Seen::new(), Faults::none());
    let policy = from_beginning().with_commit_interval(Duration::from_secs(3_600));
    let runner = world
        .faulty_builder(&faults)
        .listener_with(seen.clone(), policy);
    let runner = runner.with_shutdown_timeout(Duration::from_secs(20));
    let runner = runner.build().unwrap();
    let at_stop = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        faults.set([Fault::Unavailable.on(Op::Commit)]);
    };
    let began = Instant::now();
    runner.run(at_stop).await.into_result().unwrap();
    assert!(
        began.elapsed() <= Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    let tries = faults.calls(Op::Commit);
    assert!((2..50).contains(&tries), "{tries} commits");
    assert_eq!(world.committed(SEEN).await, 0);
}

/// Panics when it is dropped.
struct PanicsWhenDropped;
impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

struct Fragile(Arc<tokio::sync::Notify>);
impl Listener for Fragile {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
        let _fragile = PanicsWhenDropped;
        self.0.notify_one();
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_destructor_panics_when_it_is_cancelled_has_ended() {
    let world = World::new(1);
    world.deposit("a").await;
    let called = Arc::new(tokio::sync::Notify::new());
    let policy = from_beginning().with_drain(Duration::from_secs(2));
    let runner = world.builder();
    let runner = runner.listener_with(Fragile(called.clone()), policy);
    let report = runner.build().unwrap().run(called.notified()).await;
    let report = report.into_result().unwrap();
    assert_eq!((report[0].handled, report[0].abandoned), (0, 0));
}
