//! The in-memory adapters: as strict as production, deterministic, and the sample to read before writing an adapter.
//!
//! **Durable across a simulated crash.** Each is held in an `Arc` and keeps what was acknowledged until the last clone
//! is gone. A test that "crashes" a process drops everything else (repositories, publishers, runners, consumers, their
//! tasks) and goes on with the same stores.
//!
//! **Deterministic.** No order that a caller can see comes from a randomly seeded map: the same calls in the same order
//! give the same answers, so a simulation replays from its seed.
//!
//! **The limits of production.** What these adapters take, DynamoDB and Kafka take too, and what those refuse, these refuse
//! with the same error. Most limits are rules of the ports, measured by the ports:
//!
//! | limit | where it stands |
//! |---|---|
//! | stream ids, names, times and texts of a commit, its number of events, its metadata | `StreamId`, `Append::validate` |
//! | bytes of an event, a commit and an append; streams and parts of large commits in one append | `Capabilities`, [`InMemoryEventStore::DYNAMODB`] |
//! | keys and values of control rows; expiry in whole seconds, rounded up | `RowKey`, `Row`, [`InMemoryControlStore`] |
//! | bytes of a snapshot | `StoredSnapshot::bytes`, [`InMemorySnapshotStore`] |
//! | names of groups, instance ids and topics | `Subscription` |
//! | bytes of a message; its timestamp; its key in a compacted topic | `TopicDescription`, [`InMemoryMessageBus`] |
//!
//! On request they show what production shows only at times: heads that are not checked
//! ([`InMemoryEventStore::DYNAMODB`]), snapshots that are old ([`InMemorySnapshotStore::set_lag`]), metadata of topics that
//! lags ([`InMemoryMessageBus::set_metadata_lag`]), offsets without records, lost and recreated topics. Failures, slow
//! calls and lists that lag are [`faults`](crate::faults).
//!
//! **What they do not have.** Records never leave by age or by compaction unless a test removes them, and a timestamp far
//! in the future is not refused. Event names of many quotes count twice in DynamoDB, which escapes them. Nothing is
//! throttled, and no permission is checked. A deleted topic is unknown at once.
//!
//! **No lock is held across an await.** Every call does its work under a `std` mutex; only
//! [`Consumer::next`](foldstream::ports::Consumer::next) waits. Appends, publishes and deliveries take part in tokio's
//! cooperative scheduling, so a loop over them does not starve the other tasks of its thread.
mod consumer;
mod control_store;
mod cursor;
mod event_store;
mod group;
mod locked;
mod member;
mod message_bus;
mod shard;
mod snapshot_store;
mod topic;

pub use control_store::InMemoryControlStore;
pub use event_store::InMemoryEventStore;
pub use message_bus::InMemoryMessageBus;
pub use snapshot_store::InMemorySnapshotStore;
pub use topic::MetadataLag;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even if a thread panicked while it held the lock: every critical section here changes state only after all
/// its checks, so a panic leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
