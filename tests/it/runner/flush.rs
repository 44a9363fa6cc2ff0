//! Flushing before offsets are committed.
use super::harness::*;
use foldstream::{
    Backoff, RetryPolicy,
    runner::{
        ErrorClass, EventContext, FailureAction, HandlerError, HandlerResult, ModelId,
        ProcessorPolicy, Projector, RunnerError,
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

/// The result of a flush at this time, at the nth call from 1.
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
    let retry = RetryPolicy::default().with_backoff(backoff);
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

/// Asserts for a flush what `failure::a_throttled_attempt_waits_and_is_not_counted` asserts.
#[tokio::test(start_paused = true)]
async fn a_throttled_flush_waits_and_is_not_counted() {
    let world = World::new(1);
    world.deposit("a").await;
    let pause = Duration::from_secs(7);
    let model = Buffering::new(move |_, nth| {
        if nth <= 10 {
            return Err(HandlerError::throttled(pause, "slow down"));
        }
        Ok(())
    });
    // One transient failure would halt the processor.
    let retry = RetryPolicy::default().with_max_elapsed(Duration::ZERO);
    let policy = ProcessorPolicy::projector().with_retry(retry);
    let started = Instant::now();
    let runner = world.builder().projector_with(model.clone(), policy);
    let report = runner.build().unwrap().run_until_caught_up().await;
    report.into_result().unwrap();
    assert_eq!((model.durable(), world.committed(SEEN).await), (1, 1));
    assert!(started.elapsed() >= 10 * pause);
}

#[tokio::test(start_paused = true)]
async fn throttling_ends_with_its_own_limit_for_flushes_as_for_handlers() {
    let throttled = || HandlerError::throttled(Duration::from_secs(7), "slow down");
    let limit = Duration::from_secs(70);
    let retry = RetryPolicy::default().with_max_throttle(limit);
    let policy = ProcessorPolicy::projector().with_retry(retry);

    let world = World::new(1);
    world.deposit("a").await;
    let model = Buffering::new(move |_, _| Err(throttled()));
    let runner = world
        .builder()
        .projector_with(model.clone(), policy.clone());
    let report = runner.build().unwrap().run_until_caught_up().await;
    let RunnerError::Flush { class, .. } = error_of(&report) else {
        panic!("{report:?}")
    };
    assert!(matches!(class, ErrorClass::Throttled { .. }), "{class:?}");
    // Every pause is at least as long as the backend asked for, so at most ten fit into the limit.
    // The last flush at the end is one more.
    let flushes = model.flushes.load(Ordering::SeqCst);
    assert!((3..=12).contains(&flushes), "{flushes}");

    let seen = Seen::failing(move |_, _, _| Err(throttled()));
    let policy = policy
        .with_name("handler")
        .with_on_failure(|_| FailureAction::Halt);
    let report = world.catch_up(seen, policy).await;
    let RunnerError::Halted {
        class, attempts, ..
    } = error_of(&report)
    else {
        panic!("{report:?}")
    };
    assert!(matches!(class, ErrorClass::Throttled { .. }), "{class:?}");
    assert!((3..=11).contains(attempts), "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn a_longer_pause_than_the_limit_is_waited_for_up_to_the_limit_by_flushes_and_handlers() {
    const HOUR: Duration = Duration::from_secs(3_600);
    const LIMIT: Duration = Duration::from_secs(60);
    let policy = |name: &str| {
        let retry = RetryPolicy::default().with_max_throttle(LIMIT);
        let policy = ProcessorPolicy::projector().with_retry(retry);
        let policy = policy.with_name(name);
        policy.with_on_failure(|_| FailureAction::Halt)
    };
    // The service asks for an hour, and is there again after a minute, or is not.
    for times in [1, u32::MAX] {
        let busy = move |nth: u32| match nth <= times {
            true => Err(HandlerError::throttled(HOUR, "come back in an hour")),
            false => Ok(()),
        };
        for is_flush in [true, false] {
            let (world, started) = (World::new(1), Instant::now());
            world.deposit("a").await;
            let (report, calls) = if is_flush {
                let model = Buffering::new(move |_, nth| busy(nth));
                let runner = world.builder();
                let runner = runner.projector_with(model.clone(), policy("flush"));
                let report = runner.build().unwrap().run_until_caught_up().await;
                (report, model.flushes.load(Ordering::SeqCst))
            } else {
                let calls = Arc::new(AtomicU32::new(0));
                let counted = calls.clone();
                let seen =
                    Seen::failing(move |_, _, _| busy(counted.fetch_add(1, Ordering::SeqCst) + 1));
                let report = world.catch_up(seen, policy("handler")).await;
                (report, calls.load(Ordering::SeqCst))
            };
            let took = started.elapsed();
            assert!((LIMIT..2 * LIMIT).contains(&took), "{took:?}");
            let is_over = times == u32::MAX;
            assert_eq!(report.processors[0].error.is_some(), is_over);
            // A flush that failed for good is tried once more at the end.
            let most = 2 + u32::from(is_over && is_flush);
            assert!((2..=most).contains(&calls), "{calls}");
        }
    }
}
