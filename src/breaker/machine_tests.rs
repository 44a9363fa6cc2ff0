//! The rules of a circuit in one process.
use super::{
    Admission, BreakerPolicy, CallWindow, CircuitState, Outcome, Ticket, Transition,
    machine::Breaker,
};
use std::time::Duration;
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const FAILURES: [Outcome; 2] = [
    Outcome::Transient,
    Outcome::Throttled {
        retry_after: Duration::ZERO,
    },
];

/// A breaker and a clock that only a test moves.
struct Given {
    breaker: Breaker,
    now: Instant,
}

fn given(policy: BreakerPolicy) -> Given {
    Given {
        breaker: Breaker::new(policy),
        now: Instant::now(),
    }
}
fn opened() -> Given {
    let mut given = given(BreakerPolicy::default());
    given.fail(5);
    given
}
fn half_open() -> Given {
    let mut given = opened();
    given.pass(SECOND);
    given
}

impl Given {
    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
    fn state(&self) -> CircuitState {
        self.breaker.state(self.now)
    }
    #[track_caller]
    fn call(&mut self) -> Ticket {
        match self.breaker.admit(self.now) {
            Admission::Call(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }
    #[track_caller]
    fn probe(&mut self) -> Ticket {
        match self.breaker.admit(self.now) {
            Admission::Probe(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }
    #[track_caller]
    fn refused(&mut self) -> Option<Duration> {
        let until = match self.breaker.admit(self.now) {
            Admission::Refused { until } => until,
            other => panic!("{other:?}"),
        };
        assert_eq!(self.breaker.ready_at(self.now), until);
        until.map(|until| until - self.now)
    }
    fn settle(&mut self, ticket: Ticket, outcome: Outcome) -> Option<Transition> {
        self.breaker.settle(ticket, outcome, self.now)
    }
    #[track_caller]
    fn calls(&mut self, outcomes: impl IntoIterator<Item = Outcome>) {
        for outcome in outcomes {
            let ticket = self.call();
            self.settle(ticket, outcome);
        }
    }
    #[track_caller]
    fn fail(&mut self, calls: usize) {
        self.calls(vec![Outcome::Transient; calls]);
    }
}

#[test]
fn half_of_at_least_five_calls_open_the_circuit_for_a_second() {
    let mut given = given(BreakerPolicy::default());
    given.calls([Outcome::Success; 2]);
    given.fail(2);
    assert_eq!(given.state(), CircuitState::Closed);
    let ticket = given.call();
    let transition = given.settle(ticket, Outcome::Transient);
    assert_eq!(transition, Some(Transition::Opened));
    let until = Some(given.now + SECOND);
    assert_eq!(given.state(), CircuitState::Open { until });
    assert_eq!(given.refused(), Some(SECOND));
    given.pass(SECOND - MS);
    assert_eq!(given.refused(), Some(MS));
    given.pass(MS);
    assert_eq!(given.state(), CircuitState::HalfOpen);
}

#[test]
fn each_kind_of_failure_is_counted_and_what_says_nothing_about_the_service_is_not() {
    for failure in FAILURES {
        let mut given = given(BreakerPolicy::default());
        given.calls([failure; 5]);
        assert_ne!(given.state(), CircuitState::Closed, "{failure:?}");
    }
    for other in [Outcome::Permanent, Outcome::Poison, Outcome::Cancelled] {
        let mut given = given(BreakerPolicy::default());
        given.fail(4);
        given.calls([other; 30]);
        // Neither failures nor successes: the four failures are still there.
        assert_eq!(given.state(), CircuitState::Closed, "{other:?}");
        given.fail(1);
        assert_ne!(given.state(), CircuitState::Closed, "{other:?}");
    }
}

#[test]
fn of_many_waiters_at_half_open_exactly_one_probes() {
    let mut given = half_open();
    let probe = given.probe();
    for _ in 0..100 {
        assert_eq!(given.refused(), None);
    }
    assert_eq!(given.state(), CircuitState::HalfOpen);
    let transition = given.settle(probe, Outcome::Success);
    assert_eq!(transition, Some(Transition::Closed));
    given.calls([Outcome::Success; 100]);
}

#[test]
fn whatever_ends_a_probe_settles_the_state_or_frees_the_slot() {
    let mut given = half_open();
    let probe = given.probe();
    assert_eq!(given.settle(probe, Outcome::Transient), None);
    assert_eq!(given.refused(), Some(2 * SECOND));
    let throttled = Outcome::Throttled {
        retry_after: Duration::ZERO,
    };
    for answered in [Outcome::Success, Outcome::Permanent, throttled] {
        let mut given = half_open();
        let probe = given.probe();
        let transition = given.settle(probe, answered);
        assert_eq!(transition, Some(Transition::Closed), "{answered:?}");
        given.calls([Outcome::Success]);
    }
    for nothing in [Outcome::Poison, Outcome::Cancelled] {
        let mut given = half_open();
        let probe = given.probe();
        assert_eq!(given.settle(probe, nothing), None);
        assert_eq!(given.state(), CircuitState::HalfOpen, "{nothing:?}");
        let _ = given.probe();
    }
    let mut given = half_open();
    let lost = given.probe();
    given.breaker.release(lost);
    let _ = given.probe();
}

#[test]
fn a_failed_probe_opens_again_whatever_the_window_says_and_the_open_time_doubles() {
    // A window that two calls in a hundred would never open.
    let policy = BreakerPolicy::default()
        .with_window(CallWindow::Count(100))
        .with_min_calls(100);
    let mut given = given(policy);
    given.fail(100);
    for open in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        assert_eq!(given.refused(), Some(open * SECOND));
        given.pass(open * SECOND);
        let probe = given.probe();
        given.settle(probe, Outcome::Transient);
    }
    // An answer ends the row: the next opening is short again.
    given.pass(60 * SECOND);
    let probe = given.probe();
    given.settle(probe, Outcome::Success);
    given.fail(100);
    assert_eq!(given.refused(), Some(SECOND));
}

#[test]
fn an_answer_to_a_call_that_began_before_the_opening_does_not_count() {
    let all = [
        Outcome::Success,
        Outcome::Permanent,
        Outcome::Transient,
        Outcome::Poison,
        Outcome::Cancelled,
    ];
    for late in all {
        // While open, while half-open, and while the probe runs.
        let mut given = given(BreakerPolicy::default());
        let old: Vec<_> = (0..3).map(|_| given.call()).collect();
        given.fail(5);
        let mut old = old.into_iter();
        let mut ends = |given: &mut Given| {
            let before = given.state();
            assert_eq!(given.settle(old.next().unwrap(), late), None);
            assert_eq!(given.state(), before, "{late:?}");
        };
        ends(&mut given);
        given.pass(SECOND);
        ends(&mut given);
        let probe = given.probe();
        ends(&mut given);
        assert_eq!(given.refused(), None, "the slot is the probe's");
        given.settle(probe, Outcome::Success);
        assert_eq!(given.state(), CircuitState::Closed);
    }
    // After it has closed again, old failures do not open it.
    let mut given = given(BreakerPolicy::default());
    let old: Vec<_> = (0..20).map(|_| given.call()).collect();
    given.fail(5);
    given.pass(SECOND);
    let probe = given.probe();
    given.settle(probe, Outcome::Success);
    for ticket in old {
        assert_eq!(given.settle(ticket, Outcome::Transient), None);
    }
    assert_eq!(given.state(), CircuitState::Closed);
}

#[test]
fn an_old_call_that_is_given_up_does_not_free_the_slot_of_the_probe() {
    let mut given = given(BreakerPolicy::default());
    let old = given.call();
    given.fail(5);
    given.pass(SECOND);
    let probe = given.probe();
    given.breaker.release(old);
    assert_eq!(given.refused(), None);
    given.settle(probe, Outcome::Success);
    assert_eq!(given.state(), CircuitState::Closed);
}

#[test]
fn a_throttled_probe_closes_the_circuit_and_keeps_the_pause_that_it_was_told() {
    let mut given = half_open();
    let probe = given.probe();
    let retry_after = 7 * SECOND;
    let transition = given.settle(probe, Outcome::Throttled { retry_after });
    assert_eq!(transition, Some(Transition::Closed));
    assert_eq!(given.refused(), Some(retry_after));
    given.pass(retry_after - MS);
    assert_eq!(given.refused(), Some(MS));
    given.pass(MS);
    given.calls([Outcome::Success; 2]);
}

#[test]
fn no_probe_starts_before_the_pause_that_a_throttled_call_was_told() {
    let mut given = given(BreakerPolicy::default());
    let throttled = |seconds| Outcome::Throttled {
        retry_after: seconds * SECOND,
    };
    given.calls([throttled(30), throttled(9)]);
    given.fail(3);
    assert_eq!(given.refused(), Some(30 * SECOND));
    given.pass(30 * SECOND);
    let probe = given.probe();
    given.settle(probe, Outcome::Transient);
    assert_eq!(given.refused(), Some(2 * SECOND), "not remembered longer");
}

#[test]
fn no_pause_is_longer_than_the_policy_allows() {
    let retry_after = Duration::MAX;
    let mut given = half_open();
    let probe = given.probe();
    given.settle(probe, Outcome::Throttled { retry_after });
    assert_eq!(given.refused(), Some(3600 * SECOND));

    let policy = BreakerPolicy::default().with_max_throttle(10 * SECOND);
    let mut given = self::given(policy);
    given.calls([Outcome::Throttled { retry_after }; 5]);
    assert_eq!(given.refused(), Some(10 * SECOND));
}

#[test]
fn slow_calls_open_the_circuit_only_if_the_policy_has_a_limit_for_them() {
    let slow_calls = |given: &mut Given| {
        for _ in 0..5 {
            let ticket = given.call();
            given.pass(SECOND + MS);
            given.settle(ticket, Outcome::Success);
        }
    };
    let mut given = given(BreakerPolicy::default());
    slow_calls(&mut given);
    assert_eq!(given.state(), CircuitState::Closed);

    let mut given = self::given(BreakerPolicy::default().with_slow_calls(SECOND, 100));
    slow_calls(&mut given);
    assert_ne!(given.state(), CircuitState::Closed);
    // A service that answers as slowly as before is not well again.
    given.pass(SECOND);
    let probe = given.probe();
    given.pass(SECOND + MS);
    given.settle(probe, Outcome::Success);
    assert_eq!(given.refused(), Some(2 * SECOND));
    given.pass(2 * SECOND);
    let probe = given.probe();
    given.pass(SECOND);
    given.settle(probe, Outcome::Success);
    assert_eq!(given.state(), CircuitState::Closed);
}

#[test]
fn a_closed_circuit_forgets_the_failures_before_its_opening() {
    let mut given = half_open();
    let probe = given.probe();
    given.settle(probe, Outcome::Success);
    given.fail(4);
    assert_eq!(given.state(), CircuitState::Closed);
}

#[test]
fn failures_that_are_older_than_a_window_by_time_do_not_open_the_circuit() {
    let policy = BreakerPolicy::default().with_window(CallWindow::Time(10 * SECOND));
    let mut given = given(policy);
    given.fail(4);
    given.pass(10 * SECOND);
    given.fail(4);
    assert_eq!(given.state(), CircuitState::Closed);
    given.fail(1);
    assert_ne!(given.state(), CircuitState::Closed);
}

#[test]
fn every_wait_is_announced() {
    let mut given = opened();
    let ready = given.now + SECOND;
    assert_eq!(given.breaker.ready_at(given.now), Some(ready));
    given.pass(SECOND);
    assert_eq!(given.breaker.ready_at(given.now), Some(given.now));
    let probe = given.probe();
    assert_eq!(given.breaker.ready_at(given.now), None);
    given.settle(probe, Outcome::Success);
    assert_eq!(given.breaker.ready_at(given.now), Some(given.now));
}

#[test]
fn a_process_without_work_closes_its_circuit() {
    let mut given = half_open();
    let probe = given.probe();
    let (_, transition) = given.breaker.set_serving(false, given.now);
    assert_eq!(transition, Some(Transition::Closed));
    given.settle(probe, Outcome::Transient);
    assert_eq!(given.state(), CircuitState::Closed);
    assert_eq!(given.breaker.set_serving(true, given.now), (false, None));
    given.fail(4);
    assert_eq!(given.state(), CircuitState::Closed);
}
