//! Integration tests of the core on the in-memory adapters.
mod repository;
mod runner;
mod support;
