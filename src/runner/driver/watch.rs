//! Questions and rows for those who look at the processor: the ends of its partitions,
//! and the row of its instance. Nothing of it decides what is handled.
use super::{Done, Driver, live::Now};
use crate::{
    control::{InstanceId, InstanceRow, InstanceState, LetterClass, PutIf, Rows},
    ports::{ControlStoreError, MessageBusError, Revision},
    runner::{
        ProcessorState,
        machine::{Ends, Failing, Input, Noted, later},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time between two signs of life.
const TICK: Duration = Duration::from_secs(1);
/// The least time between two looks at the machine, whose cost grows with partitions and lanes.
const LOOK: Duration = Duration::from_millis(100);
/// The time between two writes of an instance's row while its state stays the same.
const ROW: Duration = Duration::from_secs(10);
/// The time that a question of this file may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a shutdown spends on deleting the row, which expires by itself.
const DELETE: Duration = Duration::from_millis(500);

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
    Row(Result<Revision, ControlStoreError>),
}

/// The state of the questions.
#[derive(Debug)]
pub(super) struct Watch {
    ends: Question<Arc<Ends>>,
    row: Question<Option<Revision>>,
    /// The state that the row tells.
    told: Option<ProcessorState>,
    epoch: u64,
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
            row: Question {
                answer: None,
                is_asked: false,
                at: now,
                failing: None,
            },
            told: None,
            epoch: 0,
            generation: None,
            looked_at: None,
            is_new: true,
            is_caught_up: false,
        }
    }

    /// Notes the generation that was joined.
    pub(super) const fn joined(&mut self, generation: u32, epoch: u64) {
        self.generation = Some(generation);
        self.epoch = epoch;
    }

    /// Notes that partitions have come.
    pub(super) const fn assigned(&mut self, now: Instant) {
        self.is_caught_up = false;
        self.ends.at = now;
    }

    fn watched(&self) -> Watched {
        let failing = [&self.ends.failing, &self.row.failing];
        Watched {
            generation: self.generation,
            ends: self.ends.answer.clone(),
            failing: failing.into_iter().flatten().cloned().collect(),
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
        self.live.count(self.machine.counts());
        if (self.watch.looked_at).is_some_and(|at| now.duration_since(at) < LOOK) {
            self.watch.is_new = true;
            return;
        }
        self.watch.looked_at = Some(now);
        self.watch.is_new = false;
        let snapshot = self.machine.snapshot(now);
        let shown = self.live.show(snapshot, self.watch.watched(), now);
        self.live.record();
        self.tell_if_caught_up(&shown);
        self.ask_ends(now);
        self.write_row(shown, now);
    }

    fn tell_if_caught_up(&mut self, shown: &Now) {
        if shown.partitions > 0 && shown.lag == Some(0) && !self.watch.is_caught_up {
            self.watch.is_caught_up = true;
            tracing::info!(processor = %self.settings.rules.name, partitions = shown.partitions, "the processor has caught up");
        }
    }

    fn ask_ends(&mut self, now: Instant) {
        let ends = &mut self.watch.ends;
        if self.membership.is_none() || ends.is_asked || ends.at > now {
            return;
        }
        ends.is_asked = true;
        ends.at = later(now, self.settings.watching.lag_interval);
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

    fn write_row(&mut self, shown: Now, now: Instant) {
        let row = &mut self.watch.row;
        let is_other = self.watch.told != Some(shown.state) && row.failing.is_none();
        let is_due = row.at <= now || is_other;
        if row.is_asked || !is_due {
            return;
        }
        row.is_asked = true;
        row.at = now + ROW;
        self.watch.told = Some(shown.state);
        let value = self.settings.row(&self.watch, shown, now);
        let settings = self.settings.clone();
        self.jobs.spawn(async move {
            let written = tokio::time::timeout(TIMEOUT, settings.put_row(value));
            let answer = written.await.unwrap_or_else(|_| {
                let source = format!("no answer within {TIMEOUT:?}").into();
                Err(ControlStoreError::Unavailable { source })
            });
            Done::Watched(Answer::Row(answer))
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
            Answer::Row(answer) => {
                let answer = answer.map(Some).map_err(|e| Noted::of_backend(&e));
                self.watch.row.answered(answer, now);
                None
            }
        }
    }

    /// Drops everything of a processor that has ended but what is needed to show its end.
    pub(super) fn into_keeper(self) -> Keeper {
        Keeper {
            settings: self.settings,
            live: self.live,
            watch: self.watch,
        }
    }
}

/// The part of a processor that stays after its end.
pub(in crate::runner) struct Keeper {
    settings: Arc<super::Settings>,
    live: Arc<super::Live>,
    watch: Watch,
}

impl Keeper {
    /// Deletes the row of a processor that was stopped.
    pub(super) async fn delete_row(self) {
        let Some(seen) = self.watch.row.answer else {
            return;
        };
        let (name, instance) = (&self.settings.rules.name, self.settings.watching.instance);
        let rows = self.settings.rows();
        // The row expires if it cannot be deleted.
        match tokio::time::timeout(DELETE, rows.instance_delete(name, instance, seen)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(processor = %name, error = crate::chain(&error), "the row of the instance is left to expire");
            }
            Err(_) => {
                tracing::debug!(processor = %name, "the row of the instance is left to expire");
            }
        }
    }

    /// Keeps the row of the processor, so that others see it for as long as the process runs.
    pub(in crate::runner) async fn keep_row(self, stop: &CancellationToken) {
        let keep = async {
            loop {
                let now = Instant::now();
                let row = self.settings.row(&self.watch, self.live.now(now), now);
                match tokio::time::timeout(TIMEOUT, self.settings.put_row(row)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(processor = %self.settings.rules.name, error = crate::chain(&error), "the row of the halted processor could not be written yet");
                    }
                    Err(_) => {
                        tracing::debug!(processor = %self.settings.rules.name, "the row of the halted processor could not be written yet");
                    }
                }
                tokio::time::sleep(ROW).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = keep => {}
        }
    }
}

/// The most bytes of an error that a row takes.
const MAX_ERROR: usize = 1000;

fn cut(error: &str) -> String {
    let mut end = error.len().min(MAX_ERROR);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error[..end].into()
}

impl super::Settings {
    fn row(&self, watch: &Watch, shown: Now, now: Instant) -> InstanceRow {
        let lasting = now.duration_since(shown.since);
        let micros = i64::try_from(lasting.as_micros()).unwrap_or(i64::MAX);
        let since = self.watching.clock.now().as_micros().saturating_sub(micros);
        InstanceRow {
            label: self.watching.label.to_string(),
            epoch: watch.epoch,
            generation: watch.generation.unwrap_or(0),
            state: shown.state.into(),
            since: crate::Timestamp::from_micros(since),
            class: shown.trouble.as_ref().map(|t| LetterClass::from(t.class)),
            error: shown.trouble.map(|trouble| cut(&trouble.error)),
            lag: shown.lag,
            partitions: shown.partitions,
        }
    }

    fn rows(&self) -> Rows {
        Rows::new(self.ports.control.clone(), self.ports.ids.clone())
    }

    async fn put_row(&self, row: InstanceRow) -> Result<Revision, ControlStoreError> {
        let (name, instance) = (&self.rules.name, self.watching.instance);
        let now = self.watching.clock.now();
        let put = self.rows().instance_put(name, instance, row, now).await?;
        match put {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => Ok(row.revision),
            PutIf::Conflict(None) => Err(ControlStoreError::Unavailable {
                source: "a write without a condition has met a conflict".into(),
            }),
        }
    }
}

/// The identity of a processor's instance, and how it is watched.
#[derive(Debug)]
pub(in crate::runner) struct Watching {
    pub(super) instance: InstanceId,
    pub(super) label: Arc<str>,
    pub(super) clock: Arc<dyn crate::Clock>,
    pub(super) lag_interval: Duration,
}

impl From<ProcessorState> for InstanceState {
    fn from(state: ProcessorState) -> Self {
        match state {
            ProcessorState::Starting => Self::Starting,
            ProcessorState::Running => Self::Running,
            ProcessorState::Unreachable => Self::Unreachable,
            ProcessorState::Held => Self::Held,
            ProcessorState::Paused => Self::Paused,
            ProcessorState::Stopping | ProcessorState::Stopped => Self::Stopping,
            ProcessorState::Halted => Self::Halted,
        }
    }
}
