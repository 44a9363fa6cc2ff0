#![doc = include_str!("../README.md")]

pub mod cart;
pub mod generate;
pub mod import;
pub mod money;
pub mod read_model;
pub mod report;
pub mod tally;
