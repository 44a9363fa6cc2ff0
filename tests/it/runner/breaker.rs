//! The circuit breaker around a handler.
use super::harness::*;
use crate::support::AccountEvent;
use foldstream::{
    Backoff, RetryPolicy,
    breaker::{BreakerPolicy, CircuitBreaker, CircuitState},
    operate::{JobRunner, Operator, Reason, Redrive},
    runner::{
        EventContext, FailureAction, HandlerError, HandlerResult, Listener, ProcessorPolicy, Start,
    },
};
use foldstream_testkit::faults::{Faults, Op};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

const S: Duration = Duration::from_secs(1);

/// A listener from the beginning that gives an event up after a minute of failures.
fn policy(breaker: &CircuitBreaker) -> ProcessorPolicy {
    let backoff = Backoff::new(S, 5 * S).with_seed(1);
    let retry = RetryPolicy::default()
        .with_backoff(backoff)
        .with_max_elapsed(60 * S);
    ProcessorPolicy::listener()
        .with_start(Start::Beginning)
        .with_retry(retry)
        .with_breaker(breaker.clone())
}

fn breaker() -> CircuitBreaker {
    CircuitBreaker::new(BreakerPolicy::default()).unwrap()
}

/// Handles everything but while the service is down, when it counts the calls.
fn while_up(is_down: &Arc<AtomicBool>, calls: &Arc<AtomicUsize>) -> Seen {
    let (is_down, calls) = (is_down.clone(), calls.clone());
    Seen::failing(move |_, _, _| {
        if is_down.load(Ordering::SeqCst) {
            calls.fetch_add(1, Ordering::SeqCst);
            return Err(HandlerError::transient("the service is down"));
        }
        Ok(())
    })
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_an_hour_ends_without_a_dead_letter_and_in_order() {
    let world = World::new(2);
    let (is_down, calls) = (Arc::new(AtomicBool::new(true)), Arc::default());
    let (seen, breaker) = (while_up(&is_down, &calls), breaker());
    for n in 0..40 {
        for id in 0..5 {
            world.deposit(&id.to_string()).await;
        }
        assert!(n < 40);
    }
    let runner = world
        .builder()
        .listener_with(seen.clone(), policy(&breaker))
        .build()
        .unwrap();
    let work = async {
        tokio::time::sleep(3600 * S).await;
        assert_ne!(breaker.state(), CircuitState::Closed);
        is_down.store(false, Ordering::SeqCst);
        tokio::time::sleep(120 * S).await;
        assert_eq!(breaker.state(), CircuitState::Closed);
    };
    let report = runner.run(work).await.into_result().unwrap();
    assert_eq!((report[0].dead_letters, report[0].parked), (0, 0));
    for id in 0..5 {
        let expected: Vec<u64> = (1..=40).collect();
        assert_eq!(seen.of(&id.to_string()), expected);
    }
    assert_eq!(world.committed(SEEN).await, world.ends().await);
    // One probe for each open time of up to a minute, and the calls before the first opening.
    let calls = calls.load(Ordering::SeqCst);
    assert!((60..200).contains(&calls), "{calls} calls");
}

#[tokio::test(start_paused = true)]
async fn while_the_circuit_is_open_no_attempt_is_spent() {
    let world = World::new(1);
    for id in 0..6 {
        world.deposit(&id.to_string()).await;
    }
    let started = Instant::now();
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let noted = attempts.clone();
    let seen = Seen::failing(move |id, _, attempt| {
        if started.elapsed() < 1800 * S {
            noted.lock().unwrap().push((id.to_owned(), attempt));
            return Err(HandlerError::transient("the service is down"));
        }
        Ok(())
    });
    let runner = world
        .builder()
        .listener_with(seen.clone(), policy(&breaker()))
        .build()
        .unwrap();
    let report = runner.run(tokio::time::sleep(2000 * S)).await;
    report.into_result().unwrap();
    assert_eq!(seen.len(), 6);
    let attempts = attempts.lock().unwrap();
    assert!(attempts.len() > 20, "{attempts:?}");
    assert!(attempts.iter().all(|(_, n)| *n <= 3), "{attempts:?}");
}

#[tokio::test(start_paused = true)]
async fn the_time_of_an_outage_does_not_count_towards_the_limit_of_retries() {
    let world = World::new(1);
    for id in 0..6 {
        world.deposit(&id.to_string()).await;
    }
    let (started, breaker) = (Instant::now(), breaker());
    let (state, failed) = (breaker.clone(), Arc::new(AtomicUsize::new(0)));
    // Every stream has failed before the outage, and fails once more after it.
    let seen = Seen::failing(move |_, _, _| {
        if started.elapsed() < 1800 * S {
            return Err(HandlerError::transient("the service is down"));
        }
        if state.state() == CircuitState::Closed && failed.fetch_add(1, Ordering::SeqCst) < 3 {
            return Err(HandlerError::transient("a hiccup"));
        }
        Ok(())
    });
    let runner = world
        .builder()
        .listener_with(seen.clone(), policy(&breaker))
        .build()
        .unwrap();
    let report = runner.run(tokio::time::sleep(2000 * S)).await;
    let report = report.into_result().unwrap();
    // Half an hour is more than the minute for which an event may fail.
    assert_eq!((seen.len(), report[0].dead_letters), (6, 0));
}

#[tokio::test(start_paused = true)]
async fn one_event_that_always_fails_does_not_hold_up_the_others_for_good() {
    let world = World::new(1);
    let seen = Seen::failing(|id, _, _| match id {
        "bad" => Err(HandlerError::transient("no such account")),
        _ => Ok(()),
    });
    world.deposit("bad").await;
    let runner = world
        .builder()
        .listener_with(seen.clone(), policy(&breaker()))
        .build()
        .unwrap();
    let work = async {
        tokio::time::sleep(300 * S).await;
        for n in 0..50 {
            world.deposit(&n.to_string()).await;
            tokio::time::sleep(20 * S).await;
        }
    };
    let report = runner.run(work).await.into_result().unwrap();
    assert_eq!(seen.len(), 50);
    assert_eq!(report[0].dead_letters, 1);
}

#[tokio::test(start_paused = true)]
async fn permanent_failures_open_nothing_and_become_dead_letters() {
    let world = World::new(1);
    for id in 0..30 {
        world.deposit(&id.to_string()).await;
    }
    let breaker = breaker();
    let seen = Seen::failing(|_, _, _| Err(HandlerError::permanent("no such account")));
    let report = world.catch_up(seen, policy(&breaker)).await;
    let report = report.into_result().unwrap();
    assert_eq!(report[0].dead_letters, 30);
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_partition_is_lost_frees_its_slot() {
    let world = World::new(1);
    for id in 0..10 {
        world.deposit(&id.to_string()).await;
    }
    let (started, breaker) = (Instant::now(), breaker());
    let hangs = Arc::new(AtomicUsize::new(0));
    let hung = hangs.clone();
    /// Fails for ten seconds, then hangs while the flag is set.
    struct Hangs(Instant, Arc<AtomicUsize>, Seen);
    impl foldstream::runner::Listener for Hangs {
        const NAME: &'static str = "seen";
        type Events = crate::support::AccountEvent;
        async fn handle(
            &self,
            event: &Self::Events,
            ctx: &foldstream::runner::EventContext,
        ) -> foldstream::runner::HandlerResult {
            let elapsed = self.0.elapsed();
            if elapsed < 10 * S {
                return Err(HandlerError::transient("the service is down"));
            }
            if elapsed < 25 * S {
                self.1.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            self.2.handle(event, ctx).await
        }
    }
    let seen = Seen::new();
    let handler = Hangs(started, hung, seen.clone());
    let runner = world
        .builder()
        .listener_with(handler, policy(&breaker))
        .build()
        .unwrap();
    let work = async {
        tokio::time::sleep(24 * S).await;
        assert_eq!(hangs.load(Ordering::SeqCst), 1, "one probe");
        world.bus.expel(SEEN);
        tokio::time::sleep(120 * S).await;
    };
    runner.run(work).await.into_result().unwrap();
    assert_eq!(seen.len(), 10);
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_discards_goes_on_and_counts() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let seen = Seen::failing(|_, version, _| match version {
        2 => Err(HandlerError::permanent("no such account")),
        _ => Ok(()),
    });
    let policy = policy(&breaker());
    let policy = policy.with_on_failure(|_| FailureAction::Discard("known".into()));
    let report = world.catch_up(seen.clone(), policy).await;
    let report = report.into_result().unwrap();
    assert_eq!((seen.of("a"), report[0].discarded), (vec![1, 3], 1));
}

/// A listener that gives up the first event of each stream, and takes an hour for each other one.
struct Slow;
impl Listener for Slow {
    const NAME: &'static str = "slow";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        if ctx.version().get() == 1 {
            return Err(HandlerError::permanent("bad"));
        }
        tokio::time::sleep(3_600 * S).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_stream_keeps_nobody_busy() {
    let (world, faults) = (World::new(1), Faults::none());
    world.deposit("a").await;
    let policy = policy(&breaker()).with_attempt_timeout(7_200 * S);
    let runner = world.faulty_builder(&faults).listener_with(Slow, policy);
    let _running = runner.build().unwrap().start();
    tokio::time::sleep(S).await;
    world.deposit("a").await;
    tokio::time::sleep(S).await;
    let operator = Operator::new(world.control.clone());
    let reason = Reason::new("ann", "it is fixed").unwrap();
    let job = operator.redrive(&Redrive::all("slow"), &reason).await;
    let job = job.unwrap();
    assert_eq!(job.events, 1);
    tokio::spawn(async move {
        let jobs = JobRunner::new(operator, "jobs");
        jobs.run("slow", job.id, std::future::pending()).await
    });
    // The time of a runtime in which somebody is always busy never passes by itself.
    for _ in 0..20 {
        tokio::time::advance(S).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    let before = faults.calls(Op::Next);
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    let turns = faults.calls(Op::Next) - before;
    assert!(turns < 10, "the processor took {turns} turns");
}
