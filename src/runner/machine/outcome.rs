//! The end of an attempt, as its driver tells it.
use crate::runner::{report::Counts, streams::Progress};
use std::time::Duration;

/// An event that could not be handled.
#[derive(Debug)]
pub(in crate::runner) struct Failure {
    pub(in crate::runner) version: crate::Version,
    pub(in crate::runner) error: crate::runner::HandlerError,
    pub(in crate::runner) of: FailureOf,
    /// The call had several events, and nothing says which of them has failed.
    pub(in crate::runner) suspects: Option<Suspects>,
}

/// The events of a call of a batch handler that has panicked, or has taken too long. Any of them
/// may be the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runner) struct Suspects {
    /// The number of records that the events come from, or come before, from the first that is not
    /// done.
    pub(in crate::runner) records: usize,
    /// The version of the last event.
    pub(in crate::runner) last: crate::Version,
}

/// The part that failed.
#[derive(Debug)]
pub(in crate::runner) enum FailureOf {
    /// The record that was handled.
    Record,
    /// An event that was read from the event store, or from a deferred record.
    Event(Box<crate::RecordedEvent>),
    /// A deferred record that cannot be read.
    Deferred(Box<crate::control::StoredRecord>),
    /// The event store, or the store of deferred records.
    Store,
}

impl Calls {
    pub(in crate::runner) fn note(&mut self, took: Duration, has_failed: bool) {
        if has_failed {
            self.failed = Some(took);
        } else {
            self.answered.push(took);
        }
    }
}

impl Suspects {
    /// Returns the records of an attempt, if it has several.
    pub(in crate::runner) fn of(records: &[std::sync::Arc<super::Record>]) -> Option<Self> {
        let last = records.last().filter(|_| records.len() > 1)?;
        Some(Self {
            records: records.len(),
            last: last.event.header.version,
        })
    }
}

impl Failure {
    /// A failure of one event, or of what it needs.
    pub(in crate::runner) const fn new(
        version: crate::Version,
        error: crate::runner::HandlerError,
        of: FailureOf,
    ) -> Self {
        Self {
            version,
            error,
            of,
            suspects: None,
        }
    }
    /// Returns the event that failed, if it is not the record itself.
    pub(super) fn event(&self) -> Option<&crate::RecordedEvent> {
        match &self.of {
            FailureOf::Event(event) => Some(event),
            FailureOf::Record | FailureOf::Deferred(_) | FailureOf::Store => None,
        }
    }
}

/// The end of an attempt. The work that it got done counts even if it failed.
#[derive(Debug)]
pub(in crate::runner) struct Ended {
    /// The progress in the stream now.
    pub(in crate::runner) progress: Progress,
    /// The number of records that are done, from the first.
    pub(in crate::runner) done: usize,
    pub(in crate::runner) counts: Counts,
    pub(in crate::runner) result: Outcome,
    pub(in crate::runner) calls: Calls,
    /// The versions that were passed over, since they are discarded.
    pub(in crate::runner) passed: Vec<crate::Version>,
    /// Of a range: the first version that is not done.
    pub(in crate::runner) next: crate::Version,
    /// Of a range: the history ended before it.
    pub(in crate::runner) is_short: bool,
    /// The versions with a letter that were handled or passed over, and not found to be duplicates.
    pub(in crate::runner) settled: Vec<crate::Version>,
    /// It had to wait for something, such as an answer that its handler has asked for.
    pub(in crate::runner) has_waited: bool,
}

impl Ended {
    /// Creates the end of an attempt that got nothing done.
    pub(in crate::runner) fn with_nothing_done(result: Outcome) -> Self {
        Self {
            progress: Progress::Unknown,
            done: 0,
            counts: Counts::default(),
            result,
            calls: Calls::default(),
            passed: Vec::new(),
            next: crate::Version::NONE,
            is_short: false,
            settled: Vec::new(),
            has_waited: false,
        }
    }
}

/// The calls of the handler that an attempt has made, with the time that each took. They are noted
/// only if a circuit breaker counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::runner) struct Calls {
    /// Those that went well, in order.
    pub(in crate::runner) answered: Vec<Duration>,
    /// The call after them, if it has failed. `None` if something else has failed, such as the
    /// reading of the event, or a store.
    pub(in crate::runner) failed: Option<Duration>,
}

/// The result of an attempt.
#[derive(Debug)]
pub(in crate::runner) enum Outcome {
    /// All records are done, or as many as there were before it was told to end.
    Done,
    /// The record after those that are done has failed.
    Failed(Failure),
    /// It was cancelled: nothing is known of the record after those that are done.
    Cancelled,
}
