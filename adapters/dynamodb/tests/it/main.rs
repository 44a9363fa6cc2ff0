//! The adapter against dynoxide, a DynamoDB within the test process: contract suites, the stored format, and the rules
//! that only show on the wire.
// The lint lets test functions unwrap, and their helpers in a crate that is all tests not.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod support;
mod contract;
mod stored_form;
mod payload;
mod append;
mod atomic;
mod read;
mod split;
mod control_store;
mod errors;
mod tables;
mod publish_mode;
mod replaced;
mod requests;
mod replication;
mod repository;
mod after_restore;
