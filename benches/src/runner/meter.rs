//! The measurement of one run: time and processor time, from the first event to the last.
use crate::{BenchError, account::AccountEvent};
use foldstream::EventHeader;
use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// The unit of the times in `/proc/self/stat`: 100 per second on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A moment of a run.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Instant,
    cpu: f64,
}

/// Counts the events of a run, and notes when the first and the last one were handled.
#[derive(Debug)]
pub(super) struct Meter {
    events: u64,
    handled: AtomicU64,
    /// The sum of what was deposited, so that no compiler leaves out the decoding.
    sum: AtomicU64,
    first: OnceLock<Moment>,
    last: OnceLock<Moment>,
    over: CancellationToken,
}

/// The result of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopwatch {
    /// Events per second.
    pub(super) rate: f64,
    /// The processor time of this process per event, in microseconds.
    pub(super) cpu: f64,
}

impl Meter {
    pub(super) fn new(events: u64) -> Self {
        Self {
            events,
            handled: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            first: OnceLock::new(),
            last: OnceLock::new(),
            over: CancellationToken::new(),
        }
    }

    /// Takes one event.
    pub(super) fn handled(&self, header: &EventHeader, event: &AccountEvent) {
        let AccountEvent::Deposited(deposit) = event;
        let sum = deposit.amount.wrapping_add(header.version.get());
        self.sum.fetch_add(sum, Ordering::Relaxed);
        let before = self.handled.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            let _ = self.first.set(Moment::now());
        }
        if before + 1 == self.events {
            let _ = self.last.set(Moment::now());
            self.over.cancel();
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    pub(super) fn stopped(&self) -> Result<Stopwatch, BenchError> {
        let (Some(first), Some(last)) = (self.first.get(), self.last.get()) else {
            let handled = self.count();
            let text = format!("the run ended after {handled} of {} events", self.events);
            return Err(BenchError::other(text));
        };
        let events = self.events as f64;
        let took = last.at.duration_since(first.at);
        Ok(Stopwatch {
            rate: events / took.max(Duration::from_micros(1)).as_secs_f64(),
            cpu: (last.cpu - first.cpu) * 1e6 / events,
        })
    }
}

impl Moment {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            cpu: cpu().unwrap_or_default(),
        }
    }
}

/// Returns the processor time of this process in seconds. `None` where `/proc` does not have it.
pub(crate) fn cpu() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in brackets, may hold blanks.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// Returns the resident memory of this process in bytes. `None` where `/proc` does not have it.
pub(crate) fn resident() -> Option<f64> {
    memory("VmRSS:")
}

/// Returns the highest resident memory of this process so far in bytes. `None` where `/proc` does
/// not have it.
pub(crate) fn peak() -> Option<f64> {
    memory("VmHWM:")
}

fn memory(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0)
}
