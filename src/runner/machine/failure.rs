//! Failed events: another attempt later, or the end.
use super::{Failure, Machine, lanes::LaneKey, record::Record, retry::Retry};
use crate::runner::{ErrorClass, RunnerError};
use std::sync::Arc;
use tokio::time::Instant;

impl Machine {
    /// Lets the lane of a failed event wait for its next attempt, or halts.
    pub(super) fn failed(
        &mut self,
        lane: &LaneKey,
        records: &[Arc<Record>],
        done: usize,
        failure: Failure,
        now: Instant,
    ) {
        let Some(record) = records.get(done) else {
            return;
        };
        let Failure { version, error } = failure;
        let stream = &record.event.header.stream;
        // A failure of another event of the lane was overcome since.
        let known = self.lanes.take_retry(lane).filter(|r| r.is_of(version));
        let mut retry = known.unwrap_or_else(|| Retry::new(self.retry_of(record), version));
        let class = error.class();
        let next = retry.failed(class.into(), now);
        let attempts = retry.attempts();
        let owned = self.partitions.get(&record.partition, record.epoch);
        if owned.is_some_and(|owned| owned.is_leaving()) {
            tracing::warn!(processor = %self.rules.name, %stream, %version, ?class, error = crate::chain(error.source()), "a handler failed while its partition was given up");
            return self.lanes.finished(lane, 1);
        }
        let Some(until) = next.filter(|_| class != ErrorClass::Fatal) else {
            let error = RunnerError::Halted {
                processor: self.rules.name.clone(),
                stream: stream.clone(),
                version,
                partition: record.partition.clone(),
                attempts,
                class,
                source: error.into_source(),
            };
            return self.halt(error, now);
        };
        tracing::warn!(processor = %self.rules.name, %stream, %version, attempts, wait = ?(until - now), ?class, error = crate::chain(error.source()), "the handler failed and is tried again");
        self.counts.retries += 1;
        self.lanes.wait(lane, retry, until);
    }

    /// Streams that fail together do not wait for equal times: each has jitter of its own.
    fn retry_of(&self, record: &Record) -> crate::RetryPolicy {
        let mut retry = self.rules.retry();
        let stream = u64::from(record.event.header.stream.shard(u32::MAX));
        if self.rules.policy.retry.backoff.seed.is_none() {
            let seed = retry.backoff.seed.unwrap_or_default();
            retry.backoff.seed = Some(seed ^ stream.rotate_left(32));
        }
        retry
    }
}
