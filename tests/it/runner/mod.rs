//! Rules of the runner, on the in-memory bus with paused time.
mod breaker;
mod crash;
mod delivery;
mod failure;
mod fleet;
mod flush;
mod group;
mod handle;
mod harness;
mod health;
mod parked;
mod payload;
mod shutdown;
mod start;
mod telemetry;
mod upcasters;
mod topics;
