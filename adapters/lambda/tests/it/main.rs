//! The handler on stores and a bus in memory.
// The lint exempts test functions, but not the helpers of a crate that consists of tests.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod batches;
mod deadlines;
mod freezes;
mod logs;
mod sweeps;
mod world;
