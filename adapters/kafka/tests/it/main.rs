//! The adapter on librdkafka's own mock cluster: Kafka's wire protocol without a server.
// The lint lets test functions unwrap, and their helpers in a crate that is all tests not.
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
