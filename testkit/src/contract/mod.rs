//! Contract suites of the ports: every rule of a port's documentation as one named test, for every
//! adapter.
//!
//! A case is a public async function over the port, and its documentation is the rule. An adapter's
//! tests call the macro of the port, which generates one `#[test]` per case, named after the rule.
//! Each test builds its own multi-thread runtime, asks for a fresh port and fails after [`LIMIT`]
//! with the rule's name. Cases use fresh names for their streams, partitions, topics and groups, so
//! they run in parallel against one shared server.
//!
//! Create clients inside the function that returns the port and not in a `static`, because a
//! connection pool dies with the runtime in which it was created.
//!
//! # Use
//! A test file of the adapter has one module per port:
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
//! Then `cargo test` shows `event_store::stale_head_is_a_conflict` and so on.
//! [`snapshot_store_contract!`] is used in the same way. [`message_bus_contract!`] asks for a
//! [`BusFixture`](message_bus::BusFixture), which also creates topics. [`payload_codec_contract!`]
//! is for the authors of a [`PayloadCodec`](foldstream::PayloadCodec).
//!
//! # What an adapter declares
//! Rules that hold only for some adapters are in groups, declared by `with`. A group that is not
//! declared generates no test, so no test passes without having run. For [`event_store_contract!`],
//! a case checks that the declared groups agree with
//! [`capabilities`](foldstream::ports::EventStore::capabilities).
//!
//! Each macro also generates a test `report`, which prints the declared groups and the cases that
//! are absent for that reason: `cargo test report -- --nocapture`.
//!
//! # What the suites cannot see
//! The suites drive a port from outside, on a backend that works. How an adapter settles lost
//! answers, repairs holes that its backend shows, or maps the backend's errors is a matter for the
//! adapter's own tests.
//!
//! # All cases as values
//! `cases()` of each port's module lists the same cases as values, for wrappers and for tests of
//! the suites themselves. For each case, the testkit's own tests have an adapter that breaks the
//! rule. Each of these broken adapters fails exactly the cases that are listed for it.
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
