//! Repeats of one failing call.
use super::error::Transient;
use crate::{Clock, RetryPolicy, Timestamp};
use tokio_util::sync::CancellationToken;

/// Counts the failures of one call and waits between its attempts.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    policy: RetryPolicy,
    clock: &'a dyn Clock,
    stop: &'a CancellationToken,
    started: Timestamp,
    failed: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(
        policy: RetryPolicy,
        clock: &'a dyn Clock,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            policy,
            clock,
            stop,
            started: clock.now(),
            failed: 0,
        }
    }

    /// Waits until the call may be repeated, or gives the error back: it is permanent, the attempts are used up, or the
    /// caller is asked to stop.
    pub(super) async fn wait_or<E: Transient>(&mut self, error: E) -> Result<(), E> {
        if !error.is_transient() {
            return Err(error);
        }
        self.failed += 1;
        let elapsed = self.clock.now().since(self.started);
        let Some(pause) = self.policy.next_delay(self.failed, elapsed) else {
            return Err(error);
        };
        let pause = pause.max(error.retry_after().unwrap_or_default());
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(error),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}
