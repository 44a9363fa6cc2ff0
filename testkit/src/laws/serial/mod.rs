//! Several writers against one event store: the answers that they get must have a serial
//! explanation.
//!
//! A store keeps its contract only if every operation took effect at one moment between its call
//! and its answer, in some order. [`Recorder`] wraps a store and records every call with its
//! answer, and [`check`] searches for the order. [`SerialLaws`] makes up the writers: in one
//! thread, where a drawn schedule says who continues at each step, or in real threads.
//!
//! The order is derived and not guessed. An append says after which commit it is, a conflict says
//! that something was there already, and a read says how many commits there were. An operation that
//! was answered before another was called comes first. If these constraints form a cycle, there is
//! no order. (Versions make this possible in linear time, unlike for a plain register.)
mod explain;
mod record;
mod run;

pub use explain::{Unexplained, check};
pub use record::{Log, Operation, Outcome, Recorder};
pub use run::SerialLaws;
