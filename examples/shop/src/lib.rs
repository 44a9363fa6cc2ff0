#![doc = include_str!("../README.md")]

pub mod money;
pub mod cart;
pub mod payment;
pub mod provider;
pub mod saga;
pub mod schema;
pub mod import;
pub mod generate;
pub mod read_model;
pub mod memory_rows;
pub mod projector;
pub mod hot_products;
pub mod listener;
pub mod report;
pub mod backend;
pub mod pipeline;
pub mod operator;
pub mod story;
pub mod chaos;

pub mod tally;
pub mod progress;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "production")]
pub mod production;
