//! The end of a run in each of its states.
use super::harness::*;
use foldstream::runner::{EventContext, HandlerResult, Listener};
use foldstream_testkit::faults::{Fault, Faults, Op, Rule};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
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
