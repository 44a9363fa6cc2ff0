//! The votes as a process has seen them, kept apart from the machine to check what it counts.
use super::{super::rows::VoteRow, FRESH};
use crate::ports::Revision;
use std::collections::BTreeMap;
use tokio::time::Instant;

/// A vote as a process has seen it: the last two writes, and when it saw the change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    epoch: u64,
    revision: Revision,
    pub(super) changed: Option<Instant>,
}

pub(super) fn sighted(
    sights: &mut BTreeMap<String, Sight>,
    label: &str,
    row: VoteRow,
    revision: Revision,
    now: Instant,
) {
    let changed = match sights.get(label) {
        Some(sight) if sight.revision == revision => sight.changed,
        Some(_) => Some(now),
        None => None,
    };
    let sight = Sight {
        epoch: row.epoch,
        revision,
        changed,
    };
    sights.insert(label.to_owned(), sight);
}

pub(super) fn counted(sights: &BTreeMap<String, Sight>, epoch: Option<u64>, now: Instant) -> usize {
    let counts = |sight: &&Sight| {
        let fresh = sight
            .changed
            .is_some_and(|at| now.duration_since(at) < FRESH);
        Some(sight.epoch) == epoch && fresh
    };
    sights.values().filter(counts).count()
}
