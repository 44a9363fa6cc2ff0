//! The breaker around any future.
use super::{
    changes::{Changes, ChangesReceiver},
    circuit::{Admission, CircuitState, Ticket, Transition},
    machine::Breaker,
    outcome::Outcome,
    policy::{BreakerPolicy, InvalidBreaker},
};
use crate::resilience::{Failure, FailureClass};
use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A circuit breaker: refuses calls to a service that has been failing, and tries it again with one
/// call at a time.
///
/// Clones share the state. Create one breaker per service, not per request.
///
/// # Which calls count?
/// - The outcome counts that a call has when its future ends. A future that is dropped before, as
///   by a timeout *around* the call, does not count. Put the timeout inside, as the example of
///   [`call`](Self::call) does.
/// - [`FailureClass::Transient`] and [`FailureClass::Throttled`] are failures.
///   [`FailureClass::Permanent`] is not counted: the service has answered, and will refuse the same
///   request again.
/// - An answer to a call that began before the circuit opened does not count any more.
///
/// # Which call is the probe?
/// Once the open time is over, the first call that comes is the probe. All others are refused until
/// it has ended. If it succeeds or is refused by a service that can be reached, the circuit closes.
/// If the probe is throttled, the circuit closes too, and calls pass after the pause that the
/// service asked for. If it fails, the circuit opens again for twice the time. A probe that is
/// dropped or panics makes room for another one. A probe that never ends keeps all others out,
/// which is one more reason for a timeout inside.
///
/// # Example
/// ```
/// use foldstream::breaker::{BreakerPolicy, CallError, CircuitBreaker, CircuitState};
/// use std::time::Duration;
///
/// # let mut runtime = tokio::runtime::Builder::new_current_thread();
/// # runtime.enable_time().start_paused(true).build()?.block_on(async {
/// let policy = BreakerPolicy::default().with_min_calls(2);
/// let breaker = CircuitBreaker::new(policy)?;
/// for _ in 0..2 {
///     let failed = breaker.call_when(async { Err::<(), _>("busy") }, |_| true).await;
///     assert!(matches!(failed, Err(CallError::Failed("busy"))));
/// }
/// // The service is left alone for a second.
/// let refused = breaker.call_when(async { Ok::<_, &str>(7) }, |_| true).await.unwrap_err();
/// assert_eq!(refused.refused().and_then(|open| open.retry_after), Some(Duration::from_secs(1)));
///
/// tokio::time::sleep(Duration::from_secs(1)).await;
/// assert_eq!(breaker.state(), CircuitState::HalfOpen);
/// assert_eq!(breaker.call_when(async { Ok::<_, &str>(7) }, |_| true).await.ok(), Some(7));
/// assert_eq!(breaker.state(), CircuitState::Closed);
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone)]
pub struct CircuitBreaker {
    shared: Arc<Shared>,
}

struct Shared {
    machine: Mutex<Breaker>,
    users: Mutex<Users>,
    /// Counts the changes after which another admission may be given.
    changes: Changes,
}

impl Default for CircuitBreaker {
    /// Creates a breaker with the default policy.
    fn default() -> Self {
        Self::of(Breaker::new(BreakerPolicy::default()))
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("CircuitBreaker");
        shown.field("state", &self.state()).finish_non_exhaustive()
    }
}

impl CircuitBreaker {
    /// Creates a closed breaker for one process.
    ///
    /// # Errors
    /// [`InvalidBreaker`] if the policy makes no sense, as [`BreakerPolicy::validate`] says.
    pub fn new(policy: BreakerPolicy) -> Result<Self, InvalidBreaker> {
        policy.validate()?;
        Ok(Self::of(Breaker::new(policy)))
    }

    pub(super) fn of(machine: Breaker) -> Self {
        Self {
            shared: Arc::new(Shared {
                machine: Mutex::new(machine),
                users: Mutex::default(),
                changes: Changes::default(),
            }),
        }
    }

    /// Awaits a future if the circuit lets it pass, and learns from its result. The future is not
    /// polled if the call is refused.
    ///
    /// # Example
    /// With a timeout and the retries of [`resilience`](crate::resilience). A refused call counts
    /// as throttled there, so the retry waits until the next probe may start, and that time does
    /// not count towards its limit:
    /// ```
    /// use foldstream::{RetryPolicy, breaker::CircuitBreaker};
    /// use foldstream::resilience::{Failure, FailureClass, Retryable};
    /// use std::{cell::Cell, time::Duration};
    ///
    /// #[derive(Debug)]
    /// struct Late;
    /// impl Failure for Late {
    ///     fn failure_class(&self) -> FailureClass {
    ///         FailureClass::Transient
    ///     }
    /// }
    /// # let mut runtime = tokio::runtime::Builder::new_current_thread();
    /// # runtime.enable_time().start_paused(true).build()?.block_on(async {
    /// let (breaker, calls) = (CircuitBreaker::default(), Cell::new(0));
    /// // The service hangs for its first seven callers.
    /// let ask = async || {
    ///     calls.set(calls.get() + 1);
    ///     let answer = async {
    ///         if calls.get() <= 7 {
    ///             std::future::pending::<()>().await;
    ///         }
    ///         "paid"
    ///     };
    ///     tokio::time::timeout(Duration::from_secs(1), answer).await.map_err(|_| Late)
    /// };
    /// let answer = (|| breaker.call(ask())).retry(RetryPolicy::default());
    /// let answer = answer.when(Failure::failure_class).run().await;
    /// assert_eq!((answer.ok(), calls.get()), (Some("paid"), 8));
    /// # Ok::<(), foldstream::BoxError>(()) })?;
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    ///
    /// # Cancellation
    /// If this future is dropped, its call is not counted, and the slot of a probe is free again.
    ///
    /// # Errors
    /// - [`CallError::Refused`] if the circuit is open, or if it is half-open and another call is
    ///   the probe.
    /// - [`CallError::Failed`] if the future returns an error.
    pub async fn call<T, E: Failure>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, CallError<E>> {
        self.call_when(future, E::failure_class).await
    }

    /// Awaits a future as [`call`](Self::call) does, if its error does not implement [`Failure`].
    ///
    /// `classify` is a predicate that is true for transient errors, such as
    /// `EventStoreError::is_transient`, or a function that returns a [`FailureClass`].
    ///
    /// # Cancellation
    /// If this future is dropped, its call is not counted, and the slot of a probe is free again.
    ///
    /// # Errors
    /// - [`CallError::Refused`] if the circuit is open, or if it is half-open and another call is
    ///   the probe.
    /// - [`CallError::Failed`] if the future returns an error.
    pub async fn call_when<T, E, C: Into<FailureClass>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
        classify: impl FnOnce(&E) -> C,
    ) -> Result<T, CallError<E>> {
        // Dropping the permit, also while a panic unwinds, frees the slot of a probe.
        let permit = self.permit(Instant::now()).map_err(CallError::Refused)?;
        let result = future.await;
        let outcome = match &result {
            Ok(_) => Outcome::Success,
            Err(error) => Outcome::from(classify(error).into()),
        };
        permit.settle(outcome, Instant::now());
        result.map_err(CallError::Failed)
    }

    /// Returns the state of the circuit at present.
    pub fn state(&self) -> CircuitState {
        self.state_at(Instant::now())
    }

    /// Returns the number of processes that count the service as away, as this process last saw it;
    /// 0 for a breaker that is not distributed.
    pub fn votes(&self) -> usize {
        self.machine().votes(Instant::now())
    }

    /// Returns the state of the circuit at a time.
    pub(crate) fn state_at(&self, now: Instant) -> CircuitState {
        self.machine().state(now)
    }

    /// Answers whether a call may start now. The ticket must come back.
    pub(crate) fn admit(&self, now: Instant) -> Admission {
        self.machine().admit(now)
    }

    /// Answers whether a call may start now, with a permit that frees its slot when it is dropped.
    pub(crate) fn permit(&self, now: Instant) -> Result<Permit, CircuitOpen> {
        match self.admit(now) {
            Admission::Call(ticket) | Admission::Probe(ticket) => Ok(Permit {
                breaker: self.clone(),
                ticket: Some(ticket),
            }),
            Admission::Refused { until } => Err(CircuitOpen {
                retry_after: until.map(|until| until.saturating_duration_since(now)),
            }),
        }
    }

    /// Takes in the outcome of an admitted call.
    pub(crate) fn settle(
        &self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Transition> {
        let is_probe = ticket.is_probe();
        let transition = self.machine().settle(ticket, outcome, now);
        if is_probe {
            self.notify();
        }
        self.report(transition)
    }

    /// Ends an admitted call that has no outcome.
    pub(crate) fn release(&self, ticket: Ticket) {
        let is_probe = ticket.is_probe();
        self.machine().release(ticket);
        // The end of another call lets nobody pass who was refused before.
        if is_probe {
            self.notify();
        }
    }

    /// Returns a handle for one processor, which may share the breaker with others of its process.
    pub(crate) fn user(&self) -> User {
        let mut users = self.users();
        users.last += 1;
        let number = users.last;
        users.all.insert(number, Needs::default());
        drop(users);
        User {
            breaker: self.clone(),
            number,
        }
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        let users = self.shared.users.lock();
        users.unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether this process has work that needs the service. Without any the circuit closes.
    pub(crate) fn set_serving(&self, serving: bool, now: Instant) -> Option<Transition> {
        let (changed, transition) = self.machine().set_serving(serving, now);
        // Only changes are told, or whoever repeats this after each of them would never rest.
        if changed {
            self.notify();
        }
        self.report(transition)
    }

    /// Says whether work is held back that would be the probe. Only a distributed breaker asks:
    /// a process in which nothing waits leaves the probe to the others.
    pub(crate) fn set_waiting(&self, waiting: bool) {
        if self.machine().set_waiting(waiting) {
            self.notify();
        }
    }

    /// Returns the time from which `admit` no longer refuses, if that depends on time alone.
    pub(crate) fn ready_at(&self, now: Instant) -> Option<Instant> {
        self.machine().ready_at(now)
    }

    /// Returns a receiver that is notified when another admission may be given than before.
    pub(crate) fn changes(&self) -> ChangesReceiver {
        self.shared.changes.subscribe()
    }

    /// Logs a transition, and notifies those who wait for one.
    pub(super) fn report(&self, transition: Option<Transition>) -> Option<Transition> {
        match transition? {
            Transition::Opened => tracing::warn!("the circuit breaker has opened"),
            Transition::Closed => tracing::info!("the circuit breaker has closed"),
        }
        self.notify();
        transition
    }

    pub(super) fn notify(&self) {
        self.shared.changes.notify();
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Breaker> {
        // No user code runs under the lock, and the machine does not panic.
        let machine = self.shared.machine.lock();
        machine.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The processors of a process that share a breaker.
#[derive(Debug, Default)]
struct Users {
    last: u64,
    all: BTreeMap<u64, Needs>,
}

/// The needs of one processor.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    /// It has work that needs the service.
    is_serving: bool,
    /// It holds work back that would be the probe.
    is_waiting: bool,
}

/// One processor that uses a breaker. The process needs the service for as long as any of its
/// processors does; one that is dropped needs it no more.
#[derive(Debug)]
pub(crate) struct User {
    breaker: CircuitBreaker,
    number: u64,
}

impl User {
    pub(crate) const fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }
    /// Says whether this processor has work that needs the service.
    pub(crate) fn set_serving(&self, is_serving: bool, now: Instant) {
        let mut users = self.breaker.users();
        if let Some(needs) = users.all.get_mut(&self.number) {
            needs.is_serving = is_serving;
        }
        // Under the lock, so that two processors do not tell the breaker in another order.
        let any = users.all.values().any(|needs| needs.is_serving);
        self.breaker.set_serving(any, now);
        drop(users);
    }
    /// Says whether this processor holds work back that would be the probe.
    pub(crate) fn set_waiting(&self, is_waiting: bool) {
        let mut users = self.breaker.users();
        if let Some(needs) = users.all.get_mut(&self.number) {
            needs.is_waiting = is_waiting;
        }
        let any = users.all.values().any(|needs| needs.is_waiting);
        self.breaker.set_waiting(any);
        drop(users);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut users = self.breaker.users();
        let needs = users.all.remove(&self.number).unwrap_or_default();
        if needs.is_waiting {
            let any = users.all.values().any(|needs| needs.is_waiting);
            self.breaker.set_waiting(any);
        }
        if needs.is_serving {
            let any = users.all.values().any(|needs| needs.is_serving);
            self.breaker.set_serving(any, Instant::now());
        }
    }
}

/// The right to make one call, which ends when it is settled or dropped.
#[derive(Debug)]
#[must_use = "a dropped permit ends the call"]
pub(crate) struct Permit {
    breaker: CircuitBreaker,
    ticket: Option<Ticket>,
}

impl Permit {
    /// Returns true if the call is the one by which the breaker learns about the service.
    pub(crate) fn is_probe(&self) -> bool {
        self.ticket.as_ref().is_some_and(Ticket::is_probe)
    }
    /// Takes in the outcome of the call.
    pub(crate) fn settle(mut self, outcome: Outcome, now: Instant) -> Option<Transition> {
        let ticket = self.ticket.take()?;
        self.breaker.settle(ticket, outcome, now)
    }
    /// Takes in the outcomes of several calls, one after the other, with the time that each took:
    /// those that went well, and then one that has failed. Of a probe the first one decides. None
    /// at all ends the permit without an outcome.
    pub(crate) fn settle_all(
        mut self,
        answered: &[Duration],
        failed: Option<(Outcome, Duration)>,
        now: Instant,
    ) {
        let answered = answered.iter().map(|took| (Outcome::Success, *took));
        let mut calls = answered.chain(failed);
        let Some(mut call) = calls.next() else {
            return;
        };
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        if !ticket.is_probe() {
            let mut counted = None;
            for next in calls {
                let (outcome, took) = std::mem::replace(&mut call, next);
                let transition = self.breaker.machine().count(&ticket, outcome, took, now);
                counted = counted.or(transition);
            }
            self.breaker.report(counted);
        }
        self.breaker.settle(ticket.lasting(call.1), call.0, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.breaker.release(ticket);
        }
    }
}

/// The error returned for a call that goes through a [`CircuitBreaker`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError<E> {
    /// The call was not made.
    #[error("the call was not made")]
    Refused(#[source] CircuitOpen),
    /// The call was made and failed.
    #[error("the call failed")]
    Failed(#[source] E),
}

impl<E> CallError<E> {
    /// Returns the refusal if the call was not made.
    pub const fn refused(&self) -> Option<CircuitOpen> {
        match self {
            Self::Refused(open) => Some(*open),
            Self::Failed(_) => None,
        }
    }
    /// Returns the error of the call if it was made.
    pub fn failed(self) -> Option<E> {
        match self {
            Self::Refused(_) => None,
            Self::Failed(error) => Some(error),
        }
    }
}

impl<E: Failure> Failure for CallError<E> {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Refused(open) => open.failure_class(),
            Self::Failed(error) => error.failure_class(),
        }
    }
}

/// The reason for which a call was refused: its circuit is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitOpen {
    /// The time after which the next call may pass. `None` if that depends on a probe that is
    /// running.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for CircuitOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the circuit breaker is open, ")?;
        match self.retry_after {
            Some(time) => write!(f, "the next call may pass in {time:?}"),
            None => f.write_str("and a probe is running"),
        }
    }
}

impl Error for CircuitOpen {}

impl Failure for CircuitOpen {
    /// Returns [`FailureClass::Throttled`]: the next call may pass later, and waiting for it burns
    /// no attempt.
    fn failure_class(&self) -> FailureClass {
        FailureClass::Throttled {
            retry_after: self.retry_after.unwrap_or_default(),
        }
    }
}
