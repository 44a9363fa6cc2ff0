//! Given events, when a command, then events: tests of an aggregate without a store or a runtime.
use crate::ManualClock;
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, Metadata, StreamId, Timestamp, Version,
};
use std::fmt::{self, Debug, Write as _};

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
    history: Vec<A::Event>,
    now: Timestamp,
    id: String,
    metadata: Metadata,
}

/// What a command led to.
#[derive(Debug)]
pub struct Outcome<A: Aggregate, E> {
    /// The scenario behind the command: with its events, if it was accepted.
    scenario: Scenario<A>,
    result: Result<Vec<A::Event>, E>,
}

impl<A: Aggregate> Scenario<A> {
    /// After these events.
    #[must_use]
    pub fn given(events: impl IntoIterator<Item = A::Event>) -> Self {
        let start = Self {
            state: A::default(),
            history: Vec::new(),
            now: ManualClock::START,
            id: "scenario".into(),
            metadata: Metadata::new(),
        };
        start.and_given(events)
    }

    /// Before any event.
    #[must_use]
    pub fn given_nothing() -> Self {
        Self::given([])
    }

    /// And after these.
    #[must_use]
    pub fn and_given(mut self, events: impl IntoIterator<Item = A::Event>) -> Self {
        for event in events {
            self.state.evolve(&event);
            self.history.push(event);
        }
        self
    }

    /// Decides at this time. Unless set: 2026-01-01T00:00:00Z.
    #[must_use]
    pub const fn at(mut self, now: Timestamp) -> Self {
        self.now = now;
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
        let version = Version::new(self.history.len() as u64);
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

    /// The first `events` of the history, one a line.
    fn history_shown(&self, events: usize) -> String {
        let mut text = format!("history of {}#{}:", A::Event::AGGREGATE, self.id);
        if events == 0 {
            text.push_str(" none");
        }
        for (event, version) in self.history[..events].iter().zip(1..) {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  {version:>3}  {event:?}");
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
                Difference {
                    expected: &expected,
                    actual: events,
                    first: self.version_before() + 1,
                }
            ),
            Err(reason) => panic!(
                "the command was rejected\n{}expected: {expected:#?}\nrejected: {reason:?}\n",
                self.history_before()
            ),
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
    /// If it was accepted, or if the closure does.
    #[track_caller]
    pub fn then_rejected_with(self, check: impl FnOnce(&E)) -> Self {
        match &self.result {
            Err(reason) => check(reason),
            Ok(events) => self.panic_accepted(events, "a rejection"),
        }
        self
    }

    /// The closure asserts on the state behind the command; a rejected one has left it as it was.
    ///
    /// # Panics
    /// If the closure does.
    #[track_caller]
    pub fn then_state(self, check: impl FnOnce(&A)) -> Self {
        check(&self.scenario.state);
        self
    }

    /// Decides a further command behind this one.
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

    /// The scenario behind the command, to go on at another time or with more events.
    #[must_use]
    pub fn into_scenario(self) -> Scenario<A> {
        self.scenario
    }

    fn version_before(&self) -> usize {
        self.scenario.history.len() - self.result.as_ref().map_or(0, Vec::len)
    }
    fn history_before(&self) -> String {
        self.scenario.history_shown(self.version_before())
    }

    #[track_caller]
    fn panic_accepted(&self, events: &[A::Event], expected: &str) -> ! {
        panic!(
            "the command was accepted\n{}expected: {expected}\nactual:   {events:#?}\n",
            self.history_before()
        )
    }
}

/// What differs between two lists of events: whole events, or single lines of events of the same shape.
struct Difference<'a, E> {
    expected: &'a [E],
    actual: &'a [E],
    /// Version of the first event of both.
    first: usize,
}

impl<E: Debug + PartialEq> fmt::Display for Difference<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "expected (-) and actual (+):")?;
        for index in 0..self.expected.len().max(self.actual.len()) {
            let version = self.first + index;
            match (self.expected.get(index), self.actual.get(index)) {
                (Some(expected), Some(actual)) if expected == actual => {
                    writeln!(f, "  {version:>3}    {expected:?}")?;
                }
                (Some(expected), Some(actual)) => {
                    write_lines(
                        f,
                        version,
                        &format!("{expected:#?}"),
                        &format!("{actual:#?}"),
                    )?;
                }
                (Some(expected), None) => writeln!(f, "  {version:>3}  - {expected:?}")?,
                (None, Some(actual)) => writeln!(f, "  {version:>3}  + {actual:?}")?,
                (None, None) => {}
            }
        }
        Ok(())
    }
}

fn write_lines(
    f: &mut fmt::Formatter<'_>,
    version: usize,
    expected: &str,
    actual: &str,
) -> fmt::Result {
    writeln!(f, "  {version:>3}")?;
    if expected == actual {
        return writeln!(
            f,
            "         {expected}\n         (shown alike, but not equal)"
        );
    }
    if expected.lines().count() != actual.lines().count() {
        for (sign, text) in [('-', expected), ('+', actual)] {
            for line in text.lines() {
                writeln!(f, "       {sign} {line}")?;
            }
        }
        return Ok(());
    }
    for (expected, actual) in expected.lines().zip(actual.lines()) {
        if expected == actual {
            writeln!(f, "         {expected}")?;
        } else {
            writeln!(f, "       - {expected}\n       + {actual}")?;
        }
    }
    Ok(())
}
