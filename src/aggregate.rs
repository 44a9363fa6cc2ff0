//! The pure core: a fold ([`Aggregate`]) and decisions on its state ([`Decide`]).
//!
//! Nothing here is async or does I/O. A command may therefore be decided again after a conflict,
//! tests need no runtime, and `proptest` can shrink. Facts from outside, such as prices and the
//! time, are passed in by the command or the [`Context`].
use crate::{DomainEvent, Metadata, StreamId, Timestamp, Version};
use std::{error::Error, fmt::Display, str::FromStr};

/// A state that is the fold of the events of a stream. It is pure: it uses no clock, no randomness
/// and no I/O.
///
/// # Example
/// ```
/// use foldstream::{Aggregate, DomainEvent};
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "account")]
/// enum AccountEvent {
///     Deposited { amount: u64 },
///     Withdrawn { amount: u64 },
/// }
///
/// #[derive(Clone, Debug, Default, PartialEq)]
/// struct Account {
///     balance: u64,
/// }
///
/// impl Aggregate for Account {
///     type Id = String;
///     type Event = AccountEvent;
///     fn evolve(&mut self, event: &AccountEvent) {
///         match event {
///             AccountEvent::Deposited { amount } => self.balance += amount,
///             AccountEvent::Withdrawn { amount } => self.balance -= amount,
///         }
///     }
/// }
///
/// let mut account = Account::default();
/// account.evolve(&AccountEvent::Deposited { amount: 5 });
/// account.evolve(&AccountEvent::Withdrawn { amount: 2 });
/// assert_eq!(account.balance, 3);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an aggregate",
    label = "not an `Aggregate`",
    note = "implement `foldstream::Aggregate` for the state: its id, its events, and `evolve`"
)]
pub trait Aggregate: Default + Clone + Send + Sync + 'static {
    /// The type of the id within the aggregate type. `Display` and `FromStr` must be inverse: an id
    /// that reads "007" as the number 7 names another stream.
    type Id: Display + FromStr<Err: Into<crate::BoxError>> + Clone + Send + Sync + 'static;
    /// The type of the events, which name the aggregate type ([`DomainEvent::AGGREGATE`]).
    type Event: DomainEvent;
    /// Applies one event to the state. An event is a fact and cannot be refused.
    ///
    /// A repository folds new events before it stores them. If this method panics on one, nothing
    /// is stored and the command fails with [`ExecuteError::Fold`](crate::ExecuteError::Fold). With
    /// `panic = "abort"` the process ends instead, and nothing is stored either.
    fn evolve(&mut self, event: &Self::Event);
}

/// The events that follow from a command, or the reason why it is refused. No events mean that
/// there is nothing to do.
pub type Decision<A, E> = Result<Vec<<A as Aggregate>::Event>, E>;

/// The decision which events follow from a command in the current state.
///
/// An aggregate implements it once for a command enum, or once per command struct.
///
/// # Example
/// ```
/// use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent};
/// use foldstream::{StreamId, Timestamp, Version};
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "door")]
/// enum DoorEvent { Opened, Closed }
///
/// #[derive(Clone, Debug, Default, PartialEq)]
/// struct Door { open: bool }
///
/// # impl Aggregate for Door {
/// #     type Id = String;
/// #     type Event = DoorEvent;
/// #     fn evolve(&mut self, event: &DoorEvent) { self.open = *event == DoorEvent::Opened; }
/// # }
/// struct Open;
///
/// #[derive(Debug, thiserror::Error)]
/// #[error("the door is open already")]
/// struct AlreadyOpen;
///
/// impl Decide<Open> for Door {
///     type Error = AlreadyOpen;
///     fn decide(&self, _: &Open, _: &Context) -> Decision<Self, AlreadyOpen> {
///         if self.open { Err(AlreadyOpen) } else { Ok(vec![DoorEvent::Opened]) }
///     }
/// }
///
/// let ctx = Context::new(StreamId::new("door", "front")?, Version::NONE, Timestamp::now());
/// assert_eq!(Door { open: false }.decide(&Open, &ctx)?, [DoorEvent::Opened]);
/// assert!(Door { open: true }.decide(&Open, &ctx).is_err());
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not decide the command `{C}`",
    label = "no decision on `{C}`",
    note = "implement `foldstream::Decide<{C}>` for `{Self}`; the command is passed by value and decided by reference"
)]
pub trait Decide<C>: Aggregate {
    /// The error with which a command is refused.
    type Error: Error + Send + Sync + 'static;
    /// Decides on a command. The result must depend on the arguments only, because the method is
    /// called again after a version conflict.
    ///
    /// # Errors
    /// The aggregate's own error if it refuses the command.
    fn decide(&self, command: &C, ctx: &Context) -> Decision<Self, Self::Error>;
}

/// An aggregate whose state may be stored in snapshots.
///
/// # Example
/// ```
/// use foldstream::Snapshot;
/// # use foldstream::{Aggregate, DomainEvent};
/// use serde::{Deserialize, Serialize};
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "counter")]
/// # enum CounterEvent { Counted }
///
/// #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
/// struct Counter {
///     total: u64,
/// }
/// # impl Aggregate for Counter {
/// #     type Id = String;
/// #     type Event = CounterEvent;
/// #     fn evolve(&mut self, _: &CounterEvent) { self.total += 1; }
/// # }
/// impl Snapshot for Counter {
///     const STATE_VERSION: u32 = 1;
///     fn equals_decoded(&self, decoded: &Self) -> bool {
///         self == decoded
///     }
/// }
/// assert!(Counter { total: 3 }.equals_decoded(&Counter { total: 3 }));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no snapshots",
    label = "not a `Snapshot`",
    note = "implement `foldstream::Snapshot` for the state, with its STATE_VERSION; the state needs serde's traits"
)]
pub trait Snapshot: Aggregate + serde::Serialize + serde::de::DeserializeOwned {
    /// The version of the state's meaning. It must be raised whenever that meaning changes; a
    /// snapshot of another version is ignored.
    const STATE_VERSION: u32;

    /// Returns true if `decoded`, which was decoded from the encoding of this state, is equal to
    /// this state.
    ///
    /// A repository calls this method before it stores a snapshot, and stores none if the answer is
    /// false. The default compares everything that the two states serialize. It cannot see fields
    /// that are not serialized, such as those with `#[serde(skip)]`, nor the order of the elements
    /// of a sequence, since that of a `HashSet` changes. A state with [`PartialEq`] compares
    /// everything with `self == decoded`.
    fn equals_decoded(&self, decoded: &Self) -> bool {
        crate::codec::same_data(self, decoded)
    }
}

/// The facts about a decision that are not in the state: stream, version, time and metadata.
#[derive(Clone, Debug)]
pub struct Context {
    stream: StreamId,
    version: Version,
    now: Timestamp,
    metadata: Metadata,
}

impl Context {
    /// Creates a context for tests and for callers without a repository. A repository creates one
    /// per attempt.
    pub const fn new(stream: StreamId, version: Version, now: Timestamp) -> Self {
        Self {
            stream,
            version,
            now,
            metadata: Metadata::new(),
        }
    }
    /// Sets the metadata of the command.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }
    /// Returns the aggregate's id as a typed value.
    ///
    /// # Errors
    /// The error of the id type if the text in the stream's name is not an id of type `I`.
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
    /// Returns the stream that the decision is about.
    pub const fn stream(&self) -> &StreamId {
        &self.stream
    }
    /// Returns the version of the state; 0 for a new stream.
    pub const fn version(&self) -> Version {
        self.version
    }
    /// Returns the time of the decision. It becomes the commit's `recorded_at`, and is never before
    /// the time of the previous commit.
    pub const fn now(&self) -> Timestamp {
        self.now
    }
    /// Returns the metadata of the command: command id, correlation, causation, actor and the
    /// entries of the user.
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
