//! The assertions of a handler's scenario.
use super::HandlerScenario;
use crate::scenario::{diff, failure::with_history, feed::failed};
use foldstream::{
    chain,
    runner::{ErrorClass, ProcessorReport, RunnerError},
};
use std::fmt::Debug;

impl<H, R: Debug + PartialEq, Role> HandlerScenario<H, R, Role> {
    /// Asserts that the rows, or the side effects so far, are these, as the closure given to `new`
    /// reads them.
    ///
    /// # Panics
    /// If they differ, or if the handler has halted and the test has not asserted it.
    #[track_caller]
    pub fn then(mut self, expected: impl Into<R>) -> Self {
        let (actual, expected) = (self.results_now(), expected.into());
        assert!(
            actual == expected,
            "the {} are others\n{}{}",
            self.words.results,
            self.feed.history(),
            diff::of_values(&expected, &actual)
        );
        self
    }

    /// Passes the rows, or the side effects, to the closure for assertions.
    ///
    /// # Panics
    /// If the closure panics, with its message and what happened, or if the handler has halted and
    /// the test has not asserted it.
    #[track_caller]
    pub fn then_with(mut self, check: impl FnOnce(&R)) -> Self {
        let actual = self.results_now();
        let results = self.words.results;
        with_history(
            || check(&actual),
            || format!("{}{results} are {actual:#?}\n", self.feed.history()),
        );
        self
    }

    /// Asserts that the rows, or the side effects, are the same as before the last `when`.
    ///
    /// # Panics
    /// If they differ, if there was no `when`, or if the handler has halted and the test has not
    /// asserted it.
    #[track_caller]
    pub fn then_unchanged(mut self) -> Self {
        let Some(before) = self.before.take() else {
            panic!("`then_unchanged` compares with what was before a `when`, and there was none");
        };
        let actual = self.results_now();
        assert!(
            actual == before,
            "the {} have changed\n{}{}",
            self.words.results,
            self.feed.history(),
            diff::of_values(&before, &actual)
        );
        self.before = Some(before);
        self
    }
}

impl<H, R, Role> HandlerScenario<H, R, Role> {
    /// Asserts that the handler has halted, after its retries, with a failure of this class.
    ///
    /// The event is not committed and is delivered again in the next step.
    ///
    /// # Panics
    /// If the handler has not halted, or halted with a failure of another class.
    #[track_caller]
    pub fn then_failed(mut self, expected: ErrorClass) -> Self {
        let error = self.failure_expected();
        let class = match error {
            RunnerError::Halted { class, .. } | RunnerError::Flush { class, .. } => Some(*class),
            _ => None,
        };
        assert!(
            class == Some(expected),
            "the {} failed with another class\n{}expected: {expected:?}\nactual:   {}\n",
            self.words.handler,
            self.feed.history(),
            match class {
                Some(class) => format!("{class:?}"),
                None => chain(error),
            }
        );
        self.is_failure_seen = true;
        self
    }

    /// Asserts that the handler has halted, and passes the error to the closure for assertions.
    ///
    /// # Panics
    /// If the handler has not halted, or if the closure panics.
    #[track_caller]
    pub fn then_failed_with(mut self, check: impl FnOnce(&RunnerError)) -> Self {
        let error = self.failure_expected();
        with_history(|| check(error), || self.feed.history());
        self.is_failure_seen = true;
        self
    }

    /// Returns the failure that the test expects, whether or not the test has asserted it before.
    #[track_caller]
    fn failure_expected(&self) -> &RunnerError {
        match self.failure() {
            Some(error) if !self.is_pending => error,
            Some(error) => panic!(
                "the {} could not take in what is given: it {}\n{}",
                self.words.handler,
                failed(error),
                self.feed.history()
            ),
            None => panic!(
                "the {} did not fail\n{}",
                self.words.handler,
                self.feed.history()
            ),
        }
    }

    /// Passes the runner's counts of the last step to the closure: handled, skipped, dropped,
    /// filled in, retried.
    ///
    /// # Panics
    /// If the closure panics, or if the handler has halted and the test has not asserted it.
    #[track_caller]
    pub fn then_report(mut self, check: impl FnOnce(&ProcessorReport)) -> Self {
        self.settle();
        self.check_failure_seen();
        if let Some(report) = &self.report {
            with_history(|| check(report), || self.feed.history());
        }
        self
    }
}
