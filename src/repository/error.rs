//! The errors that a repository returns.
use crate::{
    CodecError, CommandId, InvalidStreamId, InvalidUpcasters, StreamId, Version, VersionConflict,
    ports::{ControlStoreError, EventStoreError, SnapshotStoreError},
};
use std::{error::Error, fmt, time::Duration};

/// The error returned when a state cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The id cannot name a stream.
    #[error("invalid stream id")]
    InvalidStreamId(#[from] InvalidStreamId),
    /// The store refused the read or failed.
    #[error("the stream cannot be read")]
    Store(#[from] EventStoreError),
    /// An event cannot be decoded, or its type is not known.
    #[error("event {version} of {stream} cannot be read")]
    Codec {
        /// The stream that holds the event.
        stream: StreamId,
        /// The version of the event.
        version: Version,
        /// The error of the codec.
        #[source]
        source: CodecError,
    },
    /// The store returned a history with a hole or an overlap. The repository never takes it for a
    /// shorter history.
    #[error("stream {stream} has version {found} where {expected} belongs")]
    NotContiguous {
        /// The stream that was read.
        stream: StreamId,
        /// The version after the last one that was read before.
        expected: Version,
        /// The version that the store returned instead.
        found: Version,
    },
    /// The fold panicked on a stored event.
    #[error("the state cannot be folded")]
    Fold(#[from] FoldError),
    /// The repository was given upcasters that cannot be used. Every call fails with this error.
    #[error("the upcasters of the repository cannot be used")]
    Upcasters(#[from] InvalidUpcasters),
}

/// The error returned when [`Aggregate::evolve`](crate::Aggregate::evolve) panics. The message of
/// the panic went to the panic hook.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`evolve` panicked on event {version} of {stream}, which is {name}")]
#[non_exhaustive]
pub struct FoldError {
    /// The stream that was folded.
    pub stream: StreamId,
    /// The version of the event, or the version that a new event would have had.
    pub version: Version,
    /// The name of the event as this build has it.
    pub name: &'static str,
}

impl LoadError {
    /// Returns true if the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Store(e) => e.is_transient(),
            Self::Codec { source, .. } => source.is_transient(),
            Self::InvalidStreamId(_)
            | Self::NotContiguous { .. }
            | Self::Fold(_)
            | Self::Upcasters(_) => false,
        }
    }
}

/// The error returned when a stream's state cannot be forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// The id cannot name a stream.
    #[error("invalid stream id")]
    InvalidStreamId(#[from] InvalidStreamId),
    /// The stored snapshot could not be deleted.
    #[error("the snapshot cannot be deleted")]
    Snapshot(#[from] SnapshotStoreError),
}

/// The error returned when a command had no effect, or none that is known.
#[derive(Debug)]
#[non_exhaustive]
pub enum ExecuteError<E> {
    /// The aggregate refused the command.
    Rejected(E),
    /// Other writers extended the stream first, more often than the retry policy allows.
    Conflict(VersionConflict),
    /// The state could not be loaded.
    Load(LoadError),
    /// The store did not accept the commit. With `Unavailable { pending: Some(_) }` it may have
    /// stored it: see [`Repository::settle`](crate::Repository::settle).
    Store(EventStoreError),
    /// An event cannot be encoded, or would be decoded as another value. Nothing was stored.
    Codec(CodecError),
    /// The fold panicked on a new event, and nothing was stored.
    Fold(FoldError),
    /// The mark of an idempotent command could not be read or written. A command that is sent again
    /// with its command id takes effect once.
    Mark(ControlStoreError),
    /// The command id is empty, too long to be stored, or contains U+001F, which separates it from
    /// its stream.
    InvalidCommandId {
        /// The size of the id in bytes.
        bytes: usize,
        /// The largest size of an id in bytes.
        limit: usize,
    },
    /// The command id was used before for another command: the digests differ. Nothing is stored.
    /// Every command needs an id of its own.
    CommandIdReused {
        /// The stream of the command.
        stream: StreamId,
        /// The id that both commands have.
        command_id: CommandId,
    },
    /// The command would store nothing now, but an earlier attempt at it has reserved a slot in the
    /// stream that is still empty. That attempt may still be stored there.
    ///
    /// Even an attempt that has certainly failed leaves its slot reserved, since other attempts, in
    /// any process, may have seen the mark and may be filling the slot.
    ///
    /// A command that is sent again with its command id is answered with the stored events once the
    /// attempt is stored, and refused for good once another commit is in the slot. Until then, or
    /// until the retention of its command id ends, each repeat returns this error, unless the
    /// aggregate accepts the command again.
    EarlierAttemptPending {
        /// The stream of the command.
        stream: StreamId,
        /// The version at which the earlier attempt may be stored.
        slot: Version,
        /// The reason why the aggregate refuses the command now. `None` if it finds nothing to do,
        /// or if the stream is not at the version that the caller expects.
        rejection: Option<E>,
    },
    /// The marks of commands are kept for less than a minute, so that an attempt that is still
    /// under way could be forgotten. Raise the retention in
    /// [`Repository::with_idempotency`](crate::Repository::with_idempotency).
    RetentionTooShort {
        /// The retention that the repository was given.
        retention: Duration,
        /// The shortest retention that is allowed.
        least: Duration,
    },
    /// Other writers moved the stream or the command's mark, more often than the retry policy
    /// allows.
    Contended {
        /// The stream of the command.
        stream: StreamId,
        /// The number of attempts that were made.
        attempts: u32,
    },
    /// The stream is shorter than it was when the command was marked: a backup was restored.
    HistoryForked {
        /// The stream of the command.
        stream: StreamId,
        /// The version at which the command's commit belongs.
        slot: Version,
        /// The version at which the stream ends now.
        tail: Version,
    },
}

/// The error returned when events, or a transaction, could not be stored.
///
/// A function that executes commands passes it on with `?`: every variant has its counterpart in
/// [`ExecuteError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The stream is not as expected, or other writers kept it moving for longer than the retry
    /// policy allows.
    #[error(transparent)]
    Conflict(VersionConflict),
    /// The stream could not be read.
    #[error("the stream cannot be read")]
    Load(#[from] LoadError),
    /// The store did not accept the commit. With `Unavailable { pending: Some(_) }` the commit may
    /// be stored: [`Repository::settle`](crate::Repository::settle) finds out.
    #[error("the commit cannot be stored")]
    Store(#[from] EventStoreError),
    /// An event cannot be encoded, or would be decoded as another value. Nothing was stored.
    #[error("an event cannot be stored")]
    Codec(#[from] CodecError),
    /// The fold of an event into the state that this process knows panicked. Nothing was stored.
    #[error(transparent)]
    Fold(#[from] FoldError),
}

impl AppendError {
    /// Returns true if the same call may succeed later. After an unknown outcome it may also store
    /// the events twice.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Conflict(_) => true,
            Self::Load(e) => e.is_transient(),
            Self::Store(e) => e.is_transient(),
            Self::Codec(e) => e.is_transient(),
            Self::Fold(_) => false,
        }
    }
}

impl From<InvalidStreamId> for AppendError {
    fn from(e: InvalidStreamId) -> Self {
        Self::Load(e.into())
    }
}
impl<E> From<AppendError> for ExecuteError<E> {
    fn from(e: AppendError) -> Self {
        match e {
            AppendError::Conflict(e) => Self::Conflict(e),
            AppendError::Load(e) => Self::Load(e),
            AppendError::Store(e) => Self::Store(e),
            AppendError::Codec(e) => Self::Codec(e),
            AppendError::Fold(e) => Self::Fold(e),
        }
    }
}

/// An error that stands for a refused command in the chain of sources, whatever error type the
/// aggregate has.
///
/// A handler that passes an [`ExecuteError`] on with `?` must not have its command retried forever.
/// The runner finds this error and treats the refusal as permanent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the aggregate refused the command")]
pub struct Rejection;

static REJECTION: Rejection = Rejection;

impl<E> ExecuteError<E> {
    /// Changes the type of the rejection and leaves every other error as it is, so that a function
    /// that executes commands of several aggregates can return one error type.
    ///
    /// # Example
    /// ```
    /// use foldstream::ExecuteError;
    /// # #[derive(Debug, PartialEq)]
    /// # struct OutOfStock;
    /// #[derive(Debug, PartialEq)]
    /// enum ShopError {
    ///     OutOfStock(OutOfStock),
    /// }
    /// let refused = ExecuteError::Rejected(OutOfStock).map_rejected(ShopError::OutOfStock);
    /// assert!(matches!(refused, ExecuteError::Rejected(ShopError::OutOfStock(_))));
    /// ```
    pub fn map_rejected<F>(self, change: impl FnOnce(E) -> F) -> ExecuteError<F> {
        match self {
            Self::Rejected(e) => ExecuteError::Rejected(change(e)),
            Self::Conflict(e) => ExecuteError::Conflict(e),
            Self::Load(e) => ExecuteError::Load(e),
            Self::Store(e) => ExecuteError::Store(e),
            Self::Codec(e) => ExecuteError::Codec(e),
            Self::Fold(e) => ExecuteError::Fold(e),
            Self::Mark(e) => ExecuteError::Mark(e),
            Self::InvalidCommandId { bytes, limit } => {
                ExecuteError::InvalidCommandId { bytes, limit }
            }
            Self::CommandIdReused { stream, command_id } => {
                ExecuteError::CommandIdReused { stream, command_id }
            }
            Self::EarlierAttemptPending {
                stream,
                slot,
                rejection,
            } => ExecuteError::EarlierAttemptPending {
                stream,
                slot,
                rejection: rejection.map(change),
            },
            Self::RetentionTooShort { retention, least } => {
                ExecuteError::RetentionTooShort { retention, least }
            }
            Self::Contended { stream, attempts } => ExecuteError::Contended { stream, attempts },
            Self::HistoryForked { stream, slot, tail } => {
                ExecuteError::HistoryForked { stream, slot, tail }
            }
        }
    }

    /// Returns true if the same call may succeed later. After an unknown outcome it may also apply
    /// the command twice.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Conflict(_) | Self::Contended { .. } | Self::EarlierAttemptPending { .. } => true,
            Self::Store(e) => e.is_transient(),
            Self::Load(e) => e.is_transient(),
            Self::Mark(e) => e.is_transient(),
            Self::Codec(e) => e.is_transient(),
            Self::Rejected(_)
            | Self::Fold(_)
            | Self::InvalidCommandId { .. }
            | Self::CommandIdReused { .. }
            | Self::RetentionTooShort { .. }
            | Self::HistoryForked { .. } => false,
        }
    }
}

impl<E: fmt::Display> fmt::Display for ExecuteError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(e) => e.fmt(f),
            Self::Conflict(e) => e.fmt(f),
            Self::Load(_) => f.write_str("the state cannot be loaded"),
            Self::Store(_) => f.write_str("the commit cannot be stored"),
            Self::Codec(_) => f.write_str("an event cannot be stored"),
            Self::Fold(_) => f.write_str("the new events cannot be folded and are not stored"),
            Self::Mark(_) => f.write_str("the command's mark cannot be read or written"),
            Self::InvalidCommandId { bytes, limit } => {
                write!(
                    f,
                    "a command id has 1 to {limit} bytes and no U+001F, this one has {bytes} bytes"
                )
            }
            Self::CommandIdReused { stream, command_id } => write!(
                f,
                "command id {command_id} was used for another command on {stream}: give every command an id of its own"
            ),
            Self::EarlierAttemptPending {
                stream,
                slot,
                rejection,
            } => {
                write!(
                    f,
                    "an earlier attempt at the command has reserved version {slot} of {stream} and may still be stored there; the outcome is known once a commit has that version, or the retention of the command id ends"
                )?;
                match rejection {
                    Some(rejection) => write!(f, "; now it is refused: {rejection}"),
                    None => f.write_str("; now it would store nothing"),
                }
            }
            Self::RetentionTooShort { retention, least } => write!(
                f,
                "marks of commands are kept for {retention:?}, which is less than {least:?}: raise the retention"
            ),
            Self::Contended { stream, attempts } => {
                write!(f, "others were faster on {stream} {attempts} times")
            }
            Self::HistoryForked { stream, slot, tail } => write!(
                f,
                "the history of {stream} has forked: the command belongs at {slot}, the stream ends at {tail}"
            ),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> Error for ExecuteError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Rejected(_) => Some(&REJECTION),
            Self::Conflict(_)
            | Self::InvalidCommandId { .. }
            | Self::Contended { .. }
            | Self::CommandIdReused { .. }
            | Self::EarlierAttemptPending { .. }
            | Self::RetentionTooShort { .. }
            | Self::HistoryForked { .. } => None,
            Self::Mark(e) => Some(e),
            Self::Load(e) => Some(e),
            Self::Store(e) => Some(e),
            Self::Codec(e) => Some(e),
            Self::Fold(e) => Some(e),
        }
    }
}

impl<E> From<LoadError> for ExecuteError<E> {
    fn from(e: LoadError) -> Self {
        Self::Load(e)
    }
}
impl<E> From<EventStoreError> for ExecuteError<E> {
    fn from(e: EventStoreError) -> Self {
        Self::Store(e)
    }
}
impl<E> From<CodecError> for ExecuteError<E> {
    fn from(e: CodecError) -> Self {
        Self::Codec(e)
    }
}
impl<E> From<FoldError> for ExecuteError<E> {
    fn from(e: FoldError) -> Self {
        Self::Fold(e)
    }
}
impl<E> From<InvalidStreamId> for ExecuteError<E> {
    fn from(e: InvalidStreamId) -> Self {
        Self::Load(e.into())
    }
}
