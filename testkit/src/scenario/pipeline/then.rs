//! What is looked at when everything has run, and what a failure shows of the pipeline.
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
    /// Events that a failure shows.
    const SHOWN: usize = 100;

    /// Asserts on what this closure reads: `async || rows.lock().unwrap().clone()`.
    ///
    /// # Panics
    /// If it is something else, or if a processor has halted unnoticed.
    #[track_caller]
    pub fn then<R: Debug + PartialEq>(
        self,
        read: impl AsyncFnOnce() -> R,
        expected: impl Into<R>,
    ) -> Self {
        self.check_halts_seen();
        let (actual, expected) = (block_on(&self.runtime, read()), expected.into());
        assert!(
            actual == expected,
            "what was read is something else\n{}{}{}",
            self.history(),
            diff::of_values(&expected, &actual),
            if self.has_news {
                "(what was executed or given since the last `run` is not published yet)\n"
            } else {
                ""
            }
        );
        self
    }

    /// The stream of this id holds exactly these events: also those that listeners have caused.
    ///
    /// # Panics
    /// If it holds others, or if a processor has halted unnoticed.
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

    /// The closure asserts on the state of an aggregate.
    ///
    /// # Panics
    /// If the closure does, with its message and what happened; or if a processor has halted unnoticed.
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

    /// The processor of this name has halted in the last run, by a failure of this class. Of several that have halted,
    /// each must be named before anything else is looked at.
    ///
    /// # Panics
    /// If it has not, or by another; if there is no such processor.
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

    /// The processor of this name has halted in the last run; the closure asserts on the error.
    ///
    /// # Panics
    /// If it has not, or if the closure does; if there is no such processor.
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

    /// The closure asserts on what the processor of this name has done in the last run: handled, dropped, filled in,
    /// retried.
    ///
    /// # Panics
    /// If the closure does; if there is no such processor, or no run yet; or if a processor has halted unnoticed.
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

    /// All that is stored, in the order in which it was, and what each processor has made of it.
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

/// An event a line, by its stored name and payload.
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
