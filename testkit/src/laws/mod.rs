//! Property tests: the laws of aggregates, projectors and event stores, checked on random cases.
//!
//! The random cases come from [`proptest`]. The laws of an aggregate can also be checked on all
//! cases up to a length. Needs the feature `proptest`.
//!
//! | laws of | type |
//! |---|---|
//! | an aggregate, with your own rules | [`Laws`] |
//! | a projector | [`ProjectorLaws`] |
//! | an event store with several writers | [`serial::SerialLaws`] |
//!
//! A failing law prints the smallest case that was found, as a test.
mod aggregate;
mod checked;
mod command;
mod deliveries;
mod drawn;
mod exhaustive;
mod ids;
mod moves;
mod projector;
pub mod serial;
mod seed;
mod stored;
mod story;
mod walk;
mod written;

pub use aggregate::Laws;
pub use checked::Checked;
pub use projector::ProjectorLaws;
