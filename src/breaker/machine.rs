//! The decisions of a circuit breaker, without a clock and without I/O.
use super::{
    circuit::{Admission, Circuit, CircuitState, Kind, Ticket, Transition},
    outcome::{Outcome, Verdict},
    policy::BreakerPolicy,
    quorum::{Answer, Gate, Membership, Quorum, Request},
};
use std::time::Duration;
use tokio::time::Instant;

/// A circuit breaker as a pure state machine: the circuit of this process, and, if it is
/// distributed, what the processes decide together.
///
/// No `now` may be earlier than the one before.
#[derive(Debug)]
pub(crate) struct Breaker {
    pub(super) circuit: Circuit,
    pub(super) quorum: Option<Quorum>,
    /// The last state that a transition has reported.
    is_closed: bool,
}

impl Breaker {
    /// Creates a closed breaker for one process. The caller has validated the policy.
    pub(crate) fn new(policy: BreakerPolicy) -> Self {
        Self {
            circuit: Circuit::new(policy),
            quorum: None,
            is_closed: true,
        }
    }

    /// Creates a closed breaker that decides together with those of other processes. It reads the
    /// rows of all with its first [`request`](Self::request), and decides alone until then.
    pub(super) fn distributed(policy: BreakerPolicy, member: Membership, now: Instant) -> Self {
        let open_time = (policy.first_open, policy.max_open);
        Self {
            quorum: Some(Quorum::new(member, open_time, now)),
            ..Self::new(policy)
        }
    }

    /// Answers whether a call may start now.
    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        let Some(quorum) = &mut self.quorum else {
            return self.circuit.admit(now);
        };
        match quorum.gate(self.circuit.is_probing(), now) {
            Gate::Own => self.circuit.admit(now),
            Gate::Probe { epoch } => {
                quorum.probes(now);
                Admission::Probe(self.circuit.probe(Kind::Leased { epoch }, now))
            }
            Gate::Refused { until } => {
                quorum.refused(now);
                Admission::Refused { until }
            }
        }
    }

    /// Takes in the outcome of an admitted call. Answers to calls that began before the last
    /// opening, or under an older epoch of the votes, do not count.
    pub(crate) fn settle(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Transition> {
        if let Kind::Leased { epoch } = ticket.kind {
            self.settle_leased(&ticket, epoch, outcome, now);
        } else {
            let openings = self.circuit.openings();
            self.circuit.settle(ticket, outcome, now);
            self.told_of(openings, now);
        }
        self.observe(now)
    }

    /// Counts a call that was made with a ticket before its last one. The ticket is no probe.
    pub(crate) fn count(
        &mut self,
        ticket: &Ticket,
        outcome: Outcome,
        took: Duration,
        now: Instant,
    ) -> Option<Transition> {
        let openings = self.circuit.openings();
        self.circuit.count_one(ticket, outcome, took, now);
        self.told_of(openings, now);
        self.observe(now)
    }

    /// Tells the other processes if the circuit has opened since there were so many openings.
    fn told_of(&mut self, openings: u32, now: Instant) {
        if let Some(quorum) = &mut self.quorum
            && self.circuit.openings() > openings
        {
            quorum.opened(now);
        }
    }

    /// Takes in the outcome of a probe on behalf of all processes. The epoch decides whether it
    /// counts for all, and the openings of this process whether it counts here.
    fn settle_leased(&mut self, ticket: &Ticket, epoch: u64, outcome: Outcome, now: Instant) {
        let is_current = self.circuit.free(ticket);
        let quorum = self.quorum.as_mut();
        let Some(quorum) = quorum.filter(|quorum| quorum.epoch() == Some(epoch)) else {
            return;
        };
        match outcome.verdict(ticket.is_slow(self.circuit.policy(), now)) {
            Verdict::Reachable { pause } => {
                if is_current {
                    self.circuit.close(pause, now);
                }
                quorum.succeeded(epoch, now);
            }
            Verdict::Failed => quorum.failed(now),
            Verdict::Unknown => {}
        }
    }

    /// Ends an admitted call that has no outcome: it was cancelled, or its partition is lost.
    pub(crate) fn release(&mut self, ticket: Ticket) {
        self.circuit.release(ticket);
    }

    /// Returns the state.
    pub(crate) fn state(&self, now: Instant) -> CircuitState {
        let Some(quorum) = self.quorum.as_ref().filter(|quorum| quorum.is_open(now)) else {
            return self.circuit.state(now);
        };
        match quorum.probe_at() {
            Some(at) if at <= now => CircuitState::HalfOpen,
            until => CircuitState::Open { until },
        }
    }

    /// Returns the time from which `admit` no longer refuses: `now` if it does not refuse, `None`
    /// if that depends on the end of a probe or on another process.
    pub(crate) fn ready_at(&self, now: Instant) -> Option<Instant> {
        let Some(quorum) = &self.quorum else {
            return self.circuit.ready_at(now);
        };
        match quorum.gate(self.circuit.is_probing(), now) {
            Gate::Own => self.circuit.ready_at(now),
            Gate::Probe { .. } => Some(now),
            Gate::Refused { until } => until,
        }
    }

    /// Says whether this process has work that needs the service. Without any it has no opinion
    /// about the service either: the circuit closes, and the vote of this process is deleted.
    ///
    /// Returns true if that is a change.
    pub(crate) fn set_serving(
        &mut self,
        serving: bool,
        now: Instant,
    ) -> (bool, Option<Transition>) {
        let quorum = self.quorum.as_mut();
        let changed = quorum.is_some_and(|quorum| quorum.set_serving(serving));
        if !serving && !self.circuit.is_closed() {
            self.circuit.close(Duration::ZERO, now);
        }
        (changed, self.observe(now))
    }

    /// Says whether work is held back that would be the probe. Only then does this process contend
    /// for the probe, beside the time after a refused call. Returns true if that is a change.
    pub(crate) fn set_waiting(&mut self, waiting: bool) -> bool {
        let quorum = self.quorum.as_mut();
        quorum.is_some_and(|quorum| quorum.set_waiting(waiting))
    }

    /// Returns the number of votes that count; 0 for a breaker of one process.
    pub(crate) fn votes(&self, now: Instant) -> usize {
        self.quorum.as_ref().map_or(0, |quorum| quorum.votes(now))
    }

    /// Returns the next request to the control store, if one is due and none is on its way.
    pub(super) fn request(&mut self, now: Instant) -> Option<Request> {
        self.quorum.as_mut()?.request(&self.circuit, now)
    }

    /// Lets this process leave the others with its next requests. There are none when it has left.
    pub(super) fn leave(&mut self, now: Instant) -> Option<Transition> {
        if let Some(quorum) = &mut self.quorum {
            quorum.leave(now);
        }
        self.set_serving(false, now).1
    }

    /// Takes in the answer to the request that was on its way.
    pub(super) fn answered(&mut self, answer: Answer, now: Instant) -> Option<Transition> {
        if let Some(quorum) = &mut self.quorum {
            quorum.answered(answer, &mut self.circuit, now);
        }
        self.observe(now)
    }

    /// Returns the time at which a request is due, or at which the state changes by itself because
    /// votes cease to count. `None` for a breaker of one process.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let quorum = self.quorum.as_ref()?;
        Some(quorum.wake_at(&self.circuit, now))
    }

    /// Reports a change between closed and not closed once, also one that came with time.
    pub(super) fn observe(&mut self, now: Instant) -> Option<Transition> {
        let is_closed = self.state(now) == CircuitState::Closed;
        let was_closed = std::mem::replace(&mut self.is_closed, is_closed);
        match (was_closed, is_closed) {
            (true, false) => Some(Transition::Opened),
            (false, true) => Some(Transition::Closed),
            _ => None,
        }
    }
}
