//! The state of a reader, as values.
use super::service::SequenceNumber;
use foldstream::{Timestamp, ports::Revision};

/// The state of a [`StreamsReader`](super::StreamsReader) at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StreamsStatus {
    /// The state of the reader as a whole.
    pub state: ReaderState,
    /// The label of the stream that is read; `None` before the first description.
    pub stream: Option<String>,
    /// The number of instances that share the shards, this one included.
    pub instances: usize,
    /// The shards that this instance reads.
    pub shards: Vec<ShardStatus>,
    /// The number of shards of the stream that wait for their parents.
    pub waiting: usize,
    /// The number of shards of the stream that are done, and whose rows are still there.
    pub done: usize,
    /// The time of the oldest record that this instance has read and that is not published. `None`
    /// if there is none.
    pub behind_since: Option<Timestamp>,
    /// The note that records were lost, so that
    /// [`reconcile`](foldstream::publisher::Publisher::reconcile) must be called.
    pub reconcile: Option<ReconcileNeeded>,
    /// The number of records that the bus has acknowledged.
    pub messages: u64,
    /// The number of streams that were set aside for the sweep.
    pub set_aside: u64,
}

/// The state of a reader as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReaderState {
    /// The stream was not described yet, or no shard was taken yet.
    #[default]
    Starting,
    /// The instance reads shards.
    Reading,
    /// Other instances read all shards, and this one takes over if one of them dies.
    Standby,
    /// The stream is enabled, and for a minute this instance has found no shard to read, although
    /// it should have: an error.
    Idle {
        /// The time since which there is no shard.
        since: Timestamp,
    },
    /// The events table has no change stream, or it is disabled: an error. The reader starts when
    /// the stream is enabled.
    Disabled,
    /// The streams API or the control store fails: an error. The reader goes on by itself.
    Unreachable {
        /// The time of the first failure.
        since: Timestamp,
        /// The last failure, as one line.
        error: String,
    },
    /// The reader was stopped.
    Stopped,
}

impl ReaderState {
    /// Returns true for a state that somebody should look at.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        matches!(
            self,
            Self::Idle { .. } | Self::Disabled | Self::Unreachable { .. }
        )
    }
}

/// The state of a shard that this instance reads.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ShardStatus {
    /// The id of the shard.
    pub id: String,
    /// The epoch of the lease on the shard, which grows with every new holder.
    pub epoch: u64,
    /// The last checkpoint; `None` if nothing of the shard is covered yet.
    pub checkpoint: Option<SequenceNumber>,
    /// The number of pages in memory.
    pub pages: usize,
    /// The time of the oldest record in memory that is not published.
    pub behind_since: Option<Timestamp>,
}

/// A note that the change stream has lost records, so that commits may be unpublished.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReconcileNeeded {
    /// The time of the first loss since the last reconcile.
    pub since: Timestamp,
    /// The first loss.
    pub why: String,
    pub(super) revision: Revision,
}

/// The result of a reader, once it was shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamsReport {
    /// The number of records that the bus has acknowledged.
    pub messages: u64,
    /// The number of streams that were set aside for the sweep.
    pub set_aside: u64,
}
