//! The adapter on librdkafka's own mock cluster: Kafka's wire protocol without a server.
mod config;
mod contract;
mod failures;
mod groups;
mod mock;
mod publish;
