//! One call on its way: what all wrappers do.
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

/// A port's errors, as faults make them.
pub(super) trait PortError: Sized + Send + 'static {
    /// The same, where nothing is known of what became of the call.
    fn unavailable(source: BoxError) -> Self;
    fn unknown(_: &Call<'_>, source: BoxError) -> Self {
        Self::unavailable(source)
    }
    fn throttled(retry_after: Option<Duration>, source: BoxError) -> Self;
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

/// Whether an answer says that something happened.
pub(super) trait Answer {
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
/// Everything else: what comes back was done.
pub(super) struct Plain<T>(pub(super) T);
impl<T> Answer for Plain<T> {}

/// What the network does when it delivers a request that the caller has given up.
pub(super) type Late = BoxFuture<'static, ()>;

fn says_the_test(what: &str) -> BoxError {
    format!("injected by the test: {what}").into()
}

impl Faults {
    /// Waits until the process lives and the request is on its way; what befalls it there. Delays are over.
    pub(super) async fn arrive(&self, call: &Call<'_>) -> Option<Fault> {
        self.life.gate().await;
        let (delay, fault) = self.plan.strike(call);
        match fault {
            Some(Fault::CrashBefore) => self.life.crash(),
            Some(Fault::Freeze(by)) => self.life.freeze(Some(Instant::now() + by)),
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        // A call over a network always awaits something, so a caller can be dropped here.
        yield_now().await;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        self.life.gate().await;
        fault
    }

    /// Does a call at the backend, and lets the probe see it.
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

    /// The error of a fault that keeps a call from being done; none if it does not.
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

    /// One call from its beginning to its end.
    pub(super) async fn pass<'b, T: Answer, E: PortError>(
        &self,
        call: Call<'_>,
        act: impl Fn() -> BoxFuture<'b, Result<T, E>>,
        late: impl FnOnce() -> Late,
    ) -> Result<T, E> {
        let fault = self.arrive(&call).await;
        self.finish(call, fault, act, late).await
    }

    /// The same for what changes nothing, and so cannot arrive late.
    pub(super) async fn ask<'b, T: 'b, E: PortError>(
        &self,
        call: Call<'_>,
        act: impl Fn() -> BoxFuture<'b, Result<T, E>>,
    ) -> Result<T, E> {
        let fault = self.arrive(&call).await;
        self.finish_asking(call, fault, act).await
    }

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

    /// What becomes of a call that has arrived with this fault.
    pub(super) async fn finish<'b, T: Answer, E: PortError>(
        &self,
        call: Call<'_>,
        fault: Option<Fault>,
        act: impl Fn() -> BoxFuture<'b, Result<T, E>>,
        late: impl FnOnce() -> Late,
    ) -> Result<T, E> {
        if let Some(Fault::ApplyLate(by)) = fault {
            let late = late();
            // On its own: whoever sent it may be dead by then.
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
                // Also if the first one fails: the client that sends twice does not wait for it.
                let _ = self.reach(&call, act()).await;
                self.reach(&call, act()).await
            }
            (None, Some(Fault::HangAfter)) => {
                // Nobody hears of it.
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
        // Done, but not yet heard of: the other place where a caller can be dropped.
        yield_now().await;
        self.life.gate().await;
        answer
    }
}
