#![doc = include_str!("../README.md")]

mod clock;
pub mod contract;
mod memory;

pub use clock::{ManualClock, SeededIds};
pub use memory::{InMemoryControlStore, InMemoryEventStore, InMemorySnapshotStore};
