//! Committing what is done: flush the read model first, then the offsets.
use super::{ErrorClass, HandlerError, RunnerError, session::Session, settle::panic_message};
use crate::ports::{MessageBusError, OwnedMark};
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use tokio::time::Instant;

/// Records done since the last commit after which the next one does not wait for its time.
const COMMIT_AFTER: u64 = 1000;

impl Session<'_> {
    pub(super) fn must_commit(&self) -> bool {
        let mut owned = self.partitions.values();
        owned.any(|owned| owned.window.uncommitted() >= COMMIT_AFTER)
    }

    /// Commits the low watermark of every partition that has moved. What cannot be committed now is committed later.
    pub(super) async fn commit(&mut self) -> Result<(), RunnerError> {
        let moved = self.partitions.iter().filter_map(|(partition, owned)| {
            let next = owned.window.to_commit()?;
            Some(OwnedMark::new(partition.clone(), owned.epoch, next))
        });
        let marks: Vec<_> = moved.collect();
        if marks.is_empty() || !self.flush().await? {
            return Ok(());
        }
        match self.consumer.commit(&marks).await {
            Ok(()) => {
                for mark in marks {
                    if let Some(owned) = self.partitions.get_mut(&mark.partition) {
                        owned.window.committed(mark.next);
                    }
                }
                Ok(())
            }
            // The consumer will say so itself; until then the others wait for the next time.
            Err(MessageBusError::StaleAssignment { partition }) => {
                tracing::debug!(%partition, "the assignment ended before the commit");
                Ok(())
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(processor = %self.processor.name, %error, "the offsets could not be committed yet");
                Ok(())
            }
            Err(error) => Err(self.processor.bus_error(error)),
        }
    }

    /// Makes the read model durable. False: not yet, try again later.
    async fn flush(&mut self) -> Result<bool, RunnerError> {
        let shared = self.shared.clone();
        // It runs in the task of all processors: a panic must end only this one.
        let flush = async { shared.processor.flush(&shared.model).await };
        let flush = AssertUnwindSafe(flush).catch_unwind();
        let flushed = match tokio::time::timeout(shared.timeout, flush).await {
            Ok(Ok(flushed)) => flushed,
            Ok(Err(panic)) => Err(HandlerError::permanent(panic_message("flush", &*panic))),
            Err(_) => Err(HandlerError::transient(
                "flush took longer than the attempt timeout",
            )),
        };
        let Err(error) = flushed else {
            (self.flushes_failed, self.flush_failing_since) = (0, None);
            return Ok(true);
        };
        let since = *self.flush_failing_since.get_or_insert_with(Instant::now);
        self.flushes_failed += 1;
        let policy = &self.processor.policy.retry;
        let may_retry = match error.class() {
            ErrorClass::Transient | ErrorClass::Throttled { .. } => policy
                .next_delay(self.flushes_failed, since.elapsed())
                .is_some(),
            ErrorClass::Permanent | ErrorClass::Poison | ErrorClass::Fatal => false,
        };
        if !may_retry {
            return Err(RunnerError::Flush {
                processor: self.processor.name.clone(),
                class: error.class(),
                source: error.into_source(),
            });
        }
        tracing::warn!(processor = %self.processor.name, %error, "the read model could not be flushed yet");
        Ok(false)
    }
}
