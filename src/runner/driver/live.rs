//! The state of a running processor, as others see it.
use super::watch::Watched;
use crate::{
    Clock,
    runner::{
        Lag, ProcessorHealth, ProcessorReport, ProcessorState, RunnerError, Trouble, TroubleSource,
        health::PATIENCE,
        machine::{Failing, Noted, Snapshot, later},
        report::Counts,
    },
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// The live state of one processor. It outlives the tasks of the processor, of which there is a new
/// one after each restart.
#[derive(Debug)]
pub(in crate::runner) struct Live {
    name: Arc<str>,
    clock: Arc<dyn Clock>,
    /// The time that a shutdown may take.
    shutdown: Duration,
    shown: Mutex<Shown>,
    has_ended: watch::Sender<bool>,
    #[cfg(feature = "metrics")]
    meter: crate::runner::metrics::Meter,
}

#[derive(Debug)]
struct Shown {
    /// The counts of earlier tasks.
    before: Counts,
    counts: Counts,
    state: ProcessorState,
    since: Instant,
    /// The error with which the last task has ended.
    error: Option<Arc<RunnerError>>,
    snapshot: Snapshot,
    watched: Watched,
    /// The last sign of life.
    at: Instant,
}

impl Shown {
    fn new(before: Counts, now: Instant) -> Self {
        Self {
            before,
            counts: Counts::default(),
            state: ProcessorState::Starting,
            since: now,
            error: None,
            snapshot: Snapshot::default(),
            watched: Watched::default(),
            at: now,
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = self.before;
        counts.add(&self.counts);
        counts
    }

    fn set(&mut self, state: ProcessorState, since: Instant) {
        if self.state != state {
            (self.state, self.since) = (state, since);
        }
    }

    /// Returns the failures of the bus, of stores and of the read model.
    fn failing(&self) -> impl Iterator<Item = &Failing> {
        self.snapshot.failing.iter().chain(&self.watched.failing)
    }

    fn next_state(&self, now: Instant) -> (ProcessorState, Instant) {
        let is_backend = |failing: &&Failing| {
            let source = failing.noted.source;
            matches!(source, TroubleSource::Bus | TroubleSource::ControlStore)
        };
        let away = self.failing().filter(is_backend).map(|f| f.since).min();
        let snapshot = &self.snapshot;
        match (away, snapshot.held_since) {
            _ if snapshot.is_ending => (ProcessorState::Stopping, now),
            (Some(since), _) if now.duration_since(since) >= PATIENCE => {
                (ProcessorState::Unreachable, since)
            }
            _ if snapshot.is_paused => (ProcessorState::Paused, now),
            (_, Some(since)) => (ProcessorState::Held, since),
            // A partition that comes later does not make the processor start again.
            _ if snapshot.is_serving || self.has_run() => (ProcessorState::Running, now),
            _ => (ProcessorState::Starting, now),
        }
    }

    fn now(&self, now: Instant) -> Now {
        Now {
            state: self.state,
            since: self.since,
            lag: lag(self),
            partitions: partitions(self),
            trouble: self.trouble(now),
        }
    }

    const fn has_run(&self) -> bool {
        !matches!(
            self.state,
            ProcessorState::Starting | ProcessorState::Unreachable
        )
    }

    fn trouble(&self, now: Instant) -> Option<Trouble> {
        if let Some(error) = &self.error {
            return Some(of_error(error, now.duration_since(self.since)));
        }
        let steps = self.failing().min_by_key(|failing| failing.since);
        let oldest = match (steps, &self.snapshot.oldest_retry) {
            // What explains the state comes first.
            (Some(step), _) if self.state == ProcessorState::Unreachable => Some(step),
            (Some(step), Some(retry)) if retry.since < step.since => Some(retry),
            (step, retry) => step.or(retry.as_ref()),
        };
        oldest.map(|failing| of_failing(failing, now))
    }
}

fn of_failing(failing: &Failing, now: Instant) -> Trouble {
    let Noted {
        source,
        class,
        error,
        stream,
    } = failing.noted.clone();
    Trouble {
        source,
        class,
        error,
        stream,
        version: failing.version,
        partition: failing.partition.clone(),
        attempts: failing.attempts,
        lasting: now.duration_since(failing.since),
    }
}

fn of_error(error: &RunnerError, lasting: Duration) -> Trouble {
    let source = match error {
        RunnerError::Halted { .. } => TroubleSource::Handler,
        RunnerError::Flush { .. } | RunnerError::Prepare { .. } => TroubleSource::ReadModel,
        RunnerError::Bus { .. } | RunnerError::Unreadable { .. } => TroubleSource::Bus,
        RunnerError::Control { .. } => TroubleSource::ControlStore,
        _ => TroubleSource::Processor,
    };
    let (stream, version) = error.event().unzip();
    Trouble {
        source,
        class: error.class(),
        error: crate::chain(error).into(),
        stream: stream.cloned(),
        version,
        partition: error.partition().cloned(),
        attempts: match error {
            RunnerError::Halted { attempts, .. } => *attempts,
            _ => 0,
        },
        lasting,
    }
}

impl Live {
    pub(in crate::runner) fn new(
        name: Arc<str>,
        clock: Arc<dyn Clock>,
        shutdown: Duration,
    ) -> Self {
        Self {
            name,
            clock,
            shutdown,
            shown: Mutex::new(Shown::new(Counts::default(), Instant::now())),
            has_ended: watch::Sender::new(false),
            #[cfg(feature = "metrics")]
            meter: crate::runner::metrics::Meter::default(),
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop_by(&self) -> Instant {
        later(Instant::now(), self.shutdown)
    }

    pub(super) fn count(&self, counts: Counts) {
        self.shown().counts = counts;
    }

    /// Records the counts and the state, where metrics are wanted.
    pub(super) fn record(&self) {
        #[cfg(feature = "metrics")]
        {
            let counts = self.shown().counts();
            self.meter.record(counts, &self.health());
        }
    }

    /// Shows the state of the processor, and returns it.
    pub(super) fn show(&self, snapshot: Snapshot, watched: Watched, now: Instant) -> Now {
        let mut shown = self.shown();
        shown.snapshot = snapshot;
        shown.watched = watched;
        shown.at = now;
        let (state, since) = shown.next_state(now);
        shown.set(state, since);
        shown.now(now)
    }

    /// Returns what is shown now.
    pub(super) fn now(&self, now: Instant) -> Now {
        self.shown().now(now)
    }

    /// Notes the end of the processor. Only the first end of a task counts.
    pub(in crate::runner) fn ended(&self, result: Result<(), RunnerError>) {
        let now = Instant::now();
        self.has_ended.send_if_modified(|has_ended| {
            if *has_ended {
                return false;
            }
            let mut shown = self.shown();
            shown.snapshot = Snapshot::default();
            shown.watched.failing.clear();
            shown.set(
                if result.is_ok() {
                    ProcessorState::Stopped
                } else {
                    ProcessorState::Halted
                },
                now,
            );
            shown.error = result.err().map(Arc::new);
            *has_ended = true;
            true
        });
        self.record();
    }

    /// Notes that nobody looks any more.
    pub(in crate::runner) fn dismiss(&self) {
        self.has_ended.send_replace(true);
    }

    /// Starts again after an end. Returns false if the processor has not halted.
    pub(in crate::runner) fn restarted(&self) -> bool {
        self.has_ended.send_if_modified(|has_ended| {
            let mut shown = self.shown();
            let may = *has_ended && shown.state == ProcessorState::Halted;
            if may {
                *shown = Shown::new(shown.counts(), Instant::now());
                *has_ended = false;
            }
            may
        })
    }

    pub(in crate::runner) fn has_ended(&self) -> bool {
        *self.has_ended.borrow()
    }

    /// Waits until the processor has ended.
    pub(in crate::runner) async fn wait(&self) {
        let mut has_ended = self.has_ended.subscribe();
        // The sender lives as long as `self`, so there is no error.
        let _ = has_ended.wait_for(|has_ended| *has_ended).await;
    }

    pub(in crate::runner) fn report(&self) -> ProcessorReport {
        let shown = self.shown();
        ProcessorReport::new(self.name.clone(), shown.counts(), shown.error.clone())
    }

    pub(in crate::runner) fn health(&self) -> ProcessorHealth {
        let (shown, now) = (self.shown(), Instant::now());
        let (counts, snapshot) = (shown.counts(), &shown.snapshot);
        let records = lag(&shown);
        let time = match records {
            Some(0) => Some(Duration::ZERO),
            _ => snapshot.oldest_event.map(|at| self.clock.now().since(at)),
        };
        let has_ended = shown.state.has_ended();
        let silent = if has_ended {
            Duration::ZERO
        } else {
            now.duration_since(shown.at)
        };
        ProcessorHealth {
            lasting: now.duration_since(shown.since),
            trouble: shown.trouble(now),
            generation: shown.watched.generation,
            partitions: partitions(&shown),
            lag: Lag {
                records,
                time: if has_ended { None } else { time },
            },
            in_flight: snapshot.in_flight,
            stuck: snapshot.stuck,
            held_records: snapshot.held_records,
            held_bytes: snapshot.held_bytes,
            waiting_lanes: snapshot.waiting_lanes,
            oldest_retry: (snapshot.oldest_retry.as_ref()).map(|retry| of_failing(retry, now)),
            retries: counts.retries,
            unreadable: counts.unreadable,
            parked: snapshot.parked,
            dead_letters: snapshot.dead_letters,
            dead_letters_not_sent: counts.letters_not_sent,
            breaker: snapshot.breaker,
            silent,
            ..ProcessorHealth::new(self.name.clone(), shown.state)
        }
    }
}

/// The part of the shown state that the driver itself needs.
#[derive(Debug)]
pub(super) struct Now {
    pub(super) state: ProcessorState,
    pub(super) since: Instant,
    pub(super) lag: Option<u64>,
    pub(super) partitions: u32,
    pub(super) trouble: Option<Trouble>,
}

fn partitions(shown: &Shown) -> u32 {
    u32::try_from(shown.snapshot.low.len()).unwrap_or(u32::MAX)
}

/// Returns the number of offsets up to the ends of the partitions that are owned.
fn lag(shown: &Shown) -> Option<u64> {
    if shown.state.has_ended() || shown.watched.generation.is_none() {
        return None;
    }
    let low = shown.snapshot.low.iter();
    let lags = low.map(|(partition, low)| {
        let end = shown.watched.ends.get(partition)?;
        Some(end.get().saturating_sub(low.get()))
    });
    lags.sum()
}
