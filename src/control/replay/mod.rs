//! The rows of replays.
//!
//! ```text
//! run         <id>          -> RunRow
//! run/lease   <id>          -> that of a lease
//! run/part    <processor>   -> that of a lease, for filtered replays
//! seg/<id>    <segment:08>  -> SegmentRow
//! ```
//! # Which row decides?
//! The row of the run. It says which generation is being built for each processor, how far the run
//! is, and whether it was cancelled. The row `proc` of a processor follows: it is written after
//! the row of the run, and each write is a compare-and-set on what was read.
//!
//! # Why can a process that has lost the lease do no harm?
//! A holder writes the epoch of its lease into the row of the run before it does anything else
//! ([`RunRow::claimed`]), and later into the rows of the segments. From then on every write of the
//! former holder fails, since it expects a revision that is gone. What it may still do is to empty
//! the model of the generation that it was working on. A holder that takes over before the reset
//! is durable therefore allocates another number.
mod row;
mod segment;

pub use self::row::RunState;
pub(crate) use self::{
    row::{RunFilter, RunProcessor, RunRow},
    segment::{SegmentCounts, SegmentRow},
};
use super::{KeyedPage, Leases, PutIf, Races, Rows, Stored, audit::KEPT, hex_id::hex_id};
use crate::ports::{ControlStoreError, Direction, Expect, RangeQuery, Revision, RowKey};
use serde::{Deserialize, Serialize};

hex_id! {
    /// The id of a replay. Later replays have greater ids.
    pub RunId, "the id of a replay"
}

/// The way in which a full replay builds the read model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReplayMode {
    /// A new model is built beside the live one, which serves and moves on until the switch. The
    /// default.
    #[default]
    BlueGreen,
    /// The live model is emptied and built again. Nothing serves until the replay has ended.
    InPlace,
}

pub(crate) fn run_key(run: RunId) -> RowKey {
    RowKey::new("run", run.to_string())
}

/// Returns the key of a run's lease.
pub(crate) fn lease_key(run: RunId) -> RowKey {
    RowKey::new("run/lease", run.to_string())
}

impl Leases {
    /// Returns a contender for the lease of a run.
    pub(crate) fn run_contender(&self, run: RunId, owner: &str) -> super::Contender {
        self.contender(lease_key(run), owner)
    }
    /// Returns a contender for the lease of filtered replays of a processor.
    pub(crate) fn part_contender(&self, processor: &str, owner: &str) -> super::Contender {
        self.contender(RowKey::new("run/part", processor), owner)
    }
}

impl Rows {
    /// Returns the row of a run; `None` if there is no such run.
    pub(crate) async fn run(
        &self,
        run: RunId,
    ) -> Result<Option<Stored<RunRow>>, ControlStoreError> {
        self.get(&run_key(run)).await
    }

    /// Writes the row of a run in place of the write that was `seen`. Runs are kept as long as the
    /// audit.
    pub(crate) async fn run_put(
        &self,
        run: RunId,
        row: RunRow,
        seen: Option<Revision>,
    ) -> Result<PutIf<RunRow>, ControlStoreError> {
        let expires_at = Some(row.at.plus(KEPT));
        let expect = seen.map_or(Expect::Absent, Expect::Revision);
        self.put_until(&run_key(run), row, expect, expires_at).await
    }

    /// Notes in the row of a run that a processor has switched to its new generation. Returns the
    /// row as it is then; `None` if there is none.
    pub(crate) async fn run_switched(
        &self,
        run: RunId,
        processor: &str,
    ) -> Result<Option<Stored<RunRow>>, ControlStoreError> {
        let mut races = Races::default();
        loop {
            let Some(found) = self.run(run).await? else {
                return Ok(None);
            };
            let Some(row) = found.value.switched(processor) else {
                return Ok(Some(found));
            };
            if let PutIf::Written(row) = self.run_put(run, row, Some(found.revision)).await? {
                return Ok(Some(row));
            }
            self.lost(&mut races, &run_key(run)).await?;
        }
    }

    /// Returns one page of the runs, the newest first.
    pub(crate) async fn run_page(
        &self,
        after: Option<String>,
    ) -> Result<KeyedPage<RunId, RunRow>, ControlStoreError> {
        let query = RangeQuery::new("run")
            .with_direction(Direction::Descending)
            .with_after(after);
        self.page(&query, |sort| sort.parse().ok()).await
    }

    /// Writes the row of a segment in place of the write that was `seen`. `row` is that of the run.
    pub(crate) async fn segment_put(
        &self,
        (run, row): (RunId, &RunRow),
        index: u32,
        segment: SegmentRow,
        seen: Option<Revision>,
    ) -> Result<PutIf<SegmentRow>, ControlStoreError> {
        let key = RowKey::new(format!("seg/{run}"), format!("{index:08}"));
        let expect = seen.map_or(Expect::Absent, Expect::Revision);
        let expires_at = Some(row.at.plus(KEPT));
        self.put_until(&key, segment, expect, expires_at).await
    }

    /// Returns one page of the segments of a run that have rows, by their numbers.
    pub(crate) async fn segment_page(
        &self,
        run: RunId,
        after: Option<String>,
    ) -> Result<KeyedPage<u32, SegmentRow>, ControlStoreError> {
        let query = RangeQuery::new(format!("seg/{run}")).with_after(after);
        self.page(&query, |sort| sort.parse().ok()).await
    }
}

#[cfg(test)]
mod tests;
