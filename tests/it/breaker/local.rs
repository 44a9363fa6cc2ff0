//! A circuit breaker in one process, around any future.
use foldstream::{
    Backoff, RetryPolicy,
    breaker::{BreakerPolicy, CallError, CircuitBreaker, CircuitState},
    ports::ControlStoreError,
    resilience::{Failure, FailureClass, Retryable},
};
use futures::{FutureExt, future::join_all, poll};
use std::{
    cell::{Cell, RefCell},
    error::Error,
    future::{pending, ready},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, advance, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
enum Answer {
    #[error("busy")]
    Busy,
    #[error("slow down")]
    SlowDown(Duration),
    #[error("no")]
    No,
}
impl Failure for Answer {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Busy => FailureClass::Transient,
            Self::SlowDown(retry_after) => FailureClass::Throttled {
                retry_after: *retry_after,
            },
            Self::No => FailureClass::Permanent,
        }
    }
}

async fn calls(breaker: &CircuitBreaker, answer: Answer, times: usize) {
    for _ in 0..times {
        let failed = breaker.call(ready(Err::<(), _>(answer))).await;
        assert_eq!(failed.unwrap_err().failed(), Some(answer));
    }
}
async fn opened() -> CircuitBreaker {
    let breaker = CircuitBreaker::default();
    calls(&breaker, Answer::Busy, 5).await;
    assert!(matches!(breaker.state(), CircuitState::Open { .. }));
    breaker
}
async fn half_open() -> CircuitBreaker {
    let breaker = opened().await;
    advance(SECOND).await;
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    breaker
}
async fn assert_passes(breaker: &CircuitBreaker) {
    let passed = breaker.call(ready(Ok::<_, Answer>(7))).await;
    assert_eq!(passed.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_is_not_made_and_says_when_the_next_may_pass() {
    let breaker = opened().await;
    advance(SECOND / 4).await;
    let never = async { panic!("polled") as Result<(), Answer> };
    let refused = breaker.call(never).await.unwrap_err();
    let open = refused.refused().unwrap();
    assert_eq!(open.retry_after, Some(SECOND * 3 / 4));
    let text = "the circuit breaker is open, the next call may pass in 750ms";
    assert_eq!(refused.source().unwrap().to_string(), text);
    assert!(refused.failed().is_none());
}

#[tokio::test(start_paused = true)]
async fn clones_share_one_circuit() {
    let breaker = CircuitBreaker::default();
    calls(&breaker.clone(), Answer::Busy, 5).await;
    assert_ne!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn of_many_waiters_at_half_open_exactly_one_probes() {
    let breaker = half_open().await;
    let (running, made, end) = (AtomicUsize::new(0), AtomicUsize::new(0), Notify::new());
    let probe = async {
        assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
        made.fetch_add(1, Ordering::SeqCst);
        end.notified().await;
        running.fetch_sub(1, Ordering::SeqCst);
        Ok::<_, Answer>(())
    };
    let mut probe = pin!(breaker.call(probe));
    assert!(poll!(&mut probe).is_pending());
    let waiters = (0..100).map(|_| {
        let made = &made;
        breaker.call(async move {
            made.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Answer>(())
        })
    });
    for refused in join_all(waiters).await {
        assert_eq!(refused.unwrap_err().refused().unwrap().retry_after, None);
    }
    assert_eq!(made.load(Ordering::SeqCst), 1);
    end.notify_one();
    probe.await.unwrap();
    assert_passes(&breaker).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_is_dropped_or_never_polled_again_frees_its_slot() {
    let breaker = half_open().await;
    let panics = breaker.call(async { panic!("on purpose") as Result<(), Answer> });
    assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    assert_eq!(breaker.state(), CircuitState::HalfOpen);

    {
        let mut dropped = pin!(breaker.call(pending::<Result<(), Answer>>()));
        assert!(poll!(&mut dropped).is_pending());
        let refused = breaker.call(ready(Ok::<_, Answer>(()))).await.unwrap_err();
        assert!(refused.refused().is_some());
    }
    assert_eq!(breaker.state(), CircuitState::HalfOpen);

    // A future that was never polled has not asked for the slot.
    drop(breaker.call(pending::<Result<(), Answer>>()));

    let aborted = tokio::spawn({
        let breaker = breaker.clone();
        async move { breaker.call(pending::<Result<(), Answer>>()).await.is_ok() }
    });
    tokio::task::yield_now().await;
    let refused = breaker.call(ready(Ok::<_, Answer>(()))).await.unwrap_err();
    assert!(refused.refused().is_some());
    aborted.abort();
    assert!(aborted.await.unwrap_err().is_cancelled());

    // A panic in the classification of the error.
    let classified = breaker.call_when(ready(Err::<(), _>(())), |()| -> bool { panic!() });
    assert!(AssertUnwindSafe(classified).catch_unwind().await.is_err());
    assert_passes(&breaker).await;
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_times_out_outside_frees_its_slot_and_inside_opens_again() {
    let breaker = half_open().await;
    let outside = breaker.call(pending::<Result<(), Answer>>());
    assert!(timeout(SECOND, outside).await.is_err());
    assert_eq!(breaker.state(), CircuitState::HalfOpen);

    let inside = timeout(SECOND, pending::<()>());
    let late = breaker.call_when(inside, |_| true).await;
    assert!(matches!(late, Err(CallError::Failed(_))));
    let until = Some(Instant::now() + 2 * SECOND);
    assert_eq!(breaker.state(), CircuitState::Open { until });
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_refused_or_throttled_closes_and_keeps_the_pause_it_was_told() {
    let breaker = half_open().await;
    calls(&breaker, Answer::No, 1).await;
    assert_passes(&breaker).await;

    let breaker = half_open().await;
    calls(&breaker, Answer::SlowDown(7 * SECOND), 1).await;
    assert_eq!(breaker.state(), CircuitState::Closed);
    let refused = breaker.call(ready(Ok::<_, Answer>(()))).await.unwrap_err();
    let paused = refused.refused().unwrap().retry_after;
    assert_eq!(paused, Some(7 * SECOND));
    advance(7 * SECOND).await;
    assert_passes(&breaker).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_call_that_began_before_the_opening_does_not_count() {
    for late in [Ok(()), Err(Answer::Busy)] {
        let breaker = CircuitBreaker::default();
        let end = Arc::new(Notify::new());
        let old = breaker.call(async {
            end.notified().await;
            late
        });
        let mut old = pin!(old);
        assert!(poll!(&mut old).is_pending());
        calls(&breaker, Answer::Busy, 5).await;
        advance(SECOND).await;
        let mut probe = pin!(breaker.call(pending::<Result<(), Answer>>()));
        assert!(poll!(&mut probe).is_pending());
        end.notify_one();
        assert_eq!(old.await.is_ok(), late.is_ok());
        assert_eq!(breaker.state(), CircuitState::HalfOpen, "{late:?}");
        let refused = breaker.call(ready(Ok::<_, Answer>(()))).await;
        assert!(refused.is_err(), "the probe is still running");
    }
}

/// A service that is down until a time, and a client that retries through a breaker.
#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_an_open_circuit_without_burning_its_time() {
    let breaker = opened().await;
    let (start, tried) = (Instant::now(), RefCell::new(Vec::new()));
    let notified = Cell::new(0);
    let ask = || async {
        tried.borrow_mut().push(start.elapsed());
        if start.elapsed() < 100 * SECOND {
            return Err(Answer::Busy);
        }
        Ok(7)
    };
    // Failures may last for 2 s only. The time while the circuit is open does not count.
    let policy = RetryPolicy::new(
        Backoff::new(SECOND / 100, SECOND / 100).with_seed(7),
        SECOND,
    )
    .with_max_throttle(3600 * SECOND);
    let answer = (|| breaker.call(ask()))
        .retry(policy)
        .when(Failure::failure_class)
        .notify(|_, _, _| notified.set(notified.get() + 1))
        .run()
        .await;
    assert_eq!(answer.unwrap(), 7);
    // One call for each opening: 1 + 2 + 4 + 8 + 16 + 32 + 60 s.
    let tried = tried.into_inner();
    assert_eq!(tried.len(), 7, "{tried:?}");
    assert!(tried.windows(2).all(|two| two[1] > two[0] + SECOND));
    assert!(notified.get() > 7);
}

#[tokio::test(start_paused = true)]
async fn the_errors_of_the_ports_and_the_refusal_are_found_in_the_chain() {
    let breaker = CircuitBreaker::new(BreakerPolicy::default().with_min_calls(1)).unwrap();
    let busy = || ControlStoreError::Unavailable {
        source: "busy".into(),
    };
    let failed = breaker.call(ready(Err::<(), _>(busy()))).await.unwrap_err();
    assert_eq!(failed.failure_class(), FailureClass::Transient);
    let source = failed.source().unwrap();
    assert!(source.is::<ControlStoreError>());
    let refused = breaker.call(ready(Err::<(), _>(busy()))).await.unwrap_err();
    let retry_after = SECOND;
    assert_eq!(
        refused.failure_class(),
        FailureClass::Throttled { retry_after }
    );
    let source = refused.source().unwrap();
    assert!(source.is::<foldstream::breaker::CircuitOpen>());
}

#[test]
fn futures_of_calls_are_send() {
    fn is_send(_: impl Send) {}
    let breaker = CircuitBreaker::default();
    is_send(breaker.call(ready(Ok::<_, Answer>(()))));
    is_send(breaker.call_when(ready(Ok::<_, String>(())), |_| true));
}
