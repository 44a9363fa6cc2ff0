//! The row of a run, and its transitions.
//!
//! Each transition is a pure function from a row to the next one, or to `None` where it does not
//! apply. Its caller writes the result with a compare-and-set on the row that it was made from.
use super::ReplayMode;
use crate::{
    Timestamp,
    ports::{Offset, PartitionId},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The state of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunState {
    /// Generations are allocated, the hand-over is taken, and the new models are emptied.
    Preparing,
    /// A replay in place waits until no instance handles an event, and then empties the models.
    Draining,
    /// Every new model was emptied.
    ResetDone,
    /// The event store is scanned.
    Scanning,
    /// The scan has ended. Runners bring the new generations up to the end of the topics.
    CatchUp,
    /// Every new generation serves. A filtered replay has ended.
    Done,
    /// The replay was cancelled. The generations of before serve.
    Cancelled,
    /// A state that a newer build has written.
    #[serde(other)]
    Unknown,
}

impl RunState {
    /// Returns true if the replay will not change any more.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }
}

/// The part of the history that a filtered replay repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunFilter {
    /// The names of event types; `None` for all.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub(crate) events: Option<Vec<String>>,
    /// The streams; `None` for all.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub(crate) streams: Option<Vec<String>>,
    /// The aggregate types; `None` for all.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(crate) aggregates: Option<Vec<String>>,
    /// The first time at which an event is repeated.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Timestamp>,
    /// The first time after the last event that is repeated.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<Timestamp>,
}

/// A processor of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunProcessor {
    #[serde(rename = "n")]
    pub(crate) name: String,
    /// The generation that is being built. For a filtered replay it is the live one.
    #[serde(rename = "g")]
    pub(crate) generation: u32,
    /// The `Projector::MODEL` of that generation.
    #[serde(rename = "m")]
    pub(crate) model: u32,
    /// True once the generation serves.
    #[serde(rename = "w", default)]
    pub(crate) is_switched: bool,
}

/// Offsets of the partitions of each topic, from partition 0.
type TopicOffsets = BTreeMap<String, Vec<Offset>>;

/// The value of the row `run`, `<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRow {
    #[serde(rename = "s")]
    pub(crate) state: RunState,
    /// The epoch of the lease under which the row was claimed last. Only that holder goes on.
    #[serde(rename = "e")]
    pub(crate) epoch: u64,
    #[serde(rename = "p")]
    pub(crate) processors: Vec<RunProcessor>,
    #[serde(rename = "m")]
    pub(crate) mode: ReplayMode,
    /// The part of the history that is repeated; `None` for a full replay.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub(crate) filter: Option<RunFilter>,
    /// The number of segments of the scan. It never changes.
    #[serde(rename = "n")]
    pub(crate) segments: u32,
    /// The name of the operator.
    #[serde(rename = "b")]
    pub(crate) by: String,
    /// The time at which the replay began.
    #[serde(rename = "t")]
    pub(crate) at: Timestamp,
    /// The ends of the topics before the scan: there the new generations begin to consume.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    hand_over: Option<TopicOffsets>,
    /// The ends of the topics after the scan: up to there a new generation must have consumed
    /// before it may serve.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    ends: Option<TopicOffsets>,
    /// The fields that a newer build has written. This build keeps them.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn by_topic(offsets: &BTreeMap<PartitionId, Offset>) -> TopicOffsets {
    let mut topics = TopicOffsets::new();
    // Partitions come in the order of their numbers, which have no gaps.
    for (partition, offset) in offsets {
        let topic = topics.entry(partition.topic.to_string()).or_default();
        let index = partition.partition as usize;
        if topic.len() <= index {
            topic.resize(index + 1, Offset::new(0));
        }
        topic[index] = *offset;
    }
    topics
}

fn by_partition(topics: &TopicOffsets) -> BTreeMap<PartitionId, Offset> {
    let partitions = topics.iter().flat_map(|(topic, offsets)| {
        let numbered = (0u32..).zip(offsets);
        numbered.map(|(number, offset)| (PartitionId::new(topic.as_str(), number), *offset))
    });
    partitions.collect()
}

impl RunRow {
    pub(crate) fn new(
        processors: Vec<RunProcessor>,
        mode: ReplayMode,
        filter: Option<RunFilter>,
        segments: u32,
        by: &str,
        at: Timestamp,
    ) -> Self {
        Self {
            state: match mode {
                ReplayMode::BlueGreen => RunState::Preparing,
                ReplayMode::InPlace => RunState::Draining,
            },
            epoch: 0,
            processors,
            mode,
            filter,
            segments: segments.max(1),
            by: by.into(),
            at,
            hand_over: None,
            ends: None,
            rest: Map::new(),
        }
    }

    /// Returns the processor of this name.
    pub(crate) fn processor(&self, name: &str) -> Option<&RunProcessor> {
        self.processors.iter().find(|of| of.name == name)
    }
    /// Returns the offsets at which the new generations begin to consume; `None` until they are
    /// known.
    pub(crate) fn hand_over(&self) -> Option<BTreeMap<PartitionId, Offset>> {
        self.hand_over.as_ref().map(by_partition)
    }
    /// Returns the ends of the topics after the scan; `None` until the scan has ended. A partition
    /// that is not in the map was added later: its end is 0.
    pub(crate) fn ends(&self) -> Option<BTreeMap<PartitionId, Offset>> {
        self.ends.as_ref().map(by_partition)
    }
    /// Returns true if the run may have emptied a model that served before. It does so after the
    /// hand-over is taken, and never before.
    pub(crate) fn has_emptied_in_place(&self) -> bool {
        self.mode == ReplayMode::InPlace && self.hand_over.is_some()
    }
    /// Returns true if the holder of this lease may go on with the run.
    pub(crate) fn is_held(&self, epoch: u64) -> bool {
        self.epoch == epoch && !self.state.is_over() && self.state != RunState::Unknown
    }

    /// Returns the row as claimed by the holder of a lease. `None` if a later holder has claimed
    /// it, or if there is nothing to go on with.
    pub(crate) fn claimed(&self, epoch: u64) -> Option<Self> {
        let can = epoch > self.epoch && !self.state.is_over() && self.state != RunState::Unknown;
        can.then(|| Self {
            epoch,
            ..self.clone()
        })
    }

    /// Returns the row with another generation for a processor. `None` once the scan has begun.
    pub(crate) fn allocated(&self, name: &str, generation: u32) -> Option<Self> {
        let early = [RunState::Preparing, RunState::Draining, RunState::ResetDone];
        if !early.contains(&self.state) || self.filter.is_some() {
            return None;
        }
        let mut row = self.clone();
        let processor = row.processors.iter_mut().find(|of| of.name == name)?;
        processor.generation = generation;
        row.state = match self.mode {
            ReplayMode::BlueGreen => RunState::Preparing,
            ReplayMode::InPlace => RunState::Draining,
        };
        Some(row)
    }

    /// Returns the row with the hand-over, which is taken before the scan begins. `None` if it was
    /// taken already: a later one would miss events.
    pub(crate) fn handed_over(&self, ends: &BTreeMap<PartitionId, Offset>) -> Option<Self> {
        let early = [RunState::Preparing, RunState::Draining];
        let can = early.contains(&self.state) && self.hand_over.is_none() && self.filter.is_none();
        can.then(|| Self {
            hand_over: Some(by_topic(ends)),
            ..self.clone()
        })
    }

    /// Returns the row after every new model was emptied.
    pub(crate) fn reset_done(&self) -> Option<Self> {
        let early = [RunState::Preparing, RunState::Draining];
        let can = early.contains(&self.state) && self.hand_over.is_some();
        can.then(|| self.in_state(RunState::ResetDone))
    }

    /// Returns the row at the begin of the scan. A filtered replay has nothing to prepare.
    pub(crate) fn scanning(&self) -> Option<Self> {
        let can = self.state == RunState::ResetDone
            || (self.state == RunState::Preparing && self.filter.is_some());
        can.then(|| self.in_state(RunState::Scanning))
    }

    /// Returns the row after the scan of a full replay, with the ends that the topics have now.
    pub(crate) fn scanned(&self, ends: &BTreeMap<PartitionId, Offset>) -> Option<Self> {
        let can = self.state == RunState::Scanning && self.filter.is_none();
        can.then(|| Self {
            ends: Some(by_topic(ends)),
            ..self.in_state(RunState::CatchUp)
        })
    }

    /// Returns the row after the scan of a filtered replay, which hands nothing over.
    pub(crate) fn filtered_done(&self) -> Option<Self> {
        let can = self.state == RunState::Scanning && self.filter.is_some();
        can.then(|| self.in_state(RunState::Done))
    }

    /// Returns the row of a cancelled run. `None` if the run is over.
    pub(crate) fn cancelled(&self) -> Option<Self> {
        let can = !self.state.is_over() && self.state != RunState::Unknown;
        can.then(|| self.in_state(RunState::Cancelled))
    }

    /// Returns the row after a processor has switched to its new generation. The run is done once
    /// all have, also if it was cancelled at the same time: the switch was faster. `None` if that
    /// is noted already.
    pub(crate) fn switched(&self, name: &str) -> Option<Self> {
        let late = [RunState::CatchUp, RunState::Cancelled];
        let mut row = self.clone();
        let processor = row.processors.iter_mut().find(|of| of.name == name)?;
        if !late.contains(&self.state) || processor.is_switched {
            return None;
        }
        processor.is_switched = true;
        if row.processors.iter().all(|of| of.is_switched) {
            row.state = RunState::Done;
        }
        Some(row)
    }

    fn in_state(&self, state: RunState) -> Self {
        Self {
            state,
            ..self.clone()
        }
    }
}
