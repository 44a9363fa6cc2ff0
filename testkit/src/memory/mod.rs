//! In-memory adapters of every port, which are deterministic and as strict as production.
//!
//! They are also a sample to read before writing an adapter.
//!
//! **Durable across a simulated crash.** Each adapter is held in an `Arc` and keeps acknowledged
//! writes until the last clone is dropped. A test that "crashes" a process drops everything else
//! (repositories, publishers, runners, consumers, their tasks) and continues with the same stores.
//!
//! **Deterministic.** No order that a caller can see comes from a randomly seeded map. The same
//! calls in the same order give the same answers, so a simulation can be replayed from its seed.
//!
//! **The limits of production.** These adapters accept only what DynamoDB and Kafka accept too, and
//! refuse everything else with the same errors. Most limits are rules of the ports and are measured
//! by the ports:
//!
//! | limit | documented at |
//! |---|---|
//! | stream ids, names, times and texts of a commit, its number of events, its metadata | `StreamId`, `Append::validate` |
//! | bytes of an event, a commit and an append; streams and parts of large commits in one append | `Capabilities`, [`InMemoryEventStore::DYNAMODB`] |
//! | keys and values of control rows; expiry in whole seconds, rounded up | `RowKey`, `Row`, [`InMemoryControlStore`] |
//! | bytes of a snapshot | `StoredSnapshot::bytes`, [`InMemorySnapshotStore`] |
//! | names of groups, instance ids and topics | `Subscription` |
//! | bytes of a message; its timestamp; its key in a compacted topic | `TopicDescription`, [`InMemoryMessageBus`] |
//!
//! On request the adapters also show rare states of production: heads that are not checked
//! ([`InMemoryEventStore::DYNAMODB`]), outdated snapshots ([`InMemorySnapshotStore::set_lag`]),
//! topic metadata that lags ([`InMemoryMessageBus::set_metadata_lag`]), offsets without records,
//! and lost or recreated topics. Failures, slow calls and lists that lag are injected by
//! [`faults`](crate::faults).
//!
//! **Differences from production.** Records stay until a test removes them, since there is no
//! retention by age and no compaction. A timestamp far in the future is not refused. DynamoDB
//! escapes quotes in event names and so counts them twice; the in-memory store counts them once.
//! Nothing is throttled, and no permission is checked. A deleted topic is unknown at once.
//!
//! **No lock is held across an await.** Every call does its work under a `std` mutex. Only
//! [`Consumer::next`](foldstream::ports::Consumer::next) waits. Appends, publishes and deliveries
//! take part in tokio's cooperative scheduling, so a loop over them does not starve the other tasks
//! of its thread.
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

/// Locks a mutex even if a thread panicked while it held the lock.
///
/// Every critical section of this module changes its state only after all checks, so a panic leaves
/// nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
