#![doc = include_str!("../README.md")]

mod scenario;
mod memory;
mod clock;
pub mod contract;
#[cfg(feature = "mocks")]
pub mod mocks;
#[cfg(feature = "containers")]
pub mod containers;
#[cfg(any(doc, doctest))]
pub mod guide;

pub use clock::{ManualClock, SeededIds};
pub use memory::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
};
pub use scenario::{CommandFor, ListenerScenario, Outcome, ProjectorScenario, Road, Scenario};
