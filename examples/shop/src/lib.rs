#![doc = include_str!("../README.md")]

pub mod money;
pub mod cart;
pub mod import;
pub mod generate;
pub mod read_model;
pub mod projector;
pub mod listener;
pub mod report;
pub mod backend;
pub mod road;
pub mod story;
pub mod tally;
pub mod progress;
pub mod shutdown;
