//! Given-when-then tests: scenarios of an aggregate, of a projector or a listener, and of the whole
//! pipeline.
//!
//! The rules that decide what a handler sees (duplicates, gaps, retries, halts) are the runner's.
//! These scenarios run the real runner over the in-memory adapters, so there is no second
//! implementation of the rules that a test could agree with.
mod aggregate;
mod diff;
mod failure;
mod names;
mod ports;
mod feed;
mod handler;
mod projector;
mod listener;
mod pipeline;

pub use aggregate::{Outcome, Scenario};
pub use handler::{HandlerScenario, Listens, Projects};
pub use listener::ListenerScenario;
pub use pipeline::{CommandFor, PipelineScenario};
pub use ports::Ports;
pub use projector::ProjectorScenario;

#[cfg(feature = "proptest")]
pub(crate) use names::short_type_name;
