//! Tests of the testkit itself.
mod broken_control_store;
mod broken_event_store;
mod contract;
mod matrix;
mod memory_bus;
mod memory_stores;
mod scenario;
