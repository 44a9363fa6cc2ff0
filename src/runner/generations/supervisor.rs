//! [`Supervisor`]: starts and stops the drivers of a processor's generations.
use super::{
    instance::Lease,
    plan::{Plan, plan},
    retire::{RetireError, Seen},
    steps::{Looks, StepError},
};
use crate::{
    control::{Generations, InstanceId, Rows, Stored, join_generation},
    ports::{ControlStoreError, Revision},
    resilience::{Failure, FailureClass},
    runner::{
        Entry, OnHalt, ProcessorState, RunnerBuilder, RunnerError,
        attempt::panic_message,
        driver::{Driver, Live, Settings},
        machine::{Failing, Noted, Patience},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The time between two writes of the row while nothing changes.
const ROW: Duration = Duration::from_secs(10);
/// The time between two looks at the row `proc` while no driver looks.
const POLL: Duration = Duration::from_secs(5);
/// The time after a driver's look at the row `proc` in which the next one is expected.
const NEXT_LOOK: Duration = Duration::from_secs(8);
/// The time between two looks for generations to delete.
const RETIRE: Duration = Duration::from_secs(60);
/// The time between two signs of life while no generation serves.
const TICK: Duration = Duration::from_secs(1);
/// The time that a row may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a deletion may take, which has many rows.
const LONG: Duration = Duration::from_secs(1800);
/// The time that a shutdown spends on deleting the row, which expires by itself.
const DELETE: Duration = Duration::from_millis(500);

/// The parts of a processor that all its generations share.
pub(super) struct Base {
    pub(super) entry: Entry,
    pub(super) shared: Arc<RunnerBuilder>,
    pub(super) instance: InstanceId,
    pub(super) live: Arc<Live>,
    pub(super) rows: Rows,
    pub(super) lease: Arc<Lease>,
    /// The row `proc` as a driver has read it with the requests of operators.
    found: Arc<watch::Sender<Option<Stored<Generations>>>>,
}

impl Base {
    pub(super) fn group(&self, generation: u32) -> String {
        super::super::group_name(&self.shared.group_prefix, &self.entry.name, generation)
    }
}

/// The answer of a job.
enum Answer {
    Row(Result<Revision, ControlStoreError>, Told),
    Proc(Result<Stored<Generations>, ControlStoreError>),
    Replay(Result<Option<Stored<Generations>>, StepError>, Looks),
    Retired(Result<(), RetireError>, Seen),
}

/// The part of the row of the instance whose change is written at once.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Told {
    state: ProcessorState,
    epoch: u64,
}

/// A job that is done again and again.
#[derive(Debug)]
struct Task {
    is_running: bool,
    at: Instant,
    /// The last failure, and the time of the first one.
    failing: Option<Failing>,
}

impl Task {
    const fn new(at: Instant) -> Self {
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

/// A processor in this process, whatever generations it runs.
pub(in crate::runner) struct Supervisor {
    base: Arc<Base>,
    until_caught_up: bool,
    on_halt: OnHalt,
    /// The drivers that run, and the tokens that stop them.
    drivers: BTreeMap<u32, CancellationToken>,
    tasks: JoinSet<(u32, Result<(), RunnerError>)>,
    /// The generation of each task, also of one that has panicked.
    by_task: HashMap<Id, u32>,
    /// The generations that have halted here. They are started again by a restart only.
    halted: BTreeSet<u32>,
    jobs: JoinSet<Answer>,
    row: Task,
    proc: Task,
    replay: Task,
    retire: Task,
    looks: Looks,
    seen: Seen,
    /// The last revision of the row of this instance.
    written: Option<Revision>,
    told: Option<Told>,
    known: Option<Stored<Generations>>,
    /// The epoch of the row `proc` to which this instance keeps.
    kept: u64,
    patience: Patience,
    rng: fastrand::Rng,
    is_stopping: bool,
    result: Option<Result<(), RunnerError>>,
}

impl Supervisor {
    pub(in crate::runner) fn new(
        entry: &Entry,
        shared: &Arc<RunnerBuilder>,
        instance: InstanceId,
        live: Arc<Live>,
        until_caught_up: bool,
    ) -> Self {
        let (control, ids) = (shared.control.clone(), shared.ids.clone());
        let (now, seed) = (Instant::now(), entry.policy.retry.backoff.seed);
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let base = Base {
            lease: Arc::new(Lease::new(entry.processor.is_projector(), now)),
            entry: entry.clone(),
            shared: shared.clone(),
            instance,
            live,
            rows: Rows::new(control, ids),
            found: Arc::new(watch::Sender::new(None)),
        };
        Self {
            base: Arc::new(base),
            until_caught_up,
            on_halt: shared.on_halt,
            drivers: BTreeMap::new(),
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            halted: BTreeSet::new(),
            jobs: JoinSet::new(),
            row: Task::new(now),
            proc: Task::new(now),
            replay: Task::new(now),
            retire: Task::new(now),
            looks: Looks::default(),
            seen: Seen::default(),
            written: None,
            told: None,
            known: None,
            kept: 0,
            patience: Patience::new(seed),
            rng: fastrand::Rng::with_seed(seed),
            is_stopping: false,
            result: None,
        }
    }

    /// Runs until `stop`, or until the run has caught up. A processor that has halted is shown to
    /// others until `stop`.
    pub(in crate::runner) async fn run(mut self, stop: CancellationToken) {
        let mut found = self.base.found.subscribe();
        let mut states = self.base.live.states();
        loop {
            self.reconcile(&stop);
            if (self.is_stopping || self.result.is_some()) && self.drivers.is_empty() {
                break;
            }
            let now = Instant::now();
            self.begin_jobs(now);
            let wake_at = self.wake_at(now);
            tokio::select! {
                biased;
                () = stop.cancelled(), if !self.is_stopping => self.is_stopping = true,
                Some(ended) = self.tasks.join_next_with_id() => self.driver_ended(ended, &stop),
                Some(answer) = self.jobs.join_next() => self.answered(answer),
                Ok(()) = found.changed() => {
                    let row = found.borrow_and_update().clone();
                    self.proc.at = self.proc.at.max(Instant::now() + NEXT_LOOK);
                    self.found(row);
                }
                Ok(()) = states.changed() => drop(states.borrow_and_update()),
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
        self.end(&stop).await;
    }

    async fn end(mut self, stop: &CancellationToken) {
        let result = self.result.take().unwrap_or(Ok(()));
        let is_halted = result.is_err() || self.has_halted();
        // A row that is written after its deletion would stay until it expires.
        if self.row.is_running {
            let written = async {
                while let Some(answer) = self.jobs.join_next().await {
                    if let Ok(Answer::Row(Ok(revision), _)) = answer {
                        return Some(revision);
                    }
                }
                None
            };
            let written = tokio::time::timeout(DELETE, written).await;
            self.written = written.ok().flatten().or(self.written);
        }
        // The row of a processor that has halted stays for those who look for the reason.
        if let Some(seen) = self.written.filter(|_| !is_halted) {
            self.base.delete_row(seen, DELETE).await;
        }
        if !is_halted {
            tracing::info!(processor = %self.base.entry.name, "the processor has stopped");
        }
        let is_error = result.is_err();
        self.base.live.ended(result);
        if is_error && !self.until_caught_up {
            self.keep_row(stop).await;
        }
    }

    /// Keeps the row of a processor that has halted, so that others see it for as long as the
    /// process runs.
    async fn keep_row(self, stop: &CancellationToken) {
        let keep = async {
            loop {
                if let Err(error) = within(TIMEOUT, self.base.put_row(self.kept)).await {
                    tracing::debug!(processor = %self.base.entry.name, error = crate::chain(&error), "the row of the halted processor could not be written yet");
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

    /// Returns true if the generation that serves has halted here.
    fn has_halted(&self) -> bool {
        let serving = self.plan().and_then(|plan| plan.serving);
        serving.is_some_and(|serving| self.halted.contains(&serving))
    }

    /// Returns the generation that serves here now.
    fn running(&self) -> Option<u32> {
        let active = self.known.as_ref()?.value.active;
        self.drivers.contains_key(&active).then_some(active)
    }

    fn plan(&self) -> Option<Plan> {
        let known = self.known.as_ref()?;
        let mut plan = plan(&known.value, self.base.entry.model, self.running());
        if self.until_caught_up {
            // A run with an end leaves the catch-up to those that stay.
            plan.next = None;
        }
        Some(plan)
    }

    /// Starts and stops drivers as the row `proc` says.
    fn reconcile(&mut self, stop: &CancellationToken) {
        if self.is_stopping || self.result.is_some() {
            if self.on_halt == OnHalt::StopAll && matches!(self.result, Some(Err(_))) {
                stop.cancel();
            }
            return self.drivers.values().for_each(CancellationToken::cancel);
        }
        let Some(plan) = self.plan() else {
            return;
        };
        if let Some(idle) = plan.idle.clone().filter(|_| self.until_caught_up) {
            self.halt(idle.into_error(self.base.entry.name.clone()));
            return self.drivers.values().for_each(CancellationToken::cancel);
        }
        let unwanted = self
            .drivers
            .iter()
            .filter(|(number, _)| !plan.runs(**number));
        let unwanted: Vec<_> = unwanted.map(|(_, token)| token).collect();
        unwanted.iter().for_each(|token| token.cancel());
        let is_clear = unwanted.is_empty();
        self.base
            .live
            .serve(plan.serving, plan.next, plan.idle.clone());
        let known = self.known.as_ref().map(|known| &known.value);
        let must_stop = known.is_some_and(|known| known.stop == Some(true));
        if is_clear {
            self.kept = known.map_or(0, |known| known.epoch);
        }
        // In place, two generations would write one model.
        if is_clear || !must_stop {
            for generation in plan.wanted() {
                if !self.halted.contains(&generation) && !self.drivers.contains_key(&generation) {
                    self.start(generation);
                }
            }
        }
        self.show_end(&plan, stop);
    }

    /// Tells those who wait for the processor whether anything of it still runs here.
    fn show_end(&self, plan: &Plan, stop: &CancellationToken) {
        let is_halted = |generation: Option<u32>| {
            generation.is_some_and(|generation| self.halted.contains(&generation))
        };
        let live = &self.base.live;
        if !is_halted(plan.serving) {
            live.revived();
            live.set_over(false);
            return;
        }
        // A position that is lost is what a replay repairs: the generation that it has built goes
        // on although the one before it has halted.
        let is_over = plan.next.is_none() || is_halted(plan.next);
        live.set_over(is_over);
        if self.on_halt == OnHalt::StopAll {
            stop.cancel();
        }
    }

    fn start(&mut self, generation: u32) {
        let base = &self.base;
        let settings = Settings::new(
            &base.entry,
            &base.shared,
            generation,
            base.lease.clone(),
            base.found.clone(),
        );
        base.live.begins(generation);
        let driver = Driver::new(settings, self.until_caught_up, base.live.clone());
        let token = CancellationToken::new();
        let stop = token.clone();
        let task = self
            .tasks
            .spawn(async move { (generation, driver.run(stop).await) });
        self.by_task.insert(task.id(), generation);
        self.drivers.insert(generation, token);
    }

    fn driver_ended(
        &mut self,
        ended: Result<(Id, (u32, Result<(), RunnerError>)), JoinError>,
        stop: &CancellationToken,
    ) {
        let (generation, result) = match ended {
            Ok((id, ended)) => {
                self.by_task.remove(&id);
                ended
            }
            Err(error) => {
                let Some(generation) = self.by_task.remove(&error.id()) else {
                    return;
                };
                let processor = self.base.entry.name.clone();
                let reason = match error.try_into_panic() {
                    Ok(panic) => panic_message("driver", &*panic),
                    Err(_) => "its task was aborted".into(),
                };
                let error = RunnerError::Broken { processor, reason };
                (generation, Err(error))
            }
        };
        self.drivers.remove(&generation);
        let plan = self.plan();
        let (live, name) = (&self.base.live, &self.base.entry.name);
        let serves = plan
            .as_ref()
            .is_none_or(|plan| plan.serving == Some(generation));
        match result {
            Ok(()) if serves && self.until_caught_up => self.result = Some(Ok(())),
            Ok(()) if self.is_stopping => {}
            Ok(()) => {
                tracing::info!(processor = %name, generation, "a generation is left");
                live.left(generation);
            }
            Err(error) if serves => {
                tracing::error!(processor = %name, generation, error = crate::chain(&error), "the processor has halted");
                self.halted.insert(generation);
                live.halted(error);
                if self.until_caught_up || self.is_stopping {
                    live.set_over(true);
                    self.is_stopping = true;
                }
                if let Some(plan) = plan {
                    self.show_end(&plan, stop);
                }
            }
            Err(error) if plan.is_some_and(|plan| plan.next == Some(generation)) => {
                tracing::error!(processor = %name, generation, error = crate::chain(&error), "the generation that catches up has halted");
                self.halted.insert(generation);
                live.halted_beside(generation, error);
            }
            Err(error) => {
                tracing::warn!(processor = %name, generation, error = crate::chain(&error), "a generation that does not serve any more has ended with an error");
                live.left(generation);
            }
        }
    }

    /// Takes a row `proc`, unless a newer one is known.
    fn found(&mut self, row: Option<Stored<Generations>>) {
        let Some(row) = row else { return };
        let is_new = (self.known.as_ref()).is_none_or(|known| known.value.epoch <= row.value.epoch);
        if !is_new {
            return;
        }
        if self
            .known
            .as_ref()
            .is_none_or(|known| known.revision != row.revision)
        {
            let Generations {
                active,
                next,
                state,
                epoch,
                ..
            } = &row.value;
            tracing::info!(processor = %self.base.entry.name, active, ?next, state = state.as_str(), epoch, "the generations of the processor");
        }
        self.known = Some(row);
    }

    fn wake_at(&self, now: Instant) -> Instant {
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

    fn begin_jobs(&mut self, now: Instant) {
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

    fn answered(&mut self, answer: Result<Answer, JoinError>) {
        let now = Instant::now();
        let name = self.base.entry.name.clone();
        match answer {
            Ok(Answer::Row(answer, told)) => {
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

    fn halt(&mut self, error: RunnerError) {
        tracing::error!(processor = %self.base.entry.name, error = crate::chain(&error), "the processor has halted");
        self.result = Some(Err(error));
    }
}

fn no_answer(time: Duration) -> ControlStoreError {
    ControlStoreError::Unavailable {
        source: format!("no answer within {time:?}").into(),
    }
}

async fn within<T>(
    time: Duration,
    call: impl Future<Output = Result<T, ControlStoreError>>,
) -> Result<T, ControlStoreError> {
    let answer = tokio::time::timeout(time, call).await;
    answer.unwrap_or_else(|_| Err(no_answer(time)))
}
