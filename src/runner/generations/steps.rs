//! The steps of a switch, as calls of the control store and of the bus.
use super::{
    supervisor::Base,
    switch::{Committed, Offsets, Step, needs_offsets, next_step},
};
use crate::{
    control::{Generations, PutIf, ReplayMode, RunId, Stored},
    ports::{ControlStoreError, MessageBusError},
    runner::PATIENCE,
};
use std::time::Duration;
use tokio::time::Instant;

/// The time for which what the active generation has committed is remembered.
const REMEMBERED: Duration = Duration::from_secs(20);

/// The error returned when the rows or offsets of a replay cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Control(#[from] ControlStoreError),
    #[error(transparent)]
    Bus(#[from] MessageBusError),
}

/// The memory of one instance between two looks at a replay.
#[derive(Clone, Debug, Default)]
pub(super) struct Looks {
    /// The run whose row was missing, and since when.
    missing: Option<(RunId, Instant)>,
    /// The offsets that the active generation of this number had committed, and when they were
    /// read.
    active: Option<(u32, Offsets, Instant)>,
}

impl Looks {
    /// Returns true if the run's row, or its word about this processor, has been missing for a
    /// whole lease time.
    fn is_gone(&mut self, run: RunId, is_missing: bool, now: Instant) -> bool {
        if !is_missing {
            self.missing = None;
            return false;
        }
        match self.missing {
            Some((of, since)) if of == run => now.duration_since(since) >= PATIENCE,
            _ => {
                self.missing = Some((run, now));
                false
            }
        }
    }
}

impl Base {
    /// Does the next step of a replay, if there is one now. Returns the row `proc` if it was
    /// written or has changed.
    pub(super) async fn advance_replay(
        &self,
        proc: &Stored<Generations>,
        looks: &mut Looks,
    ) -> Result<Option<Stored<Generations>>, StepError> {
        let Some(id) = proc.value.run.as_ref().and_then(|run| run.parse().ok()) else {
            return Ok(None);
        };
        let name = &self.entry.name;
        let run = self.rows.run(id).await?;
        let run = run.as_ref().map(|run| &run.value);
        let must_stop = proc.value.stop == Some(true);
        let in_place = run.map_or(must_stop, |run| run.mode == ReplayMode::InPlace);
        let is_missing = run.is_none_or(|run| run.processor(name).is_none() || run.state.is_over());
        let is_gone = looks.is_gone(id, is_missing, Instant::now());
        let committed = if needs_offsets(&proc.value, run) {
            self.committed(&proc.value, looks).await?
        } else {
            None
        };
        match next_step(&proc.value, (id, run), name, is_gone, committed.as_ref()) {
            None => Ok(None),
            Some(Step::Switch(row)) => {
                let (active, to) = (proc.value.active, row.active);
                let found = self.leave(proc, (active, in_place), row).await?;
                // Another instance may have been faster, and may have died since.
                if found.as_ref().is_some_and(|found| found.value.active == to) {
                    tracing::info!(processor = %name, from = active, %to, "the processor has switched to the generation that a replay has built");
                    self.rows.run_switched(id, name).await?;
                }
                Ok(found)
            }
            Some(Step::Release(row, built)) => {
                let found = match built {
                    Some(built) => self.leave(proc, (built, in_place), row).await?,
                    None => self.put_proc(proc, row).await?,
                };
                if let Some(row) = &found {
                    tracing::info!(processor = %name, generation = row.value.active, "the replay is over without a switch: the generation of before serves");
                }
                Ok(found)
            }
        }
    }

    /// Writes the row `proc` in which a generation is not named any more.
    async fn leave(
        &self,
        proc: &Stored<Generations>,
        (generation, in_place): (u32, bool),
        row: Generations,
    ) -> Result<Option<Stored<Generations>>, ControlStoreError> {
        let retired = self
            .rows
            .retired_put(&self.entry.name, generation, in_place);
        retired.await?;
        self.put_proc(proc, row).await
    }

    /// Writes the row `proc`. Returns the row that is there now.
    async fn put_proc(
        &self,
        proc: &Stored<Generations>,
        row: Generations,
    ) -> Result<Option<Stored<Generations>>, ControlStoreError> {
        let put = self
            .rows
            .generations_put(&self.entry.name, row, Some(proc.revision));
        Ok(match put.await? {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => Some(row),
            PutIf::Conflict(None) => None,
        })
    }

    /// Returns what the groups of both generations have committed. Those of the active one are of
    /// the last look, if there was one.
    ///
    /// Both groups commit every few seconds, each instance at its own times. If both were read
    /// now, one partition of many would nearly always be a commit behind, although the next
    /// generation has long kept up.
    async fn committed(
        &self,
        proc: &Generations,
        looks: &mut Looks,
    ) -> Result<Option<Committed>, StepError> {
        // A build of another model may read other topics.
        let is_mine = proc.next_model == Some(self.entry.model);
        let Some(next) = proc.next.filter(|_| is_mine) else {
            return Ok(None);
        };
        let (now, read) = (Instant::now(), self.group_committed(proc.active).await?);
        let before = looks.active.replace((proc.active, read.clone(), now));
        let before = before
            .filter(|(of, _, at)| *of == proc.active && now.duration_since(*at) <= REMEMBERED);
        Ok(Some(Committed {
            active: before.map_or(read, |(_, offsets, _)| offsets),
            next: self.group_committed(next).await?,
        }))
    }

    async fn group_committed(&self, generation: u32) -> Result<Offsets, MessageBusError> {
        let group = self.group(generation);
        let mut offsets = Offsets::new();
        for topic in &self.shared.topics {
            let committed = self.shared.bus.committed(&group, topic).await?;
            offsets.extend(committed.into_iter().filter_map(|(p, at)| Some((p, at?))));
        }
        Ok(offsets)
    }
}
