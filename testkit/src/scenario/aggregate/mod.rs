//! Given events, when a command, then events: tests of an aggregate without a server or a runtime.
mod outcome;
mod stored;

pub use outcome::Outcome;

use super::{failure::with_history, names::typed_id};
use crate::{InMemoryEventStore, ManualClock};
use bytes::Bytes;
use foldstream::{
    Aggregate, CodecError, Context, Decide, Decision, DomainEvent, EventName, Metadata, Snapshot,
    StreamId, Timestamp, Upcasters, Version,
    adapter::{decode_state, encode_state},
    chain,
    ports::Capabilities,
};
use outcome::Unnoticed;
use std::{
    fmt::{Debug, Write as _},
    sync::Arc,
    time::Duration,
};

/// An aggregate with a history, at a fixed time.
///
/// Every `then_..` panics with the history and what differs. The scenario also finds three mistakes
/// that the test does not look for:
/// - **A decision that is not deterministic.** Each command is decided twice and must lead to the
///   same outcome both times, since a repository decides again after a version conflict.
/// - **Events that cannot be stored.** Each `when` takes its events through the checks of a
///   repository and of a store with DynamoDB's limits, and folds the events that are read back. So
///   it fails on an event that cannot be encoded or that loses a field, on a commit that is too
///   large, and on metadata that no record could carry. Given events are read back too. Payload
///   codecs are not involved: they are tested by `payload_codec_contract!` and in a
///   [`PipelineScenario`](crate::PipelineScenario).
/// - **A rejection that the test does not assert.** After a rejected command the next call must be
///   [`then_rejected`](Outcome::then_rejected) or
///   [`then_rejected_with`](Outcome::then_rejected_with). Any other call, and the end of the
///   scenario, panics.
///
/// # Example
/// ```
/// # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent};
/// # foldstream::id!(AccountId);
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "account")]
/// # enum AccountEvent { Deposited { amount: u64 }, Withdrawn { amount: u64 } }
/// # #[derive(Clone, Debug, Default)]
/// # struct Account { balance: u64 }
/// # struct Withdraw { amount: u64 }
/// # #[derive(Debug, PartialEq, thiserror::Error)]
/// # #[error("insufficient funds")]
/// # struct InsufficientFunds;
/// # impl Aggregate for Account {
/// #     type Id = AccountId;
/// #     type Event = AccountEvent;
/// #     fn evolve(&mut self, event: &AccountEvent) {
/// #         match event {
/// #             AccountEvent::Deposited { amount } => self.balance += amount,
/// #             AccountEvent::Withdrawn { amount } => self.balance -= amount,
/// #         }
/// #     }
/// # }
/// # impl Decide<Withdraw> for Account {
/// #     type Error = InsufficientFunds;
/// #     fn decide(&self, command: &Withdraw, _: &Context) -> Decision<Self, InsufficientFunds> {
/// #         if command.amount > self.balance { return Err(InsufficientFunds); }
/// #         Ok(vec![AccountEvent::Withdrawn { amount: command.amount }])
/// #     }
/// # }
/// # use AccountEvent::{Deposited, Withdrawn};
/// use foldstream_testkit::Scenario;
///
/// Scenario::<Account>::given([Deposited { amount: 10 }])
///     .when(Withdraw { amount: 4 })
///     .then([Withdrawn { amount: 4 }])
///     .then_state(|account| assert_eq!(account.balance, 6))
///     .when(Withdraw { amount: 7 })
///     .then_rejected(InsufficientFunds);
/// ```
#[derive(Clone, Debug)]
pub struct Scenario<A: Aggregate> {
    /// The state after the first `folded` entries of the history.
    state: A,
    folded: usize,
    /// The version of a given state, or 0 without one.
    base: Version,
    history: Vec<Past<A::Event>>,
    now: Timestamp,
    /// The time of the last command that led to events.
    recorded_at: Option<Timestamp>,
    id: String,
    metadata: Metadata,
    upcasters: Upcasters,
    /// The store whose checks are applied. Nothing is stored in it.
    store: Arc<InMemoryEventStore>,
    through_snapshot: Option<ThroughSnapshot<A>>,
}

/// Encodes a state as a snapshot and returns the state that is read back.
type ThroughSnapshot<A> = fn(&A) -> Result<A, CodecError>;

/// One event of the history.
#[derive(Clone, Debug)]
enum Past<E> {
    /// An event that the test or a command has written.
    Event(E),
    /// An event that was read from a payload. Today's build need not be able to write it.
    Read(E),
    /// An event that an upcaster has retired: only its version is left.
    Retired(EventName),
}

impl<A: Aggregate> Scenario<A> {
    /// The number of events of the history that a failure shows.
    const SHOWN: usize = 50;

    /// Creates a scenario in which these events have happened.
    #[must_use]
    pub fn given(events: impl IntoIterator<Item = A::Event>) -> Self {
        Self::given_state(A::default()).and_given(events)
    }

    /// Creates a scenario in which no event has happened.
    #[must_use]
    pub fn given_nothing() -> Self {
        Self::given([])
    }

    /// Creates a scenario in this state, as a snapshot would give it. Its version is 0 unless
    /// [`at_version`](Self::at_version) sets another.
    #[must_use]
    pub fn given_state(state: A) -> Self {
        Self {
            state,
            folded: 0,
            base: Version::NONE,
            history: Vec::new(),
            now: ManualClock::START,
            recorded_at: None,
            id: "scenario".into(),
            metadata: Metadata::new(),
            upcasters: Upcasters::new(),
            store: InMemoryEventStore::new(),
            through_snapshot: None,
        }
    }

    /// Adds events to the history. The next [`when`](Self::when) folds them, as a load does.
    #[must_use]
    pub fn and_given(mut self, events: impl IntoIterator<Item = A::Event>) -> Self {
        self.history.extend(events.into_iter().map(Past::Event));
        self
    }

    /// Adds an event to the history as an older build stored it.
    ///
    /// The [upcasters](Self::with_upcasters) lift the event and it is decoded, as in a load.
    /// `payload` is what the store holds, without name and version.
    ///
    /// # Panics
    /// If no event comes out: nothing lifts it, its name is unknown, or the payload is not of its
    /// type.
    #[track_caller]
    #[must_use]
    pub fn and_given_stored(
        mut self,
        name: impl Into<String>,
        schema_version: u16,
        payload: impl Into<Bytes>,
    ) -> Self {
        let name = EventName::from(name.into());
        match self.read(&name, schema_version, &payload.into()) {
            Ok(past) => {
                self.history.push(past);
                self
            }
            Err(error) => panic!(
                "the stored event {}.{name} of schema version {schema_version} cannot be read: {}\n{}",
                A::Event::AGGREGATE,
                chain(&*error),
                self.history_shown(self.history.len())
            ),
        }
    }

    /// Sets the upcasters that lift stored events given after this call, in addition to those of
    /// the event type.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// Stores the state as a snapshot before and after each command, and continues with the state
    /// that is read back.
    ///
    /// This is what a process does that loads from a snapshot. So a `then_state` sees a field that
    /// the snapshot has lost, and the next `when` decides without it.
    #[must_use]
    pub fn with_snapshots(mut self) -> Self
    where
        A: Snapshot,
    {
        self.through_snapshot = Some(|state| decode_state(&encode_state(state)?));
        self
    }

    /// Sets the limits that events and commits are checked against. Default: those of DynamoDB, as
    /// in [`InMemoryEventStore::new`].
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.store = InMemoryEventStore::with_capabilities(capabilities);
        self
    }

    /// Sets the version of a given state. Events given after this call have the versions after it.
    ///
    /// # Panics
    /// If events were given or decided before: they have versions already.
    #[track_caller]
    #[must_use]
    pub fn at_version(mut self, version: Version) -> Self {
        assert!(
            self.history.is_empty(),
            "{} events have versions already: say `.at_version({version})` right after `given_state`",
            self.history.len()
        );
        self.base = version;
        self
    }

    /// Sets the time of the next decision. Default: 2026-01-01T00:00:00Z.
    ///
    /// As in a repository, a decision is never earlier than the events of the command before it,
    /// even if the clock is set back.
    #[must_use]
    pub const fn at(mut self, now: Timestamp) -> Self {
        self.now = now;
        self
    }

    /// Moves the time of the next decision forward by this much.
    #[must_use]
    pub fn later(mut self, by: Duration) -> Self {
        self.now = self.now.plus(by);
        self
    }

    /// Sets the id of the aggregate. Default: `scenario`.
    ///
    /// # Panics
    /// If the text of the id is read as an id with another text, so that a command would go to
    /// another stream, or if a command has already led to events of another id.
    #[track_caller]
    #[must_use]
    pub fn of(mut self, id: &A::Id) -> Self {
        let text = typed_id::<A>(id).to_string();
        assert!(
            self.recorded_at.is_none() || self.id == text,
            "the history belongs to the id {:?}: begin another scenario for {text:?}",
            self.id
        );
        self.id = text;
        self
    }

    /// Sets the metadata in the context of the next decisions.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Decides a command, and takes the events that it leads to through the checks of an append.
    ///
    /// # Panics
    /// - If the id names no stream, or if deciding twice leads to different outcomes.
    /// - If an event, of the command or given, cannot be encoded, is read back as another event, or
    ///   is larger than a store takes.
    /// - If the events are together too many or too large for one commit, or if the metadata is
    ///   refused.
    /// - If `evolve` panics, with its message and the history.
    /// - If the state is not read back from a snapshot as it was, with
    ///   [`with_snapshots`](Self::with_snapshots).
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a command is written in place"
    )]
    pub fn when<C>(mut self, command: C) -> Outcome<A, A::Error>
    where
        A: Decide<C>,
    {
        let stream = self.stream();
        self.fold_given(&stream);
        // As in a repository, a commit is never earlier than the last commit of its stream.
        let now = self.recorded_at.map_or(self.now, |at| at.max(self.now));
        let context =
            Context::new(stream, self.version(), now).with_metadata(self.metadata.clone());
        let result = self.state.decide(&command, &context);
        self.check_is_repeatable(&result, &self.state.decide(&command, &context));
        let unnoticed = match &result {
            Ok(events) => {
                self.take_in(&context, events);
                Unnoticed::nothing()
            }
            Err(reason) => {
                Unnoticed::rejection::<C>(reason, &self.history_shown(self.history.len()))
            }
        };
        Outcome::new(self, result, unnoticed)
    }

    #[track_caller]
    fn stream(&self) -> StreamId {
        match StreamId::new(A::Event::AGGREGATE, &self.id) {
            Ok(stream) => stream,
            Err(error) => panic!("the scenario's id {:?} names no stream: {error}", self.id),
        }
    }

    const fn version(&self) -> Version {
        self.base.plus(self.history.len() as u64)
    }

    #[track_caller]
    fn check_is_repeatable<E: Debug>(&self, first: &Decision<A, E>, second: &Decision<A, E>) {
        let is_same = match (first, second) {
            // A NaN does not equal itself, which is no reason to call the decision random. So the
            // `Debug` output is compared too.
            (Ok(first), Ok(second)) => {
                first.len() == second.len()
                    && first.iter().zip(second).all(|(a, b)| a.equals_decoded(b))
            }
            // A reason need not be comparable, but always has `Debug` output.
            (Err(first), Err(second)) => format!("{first:?}") == format!("{second:?}"),
            _ => false,
        };
        assert!(
            is_same,
            "the decision is not deterministic, but a conflict retry runs it again: take ids, time and randomness from \
             the command or the context\n{}first:  {first:?}\nsecond: {second:?}\n",
            self.history_shown(self.history.len())
        );
    }

    /// Returns the first `events` of the history, one per line, and only the last of them if there
    /// are many.
    fn history_shown(&self, events: usize) -> String {
        let mut text = format!("history of {}#{}:", A::Event::AGGREGATE, self.id);
        // Writing to a String cannot fail.
        if self.base > Version::NONE {
            let _ = write!(text, "\n       a given state at version {}", self.base);
        } else if events == 0 {
            text.push_str(" none");
        }
        let hidden = events.saturating_sub(Self::SHOWN);
        if hidden > 0 {
            let _ = write!(text, "\n       ... {hidden} events before");
        }
        let past = self.history[..events].iter().zip(self.base.get() + 1..);
        for (event, version) in past.skip(hidden) {
            let _ = match event {
                Past::Event(event) | Past::Read(event) => {
                    write!(text, "\n  {version:>3}  {event:?}")
                }
                Past::Retired(name) => write!(text, "\n  {version:>3}  ({name}, retired)"),
            };
        }
        text.push('\n');
        text
    }
}
