//! The time that a call may take, and the backlog that it may take on.
use std::{future::Future, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time before a deadline in which no other stream begins.
const LAST_START: Duration = Duration::from_secs(3);
/// The time before a deadline in which no other run begins.
const LAST_RUN: Duration = Duration::from_secs(1);

/// The limits of one call.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    /// Cancelled when the work is to be finished: runs in flight end, and no other begins.
    pub(super) stop: CancellationToken,
    /// The instant from which no other stream begins.
    pub(super) last_start: Option<Instant>,
    /// The instant at which whatever is still under way is dropped.
    pub(super) deadline: Option<Instant>,
    /// The most events between a stream's watermark and the first notice above it.
    pub(super) max_behind: Option<u64>,
}

impl Budget {
    /// Creates the budget of a call that must have returned at the deadline.
    pub(super) fn until(deadline: Instant) -> Self {
        let left = deadline.saturating_duration_since(Instant::now());
        Self {
            deadline: Some(deadline),
            last_start: Some(deadline - LAST_START.min(left / 2)),
            ..Self::default()
        }
    }

    /// Returns true if another stream may begin.
    pub(super) fn may_begin(&self) -> bool {
        self.last_start.is_none_or(|last| Instant::now() < last)
    }

    /// Carries out work under this budget, and asks it to finish shortly before the deadline.
    pub(super) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(deadline) = self.deadline else {
            return work.await;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let stopping = async {
            tokio::time::sleep_until(deadline - LAST_RUN.min(left / 4)).await;
            self.stop.cancel();
            std::future::pending().await
        };
        tokio::select! {
            biased;
            done = work => done,
            // It never ends.
            done = stopping => done,
        }
    }
}
