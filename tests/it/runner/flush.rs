//! Flushing before offsets are committed.
use super::harness::*;
use foldstream::{
    Backoff, RetryPolicy,
    runner::{
        ErrorClass, EventContext, HandlerError, HandlerResult, ModelId, ProcessorPolicy, Projector,
        RunnerError,
    },
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// What a flush does at this time, at the nth call from 1.
type Flush = dyn Fn(Duration, u32) -> HandlerResult + Send + Sync;

/// Buffers what it projects, and makes it durable by `flush`.
struct Buffering {
    started: Instant,
    flushes: AtomicU32,
    buffered: Mutex<Vec<u64>>,
    durable: Mutex<Vec<u64>>,
    flush: Box<Flush>,
}
impl Buffering {
    fn new(flush: impl Fn(Duration, u32) -> HandlerResult + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            flushes: AtomicU32::new(0),
            buffered: Mutex::default(),
            durable: Mutex::default(),
            flush: Box::new(flush),
        })
    }
    fn durable(&self) -> usize {
        self.durable.lock().unwrap().len()
    }
}
impl Projector for Buffering {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn project(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        self.buffered.lock().unwrap().push(ctx.version().get());
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn flush(&self, _: &ModelId) -> HandlerResult {
        let nth = self.flushes.fetch_add(1, Ordering::SeqCst) + 1;
        (self.flush)(self.started.elapsed(), nth)?;
        let mut buffered = self.buffered.lock().unwrap();
        self.durable.lock().unwrap().append(&mut buffered);
        Ok(())
    }
}

fn down() -> HandlerError {
    HandlerError::transient("the database is down")
}

#[tokio::test(start_paused = true)]
async fn a_failed_flush_waits_for_its_backoff_however_much_there_is_to_commit() {
    let world = World::new(1);
    for n in 0..3000 {
        world.deposit(&n.to_string()).await;
    }
    let model = Buffering::new(|elapsed, _| {
        if elapsed < Duration::from_secs(10) {
            return Err(down());
        }
        Ok(())
    });
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8)).with_seed(7);
    let retry = RetryPolicy::default()
        .with_attempts(2, 10)
        .with_backoff(backoff);
    let policy = ProcessorPolicy::projector().with_retry(retry);
    let runner = world.builder().projector_with(model.clone(), policy);
    let runner = runner.build().unwrap();
    let work = tokio::time::sleep(Duration::from_secs(60));
    runner.run(work).await.into_result().unwrap();
    assert_eq!((model.durable(), world.committed(SEEN).await), (3000, 3000));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_flush_halts_its_processor_alone() {
    let world = World::new(1);
    world.deposit("a").await;
    let bad = Buffering::new(|_, _| panic!("index out of bounds"));
    let good = Seen::new();
    let runner = world
        .builder()
        .projector(bad)
        .listener_with(good.clone(), from_beginning().with_name("good"))
        .build()
        .unwrap();
    let work = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.deposit("a").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    };
    let report = runner.run(work).await;
    let RunnerError::Flush { class, source, .. } = error_of(&report) else {
        panic!("{report:?}")
    };
    assert_eq!(*class, ErrorClass::Permanent);
    assert_eq!(
        source.to_string(),
        "the flush panicked: index out of bounds"
    );
    assert!(report.processor("good").unwrap().error.is_none());
    assert_eq!(good.of("a"), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_run_is_caught_up_only_when_what_it_did_is_durable_and_committed() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let model = Buffering::new(|_, nth| if nth <= 3 { Err(down()) } else { Ok(()) });
    let runner = world.builder().projector(model.clone()).build().unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!((model.durable(), world.committed(SEEN).await), (3, 3));

    let never = Buffering::new(|_, _| Err(down()));
    let policy = ProcessorPolicy::projector().with_name("never");
    let runner = world.builder().projector_with(never, policy);
    let report = runner.build().unwrap().run_until_caught_up().await;
    assert!(
        matches!(error_of(&report), RunnerError::Flush { .. }),
        "{report:?}"
    );
}
