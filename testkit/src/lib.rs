#![doc = include_str!("../README.md")]

#[cfg(feature = "containers")]
pub mod containers;
