//! The ports: the smallest object-safe traits that a backend implements, held as `Arc<dyn Port>`.
//!
//! Each port is implemented for `Arc<T>` too, and constructors take either.
//!
//! Ports carry bytes and metadata, never domain types. Each trait's documentation is a contract:
//! every rule in it is one named case of the contract suite in `foldstream-testkit`, which every
//! adapter runs.
mod commit;
mod commit_bytes;
mod event_store;
mod capabilities;
mod scan;
mod header_name;
mod message;
mod message_bus;
mod subscription;
mod consumer;
mod snapshot_store;
mod control_store;
mod refused;
pub(crate) mod shared;

pub use capabilities::Capabilities;
pub use commit::{Append, AppendAll, AppendOutcome, Commit, CommitKey, EventData};
pub use commit_bytes::CommitBytesError;
pub use consumer::{
    AssignedPartition, Assignment, AssignmentEpoch, Consumer, ConsumerEvent, Delivery, NoPosition,
    OffsetCommit, Revocation, StartedFrom,
};
pub use control_store::{
    ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Direction, Expect, PutOutcome,
    RangeQuery, Revision, Row, RowKey, RowPage, SortBounds,
};
pub use event_store::{EventStore, EventStoreError, PendingAppend, ReadFrom};
pub use futures::stream::BoxStream;
pub use header_name::{HeaderName, InvalidHeaderName};
pub use message::{
    Message, Offset, PartitionId, PartitionOffsets, RunOutcome, TopicDescription, TopicId,
};
pub use message_bus::{MessageBus, MessageBusError};
pub use refused::RefusedKind;
pub use scan::{ScanCursor, ScanItems, ScanPage, ScanScope, Segment, StreamPage, UnpublishedPage};
pub use snapshot_store::{SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot};
pub use subscription::{StartOffset, Subscription};
