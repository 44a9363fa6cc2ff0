//! Integration tests of the core on the in-memory adapters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
mod adapter;
mod breaker;
mod commit_bytes;
mod control;
mod derive;
mod interop;
mod large_rows;
mod leases;
mod operate;
mod payload;
mod ports;
mod publisher;
mod recorder;
mod repository;
mod replay;
mod restore;
mod runner;
mod seeds;
mod support;
mod upcasters;
mod wire;
