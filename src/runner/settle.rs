//! Starting attempts, and taking their results: done, retried, or the end.
use super::{
    HandlerError, RunnerError,
    attempt::{Attempt, Attempted, Failure, Tally},
    processor::after,
    session::{Job, Retry, Session},
};
use crate::{StreamId, resilience::Attempts};
use futures::FutureExt;
use std::any::Any;
use tokio::{
    task::{Id, JoinError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

impl Session<'_> {
    /// Starts attempts at the heads of ready streams.
    pub(super) fn dispatch(&mut self) {
        while self.running.len() < self.processor.policy.concurrency {
            let Some((stream, incoming)) = self.lanes.start_next() else {
                return;
            };
            let cancelled = CancellationToken::new();
            let attempt = Attempt {
                shared: self.shared.clone(),
                incoming: incoming.clone(),
                number: self
                    .retries
                    .get(&stream)
                    .map_or(1, |r| r.attempts.failed() + 1),
                cancelled: cancelled.clone(),
                progress: self.streams.get(&stream),
                tally: Tally::default(),
            };
            let handle = self.running.spawn(attempt.run());
            let job = Job {
                stream,
                incoming,
                cancelled,
                handle,
            };
            self.jobs.insert(job.handle.id(), job);
        }
    }

    /// Takes the result of an attempt.
    pub(super) fn settle(
        &mut self,
        joined: Result<(Id, Attempted), JoinError>,
    ) -> Result<(), RunnerError> {
        let (id, attempted) = match joined {
            Ok((id, attempted)) => (id, Ok(attempted)),
            Err(error) => (error.id(), Err(error)),
        };
        let Some(job) = self.jobs.remove(&id) else {
            return Ok(());
        };
        let partition = &job.incoming.partition;
        let is_owned = self
            .partitions
            .get(partition)
            .is_some_and(|owned| owned.epoch == job.incoming.epoch);
        let result = match attempted {
            Ok(attempted) => {
                self.processor.report.add(&attempted.tally);
                if is_owned {
                    let progress = attempted.progress;
                    self.streams.set(&job.stream, partition.clone(), progress);
                }
                attempted.result
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(Failure {
                    version: job.incoming.event.header.version,
                    error: HandlerError::permanent(panic_message("handler", &*panic)),
                }),
                // It was cancelled.
                Err(_) => {
                    self.lanes.finished(&job.stream);
                    return Ok(());
                }
            },
        };
        match result {
            Ok(()) => {
                self.retries.remove(&job.stream);
                self.lanes.finished(&job.stream);
                if is_owned && let Some(owned) = self.partitions.get_mut(partition) {
                    owned.window.done(job.incoming.offset);
                }
                Ok(())
            }
            // Its partition has gone: whoever has it now gets the record again.
            Err(_) if !is_owned => {
                self.retries.remove(&job.stream);
                self.lanes.finished(&job.stream);
                Ok(())
            }
            Err(failure) => self.retry(&job, failure),
        }
    }

    /// Lets the stream wait for its next attempt, or halts.
    fn retry(&mut self, job: &Job, failure: Failure) -> Result<(), RunnerError> {
        let Failure { version, error } = failure;
        let policy = self.processor.policy.retry;
        let fresh = || Retry {
            version,
            attempts: Attempts::new(policy),
            until: Instant::now(),
        };
        let retry = self.retries.entry(job.stream.clone()).or_insert_with(fresh);
        if retry.version != version {
            // What failed before went well; this is another event.
            *retry = fresh();
        }
        let wait = retry.attempts.next(error.class().into());
        let attempts = retry.attempts.failed();
        let until = after(wait.unwrap_or_default());
        retry.until = until;
        let Some(wait) = wait else {
            return Err(RunnerError::Halted {
                processor: self.processor.name.clone(),
                stream: job.stream.clone(),
                version,
                partition: job.incoming.partition.clone(),
                attempts,
                class: error.class(),
                source: error.into_source(),
            });
        };
        tracing::warn!(processor = %self.processor.name, stream = %job.stream, %version, attempts, ?wait, class = ?error.class(), error = crate::chain(error.source()), "the handler failed and is tried again");
        self.processor.report.retries += 1;
        self.lanes.wait(&job.stream);
        let stream = job.stream.clone();
        if wait.is_zero() {
            self.lanes.wake(&stream);
        } else {
            let wake = tokio::time::sleep_until(until).map(|()| stream);
            self.waits.push(wake.boxed());
        }
        Ok(())
    }

    /// Lets a stream run again whose pause is over. It is not if this is the end of an older one, whose partition was
    /// lost meanwhile.
    pub(super) fn wake(&mut self, stream: &StreamId) {
        let retry = self.retries.get(stream);
        if retry.is_none_or(|retry| retry.until <= Instant::now()) {
            self.lanes.wake(stream);
        }
    }
}

/// What a panic of this function said.
pub(super) fn panic_message(what: &str, payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("the {what} panicked: {}", text.unwrap_or("no message"))
}
