//! What a running processor shows to others.
use crate::runner::{RunnerError, machine::Machine, report::Counts};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The live state of one processor.
#[derive(Debug)]
pub(in crate::runner) struct Live {
    counts: Mutex<Counts>,
    /// The time that a shutdown may take.
    shutdown: Duration,
}

impl Live {
    pub(in crate::runner) fn new(shutdown: Duration) -> Self {
        Self {
            counts: Mutex::default(),
            shutdown,
        }
    }
    pub(super) fn stop_by(&self) -> Instant {
        Instant::now() + self.shutdown
    }
    pub(super) fn update(&self, machine: &Machine) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = machine.counts();
    }
    pub(super) fn ended(&self, _: Option<&RunnerError>) {}
}
