//! Tests of the testkit itself.
mod contract;
mod memory_bus;
mod memory_stores;
mod scenario;
