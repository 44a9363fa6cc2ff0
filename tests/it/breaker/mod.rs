//! The rules of circuit breakers around futures.
mod distributed;
mod local;
