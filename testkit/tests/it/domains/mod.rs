//! The sample domains: their rules as scenarios, and their laws.
mod account;
mod cart;
mod loan;
