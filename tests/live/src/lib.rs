//! The package of the live suites, which are in `tests/live`, and the program that they start as
//! processes of their own: `src/bin/live_worker.rs`.
//!
//! Nothing here is published. A process that cannot go on panics, and its test fails.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod accounts;
mod caller;
mod effects;
mod publishers;
mod replayer;
mod sends;
mod settings;
mod worker;

pub use accounts::{
    Account, AccountEvent, AccountId, Balance, Balances, Failures, Journal, Ledger,
    OlderAccountEvent, Statements,
};
pub use effects::{Effect, Effects};
pub use replayer::Step;
pub use sends::{RecordedBus, Sends};
pub use settings::{Role, WorkerSettings, dynamodb_config};
pub use worker::run;
