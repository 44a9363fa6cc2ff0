//! The tests of the testkit itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail as tests do"
)]

mod broken_control_store;
mod broken_event_store;
mod broken_message_bus;
mod broken_payload_codec;
mod broken_snapshot_store;
mod contract;
mod embedded;
mod faults;
mod intercept;
mod domains;
mod laws;
mod matrix;
mod member;
mod memory_bus;
mod memory_control_store;
mod memory_event_store;
mod memory_limits;
mod memory_metadata;
mod memory_topics;
mod scenario;
mod schema;
mod upcasters;
