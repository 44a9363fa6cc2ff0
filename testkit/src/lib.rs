#![doc = include_str!("../README.md")]

mod clock;
mod memory;
#[cfg(feature = "containers")]
pub mod containers;

pub use clock::{ManualClock, SeededIds};
pub use memory::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
};
