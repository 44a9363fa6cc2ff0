//! The ports: the smallest object-safe traits that a backend implements, held as `Arc<dyn Port>`.
//!
//! Ports carry bytes and metadata, never domain types. Each trait's documentation is a contract: every rule in it is
//! one named case of the contract suite in `foldstream-testkit`, which every adapter runs.
mod control_store;
mod event_store;
mod message_bus;
mod refused;
mod snapshot_store;

pub use control_store::{
    ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Direction, Expect, PutOutcome,
    RangeQuery, Revision, Row, RowKey, RowPage, SortBounds,
};
pub use event_store::{
    Append, AppendAll, AppendOutcome, Capabilities, Commit, CommitKey, EventData, EventStore,
    EventStoreError, PendingAppend, ReadFrom, ScanCursor, ScanItems, ScanPage, ScanWhat, Segment,
    StreamPage, UnpublishedPage,
};
pub use futures::stream::BoxStream;
pub use message_bus::{
    AssignedPartition, Assignment, AssignmentEpoch, Consumer, ConsumerEvent, Delivery, Message,
    MessageBus, MessageBusError, NoPosition, Offset, OffsetMark, OwnedMark, PartitionId,
    PartitionOffsets, Revocation, StartedFrom, Subscription, TopicDescription,
};
pub use refused::RefusedKind;
pub use snapshot_store::{SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot};
