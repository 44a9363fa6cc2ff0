//! The adapter on librdkafka's own mock cluster: Kafka's wire protocol without a server.
// The lint exempts test functions, but not the helpers of a crate that consists of tests.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod config;
mod contract;
mod damaged;
mod failures;
mod groups;
mod mock;
mod outages;
mod proxy;
mod publish;
mod recreated;
mod wiring;
