//! The circuit breaker around the calls of a handler: while it is open, partitions are paused, what
//! fails goes back to its lane with no attempt spent, and the clocks of retries stand still.
use super::{Ended, Machine, Outcome, lanes::LaneKey};
use crate::{
    breaker::{CircuitBreaker, CircuitState, Outcome as CallOutcome, Permit, User},
    runner::ErrorClass,
};
use tokio::time::Instant;

/// The breaker of a processor, as its machine sees it.
#[derive(Debug)]
pub(super) struct Guard {
    breaker: Option<User>,
    /// The time since which no call is made, so that the clocks of retries stand still.
    frozen_since: Option<Instant>,
    /// When the next call may be admitted, if that depends on time alone.
    ready_at: Option<Instant>,
    /// When the next record has waited out a pause that no probe may shorten.
    pause_over_at: Option<Instant>,
    /// The lane whose probe has failed last: another one gets the next.
    failed_probe: Option<LaneKey>,
    serves: bool,
    /// The attempts that were started before the circuit opened were told to end.
    has_called_back: bool,
}

impl Guard {
    pub(super) fn new(breaker: Option<&CircuitBreaker>) -> Self {
        Self {
            breaker: breaker.map(CircuitBreaker::user),
            frozen_since: None,
            ready_at: None,
            pause_over_at: None,
            failed_probe: None,
            serves: false,
            has_called_back: false,
        }
    }

    /// Returns true if a breaker admits the calls.
    pub(super) const fn is_there(&self) -> bool {
        self.breaker.is_some()
    }

    /// Returns true if the clocks of retries go.
    pub(super) const fn is_going(&self) -> bool {
        self.frozen_since.is_none()
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.ready_at.into_iter().chain(self.pause_over_at).min()
    }

    pub(super) fn state(&self, now: Instant) -> Option<CircuitState> {
        Some(self.breaker.as_ref()?.breaker().state_at(now))
    }

    fn is_closed(&self, now: Instant) -> bool {
        self.state(now)
            .is_none_or(|state| state == CircuitState::Closed)
    }
}

impl Machine {
    /// Follows the breaker: freezes and thaws the clocks of retries.
    pub(super) fn advance_breaker(&mut self, now: Instant) {
        let serves = !self.partitions.owned.is_empty();
        if let Some(user) = &self.guard.breaker
            && serves != self.guard.serves
        {
            self.guard.serves = serves;
            user.set_serving(serves, now);
        }
        let is_closed = self.guard.is_closed(now);
        self.advance_clocks(is_closed && !self.polling.is_paused, now);
        let Some(user) = &self.guard.breaker else {
            return;
        };
        self.guard.pause_over_at = None;
        if is_closed {
            self.guard.failed_probe = None;
            self.guard.has_called_back = false;
        } else {
            if !self.guard.has_called_back {
                // What has begun ends after its call, and the others do not call at all.
                self.guard.has_called_back = true;
                self.attempts.finish(None, &mut self.out);
            }
            user.set_waiting(self.lanes.has_any());
            // While the circuit is not closed, whatever waits for the service is as good a probe.
            let failed = self.guard.failed_probe.as_ref();
            self.lanes.wake_one_for_probe(failed, now);
            self.guard.pause_over_at = self.lanes.next_pause(now);
        }
        self.guard.ready_at = if is_closed && self.guard.ready_at.is_none() {
            None
        } else {
            let ready_at = user.breaker().ready_at(now);
            ready_at.filter(|at| *at > now)
        };
    }

    /// Lets the clocks of retries stand still while no call is made.
    fn advance_clocks(&mut self, may_call: bool, now: Instant) {
        match (may_call, self.guard.frozen_since) {
            (false, None) => self.guard.frozen_since = Some(now),
            (true, Some(since)) => {
                self.guard.frozen_since = None;
                self.lanes.thaw(now.saturating_duration_since(since));
            }
            _ => {}
        }
    }

    /// Returns the right to make a call, or `None` if there is none now.
    pub(super) fn permit(&mut self, now: Instant) -> Result<Option<Permit>, ()> {
        let Some(breaker) = &self.guard.breaker else {
            return Ok(None);
        };
        match breaker.breaker().permit(now) {
            Ok(permit) => {
                // Another processor may have closed the circuit, and it may open again before this
                // one has noticed.
                self.guard.has_called_back &= permit.is_probe();
                Ok(Some(permit))
            }
            Err(open) => {
                self.guard.ready_at = open.retry_after.map(|pause| super::later(now, pause));
                Err(())
            }
        }
    }

    /// Tells the breaker how the calls of an attempt have ended. Returns true if the failure is one
    /// of the service, while the circuit is not closed: then the event keeps its attempts. What
    /// fails without a call, such as a read of the event, says nothing about the service.
    pub(super) fn settle_calls(
        &mut self,
        permit: Option<Permit>,
        lane: &LaneKey,
        ended: &Ended,
        now: Instant,
    ) -> bool {
        let Some(permit) = permit else {
            return false;
        };
        let is_probe = permit.is_probe();
        let (calls, failure) = (
            &ended.calls,
            match &ended.result {
                Outcome::Failed(failure) => Some(failure.error.class()),
                Outcome::Done | Outcome::Cancelled => None,
            },
        );
        let failed = calls.failed.and_then(|took| Some((failure?, took)));
        let outcome = failed.map(|(class, took)| (CallOutcome::from(class), took));
        permit.settle_all(&calls.answered, outcome, now);
        let is_of_service = matches!(
            failed,
            Some((ErrorClass::Transient | ErrorClass::Throttled { .. }, _))
        );
        let is_open = !self.guard.is_closed(now);
        if is_probe && is_open && failure.is_some() {
            self.guard.failed_probe = Some(lane.clone());
        }
        is_of_service && is_open
    }

    /// Returns true if partitions are to be paused because of the breaker.
    pub(super) fn breaker_pauses(&self, now: Instant) -> bool {
        match self.guard.state(now) {
            None | Some(CircuitState::Closed) => false,
            // Of a breaker that several processes share, one that has no record takes part in the
            // probe only once a record has come.
            Some(CircuitState::Open { until: None }) => self.lanes.has_any(),
            // Somebody has to be the probe: a record that waits, or else the first to come. The one
            // whose probe has failed last may be what fails, and not the service.
            Some(CircuitState::HalfOpen) => {
                self.lanes.has_other_than(self.guard.failed_probe.as_ref())
            }
            Some(_) => true,
        }
    }
}
