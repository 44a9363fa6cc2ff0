//! Values that a store or a bus answers with, and checks of what it is given.
use crate::{
    Bytes, CommitId, EventHeader, RecordedEvent, StreamHead, StreamId, Timestamp, Version,
    VersionConflict,
    ports::{EventStoreError, Message, MessageBusError, RefusedKind, Subscription},
};

/// Creates the head at which a commit ends that the store has seen.
///
/// `version` is that of the commit's last event. [`Commit::head`](crate::ports::Commit::head) gives
/// the same where the whole commit is at hand.
///
/// # Example
/// ```
/// use foldstream::{CommitId, StreamId, Timestamp, Version, adapter::observed_head};
///
/// let cart = StreamId::new("cart", "7")?;
/// let head = observed_head(cart, Version::new(3), CommitId::random(), Timestamp::now());
/// assert_eq!(head.version(), Version::new(3));
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[must_use]
pub const fn observed_head(
    stream: StreamId,
    version: Version,
    commit_id: CommitId,
    recorded_at: Timestamp,
) -> StreamHead {
    StreamHead::observed(stream, version, commit_id, recorded_at)
}

/// Creates the answer to an append whose head was not the tail of its stream.
///
/// `actual` is a lower bound of the stream's version. It is `None` if finding one would cost
/// another request.
#[must_use]
pub const fn version_conflict(
    stream: StreamId,
    expected: Version,
    actual: Option<Version>,
) -> VersionConflict {
    VersionConflict::new(stream, expected, actual)
}

/// Joins the header of a stored or received event and its payload.
#[must_use]
pub const fn recorded_event(header: EventHeader, payload: Bytes) -> RecordedEvent {
    RecordedEvent::new(header, payload)
}

/// Creates the error of a store that is asked for something that it does not know, such as a
/// variant that a later build of the core has added.
///
/// # Example
/// ```
/// use foldstream::{adapter::unsupported, ports::{EventStoreError, RefusedKind}};
///
/// let error = unsupported("cannot scan for summaries");
/// assert!(matches!(
///     error,
///     EventStoreError::Refused { kind: RefusedKind::Unsupported, .. }
/// ));
/// ```
#[must_use]
pub fn unsupported(reason: impl Into<String>) -> EventStoreError {
    EventStoreError::Refused {
        kind: RefusedKind::Unsupported,
        reason: reason.into(),
        source: "see the capabilities of the store".into(),
    }
}

/// Checks that messages form a run: they name one partition, and they have the same topic, key and
/// partition.
///
/// # Errors
/// [`Invalid`](MessageBusError::Invalid) if they do not, naming the first message that differs.
pub fn check_run(run: &[Message]) -> Result<(), MessageBusError> {
    Message::check_run(run)
}

/// Checks the name of the group, the topics and the instance id of a subscription.
///
/// # Errors
/// [`Invalid`](MessageBusError::Invalid) if a name or the instance id is not allowed, or if there
/// is no topic. It names what is wrong.
pub fn check_subscription(subscription: &Subscription) -> Result<(), MessageBusError> {
    subscription.check()
}

/// Checks the name of a topic, in any call that has one.
///
/// # Errors
/// [`Invalid`](MessageBusError::Invalid) if the name is empty, longer than
/// [`MAX_TOPIC`](Subscription::MAX_TOPIC) characters, `.` or `..`, or holds anything but ASCII
/// letters, digits, `.`, `_` and `-`.
///
/// # Example
/// ```
/// use foldstream::adapter::check_topic;
///
/// assert!(check_topic("orders.v2").is_ok());
/// assert!(check_topic("orders/v2").is_err());
/// ```
pub fn check_topic(topic: &str) -> Result<(), MessageBusError> {
    Subscription::check_topic(topic)
}

/// Checks the name of a group.
///
/// # Errors
/// [`Invalid`](MessageBusError::Invalid) if it is empty, longer than
/// [`MAX_GROUP`](Subscription::MAX_GROUP) bytes, or holds a NUL.
pub fn check_group(group: &str) -> Result<(), MessageBusError> {
    Subscription::check_group(group)
}
