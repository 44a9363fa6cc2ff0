//! The outcome of a command: its events, or the rejection that the test must assert.
use super::{Scenario, with_history};
use crate::scenario::{diff, names::short_type_name};
use foldstream::{Aggregate, Decide, Timestamp, chain};
use std::{error::Error, fmt::Debug, panic::Location, thread, time::Duration};

/// The outcome of a command: events, or a rejection.
///
/// A rejection must be asserted by [`then_rejected`](Self::then_rejected) or
/// [`then_rejected_with`](Self::then_rejected_with) before any other call. Every other call, and
/// the end of the test, panics. Otherwise a command that was rejected by mistake would leave a
/// scenario in which less has happened than its text says.
#[derive(Debug)]
pub struct Outcome<A: Aggregate, E> {
    /// The scenario after the command, with the events of the command if it was accepted.
    scenario: Scenario<A>,
    result: Result<Vec<A::Event>, E>,
    unnoticed: Unnoticed,
}

/// The message about a rejection that the test has not asserted yet. Dropping it fails the test.
#[derive(Debug)]
pub(super) struct Unnoticed(Option<String>);

impl Unnoticed {
    /// Creates the value for a command that was accepted.
    pub(super) const fn nothing() -> Self {
        Self(None)
    }

    /// Creates the value for a command that was rejected.
    #[track_caller]
    pub(super) fn rejection<C>(reason: &(impl Error + 'static), history: &str) -> Self {
        let (command, when) = (short_type_name::<C>(), Location::caller());
        Self(Some(format!(
            "the command {command} was rejected, and the test does not look at that: if the rejection is expected, call \
             `then_rejected` or `then_rejected_with` right after this `when`\nwhen: {when}\n{history}rejected: {reason:?}: {}\n",
            chain(reason)
        )))
    }

    fn notice(&mut self) {
        self.0 = None;
    }

    #[track_caller]
    fn check(&mut self) {
        if let Some(message) = self.0.take() {
            panic!("{message}");
        }
    }
}

impl Drop for Unnoticed {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.check();
        }
    }
}

impl<A: Aggregate, E: Debug> Outcome<A, E> {
    pub(super) const fn new(
        scenario: Scenario<A>,
        result: Result<Vec<A::Event>, E>,
        unnoticed: Unnoticed,
    ) -> Self {
        Self {
            scenario,
            result,
            unnoticed,
        }
    }

    /// Asserts that the command was accepted and led to exactly these events.
    ///
    /// # Panics
    /// If the command was rejected or led to other events.
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

    /// Asserts that the command was accepted and led to no event.
    ///
    /// # Panics
    /// If the command was rejected or led to events.
    #[track_caller]
    pub fn then_nothing(self) -> Self {
        self.then([])
    }

    /// Asserts that the command was accepted, and passes its events to the closure for assertions.
    ///
    /// Use it if events contain values that the test cannot know exactly.
    ///
    /// # Panics
    /// If the command was rejected, or if the closure panics, with its message and the history.
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

    /// Asserts that the command was rejected for this reason.
    ///
    /// # Panics
    /// If the command was accepted, or rejected for another reason.
    #[track_caller]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a reason is written in place"
    )]
    pub fn then_rejected(mut self, expected: E) -> Self
    where
        E: PartialEq,
    {
        self.unnoticed.notice();
        match &self.result {
            Err(reason) if *reason == expected => self,
            Err(reason) => panic!(
                "the command was rejected for another reason\n{}expected: {expected:?}\nactual:   {reason:?}\n",
                self.history_before()
            ),
            Ok(events) => self.panic_accepted(events, &format!("{expected:?}")),
        }
    }

    /// Asserts that the command was rejected, and passes the reason to the closure for assertions.
    ///
    /// # Panics
    /// If the command was accepted, or if the closure panics, with its message and the history.
    #[track_caller]
    pub fn then_rejected_with(mut self, check: impl FnOnce(&E)) -> Self {
        self.unnoticed.notice();
        match &self.result {
            Err(reason) => with_history(
                || check(reason),
                || format!("{}rejected: {reason:?}\n", self.history_before()),
            ),
            Ok(events) => self.panic_accepted(events, "a rejection"),
        }
        self
    }

    /// Passes the state after the command to the closure for assertions. A rejected command leaves
    /// the state as it was.
    ///
    /// # Panics
    /// If the closure panics, with its message and the history, or if a rejection was not asserted
    /// before.
    #[track_caller]
    pub fn then_state(mut self, check: impl FnOnce(&A)) -> Self {
        self.unnoticed.check();
        with_history(|| check(&self.scenario.state), || self.history_shown());
        self
    }

    /// Asserts that the state after the command equals this one.
    ///
    /// # Panics
    /// If the state differs, with the fields that differ, or if a rejection was not asserted
    /// before.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "a state is written in place")]
    pub fn then_state_is(mut self, expected: A) -> Self
    where
        A: Debug + PartialEq,
    {
        self.unnoticed.check();
        let state = &self.scenario.state;
        assert!(
            *state == expected,
            "the state is another\n{}{}",
            self.history_shown(),
            diff::of_values(&expected, state)
        );
        self
    }

    /// Decides another command after this one.
    ///
    /// # Panics
    /// As [`Scenario::when`], and if a rejection was not asserted before.
    #[track_caller]
    #[must_use = "a scenario without a `then` checks nothing"]
    pub fn when<C>(self, command: C) -> Outcome<A, A::Error>
    where
        A: Decide<C>,
    {
        self.into_scenario().when(command)
    }

    /// Returns the scenario after the command, at this time: `.at(time).when(command)`.
    ///
    /// # Panics
    /// If a rejection was not asserted before.
    #[track_caller]
    #[must_use]
    pub fn at(self, now: Timestamp) -> Scenario<A> {
        self.into_scenario().at(now)
    }

    /// Returns the scenario after the command, this much later: `.later(month).when(command)`.
    ///
    /// # Panics
    /// If a rejection was not asserted before.
    #[track_caller]
    #[must_use]
    pub fn later(self, by: Duration) -> Scenario<A> {
        self.into_scenario().later(by)
    }

    /// Returns the scenario after the command, to continue with more events or other metadata.
    ///
    /// # Panics
    /// If a rejection was not asserted before.
    #[track_caller]
    #[must_use]
    pub fn into_scenario(mut self) -> Scenario<A> {
        self.unnoticed.check();
        self.scenario
    }

    fn events_before(&self) -> usize {
        self.scenario.history.len() - self.result.as_ref().map_or(0, Vec::len)
    }
    /// Returns the version of the command's first event.
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
