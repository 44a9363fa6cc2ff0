//! The events that led to a broken law, told as a test.
use super::{command::Told, seed, written::expression};
use crate::ManualClock;
pub(super) use crate::scenario::short_type_name as short_name;
use foldstream::{Aggregate, DomainEvent, Timestamp};
use proptest::test_runner::{TestCaseError, TestCaseResult};
use std::{
    cell::RefCell,
    fmt::{self, Debug, Write as _},
};

/// One command and its outcome.
#[derive(Clone)]
pub(super) struct Line<E> {
    pub(super) command: String,
    pub(super) at: Timestamp,
    pub(super) decision: Told<E>,
}

/// The commands so far and their outcomes.
#[derive(Clone)]
pub(super) struct Story<E> {
    /// The id of the aggregate, unless it is the scenario's own.
    pub(super) id: Option<String>,
    pub(super) lines: Vec<Line<E>>,
}

/// The assertion at the end of a test that tells the story.
pub(super) enum Ending {
    /// The last line already asserts everything.
    AsTold,
    /// A rule of the user's, which only the user can write down.
    Rule(String),
    /// The state, as its `Debug` output.
    State(String),
    /// The state, encoded and decoded as in a snapshot.
    RoundTrip,
    /// The last command again, which must lead to no event.
    Again { command: String, at: Timestamp },
}

/// A law that does not hold, ready to be printed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Broken {
    pub(super) law: String,
    /// The lines that say what was found.
    pub(super) found: Vec<String>,
    /// The lines of a test that shows the failure.
    pub(super) test: Vec<String>,
    /// Set if only all laws together are broken. A failure of a single law says more.
    pub(super) is_of_all: bool,
}

/// The failure that was found so far.
///
/// While a failure shrinks, only failures of the same law count, or of one that says more. A
/// smaller case of another law would tell a different story.
#[derive(Default)]
pub(super) struct Found(RefCell<Option<Broken>>);

impl Found {
    /// Takes a failure, and tells the runner whether to shrink further.
    pub(super) fn take(&self, broken: Broken) -> TestCaseResult {
        let mut known = self.0.borrow_mut();
        let is_other = |known: &Broken| known.law != broken.law && !known.is_of_all;
        if known.as_ref().is_some_and(is_other) {
            return Ok(());
        }
        let law = broken.law.clone();
        *known = Some(broken);
        Err(TestCaseError::fail(law))
    }

    /// Returns the last failure, which is the smallest when shrinking ends.
    pub(super) fn into_smallest(self) -> Option<Broken> {
        self.0.into_inner()
    }
}

impl Broken {
    pub(super) fn new<A: Aggregate>(
        law: impl Into<String>,
        found: Vec<String>,
        story: &Story<A::Event>,
        ending: &Ending,
    ) -> Self {
        let mut all = vec!["commands:".to_owned()];
        all.extend(story.told());
        all.extend(found);
        Self {
            law: law.into(),
            found: all,
            test: story.scenario::<A>(ending),
            is_of_all: false,
        }
    }

    /// Returns the whole message of a failure.
    pub(super) fn shown(&self, of: &str, seed: Option<u64>) -> String {
        let mut text = format!("a law of {of} is broken: {}\n", self.law);
        for line in &self.found {
            let _ = writeln!(text, "  {}", line.replace('\n', "\n  "));
        }
        if !self.test.is_empty() {
            text.push_str("as a test:\n");
        }
        for line in &self.test {
            let _ = writeln!(text, "    {line}");
        }
        if let Some(seed) = seed {
            let _ = writeln!(text, "the same cases again: {}={seed}", seed::SEED);
        }
        text
    }
}

impl<E: Debug> Story<E> {
    pub(super) fn last(&self) -> Option<&Line<E>> {
        self.lines.last()
    }

    fn told(&self) -> impl Iterator<Item = String> {
        let lines = self.lines.iter().enumerate();
        lines.map(|(index, line)| {
            let led_to = shown(&line.decision);
            let (number, command) = (index + 1, &line.command);
            format!("{number:>3}  {command} -> {led_to}")
        })
    }

    /// Returns the story as a `Scenario`: everything before the last command is given, and the last
    /// command is decided.
    fn scenario<A: Aggregate<Event = E>>(&self, ending: &Ending) -> Vec<String> {
        // A command that is decided again is preceded by all commands.
        let before = match ending {
            Ending::Again { .. } => self.lines.len(),
            _ => self.lines.len().saturating_sub(1),
        };
        let (given, last) = self.lines.split_at(before);
        let given = given.iter().flat_map(|l| l.decision.iter().flatten());
        let given: Vec<_> = given.map(|e| expression(&format!("{e:?}"))).collect();
        let name = short_name::<A>();
        let mut test = if given.is_empty() {
            vec![format!("Scenario::<{name}>::given_nothing()")]
        } else {
            listed(&format!("Scenario::<{name}>::given("), &given, ")")
        };
        if let Some(id) = &self.id {
            test.push(format!("    .of(&{id:?}.parse().unwrap())"));
        }
        for line in last {
            let command = expression(&line.command);
            test.extend(at(line.at));
            test.push(format!("    .when({command})"));
            test.extend(match &line.decision {
                Err(reason) => vec![format!("    .then_rejected({})", expression(reason))],
                Ok(events) if events.is_empty() => vec!["    .then_nothing()".into()],
                Ok(events) => {
                    let events: Vec<_> = events
                        .iter()
                        .map(|e| expression(&format!("{e:?}")))
                        .collect();
                    listed("    .then(", &events, ")")
                }
            });
        }
        match ending {
            Ending::AsTold => {}
            Ending::Rule(rule) => test.push(format!("    .then_state(|_| todo!({rule:?}))")),
            Ending::State(state) => test.push(format!(
                "    .then_state(|state| assert_eq!(format!(\"{{state:?}}\"), {state:?}))"
            )),
            Ending::RoundTrip => test.extend([
                "    .then_state(|state| {".into(),
                "        let stored = serde_json::to_vec(state).unwrap();".into(),
                format!("        let read: {name} = serde_json::from_slice(&stored).unwrap();"),
                "        assert_eq!(read, *state);".into(),
                "    })".into(),
            ]),
            Ending::Again { command, at: time } => {
                test.extend(at(*time));
                test.push(format!("    .when({})", expression(command)));
                test.push("    .then_nothing()".into());
            }
        }
        if let Some(line) = test.last_mut() {
            line.push(';');
        }
        test
    }
}

/// Returns the lines of a test that encodes and decodes one event, if the event is lost there.
pub(super) fn event_round_trip<E: DomainEvent>(event: &E) -> Vec<String> {
    let mut stored = Vec::new();
    let read = event
        .encode(&mut stored)
        .and_then(|()| E::decode(event.type_index(), &stored));
    if read.is_ok_and(|read| read == *event) {
        return Vec::new();
    }
    let name = short_name::<E>();
    vec![
        format!("let event = {};", expression(&format!("{event:?}"))),
        "let mut stored = Vec::new();".into(),
        "event.encode(&mut stored).unwrap();".into(),
        format!("assert_eq!({name}::decode(event.type_index(), &stored).unwrap(), event);"),
    ]
}

/// Returns the text of a decision.
pub(super) fn shown<E: Debug>(decision: &Told<E>) -> String {
    match decision {
        Ok(events) => format!("{events:?}"),
        Err(reason) => format!("rejected: {reason}"),
    }
}

fn at(time: Timestamp) -> Option<String> {
    let micros = time.as_micros();
    (time != ManualClock::START).then(|| format!("    .at(Timestamp::from_micros({micros}))"))
}

/// Returns a list between two texts, on one line if it fits.
fn listed(open: &str, items: &[String], close: &str) -> Vec<String> {
    let line = format!("{open}[{}]{close}", items.join(", "));
    if line.len() <= 96 {
        return vec![line];
    }
    let indent = " ".repeat(open.len() - open.trim_start().len());
    let mut lines = vec![format!("{open}[")];
    lines.extend(items.iter().map(|item| format!("{indent}    {item},")));
    lines.push(format!("{indent}]{close}"));
    lines
}

/// A story without lines.
impl<E> Default for Story<E> {
    fn default() -> Self {
        Self {
            id: None,
            lines: Vec::new(),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.law)
    }
}
