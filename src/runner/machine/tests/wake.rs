//! A processor that waits is not woken before something can be done.
use super::{
    super::{Input, RowAnswer},
    breaker::{asked, letter, row},
    driven::{Driven, SECOND, policy, starts},
};
use crate::{
    Backoff, RetryPolicy,
    breaker::{BreakerPolicy, CircuitBreaker},
    runner::{ErrorClass, ProcessorPolicy},
};

/// Pauses of at most four seconds after each failure.
fn with_pauses(policy: ProcessorPolicy) -> ProcessorPolicy {
    let backoff = Backoff::new(4 * SECOND, 4 * SECOND);
    let retry = RetryPolicy::default().with_backoff(backoff);
    policy.with_retry(retry.with_immediate(0))
}

/// A listener with a request whose first attempt has failed.
fn failed_request(policy: ProcessorPolicy) -> Driven {
    let mut driven = Driven::with(with_pauses(policy), false);
    driven.join_and_serve(&[]);
    let _ = driven.assign(0, 1);
    let effects = driven.begin_with(0, 1, asked("a"));
    let (task, _) = row(&effects).expect("the letter is read");
    let effects = driven.on(Input::Row(task, Ok(RowAnswer::Letter(Some(letter("a"))))));
    assert_eq!(starts(&effects), ["a"]);
    let effects = driven.fail("a", ErrorClass::Transient);
    assert_eq!(starts(&effects), [""; 0]);
    driven
}

#[test]
fn a_request_whose_pause_is_over_waits_for_its_lane_without_a_timer() {
    let mut driven = failed_request(policy());
    assert_eq!(starts(&driven.deliver(0, 5, "a", 2)), ["a"]);
    // The attempt at the record takes longer than the pause.
    assert_eq!(starts(&driven.pass(20 * SECOND)), [""; 0]);
    assert_eq!(starts(&driven.finish("a")), ["a"], "the request is next");
}

#[test]
fn a_request_whose_pause_is_over_waits_for_the_breaker_without_a_timer() {
    let rules = BreakerPolicy::default().with_open_time(60 * SECOND, 60 * SECOND);
    let breaker = CircuitBreaker::new(rules).unwrap();
    let mut driven = failed_request(policy().with_breaker(breaker.clone()));
    // With the failure of the request these are five.
    for n in 0..4 {
        let id = format!("down{n}");
        let _ = driven.deliver(0, n, &id, 1);
        let _ = driven.fail(&id, ErrorClass::Transient);
    }
    assert!(breaker.state_at(driven.now) != crate::breaker::CircuitState::Closed);
    assert_eq!(starts(&driven.pass(20 * SECOND)), [""; 0]);
}

#[test]
fn a_processor_whose_limits_are_zero_tries_what_it_holds_once_in_a_minute() {
    for (parked, per_minute, letters) in [(0, 9, 9), (9, 0, 9), (9, 9, 0), (0, 0, 0)] {
        let limited = policy().with_limits(parked, per_minute, letters);
        let mut driven = Driven::serving(limited, &[0]);
        let _ = driven.deliver(0, 0, "a", 1);
        for _ in 0..3 {
            let mut started = starts(&driven.fail("a", ErrorClass::Permanent));
            started.extend(starts(&driven.pass(59 * SECOND)));
            assert_eq!(started, [""; 0], "{parked} {per_minute} {letters}");
            assert_eq!(starts(&driven.pass(SECOND)), ["a"]);
        }
    }
}
