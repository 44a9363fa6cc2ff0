//! The window bounds what is held without being committed.
use super::harness::*;
use foldstream::{
    Backoff, RetryPolicy,
    ports::EventData,
    runner::{EventContext, HandlerError, HandlerResult, ModelId, ProcessorPolicy, Projector},
};
use foldstream_testkit::faults::{Fault, Faults, Op};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// A projector that buffers, and whose database is down until a point in time.
struct Buffer {
    buffered: AtomicUsize,
    most: AtomicUsize,
    durable: AtomicUsize,
    until: Instant,
}

impl Buffer {
    fn down_for(time: Duration) -> Arc<Self> {
        Arc::new(Self {
            buffered: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            durable: AtomicUsize::new(0),
            until: Instant::now() + time,
        })
    }
}

impl Projector for Buffer {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn project(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
        let buffered = self.buffered.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(buffered, Ordering::SeqCst);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn flush(&self, _: &ModelId) -> HandlerResult {
        if Instant::now() < self.until {
            return Err(HandlerError::transient("the database is down"));
        }
        let buffered = self.buffered.swap(0, Ordering::SeqCst);
        self.durable.fetch_add(buffered, Ordering::SeqCst);
        Ok(())
    }
}

fn patient() -> ProcessorPolicy {
    let backoff = Backoff::new(SECOND, 2 * SECOND).with_seed(1);
    ProcessorPolicy::projector().with_retry(RetryPolicy::forever(backoff))
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_fails_does_not_let_the_buffer_grow_past_the_window() {
    let world = World::new(1);
    for n in 0..2_000 {
        world.deposit(&n.to_string()).await;
    }
    let buffer = Buffer::down_for(300 * SECOND);
    let policy = patient().with_window(100, 1 << 30);
    let runner = world.builder().projector_with(buffer.clone(), policy);
    let work = tokio::time::sleep(400 * SECOND);
    let report = runner.build().unwrap().run(work).await;
    report.into_result().unwrap();
    // The window is full, and not by one record more.
    assert_eq!(buffer.most.load(Ordering::SeqCst), 100);
    assert_eq!(buffer.durable.load(Ordering::SeqCst), 2_000);
    assert_eq!(world.committed(SEEN).await, 2_000);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_for_long_pauses_the_partition_until_it_succeeds() {
    let world = World::new(1);
    for n in 0..1_000 {
        world.deposit(&n.to_string()).await;
    }
    let (faults, seen) = (Faults::none(), Seen::new());
    let runner = world.faulty_builder(&faults);
    let policy = from_beginning().with_window(100, 1 << 30);
    let runner = runner.listener_with(seen.clone(), policy);
    let begins = tokio::task::yield_now;
    let work = async {
        while seen.len() == 0 {
            begins().await;
        }
        faults.set([Fault::Unavailable.on(Op::Commit)]);
        tokio::time::sleep(600 * SECOND).await;
        // Not more than were committed before the outage, and a window after them.
        let (handled, committed) = (seen.len() as u64, world.committed(SEEN).await);
        assert!(
            committed < 1_000 && handled <= committed + 100,
            "{handled}, {committed}"
        );
        faults.set([]);
        tokio::time::sleep(60 * SECOND).await;
    };
    runner
        .build()
        .unwrap()
        .run(work)
        .await
        .into_result()
        .unwrap();
    assert_eq!((seen.len(), world.committed(SEEN).await), (1_000, 1_000));
}

/// Publishes events of 50 KB to the partitions in turn.
async fn large(world: &World, events: u64) {
    let payload = format!(r#"{{"amount":1,"note":"{}"}}"#, "x".repeat(50_000));
    for n in 0..events {
        let event = EventData::new("Deposited", 1, payload.clone().into_bytes());
        world.publish_raw(&n.to_string(), 1, event).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_a_partition_and_of_a_processor_are_bounds_to_within_one_record() {
    let (bytes, record) = (500_000, 52_000);
    let policies = [
        (1, patient().with_window(1_000_000, bytes)),
        (4, patient().with_max_memory(bytes)),
    ];
    for (partitions, policy) in policies {
        let world = World::new(partitions);
        large(&world, 100).await;
        let buffer = Buffer::down_for(60 * SECOND);
        let runner = world.builder().projector_with(buffer.clone(), policy);
        let handle = runner.build().unwrap().start();
        for _ in 0..50 {
            tokio::time::sleep(SECOND).await;
            let health = handle.health();
            let held = health.processor("seen").unwrap().held_bytes;
            // Each partition may get one record more before its pause.
            let most = bytes + partitions as usize * record;
            assert!(held <= most, "{held} bytes in {partitions} partitions");
        }
        let health = handle.health();
        let held = health.processor("seen").unwrap().held_bytes;
        assert!(held >= bytes, "{held}: the bound is what pauses");
        tokio::time::sleep(60 * SECOND).await;
        handle.stop();
        handle.wait().await.into_result().unwrap();
        assert_eq!(buffer.durable.load(Ordering::SeqCst), 100);
    }
}
