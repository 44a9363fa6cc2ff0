//! The rules of circuit breakers around futures.
mod local;
