#![doc = include_str!("../README.md")]

mod client;
mod config;
mod consumer;
mod error;
mod message_bus;
#[cfg(feature = "msk-iam")]
mod msk_iam;
mod producer;
mod security;
mod topic_admin;
mod worked_before;

pub use config::{GroupProtocol, KafkaConfig, KafkaConfigError};
pub use message_bus::KafkaMessageBus;
#[cfg(feature = "msk-iam")]
pub use msk_iam::MskIam;
pub use security::{Token, TokenProvider};
pub use topic_admin::{TopicOutcome, TopicSpec};
