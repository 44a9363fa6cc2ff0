#![doc = include_str!("../README.md")]

mod client;
mod config;
mod consumer;
mod error;
mod message_bus;
mod producer;
mod topic_admin;
mod worked_before;

pub use config::{GroupProtocol, KafkaConfig, KafkaConfigError};
pub use message_bus::KafkaMessageBus;
pub use topic_admin::{TopicOutcome, TopicSpec};
