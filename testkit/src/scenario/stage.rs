//! One handler on a [`Feed`]: what the scenarios of projectors and of listeners share.
use super::{
    diff,
    failure::with_history,
    feed::{Feed, failed},
};
use bytes::Bytes;
use foldstream::{
    DomainEvent, chain,
    runner::{ErrorClass, ProcessorPolicy, ProcessorReport, RunnerBuilder, RunnerError},
};
use futures::{FutureExt, future::LocalBoxFuture};
use std::{
    fmt::{Debug, Display},
    sync::Arc,
};

/// Reads what a handler has done; an async closure without its type.
pub(super) trait Read<H, R> {
    fn read<'a>(&'a self, handler: &'a H) -> LocalBoxFuture<'a, R>;
}
impl<H, R, F: AsyncFn(&H) -> R> Read<H, R> for F {
    fn read<'a>(&'a self, handler: &'a H) -> LocalBoxFuture<'a, R> {
        async move { self(handler).await }.boxed_local()
    }
}

/// Registers the handler with a runner.
type Add = Box<dyn Fn(RunnerBuilder, ProcessorPolicy) -> RunnerBuilder>;

/// A handler, what it has done, and what the last step came to.
pub(super) struct Stage<H, R> {
    pub(super) feed: Feed,
    pub(super) handler: Arc<H>,
    pub(super) policy: ProcessorPolicy,
    words: Words,
    add: Add,
    read: Box<dyn Read<H, R>>,
    /// What it had done before the last step.
    before: Option<R>,
    report: Option<ProcessorReport>,
    /// What is given has yet to be taken in.
    is_pending: bool,
    /// Whether the test has looked at the failure of the last step.
    is_failure_seen: bool,
}

/// How failures call the handler and what it does.
pub(super) struct Words {
    pub(super) handler: &'static str,
    pub(super) results: &'static str,
}

impl<H, R: Debug + PartialEq> Stage<H, R> {
    #[track_caller]
    pub(super) fn new(
        handler: Arc<H>,
        words: Words,
        policy: ProcessorPolicy,
        add: Add,
        read: Box<dyn Read<H, R>>,
    ) -> Self {
        Self {
            feed: Feed::new(),
            handler,
            policy,
            words,
            add,
            read,
            before: None,
            report: None,
            is_pending: true,
            is_failure_seen: false,
        }
    }

    /// The first word of a scenario: what it changes must not have been used yet.
    #[track_caller]
    pub(super) fn check_is_new(&self, what: &str) {
        assert!(
            self.feed.is_empty() && self.report.is_none(),
            "{what} comes before the first event"
        );
    }

    #[track_caller]
    pub(super) fn given<E: DomainEvent>(
        &mut self,
        id: &impl Display,
        events: impl IntoIterator<Item = E>,
    ) {
        self.check_failure_seen();
        let commit = self.feed.write("given", id, events);
        self.feed.publish(commit.recorded());
        self.is_pending = true;
    }

    #[track_caller]
    pub(super) fn given_stored(&mut self, stream: &str, name: String, schema: u16, payload: Bytes) {
        self.check_failure_seen();
        let commit = self
            .feed
            .write_stored("given", stream, name, schema, payload);
        self.feed.publish(commit.recorded());
        self.is_pending = true;
    }

    #[track_caller]
    pub(super) fn given_undelivered<E: DomainEvent>(
        &mut self,
        id: &impl Display,
        events: impl IntoIterator<Item = E>,
    ) {
        self.check_failure_seen();
        self.feed.write("undelivered", id, events);
    }

    #[track_caller]
    pub(super) fn when<E: DomainEvent>(
        &mut self,
        id: &impl Display,
        events: impl IntoIterator<Item = E>,
    ) {
        self.begin_step();
        let commit = self.feed.write("when", id, events);
        self.feed.publish(commit.recorded());
        self.run();
    }

    #[track_caller]
    pub(super) fn when_stored(&mut self, stream: &str, name: String, schema: u16, payload: Bytes) {
        self.begin_step();
        let commit = self
            .feed
            .write_stored("when", stream, name, schema, payload);
        self.feed.publish(commit.recorded());
        self.run();
    }

    #[track_caller]
    pub(super) fn when_delivered(&mut self, stream: &str, version: u64) {
        self.begin_step();
        let event = self.feed.event(stream, version);
        let header = &event.header;
        let text = format!("{} {version}  {}", header.stream, header.name);
        self.feed.note("when delivered", text);
        self.feed.publish([event]);
        self.run();
    }

    #[track_caller]
    pub(super) fn when_restarted(&mut self) {
        // The failure that the restart is to meet has been looked at.
        self.begin_step();
        self.feed.note("when restarted", String::new());
        self.run();
    }

    /// Takes in what is given, and remembers what the handler has done until now.
    #[track_caller]
    pub(super) fn begin_step(&mut self) {
        self.check_failure_seen();
        self.settle();
        self.before = Some(self.results());
    }

    /// Takes in what is given.
    #[track_caller]
    fn settle(&mut self) {
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
    pub(super) fn run(&mut self) {
        // One at a time: what a test sees does not depend on how handlers share the thread.
        let policy = self.policy.clone().with_concurrency(1);
        let is_first = self.report.is_none() && self.feed.is_empty();
        let report = self.feed.run(|builder| (self.add)(builder, policy));
        if !is_first {
            self.feed.note_report(&report);
        }
        self.report = Some(report);
        self.is_failure_seen = false;
    }

    /// The processor's name. It has run.
    pub(super) fn name(&self) -> Arc<str> {
        let report = self.report.as_ref();
        report.map_or_else(|| "".into(), |report| report.name.clone())
    }

    fn failure(&self) -> Option<&RunnerError> {
        self.report.as_ref()?.error.as_ref()
    }

    fn results(&self) -> R {
        self.feed.block_on(self.read.read(&self.handler))
    }

    #[track_caller]
    fn check_failure_seen(&self) {
        if let Some(error) = self.failure()
            && !self.is_failure_seen
        {
            panic!(
                "the {} {}\n{}",
                self.words.handler,
                failed(error),
                self.feed.history()
            );
        }
    }

    #[track_caller]
    pub(super) fn then(&mut self, expected: &R) {
        self.settle();
        self.check_failure_seen();
        let actual = self.results();
        assert!(
            actual == *expected,
            "the {} are others\n{}{}",
            self.words.results,
            self.feed.history(),
            diff::of_values(expected, &actual)
        );
    }

    #[track_caller]
    pub(super) fn then_with(&mut self, check: impl FnOnce(&R)) {
        self.settle();
        self.check_failure_seen();
        let actual = self.results();
        with_history(
            || check(&actual),
            || {
                format!(
                    "{}{} are {actual:#?}\n",
                    self.feed.history(),
                    self.words.results
                )
            },
        );
    }

    #[track_caller]
    pub(super) fn then_unchanged(&mut self) {
        let Some(before) = self.before.take() else {
            panic!("`then_unchanged` compares with what was before a `when`, and there was none");
        };
        self.check_failure_seen();
        let actual = self.results();
        assert!(
            actual == before,
            "the {} have changed\n{}{}",
            self.words.results,
            self.feed.history(),
            diff::of_values(&before, &actual)
        );
        self.before = Some(before);
    }

    #[track_caller]
    pub(super) fn then_failed(&mut self, expected: ErrorClass) {
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
    }

    #[track_caller]
    pub(super) fn then_failed_with(&mut self, check: impl FnOnce(&RunnerError)) {
        let error = self.failure_expected();
        with_history(|| check(error), || self.feed.history());
        self.is_failure_seen = true;
    }

    #[track_caller]
    fn failure_expected(&self) -> &RunnerError {
        match self.failure() {
            Some(error) => error,
            None => panic!(
                "the {} did not fail\n{}",
                self.words.handler,
                self.feed.history()
            ),
        }
    }

    #[track_caller]
    pub(super) fn then_report(&mut self, check: impl FnOnce(&ProcessorReport)) {
        self.settle();
        if let Some(report) = &self.report {
            with_history(|| check(report), || self.feed.history());
        }
    }
}
