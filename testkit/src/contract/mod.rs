//! Contract suites: every rule of a port's documentation as one named test, for every adapter.
//!
//! A case is a public async function over the port. An adapter's tests call the macro of the port, which makes one
//! `#[test]` a case, named as the rule it holds. Each test builds its own multi-thread runtime, asks for a fresh port
//! and fails after [`LIMIT`] with the rule's name. Cases make their own streams, partitions, topics and groups under
//! fresh names, so they run in parallel against one shared server.
//!
//! Make clients inside the function that is called for a port, not in a `static`: a connection pool dies with the
//! runtime that it was made in.
//!
//! # Use
//! In a test file of the adapter, a module for each port:
//!
//! ```
//! # #[allow(dead_code)]
//! # mod contract {
//! mod event_store {
//!     use foldstream::ports::EventStore;
//!     use foldstream_testkit::InMemoryEventStore;
//!     use std::sync::Arc;
//!
//!     async fn fresh() -> Arc<dyn EventStore> {
//!         InMemoryEventStore::new()
//!     }
//!     foldstream_testkit::event_store_contract! {
//!         store = fresh,
//!         with = [atomic_append, unpublished],
//!     }
//! }
//!
//! mod control_store {
//!     use foldstream::ports::ControlStore;
//!     use foldstream_testkit::InMemoryControlStore;
//!     use std::sync::Arc;
//!
//!     async fn fresh() -> Arc<dyn ControlStore> {
//!         InMemoryControlStore::new()
//!     }
//!     foldstream_testkit::control_store_contract! {
//!         // Any attributes; these are put on every test.
//!         #[ignore = "needs Docker; see CONTRIBUTING.md"]
//!         store = fresh,
//!     }
//! }
//! # }
//! # fn main() {}
//! ```
//!
//! Then `cargo test` shows `event_store::stale_head_is_a_conflict` and so on. [`snapshot_store_contract!`] is used
//! likewise; [`message_bus_contract!`] asks for a [`BusFixture`](message_bus::BusFixture), which also makes topics.
//! [`payload_codec_contract!`] is for the authors of a [`PayloadCodec`](foldstream::PayloadCodec).
//!
//! # What an adapter declares
//! Rules that only hold for some adapters are in groups, declared by `with`. A group that is not declared generates no
//! test, so nothing passes without having run; for [`event_store_contract!`] a case checks that the declared groups are
//! what [`capabilities`](foldstream::ports::EventStore::capabilities) says.
//!
//! Each macro also makes a test `report`, which prints what is declared and which cases are absent therefore:
//! `cargo test report -- --nocapture`.
//!
//! # What the suites cannot see
//! They drive a port from outside, on a backend that works. How an adapter settles lost answers, mends holes that a
//! backend shows it, or maps the backend's errors is for its own tests.
//!
//! # All cases as values
//! `cases()` of each port's module lists the same cases as values, for wrappers and for tests of the suites themselves.
//! For each case there is an adapter that breaks its rule and that it rejects, and each of these broken adapters fails
//! exactly the cases that are listed for it.
//!
//! [`event_store_contract!`]: crate::event_store_contract
//! [`snapshot_store_contract!`]: crate::snapshot_store_contract
//! [`message_bus_contract!`]: crate::message_bus_contract
//! [`payload_codec_contract!`]: crate::payload_codec_contract
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a case is a test: it fails by panicking"
)]

pub mod control_store;
pub mod event_store;
pub mod message_bus;
pub mod payload_codec;
mod run;
pub mod snapshot_store;
mod support;

pub use run::{Case, LIMIT, Report, run};
