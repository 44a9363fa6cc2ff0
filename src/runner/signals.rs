//! The signals to an attempt, and to what its handler has started elsewhere.
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU32, Ordering, fence},
};
use tokio_util::sync::CancellationToken;

/// A cancellation, with a token for those who wait for it.
///
/// The token is created for the first one who asks for it: almost nobody ever does, and a token
/// costs more than everything else around a call.
#[derive(Debug, Default)]
struct Cancellation {
    is_cancelled: AtomicBool,
    token: OnceLock<CancellationToken>,
}

impl Cancellation {
    fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        // Either this finds the token, or whoever creates it finds the cancellation.
        fence(Ordering::SeqCst);
        if let Some(token) = self.token.get() {
            token.cancel();
        }
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    fn token(&self, create: impl FnOnce() -> CancellationToken) -> &CancellationToken {
        let token = self.token.get_or_init(create);
        fence(Ordering::SeqCst);
        if self.is_cancelled() {
            token.cancel();
        }
        token
    }
}

/// The signals between the driver and an attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct Signals(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    /// The result no longer counts.
    cancelled: Cancellation,
    /// The attempt is to end after its current call.
    is_to_finish: AtomicBool,
    /// The signs of life that the attempt has given.
    steps: AtomicU32,
    /// The first call of the handler has ended without an answer. Most attempts make one call.
    first_unanswered: Cancellation,
}

impl Signals {
    /// Tells the attempt that its result no longer counts.
    pub(super) fn cancel(&self) {
        self.0.cancelled.cancel();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.0.cancelled.is_cancelled()
    }

    /// Waits until the attempt is cancelled.
    pub(super) async fn cancelled(&self) {
        self.token().cancelled().await;
    }

    fn token(&self) -> &CancellationToken {
        self.0.cancelled.token(CancellationToken::new)
    }

    /// Lets the attempt end after its current call.
    pub(super) fn finish(&self) {
        self.0.is_to_finish.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_to_finish(&self) -> bool {
        self.0.is_to_finish.load(Ordering::Relaxed)
    }

    /// Gives a sign of life: the attempt has begun, or goes on with its next step.
    pub(super) fn advance(&self) {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of signs of life, modulo 2^32. It is 0 for an attempt that has not begun.
    pub(super) fn steps(&self) -> u32 {
        self.0.steps.load(Ordering::Relaxed)
    }
}

/// Tells work that a handler has started elsewhere that the result of a call no longer counts.
#[derive(Clone, Debug)]
pub(super) struct Cancel {
    /// The attempt that the call is part of.
    attempt: Signals,
    /// A later call than the first one of the attempt has ended without an answer.
    later_unanswered: Option<Arc<Cancellation>>,
}

impl Cancel {
    /// Creates that of the first call of an attempt.
    pub(super) const fn of_first(attempt: Signals) -> Self {
        Self {
            attempt,
            later_unanswered: None,
        }
    }

    /// Creates that of a later call.
    pub(super) fn of_later(attempt: Signals) -> Self {
        Self {
            attempt,
            later_unanswered: Some(Arc::default()),
        }
    }

    fn unanswered(&self) -> &Cancellation {
        let later = self.later_unanswered.as_deref();
        later.unwrap_or(&self.attempt.0.first_unanswered)
    }

    pub(super) fn token(&self) -> &CancellationToken {
        let create = || self.attempt.token().child_token();
        self.unanswered().token(create)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.unanswered().is_cancelled() || self.attempt.is_cancelled()
    }
}

/// Cancels when it is dropped before the call was answered: after a timeout, a panic, or the end of
/// the run.
pub(super) struct Unanswered(pub(super) Option<Cancel>);

impl Unanswered {
    pub(super) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(cancel) = &self.0 {
            cancel.unanswered().cancel();
        }
    }
}
