//! The driver of a run: takes the steps that the [machine](super::machine) names, each with one
//! operation, and keeps the lease meanwhile. It decides nothing.
mod models;

use super::{
    ReplayError, ReplayProgress, ReplaySettings, RunId, RunState,
    cancel::release,
    error::Stop,
    machine::{Machine, Step},
    plan::Plan,
    scan::{Scan, ScanEnd},
};
use crate::{
    control::{
        BootRows, Contender, Generations, Lease, Leases, PutIf, ReplayMode, Rows, RunRow, Stored,
        TopicPins, join_generation,
    },
    ports::{ControlStoreError, Offset, PartitionId},
    runner::{
        Runner,
        rebuild::{Places, Rebuild, RunnerPorts},
    },
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{sync::watch, time::Instant};

/// The result of a run for the process that has worked on it.
#[derive(Debug)]
pub(super) enum RunEnd {
    /// The scan is whole. Runners bring the new generations up to the end of the topics.
    HandedOver,
    /// A filtered replay is done.
    Done,
}

/// One process that works on a run.
pub(super) struct Driver {
    pub(super) runner: Runner,
    pub(super) ports: RunnerPorts,
    pub(super) rows: Rows,
    pub(super) settings: ReplaySettings,
    pub(super) plan: Plan,
    pub(super) run: RunId,
    pub(super) progress: watch::Sender<ReplayProgress>,
}

/// The run as this process knows it.
struct Held {
    lease_epoch: u64,
    row: Stored<RunRow>,
    machine: Machine,
    /// The rows `proc` to write, with the revisions of what they replace.
    named: Vec<Option<(Generations, crate::ports::Revision)>>,
    rebuilds: Vec<Option<Arc<Rebuild>>>,
    places: Arc<Places>,
}

impl Driver {
    fn leases(&self) -> Leases {
        let (control, ids) = (self.ports.control.clone(), self.ports.ids.clone());
        Leases::new(control, ids, self.settings.lease)
    }

    /// Starts a new run, and works on it to its end.
    pub(super) async fn start(&self) -> Result<RunEnd, ReplayError> {
        // What is wrong with topics and route is found out before anything is written.
        let places = Arc::new(self.places().await?);
        let leases = self.take_over().await?;
        let row = self.first_row();
        let put = || self.rows.run_put(self.run, row.clone(), None);
        let row = match self.settings.repeated(put).await? {
            // A row that is there already is one that this call has written without an answer: the
            // id is new.
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => row,
            PutIf::Conflict(None) => return Err(ReplayError::NotFound { run: self.run }),
        };
        self.work(leases, row, places).await
    }

    /// Takes over a run whose process has died, and works on it to its end.
    pub(super) async fn resume(&self) -> Result<RunEnd, ReplayError> {
        let places = Arc::new(self.places().await?);
        let leases = self.take_over().await?;
        let row = self.settings.repeated(|| self.rows.run(self.run)).await?;
        let row = row.ok_or(ReplayError::NotFound { run: self.run })?;
        self.work(leases, row, places).await
    }

    /// Takes the lease of the run. A filtered replay, which leaves no note in the rows of its
    /// processors, also takes a lease for each of them.
    async fn take_over(&self) -> Result<Vec<Lease>, ReplayError> {
        let (leases, owner) = (self.leases(), &self.ports.label);
        let run = leases.run_contender(self.run, owner);
        let held = || ReplayError::Held { run: self.run };
        let mut taken = vec![self.take_lease(run, held).await?];
        if self.plan.part.is_some() {
            for of in &self.plan.projectors {
                let contender = leases.part_contender(of.name(), owner);
                let busy = || ReplayError::AlreadyRunning {
                    processor: of.name().to_string(),
                    run: "of a part of the history".into(),
                };
                taken.push(self.take_lease(contender, busy).await?);
            }
        }
        Ok(taken)
    }

    /// Waits for a lease, for as long as it takes to see that its holder has died.
    async fn take_lease(
        &self,
        mut contender: Contender,
        held: impl Fn() -> ReplayError,
    ) -> Result<Lease, ReplayError> {
        let until = Instant::now() + self.settings.lease * 3;
        loop {
            match contender.try_take().await {
                Ok(Some(lease)) => return Ok(lease),
                Err(error) if !error.is_transient() => return Err(error.into()),
                Ok(None) | Err(_) if Instant::now() >= until => {
                    return Err(held());
                }
                Ok(None) | Err(_) => tokio::time::sleep(self.settings.lease / 4).await,
            }
        }
    }

    fn first_row(&self) -> RunRow {
        let projectors = self.plan.projectors.iter();
        let processors = projectors.map(|of| crate::control::RunProcessor {
            name: of.name().to_string(),
            generation: 0,
            model: of.model(),
            is_switched: false,
        });
        let (segments, by) = (self.settings.segments, &self.settings.by);
        let (filter, now) = (self.plan.filter(), self.ports.clock.now());
        let mode = self.settings.mode;
        RunRow::new(processors.collect(), mode, filter, segments, by, now)
    }

    /// Works on a run under its lease, which it keeps meanwhile.
    async fn work(
        &self,
        mut leases: Vec<Lease>,
        row: Stored<RunRow>,
        places: Arc<Places>,
    ) -> Result<RunEnd, ReplayError> {
        // The first lease is that of the run.
        let epoch = leases.first().map_or(0, Lease::epoch);
        let work = self.steps(epoch, row, places);
        let result = tokio::select! {
            biased;
            // Nothing that the lost lease protects is touched after this: the work is dropped.
            lost = self.keep(&mut leases) => return Err(lost),
            result = work => result,
        };
        for lease in leases {
            if let Err(error) = lease.release().await {
                // It expires by itself.
                tracing::debug!(run = %self.run, error = crate::chain(&error), "the lease of a replay could not be released");
            }
        }
        result
    }

    /// Renews the leases until one of them is lost.
    async fn keep(&self, leases: &mut [Lease]) -> ReplayError {
        loop {
            tokio::time::sleep(self.settings.lease / 3).await;
            for lease in &mut *leases {
                let until = lease.valid_until();
                match tokio::time::timeout_at(until, lease.renew()).await {
                    Ok(Ok(true)) => {}
                    Ok(Ok(false)) => return ReplayError::TakenOver { run: self.run },
                    Err(_) => return ReplayError::LeaseExpired { run: self.run },
                    Ok(Err(error)) if Instant::now() >= until || !error.is_transient() => {
                        return error.into();
                    }
                    Ok(Err(_)) => {}
                }
            }
        }
    }

    async fn steps(
        &self,
        epoch: u64,
        row: Stored<RunRow>,
        places: Arc<Places>,
    ) -> Result<RunEnd, ReplayError> {
        let processors = self.plan.projectors.len();
        let mut held = Held {
            lease_epoch: epoch,
            row,
            machine: Machine::new(epoch, processors),
            named: vec![None; processors],
            rebuilds: vec![None; processors],
            places,
        };
        loop {
            let row = &held.row.value;
            self.show(row.state);
            let step = held.machine.next(row);
            tracing::debug!(run = %self.run, ?step, "a replay takes a step");
            if step == Step::End {
                return self.end(&mut held);
            }
            self.take(step, &mut held).await?;
        }
    }

    fn show(&self, state: RunState) {
        self.progress.send_if_modified(|progress| {
            let is_new = progress.state != state;
            progress.state = state;
            is_new
        });
    }

    fn end(&self, held: &mut Held) -> Result<RunEnd, ReplayError> {
        let row = &held.row.value;
        match row.state {
            RunState::Cancelled => {
                let stop = held.machine.stop().unwrap_or(Stop::Cancelled);
                Err(stop.into_error(self.run))
            }
            _ if row.epoch > held.lease_epoch => Err(ReplayError::TakenOver { run: self.run }),
            RunState::Done if row.filter.is_some() => Ok(RunEnd::Done),
            RunState::Done | RunState::CatchUp => Ok(RunEnd::HandedOver),
            state => Err(ReplayError::Over {
                run: self.run,
                state,
            }),
        }
    }

    /// Takes one step, and notes that it is done.
    async fn take(&self, step: Step, held: &mut Held) -> Result<(), ReplayError> {
        let epoch = held.lease_epoch;
        match step {
            Step::Claim => self.move_run(held, |row| row.claimed(epoch)).await?,
            Step::Allocate(of) => return self.allocate(of, held).await,
            Step::Name(of) => return self.name(of, held).await,
            Step::HandOver => {
                let ends = self.ends().await?;
                let ends = ends.into_iter().map(|(of, (_, end))| (of, end)).collect();
                self.move_run(held, |row| row.handed_over(&ends)).await?;
            }
            Step::Drain(of) => self.drain(of, held).await?,
            Step::Reset(of) => return self.reset(of, held).await,
            Step::ResetDone => self.move_run(held, RunRow::reset_done).await?,
            Step::BeginScan => self.move_run(held, RunRow::scanning).await?,
            Step::ResetPart(of) => self.reset_part(of, held).await?,
            Step::Scan => return self.scan(held).await,
            Step::Boot(of) => self.boot(of, held).await?,
            Step::CatchUp(of) => self.catch_up(of, held).await?,
            Step::Cancel => self.move_run(held, RunRow::cancelled).await?,
            Step::Release(of) => {
                let name = self.plan.projectors[of].name();
                let run = (self.run, &held.row.value);
                self.settings
                    .repeated(|| release(&self.rows, run, name))
                    .await?;
            }
            Step::End => {}
        }
        held.machine.done(step);
        Ok(())
    }

    /// Moves the row of the run with one write. If another process has changed the row, it is taken
    /// as it is now, and the machine decides again.
    async fn move_run(
        &self,
        held: &mut Held,
        next: impl Fn(&RunRow) -> Option<RunRow>,
    ) -> Result<(), ReplayError> {
        let Some(row) = next(&held.row.value) else {
            return Ok(());
        };
        let seen = Some(held.row.revision);
        let put = || self.rows.run_put(self.run, row.clone(), seen);
        match self.settings.repeated(put).await? {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => held.row = row,
            PutIf::Conflict(None) => return Err(ReplayError::NotFound { run: self.run }),
        }
        Ok(())
    }

    /// Allocates a generation: first in the row of the run.
    async fn allocate(&self, of: usize, held: &mut Held) -> Result<(), ReplayError> {
        let candidate = &self.plan.projectors[of];
        let name = candidate.name();
        let found = match self
            .settings
            .repeated(|| self.rows.generations(name))
            .await?
        {
            Some(found) => found,
            None => {
                // No instance of the processor has ever started. Its first generation is live,
                // with an empty model.
                let (control, ids) = (self.ports.control.clone(), self.ports.ids.clone());
                let join =
                    || join_generation(control.clone(), ids.clone(), name, candidate.model());
                self.settings.repeated(join).await?;
                return Ok(());
            }
        };
        let mode = held.row.value.mode;
        let Some((row, generation)) = found.value.preparing(self.run, mode) else {
            let run = found.value.run.clone();
            if self.settle(name, run.as_deref()).await? {
                return Ok(());
            }
            let run = run.unwrap_or_else(|| found.value.state.as_str().into());
            let processor = name.to_string();
            held.machine.cancel(Stop::Busy { processor, run });
            return Ok(());
        };
        // A process that has died before it named its generation leaves the number to this one.
        let former = held.row.value.processor(name).map_or(0, |of| of.generation);
        if former != 0 && former != generation {
            // Runners delete what there may be of its model.
            let in_place = mode == ReplayMode::InPlace;
            let retire = || self.rows.retired_put(name, former, in_place);
            self.settings.repeated(retire).await?;
        }
        held.named[of] = Some((row, found.revision));
        let before = held.row.revision;
        self.move_run(held, |row| row.allocated(name, generation))
            .await?;
        let is_mine = held.row.value.processor(name);
        let is_mine = is_mine.is_some_and(|mine| mine.generation == generation);
        if held.row.revision != before && is_mine && held.row.value.is_held(held.lease_epoch) {
            held.machine.done(Step::Allocate(of));
        }
        Ok(())
    }

    /// Takes a run out of the row of a processor if the run is over: the process that has cancelled
    /// it may have died in between. Returns false if the run is not over.
    async fn settle(&self, name: &str, run: Option<&str>) -> Result<bool, ReplayError> {
        let Some(Ok(other)) = run.map(str::parse::<RunId>) else {
            return Ok(false);
        };
        if other == self.run {
            return Ok(false);
        }
        let row = self.settings.repeated(|| self.rows.run(other)).await?;
        let Some(row) = row.filter(|row| row.value.state.is_over()) else {
            return Ok(false);
        };
        let release = || release(&self.rows, (other, &row.value), name);
        self.settings.repeated(release).await?;
        Ok(true)
    }

    /// Writes the allocated generation into the row `proc`, which names the run.
    async fn name(&self, of: usize, held: &mut Held) -> Result<(), ReplayError> {
        let name = self.plan.projectors[of].name();
        let Some((row, seen)) = held.named[of].take() else {
            held.machine.not_named(of);
            return Ok(());
        };
        let put = || self.rows.generations_put(name, row.clone(), Some(seen));
        match self.settings.repeated(put).await? {
            PutIf::Written(_) => held.machine.done(Step::Name(of)),
            // Another process has changed the row, or this write was applied without an answer.
            PutIf::Conflict(_) => held.machine.not_named(of),
        }
        Ok(())
    }

    async fn scan(&self, held: &mut Held) -> Result<(), ReplayError> {
        let mut rebuilds = Vec::new();
        for of in 0..self.plan.projectors.len() {
            let rebuild = match self.plan.part {
                Some(_) => self.live(of, held).await?,
                None => self.rebuild(of, held).await?,
            };
            let loaded = rebuild.load_parked().await;
            loaded.map_err(|e| ReplayError::projector(self.run, rebuild.of.name(), e))?;
            rebuilds.push(rebuild);
        }
        let store = self.ports.store.clone().ok_or(ReplayError::NoEventStore)?;
        let scan = Scan {
            store,
            rows: self.rows.clone(),
            settings: self.settings.clone(),
            run: self.run,
            epoch: held.lease_epoch,
            rebuilds,
            only: self.plan.only(),
            progress: self.progress.clone(),
        };
        if let ScanEnd::Moved = scan.run(&held.row.value).await? {
            let row = self.settings.repeated(|| self.rows.run(self.run)).await?;
            held.row = row.ok_or(ReplayError::NotFound { run: self.run })?;
            return Ok(());
        }
        if self.plan.part.is_some() {
            return self.move_run(held, RunRow::filtered_done).await;
        }
        let ends = self.ends().await?;
        for (partition, needed) in held.row.value.hand_over().unwrap_or_default() {
            let begin = ends.get(&partition).map_or(needed, |(begin, _)| *begin);
            if begin > needed {
                let (begin, needed) = (begin.get(), needed.get());
                held.machine.cancel(Stop::Retention {
                    partition,
                    begin,
                    needed,
                });
                return Ok(());
            }
        }
        let ends = ends.into_iter().map(|(of, (_, end))| (of, end)).collect();
        self.move_run(held, |row| row.scanned(&ends)).await
    }

    async fn boot(&self, of: usize, held: &Held) -> Result<(), ReplayError> {
        let name = self.plan.projectors[of].name();
        let row = &held.row.value;
        let generation = row.processor(name).map_or(0, |of| of.generation);
        let offsets = row.hand_over().unwrap_or_default();
        let boot = || async {
            let (control, ids) = (self.ports.control.clone(), self.ports.ids.clone());
            let mut boot = BootRows::new(control, ids, name, generation);
            boot.hand_over(&offsets).await
        };
        Ok(self.settings.repeated(boot).await?)
    }

    /// Gives the generation to the runners. Other processes write the row, too, so that it is read
    /// again until it says so.
    async fn catch_up(&self, of: usize, held: &Held) -> Result<(), ReplayError> {
        let name = self.plan.projectors[of].name();
        let Some(processor) = held.row.value.processor(name) else {
            return Ok(());
        };
        let (generation, model) = (processor.generation, processor.model);
        let write = || async {
            let Some(found) = self.rows.generations(name).await? else {
                return Ok(());
            };
            // `None`: it was written before, or the runners have switched already, or the run was
            // cancelled, which the row of the run tells.
            let Some(next) = found.value.catching_up(self.run, generation, model) else {
                return Ok(());
            };
            let put = self.rows.generations_put(name, next, Some(found.revision));
            match put.await? {
                PutIf::Written(_) => Ok(()),
                PutIf::Conflict(_) => Err(ControlStoreError::Unavailable {
                    source: format!("the row of {name} was changed meanwhile").into(),
                }),
            }
        };
        Ok(self.settings.repeated(write).await?)
    }

    /// Returns the begin and the end of every partition of the topics.
    async fn ends(&self) -> Result<BTreeMap<PartitionId, (Offset, Offset)>, ReplayError> {
        let mut ends = BTreeMap::new();
        for topic in &self.ports.topics {
            let ask = || self.ports.bus.offsets(topic);
            let offsets = self.settings.repeated(ask).await?;
            let offsets = offsets.into_iter();
            ends.extend(offsets.map(|of| (of.partition, (of.begin, of.end))));
        }
        Ok(ends)
    }

    async fn places(&self) -> Result<Places, ReplayError> {
        let pins = TopicPins::new(self.rows.clone());
        let mut partitions = BTreeMap::new();
        for (partition, _) in self.ends().await? {
            *partitions.entry(partition.topic).or_insert(0) += 1;
        }
        for (topic, count) in &mut partitions {
            let pinned = self.settings.repeated(|| pins.pinned(topic)).await?;
            *count = pinned.unwrap_or(*count);
        }
        let route = self.settings.route.clone();
        let aggregates = self
            .plan
            .projectors
            .iter()
            .flat_map(|of| of.subscriptions().into_keys());
        for aggregate in aggregates {
            let topic = route.topic_of(aggregate);
            if !partitions.contains_key(&topic) {
                return Err(ReplayError::Invalid {
                    field: "route",
                    reason: format!(
                        "the events of {aggregate} go to {topic}, which the runner does not read: set the route of the publisher with Replay::with_route"
                    ),
                });
            }
        }
        Ok(Places { route, partitions })
    }
}
