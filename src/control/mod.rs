//! The small rows that processes share, as pure logic over
//! [`ControlStore`](crate::ports::ControlStore).
//!
//! Every row is one JSON object with short, stable names. The names are stored, so they only grow
//! in number, and readers ignore names that they do not know. Rows about streams are spread over 64
//! partitions by the stream's hash.
mod boot;
mod generation;
mod large;
mod lease;
mod position;
mod restore;
mod rows;
mod topic;
mod watermark;

pub(crate) use boot::{BootError, BootRows};
pub(crate) use generation::join as join_generation;
pub use large::{LargePut, LargeRows};
pub use lease::{Contender, Lease, Leases};
pub(crate) use position::StreamPositions;
pub use restore::{
    Finding, InvalidRestoreCursor, RestoreCursor, RestoreError, RestorePage, RestoreRepair,
    WritesSinceRestore,
};
pub use rows::Stored;
pub(crate) use rows::{PutIf, Rows};
pub(crate) use topic::TopicPins;
pub use watermark::{Watermark, Watermarks};
