//! One step of a scenario: the processor runs, and its failure waits to be asserted.
use super::HandlerScenario;
use crate::scenario::feed::failed;
use foldstream::runner::{FailureAction, RunnerError};
use std::{sync::Arc, thread};

impl<H, R, Role> HandlerScenario<H, R, Role> {
    /// Delivers given events, and remembers the results up to now.
    #[track_caller]
    pub(in crate::scenario) fn begin_step(&mut self) {
        self.before = Some(self.results_now());
    }

    /// Delivers given events, and returns the handler's results.
    #[track_caller]
    pub(super) fn results_now(&mut self) -> R {
        self.check_failure_seen();
        self.settle();
        self.feed.block_on(self.read.read(&self.handler))
    }

    /// Delivers given events that are still pending.
    #[track_caller]
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.is_pending) {
            return;
        }
        self.run();
        if let Some(error) = self.failure() {
            panic!(
                "the {} could not take in what is given: {}\n{}",
                self.words.handler,
                failed(error),
                self.feed.history()
            );
        }
    }

    #[track_caller]
    pub(in crate::scenario) fn run(&mut self) {
        // With one event at a time, the result does not depend on how handlers share the thread.
        // A failed event must end the step, so that the test sees it. Under a circuit breaker it
        // would wait for its service.
        let policy = self.policy.clone().with_concurrency(1);
        let policy = policy
            .with_on_failure(|_| FailureAction::Halt)
            .without_breaker();
        if self.initial.is_none() {
            self.initial = Some(self.feed.block_on(self.read.read(&self.handler)));
        }
        let is_first = self.report.is_none() && self.feed.is_empty();
        let report = self.feed.run(|builder| (self.add)(builder, policy));
        if !is_first {
            self.feed.note_report(&report);
        }
        self.report = Some(report);
        self.is_failure_seen = false;
    }

    /// Returns the results if they are those before the step, although the events before it had
    /// changed them.
    pub(in crate::scenario) fn rows_left(&self) -> Option<R>
    where
        R: PartialEq,
    {
        let now = self.feed.block_on(self.read.read(&self.handler));
        let is_left = self.before.as_ref() == Some(&now) && self.initial.as_ref() != Some(&now);
        is_left.then_some(now)
    }

    /// Returns the name of the processor, which has run before.
    pub(in crate::scenario) fn name(&self) -> Arc<str> {
        let report = self.report.as_ref();
        report.map_or_else(|| "".into(), |report| report.name.clone())
    }

    pub(super) fn failure(&self) -> Option<&RunnerError> {
        self.report.as_ref()?.error.as_deref()
    }

    #[track_caller]
    pub(super) fn check_failure_seen(&self) {
        if let Some(error) = self.failure()
            && !self.is_failure_seen
        {
            panic!(
                "the {} {}\n{}if that is expected, call `then_failed` or `then_failed_with` right after the step\n",
                self.words.handler,
                failed(error),
                self.feed.history()
            );
        }
    }
}

impl<H, R, Role> Drop for HandlerScenario<H, R, Role> {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.check_failure_seen();
        }
    }
}
