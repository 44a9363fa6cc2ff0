//! The loop around [`Retrying`]: asks for the next pause, sleeps, and tries again.
use super::{Failure, FailureClass, RetryPolicy, Retrying};
use std::{
    fmt,
    future::{Future, Pending, pending},
    marker::PhantomData,
    pin::pin,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The function that [`Retry::notify`] replaces.
type Silent<E> = fn(&E, u32, Duration);

/// A call that can be repeated when it fails: `call.retry(policy).when(is_transient).run().await`.
///
/// The trait is implemented for every function that returns a future of a result. Only calls that
/// are safe to repeat may be retried.
pub trait Retryable<T, E, Fut>: FnMut() -> Fut + Sized
where
    Fut: Future<Output = Result<T, E>>,
{
    /// Starts to describe a retry of this call under a policy. [`Retry::when`] selects the errors
    /// that are repeated, and [`Retry::run`] runs it.
    fn retry(self, policy: RetryPolicy) -> Retry<Self, E> {
        Retry {
            call: self,
            policy,
            classify: (),
            notify: |_, _, _| {},
            stop: pending(),
            of: PhantomData,
        }
    }
}
impl<T, E, Fut, F> Retryable<T, E, Fut> for F
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
}

/// A call and the way in which it is repeated. Created by [`Retryable::retry`].
#[must_use = "nothing is called before `run`"]
pub struct Retry<F, E, W = (), N = Silent<E>, S = Pending<()>> {
    call: F,
    policy: RetryPolicy,
    classify: W,
    notify: N,
    stop: S,
    of: PhantomData<fn(&E)>,
}

impl<F, E, W, N, S> fmt::Debug for Retry<F, E, W, N, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Retry");
        shown.field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl<F, E, W, N, S> Retry<F, E, W, N, S> {
    /// Sets which errors are repeated: a predicate that is true for transient errors, such as
    /// `EventStoreError::is_transient`, or a function that returns a [`FailureClass`], such as
    /// [`Failure::failure_class`].
    pub fn when<W2, C>(self, classify: W2) -> Retry<F, E, W2, N, S>
    where
        W2: Fn(&E) -> C,
        C: Into<FailureClass>,
    {
        Retry {
            call: self.call,
            policy: self.policy,
            classify,
            notify: self.notify,
            stop: self.stop,
            of: PhantomData,
        }
    }

    /// Sets a function that is called before each pause with the error, the number of the attempt
    /// that failed, from 1, and the pause.
    pub fn notify<N2>(self, notify: N2) -> Retry<F, E, W, N2, S>
    where
        N2: FnMut(&E, u32, Duration),
    {
        Retry {
            call: self.call,
            policy: self.policy,
            classify: self.classify,
            notify,
            stop: self.stop,
            of: PhantomData,
        }
    }

    /// Sets a future that ends the pauses when it is ready. The last error is then returned. An
    /// attempt that has begun is never interrupted.
    pub fn until<S2>(self, stop: S2) -> Retry<F, E, W, N, S2>
    where
        S2: Future<Output = ()>,
    {
        Retry {
            call: self.call,
            policy: self.policy,
            classify: self.classify,
            notify: self.notify,
            stop,
            of: PhantomData,
        }
    }

    /// Calls until the call succeeds, or until a repeat is of no use.
    ///
    /// # Errors
    /// The error of the last attempt if it is permanent, if the time of the policy is over, or if
    /// the retry was stopped.
    pub async fn run<T, Fut, C>(mut self) -> Result<T, E>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        W: Fn(&E) -> C,
        C: Into<FailureClass>,
        N: FnMut(&E, u32, Duration),
        S: Future<Output = ()>,
    {
        let mut stop = pin!(self.stop);
        let mut attempts = Attempts::new(self.policy);
        loop {
            let error = match (self.call)().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(pause) = attempts.next((self.classify)(&error).into()) else {
                return Err(error);
            };
            (self.notify)(&error, attempts.failed(), pause);
            if !rest(pause, &mut stop).await {
                return Err(error);
            }
        }
    }
}

/// The attempts of one call, for loops that [`Retryable`] cannot express: [`Retrying`] on tokio's
/// clock.
///
/// # Example
/// ```
/// use foldstream::{RetryPolicy, resilience::{Attempts, FailureClass}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let mut answers = [Err("busy"), Ok(7)].into_iter();
/// let mut attempts = Attempts::new(RetryPolicy::default());
/// let answer = loop {
///     match answers.next().unwrap_or(Err("gone")) {
///         Ok(answer) => break Some(answer),
///         Err("busy") if attempts.wait(FailureClass::Transient).await => {}
///         Err(_) => break None,
///     }
/// };
/// assert_eq!((answer, attempts.failed()), (Some(7), 1));
/// # }
/// ```
#[derive(Debug)]
pub struct Attempts<'a> {
    policy: RetryPolicy,
    retrying: Retrying,
    failing_since: Option<Instant>,
    stop: Option<&'a CancellationToken>,
}

impl Attempts<'static> {
    /// Creates attempts of which none has failed yet.
    #[must_use]
    pub const fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            retrying: Retrying::new(policy),
            failing_since: None,
            stop: None,
        }
    }
    /// Sets the token that ends the pauses when it is cancelled.
    #[must_use]
    pub(crate) const fn until(self, stop: &CancellationToken) -> Attempts<'_> {
        Attempts {
            policy: self.policy,
            retrying: self.retrying,
            failing_since: self.failing_since,
            stop: Some(stop),
        }
    }
}

impl Attempts<'_> {
    /// Returns the pause before the next attempt, or `None` if there must be none.
    #[must_use]
    pub fn next(&mut self, class: FailureClass) -> Option<Duration> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        self.retrying.next(class, since.elapsed())
    }

    /// Returns the number of attempts that have failed or were throttled.
    #[must_use]
    pub const fn failed(&self) -> u32 {
        self.retrying.attempts()
    }

    /// Forgets the failures so far, because the call has made progress.
    pub fn reset(&mut self) {
        self.retrying = Retrying::new(self.policy);
        self.failing_since = None;
    }

    /// Waits until the call may be repeated. Returns false if it must not be, or if the attempts
    /// were stopped meanwhile.
    pub async fn wait(&mut self, class: FailureClass) -> bool {
        let Some(pause) = self.next(class) else {
            return false;
        };
        self.rest(pause).await
    }

    /// Sleeps for a pause that [`next`](Self::next) has returned. Returns false if the attempts
    /// were stopped meanwhile.
    pub async fn rest(&self, pause: Duration) -> bool {
        match self.stop {
            Some(stop) => rest(pause, stop.cancelled()).await,
            None => rest(pause, pending()).await,
        }
    }

    /// Waits until the call may be repeated.
    ///
    /// # Errors
    /// The given error if the call must not be repeated, or if the attempts were stopped meanwhile.
    pub async fn wait_or<E: Failure>(&mut self, error: E) -> Result<(), E> {
        if self.wait(error.failure_class()).await {
            Ok(())
        } else {
            Err(error)
        }
    }
}

/// Sleeps for a pause. Returns false if `stop` was ready first.
async fn rest(pause: Duration, stop: impl Future<Output = ()>) -> bool {
    tokio::select! {
        biased;
        () = stop => false,
        () = tokio::time::sleep(pause) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backoff, ports::ControlStoreError};
    use std::{cell::RefCell, future::ready};

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Answer {
        Busy,
        SlowDown(Duration),
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

    fn policy() -> RetryPolicy {
        RetryPolicy::new(Backoff::new(SECOND, 4 * SECOND), 60 * SECOND).with_immediate(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_repeated_until_it_succeeds_and_each_pause_is_told_before() {
        let mut answers = [
            Err(Answer::Busy),
            Err(Answer::Busy),
            Err(Answer::SlowDown(7 * SECOND)),
            Ok("done"),
        ]
        .into_iter();
        let (started, told) = (Instant::now(), RefCell::new(Vec::new()));
        let done = (|| ready(answers.next().unwrap()))
            .retry(policy())
            .when(Failure::failure_class)
            .notify(|error, attempt, pause| {
                told.borrow_mut()
                    .push((*error, attempt, pause, started.elapsed()));
            })
            .run()
            .await;
        assert_eq!(done, Ok("done"));
        let told = told.into_inner();
        let [first, second, third] = told[..] else {
            panic!("{told:?}")
        };
        assert_eq!(first, (Answer::Busy, 1, Duration::ZERO, Duration::ZERO));
        assert_eq!((second.0, second.1), (Answer::Busy, 2));
        assert_eq!((third.0, third.1), (Answer::SlowDown(7 * SECOND), 3));
        assert_eq!(third.2, 7 * SECOND);
        assert!(third.3 >= second.2 && started.elapsed() >= third.3 + third.2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_is_returned_at_once() {
        let mut calls = 0;
        let refused = (|| {
            calls += 1;
            ready(Err::<(), _>(Answer::No))
        })
        .retry(policy())
        .when(|error| *error != Answer::No)
        .notify(|_, _, _| panic!("there is no pause"))
        .run();
        assert_eq!(refused.await, Err(Answer::No));
        assert_eq!(calls, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_error_is_returned_when_the_time_is_over() {
        let started = Instant::now();
        let mut calls = 0;
        let failed = (|| {
            calls += 1;
            ready(Err::<(), _>(calls))
        })
        .retry(policy())
        .when(|_| true)
        .run();
        let last = failed.await.unwrap_err();
        assert!(last > 10, "{last}");
        let took = started.elapsed();
        assert!((60 * SECOND..61 * SECOND).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_the_first_attempt_does_not_count() {
        let mut calls = 0;
        let failed = (|| {
            calls += 1;
            async {
                tokio::time::sleep(120 * SECOND).await;
                Err::<(), _>(Answer::Busy)
            }
        })
        .retry(policy())
        .when(Failure::failure_class)
        .run();
        failed.await.unwrap_err();
        assert_eq!(calls, 2, "an attempt that hangs is repeated once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_a_pause_but_no_attempt() {
        let stop = CancellationToken::new();
        let (started, mut calls) = (Instant::now(), 0);
        let call = || {
            calls += 1;
            let (stop, calls) = (stop.clone(), calls);
            async move {
                if calls == 3 {
                    stop.cancel();
                    tokio::time::sleep(5 * SECOND).await;
                }
                Err::<(), _>(calls)
            }
        };
        let hourly = policy().with_immediate(9);
        let stopped = call.retry(hourly).when(|_| true).until(stop.cancelled());
        assert_eq!(stopped.run().await, Err(3));
        assert_eq!(started.elapsed(), 5 * SECOND);

        let waits = CancellationToken::new();
        let mut attempts = Attempts::new(RetryPolicy::forever(Backoff::new(
            3600 * SECOND,
            3600 * SECOND,
        )))
        .until(&waits);
        let started = Instant::now();
        let (went_on, ()) = tokio::join!(attempts.wait(FailureClass::Transient), async {
            tokio::time::sleep(SECOND).await;
            waits.cancel();
        });
        assert!(!went_on && started.elapsed() <= SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_start_again_after_progress() {
        let mut attempts = Attempts::new(policy());
        let busy = || ControlStoreError::Unavailable {
            source: "busy".into(),
        };
        while attempts.wait_or(busy()).await.is_ok() {}
        assert!(!attempts.wait(FailureClass::Transient).await);
        attempts.reset();
        assert_eq!(attempts.failed(), 0);
        attempts.wait_or(busy()).await.unwrap();
        assert_eq!(attempts.failed(), 1);
    }
}
