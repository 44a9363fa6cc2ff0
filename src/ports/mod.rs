//! The ports: the smallest object-safe traits that a backend implements, held as `Arc<dyn Port>`.
//!
//! Each port is implemented for `Arc<T>` too, and constructors take either.
//!
//! This module is for those who implement a port or call one directly: adapters, wrappers, tools.
//! Its values are created by adapters and by the core. What only an adapter does with values of the
//! domain, and helpers that most adapters need, are functions of [`adapter`](crate::adapter). A
//! service that writes aggregates and handlers names a port only where it hands one over.
//!
//! Ports carry bytes and metadata, never domain types. Each trait's documentation is a contract:
//! every rule in it is one named case of the contract suite in `foldstream-testkit`, which every
//! adapter runs.
//!
//! # Who repeats a failed request?
//! Callers of a port decide by the error alone. An error that `is_transient` may be followed by the
//! same call, after the pause that `retry_after` names. Any other error means that something must
//! be changed first.
//!
//! - A [`Repository`](crate::Repository) and a [`Transaction`](crate::Transaction) repeat *no*
//!   failed call. They decide again after a conflict, which is an answer, and return errors to
//!   their caller. Publisher and runner repeat transient calls with growing pauses.
//! - An adapter should therefore repeat a request to its backend itself, a few times and for a
//!   bounded time, so that a short outage does not become an error of a command. It must not hide a
//!   longer outage by waiting.
//! - An adapter repeats only what is certain not to have been applied, or what may be applied
//!   twice: reads, deletes and idempotent writes. After an append whose answer was lost it looks
//!   into the slot first: [`EventStoreError::Unavailable`] says how.
//! - Retries that a client library makes on its own hide from the adapter that an earlier attempt
//!   was lost. Turn them off for appends and conditional writes.
mod commit;
mod commit_bytes;
mod validate;
mod event_store;
mod capabilities;
mod scan;
mod header_name;
mod headers;
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
pub(crate) use commit_bytes::{StoredMetadata, metadata_value};
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
pub(crate) use headers::NamesSeen;
pub use headers::{Headers, HeadersIter};
pub use message::{
    Message, Offset, PartitionId, PartitionOffsets, RunOutcome, TopicDescription, TopicId,
};
pub use message_bus::{MessageBus, MessageBusError};
pub use refused::RefusedKind;
pub use scan::{ScanCursor, ScanItems, ScanPage, ScanScope, Segment, StreamPage, UnpublishedPage};
pub use snapshot_store::{SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot};
pub use subscription::{StartOffset, Subscription};
