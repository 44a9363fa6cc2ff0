//! Retries, halts, panics and shutdown of processors.
use super::harness::*;
use foldstream::{
    Backoff, RetryPolicy,
    runner::{
        BuildError, ErrorClass, EventContext, HandlerError, HandlerResult, Listener, ModelId,
        Position, ProcessorPolicy, Projector, RunnerError,
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

fn down() -> HandlerError {
    HandlerError::transient("the mail server is down")
}
/// Retries this often at once, then with pauses of up to 8 s until `limit`.
fn quick_retry(immediate: u32, limit: Duration) -> ProcessorPolicy {
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8)).with_seed(7);
    let retry = RetryPolicy::default()
        .with_immediate(immediate)
        .with_backoff(backoff)
        .with_max_elapsed(limit);
    from_beginning().with_retry(retry)
}
fn halted(error: &RunnerError) -> (ErrorClass, u32, u64, String) {
    match error {
        RunnerError::Halted {
            class,
            attempts,
            version,
            source,
            ..
        } => (*class, *attempts, version.get(), source.to_string()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_transient_failure_is_retried_at_once_then_after_delays() {
    let world = World::new(1);
    world.deposit("a").await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let times = attempts.clone();
    let seen = Seen::failing(move |_, _, attempt| {
        times.lock().unwrap().push(Instant::now());
        if attempt < 5 { Err(down()) } else { Ok(()) }
    });
    let report = world
        .catch_up(seen.clone(), quick_retry(2, Duration::from_secs(60)))
        .await
        .into_result()
        .unwrap();
    assert_eq!((seen.of("a"), report[0].retries), (vec![1], 4));
    let attempts = attempts.lock().unwrap();
    let waits: Vec<_> = attempts.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(waits[..2].iter().all(|w| w.is_zero()), "{waits:?}");
    assert!(waits[2..].iter().all(|w| !w.is_zero()), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn spent_retries_halt_and_nothing_is_committed_past_the_failed_event() {
    let world = World::new(1);
    for _ in 0..5 {
        world.deposit("a").await;
    }
    let times = Arc::new(Mutex::new(Vec::new()));
    let failures = times.clone();
    let seen = Seen::failing(move |_, version, _| {
        if version == 3 {
            failures.lock().unwrap().push(Instant::now());
            return Err(down());
        }
        Ok(())
    });
    let limit = Duration::from_secs(20);
    let report = world.catch_up(seen.clone(), quick_retry(1, limit)).await;
    let (class, attempts, version, source) = halted(error_of(&report));
    assert_eq!((class, version), (ErrorClass::Transient, 3));
    // The last attempt starts when the time is over, not earlier.
    let times = times.lock().unwrap().clone();
    let failed_for = *times.last().unwrap() - times[0];
    assert!((limit..limit + Duration::from_millis(10)).contains(&failed_for));
    assert_eq!(attempts as usize, times.len());
    assert_eq!(source, "the mail server is down");
    assert_eq!((seen.of("a"), world.committed(SEEN).await), (vec![1, 2], 2));
    // After the handler is fixed, the processor continues where it halted.
    let mended = Seen::new();
    world
        .catch_up(mended.clone(), from_beginning())
        .await
        .into_result()
        .unwrap();
    assert_eq!(mended.of("a"), [3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn permanent_and_fatal_failures_are_not_retried() {
    for error in [
        HandlerError::permanent,
        HandlerError::fatal,
        HandlerError::poison,
    ] {
        let world = World::new(1);
        world.deposit("a").await;
        let seen = Seen::failing(move |_, _, _| Err(error("no such address")));
        let report = world.catch_up(seen, from_beginning()).await;
        assert_eq!(halted(error_of(&report)).1, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_permanent_failure_of_its_event_alone() {
    let world = World::new(1);
    world.deposit("a").await;
    let seen = Seen::failing(|_, _, _| panic!("index out of bounds"));
    let report = world.catch_up(seen, from_beginning()).await;
    let (class, attempts, _, source) = halted(error_of(&report));
    assert_eq!((class, attempts), (ErrorClass::Permanent, 1));
    assert_eq!(source, "the handler panicked: index out of bounds");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_attempt_waits_and_is_not_counted() {
    let world = World::new(1);
    world.deposit("a").await;
    let pause = Duration::from_secs(7);
    let seen = Seen::failing(move |_, _, attempt| {
        if attempt <= 10 {
            return Err(HandlerError::throttled(pause, "slow down"));
        }
        Ok(())
    });
    let started = Instant::now();
    // One transient failure would halt the processor.
    world
        .catch_up(seen.clone(), quick_retry(0, Duration::ZERO))
        .await
        .into_result()
        .unwrap();
    assert_eq!(seen.of("a"), [1]);
    assert!(started.elapsed() >= 10 * pause);
}

#[tokio::test(start_paused = true)]
async fn a_stream_in_backoff_holds_only_itself() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("slow").await;
        world.deposit("other").await;
    }
    let seen = Seen::failing(|id, version, attempt| {
        if (id, version) == ("slow", 1) && attempt < 4 {
            Err(down())
        } else {
            Ok(())
        }
    });
    let policy = quick_retry(0, Duration::from_secs(60)).with_concurrency(1);
    world
        .catch_up(seen.clone(), policy)
        .await
        .into_result()
        .unwrap();
    let order: Vec<_> = seen.all().into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, ["other", "other", "other", "slow", "slow", "slow"]);
    assert_eq!(seen.of("slow"), [1, 2, 3]);
}

/// Runs forever until it is cancelled, and records the cancellation.
#[derive(Default)]
struct Stuck {
    started: tokio::sync::Notify,
    cancelled: tokio::sync::Notify,
}
impl Listener for Stuck {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        self.started.notify_one();
        ctx.cancelled().await;
        self.cancelled.notify_one();
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_too_long_is_a_transient_failure() {
    let world = World::new(1);
    world.deposit("a").await;
    let policy =
        quick_retry(1, Duration::from_secs(2)).with_attempt_timeout(Duration::from_secs(3));
    let report = world.catch_up(Arc::new(Stuck::default()), policy).await;
    let (class, attempts, _, source) = halted(error_of(&report));
    assert_eq!((class, attempts), (ErrorClass::Transient, 2));
    assert!(source.contains("attempt timeout of 3s"), "{source}");
}

/// Keeps the context of each call, and never answers the first call for one version.
struct Keeping {
    unanswered: u64,
    contexts: Mutex<Vec<EventContext>>,
}
impl Listener for Keeping {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        self.contexts.lock().unwrap().push(ctx.clone());
        if (ctx.version().get(), ctx.attempt()) == (self.unanswered, 1) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// The calls of one attempt tell their handlers apart: what a handler has started elsewhere goes on
/// if its own call was answered.
#[tokio::test(start_paused = true)]
async fn only_the_call_that_was_not_answered_is_cancelled() {
    for unanswered in 1..=3 {
        let world = World::new(1);
        for _ in 0..3 {
            world.deposit("a").await;
        }
        let keeping = Arc::new(Keeping {
            unanswered,
            contexts: Mutex::default(),
        });
        let policy =
            quick_retry(1, Duration::from_secs(2)).with_attempt_timeout(Duration::from_secs(3));
        let report = world.catch_up(keeping.clone(), policy).await;
        report.into_result().unwrap();
        let contexts = keeping.contexts.lock().unwrap();
        let cancelled: Vec<_> = (contexts.iter().filter(|ctx| ctx.is_cancelled()))
            .map(|ctx| (ctx.version().get(), ctx.attempt()))
            .collect();
        assert_eq!((contexts.len(), cancelled), (4, vec![(unanswered, 1)]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_finishes_and_commits_what_is_in_hand() {
    #[derive(Default)]
    struct Slow(tokio::sync::Notify, AtomicU32);
    impl Listener for Slow {
        const NAME: &'static str = "seen";
        type Events = crate::support::AccountEvent;
        async fn handle(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
            self.0.notify_one();
            tokio::time::sleep(Duration::from_secs(5)).await;
            self.1.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }
    let world = World::new(1);
    world.deposit("a").await;
    world.deposit("a").await;
    let slow = Arc::new(Slow::default());
    let runner = world
        .builder()
        .listener_with(slow.clone(), from_beginning())
        .build()
        .unwrap();
    runner.run(slow.0.notified()).await.into_result().unwrap();
    assert_eq!(
        (slow.1.load(Ordering::SeqCst), world.committed(SEEN).await),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_cancels_what_takes_longer_than_the_drain_and_does_not_commit_it() {
    let world = World::new(1);
    world.deposit("a").await;
    let stuck = Arc::new(Stuck::default());
    let policy = from_beginning().with_drain(Duration::from_secs(2));
    let runner = world
        .builder()
        .listener_with(stuck.clone(), policy)
        .build()
        .unwrap();
    runner
        .run(stuck.started.notified())
        .await
        .into_result()
        .unwrap();
    assert_eq!(world.committed(SEEN).await, 0);
}

/// Buffers what it projects, and makes it durable by `flush`, which may fail.
#[derive(Default)]
struct Buffering {
    buffered: Mutex<Vec<u64>>,
    durable: Mutex<Vec<u64>>,
    flushes_to_fail: AtomicU32,
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
        let left = |n: u32| n.checked_sub(1);
        if self
            .flushes_to_fail
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
            .is_ok()
        {
            return Err(down());
        }
        let mut buffered = self.buffered.lock().unwrap();
        self.durable.lock().unwrap().append(&mut buffered);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_offset_is_committed_only_after_the_flush() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let model = Arc::new(Buffering::default());
    model.flushes_to_fail.store(u32::MAX, Ordering::SeqCst);
    let runner = world.builder().projector(model.clone()).build().unwrap();
    // This is longer than the default policy retries.
    let report = runner
        .run(tokio::time::sleep(Duration::from_secs(600)))
        .await;
    assert!(
        matches!(error_of(&report), RunnerError::Flush { .. }),
        "{report:?}"
    );
    assert_eq!(
        (
            world.committed(SEEN).await,
            model.durable.lock().unwrap().len()
        ),
        (0, 0)
    );

    model.flushes_to_fail.store(2, Ordering::SeqCst);
    let runner = world.builder().projector(model.clone()).build().unwrap();
    runner
        .run(tokio::time::sleep(Duration::from_secs(60)))
        .await
        .into_result()
        .unwrap();
    assert_eq!(world.committed(SEEN).await, 3);
    assert_eq!(model.durable.lock().unwrap().last(), Some(&3));
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_halts_does_not_stop_the_others() {
    let world = World::new(1);
    world.deposit("a").await;
    let (bad, good) = (
        Seen::failing(|_, _, _| Err(HandlerError::fatal("broken"))),
        Seen::new(),
    );
    let runner = world
        .builder()
        .listener_with(bad, from_beginning())
        .listener_with(good.clone(), from_beginning().with_name("good"))
        .build()
        .unwrap();
    let publish_later = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.deposit("a").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    };
    let report = runner.run(publish_later).await;
    assert!(report.processor("seen").unwrap().error.is_some());
    assert!(report.processor("good").unwrap().error.is_none());
    assert_eq!(good.of("a"), [1, 2]);
}

#[test]
fn a_runner_that_makes_no_sense_is_not_built() {
    let world = World::new(1);
    let seen = Seen::new;
    assert_eq!(world.builder().build().unwrap_err(), BuildError::Empty);
    let twice = world.builder().listener(seen()).listener(seen()).build();
    assert_eq!(
        twice.unwrap_err(),
        BuildError::DuplicateName {
            name: "seen".into()
        }
    );
    for policy in [
        ProcessorPolicy::listener().with_concurrency(0),
        ProcessorPolicy::listener().with_window(0, 1),
        ProcessorPolicy::listener().with_name("a/b"),
        ProcessorPolicy::listener().with_attempt_timeout(Duration::ZERO),
        ProcessorPolicy::listener().with_commit_interval(Duration::ZERO),
    ] {
        let built = world.builder().listener_with(seen(), policy).build();
        assert!(
            matches!(built, Err(BuildError::Invalid { .. })),
            "{built:?}"
        );
    }
}

/// Applies each event, and loses the answer the first time.
struct LosesAnswers(Arc<Model>);
impl Projector for LosesAnswers {
    const NAME: &'static str = "model";
    type Events = crate::support::AccountEvent;
    async fn project(&self, event: &Self::Events, ctx: &EventContext) -> HandlerResult {
        self.0.project(event, ctx).await?;
        if ctx.attempt() == 1 {
            return Err(HandlerError::transient("the answer was lost"));
        }
        Ok(())
    }
    async fn reset(&self, model: &ModelId) -> HandlerResult {
        self.0.reset(model).await
    }
    async fn position(
        &self,
        model: &ModelId,
        stream: &foldstream::StreamId,
    ) -> Result<Position, HandlerError> {
        self.0.position(model, stream).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_stored_position_is_asked_again_before_a_retry_so_a_lost_answer_does_not_double_the_event()
 {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let model = Arc::new(Model::default());
    let runner = world
        .builder()
        .projector(LosesAnswers(model.clone()))
        .build()
        .unwrap();
    let report = runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(model.versions("a"), [1, 2, 3]);
    assert_eq!((report[0].retries, report[0].duplicates), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_throttle_without_a_pause_is_not_a_busy_loop() {
    let world = World::new(1);
    world.deposit("a").await;
    let (started, attempts) = (Instant::now(), Arc::new(AtomicU32::new(0)));
    let counted = attempts.clone();
    let seen = Seen::failing(move |_, _, _| {
        if started.elapsed() > Duration::from_secs(10) {
            return Ok(());
        }
        if counted.fetch_add(1, Ordering::SeqCst) > 1000 {
            return Err(HandlerError::fatal("a busy loop"));
        }
        Err(HandlerError::throttled(Duration::ZERO, "slow down"))
    });
    let report = world
        .catch_up(seen.clone(), quick_retry(0, Duration::ZERO))
        .await;
    report.into_result().unwrap();
    assert_eq!(seen.of("a"), [1]);
}
