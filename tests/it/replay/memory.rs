//! The memory of a replay while what it waits for is slow.
use super::world::*;
use crate::support::AccountEvent;
use foldstream::{
    ports::{ControlStore, ControlStoreError, Expect, PutOutcome, Row},
    replay::Replay,
    runner::{
        DeliveryLevel, EventContext, HandlerResult, ModelId, ProcessorPolicy, Projector, Runner,
    },
};
use foldstream_testkit::intercept::{self, ControlStoreLayer, async_trait};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// Holds the writes of positions until it is opened.
struct HeldPositions(Arc<Semaphore>);

#[async_trait]
impl ControlStoreLayer for HeldPositions {
    async fn put(
        &self,
        inner: &Arc<dyn ControlStore>,
        row: &Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        if row.key.partition.starts_with("pos/") {
            let _open = self.0.acquire().await.unwrap();
        }
        inner.put(row, expect).await
    }
}

/// A projector that counts.
struct Counts(Arc<AtomicUsize>);

impl Projector for Counts {
    const NAME: &'static str = "counts";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn while_positions_are_not_written_only_so_many_streams_are_projected() {
    let streams = 25_000;
    let world = World::new(1);
    for n in 0..streams {
        world.store(&n.to_string(), 1).await;
    }
    let (positions, handled) = (Arc::new(Semaphore::new(0)), Arc::default());
    let held = HeldPositions(positions.clone());
    let control = intercept::control_store(world.control.clone(), held);
    let policy = ProcessorPolicy::projector().with_level(DeliveryLevel::Deduplicated);
    let runner = Runner::builder(world.bus.clone(), control, "shop")
        .with_event_store(world.store.clone())
        .projector_with(Counts(Arc::clone(&handled)), policy)
        .build()
        .unwrap();
    // The interval does not come: a checkpoint is made because of the streams that wait for one.
    let replay = Replay::all(&runner).with_checkpoint_interval(Duration::from_secs(86_400));
    let replay = replay.start().await.unwrap();
    // Time passes only once no task can go on. The lease is renewed meanwhile.
    tokio::time::sleep(Duration::from_secs(60)).await;
    // 10,000 streams are in the checkpoint that is held, and as many wait for the next one.
    let stuck = handled.load(Ordering::Relaxed);
    assert!((20_000..20_100).contains(&stuck), "{stuck}");
    positions.add_permits(Semaphore::MAX_PERMITS);
    let report = replay.wait().await.unwrap();
    assert_eq!(handled.load(Ordering::Relaxed), streams);
    assert_eq!(report.progress.events, streams as u64);
}
