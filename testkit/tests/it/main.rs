//! Tests of the testkit itself.
mod contract;
