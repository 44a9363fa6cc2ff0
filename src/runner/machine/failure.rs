//! Failed events: another attempt later, or none.
use super::{Failure, FailureOf, Machine, Work, health::Noted, record::Record, retry::Retry};
use crate::{
    RetryPolicy,
    runner::{ErrorClass, RunnerError},
};
use tokio::time::Instant;

impl Machine {
    /// Lets the lane of a failed event wait for its next attempt, or gives the event up.
    pub(super) fn failed(
        &mut self,
        work: &Work,
        done: usize,
        failure: Failure,
        is_of_call: bool,
        now: Instant,
    ) {
        let lane = &work.lane;
        let Some(record) = work.records().get(done) else {
            return;
        };
        let stream = &record.event.header.stream;
        let (version, class) = (failure.version, failure.error.class());
        let owned = self.partitions.get(&record.partition, record.epoch);
        if owned.is_some_and(|owned| owned.is_leaving()) || self.ending.is_some() {
            tracing::warn!(processor = %self.rules.name, %stream, %version, ?class, error = crate::chain(failure.error.source()), "a handler failed while its partition was given up");
            // Nor do the records after it run: they would be handled before it.
            return self.lanes.finished(lane, work.records().len() - done);
        }
        if let Some(suspects) = failure.suspects {
            // Nobody knows which of them has failed: each is tried alone before any is given up.
            tracing::warn!(processor = %self.rules.name, %stream, %version, ?class, records = suspects.records, error = crate::chain(failure.error.source()), "a batch failed and its events are tried one by one");
            self.counts.retries += 1;
            return self.lanes.try_alone(lane, suspects.records);
        }
        // A failure of another event of the lane was overcome since.
        let is_store = matches!(failure.of, FailureOf::Store);
        let (known, policy) = (self.lanes.take_retry(lane), self.retry_of(record));
        let mut retry = Retry::after(known, policy, version, is_store);
        let next = retry.failed(class.into(), now);
        retry.note(Noted::of_event(&failure.error, stream));
        match next {
            Some(until) if class != ErrorClass::Fatal => {
                tracing::warn!(processor = %self.rules.name, %stream, %version, attempts = retry.attempts(), wait = ?(until - now), ?class, error = crate::chain(failure.error.source()), "the handler failed and is tried again");
                self.counts.retries += 1;
                self.lanes.wait(lane, retry, until, is_of_call);
            }
            _ if is_store => {
                let error = RunnerError::halted(&self.rules.name, record, failure, &retry);
                self.halt(error, now);
            }
            _ => self.exhausted(lane, record, failure, &retry, now),
        }
    }

    /// Streams that fail together do not wait for equal times: each has jitter of its own.
    fn retry_of(&self, record: &Record) -> RetryPolicy {
        let mut retry = self.rules.retry();
        let stream = u64::from(record.event.header.stream.shard(u32::MAX));
        if self.rules.policy.retry.backoff.seed.is_none() {
            let seed = retry.backoff.seed.unwrap_or_default();
            retry.backoff.seed = Some(seed ^ stream.rotate_left(32));
        }
        retry
    }
}

impl RunnerError {
    pub(super) fn halted(
        name: &std::sync::Arc<str>,
        record: &Record,
        failure: Failure,
        retry: &Retry,
    ) -> Self {
        Self::Halted {
            processor: name.clone(),
            stream: record.event.header.stream.clone(),
            version: failure.version,
            partition: record.partition.clone(),
            attempts: retry.attempts(),
            class: failure.error.class(),
            source: failure.error.into_source(),
        }
    }
}
