//! The state of one generation of a running processor, as others see it.
use super::watch::Watched;
use crate::runner::{
    Lag, ProcessorState, RunnerError, Trouble, TroubleSource,
    health::PATIENCE,
    machine::{Failing, Noted, Snapshot},
    report::Counts,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The state of one generation.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) counts: Counts,
    pub(super) state: ProcessorState,
    pub(super) since: Instant,
    /// The error with which the generation has ended.
    pub(super) error: Option<Arc<RunnerError>>,
    pub(super) snapshot: Snapshot,
    pub(super) watched: Watched,
}

impl Part {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            counts: Counts::default(),
            state: ProcessorState::Starting,
            since: now,
            error: None,
            snapshot: Snapshot::default(),
            watched: Watched::default(),
        }
    }

    pub(super) fn set(&mut self, state: ProcessorState, since: Instant) {
        if self.state != state {
            (self.state, self.since) = (state, since);
        }
    }

    /// Keeps only what is shown of a generation that has ended.
    pub(super) fn end(&mut self, error: Option<Arc<RunnerError>>, now: Instant) {
        self.snapshot = Snapshot::default();
        self.watched.failing.clear();
        self.set(
            if error.is_some() {
                ProcessorState::Halted
            } else {
                ProcessorState::Stopped
            },
            now,
        );
        self.error = error;
    }

    /// Returns the failures of the bus, of stores and of the read model.
    pub(super) fn failing(&self) -> impl Iterator<Item = &Failing> {
        self.snapshot.failing.iter().chain(&self.watched.failing)
    }

    pub(super) fn next_state(&self, shared: &[Failing], now: Instant) -> (ProcessorState, Instant) {
        let away = away(self.failing().chain(shared));
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

    const fn has_run(&self) -> bool {
        !matches!(
            self.state,
            ProcessorState::Starting | ProcessorState::Unreachable
        )
    }

    pub(super) fn trouble(&self, shared: &[Failing], now: Instant) -> Option<Trouble> {
        if let Some(error) = &self.error {
            return Some(of_error(error, now.duration_since(self.since)));
        }
        let steps = self.failing().chain(shared);
        let steps = steps.min_by_key(|failing| failing.since);
        let oldest = match (steps, &self.snapshot.oldest_retry) {
            // What explains the state comes first.
            (Some(step), _) if self.state == ProcessorState::Unreachable => Some(step),
            (Some(step), Some(retry)) if retry.since < step.since => Some(retry),
            (step, retry) => step.or(retry.as_ref()),
        };
        oldest.map(|failing| of_failing(failing, now))
    }

    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.snapshot.low.len()).unwrap_or(u32::MAX)
    }

    /// Returns the number of offsets up to the ends of the partitions that are owned.
    pub(super) fn lag(&self) -> Option<u64> {
        if self.state.has_ended() || self.watched.generation.is_none() {
            return None;
        }
        let low = self.snapshot.low.iter();
        let lags = low.map(|(partition, low)| {
            let end = self.watched.ends.get(partition)?;
            Some(end.get().saturating_sub(low.get()))
        });
        lags.sum()
    }

    pub(super) fn lag_at(&self, now: crate::Timestamp) -> Lag {
        let records = self.lag();
        let time = match records {
            Some(0) => Some(Duration::ZERO),
            _ => self.snapshot.oldest_event.map(|at| now.since(at)),
        };
        Lag {
            records,
            time: if self.state.has_ended() { None } else { time },
        }
    }
}

/// Returns the time since which the bus or the control store is away.
pub(super) fn away<'a>(failing: impl Iterator<Item = &'a Failing>) -> Option<Instant> {
    let is_backend = |failing: &&Failing| {
        let source = failing.noted.source;
        matches!(source, TroubleSource::Bus | TroubleSource::ControlStore)
    };
    failing.filter(is_backend).map(|f| f.since).min()
}

pub(super) fn of_failing(failing: &Failing, now: Instant) -> Trouble {
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

pub(super) fn of_error(error: &RunnerError, lasting: Duration) -> Trouble {
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
