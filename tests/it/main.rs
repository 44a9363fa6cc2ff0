//! Integration tests of the core on the in-memory adapters.
mod publisher;
mod repository;
mod support;
mod wire;
