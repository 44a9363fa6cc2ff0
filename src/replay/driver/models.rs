//! The models that a run builds: the processes that must let go of them, and how they are emptied.
use super::{Driver, Held, Step, Stop};
use crate::{
    control::{InstanceId, InstanceRow, Lasting, Stored, join_generation},
    replay::ReplayError,
    runner::rebuild::Rebuild,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The interval in which the rows of instances are read while they are waited for.
const LOOK: Duration = Duration::from_secs(1);

/// Returns true if an instance handles no event of the generation that must stop by the row `proc`
/// of this epoch. `lasting` is the time for which its row has not changed.
fn has_stopped(row: &InstanceRow, epoch: u64, lasting: Duration) -> bool {
    let is_dead = |idle: u64| lasting >= Duration::from_millis(idle);
    row.epoch >= epoch || row.idle_after.is_some_and(is_dead)
}

impl Driver {
    /// Waits until no instance handles an event of the live generation: each has written that it
    /// keeps to the row `proc` that names this run, or its row stands still for so long that its
    /// lease, an attempt and the grace after it are over.
    ///
    /// The wait ends at the latest when the row of a dead instance expires. It may be cancelled.
    pub(super) async fn drain(&self, of: usize, held: &mut Held) -> Result<(), ReplayError> {
        let name = self.plan.projectors[of].name();
        let (mut lasting, mut told) = (Lasting::default(), Vec::new());
        loop {
            // A cancel is noticed here, too.
            let run = self.settings.repeated(|| self.rows.run(self.run)).await?;
            held.row = run.ok_or(ReplayError::NotFound { run: self.run })?;
            if !held.row.value.is_held(held.lease_epoch) {
                return Ok(());
            }
            let proc = self
                .settings
                .repeated(|| self.rows.generations(name))
                .await?;
            let Some(proc) = proc.filter(|proc| proc.value.is_of(self.run)) else {
                held.machine.not_named(of);
                return Ok(());
            };
            let rows = self
                .settings
                .repeated(|| self.rows.stored_instances(name))
                .await?;
            let busy = busy(rows, proc.value.epoch, &mut lasting);
            if busy.is_empty() {
                return Ok(());
            }
            if busy != told {
                tracing::info!(run = %self.run, processor = %name, instances = busy.join(", "), "a replay in place waits for instances to stop");
                told = busy;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn rebuild(
        &self,
        of: usize,
        held: &mut Held,
    ) -> Result<Arc<Rebuild>, ReplayError> {
        let candidate = &self.plan.projectors[of];
        let generation = held.row.value.processor(candidate.name());
        let generation = generation.map_or(0, |of| of.generation);
        if let Some(known) = &held.rebuilds[of]
            && known.generation() == generation
        {
            return Ok(known.clone());
        }
        let skips = self.settings.repeated(|| self.runner.known_skips()).await?;
        let (places, only) = (held.places.clone(), self.plan.only());
        let rebuild = Arc::new(Rebuild::new(candidate, generation, places, skips, only));
        let prepared = rebuild.prepare().await;
        prepared.map_err(|e| ReplayError::projector(self.run, candidate.name(), e))?;
        held.rebuilds[of] = Some(rebuild.clone());
        Ok(rebuild)
    }

    pub(super) async fn reset(&self, of: usize, held: &mut Held) -> Result<(), ReplayError> {
        let rebuild = self.rebuild(of, held).await?;
        let Err(error) = rebuild.reset(self.settings.reset_timeout).await else {
            held.machine.done(Step::Reset(of));
            return Ok(());
        };
        let processor = self.plan.projectors[of].name().to_string();
        tracing::warn!(run = %self.run, processor, error = crate::chain(error.source()), "a model could not be emptied");
        match held.machine.reset_failed(of, held.row.value.mode) {
            Some(attempts) => held.machine.cancel(Stop::Reset {
                processor,
                attempts,
                source: error.into_source(),
            }),
            None => tokio::time::sleep(self.settings.reset_pause).await,
        }
        Ok(())
    }

    pub(super) async fn reset_part(&self, of: usize, held: &mut Held) -> Result<(), ReplayError> {
        let candidate = &self.plan.projectors[of];
        if candidate.partial_replay() != crate::runner::PartialReplay::ScopedReset {
            return Ok(());
        }
        let rebuild = self.live(of, held).await?;
        let part = self.plan.part.clone().unwrap_or_default();
        let reset = rebuild.reset_part(&part, self.settings.reset_timeout).await;
        reset.map_err(|error| ReplayError::Projector {
            run: self.run,
            processor: candidate.name().to_string(),
            source: error.into_source(),
        })
    }

    /// Returns the live generation of a processor, for a filtered replay.
    pub(super) async fn live(
        &self,
        of: usize,
        held: &mut Held,
    ) -> Result<Arc<Rebuild>, ReplayError> {
        let candidate = &self.plan.projectors[of];
        let (name, model) = (candidate.name(), candidate.model());
        let (control, ids) = (self.ports.control.clone(), self.ports.ids.clone());
        let join = || join_generation(control.clone(), ids.clone(), name, model);
        let live = self.settings.repeated(join).await?.value;
        if live.model != model {
            return Err(ReplayError::WrongModel {
                run: self.run,
                processor: name.to_string(),
                expected: model,
                found: live.model,
            });
        }
        if let Some(run) = live.run {
            return Err(ReplayError::AlreadyRunning {
                processor: name.to_string(),
                run,
            });
        }
        if let Some(processor) = held.row.value.processors.get_mut(of) {
            processor.generation = live.active;
        }
        self.rebuild(of, held).await
    }
}

/// Returns the names of the instances that may still handle events.
fn busy(
    rows: Vec<(InstanceId, Stored<InstanceRow>)>,
    epoch: u64,
    lasting: &mut Lasting<InstanceId>,
) -> Vec<String> {
    let now = Instant::now();
    let busy = rows.into_iter().filter_map(|(id, row)| {
        let lasting = lasting.of(id, row.revision, now);
        (!has_stopped(&row.value, epoch, lasting)).then_some(row.value.label)
    });
    busy.collect()
}
