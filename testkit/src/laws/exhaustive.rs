//! Every history that a set of commands can lead to, shortest first.
use super::{
    checked::Checked,
    command::{AnyCommand, ShownId, Step},
    story::{Broken, short_name},
    walk::{Rules, Walk},
};
use foldstream::Aggregate;
use std::{fmt::Debug, sync::Arc, time::Duration};

/// How far it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) length: usize,
    pub(super) merged: bool,
    pub(super) max_histories: usize,
}

/// Visits the histories level by level, so that the first that breaks a law is a shortest.
pub(super) fn check<A: Aggregate + PartialEq + Debug>(
    rules: &Rules<A>,
    commands: &[Arc<dyn AnyCommand<A>>],
    limits: Limits,
    id: &ShownId<A>,
) -> Result<Checked, Broken> {
    let start = Walk::start(id);
    start.check_rules(rules)?;
    rules.hold_at_end(&start, &id.0)?;
    let mut checked = Checked::default();
    checked.add_history(0);
    let mut level = vec![start];
    for _ in 0..limits.length {
        let mut next: Vec<Walk<A>> = Vec::new();
        for walk in &level {
            for command in commands {
                let mut longer = walk.clone();
                let step = Step {
                    command: command.clone(),
                    after: Duration::ZERO,
                };
                longer.step(&step, rules)?;
                if let Some(line) = longer.story.last() {
                    checked.count(line.decision.as_deref());
                }
                // Also where nothing came of it: that it stores nothing is part of the proof.
                rules.hold_at_end(&longer, &id.0)?;
                let is_known = longer.history.len() == walk.history.len()
                    || (limits.merged && next.iter().any(|w| w.state == longer.state));
                if !is_known {
                    checked.add_history(longer.history.len());
                    next.push(longer);
                }
            }
            assert!(
                checked.histories() <= limits.max_histories,
                "{} has more than {} histories: give fewer commands, a shorter length, `with_merged_states()`, or a higher \
                 `with_max_histories`",
                short_name::<A>(),
                limits.max_histories
            );
        }
        level = next;
    }
    Ok(checked)
}
