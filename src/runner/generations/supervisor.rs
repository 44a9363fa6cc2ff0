//! [`Supervisor`]: starts and stops the drivers of a processor's generations.
use super::{
    instance::Lease,
    jobs::{Answer, ROW, TIMEOUT, Task, Told, within},
    plan::{Plan, plan},
    steps::Looks,
};
use crate::{
    control::{Generations, InstanceId, Lasting, Rows, Stored},
    ports::Revision,
    runner::{
        Entry, OnHalt, RunnerBuilder, RunnerError,
        attempt::panic_message,
        driver::{Driver, Live, Settings},
        group_name,
        machine::Patience,
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

/// The time after a driver's look at the row `proc` in which the next one is expected.
const NEXT_LOOK: Duration = Duration::from_secs(8);
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
        group_name(&self.shared.group_prefix, &self.entry.name, generation)
    }
}

/// The end of a driver: its generation, and the error with which it has halted.
pub(super) type DriverEnd = (u32, Result<(), RunnerError>);

/// A processor in this process, whatever generations it runs.
pub(in crate::runner) struct Supervisor {
    pub(super) base: Arc<Base>,
    pub(super) until_caught_up: bool,
    pub(super) on_halt: OnHalt,
    /// The drivers that run, and the tokens that stop them.
    pub(super) drivers: BTreeMap<u32, CancellationToken>,
    pub(super) tasks: JoinSet<DriverEnd>,
    /// The generation of each task, also of one that has panicked.
    pub(super) by_task: HashMap<Id, u32>,
    /// The generations that have halted here. They are started again by a restart only.
    pub(super) halted: BTreeSet<u32>,
    pub(super) jobs: JoinSet<Answer>,
    pub(super) row: Task,
    pub(super) proc: Task,
    pub(super) replay: Task,
    pub(super) retire: Task,
    pub(super) looks: Looks,
    pub(super) seen: Lasting<u32>,
    /// The last revision of the row of this instance.
    pub(super) written: Option<Revision>,
    pub(super) told: Option<Told>,
    pub(super) known: Option<Stored<Generations>>,
    /// The epoch of the row `proc` to which this instance keeps.
    pub(super) kept: u64,
    pub(super) patience: Patience,
    pub(super) rng: fastrand::Rng,
    pub(super) is_stopping: bool,
    pub(super) result: Option<Result<(), RunnerError>>,
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
            seen: Lasting::default(),
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
    pub(super) fn running(&self) -> Option<u32> {
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
        ended: Result<(Id, DriverEnd), JoinError>,
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
    pub(super) fn found(&mut self, row: Option<Stored<Generations>>) {
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
}
