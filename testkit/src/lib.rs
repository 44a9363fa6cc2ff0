//! Placeholder.

#[cfg(feature = "containers")]
pub mod containers;
