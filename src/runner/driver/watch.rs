//! Questions for those who look at the processor: the ends of its partitions. Nothing of it decides
//! what is handled.
use super::{Done, Driver};
use crate::{
    ports::MessageBusError,
    runner::machine::{Ends, Failing, Input, Noted, later},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The time between two signs of life.
const TICK: Duration = Duration::from_secs(1);
/// The least time between two looks at the machine, whose cost grows with partitions and lanes.
const LOOK: Duration = Duration::from_millis(100);
/// The time that a question of this file may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The answers that were found beside the machine.
#[derive(Clone, Debug, Default)]
pub(in crate::runner) struct Watched {
    /// The generation that the processor serves.
    pub(super) generation: Option<u32>,
    /// The ends of the partitions of all topics, as of the last answer.
    pub(super) ends: Arc<Ends>,
    /// The failures of the questions themselves.
    pub(super) failing: Vec<Failing>,
}

/// The answer to a question.
pub(super) enum Answer {
    Ends(Result<Ends, MessageBusError>),
}

/// The state of the questions.
#[derive(Debug)]
pub(super) struct Watch {
    ends: Question<Arc<Ends>>,
    generation: Option<u32>,
    /// The last look at the machine.
    looked_at: Option<Instant>,
    /// Something has happened since.
    is_new: bool,
    /// The processor has caught up with its partitions since they were assigned.
    is_caught_up: bool,
}

/// A question that is asked again and again.
#[derive(Debug)]
struct Question<T> {
    answer: T,
    is_asked: bool,
    /// When it is asked next.
    at: Instant,
    failing: Option<Failing>,
}

impl<T> Question<T> {
    fn answered(&mut self, answer: Result<T, Noted>, now: Instant) {
        self.is_asked = false;
        match answer {
            Ok(answer) => {
                self.answer = answer;
                self.failing = None;
            }
            Err(noted) => {
                let since = self.failing.as_ref().map_or(now, |failing| failing.since);
                self.failing = Some(Failing::step(noted, since));
            }
        }
    }
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            ends: Question {
                answer: Arc::default(),
                is_asked: false,
                at: now,
                failing: None,
            },
            generation: None,
            looked_at: None,
            is_new: true,
            is_caught_up: false,
        }
    }

    /// Notes the generation that was joined.
    pub(super) const fn joined(&mut self, generation: u32) {
        self.generation = Some(generation);
    }

    /// Notes that partitions have come.
    pub(super) const fn assigned(&mut self, now: Instant) {
        self.is_caught_up = false;
        self.ends.at = now;
    }

    fn watched(&self) -> Watched {
        Watched {
            generation: self.generation,
            ends: self.ends.answer.clone(),
            failing: self.ends.failing.iter().cloned().collect(),
        }
    }

    /// Returns when [`Driver::watch`] is due at the latest.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let after = if self.is_new { LOOK } else { TICK };
        Some(self.looked_at? + after)
    }
}

impl Driver {
    /// Shows the state of the processor if it is time to, and asks what is due.
    pub(super) fn watch(&mut self, now: Instant) {
        let generation = self.settings.generation;
        self.live.count(generation, self.machine.counts());
        if (self.watch.looked_at).is_some_and(|at| now.duration_since(at) < LOOK) {
            self.watch.is_new = true;
            return;
        }
        self.watch.looked_at = Some(now);
        self.watch.is_new = false;
        for (id, running) in &mut self.attempts {
            let steps = running.signals.steps();
            if steps != running.steps {
                running.steps = steps;
                self.machine.take(Input::Advanced(*id), now);
            }
        }
        let snapshot = self.machine.snapshot(now);
        let watched = self.watch.watched();
        let (partitions, lag) = self.live.show(generation, snapshot, watched);
        self.live.record();
        self.tell_if_caught_up(partitions, lag);
        self.ask_ends(now);
    }

    fn tell_if_caught_up(&mut self, partitions: u32, lag: Option<u64>) {
        if partitions > 0 && lag == Some(0) && !self.watch.is_caught_up {
            self.watch.is_caught_up = true;
            let generation = self.settings.generation;
            tracing::info!(processor = %self.settings.rules.name, generation, partitions, "the processor has caught up");
        }
    }

    fn ask_ends(&mut self, now: Instant) {
        let ends = &mut self.watch.ends;
        if self.membership.is_none() || ends.is_asked || ends.at > now {
            return;
        }
        ends.is_asked = true;
        ends.at = later(now, self.settings.lag_interval);
        let settings = self.settings.clone();
        self.jobs.spawn(async move {
            let asked = tokio::time::timeout(TIMEOUT, settings.ends_of_topics());
            let answer = asked.await.unwrap_or_else(|_| {
                let source = format!("no answer within {TIMEOUT:?}").into();
                Err(MessageBusError::Unavailable { source })
            });
            Done::Watched(Answer::Ends(answer))
        });
    }

    /// Takes an answer. Returns what the machine is told of it.
    pub(super) fn answered_watch(&mut self, answer: Answer, now: Instant) -> Option<Input> {
        match answer {
            Answer::Ends(answer) => {
                let input = answer.is_ok().then_some(Input::Reachable);
                let answer = answer.map(Arc::new).map_err(|e| Noted::of_backend(&e));
                self.watch.ends.answered(answer, now);
                input
            }
        }
    }
}
