//! The adapter on dynoxide, a DynamoDB within the test process: the contract suites, the stored
//! format, and the rules that only requests reveal.
// The lint exempts test functions, but not the helpers of a crate that consists of tests.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod support;
mod contract;
mod costs;
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
mod read_model;
mod deployment;
mod streams;
