//! The decisions of a circuit breaker, without a clock and without I/O.
use super::{
    circuit::{Admission, Circuit, CircuitState, Ticket, Transition},
    outcome::Outcome,
    policy::BreakerPolicy,
};
use std::time::Duration;
use tokio::time::Instant;

/// A circuit breaker as a pure state machine. Every `now` must be no earlier than the one before.
#[derive(Debug)]
pub(crate) struct Breaker {
    circuit: Circuit,
}

impl Breaker {
    /// Creates a closed breaker. The caller has validated the policy.
    pub(crate) fn new(policy: BreakerPolicy) -> Self {
        Self {
            circuit: Circuit::new(policy),
        }
    }

    /// Answers whether a call may start now.
    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        self.circuit.admit(now)
    }

    /// Takes in the outcome of an admitted call. Answers to calls that began before the last
    /// opening do not count.
    pub(crate) fn settle(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Transition> {
        let was_closed = self.state(now) == CircuitState::Closed;
        self.circuit.settle(ticket, outcome, now);
        self.transition(was_closed, now)
    }

    /// Ends an admitted call that has no outcome: it was cancelled, or its partition is lost.
    pub(crate) fn release(&mut self, ticket: Ticket) {
        self.circuit.release(ticket);
    }

    /// Returns the state.
    pub(crate) fn state(&self, now: Instant) -> CircuitState {
        self.circuit.state(now)
    }

    /// Returns the time from which `admit` no longer refuses: `now` if it does not refuse, `None`
    /// if that depends on the end of a probe or on another process.
    pub(crate) fn ready_at(&self, now: Instant) -> Option<Instant> {
        self.circuit.ready_at(now)
    }

    /// Says whether this process has work that needs the service. Without any it has no opinion
    /// about the service either, so the circuit closes.
    pub(crate) fn set_serving(&mut self, serving: bool, now: Instant) -> Option<Transition> {
        let was_closed = self.state(now) == CircuitState::Closed;
        if !serving && !was_closed {
            self.circuit.close(Duration::ZERO, now);
        }
        self.transition(was_closed, now)
    }

    /// Says whether work is held back that would be the probe.
    pub(crate) fn set_waiting(&mut self, _waiting: bool) {}

    fn transition(&self, was_closed: bool, now: Instant) -> Option<Transition> {
        match (was_closed, self.state(now) == CircuitState::Closed) {
            (true, false) => Some(Transition::Opened),
            (false, true) => Some(Transition::Closed),
            _ => None,
        }
    }
}
