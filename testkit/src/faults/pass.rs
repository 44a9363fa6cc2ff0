//! The way of one call through its faults, which all wrappers share.
use super::{Call, Fault, Faults, Moment};
use foldstream::{
    BoxError, StreamHead,
    ports::{
        AppendAll, AppendOutcome, ControlStoreError, DeleteOutcome, EventStoreError,
        MessageBusError, PendingAppend, PutOutcome, RefusedKind, RunOutcome, SaveOutcome,
        SnapshotStoreError,
    },
};
use futures::future::BoxFuture;
use std::{future::Future, time::Duration};
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

/// An error type of a port, as faults create it.
pub(super) trait PortError: Sized + Send + 'static {
    /// Returns the error of a call that was certainly not carried out.
    fn unavailable(source: BoxError) -> Self;
    /// Returns the error of a call whose outcome the caller cannot know.
    fn unknown(_: &Call<'_>, source: BoxError) -> Self {
        Self::unavailable(source)
    }
    /// Returns the error of a throttled call.
    fn throttled(retry_after: Option<Duration>, source: BoxError) -> Self;
    /// Returns the error of a call that the backend refuses.
    fn refused(kind: RefusedKind, reason: String, source: BoxError) -> Self;
}

macro_rules! port_error {
    ($error:ident { $($pending:ident)? } $($unknown:tt)*) => {
        impl PortError for $error {
            fn unavailable(source: BoxError) -> Self {
                Self::Unavailable { $($pending: None,)? source }
            }
            $($unknown)*
            fn refused(kind: RefusedKind, reason: String, source: BoxError) -> Self {
                Self::Refused { kind, reason, source }
            }
        }
    };
}
port_error! { EventStoreError { pending }
    fn unknown(call: &Call<'_>, source: BoxError) -> Self {
        let pending = match call {
            Call::Append(append) => Some(AppendAll::new(vec![(*append).clone()])),
            Call::AppendAll(all) => Some((*all).clone()),
            _ => None,
        };
        Self::Unavailable { pending: pending.map(PendingAppend::new), source }
    }
    fn throttled(retry_after: Option<Duration>, source: BoxError) -> Self {
        Self::Throttled { retry_after, source }
    }
}
port_error! { SnapshotStoreError {}
    fn throttled(retry_after: Option<Duration>, source: BoxError) -> Self {
        Self::Throttled { retry_after, source }
    }
}
port_error! { ControlStoreError {}
    fn throttled(retry_after: Option<Duration>, source: BoxError) -> Self {
        Self::Throttled { retry_after, source }
    }
}
port_error! { MessageBusError {}
    fn throttled(_: Option<Duration>, source: BoxError) -> Self {
        Self::Unavailable { source }
    }
}

/// An answer of a port, which says if the call took effect.
pub(super) trait Answer {
    /// Returns true if the call took effect, as a conflict does not.
    fn took_effect(&self) -> bool {
        true
    }
}
impl Answer for AppendOutcome<StreamHead> {
    fn took_effect(&self) -> bool {
        !matches!(self, Self::Conflict(_))
    }
}
impl Answer for AppendOutcome<Vec<StreamHead>> {
    fn took_effect(&self) -> bool {
        !matches!(self, Self::Conflict(_))
    }
}
impl Answer for PutOutcome {
    fn took_effect(&self) -> bool {
        *self == Self::Written
    }
}
impl Answer for DeleteOutcome {
    fn took_effect(&self) -> bool {
        *self == Self::Deleted
    }
}
impl Answer for SaveOutcome {
    fn took_effect(&self) -> bool {
        *self == Self::Saved
    }
}
impl Answer for RunOutcome {
    fn took_effect(&self) -> bool {
        self.durable > 0
    }
}
/// An answer that always means that the call took effect.
pub(super) struct Plain<T>(pub(super) T);
impl<T> Answer for Plain<T> {}

/// The late delivery of a request that the caller has given up.
pub(super) type Late = BoxFuture<'static, ()>;

pub(super) fn says_the_test(what: &str) -> BoxError {
    format!("injected by the test: {what}").into()
}

impl Faults {
    /// Waits until the process is alive and the request has arrived, delays included. Returns the
    /// fault of the call, if any.
    pub(super) async fn arrive(&self, call: &Call<'_>) -> Option<Fault> {
        self.life.gate().await;
        let (delay, fault) = self.plan.strike(call);
        match fault {
            Some(Fault::CrashBefore) => self.life.crash(),
            Some(Fault::Freeze(by)) => self.life.freeze(Some(Instant::now() + by)),
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        // A call over a network always waits for something, so a caller's future can be dropped
        // here, before the call takes effect. Without this, calls of in-memory adapters would never
        // do so.
        yield_now().await;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        self.life.gate().await;
        fault
    }

    /// Carries out a call at the backend and informs the probe before and after it.
    pub(super) async fn reach<T: Answer, E>(
        &self,
        call: &Call<'_>,
        act: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.plan.tell_probe(Moment::Reaches, call);
        let answer = act.await;
        if answer.as_ref().is_ok_and(Answer::took_effect) {
            self.plan.tell_probe(Moment::Done, call);
        }
        answer
    }

    /// Returns the error of a fault that prevents the call, or `None` for a fault that does not.
    pub(super) fn failure<E: PortError>(&self, call: &Call<'_>, fault: &Fault) -> Option<E> {
        Some(match fault {
            Fault::Unavailable => E::unavailable(says_the_test("unavailable")),
            Fault::Throttled(after) => E::throttled(*after, says_the_test("throttled")),
            Fault::Refused(kind) => {
                E::refused(*kind, "the test says so".into(), says_the_test("refused"))
            }
            Fault::Error(error) => error.make(),
            Fault::LoseRequest => E::unknown(call, says_the_test("the request was lost")),
            Fault::ApplyLate(_) => E::unknown(call, says_the_test("the request is late")),
            _ => return None,
        })
    }

    /// Passes one call through its faults. `late` carries out the call after the caller has given
    /// up.
    pub(super) async fn pass<'b, T: Answer, E: PortError>(
        &self,
        call: Call<'_>,
        act: impl Fn() -> BoxFuture<'b, Result<T, E>>,
        late: impl FnOnce() -> Late,
    ) -> Result<T, E> {
        let fault = self.arrive(&call).await;
        self.finish(call, fault, act, late).await
    }

    /// Passes a call that writes nothing, and so cannot arrive late, through its faults.
    pub(super) async fn ask<'b, T: 'b, E: PortError>(
        &self,
        call: Call<'_>,
        act: impl Fn() -> BoxFuture<'b, Result<T, E>>,
    ) -> Result<T, E> {
        let fault = self.arrive(&call).await;
        self.finish_asking(call, fault, act).await
    }

    /// Finishes a call that writes nothing and has arrived with this fault.
    pub(super) async fn finish_asking<'b, T: 'b, E: PortError>(
        &self,
        call: Call<'_>,
        fault: Option<Fault>,
        act: impl Fn() -> BoxFuture<'b, Result<T, E>>,
    ) -> Result<T, E> {
        let act = || -> BoxFuture<'b, Result<Plain<T>, E>> {
            let answer = act();
            Box::pin(async { answer.await.map(Plain) })
        };
        let never = || -> Late { Box::pin(async {}) };
        let Plain(answer) = self.finish(call, fault, act, never).await?;
        Ok(answer)
    }

    /// Finishes a call that has arrived with this fault.
    pub(super) async fn finish<'b, T: Answer, E: PortError>(
        &self,
        call: Call<'_>,
        fault: Option<Fault>,
        act: impl Fn() -> BoxFuture<'b, Result<T, E>>,
        late: impl FnOnce() -> Late,
    ) -> Result<T, E> {
        if let Some(Fault::ApplyLate(by)) = fault {
            let late = late();
            // A task of its own, because the caller may have been dropped and its process may be
            // dead by then.
            tokio::spawn(async move {
                sleep(by).await;
                late.await;
            });
        }
        let failure = fault.as_ref().and_then(|fault| self.failure(&call, fault));
        let answer = match (failure, fault) {
            (Some(error), _) => Err(error),
            (None, Some(Fault::LoseReply)) => self
                .reach(&call, act())
                .await
                .and_then(|_| Err(E::unknown(&call, says_the_test("the reply was lost")))),
            (None, Some(Fault::Duplicate)) => {
                // The second request is sent even if the first one fails: a client that sends twice
                // does not wait for the first answer.
                let _ = self.reach(&call, act()).await;
                self.reach(&call, act()).await
            }
            (None, Some(Fault::HangAfter)) => {
                // The caller never gets this answer.
                let _ = self.reach(&call, act()).await;
                std::future::pending().await
            }
            (None, Some(Fault::CrashAfter)) => {
                let answer = self.reach(&call, act()).await;
                self.life.crash();
                answer
            }
            (None, _) => self.reach(&call, act()).await,
        };
        // The other place where a caller's future can be dropped: the call has taken effect, but
        // the caller does not have the answer yet.
        yield_now().await;
        self.life.gate().await;
        answer
    }
}
