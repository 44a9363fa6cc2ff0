//! Given events, when a command, then events: tests of an aggregate without a store or a runtime.
use super::{diff, failure::with_history};
use crate::ManualClock;
use bytes::Bytes;
use foldstream::{
    Aggregate, Context, Decide, Decision, Decoded, DomainEvent, EventName, EventSet, Metadata,
    StreamId, Timestamp, Upcasters, Version, chain,
};
use std::{
    fmt::{Debug, Write as _},
    time::Duration,
};

/// An aggregate with a history, at a fixed time.
///
/// Every `then_..` panics with the history and what differs. A command is decided twice and must lead to the same both
/// times, since a repository decides again after a version conflict.
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
    state: A,
    /// The version that a given state is at; 0 without one.
    base: Version,
    history: Vec<Past<A::Event>>,
    now: Timestamp,
    id: String,
    metadata: Metadata,
    upcasters: Upcasters,
}

/// One event of the history.
#[derive(Clone, Debug)]
enum Past<E> {
    Event(E),
    /// An upcaster has retired it: only its version is left.
    Retired(EventName),
}

/// The outcome of a command.
#[derive(Debug)]
pub struct Outcome<A: Aggregate, E> {
    /// The scenario after the command: with its events, if it was accepted.
    scenario: Scenario<A>,
    result: Result<Vec<A::Event>, E>,
}

impl<A: Aggregate> Scenario<A> {
    /// Events of the history that a failure shows.
    const SHOWN: usize = 50;

    /// After these events.
    #[must_use]
    pub fn given(events: impl IntoIterator<Item = A::Event>) -> Self {
        Self::given_state(A::default()).and_given(events)
    }

    /// Before any event.
    #[must_use]
    pub fn given_nothing() -> Self {
        Self::given([])
    }

    /// In this state, as a snapshot would give it. Its version is 0, unless [`at_version`](Self::at_version) says otherwise.
    #[must_use]
    pub fn given_state(state: A) -> Self {
        Self {
            state,
            base: Version::NONE,
            history: Vec::new(),
            now: ManualClock::START,
            id: "scenario".into(),
            metadata: Metadata::new(),
            upcasters: Upcasters::new(),
        }
    }

    /// And after these.
    #[must_use]
    pub fn and_given(mut self, events: impl IntoIterator<Item = A::Event>) -> Self {
        for event in events {
            self.state.evolve(&event);
            self.history.push(Past::Event(event));
        }
        self
    }

    /// And after this event as an older build stored it: it is lifted by the [upcasters](Self::with_upcasters) and
    /// decoded, as a load does. `payload` is what the store holds, without name or version.
    ///
    /// # Panics
    /// If no event comes out: nothing lifts it, its name is unknown, or the payload is not of its type.
    #[track_caller]
    #[must_use]
    pub fn and_given_stored(
        mut self,
        name: impl Into<String>,
        schema_version: u16,
        payload: impl Into<Bytes>,
    ) -> Self {
        let name = EventName::from(name.into());
        match self.lift(&name, schema_version, &payload.into()) {
            Ok(Some(event)) => self.and_given([event]),
            Ok(None) => {
                self.history.push(Past::Retired(name));
                self
            }
            Err(reason) => panic!(
                "the stored event {}.{name} of schema version {schema_version} cannot be read: {reason}\n{}",
                A::Event::AGGREGATE,
                self.history_shown(self.history.len())
            ),
        }
    }

    /// None: retired.
    fn lift(
        &self,
        name: &EventName,
        schema_version: u16,
        payload: &Bytes,
    ) -> Result<Option<A::Event>, String> {
        let aggregate = A::Event::AGGREGATE;
        let upcasters = self.upcasters.with_own_of::<A::Event>();
        let upcasters = upcasters.map_err(|error| chain(&error))?;
        let lifted = upcasters
            .apply(aggregate, name, schema_version, payload)
            .map_err(|error| chain(&error))?;
        let Some(lifted) = lifted else {
            return Ok(None);
        };
        let decoded = A::Event::decode_from(
            aggregate,
            &lifted.name,
            lifted.schema_version,
            &lifted.payload,
        );
        match decoded.map_err(|error| chain(&error))? {
            Decoded::Event(event) => Ok(Some(event)),
            Decoded::NotMine | Decoded::Unknown => {
                let known: Vec<_> = A::Event::TYPES.iter().map(|known| known.name()).collect();
                Err(format!(
                    "this build knows no event {}, only {known:?}",
                    lifted.name
                ))
            }
        }
    }

    /// Lifts the stored events that are given after this, together with the upcasters of the event type.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// The version of a given state: what is given after it follows at the next.
    #[must_use]
    pub const fn at_version(mut self, version: Version) -> Self {
        self.base = version;
        self
    }

    /// Decides at this time. Unless set: 2026-01-01T00:00:00Z.
    #[must_use]
    pub const fn at(mut self, now: Timestamp) -> Self {
        self.now = now;
        self
    }

    /// Decides this much later than before.
    #[must_use]
    pub fn later(mut self, by: Duration) -> Self {
        self.now = self.now.plus(by);
        self
    }

    /// Decides under this id. Unless set: `scenario`.
    #[must_use]
    pub fn of(mut self, id: &A::Id) -> Self {
        self.id = id.to_string();
        self
    }

    /// Decides with this metadata in the context.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Decides a command.
    ///
    /// # Panics
    /// If the id names no stream, or if deciding twice leads to different things.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a command is written in place"
    )]
    pub fn when<C>(self, command: C) -> Outcome<A, A::Error>
    where
        A: Decide<C>,
    {
        let context = self.context();
        let result = self.state.decide(&command, &context);
        self.check_is_repeatable(&result, &self.state.decide(&command, &context));
        let scenario = match &result {
            Ok(events) => self.and_given(events.iter().cloned()),
            Err(_) => self,
        };
        Outcome { scenario, result }
    }

    #[track_caller]
    fn context(&self) -> Context {
        let stream = match StreamId::new(A::Event::AGGREGATE, &self.id) {
            Ok(stream) => stream,
            Err(error) => panic!("the scenario's id {:?} names no stream: {error}", self.id),
        };
        let version = self.base.plus(self.history.len() as u64);
        Context::new(stream, version, self.now).with_metadata(self.metadata.clone())
    }

    #[track_caller]
    fn check_is_repeatable<E: Debug>(&self, first: &Decision<A, E>, second: &Decision<A, E>) {
        let is_same = match (first, second) {
            (Ok(first), Ok(second)) => first == second,
            // A reason need not be comparable; it can always be shown.
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

    /// The first `events` of the history, one a line: the last of them, if they are many.
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
                Past::Event(event) => write!(text, "\n  {version:>3}  {event:?}"),
                Past::Retired(name) => write!(text, "\n  {version:>3}  ({name}, retired)"),
            };
        }
        text.push('\n');
        text
    }
}

impl<A: Aggregate, E: Debug> Outcome<A, E> {
    /// Accepted, with exactly these events.
    ///
    /// # Panics
    /// If it was rejected, or led to other events.
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) -> Self {
        let expected: Vec<_> = expected.into_iter().collect();
        match &self.result {
            Ok(events) if *events == expected => self,
            Ok(events) => panic!(
                "the command led to other events\n{}{}",
                self.history_before(),
                diff::of_events(&expected, events, self.first_version())
            ),
            Err(reason) => self.panic_rejected(reason, &format!("{expected:#?}")),
        }
    }

    /// Accepted, without an event: there was nothing to do.
    ///
    /// # Panics
    /// If it was rejected, or led to events.
    #[track_caller]
    pub fn then_nothing(self) -> Self {
        self.then([])
    }

    /// Accepted; the closure asserts on the events. For those that hold what a test need not know exactly.
    ///
    /// # Panics
    /// If it was rejected, or if the closure does: with its message and the history.
    #[track_caller]
    pub fn then_with(self, check: impl FnOnce(&[A::Event])) -> Self {
        match &self.result {
            Ok(events) => with_history(
                || check(events),
                || format!("{}actual: {events:#?}\n", self.history_before()),
            ),
            Err(reason) => self.panic_rejected(reason, "events"),
        }
        self
    }

    /// Rejected for this reason.
    ///
    /// # Panics
    /// If it was accepted, or rejected for another reason.
    #[track_caller]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a reason is written in place"
    )]
    pub fn then_rejected(self, expected: E) -> Self
    where
        E: PartialEq,
    {
        match &self.result {
            Err(reason) if *reason == expected => self,
            Err(reason) => panic!(
                "the command was rejected for another reason\n{}expected: {expected:?}\nactual:   {reason:?}\n",
                self.history_before()
            ),
            Ok(events) => self.panic_accepted(events, &format!("{expected:?}")),
        }
    }

    /// Rejected; the closure asserts on the reason.
    ///
    /// # Panics
    /// If it was accepted, or if the closure does: with its message and the history.
    #[track_caller]
    pub fn then_rejected_with(self, check: impl FnOnce(&E)) -> Self {
        match &self.result {
            Err(reason) => with_history(
                || check(reason),
                || format!("{}rejected: {reason:?}\n", self.history_before()),
            ),
            Ok(events) => self.panic_accepted(events, "a rejection"),
        }
        self
    }

    /// The closure asserts on the state after the command; a rejected one has left it as it was.
    ///
    /// # Panics
    /// If the closure does: with its message and the history.
    #[track_caller]
    pub fn then_state(self, check: impl FnOnce(&A)) -> Self {
        with_history(|| check(&self.scenario.state), || self.history_shown());
        self
    }

    /// This is the state after the command.
    ///
    /// # Panics
    /// If it is another: with the fields that differ.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "a state is written in place")]
    pub fn then_state_is(self, expected: A) -> Self
    where
        A: Debug + PartialEq,
    {
        let state = &self.scenario.state;
        assert!(
            *state == expected,
            "the state is another\n{}{}",
            self.history_shown(),
            diff::of_values(&expected, state)
        );
        self
    }

    /// Decides a further command after this one.
    ///
    /// # Panics
    /// As [`Scenario::when`].
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when<C>(self, command: C) -> Outcome<A, A::Error>
    where
        A: Decide<C>,
    {
        self.scenario.when(command)
    }

    /// The scenario after the command, at this time: `.at(time).when(command)`.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Scenario<A> {
        self.scenario.at(now)
    }

    /// The scenario after the command, this much later: `.later(month).when(command)`.
    #[must_use]
    pub fn later(self, by: Duration) -> Scenario<A> {
        self.scenario.later(by)
    }

    /// The scenario after the command, to go on with more events or other metadata.
    #[must_use]
    pub fn into_scenario(self) -> Scenario<A> {
        self.scenario
    }

    fn events_before(&self) -> usize {
        self.scenario.history.len() - self.result.as_ref().map_or(0, Vec::len)
    }
    /// Version of the command's first event.
    fn first_version(&self) -> u64 {
        self.scenario.base.get() + self.events_before() as u64 + 1
    }
    fn history_before(&self) -> String {
        self.scenario.history_shown(self.events_before())
    }
    fn history_shown(&self) -> String {
        self.scenario.history_shown(self.scenario.history.len())
    }

    #[track_caller]
    fn panic_accepted(&self, events: &[A::Event], expected: &str) -> ! {
        panic!(
            "the command was accepted\n{}expected: {expected}\nactual:   {events:#?}\n",
            self.history_before()
        )
    }

    #[track_caller]
    fn panic_rejected(&self, reason: &E, expected: &str) -> ! {
        panic!(
            "the command was rejected\n{}expected: {expected}\nrejected: {reason:?}\n",
            self.history_before()
        )
    }
}
