#![doc = include_str!("../README.md")]

mod clock;
pub mod contract;
mod memory;
mod scenario;

pub use clock::{ManualClock, SeededIds};
pub use memory::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
};
pub use scenario::{Outcome, Scenario};
