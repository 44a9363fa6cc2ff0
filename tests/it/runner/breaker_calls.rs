//! The calls that the circuit breaker around a handler counts, and those that it does not.
use super::harness::*;
use crate::support::AccountEvent;
use foldstream::{
    breaker::{BreakerPolicy, CircuitBreaker, CircuitState, DistributedBreaker},
    operate::{JobRunner, Operator, Reason, Redrive},
    ports::{ControlStore, EventData},
    runner::{
        DeliveryLevel, EventContext, FailureAction, HandlerError, HandlerResult, Listener, ModelId,
        Position, ProcessorPolicy, Projector, Start,
    },
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

const S: Duration = Duration::from_secs(1);

fn listening() -> ProcessorPolicy {
    ProcessorPolicy::listener().with_start(Start::Beginning)
}

fn breaker(policy: BreakerPolicy) -> CircuitBreaker {
    CircuitBreaker::new(policy).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_event_ahead_of_its_stream_is_no_failure_of_the_service_and_is_given_up() {
    for is_open in [false, true] {
        let world = World::new(1);
        world.deposit("a").await;
        let event = EventData::new("Deposited", 1, &br#"{"amount":1}"#[..]);
        world.publish_raw("a", 5, event).await;
        let breaker = breaker(BreakerPolicy::default().with_min_calls(2));
        let seen = Seen::failing(move |id, version, _| match (id, version) {
            ("down", _) if is_open => Err(HandlerError::transient("the service is down")),
            _ => Ok(()),
        });
        if is_open {
            for _ in 0..2 {
                world.deposit("down").await;
            }
        }
        let builder = world.builder().with_event_store(world.store.clone());
        let policy = listening().with_breaker(breaker.clone());
        let runner = builder.listener_with(seen.clone(), policy).build().unwrap();
        let work = async {
            tokio::time::sleep(60 * S).await;
            assert_eq!(breaker.state() == CircuitState::Closed, !is_open);
            tokio::time::sleep(600 * S).await;
        };
        let report = runner.run(work).await.into_result().unwrap();
        assert_eq!((seen.of("a"), report[0].dead_letters), (vec![1], 1));
        // Its attempts have their pauses, whether the circuit is closed or not.
        assert!(report[0].retries < 1_000, "{report:?}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_asked_with_pauses_while_the_circuit_is_open() {
    tokio::time::pause();
    let world = World::new(1);
    let breaker = breaker(BreakerPolicy::default().with_min_calls(2));
    let of_position =
        |c: &Call<'_>| matches!(c, Call::Get(key) if key.partition.starts_with("pos/"));
    let faults = Faults::script([Fault::Unavailable.on(Op::Get).matching(of_position)]);
    let policy = listening()
        .with_level(DeliveryLevel::Deduplicated)
        .with_breaker(breaker.clone());
    for n in 0..6 {
        world.deposit(&n.to_string()).await;
    }
    let seen = Seen::new();
    let runner = world.faulty_builder(&faults);
    let runner = runner.listener_with(seen.clone(), policy);
    let handle = runner.build().unwrap().start();
    // Somebody else finds the service down.
    for _ in 0..2 {
        let call = breaker.call_when(async { Err::<(), _>("down") }, |_| true);
        assert!(call.await.is_err());
    }
    assert_ne!(breaker.state(), CircuitState::Closed);
    // The time of a runtime in which somebody is always busy never passes by itself.
    for _ in 0..60 {
        tokio::time::advance(S).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    let gets = faults.calls(Op::Get);
    assert!(gets < 300, "{gets} reads in a minute");
    faults.set([]);
    tokio::time::sleep(60 * S).await;
    assert_eq!((seen.len(), breaker.state()), (6, CircuitState::Closed));
    drop(handle);
}

/// Stores each event, and loses the first answer about it.
struct LosesAnswers {
    model: Arc<Model>,
    lost: Mutex<BTreeSet<(String, u64)>>,
}
impl LosesAnswers {
    fn new(model: &Arc<Model>) -> Self {
        Self {
            model: model.clone(),
            lost: Mutex::default(),
        }
    }
}
impl Projector for LosesAnswers {
    const NAME: &'static str = "model";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.model.project(event, ctx).await?;
        let event = (ctx.stream().id().to_owned(), ctx.version().get());
        if self.lost.lock().unwrap().insert(event) {
            return Err(HandlerError::transient("no answer"));
        }
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn position(
        &self,
        model: &ModelId,
        stream: &foldstream::StreamId,
    ) -> Result<Position, HandlerError> {
        self.model.position(model, stream).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_looked_up_whether_or_not_the_circuit_has_opened() {
    let exactly_once = || ProcessorPolicy::projector().with_level(DeliveryLevel::ExactlyOnceEffect);
    for has_breaker in [false, true] {
        let world = World::new(1);
        for _ in 0..3 {
            world.deposit("a").await;
        }
        let (model, mut policy) = (Arc::new(Model::default()), exactly_once());
        if has_breaker {
            policy = policy.with_breaker(breaker(BreakerPolicy::default().with_min_calls(1)));
        }
        let projector = LosesAnswers::new(&model);
        let runner = world.builder().projector_with(projector, policy);
        let runner = runner.build().unwrap();
        let report = runner.run(tokio::time::sleep(600 * S)).await;
        report.into_result().unwrap();
        assert_eq!(model.versions("a"), [1, 2, 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_answer_was_lost_is_looked_up_after_it_was_held() {
    let world = World::new(1);
    for id in ["a", "b"] {
        world.deposit(id).await;
    }
    let model = Arc::new(Model::default());
    // Only one stream may be parked, so the other one is held until the first one is released.
    let policy = ProcessorPolicy::projector()
        .with_level(DeliveryLevel::ExactlyOnceEffect)
        .with_retry(foldstream::RetryPolicy::fail_fast())
        .with_on_failure(|_| FailureAction::Park)
        .with_limits(1, 1, 10);
    let projector = LosesAnswers::new(&model);
    let runner = world.builder().projector_with(projector, policy);
    let runner = runner.build().unwrap();
    let work = async {
        tokio::time::sleep(60 * S).await;
        let operator = Operator::new(world.control.clone() as Arc<dyn ControlStore>);
        let reason = Reason::new("ann", "it is fixed").unwrap();
        let job = operator.redrive(&Redrive::all("model"), &reason).await;
        let job = job.unwrap();
        let jobs = JobRunner::new(operator, "jobs");
        let run = jobs.run("model", job.id, tokio::time::sleep(600 * S));
        run.await.unwrap();
        tokio::time::sleep(600 * S).await;
    };
    let report = runner.run(work).await;
    report.into_result().unwrap();
    assert_eq!(
        (model.versions("a"), model.versions("b")),
        (vec![1], vec![1])
    );
}

/// A listener that takes some time for each call, of which some fail.
struct Slow {
    each: Duration,
    fails_every: u64,
    calls: Arc<Mutex<u64>>,
}
impl Listener for Slow {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
        tokio::time::sleep(self.each).await;
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        if self.fails_every > 0 && calls.is_multiple_of(self.fails_every) {
            return Err(HandlerError::transient("now and then"));
        }
        Ok(())
    }
}

/// Handles 400 events of four streams, and returns true if the circuit was ever open.
async fn opens(each: Duration, fails_every: u64, policy: BreakerPolicy) -> bool {
    let world = World::new(1);
    for n in 0..400 {
        world.deposit(&(n % 4).to_string()).await;
    }
    let breaker = breaker(policy);
    let slow = Slow {
        each,
        fails_every,
        calls: Arc::default(),
    };
    let policy = listening().with_breaker(breaker.clone());
    let runner = world.builder().listener_with(slow, policy);
    let handle = runner.build().unwrap().start();
    let mut has_opened = false;
    for _ in 0..20_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        has_opened |= breaker.state() != CircuitState::Closed;
        if handle.report().processors[0].handled >= 400 {
            break;
        }
    }
    let handled = handle.report().processors[0].handled;
    assert!(has_opened || handled == 400, "{handled} were handled");
    has_opened
}

#[tokio::test(start_paused = true)]
async fn the_rates_of_failed_and_slow_calls_are_those_of_the_calls_and_not_of_the_attempts() {
    let policy = BreakerPolicy::default();
    // 1 call of 12 fails, and half of them may.
    assert!(!opens(S / 100, 12, policy).await);
    // Each call takes a tenth of what counts as slow.
    assert!(!opens(S / 5, 0, policy.with_slow_calls(2 * S, 50)).await);
    // What is over the limits still opens the circuit.
    assert!(opens(3 * S, 0, policy.with_slow_calls(2 * S, 50)).await);
}

#[tokio::test]
async fn two_processors_of_a_process_share_a_breaker_in_peace() {
    tokio::time::pause();
    for is_distributed in [true, false] {
        let world = World::new(1);
        let limits = BreakerPolicy::default().with_min_calls(2);
        let control = world.control.clone() as Arc<dyn ControlStore>;
        let shared = DistributedBreaker::new("service", "i1", limits, control).unwrap();
        let breaker = if is_distributed {
            shared.breaker()
        } else {
            breaker(limits)
        };
        let stop = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(shared.run(stop.clone()));
        let bad = Seen::failing(|_, _, _| Err(HandlerError::transient("the service is down")));
        let policy = |name: &str| listening().with_name(name).with_breaker(breaker.clone());
        let faults = Faults::none();
        let builder = world.faulty_builder(&faults);
        let builder = builder.listener_with(bad, policy("bad"));
        let builder = builder.listener_with(Seen::new(), policy("good"));
        let handle = builder.build().unwrap().start();
        tokio::time::sleep(S).await;
        for n in 0..6 {
            world.deposit(&n.to_string()).await;
        }
        let mut was_open = false;
        let before = faults.calls(Op::Next);
        // The time of a runtime in which somebody is always busy never passes by itself.
        for _ in 0..60 {
            tokio::time::advance(S / 10).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            was_open |= breaker.state() != CircuitState::Closed;
        }
        let turns = faults.calls(Op::Next) - before;
        assert!(was_open);
        assert!(turns < 1_000, "the processors took {turns} turns");
        drop(handle);
        stop.cancel();
        task.abort();
    }
}
