//! The partitions that a processor owns, each in its own state: one that starts or leaves does not
//! hold up the others.
use super::{RevocationId, parking::Parking, record::Record, retry::Patience, window::Window};
use crate::{
    CommitId, StreamId, Version, WireError,
    control::StoredRecord,
    ports::{AssignedPartition, AssignmentEpoch, PartitionId},
};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
};
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) epoch: AssignmentEpoch,
    pub(super) phase: Phase,
    pub(super) window: Window,
    pub(super) pause: Pause,
    /// Records that cannot be read. Each is decided about when all before it is done.
    pub(super) unreadable: VecDeque<Unreadable>,
    pub(super) effects: Effects,
    pub(super) parking: Parking,
}

/// A record that cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) record: StoredRecord,
    pub(super) error: WireError,
    /// Its letter is being written.
    pub(super) is_given_up: bool,
    /// The limit of dead letters is reached: it waits until the processor holds no longer.
    pub(super) is_held: bool,
}

/// The phase of an assignment.
#[derive(Debug)]
pub(super) enum Phase {
    /// The start is not durable yet. What has arrived waits.
    Starting(Box<Starting>),
    /// Records are handled.
    Serving,
    /// The group takes the partition away: what runs is finished and committed.
    Leaving,
}

#[derive(Debug)]
pub(super) struct Starting {
    pub(super) assigned: AssignedPartition,
    pub(super) arrived: Vec<Arc<Record>>,
    /// The start is durable, and the rows about failed events are read.
    pub(super) is_begun: bool,
    pub(super) patience: Patience,
    /// When the step may be tried again; `None` while it runs.
    pub(super) try_at: Option<Instant>,
}

/// The effects of a partition's handlers that are not durable yet.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Streams that were projected since the last flush began.
    pub(super) touched: foldhash::HashSet<StreamId>,
    /// Streams that were projected before the flush that runs now.
    pub(super) flushing: foldhash::HashSet<StreamId>,
    /// Positions that are to be stored, at the level that stores them.
    pub(super) positions: foldhash::HashMap<StreamId, (Version, Option<CommitId>)>,
}

impl Effects {
    pub(super) fn begin_flush(&mut self) {
        let touched = self.touched.drain();
        self.flushing.extend(touched);
    }
    pub(super) fn end_flush(&mut self, is_done: bool) {
        let flushing = std::mem::take(&mut self.flushing);
        if !is_done {
            self.touched.extend(flushing);
        }
    }
    /// Returns true if effects of this stream may be buffered.
    pub(super) fn has_buffered(&self, stream: &StreamId) -> bool {
        self.touched.contains(stream) || self.flushing.contains(stream)
    }
    /// Returns true if no effects are buffered.
    pub(super) fn is_flushed(&self) -> bool {
        self.touched.is_empty() && self.flushing.is_empty()
    }
    /// Returns the streams whose effects may be buffered, some of them twice, in no order.
    pub(super) fn buffered(&self) -> impl Iterator<Item = &StreamId> {
        self.touched.iter().chain(&self.flushing)
    }
    /// Takes the streams whose effects may be buffered.
    pub(super) fn take_buffered(&mut self) -> impl Iterator<Item = StreamId> {
        let touched = std::mem::take(&mut self.touched);
        touched
            .into_iter()
            .chain(std::mem::take(&mut self.flushing))
    }
}

/// The reasons to pause a partition, and what the consumer was told.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// The window is full, and not half empty since.
    pub(super) is_full: bool,
    /// There is a reason to pause it.
    pub(super) is_wanted: bool,
    pub(super) told: Told,
}

/// The last thing that the consumer was told about a partition, and has confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Told {
    #[default]
    Resumed,
    Paused,
    /// It was told to pause an earlier assignment, and may have kept the pause for this one.
    Unsure,
}

impl Told {
    /// Returns true if the partition is known to be paused, or known not to be.
    pub(super) const fn is(self, is_paused: bool) -> bool {
        matches!(
            (self, is_paused),
            (Self::Paused, true) | (Self::Resumed, false)
        )
    }
}

/// A revocation that has not been released.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) partitions: HashSet<PartitionId>,
    /// When attempts that still run are cancelled.
    pub(super) cancel_at: Instant,
    /// When the group waits no longer.
    pub(super) release_at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Partitions {
    pub(super) owned: BTreeMap<PartitionId, Partition>,
    pub(super) leaving: BTreeMap<RevocationId, Leaving>,
    /// Partitions that were taken away while they were paused. The consumer may keep the pause for
    /// their next assignment.
    pub(super) maybe_paused: HashSet<PartitionId>,
}

impl Partition {
    pub(super) fn starting(
        assigned: AssignedPartition,
        seed: u64,
        try_at: Option<Instant>,
    ) -> Self {
        Self {
            epoch: assigned.epoch,
            window: Window::starting_at(assigned.next),
            phase: Phase::Starting(Box::new(Starting {
                assigned,
                arrived: Vec::new(),
                is_begun: false,
                patience: Patience::new(seed),
                try_at,
            })),
            pause: Pause::default(),
            unreadable: VecDeque::new(),
            effects: Effects::default(),
            parking: Parking::default(),
        }
    }

    pub(super) const fn has_begun(&self) -> bool {
        !matches!(self.phase, Phase::Starting(_))
    }

    pub(super) const fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving)
    }
}

impl Partitions {
    /// Returns a partition under this assignment.
    pub(super) fn get(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
    ) -> Option<&mut Partition> {
        let owned = self.owned.get_mut(partition)?;
        (owned.epoch == epoch).then_some(owned)
    }

    /// Removes a partition that is gone.
    pub(super) fn remove(&mut self, partition: &PartitionId) -> Option<Partition> {
        let owned = self.owned.remove(partition)?;
        if owned.pause.told != Told::Resumed {
            self.maybe_paused.insert(partition.clone());
        }
        Some(owned)
    }

    /// Notes that the consumer has paused or resumed a partition. It was told so under an
    /// assignment that may have ended since, and knows only the partition: then a later assignment
    /// may be the one that it has paused, and must be resumed.
    pub(super) fn told(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        is_paused: bool,
    ) {
        match self.owned.get_mut(partition) {
            Some(owned) if owned.epoch == epoch && is_paused => owned.pause.told = Told::Paused,
            Some(owned) if owned.epoch == epoch => owned.pause.told = Told::Resumed,
            Some(owned) if is_paused => owned.pause.told = Told::Unsure,
            None if is_paused => drop(self.maybe_paused.insert(partition.clone())),
            Some(_) | None => {}
        }
    }

    /// Returns the size of everything that is not committed.
    pub(super) fn bytes(&self) -> usize {
        self.owned.values().map(|owned| owned.window.bytes()).sum()
    }

    /// Returns the time at which a start is tried again.
    pub(super) fn start_at(&self) -> Option<Instant> {
        let starts = self.owned.values().filter_map(|owned| match &owned.phase {
            Phase::Starting(starting) => starting.try_at,
            _ => None,
        });
        starts.min()
    }

    /// Returns the time at which the group waits no longer for a revocation.
    pub(super) fn release_at(&self) -> Option<Instant> {
        self.leaving
            .values()
            .map(|leaving| leaving.release_at)
            .min()
    }
}
