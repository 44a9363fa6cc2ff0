//! The check of every history that a set of commands can lead to, shortest first.
use super::{
    checked::Checked,
    command::{AnyCommand, ShownId, Step},
    story::{Broken, short_name},
    walk::{Rules, Walk},
};
use foldstream::Aggregate;
use std::{fmt::Debug, sync::Arc, time::Duration};

/// The limits of an exhaustive check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) length: usize,
    pub(super) merged: bool,
    pub(super) max_histories: usize,
}

/// Visits the histories by length, so that the first history that breaks a law is a shortest one.
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
                // This also runs if the command led to no event: that nothing is stored is part of
                // the proof.
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
