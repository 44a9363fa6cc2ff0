//! The assertions of a pipeline, and the history that a failure shows.
use super::{PipelineScenario, stream_text};
use crate::{
    InMemoryEventStore,
    scenario::{
        diff::{self, short},
        failure::with_history,
        feed::{block_on, failed, summary},
        names::typed_id,
    },
};
use foldstream::{
    Aggregate, chain,
    ports::{Commit, EventStore, EventStoreError, ScanItems, ScanScope, Segment},
    runner::{ErrorClass, ProcessorReport, RunnerError},
};
use futures::TryStreamExt;
use std::{
    fmt::{Debug, Display, Write as _},
    num::NonZeroU32,
};

impl PipelineScenario {
    /// The number of events that a failure shows.
    const SHOWN: usize = 100;

    /// Asserts that the closure reads this value: `async || rows.lock().unwrap().clone()`.
    ///
    /// # Panics
    /// - If the value differs.
    /// - If there are processors, and events that no [`run`](Self::run) has brought to them yet.
    /// - If a processor has halted and the test has not asserted it.
    #[track_caller]
    pub fn then<R: Debug + PartialEq>(
        self,
        read: impl AsyncFnOnce() -> R,
        expected: impl Into<R>,
    ) -> Self {
        self.check_halts_seen();
        self.check_has_run();
        let (actual, expected) = (block_on(&self.runtime, read()), expected.into());
        assert!(
            actual == expected,
            "what was read is something else\n{}{}",
            self.history(),
            diff::of_values(&expected, &actual)
        );
        self
    }

    /// Panics if processors have not been given all events: rows that are right before the events
    /// prove nothing about them.
    #[track_caller]
    fn check_has_run(&self) {
        assert!(
            self.processors.is_empty() || !self.has_news || self.is_all_published(),
            "what was executed or given since the last `run` is not published yet: say `.run()` before `.then(..)`\n{}",
            self.history()
        );
    }

    /// Asserts that the stream of this id contains exactly these events, including those that
    /// listeners have caused.
    ///
    /// # Panics
    /// If the stream contains other events, or if a processor has halted and the test has not
    /// asserted it.
    #[track_caller]
    pub fn then_events<A: Aggregate>(
        self,
        id: impl Display,
        expected: impl IntoIterator<Item = A::Event>,
    ) -> Self {
        self.check_halts_seen();
        let id = &typed_id::<A>(id);
        let repository = self.ports.repository::<A>();
        let read = repository.history(id).map_ok(|recorded| recorded.event);
        let actual: Vec<_> = match block_on(&self.runtime, read.try_collect()) {
            Ok(events) => events,
            Err(error) => panic!("{} cannot be read: {}", stream_text::<A>(id), chain(&error)),
        };
        let expected: Vec<_> = expected.into_iter().collect();
        assert!(
            actual == expected,
            "{} holds other events\n{}{}",
            stream_text::<A>(id),
            self.history(),
            diff::of_events(&expected, &actual, 1)
        );
        self
    }

    /// Passes the state of an aggregate to the closure for assertions.
    ///
    /// # Panics
    /// If the closure panics, with its message and what happened, or if a processor has halted and
    /// the test has not asserted it.
    #[track_caller]
    pub fn then_state<A: Aggregate>(self, id: impl Display, check: impl FnOnce(&A)) -> Self {
        self.check_halts_seen();
        let id = &typed_id::<A>(id);
        match block_on(&self.runtime, self.ports.repository::<A>().load(id)) {
            Ok(loaded) => with_history(|| check(loaded.state()), || self.history()),
            Err(error) => panic!(
                "{} cannot be loaded: {}",
                stream_text::<A>(id),
                chain(&error)
            ),
        }
        self
    }

    /// Asserts that the processor of this name halted in the last run with a failure of this class.
    ///
    /// If several processors have halted, each of them must be asserted before any other call.
    ///
    /// # Panics
    /// If the processor has not halted, if it halted with a failure of another class, or if there
    /// is no such processor.
    #[track_caller]
    pub fn then_halted(self, name: &str, class: ErrorClass) -> Self {
        self.then_halted_with(name, |error| {
            let found = match error {
                RunnerError::Halted { class, .. } | RunnerError::Flush { class, .. } => *class,
                other => panic!("{name} did not fail at an event, it {}", failed(other)),
            };
            assert!(
                found == class,
                "{name} failed with another class: expected {class:?}, it {}",
                failed(error)
            );
        })
    }

    /// Asserts that the processor of this name halted in the last run, and passes the error to the
    /// closure for assertions.
    ///
    /// # Panics
    /// If the processor has not halted, if the closure panics, or if there is no such processor.
    #[track_caller]
    pub fn then_halted_with(mut self, name: &str, check: impl FnOnce(&RunnerError)) -> Self {
        let at = self.position_of(name);
        match self.processors[at].error() {
            Some(error) => with_history(|| check(error), || self.history()),
            None => panic!("{name} has not halted\n{}", self.history()),
        }
        self.processors[at].is_halt_seen = true;
        self
    }

    /// Passes the counts of a processor in the last run to the closure: handled, dropped, filled
    /// in, retried.
    ///
    /// # Panics
    /// If the closure panics, if there is no such processor or no run yet, or if a processor has
    /// halted and the test has not asserted it.
    #[track_caller]
    pub fn then_report(self, name: &str, check: impl FnOnce(&ProcessorReport)) -> Self {
        self.check_halts_seen();
        if let Some(report) = &self.processors[self.position_of(name)].report {
            with_history(|| check(report), || self.history());
        }
        self
    }

    #[track_caller]
    fn position_of(&self, name: &str) -> usize {
        let names = self.processors.iter();
        let names: Vec<_> = names
            .map(|entry| entry.report.as_ref().map_or("", |report| &*report.name))
            .collect();
        match names.iter().position(|found| *found == name) {
            Some(at) => at,
            None => panic!("no processor {name:?} has run, only {names:?}"),
        }
    }

    /// Returns everything that is stored, in the order in which it was stored, and the result of
    /// each processor.
    pub(super) fn history(&self) -> String {
        let mut text = String::from("history:");
        match block_on(&self.runtime, commits(&self.ports.event_store)) {
            Ok(mut commits) => {
                commits.sort_by_key(|commit| (commit.recorded_at, commit.id));
                let lines: Vec<_> = commits.iter().flat_map(event_lines).collect();
                let hidden = lines.len().saturating_sub(Self::SHOWN);
                if hidden > 0 {
                    // Writing to a String cannot fail, here and below.
                    let _ = write!(text, "\n  ... {hidden} events before");
                }
                if lines.is_empty() {
                    text.push_str(" none");
                }
                for line in &lines[hidden..] {
                    let _ = write!(text, "\n  {line}");
                }
            }
            Err(error) => {
                let _ = write!(text, " it cannot be read: {}", chain(&error));
            }
        }
        text.push('\n');
        for report in self
            .processors
            .iter()
            .filter_map(|entry| entry.report.as_ref())
        {
            let _ = write!(text, "{}: {}", report.name, summary(report));
            if let Some(error) = &report.error {
                let _ = write!(text, "; {}", failed(error));
            }
            text.push('\n');
        }
        text
    }
}

async fn commits(store: &InMemoryEventStore) -> Result<Vec<Commit>, EventStoreError> {
    const PAGE: NonZeroU32 = NonZeroU32::MAX;
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store
            .scan(Segment::ALL, after, ScanScope::Commits, PAGE)
            .await?;
        if let ScanItems::Commits(commits) = page.items {
            all.extend(commits);
        }
        after = page.next;
        if after.is_none() {
            return Ok(all);
        }
    }
}

/// Returns one line per event, with its stored name and payload.
fn event_lines(commit: &Commit) -> Vec<String> {
    let stream = &commit.stream;
    let events = commit.recorded().map(|event| {
        let version = event.header.version;
        let payload = String::from_utf8_lossy(&event.payload);
        let payload = short(&format_args!("{payload}"));
        format!("{stream} {version}  {} {payload}", event.header.name)
    });
    events.collect()
}
