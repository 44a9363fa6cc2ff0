//! The generations of a processor in this process: the one that serves, and the one that a replay
//! has built and that catches up beside it.
//!
//! ```text
//! row inst -> row proc -> plan: which generations run here
//!                      -> a driver for each, with a consumer group of its own
//! catch up: the next generation has committed up to the ends of the scan
//!           -> row run: switched -> row proc: it serves -> the driver of the old one stops
//! later:    nobody runs the old one -> its model, rows and group are deleted
//! ```
//! [`plan`](plan::plan) and [`next_step`](switch::next_step) decide, and await nothing. The
//! [`Supervisor`] reads the rows, and does what they say.
//!
//! # Why is the row of the instance written before the row `proc` is read?
//! A replay in place first writes that the generation must stop, and then counts the rows of
//! instances. An instance that it does not find has not written its row yet, and reads the row
//! `proc` only afterwards: it finds that it must not start.
mod instance;
mod jobs;
mod plan;
mod retire;
mod steps;
mod supervisor;
mod switch;

pub(super) use self::{instance::Lease, plan::Idle, supervisor::Supervisor};
