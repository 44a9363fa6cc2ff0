//! The circuit of one process, as a pure state machine.
use super::{
    outcome::{Outcome, Verdict},
    policy::BreakerPolicy,
    window::Window,
};
use std::time::Duration;
use tokio::time::Instant;

/// Returns the instant `time` after `now`, or one that no process lives to see.
pub(super) fn after(now: Instant, time: Duration) -> Instant {
    const YEARS: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now + time.min(YEARS)
}

/// The right to make one call. A ticket ends in exactly one [`settle`](Circuit::settle) or
/// [`release`](Circuit::release), and so it cannot be cloned.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a ticket that is neither settled nor released occupies the probe's slot forever"]
pub(crate) struct Ticket {
    /// Distinguishes the tickets of one circuit.
    number: u64,
    /// The number of openings and of other events before the call began, after which older calls
    /// say nothing.
    round: u64,
    pub(super) kind: Kind,
    started: Instant,
    /// The time that the call took, if it is not the time since its start.
    took: Option<Duration>,
}

/// The reason for which a call was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Probe,
    /// A probe on behalf of all processes, under the given epoch of their votes.
    Leased {
        epoch: u64,
    },
}

impl Ticket {
    /// Returns true if the call is the one by which the breaker learns about the service.
    pub(crate) const fn is_probe(&self) -> bool {
        !matches!(self.kind, Kind::Call)
    }
    /// Tells the time that the call itself took.
    pub(super) const fn lasting(mut self, took: Duration) -> Self {
        self.took = Some(took);
        self
    }
    pub(super) fn is_slow(&self, policy: &BreakerPolicy, now: Instant) -> bool {
        let since_start = now.saturating_duration_since(self.started);
        let took = self.took.unwrap_or(since_start);
        policy.slow_calls.is_some_and(|slow| took > slow.after)
    }
}

/// The answer to a wish to call.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Admission {
    Call(Ticket),
    Probe(Ticket),
    Refused {
        /// The time from which asking again makes sense; `None` while a probe is running, here or
        /// in another process.
        until: Option<Instant>,
    },
}

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CircuitState {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open {
        /// The time at which the next probe may start. `None` if another process probes, which
        /// only a distributed breaker knows.
        until: Option<Instant>,
    },
    /// One call at a time passes, as a probe.
    HalfOpen,
}

/// A change between closed and not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    Opened,
    Closed,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed {
        /// The end of the pause that a throttled probe was told to make.
        paused_until: Option<Instant>,
    },
    /// Open until then, and half-open afterwards.
    Open { until: Instant },
}

/// The circuit of one process.
#[derive(Debug)]
pub(super) struct Circuit {
    policy: BreakerPolicy,
    window: Window,
    phase: Phase,
    round: u64,
    /// The openings since the circuit was last closed.
    openings: u32,
    tickets: u64,
    /// The ticket of the probe that is running.
    probe: Option<u64>,
    /// The end of the longest pause that counted calls were told to make.
    throttled_until: Option<Instant>,
}

impl Circuit {
    pub(super) fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            window: Window::new(policy.window),
            phase: Phase::Closed { paused_until: None },
            round: 0,
            openings: 0,
            tickets: 0,
            probe: None,
            throttled_until: None,
        }
    }

    pub(super) const fn policy(&self) -> &BreakerPolicy {
        &self.policy
    }
    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }
    pub(super) const fn is_probing(&self) -> bool {
        self.probe.is_some()
    }
    /// Returns the number of openings in a row, 0 while closed.
    pub(super) const fn openings(&self) -> u32 {
        self.openings
    }

    pub(super) fn state(&self, now: Instant) -> CircuitState {
        match self.phase {
            Phase::Closed { .. } => CircuitState::Closed,
            Phase::Open { until } if now < until => CircuitState::Open { until: Some(until) },
            Phase::Open { .. } => CircuitState::HalfOpen,
        }
    }

    /// Returns the time from which calls are admitted; `None` while a probe is running.
    pub(super) fn ready_at(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Closed { paused_until } => Some(paused_until.map_or(now, |end| end.max(now))),
            Phase::Open { until } if now < until => Some(until),
            Phase::Open { .. } => self.probe.is_none().then_some(now),
        }
    }

    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match self.ready_at(now) {
            Some(at) if at <= now => match self.phase {
                Phase::Closed { .. } => Admission::Call(self.ticket(Kind::Call, now)),
                Phase::Open { .. } => Admission::Probe(self.probe(Kind::Probe, now)),
            },
            until => Admission::Refused { until },
        }
    }

    /// Gives out the slot for a probe, which must be free.
    pub(super) fn probe(&mut self, kind: Kind, now: Instant) -> Ticket {
        let ticket = self.ticket(kind, now);
        self.probe = Some(ticket.number);
        ticket
    }

    fn ticket(&mut self, kind: Kind, now: Instant) -> Ticket {
        self.tickets += 1;
        Ticket {
            number: self.tickets,
            round: self.round,
            kind,
            started: now,
            took: None,
        }
    }

    /// Ends a call without a verdict: it was cancelled, it panicked, or its partition is lost.
    // By value, since a ticket ends here.
    #[expect(clippy::needless_pass_by_value)]
    pub(super) fn release(&mut self, ticket: Ticket) {
        self.free(&ticket);
    }

    /// Takes in the outcome of a call.
    #[expect(clippy::needless_pass_by_value)]
    pub(super) fn settle(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        if !self.free(&ticket) {
            return;
        }
        let slow = ticket.is_slow(&self.policy, now);
        if ticket.is_probe() {
            match outcome.verdict(slow) {
                Verdict::Reachable { pause } => self.close(pause, now),
                Verdict::Failed => self.open(now),
                Verdict::Unknown => {}
            }
        } else {
            self.count(outcome, slow, now);
        }
    }

    /// Counts a call that was made with a ticket before its last one.
    pub(super) fn count_one(
        &mut self,
        ticket: &Ticket,
        outcome: Outcome,
        took: Duration,
        now: Instant,
    ) {
        if ticket.round == self.round {
            let slow = self.policy.slow_calls.is_some_and(|slow| took > slow.after);
            self.count(outcome, slow, now);
        }
    }

    /// Frees the slot if this ticket has it. Returns true if its call began in the present round,
    /// so that its answer counts.
    ///
    /// A call that began before the opening may end while a probe is running. It must neither
    /// settle the state nor free the slot of the probe.
    pub(super) fn free(&mut self, ticket: &Ticket) -> bool {
        if self.probe == Some(ticket.number) {
            self.probe = None;
        }
        ticket.round == self.round
    }

    fn count(&mut self, outcome: Outcome, slow: bool, now: Instant) {
        let Some(failed) = outcome.counts_as_failed() else {
            return;
        };
        if let Outcome::Throttled { retry_after } = outcome {
            let end = self.throttle_end(retry_after, now);
            self.throttled_until = self.throttled_until.max(Some(end));
        }
        self.window.record(failed, slow, now);
        if self.window.trips(&self.policy) {
            self.open(now);
        }
    }

    fn throttle_end(&self, pause: Duration, now: Instant) -> Instant {
        after(now, pause.min(self.policy.max_throttle))
    }

    /// Opens the circuit, whatever the window says.
    fn open(&mut self, now: Instant) {
        self.openings = self.openings.saturating_add(1);
        let until = after(now, self.policy.open_time(self.openings));
        let until = self.throttled_until.map_or(until, |end| end.max(until));
        self.phase = Phase::Open { until };
        self.next_round();
    }

    /// Closes the circuit because the service has answered. Calls pass once its pause is over.
    pub(super) fn close(&mut self, pause: Duration, now: Instant) {
        let paused_until = (!pause.is_zero()).then(|| self.throttle_end(pause, now));
        self.phase = Phase::Closed { paused_until };
        self.openings = 0;
        self.next_round();
    }

    /// Lets the answers of all calls that are running count no more, and forgets what the window
    /// holds. A probe keeps its slot until it ends, so that there is never a second one beside it.
    pub(super) fn next_round(&mut self) {
        self.round += 1;
        self.window.clear();
        self.throttled_until = None;
    }

    /// Ends the open time at once. A closed circuit stays closed.
    pub(super) fn half_open(&mut self, now: Instant) {
        if let Phase::Open { until } = &mut self.phase {
            *until = now;
        }
    }
}
