#![doc = include_str!("../README.md")]

mod clock;
mod memory;

pub use clock::{ManualClock, SeededIds};
pub use memory::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
};
