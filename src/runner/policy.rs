//! The policy of one processor.
use super::BuildError;
use crate::RetryPolicy;
use std::{sync::Arc, time::Duration};

/// The action for an event whose retries are spent, or that must not be retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnExhausted {
    /// The processor ends with an error; nothing is committed past the event, so it comes again after a restart.
    #[default]
    Halt,
}

/// The action for an event of a subscribed aggregate type under a name that this build does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownEvents {
    /// Skipped: the handler never cared.
    #[default]
    Skip,
    /// Poison: the handler is older than the writer.
    Fail,
}

/// The place at which a processor starts in a partition that it has never read. Resolved once to offsets, which are
/// stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// At offset 0 of every partition. A projector's default. A partition whose log starts at a higher offset is
    /// [`PositionLost`](super::RunnerError::PositionLost), also with an event store: a stream whose records are all gone
    /// would never be met.
    Beginning,
    /// At the oldest record that each partition still holds, whatever retention has deleted before it.
    Oldest,
    /// After the newest record. A listener's default: a new listener does not repeat old side effects.
    Now,
}

/// The way in which one processor is run. Starts from [`listener`](Self::listener) or [`projector`](Self::projector).
#[derive(Clone, Debug)]
pub struct ProcessorPolicy {
    pub(super) name: Option<Arc<str>>,
    pub(super) start: Start,
    pub(super) retry: RetryPolicy,
    pub(super) on_exhausted: OnExhausted,
    pub(super) unknown_events: UnknownEvents,
    pub(super) concurrency: usize,
    pub(super) attempt_timeout: Duration,
    pub(super) drain: Duration,
    pub(super) commit_interval: Duration,
    pub(super) max_records: usize,
    pub(super) max_bytes: usize,
}

impl ProcessorPolicy {
    /// Starts [`Now`](Start::Now), handles 16 streams at a time, retries, then halts.
    #[must_use]
    pub fn listener() -> Self {
        Self {
            name: None,
            start: Start::Now,
            retry: RetryPolicy::default(),
            on_exhausted: OnExhausted::Halt,
            unknown_events: UnknownEvents::Skip,
            concurrency: 16,
            attempt_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(20),
            commit_interval: Duration::from_secs(1),
            max_records: 1000,
            max_bytes: 16 * 1024 * 1024,
        }
    }
    /// As [`listener`](Self::listener), but starts at the [`Beginning`](Start::Beginning).
    #[must_use]
    pub fn projector() -> Self {
        Self {
            start: Start::Beginning,
            ..Self::listener()
        }
    }
    /// Sets another name, and so another consumer group, for a second instance of one type or for a model that is built again.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }
    /// Sets the place at which it starts in a partition that it has never read. Default [`Start::Now`] for a listener,
    /// [`Start::Beginning`] for a projector.
    #[must_use]
    pub const fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }
    /// Sets the way in which a failed event is retried. Default [`RetryPolicy::default`].
    #[must_use]
    pub const fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }
    /// Sets the action once the retries of an event are spent. Default [`OnExhausted::Halt`].
    #[must_use]
    pub const fn with_on_exhausted(mut self, then: OnExhausted) -> Self {
        self.on_exhausted = then;
        self
    }
    /// Sets the action for an unknown event. Default [`UnknownEvents::Skip`].
    #[must_use]
    pub const fn with_unknown_events(mut self, unknown: UnknownEvents) -> Self {
        self.unknown_events = unknown;
        self
    }
    /// Sets the number of streams handled at the same time, from 1; within a stream it is always one event after the other.
    /// Default 16.
    #[must_use]
    pub const fn with_concurrency(mut self, streams: usize) -> Self {
        self.concurrency = streams;
        self
    }
    /// Sets the time that one call of a handler may take before it counts as a transient failure. Default 30 s.
    #[must_use]
    pub const fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }
    /// Sets the most time that a shutdown or a rebalance waits for running handlers. Default 20 s.
    #[must_use]
    pub const fn with_drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }
    /// Sets the interval of offset commits. A longer one costs fewer commits and repeats more after a crash. Default 1 s.
    #[must_use]
    pub const fn with_commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }
    /// Sets the records and bytes that are held of each partition before it is paused. Raising them costs memory and
    /// repeats more after a crash. Default 1,000 records and 16 MiB.
    #[must_use]
    pub const fn with_window(mut self, records: usize, bytes: usize) -> Self {
        (self.max_records, self.max_bytes) = (records, bytes);
        self
    }

    pub(super) fn validate(&self) -> Result<(), BuildError> {
        let invalid = |field, reason: &str| {
            Err(BuildError::Invalid {
                field,
                reason: reason.into(),
            })
        };
        if self.concurrency == 0 {
            return invalid("concurrency", "at least 1 stream at a time");
        }
        if self.max_records == 0 || self.max_bytes == 0 {
            return invalid("window", "at least 1 record and 1 byte");
        }
        if self.attempt_timeout.is_zero() {
            return invalid("attempt_timeout", "longer than zero");
        }
        if self.commit_interval.is_zero() {
            return invalid("commit_interval", "longer than zero");
        }
        Ok(())
    }
}
