#![doc = include_str!("../README.md")]

mod scenario;
mod memory;
mod clock;
pub mod contract;
pub mod schema;
#[cfg(feature = "mocks")]
pub mod mocks;
#[cfg(feature = "containers")]
pub mod containers;

pub use clock::{ManualClock, SeededIds};
pub use memory::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
};
pub use scenario::{Outcome, Scenario};
pub use schema::Schema;
