//! The laws that need no store: a sequence of commands on the aggregate alone.
use super::{
    command::{AnyCommand, ShownId, Step, Told, stream_of},
    drawn::Case,
    ids::SCENARIO,
    stored::{self, SnapshotKit},
    story::{Broken, Ending, Line, Story, short_name, shown},
};
use crate::ManualClock;
use foldstream::{Aggregate, Context, Timestamp, Upcasters, Version};
use std::{
    any::Any,
    cell::Cell,
    fmt::{self, Debug},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

type Named<F> = (String, Box<F>);
type Holds<A> = dyn Fn(&A) -> bool;
type IsSo<E> = dyn Fn(&[E]) -> bool;
/// Checks one decision by a rule. `None` if the command is not of the rule's type.
type OfDecision<A> = dyn Fn(&A, &dyn AnyCommand<A>, &Context) -> Option<bool>;
type Eventually<A, E> = (String, Vec<Arc<dyn AnyCommand<A>>>, Box<IsSo<E>>);

/// A rule about the commands of one type.
pub(super) struct DecisionRule<A> {
    pub(super) name: String,
    pub(super) command: String,
    pub(super) holds: Box<OfDecision<A>>,
    /// Set after a command of its type was decided.
    pub(super) is_asked: Cell<bool>,
}

/// The rules that hold in addition to the laws that are always checked.
pub(super) struct Rules<A: Aggregate> {
    pub(super) invariants: Vec<Named<Holds<A>>>,
    pub(super) never: Vec<Named<IsSo<A::Event>>>,
    pub(super) eventually: Vec<Eventually<A, A::Event>>,
    pub(super) decisions: Vec<DecisionRule<A>>,
    pub(super) snapshots: Option<SnapshotKit<A>>,
    pub(super) duplicates: bool,
    pub(super) upcasters: Upcasters,
}

impl<A: Aggregate> Default for Rules<A> {
    fn default() -> Self {
        Self {
            invariants: Vec::new(),
            never: Vec::new(),
            eventually: Vec::new(),
            decisions: Vec::new(),
            snapshots: None,
            duplicates: false,
            upcasters: Upcasters::new(),
        }
    }
}

impl<A: Aggregate> Debug for Rules<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.invariants.iter().map(|(name, _)| name);
        let names = names.chain(self.never.iter().map(|(name, _)| name));
        let names = names.chain(self.eventually.iter().map(|(name, ..)| name));
        let names = names.chain(self.decisions.iter().map(|rule| &rule.name));
        f.debug_list().entries(names).finish()
    }
}

/// The state of a walk through a sequence. Clones continue in several directions.
pub(super) struct Walk<A: Aggregate> {
    pub(super) state: A,
    pub(super) history: Vec<A::Event>,
    pub(super) story: Story<A::Event>,
    pub(super) steps: Vec<Step<A>>,
    now: Timestamp,
}

impl<A: Aggregate> Clone for Walk<A> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            history: self.history.clone(),
            story: self.story.clone(),
            steps: self.steps.clone(),
            now: self.now,
        }
    }
}

impl<A: Aggregate + PartialEq + Debug> Walk<A> {
    pub(super) fn start(id: &ShownId<A>) -> Self {
        let id = id.0.to_string();
        Self {
            state: A::default(),
            history: Vec::new(),
            story: Story {
                // Every scenario has this id unless it is given another one.
                id: (id != SCENARIO).then_some(id),
                lines: Vec::new(),
            },
            steps: Vec::new(),
            now: ManualClock::START,
        }
    }

    pub(super) fn id(&self) -> &str {
        self.story.id.as_deref().unwrap_or(SCENARIO)
    }

    pub(super) fn broken(&self, law: &str, found: Vec<String>, ending: &Ending) -> Broken {
        Broken::new::<A>(law, found, &self.story, ending)
    }

    /// Takes one more step, and checks everything that must hold of it.
    pub(super) fn step(&mut self, step: &Step<A>, rules: &Rules<A>) -> Result<(), Broken> {
        self.now = self.now.plus(step.after);
        let stream = stream_of::<A>(self.id())
            .map_err(|e| self.broken("an id names a stream", vec![e], &Ending::AsTold))?;
        let version = Version::new(self.history.len() as u64);
        let ctx = Context::new(stream, version, self.now);
        let before = self.state.clone();
        let decision = self.decide(step, &ctx)?;
        self.steps.push(step.clone());
        self.story.lines.push(Line {
            command: format!("{step:?}"),
            at: self.now,
            decision: decision.clone(),
        });
        for rule in &rules.decisions {
            let Some(holds) = (rule.holds)(&before, &*step.command, &ctx) else {
                continue;
            };
            rule.is_asked.set(true);
            if !holds {
                let found = vec![format!("the state before: {before:?}")];
                return Err(self.broken(&rule.name, found, &Ending::AsTold));
            }
        }
        for event in decision.into_iter().flatten() {
            self.evolve(event, rules)?;
        }
        Ok(())
    }

    /// Decides twice, and checks that the outcomes are equal and that nothing else changes.
    fn decide(&self, step: &Step<A>, ctx: &Context) -> Result<Told<A::Event>, Broken> {
        let decide = || {
            caught(|| step.command.decide(&self.state, ctx)).map_err(|panicked| {
                let told = self.told_of(step, Err(panicked.clone()));
                let found = vec![format!("deciding panicked: {panicked}")];
                told.broken("nothing panics", found, &Ending::AsTold)
            })
        };
        let before = format!("{:?}", self.state);
        let first = decide()?;
        // Clones of the state may share their content, so the state is compared with its earlier
        // `Debug` output.
        let after = format!("{:?}", self.state);
        if before != after {
            let law = match &first {
                Err(_) => "a rejected command changes nothing",
                Ok(_) => "deciding changes nothing, only events do",
            };
            let found = vec![
                format!("the state before: {before}"),
                format!("the state after:  {after}"),
            ];
            let told = self.told_of(step, first);
            return Err(told.broken(law, found, &Ending::State(before)));
        }
        let second = decide()?;
        if first != second {
            let found = vec![format!("decided again: {}", shown(&second))];
            let told = self.told_of(step, first);
            return Err(told.broken("deciding is deterministic", found, &Ending::AsTold));
        }
        Ok(first)
    }

    /// Returns the walk with a line whose events are not folded.
    fn told_of(&self, step: &Step<A>, decision: Told<A::Event>) -> Self {
        let mut told = self.clone();
        told.story.lines.push(Line {
            command: format!("{step:?}"),
            at: self.now,
            decision,
        });
        told
    }

    fn evolve(&mut self, event: A::Event, rules: &Rules<A>) -> Result<(), Broken> {
        if let Err(panicked) = caught(|| self.state.evolve(&event)) {
            let found = vec![format!("{event:?} made the fold panic: {panicked}")];
            return Err(self.broken("nothing panics", found, &Ending::AsTold));
        }
        self.history.push(event);
        self.check_rules(rules)
    }

    /// Checks the rules that must hold after every event.
    pub(super) fn check_rules(&self, rules: &Rules<A>) -> Result<(), Broken> {
        for (name, holds) in &rules.invariants {
            if !holds(&self.state) {
                let found = vec![
                    format!("version {}", self.history.len()),
                    format!("the state: {:?}", self.state),
                ];
                return Err(self.broken(name, found, &Ending::Rule(name.clone())));
            }
        }
        for (name, is_so) in &rules.never {
            if is_so(&self.history) {
                let found = vec![format!("the history: {:?}", self.history)];
                let law = format!("never: {name}");
                return Err(self.broken(&law, found, &Ending::Rule(law.clone())));
            }
        }
        Ok(())
    }

    /// Checks the rules that must hold at the end of a sequence, without a store.
    fn check_end(&self, rules: &Rules<A>) -> Result<(), Broken> {
        let mut replayed = A::default();
        for event in &self.history {
            if let Err(panicked) = caught(|| replayed.evolve(event)) {
                let found = vec![format!("the replay panicked: {panicked}")];
                return Err(self.broken("nothing panics", found, &Ending::AsTold));
            }
        }
        if replayed != self.state {
            return Err(self.other_state(REPLAY, &replayed));
        }
        for (name, closing, is_so) in &rules.eventually {
            let mut closed = self.clone();
            for command in closing {
                let step = Step {
                    command: command.clone(),
                    after: std::time::Duration::ZERO,
                };
                closed.step(&step, rules)?;
            }
            if !is_so(&closed.history) {
                let found = vec![
                    format!("the commands that must lead to it: {closing:?}"),
                    format!("the history: {:?}", closed.history),
                ];
                let law = format!("eventually: {name}");
                return Err(closed.broken(&law, found, &Ending::Rule(law.clone())));
            }
        }
        Ok(())
    }

    /// Returns the failure of two ways that lead to different states.
    pub(super) fn other_state(&self, law: &str, other: &A) -> Broken {
        let found = vec![
            format!("the state: {:?}", self.state),
            format!("but found: {other:?}"),
        ];
        self.broken(law, found, &Ending::State(format!("{:?}", self.state)))
    }
}

pub(super) const REPLAY: &str = "the replay of the stored events is the state";

fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a message".into())
}

impl<A: Aggregate + PartialEq + Debug> Rules<A> {
    /// Checks every law on one sequence.
    pub(super) fn hold(&self, case: &Case<A>) -> Result<Story<A::Event>, Broken> {
        check_id(case)?;
        let mut walk = Walk::start(&case.id);
        walk.check_rules(self)?;
        for step in &case.steps {
            walk.step(step, self)?;
        }
        self.hold_at_end(&walk, &case.id.0)?;
        Ok(walk.story)
    }

    /// Checks the laws that hold at the end of a sequence, including those that need a store.
    pub(super) fn hold_at_end(&self, walk: &Walk<A>, id: &A::Id) -> Result<(), Broken> {
        walk.check_end(self)?;
        stored::check(self, walk, id.clone())
    }
}

/// Checks that an id's text names this id and no other.
fn check_id<A: Aggregate>(case: &Case<A>) -> Result<(), Broken> {
    let own = std::iter::once((case.id.0.to_string(), false));
    let from_outside = case.id_text.clone().map(|text| (text, true));
    for (text, is_from_outside) in own.chain(from_outside) {
        let found = match text.parse::<A::Id>() {
            Ok(id) if id.to_string() == text => continue,
            Ok(id) => format!(
                "{text:?} is read as an id that shows itself as {:?}",
                id.to_string()
            ),
            // A text from outside may be refused.
            Err(_) if is_from_outside => continue,
            Err(error) => format!(
                "{text:?}, the text of an id, cannot be read: {}",
                error.into()
            ),
        };
        return Err(Broken {
            law: "an id is what its text says".into(),
            found: vec![found],
            test: vec![
                format!(
                    "let id: {} = {text:?}.parse().unwrap();",
                    short_name::<A::Id>()
                ),
                format!("assert_eq!(id.to_string(), {text:?});"),
            ],
            is_of_all: false,
        });
    }
    Ok(())
}
