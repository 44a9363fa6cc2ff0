//! The row of a segment: how far its scan is.
use serde::{Deserialize, Serialize};

/// The value of the row `seg/<id>`, `<segment>`. It is written after the effects of its commits
/// are durable in every read model of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentRow {
    /// The epoch of the lease under which the row was written.
    #[serde(rename = "e")]
    pub(crate) epoch: u64,
    /// The position at which the scan continues, in hexadecimal digits. `None` at the begin, and
    /// at the end.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub(crate) cursor: Option<String>,
    /// True if the segment was scanned to its end.
    #[serde(rename = "d", default)]
    pub(crate) is_done: bool,
    #[serde(flatten)]
    pub(crate) counts: SegmentCounts,
}

/// The numbers of what was scanned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentCounts {
    /// The number of commits that were read.
    #[serde(rename = "k", default)]
    pub(crate) commits: u64,
    /// The number of events in them.
    #[serde(rename = "v", default)]
    pub(crate) events: u64,
    /// The number of streams whose first commit is among them.
    #[serde(rename = "m", default)]
    pub(crate) streams: u64,
    /// The number of calls of projectors that went well, by events.
    #[serde(rename = "h", default)]
    pub(crate) handled: u64,
    /// The cost in read units of the backend, as far as it reports one.
    #[serde(rename = "u", default)]
    pub(crate) read_units: f64,
}

impl SegmentCounts {
    /// Adds the numbers of another part of the scan.
    pub(crate) fn add(&mut self, other: &Self) {
        self.commits += other.commits;
        self.events += other.events;
        self.streams += other.streams;
        self.handled += other.handled;
        self.read_units += other.read_units;
    }
}

impl SegmentRow {
    /// Returns the row as claimed by the holder of a lease, so that the former holder cannot write
    /// it any more. `None` if a later holder has claimed it.
    pub(crate) fn claimed(&self, epoch: u64) -> Option<Self> {
        (epoch >= self.epoch).then(|| Self {
            epoch,
            ..self.clone()
        })
    }
}
