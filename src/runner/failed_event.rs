//! [`FailedEvent`], and what a processor does about it.
use super::{ErrorClass, HandlerError};
use crate::{
    EventHeader, StreamId, Version,
    ports::{Offset, PartitionId},
};
use std::{
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

/// The action for an event whose retries are spent, or that must not be retried.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureAction {
    /// The stream of the event is parked: its events wait, in order, until an operator redrives
    /// them or discards the failed one. Other streams go on. The default of projectors, for which
    /// an event that is left out makes the rows of its stream wrong.
    Park,
    /// The event is stored as a dead letter, and its stream goes on with the next event. The
    /// default of listeners.
    DeadLetter,
    /// The event is passed over for good. The reason is stored in an audit row.
    Discard(String),
    /// The processor ends with an error. Nothing is committed past the event, so that it comes
    /// again after a restart.
    Halt,
}

/// An event or record that could not be handled, and will not be tried again by itself.
///
/// # Example
/// A listener that gives up its own bugs one by one, and stops if a service refuses everything:
/// ```
/// use foldstream::runner::{ErrorClass, FailedEvent, FailureAction, ProcessorPolicy};
///
/// fn on_failure(class: ErrorClass) -> FailureAction {
///     match class {
///         ErrorClass::Permanent => FailureAction::DeadLetter,
///         _ => FailureAction::Halt,
///     }
/// }
/// assert_eq!(on_failure(ErrorClass::Poison), FailureAction::Halt);
///
/// let decide = |event: &FailedEvent<'_>| on_failure(event.class());
/// let policy = ProcessorPolicy::listener().with_on_failure(decide);
/// # let _ = policy;
/// ```
#[derive(Debug)]
pub struct FailedEvent<'a> {
    pub(super) processor: &'a str,
    pub(super) is_projector: bool,
    /// `None` if the record cannot be read.
    pub(super) header: Option<&'a EventHeader>,
    pub(super) partition: &'a PartitionId,
    pub(super) offset: Offset,
    pub(super) attempts: u32,
    pub(super) error: &'a HandlerError,
    /// The record may be an event of a stream that the processor subscribes to.
    pub(super) may_be_ours: bool,
}

impl FailedEvent<'_> {
    /// Returns the name of the processor.
    pub const fn processor(&self) -> &str {
        self.processor
    }
    /// Returns true if the processor is a projector.
    pub const fn is_projector(&self) -> bool {
        self.is_projector
    }
    /// Returns the header of the event; `None` if the record is no event of this library, or of a
    /// newer format.
    pub const fn header(&self) -> Option<&EventHeader> {
        self.header
    }
    /// Returns the stream of the event; `None` if the record cannot be read.
    pub fn stream(&self) -> Option<&StreamId> {
        self.header.map(|header| &header.stream)
    }
    /// Returns the version of the event; `None` if the record cannot be read.
    pub fn version(&self) -> Option<Version> {
        self.header.map(|header| header.version)
    }
    /// Returns the partition of the record. An event that fills a gap has the partition of the
    /// record after the gap.
    pub const fn partition(&self) -> &PartitionId {
        self.partition
    }
    /// Returns the offset of the record; 0 for an event that a [replay](crate::replay) has read
    /// from the event store.
    pub const fn offset(&self) -> Offset {
        self.offset
    }
    /// Returns the number of attempts, from 1.
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }
    /// Returns the class of the last failure.
    pub const fn class(&self) -> ErrorClass {
        self.error.class()
    }
    /// Returns the last failure.
    pub const fn error(&self) -> &HandlerError {
        self.error
    }

    /// Returns the action of a processor without a policy of its own.
    ///
    /// - A projector parks the stream. A listener stores a dead letter.
    /// - A record that cannot be read is stored as a dead letter, too. A projector halts if the key
    ///   of the record names a stream that it subscribes to: it cannot park the stream without the
    ///   version of the event, and must not leave the event out.
    pub fn default_action(&self) -> FailureAction {
        match self.header {
            Some(_) if self.is_projector => FailureAction::Park,
            None if self.is_projector && self.may_be_ours => FailureAction::Halt,
            Some(_) | None => FailureAction::DeadLetter,
        }
    }
}

/// A function that decides about failed events.
#[derive(Clone)]
pub(super) struct OnFailure(
    pub(super) Arc<dyn Fn(&FailedEvent<'_>) -> FailureAction + Send + Sync>,
);
impl Default for OnFailure {
    fn default() -> Self {
        Self(Arc::new(|event| event.default_action()))
    }
}
impl OnFailure {
    /// Asks the policy. One that panics halts the processor.
    pub(super) fn decide(&self, event: &FailedEvent<'_>) -> FailureAction {
        let asked = panic::catch_unwind(AssertUnwindSafe(|| (self.0)(event)));
        asked.unwrap_or_else(|_| {
            tracing::error!(
                processor = event.processor,
                "the failure policy has panicked"
            );
            FailureAction::Halt
        })
    }
}
impl fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFailure(..)")
    }
}
