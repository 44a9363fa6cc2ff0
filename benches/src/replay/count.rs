//! The handler of both sides, and the result of a run.
use crate::{BenchError, account::AccountEvent, runner::cpu};
use foldstream::EventHeader;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Counts the events of a run.
#[derive(Debug, Default)]
pub(super) struct Count {
    events: AtomicU64,
    /// The sum of what was deposited and of the versions, so that no compiler leaves out the
    /// decoding.
    sum: AtomicU64,
}

impl Count {
    /// Takes one event.
    pub(super) fn handled(&self, header: &EventHeader, event: &AccountEvent) {
        let AccountEvent::Deposited(deposit) = event;
        let sum = deposit.amount.wrapping_add(header.version.get());
        self.sum.fetch_add(sum, Ordering::Relaxed);
        self.events.fetch_add(1, Ordering::Relaxed);
    }
}

/// The start of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Began {
    at: Instant,
    cpu: f64,
}

impl Began {
    pub(super) fn now() -> Result<Self, BenchError> {
        let at = Instant::now();
        Ok(Self {
            at,
            cpu: processor_time()?,
        })
    }

    /// Returns the result of the run, which ends now.
    pub(super) fn end(self, count: &Count, read_units: f64) -> Result<Scanned, BenchError> {
        Ok(Scanned {
            took: self.at.elapsed(),
            cpu: processor_time()? - self.cpu,
            events: count.events.load(Ordering::Relaxed),
            sum: count.sum.load(Ordering::Relaxed),
            read_units,
        })
    }
}

/// The result of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scanned {
    took: Duration,
    /// The processor time of this process in seconds.
    cpu: f64,
    pub(super) events: u64,
    pub(super) sum: u64,
    /// The read units of the scan, as the side tells them.
    pub(super) read_units: f64,
}

impl Scanned {
    /// Returns the events per second.
    pub(super) fn rate(&self) -> f64 {
        self.events as f64 / self.took.max(Duration::from_micros(1)).as_secs_f64()
    }

    /// Returns the processor time per event, in microseconds.
    pub(super) fn cpu_per_event(&self) -> f64 {
        self.cpu * 1e6 / self.events.max(1) as f64
    }
}

fn processor_time() -> Result<f64, BenchError> {
    cpu().ok_or_else(|| BenchError::other("/proc does not tell the processor time of this process"))
}
