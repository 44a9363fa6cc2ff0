//! The pure core: a fold ([`Aggregate`]) and decisions on it ([`Decide`]).
//!
//! Nothing here is async or does I/O: a conflict retry may decide again, tests need no runtime, and `proptest` can
//! shrink. Facts from outside (prices, time) come in by the command or the [`Context`].
use crate::{DomainEvent, Metadata, StreamId, Timestamp, Version};
use std::{error::Error, fmt::Display, str::FromStr};

/// State that is the fold of a stream. Pure: no clock, no randomness, no I/O.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an aggregate",
    label = "not an `Aggregate`",
    note = "implement `foldstream::Aggregate` for the state: its id, its events, and `evolve`"
)]
pub trait Aggregate: Default + Clone + Send + Sync + 'static {
    /// The id within the aggregate type. `Display` and `FromStr` must be inverse: an id that reads "007" as the number
    /// 7 names another stream.
    type Id: Display + FromStr<Err: Into<crate::BoxError>> + Clone + Send + Sync + 'static;
    /// The facts; they name the aggregate type ([`DomainEvent::AGGREGATE`]).
    type Event: DomainEvent;
    /// Takes one fact in. A fact cannot be refused.
    ///
    /// A repository folds new events before it stores them. If this method panics on one, nothing is stored and the command
    /// fails with [`ExecuteError::Fold`](crate::ExecuteError::Fold). With `panic = "abort"` the process ends instead, and
    /// nothing is stored either.
    fn evolve(&mut self, event: &Self::Event);
}

/// The facts that follow from a command (none: nothing to do), or why it is refused.
pub type Decision<A, E> = Result<Vec<<A as Aggregate>::Event>, E>;

/// A decision: which facts follow from a command in this state. One impl for a command enum, or one per command struct.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not decide the command `{C}`",
    label = "no decision on `{C}`",
    note = "implement `foldstream::Decide<{C}>` for `{Self}`; the command is passed by value and decided by reference"
)]
pub trait Decide<C>: Aggregate {
    /// The error with which a command is refused.
    type Error: Error + Send + Sync + 'static;
    /// Deterministic in its arguments: it runs again after a version conflict.
    ///
    /// # Errors
    /// The aggregate's own reason to refuse.
    fn decide(&self, command: &C, ctx: &Context) -> Decision<Self, Self::Error>;
}

/// Opts an aggregate into snapshots.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no snapshots",
    label = "not a `Snapshot`",
    note = "implement `foldstream::Snapshot` for the state, with its STATE_VERSION; the state needs serde's traits"
)]
pub trait Snapshot: Aggregate + serde::Serialize + serde::de::DeserializeOwned {
    /// Raise it whenever the meaning of the state changes; a snapshot of another version is ignored.
    const STATE_VERSION: u32;

    /// Returns true if `decoded`, which was read back from what this state was encoded to, is this state.
    ///
    /// A repository asks before it stores a snapshot, and stores none if it is not. The default compares everything that
    /// the two states serialize. It cannot see fields that are not serialized, such as those with `#[serde(skip)]`, nor
    /// the order of the elements of a sequence, since that of a `HashSet` changes. A state with [`PartialEq`] sees all
    /// with `self == decoded`.
    fn equals_decoded(&self, decoded: &Self) -> bool {
        crate::codec::same_data(self, decoded)
    }
}

/// Facts about a decision from outside the state: where, when and why.
#[derive(Clone, Debug)]
pub struct Context {
    stream: StreamId,
    version: Version,
    now: Timestamp,
    metadata: Metadata,
}

impl Context {
    /// For tests and own drivers; the repository makes one per attempt.
    pub const fn new(stream: StreamId, version: Version, now: Timestamp) -> Self {
        Self {
            stream,
            version,
            now,
            metadata: Metadata::new(),
        }
    }
    /// Adds the command's metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }
    /// The aggregate's id, typed.
    ///
    /// # Errors
    /// The id type's own error, if the text in the stream's name is not an id of type `I`.
    ///
    /// # Example
    /// ```
    /// use foldstream::{Context, StreamId, Timestamp, Version, id};
    /// id!(CartId);
    /// let stream = StreamId::new("cart", "c-7")?;
    /// let ctx = Context::new(stream, Version::NONE, Timestamp::from_micros(0));
    /// assert_eq!(ctx.id::<CartId>()?.as_str(), "c-7");
    /// assert!(ctx.id::<u64>().is_err());
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    pub fn id<I: FromStr>(&self) -> Result<I, I::Err> {
        self.stream.id().parse()
    }
    /// The stream that is decided on.
    pub const fn stream(&self) -> &StreamId {
        &self.stream
    }
    /// The version that the state is at; 0 for a new stream.
    pub const fn version(&self) -> Version {
        self.version
    }
    /// The time of the decision: it becomes the commit's `recorded_at` and is never below the previous commit's.
    pub const fn now(&self) -> Timestamp {
        self.now
    }
    /// Command id, correlation, causation, actor and the user's entries.
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
