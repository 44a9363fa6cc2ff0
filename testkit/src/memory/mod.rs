//! The in-memory adapters: as strict as production, deterministic, and the sample to read before writing an adapter.
//!
//! **Durable across a simulated crash.** Each is held in an `Arc` and keeps what was acknowledged until the last clone
//! is gone. A test that "crashes" a process drops everything else (repositories, publishers, runners, consumers, their
//! tasks) and goes on with the same stores.
//!
//! **Deterministic.** No order that a caller can see comes from a randomly seeded map: the same calls in the same order
//! give the same answers, so a simulation replays from its seed.
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

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even if a thread panicked while it held the lock: every critical section here changes state only after all
/// its checks, so a panic leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
