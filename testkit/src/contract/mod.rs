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
//! # What an adapter declares
//! Rules that only hold for some adapters are in groups. A group that is not declared generates no test, so nothing
//! passes without having run; for [`event_store_contract!`](crate::event_store_contract) a case checks that the
//! declared groups are what [`capabilities`](foldstream::ports::EventStore::capabilities) says.
//!
//! # Trying all cases from a program
//! `cases()` of each port's module lists the same cases as values, for wrappers and for tests of the suite itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a case is a test: it fails by panicking"
)]

pub mod control_store;
pub mod event_store;
pub mod message_bus;
mod run;
pub mod snapshot_store;
mod support;

pub use run::{Case, LIMIT, run};
