#![doc = include_str!("../README.md")]

mod scenario;
mod memory;
mod clock;
mod environment;
pub mod length;
#[cfg(feature = "contract")]
pub mod contract;
pub mod schema;
pub mod intercept;
pub mod faults;
#[cfg(feature = "proptest")]
pub mod laws;
#[cfg(feature = "domains")]
pub mod domains;
#[cfg(feature = "mocks")]
pub mod mocks;
#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(feature = "containers")]
pub mod containers;
#[cfg(any(doc, doctest))]
pub mod guide;

pub use clock::{ManualClock, SeededIds};
pub use memory::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
    MetadataLag,
};
pub use scenario::{
    CommandFor, HandlerScenario, ListenerScenario, Listens, Outcome, PipelineScenario, Ports,
    ProjectorScenario, Projects, Scenario,
};
pub use schema::Schema;
