//! Attempts that are started ahead while handlers do not wait.
use super::harness::*;
use foldstream::{
    breaker::{BreakerPolicy, CircuitBreaker, CircuitState},
    operate::{Operator, Reason},
    ports::ControlStore,
    runner::{
        EventContext, HandlerError, HandlerResult, Listener, ModelId, ProcessorPolicy, Projector,
    },
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// Answers at once for the first events, and waits at the gate for each event after them.
struct Slows {
    quick: usize,
    gate: Semaphore,
    begun: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Slows {
    fn after(quick: usize) -> Arc<Self> {
        Arc::new(Self {
            quick,
            gate: Semaphore::new(0),
            begun: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

impl Slows {
    async fn called(&self) -> HandlerResult {
        if self.begun.fetch_add(1, Ordering::SeqCst) < self.quick {
            return Ok(());
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Listener for Slows {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
        self.called().await
    }
}

impl Projector for Slows {
    const NAME: &'static str = "slows";
    type Events = crate::support::AccountEvent;
    async fn project(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
        self.called().await
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

/// Publishes one event of each of so many streams.
async fn with_streams(streams: usize) -> World {
    let world = World::new(1);
    for n in 0..streams {
        world.deposit(&n.to_string()).await;
    }
    world
}

/// Waits until nothing happens any more, since everybody waits at the gate.
async fn settled() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn handlers_that_were_quick_and_then_wait_are_called_within_the_concurrency() {
    let world = with_streams(100).await;
    let slows = Slows::after(40);
    let policy = from_beginning().with_concurrency(5);
    let runner = world.builder().listener_with(slows.clone(), policy);
    let handle = runner.build().unwrap().start();
    settled().await;
    assert_eq!((slows.begun(), slows.most.load(Ordering::SeqCst)), (45, 5));
    slows.gate.add_permits(100);
    settled().await;
    assert_eq!((slows.begun(), world.committed(SEEN).await), (100, 100));
    assert_eq!(slows.most.load(Ordering::SeqCst), 5);
    handle.stop();
    assert!(handle.wait().await.into_result().is_ok());
}

#[tokio::test(start_paused = true)]
async fn attempts_that_have_not_begun_when_the_processor_stops_do_not_call_the_handler() {
    let world = with_streams(100).await;
    let slows = Slows::after(40);
    let policy = from_beginning().with_concurrency(2);
    let runner = world.builder().listener_with(slows.clone(), policy);
    let handle = runner.build().unwrap().start();
    settled().await;
    handle.stop();
    settled().await;
    slows.gate.add_permits(100);
    assert!(handle.wait().await.into_result().is_ok());
    assert_eq!((slows.begun(), world.committed(SEEN).await), (42, 42));
}

#[tokio::test(start_paused = true)]
async fn attempts_that_have_not_begun_when_the_processor_is_paused_do_not_call_the_handler() {
    let world = with_streams(100).await;
    let slows = Slows::after(40);
    let policy = from_beginning().with_concurrency(2);
    let runner = world.builder().listener_with(slows.clone(), policy);
    let handle = runner.build().unwrap().start();
    settled().await;
    let operator = Operator::new(world.control.clone() as Arc<dyn ControlStore>);
    let reason = Reason::new("ann", "the service is slow").unwrap();
    operator.pause("seen", &reason).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    slows.gate.add_permits(100);
    settled().await;
    assert_eq!(slows.begun(), 42);
    operator.resume("seen", &reason).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!((slows.begun(), world.committed(SEEN).await), (100, 100));
    handle.stop();
    assert!(handle.wait().await.into_result().is_ok());
}

#[tokio::test(start_paused = true)]
async fn attempts_that_wait_for_their_turn_are_not_stuck() {
    let world = with_streams(100).await;
    let slows = Slows::after(40);
    let policy = from_beginning().with_concurrency(1);
    let policy = policy.with_attempt_timeout(Duration::from_secs(10));
    let runner = world.builder().listener_with(slows.clone(), policy);
    let handle = runner.build().unwrap().start();
    settled().await;
    // Each handler answers in time, and the last ones have waited for their turn much longer.
    for ended in 1..=10 {
        slows.gate.add_permits(1);
        tokio::time::sleep(Duration::from_secs(9)).await;
        let stuck = handle.health().processors[0].stuck;
        assert_eq!((slows.begun(), stuck), (41 + ended, 0));
    }
    slows.gate.add_permits(100);
    handle.stop();
    assert!(handle.wait().await.into_result().is_ok());
}

#[tokio::test(start_paused = true)]
async fn attempts_that_were_started_ahead_do_not_call_a_service_whose_circuit_has_opened() {
    let world = with_streams(100).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    // The service goes down after 40 calls, and refuses at once.
    let seen = Seen::failing(
        move |_, _, _| match counted.fetch_add(1, Ordering::SeqCst) {
            0..40 => Ok(()),
            _ => Err(HandlerError::transient("the service is down")),
        },
    );
    let breaker = CircuitBreaker::new(BreakerPolicy::default()).unwrap();
    let policy = from_beginning().with_breaker(breaker.clone());
    let runner = world.builder().listener_with(seen, policy);
    let handle = runner.build().unwrap().start();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(matches!(breaker.state(), CircuitState::Open { .. }));
    // Ten failures of the last twenty calls open the circuit.
    let failed = calls.load(Ordering::SeqCst) - 40;
    assert!(
        (10..=26).contains(&failed),
        "{failed} calls of a service that is away"
    );
    handle.stop();
    assert!(handle.wait().await.into_result().is_ok());
}

#[tokio::test(start_paused = true)]
async fn attempts_that_were_started_ahead_do_not_begin_once_the_row_of_the_instance_has_expired() {
    let world = with_streams(100).await;
    let slows = Slows::after(40);
    let is_away = Arc::new(AtomicBool::new(false));
    let asked = is_away.clone();
    let of_row = move |call: &Call<'_>| writes_the_instance(call) && asked.load(Ordering::SeqCst);
    let faults = Faults::script([Fault::Unavailable.on(Op::Put).matching(of_row)]);
    let policy = ProcessorPolicy::projector().with_concurrency(1);
    let policy = policy.with_attempt_timeout(Duration::from_secs(3_600));
    let runner = world.faulty_builder(&faults);
    let runner = runner.projector_with(slows.clone(), policy);
    let handle = runner.build().unwrap().start();
    settled().await;
    assert_eq!(slows.begun(), 41);
    is_away.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(90)).await;
    slows.gate.add_permits(100);
    settled().await;
    assert_eq!(slows.begun(), 41);
    is_away.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(slows.begun(), 100);
    handle.stop();
    assert!(handle.wait().await.into_result().is_ok());
}
