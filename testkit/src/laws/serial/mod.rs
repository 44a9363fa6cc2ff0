//! Several writers against one event store: what they were told must have a serial explanation.
//!
//! Every operation was one moment between its call and its answer, in some order, or the store is not what its contract
//! says. [`Recorder`] wraps a store and writes down who was told what; [`check`] looks for the order. [`SerialLaws`] makes
//! up the writers: in one thread, where a drawn schedule says who goes on at each step, or in true threads.
//!
//! The order is found, not guessed: an append says after which commit it is, a conflict that something was there
//! already, a read how many commits there were, and an answer that came before a call comes first. If these together
//! run in a circle, there is no order. (Versions make this possible in linear time; for a plain register it is not.)
mod explain;
mod record;
mod run;

pub use explain::{Unexplained, check};
pub use record::{Log, Operation, Outcome, Recorder};
pub use run::SerialLaws;
