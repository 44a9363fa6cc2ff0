//! Live suites: the contract suites and the end-to-end tests on Apache Kafka and DynamoDB Local.
//!
//! Every test is ignored by default, since it needs Docker or running servers: see CONTRIBUTING.md.
// The lint exempts test functions, but not the helpers of a crate that consists of tests.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod containers;
mod costs;
mod dead_letters;
mod dynamodb;
mod kafka;
mod kafka_proxy;
mod kafka_groups;
mod kafka_topics;
mod lambda;
mod processes;
mod proxy;
mod read_models;
#[cfg(feature = "tls")]
mod security;
mod shop;
mod streams;
