//! The state of a running processor, as others see it.
use super::{
    part::{Part, away, of_error, of_failing},
    watch::Watched,
};
use crate::{
    Clock,
    runner::{
        ErrorClass, NextGeneration, ProcessorHealth, ProcessorReport, ProcessorState, RunnerError,
        Trouble, TroubleSource,
        generations::Idle,
        health::PATIENCE,
        machine::{Failing, Snapshot, later},
        report::Counts,
    },
};
use std::{
    collections::BTreeMap,
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
    /// The state, for those who wait for a change of it.
    state: watch::Sender<ProcessorState>,
    #[cfg(feature = "metrics")]
    meter: crate::runner::metrics::Meter,
}

#[derive(Debug)]
struct Shown {
    /// The counts of earlier tasks, and of generations that have ended.
    before: Counts,
    /// The generations that run here, by their numbers.
    parts: BTreeMap<u32, Part>,
    /// The generation that serves here; `None` before it is known, and if there is none.
    serving: Option<u32>,
    /// The generation that catches up here.
    next: Option<u32>,
    /// The reason why no generation serves here.
    idle: Option<Idle>,
    state: ProcessorState,
    since: Instant,
    /// The error with which the generation that serves has ended.
    error: Option<Arc<RunnerError>>,
    /// The failures of what all generations share.
    failing: Vec<Failing>,
    /// The last sign of life.
    at: Instant,
}

impl Shown {
    const fn new(before: Counts, now: Instant) -> Self {
        Self {
            before,
            parts: BTreeMap::new(),
            serving: None,
            next: None,
            idle: None,
            state: ProcessorState::Starting,
            since: now,
            error: None,
            failing: Vec::new(),
            at: now,
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = self.before;
        for part in self.parts.values() {
            counts.add(&part.counts);
        }
        counts
    }

    fn serving(&self) -> Option<&Part> {
        self.parts.get(&self.serving?)
    }

    /// Takes the state from the generation that serves, or from the reason why there is none.
    fn settle(&mut self, now: Instant) {
        if self.state.has_ended() {
            return;
        }
        let (state, since) = match (self.serving(), &self.idle) {
            (Some(part), _) => (part.state, part.since),
            (None, idle) => {
                let away = away(self.failing.iter());
                let away = away.filter(|since| now.duration_since(*since) >= PATIENCE);
                match (away, idle) {
                    (Some(since), _) => (ProcessorState::Unreachable, since),
                    (None, Some(idle)) => (idle.state(), now),
                    (None, None) => (ProcessorState::Starting, now),
                }
            }
        };
        if self.state != state {
            (self.state, self.since) = (state, since);
        }
    }

    fn now(&self, now: Instant) -> Now {
        let next = self.next.and_then(|next| self.parts.get(&next));
        Now {
            state: self.state,
            since: self.since,
            generation: self.serving().and_then(|part| part.watched.generation),
            lag: self.serving().and_then(Part::lag),
            partitions: self.serving().map_or(0, Part::partitions),
            trouble: self.trouble(now),
            next: self.next,
            next_lag: next.and_then(Part::lag),
            next_error: next.and_then(|part| Some(part.trouble(&[], now)?.error)),
        }
    }

    fn trouble(&self, now: Instant) -> Option<Trouble> {
        if let Some(error) = &self.error {
            return Some(of_error(error, now.duration_since(self.since)));
        }
        match (self.serving(), &self.idle) {
            (Some(part), _) => part.trouble(&self.failing, now),
            (None, Some(idle)) if self.state == idle.state() => Some(Trouble {
                source: TroubleSource::Processor,
                class: ErrorClass::Permanent,
                error: idle.to_string().into(),
                stream: None,
                version: None,
                partition: None,
                attempts: 0,
                lasting: now.duration_since(self.since),
            }),
            (None, _) => {
                let oldest = self.failing.iter().min_by_key(|failing| failing.since);
                oldest.map(|failing| of_failing(failing, now))
            }
        }
    }

    fn next(&self, clock: &dyn Clock, now: Instant) -> Option<NextGeneration> {
        let generation = self.next?;
        let part = self.parts.get(&generation)?;
        Some(NextGeneration {
            generation,
            state: part.state,
            partitions: part.partitions(),
            lag: part.lag_at(clock.now()),
            trouble: part.trouble(&[], now),
        })
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
            state: watch::Sender::new(ProcessorState::Starting),
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

    pub(super) fn count(&self, generation: u32, counts: Counts) {
        if let Some(part) = self.shown().parts.get_mut(&generation) {
            part.counts = counts;
        }
    }

    /// Records the counts and the state, where metrics are wanted.
    pub(in crate::runner) fn record(&self) {
        #[cfg(feature = "metrics")]
        {
            let counts = self.shown().counts();
            self.meter.record(counts, &self.health());
        }
    }

    /// Changes what is shown, and tells those who wait for another state.
    fn change<T>(&self, change: impl FnOnce(&mut Shown, Instant) -> T) -> T {
        let now = Instant::now();
        let mut shown = self.shown();
        let changed = change(&mut shown, now);
        shown.settle(now);
        let state = shown.state;
        drop(shown);
        self.state
            .send_if_modified(|told| std::mem::replace(told, state) != state);
        changed
    }

    /// Shows the state of a generation. Returns the number of its partitions, and their lag.
    pub(super) fn show(
        &self,
        generation: u32,
        snapshot: Snapshot,
        watched: Watched,
    ) -> (u32, Option<u64>) {
        self.change(|shown, now| {
            if shown.serving == Some(generation) {
                shown.at = now;
            }
            let Some(part) = shown.parts.get_mut(&generation) else {
                return (0, None);
            };
            part.snapshot = snapshot;
            part.watched = watched;
            let (state, since) = part.next_state(&shown.failing, now);
            part.set(state, since);
            (part.partitions(), part.lag())
        })
    }

    /// Shows which generations run here, or why none serves.
    pub(in crate::runner) fn serve(
        &self,
        serving: Option<u32>,
        next: Option<u32>,
        idle: Option<Idle>,
    ) {
        self.change(|shown, now| {
            if shown.serving != serving {
                // The silence of a generation that served before says nothing about this one.
                shown.at = now;
            }
            (shown.serving, shown.next, shown.idle) = (serving, next, idle);
        });
    }

    /// Notes that a generation starts here.
    pub(in crate::runner) fn begins(&self, generation: u32) {
        self.change(|shown, now| {
            if let Some(before) = shown.parts.insert(generation, Part::new(now)) {
                shown.before.add(&before.counts);
            }
        });
    }

    /// Notes that a generation has ended here because it was told to.
    pub(in crate::runner) fn left(&self, generation: u32) {
        self.change(|shown, _| {
            if let Some(part) = shown.parts.remove(&generation) {
                shown.before.add(&part.counts);
            }
        });
    }

    /// Notes that a generation beside the one that serves has halted.
    pub(in crate::runner) fn halted_beside(&self, generation: u32, error: RunnerError) {
        self.change(|shown, now| {
            if let Some(part) = shown.parts.get_mut(&generation) {
                part.end(Some(Arc::new(error)), now);
            }
        });
    }

    /// Notes that the generation that serves has halted.
    pub(in crate::runner) fn halted(&self, error: RunnerError) {
        self.change(|shown, now| shown.end(Err(error), now));
        self.record();
    }

    /// Notes that another generation serves in place of one that had halted.
    pub(in crate::runner) fn revived(&self) {
        self.change(|shown, now| {
            if shown.state.has_ended() {
                shown.error = None;
                (shown.state, shown.since) = (ProcessorState::Starting, now);
            }
        });
    }

    /// Notes whether the processor has ended in this task.
    pub(in crate::runner) fn set_over(&self, is_over: bool) {
        self.has_ended
            .send_if_modified(|has_ended| std::mem::replace(has_ended, is_over) != is_over);
    }

    /// Shows the failures of what all generations share, and a sign of life while none serves.
    pub(in crate::runner) fn show_shared(&self, failing: Vec<Failing>) {
        self.change(|shown, now| {
            shown.failing = failing;
            if shown.serving().is_none_or(|part| part.state.has_ended()) {
                shown.at = now;
            }
        });
    }

    /// Returns what the row of the instance tells.
    pub(in crate::runner) fn now(&self, now: Instant) -> Now {
        self.shown().now(now)
    }

    /// Returns a receiver that is told of each other state.
    pub(in crate::runner) fn states(&self) -> watch::Receiver<ProcessorState> {
        self.state.subscribe()
    }

    /// Notes the end of the processor. Only the first end of a task counts.
    pub(in crate::runner) fn ended(&self, result: Result<(), RunnerError>) {
        if self.has_ended() {
            return;
        }
        self.change(|shown, now| {
            if !shown.state.has_ended() {
                shown.end(result, now);
            }
        });
        self.set_over(true);
        self.record();
    }

    /// Notes that nobody looks any more.
    pub(in crate::runner) fn dismiss(&self) {
        self.has_ended.send_replace(true);
    }

    /// Starts again after a halt. Returns false if no generation has halted.
    pub(in crate::runner) fn restarted(&self) -> bool {
        self.change(|shown, now| {
            let mut parts = shown.parts.values();
            let may = shown.state == ProcessorState::Halted
                || parts.any(|part| part.state == ProcessorState::Halted);
            if may {
                *shown = Shown::new(shown.counts(), now);
                self.set_over(false);
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
        let (counts, none) = (shown.counts(), Part::new(now));
        let part = shown.serving().unwrap_or(&none);
        let snapshot = &part.snapshot;
        let silent = if shown.state.has_ended() {
            Duration::ZERO
        } else {
            now.duration_since(shown.at)
        };
        ProcessorHealth {
            lasting: now.duration_since(shown.since),
            trouble: shown.trouble(now),
            generation: part.watched.generation,
            next: shown.next(&*self.clock, now),
            partitions: part.partitions(),
            lag: part.lag_at(self.clock.now()),
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

impl Shown {
    fn end(&mut self, result: Result<(), RunnerError>, now: Instant) {
        let error = result.err().map(Arc::new);
        let state = if error.is_some() {
            ProcessorState::Halted
        } else {
            ProcessorState::Stopped
        };
        (self.state, self.since) = (state, now);
        let serving = self
            .serving
            .and_then(|serving| self.parts.get_mut(&serving));
        if let Some(part) = serving {
            part.end(error.clone(), now);
        }
        self.error = error;
    }
}

/// The part of the shown state that the row of the instance tells.
#[derive(Debug)]
pub(in crate::runner) struct Now {
    pub(in crate::runner) state: ProcessorState,
    pub(in crate::runner) since: Instant,
    /// The generation that serves here, once its group is joined.
    pub(in crate::runner) generation: Option<u32>,
    pub(in crate::runner) lag: Option<u64>,
    pub(in crate::runner) partitions: u32,
    pub(in crate::runner) trouble: Option<Trouble>,
    /// The generation that catches up here.
    pub(in crate::runner) next: Option<u32>,
    pub(in crate::runner) next_lag: Option<u64>,
    pub(in crate::runner) next_error: Option<Arc<str>>,
}
