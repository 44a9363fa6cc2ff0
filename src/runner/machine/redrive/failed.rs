//! The failure of an event in a redrive: its stream is parked again, or the processor halts.
use super::{
    super::{Failure, FailureOf, Rules, Work, give_up::LetterOf, retry::Retry},
    Range, Redrive,
};
use crate::{StreamId, control::ParkFailure, runner::RunnerError};
use tokio::time::Instant;

impl Redrive {
    /// Notes a failure that is not tried again: the stream is parked at its version, with a letter
    /// that says why. Without the event, which a store refuses, the letter stays that was there.
    pub(super) fn give_up(
        &mut self,
        rules: &Rules,
        stream: &StreamId,
        failure: &Failure,
        retry: &Retry,
        now: Instant,
    ) {
        let (wall, class) = (rules.wall(now), failure.error.class());
        tracing::warn!(processor = %rules.name, %stream, version = %failure.version, ?class, error = crate::chain(failure.error.source()), "the redrive of a stream has failed: it stays parked");
        let of = match &failure.of {
            FailureOf::Event(event) => Some(LetterOf::Event(event)),
            FailureOf::Deferred(record) => Some(LetterOf::Deferred(record)),
            FailureOf::Record | FailureOf::Store => None,
        };
        self.letter = of.map(|of| rules.letter_of(stream, failure, retry, wall, &of));
        let fingerprint = match &self.letter {
            Some((_, letter)) => letter.head.fingerprint,
            None => rules.fingerprint_of(stream, failure),
        };
        self.next = self.next.max(failure.version);
        self.failure = Some(ParkFailure {
            version: failure.version,
            fingerprint,
            attempts: retry.attempts(),
            at: wall,
        });
    }
}

/// Returns the error of a processor that cannot redrive any stream.
pub(super) fn halted(
    rules: &Rules,
    work: &Work,
    range: &Range,
    failure: Failure,
    retry: &Retry,
) -> RunnerError {
    RunnerError::Halted {
        processor: rules.name.clone(),
        stream: range.stream.clone(),
        version: failure.version,
        partition: work.partition.clone(),
        attempts: retry.attempts(),
        class: failure.error.class(),
        source: failure.error.into_source(),
    }
}
