//! Counts of the inputs, by their kind and by the state of the partition that they concern.
use super::super::{AttemptId, Ended, Input, Machine, Outcome, partition::Phase};
use super::broker::PARTITIONS;
use crate::{
    ports::{AssignmentEpoch, MessageBusError, PartitionId},
    runner::machine::testing::partition,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// The state of a partition before an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// It is not owned under the epoch of the input.
    Gone,
    Starting,
    Serving,
    Leaving,
}

const STATES: [State; 4] = [State::Gone, State::Starting, State::Serving, State::Leaving];

/// Inputs that cannot come in a state: a partition is begun once, and only while it starts;
/// attempts are only of partitions that have been begun; and a partition is part of one revocation
/// at a time.
const IMPOSSIBLE: [(&str, State); 11] = [
    ("begun", State::Serving),
    ("begun", State::Leaving),
    ("begun, not owned", State::Serving),
    ("begun, not owned", State::Leaving),
    ("not begun", State::Serving),
    ("not begun", State::Leaving),
    ("advanced", State::Starting),
    ("finished", State::Starting),
    ("finished, failed", State::Starting),
    ("finished, cancelled", State::Starting),
    ("revoking", State::Leaving),
];

/// Inputs that only come while nothing is owned.
const WITHOUT_PARTITIONS: [&str; 2] = ["joined", "not joined"];

#[derive(Debug, Default)]
pub(super) struct Coverage {
    counts: BTreeMap<(&'static str, State), u64>,
    kinds: BTreeSet<&'static str>,
    pub(super) inputs: u64,
    pub(super) seeds: u64,
}

impl Coverage {
    pub(super) fn add(&mut self, other: Self) {
        for (at, count) in other.counts {
            *self.counts.entry(at).or_default() += count;
        }
        self.kinds.extend(other.kinds);
        self.inputs += other.inputs;
        self.seeds += other.seeds;
    }

    pub(super) fn count(
        &mut self,
        machine: &Machine,
        input: &Input,
        attempt: impl Fn(AttemptId) -> Option<(PartitionId, AssignmentEpoch)>,
    ) {
        let kind = kind(input);
        self.inputs += 1;
        self.kinds.insert(kind);
        let of = match input {
            Input::Delivered(record) => vec![(record.partition.clone(), Some(record.epoch))],
            Input::Unreadable(record, epoch, _) => {
                let number = record.message.partition.unwrap_or_default();
                vec![(partition(number), Some(*epoch))]
            }
            Input::Loaded(load, _) => vec![(load.partition.clone(), Some(load.epoch))],
            Input::Reached(p, epoch, _)
            | Input::Begun(p, epoch, _)
            | Input::NotBegun(p, epoch, _) => vec![(p.clone(), Some(*epoch))],
            Input::Assigned(assigned) => assigned
                .iter()
                .map(|a| (a.partition.clone(), None))
                .collect(),
            Input::Revoking(_, partitions, _) | Input::Lost(partitions) => {
                partitions.iter().map(|p| (p.clone(), None)).collect()
            }
            Input::NoPosition(p, ..) => vec![(p.clone(), None)],
            Input::Advanced(id) | Input::Finished(id, _) => {
                let of = attempt(*id).map(|(p, epoch)| (p, Some(epoch)));
                of.into_iter().collect()
            }
            _ => (0..PARTITIONS).map(|n| (partition(n), None)).collect(),
        };
        for (partition, epoch) in of {
            let state = state(machine, &partition, epoch);
            *self.counts.entry((kind, state)).or_default() += 1;
        }
    }

    pub(super) fn table(&self) -> String {
        let mut table = format!("{:24}", "input");
        for state in STATES {
            let _ = write!(table, "{:>12}", format!("{state:?}"));
        }
        for kind in &self.kinds {
            let _ = write!(table, "\n{kind:24}");
            for state in STATES {
                let count = self.counts.get(&(kind, state)).copied().unwrap_or(0);
                let _ = write!(table, "{count:>12}");
            }
        }
        table
    }

    /// Returns the combinations that are possible and were not met.
    pub(super) fn missing(&self) -> Vec<(&'static str, State)> {
        let all = KINDS.iter().flat_map(|kind| STATES.map(|s| (*kind, s)));
        let possible = all.filter(|(kind, state)| {
            !(IMPOSSIBLE.contains(&(kind, *state))
                || (WITHOUT_PARTITIONS.contains(kind) && *state != State::Gone))
        });
        possible
            .filter(|at| !self.counts.contains_key(at))
            .collect()
    }
}

const KINDS: [&str; 36] = [
    "joined",
    "not joined",
    "delivered",
    "unreadable",
    "reached",
    "assigned",
    "revoking",
    "lost",
    "no position",
    "not received",
    "begun",
    "begun, not owned",
    "not begun",
    "loaded",
    "not loaded",
    "row",
    "no row",
    "polled",
    "not polled",
    "advanced",
    "finished",
    "finished, failed",
    "finished, cancelled",
    "flushed",
    "not flushed",
    "forgotten",
    "positions stored",
    "positions not stored",
    "committed",
    "not committed",
    "commit stale",
    "pause changed",
    "left",
    "stop",
    "broken",
    "timer",
];

fn kind(input: &Input) -> &'static str {
    match input {
        Input::Joined(..) => "joined",
        Input::NotJoined(_) => "not joined",
        Input::Delivered(_) => "delivered",
        Input::Unreadable(..) => "unreadable",
        Input::Reached(..) => "reached",
        Input::Assigned(_) => "assigned",
        Input::Revoking(..) => "revoking",
        Input::Lost(_) => "lost",
        Input::NoPosition(..) => "no position",
        Input::NotReceived(_) => "not received",
        Input::Begun(_, _, true) => "begun",
        Input::Begun(_, _, false) => "begun, not owned",
        Input::NotBegun(..) => "not begun",
        Input::Advanced(_) => "advanced",
        Input::Finished(_, ended) => finished(ended),
        Input::Loaded(_, Ok(_)) => "loaded",
        Input::Loaded(_, Err(_)) => "not loaded",
        Input::Row(_, Ok(_)) => "row",
        Input::Row(_, Err(_)) => "no row",
        Input::Polled(Ok(_)) => "polled",
        Input::Polled(Err(_)) => "not polled",
        Input::Flushed(Ok(())) => "flushed",
        Input::Flushed(Err(_)) => "not flushed",
        Input::Forgotten(_) => "forgotten",
        Input::PositionsStored(Ok(())) => "positions stored",
        Input::PositionsStored(Err(_)) => "positions not stored",
        Input::Committed(Ok(())) => "committed",
        Input::Committed(Err(MessageBusError::StaleAssignment { .. })) => "commit stale",
        Input::Committed(Err(_)) => "not committed",
        Input::PauseChanged(_) => "pause changed",
        Input::GroupCommitted(_) => "group committed",
        Input::LetterSent(_) => "letter sent",
        Input::Reachable => "reachable",
        Input::Left => "left",
        Input::Stop(_) => "stop",
        Input::Broken(_) => "broken",
        Input::Timer => "timer",
    }
}

const fn finished(ended: &Ended) -> &'static str {
    match ended.result {
        Outcome::Done => "finished",
        Outcome::Failed(_) => "finished, failed",
        Outcome::Cancelled => "finished, cancelled",
    }
}

fn state(machine: &Machine, partition: &PartitionId, epoch: Option<AssignmentEpoch>) -> State {
    let owned = machine.partitions.owned.get(partition);
    match owned.filter(|owned| epoch.is_none_or(|epoch| owned.epoch == epoch)) {
        None => State::Gone,
        Some(owned) => match owned.phase {
            Phase::Starting(_) => State::Starting,
            Phase::Serving => State::Serving,
            Phase::Leaving => State::Leaving,
        },
    }
}
