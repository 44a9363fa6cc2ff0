//! The row of this instance, which is a lease: an instance whose row could not be renewed in time
//! starts no attempt.
use super::supervisor::Base;
use crate::{
    Timestamp,
    control::{InstanceRow, InstanceState, LetterClass, PutIf},
    ports::{ControlStoreError, Revision},
    runner::{ProcessorState, driver::Now},
};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The time for which a row allows the start of attempts, counted from before it was written.
const LEASE: Duration = Duration::from_secs(60);

/// The time after an attempt's timeout in which it is given up for good.
const GRACE: Duration = Duration::from_secs(5);

/// The most bytes of an error that a row takes.
const MAX_ERROR: usize = 1000;

/// The time until which this instance may start attempts. The drivers of a processor share it.
#[derive(Debug)]
pub(in crate::runner) struct Lease(Mutex<Option<Instant>>);

impl Lease {
    /// Creates a lease that was never written, or one without an end for a processor that is never
    /// replayed.
    pub(super) fn new(is_needed: bool, now: Instant) -> Self {
        Self(Mutex::new(is_needed.then_some(now)))
    }
    /// Returns the time after which no attempt may start; `None` if there is no such time.
    pub(in crate::runner) fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Notes a write of the row that was sent after `since`.
    fn renewed(&self, since: Instant) {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *until = until.map(|until| until.max(since + LEASE));
    }
}

fn cut(error: &str) -> String {
    let mut end = error.len().min(MAX_ERROR);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error[..end].into()
}

impl Base {
    /// Returns the row of this instance. `epoch` is that of the row `proc` to which the instance
    /// keeps: what must stop has stopped.
    fn row(&self, epoch: u64, shown: Now, now: Instant) -> InstanceRow {
        let lasting = now.duration_since(shown.since);
        let micros = i64::try_from(lasting.as_micros()).unwrap_or(i64::MAX);
        let since = self.shared.clock.now().as_micros().saturating_sub(micros);
        let idle_after = (LEASE + GRACE).saturating_add(self.entry.policy.attempt_timeout);
        InstanceRow {
            label: self.shared.label.to_string(),
            epoch,
            generation: shown.generation.unwrap_or(0),
            state: shown.state.into(),
            since: Timestamp::from_micros(since),
            class: shown.trouble.as_ref().map(|t| LetterClass::from(t.class)),
            error: shown.trouble.map(|trouble| cut(&trouble.error)),
            lag: shown.lag,
            partitions: shown.partitions,
            idle_after: Some(u64::try_from(idle_after.as_millis()).unwrap_or(u64::MAX)),
            next_generation: shown.next,
            next_lag: shown.next_lag,
            next_error: shown.next_error.map(|error| cut(&error)),
        }
    }

    /// Writes the row of this instance, which renews the lease.
    pub(super) async fn put_row(&self, epoch: u64) -> Result<Revision, ControlStoreError> {
        let (now, since) = (self.shared.clock.now(), Instant::now());
        let row = self.row(epoch, self.live.now(since), since);
        let (name, instance) = (&self.entry.name, self.instance);
        let put = self.rows.instance_put(name, instance, row, now).await?;
        match put {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => {
                self.lease.renewed(since);
                Ok(row.revision)
            }
            PutIf::Conflict(None) => Err(ControlStoreError::Unavailable {
                source: "a write without a condition has met a conflict".into(),
            }),
        }
    }

    /// Deletes the row of this instance, which expires if it cannot be deleted.
    pub(super) async fn delete_row(&self, seen: Revision, within: Duration) {
        let name = &self.entry.name;
        let deleted = self.rows.instance_delete(name, self.instance, seen);
        match tokio::time::timeout(within, deleted).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(processor = %name, error = crate::chain(&error), "the row of the instance is left to expire");
            }
            Err(_) => {
                tracing::debug!(processor = %name, "the row of the instance is left to expire");
            }
        }
    }
}

impl From<ProcessorState> for InstanceState {
    fn from(state: ProcessorState) -> Self {
        match state {
            ProcessorState::Starting => Self::Starting,
            ProcessorState::Running => Self::Running,
            ProcessorState::Unreachable => Self::Unreachable,
            ProcessorState::Held => Self::Held,
            ProcessorState::Paused => Self::Paused,
            ProcessorState::Waiting => Self::Waiting,
            ProcessorState::Superseded => Self::Superseded,
            ProcessorState::Stopping | ProcessorState::Stopped => Self::Stopping,
            ProcessorState::Halted => Self::Halted,
        }
    }
}
