//! Committing what is done: flush the read model first, then the offsets.
use super::{HandlerError, RunnerError, processor::after, session::Session, settle::panic_message};
use crate::ports::{MessageBusError, OffsetCommit};
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use tokio::time::Instant;

/// Records done since the last commit after which the next one does not wait for its time.
const COMMIT_AFTER: u64 = 1000;

impl Session<'_> {
    /// Whether so much is done that it shall be committed before its time.
    pub(super) fn must_commit(&self) -> bool {
        let mut owned = self.partitions.values();
        self.may_commit() && owned.any(|owned| owned.window.uncommitted() >= COMMIT_AFTER)
    }

    pub(super) fn is_all_committed(&self) -> bool {
        let mut owned = self.partitions.values();
        owned.all(|owned| owned.window.to_commit().is_none())
    }

    /// Whether the pause after a failure is over.
    pub(super) fn may_commit(&self) -> bool {
        self.commit_after
            .is_none_or(|after| after <= Instant::now())
    }

    /// Commits the low watermark of every partition that has moved. What cannot be committed now is committed later.
    pub(super) async fn commit(&mut self) -> Result<(), RunnerError> {
        let moved = self.partitions.iter().filter_map(|(partition, owned)| {
            let next = owned.window.to_commit()?;
            Some(OffsetCommit::new(partition.clone(), owned.epoch, next))
        });
        let mut marks: Vec<_> = moved.collect();
        if marks.is_empty() || !self.flush().await? {
            return Ok(());
        }
        loop {
            let error = match self.consumer.commit(&marks).await {
                Ok(()) => break,
                Err(error) => error,
            };
            match error {
                // The consumer will say so itself. Nothing was stored: the others go without it.
                MessageBusError::StaleAssignment { partition } => {
                    tracing::debug!(%partition, "the assignment ended before the commit");
                    let asked = marks.len();
                    marks.retain(|mark| mark.partition != partition);
                    if marks.is_empty() || marks.len() == asked {
                        return Ok(());
                    }
                }
                error if error.is_transient() => {
                    tracing::warn!(processor = %self.processor.name, error = crate::chain(&error), "the offsets could not be committed yet");
                    self.commit_after = Some(after(self.processor.policy.commit_interval));
                    return Ok(());
                }
                error => return Err(self.processor.bus_error(error)),
            }
        }
        for mark in marks {
            if let Some(owned) = self.partitions.get_mut(&mark.partition) {
                owned.window.committed(mark.next);
            }
        }
        Ok(())
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
            self.flushes.reset();
            self.commit_after = None;
            return Ok(true);
        };
        let Some(wait) = self.flushes.next(error.class().into()) else {
            return Err(RunnerError::Flush {
                processor: self.processor.name.clone(),
                class: error.class(),
                source: error.into_source(),
            });
        };
        tracing::warn!(processor = %self.processor.name, ?wait, class = ?error.class(), error = crate::chain(error.source()), "the read model could not be flushed yet");
        self.commit_after = Some(after(wait));
        Ok(false)
    }
}
