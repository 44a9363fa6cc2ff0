//! The core's tests that need more than the core: in-memory adapters and generated data.
mod wire;
