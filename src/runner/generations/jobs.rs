//! The jobs of a [`Supervisor`]: rows that it writes and reads, and their answers. Each is one job
//! at a time, so that the supervisor waits for none of them.
use super::{
    retire::RetireError,
    steps::{Looks, StepError},
    supervisor::Supervisor,
};
use crate::{
    control::{Generations, Lasting, Stored, join_generation},
    ports::{ControlStoreError, Revision},
    resilience::{Failure, FailureClass},
    runner::{
        ProcessorState, RunnerError,
        attempt::panic_message,
        machine::{Failing, Noted},
    },
};
use std::time::Duration;
use tokio::{task::JoinError, time::Instant};

/// The time between two writes of the row while nothing changes.
pub(super) const ROW: Duration = Duration::from_secs(10);
/// The time between two looks at the row `proc` while no driver looks.
const POLL: Duration = Duration::from_secs(5);
/// The time between two looks for generations to delete.
const RETIRE: Duration = Duration::from_secs(60);
/// The time between two signs of life while no generation serves.
const TICK: Duration = Duration::from_secs(1);
/// The time that a row may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a deletion may take, which has many rows.
const LONG: Duration = Duration::from_secs(1800);

/// The answer of a job.
pub(super) enum Answer {
    Row(Result<Revision, ControlStoreError>, Told),
    Proc(Result<Stored<Generations>, ControlStoreError>),
    Replay(Result<Option<Stored<Generations>>, StepError>, Looks),
    Retired(Result<(), RetireError>, Lasting<u32>),
}

/// The part of the row of the instance whose change is written at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told {
    state: ProcessorState,
    epoch: u64,
}

/// A job that is done again and again.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) is_running: bool,
    pub(super) at: Instant,
    /// The last failure, and the time of the first one.
    failing: Option<Failing>,
}

impl Task {
    pub(super) const fn new(at: Instant) -> Self {
        Self {
            is_running: false,
            at,
            failing: None,
        }
    }
    fn is_due(&self, now: Instant) -> bool {
        !self.is_running && self.at <= now
    }
    fn answered<T>(&mut self, answer: &Result<T, ControlStoreError>, now: Instant) {
        self.is_running = false;
        self.failing = answer.as_ref().err().map(|error| {
            let since = self.failing.as_ref().map_or(now, |failing| failing.since);
            Failing::step(Noted::of_backend(error), since)
        });
    }
}

impl Supervisor {
    pub(super) fn wake_at(&self, now: Instant) -> Instant {
        let is_served = self.running().is_some();
        let tasks = [&self.row, &self.proc, &self.replay, &self.retire];
        let due = tasks
            .into_iter()
            .filter(|task| !task.is_running)
            .map(|task| task.at);
        // A task that is due and has not begun has nothing to do now.
        let due = due.filter(|at| *at > now).min();
        let tick = (!is_served).then_some(now + TICK);
        let far = now + ROW;
        due.into_iter().chain(tick).fold(far, Instant::min)
    }

    pub(super) fn begin_jobs(&mut self, now: Instant) {
        if self.result.is_some() {
            return;
        }
        let failing = [&self.row.failing, &self.proc.failing];
        let failing = failing.into_iter().flatten().cloned().collect();
        self.base.live.show_shared(failing);
        self.write_row(now);
        if self.is_stopping {
            return;
        }
        // The row of the instance comes first.
        let may_read = self.written.is_some() || self.base.lease.until().is_none();
        if may_read && self.proc.is_due(now) {
            self.read_proc();
        }
        if self.replay.is_due(now) {
            self.advance_replay(now);
        }
        if self.retire.is_due(now) {
            self.retire(now);
        }
    }

    fn write_row(&mut self, now: Instant) {
        let told = Told {
            state: self.base.live.now(now).state,
            epoch: self.kept,
        };
        let is_other = self.told != Some(told) && self.row.failing.is_none();
        if self.row.is_running || !(self.row.at <= now || is_other) {
            return;
        }
        self.row.is_running = true;
        self.row.at = now + ROW;
        let base = self.base.clone();
        self.jobs.spawn(async move {
            let written = within(TIMEOUT, base.put_row(told.epoch)).await;
            Answer::Row(written, told)
        });
    }

    fn read_proc(&mut self) {
        self.proc.is_running = true;
        let base = self.base.clone();
        self.jobs.spawn(async move {
            let (control, ids) = (base.shared.control.clone(), base.shared.ids.clone());
            let read = join_generation(control, ids, &base.entry.name, base.entry.model);
            Answer::Proc(within(TIMEOUT, read).await)
        });
    }

    fn advance_replay(&mut self, now: Instant) {
        self.replay.at = now + self.jittered(POLL);
        let Some(known) = self.known.clone() else {
            return;
        };
        if known.value.run.is_none() || self.until_caught_up {
            return;
        }
        self.replay.is_running = true;
        let (base, mut looks) = (self.base.clone(), self.looks.clone());
        self.jobs.spawn(async move {
            let advanced = base.advance_replay(&known, &mut looks);
            let advanced = tokio::time::timeout(TIMEOUT, advanced).await;
            let advanced = advanced.unwrap_or_else(|_| Err(no_answer(TIMEOUT).into()));
            Answer::Replay(advanced, looks)
        });
    }

    fn retire(&mut self, now: Instant) {
        self.retire.at = now + self.jittered(RETIRE);
        let was_replayed = self
            .known
            .as_ref()
            .is_some_and(|known| known.value.highest() > 1);
        if !was_replayed || self.until_caught_up {
            return;
        }
        self.retire.is_running = true;
        let (base, mut seen) = (self.base.clone(), self.seen.clone());
        self.jobs.spawn(async move {
            let retired = tokio::time::timeout(LONG, base.retire(&mut seen)).await;
            let retired = retired.unwrap_or_else(|_| Err(no_answer(LONG).into()));
            Answer::Retired(retired, seen)
        });
    }

    fn jittered(&mut self, time: Duration) -> Duration {
        time.mul_f64(0.8 + 0.4 * self.rng.f64())
    }

    pub(super) fn answered(&mut self, answer: Result<Answer, JoinError>) {
        let now = Instant::now();
        let name = self.base.entry.name.clone();
        match answer {
            Ok(Answer::Row(answer, told)) => self.row_written(answer, told, now),
            Ok(Answer::Proc(answer)) => {
                self.proc.answered(&answer, now);
                match answer {
                    Ok(row) => {
                        self.patience.reset();
                        self.proc.at = now + self.jittered(POLL);
                        self.found(Some(row));
                    }
                    Err(error) => self.proc.at = self.not_started(error, now),
                }
            }
            Ok(Answer::Replay(answer, looks)) => {
                self.replay.is_running = false;
                self.looks = looks;
                match answer {
                    Ok(row) => self.found(row),
                    Err(error) => {
                        tracing::warn!(processor = %name, error = crate::chain(&error), "the replay cannot be brought to its end yet");
                    }
                }
            }
            Ok(Answer::Retired(answer, seen)) => {
                self.retire.is_running = false;
                self.seen = seen;
                if let Err(error) = answer {
                    tracing::warn!(processor = %name, error = crate::chain(&error), "a generation that does not serve any more cannot be deleted yet");
                }
            }
            Err(error) => {
                let reason = match error.try_into_panic() {
                    Ok(panic) => panic_message("control store", &*panic),
                    Err(_) => return,
                };
                let error = RunnerError::Broken {
                    processor: name,
                    reason,
                };
                self.halt(error);
            }
        }
    }

    fn row_written(
        &mut self,
        answer: Result<Revision, ControlStoreError>,
        told: Told,
        now: Instant,
    ) {
        self.row.answered(&answer, now);
        match answer {
            Ok(revision) => {
                self.written = Some(revision);
                self.told = Some(told);
                if self.known.is_none() {
                    self.patience.reset();
                }
            }
            // Nothing starts before the first row.
            Err(error) if self.written.is_none() && self.base.lease.until().is_some() => {
                self.row.at = self.not_started(error, now);
            }
            // It is told with the failures of the processor.
            Err(_) => {}
        }
    }

    /// A row could not be written or read that is needed before the start. What runs goes on.
    /// Returns when it is tried again.
    fn not_started(&mut self, error: ControlStoreError, now: Instant) -> Instant {
        let processor = self.base.entry.name.clone();
        let at = self.patience.failed(now);
        if self.known.is_none() && error.failure_class() == FailureClass::Permanent {
            self.halt(RunnerError::Control {
                processor,
                source: error,
            });
            return at;
        }
        tracing::warn!(%processor, wait = ?(at - now), error = crate::chain(&error), "the generations of the processor could not be read yet");
        at
    }

    pub(super) fn halt(&mut self, error: RunnerError) {
        tracing::error!(processor = %self.base.entry.name, error = crate::chain(&error), "the processor has halted");
        self.result = Some(Err(error));
    }
}

fn no_answer(time: Duration) -> ControlStoreError {
    ControlStoreError::Unavailable {
        source: format!("no answer within {time:?}").into(),
    }
}

pub(super) async fn within<T>(
    time: Duration,
    call: impl Future<Output = Result<T, ControlStoreError>>,
) -> Result<T, ControlStoreError> {
    let answer = tokio::time::timeout(time, call).await;
    answer.unwrap_or_else(|_| Err(no_answer(time)))
}
