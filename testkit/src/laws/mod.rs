//! The property kit: laws that hold of every aggregate, every projector and every event store, checked on
//! [`proptest`]'s random cases or on all cases up to a length. Needs the feature `proptest`.
//!
//! | whose laws | type |
//! |---|---|
//! | an aggregate's, with your own rules | [`Laws`] |
//! | a projector's | [`ProjectorLaws`] |
//! | an event store's with several writers | [`serial::SerialLaws`] |
//!
//! A failing law prints the smallest case that it could find, as a test.
mod aggregate;
mod checked;
mod command;
mod deliveries;
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
