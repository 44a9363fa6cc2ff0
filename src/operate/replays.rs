//! Replays, as operators see them: their state, their progress, and their end before it is due.
use super::{OperateError, Operator, Reason};
use crate::{
    Timestamp,
    control::{RunRow, SegmentCounts},
    replay::{CancelOutcome, ReplayError, ReplayMode, RunId, RunState, cancel},
    runner::ReplayPart,
};

/// A processor of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayedProcessor {
    /// The name of the processor.
    pub name: String,
    /// The generation that is built; 0 before one is allocated. For a replay of a part of the
    /// history it is the live one.
    pub generation: u32,
    /// True once the generation serves.
    pub serves: bool,
}

/// The state of a replay.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReplayStatus {
    /// The id of the replay.
    pub run: RunId,
    /// The state.
    pub state: RunState,
    /// The processors.
    pub processors: Vec<ReplayedProcessor>,
    /// The way in which a full replay builds the read models.
    pub mode: ReplayMode,
    /// The part of the history; `None` for a full replay.
    pub part: Option<ReplayPart>,
    /// The name of the operator who has started the replay.
    pub by: String,
    /// The time at which the replay was started.
    pub at: Timestamp,
    /// The number of segments of the scan.
    pub segments: u32,
}

/// The numbers of a replay, as they are durable.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ReplayCounts {
    /// The number of events that were read and applied.
    pub events: u64,
    /// The number of commits with these events.
    pub commits: u64,
    /// The number of streams whose first commit is among them.
    pub streams: u64,
    /// The number of events that projectors have handled.
    pub handled: u64,
    /// The number of segments that are done.
    pub segments_done: u32,
    /// The cost in read units, as far as the event store reports one.
    pub read_units: f64,
}

/// A page of replays, the newest first.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReplayPage {
    /// The replays of the page. The page may be empty before the end of the list.
    pub replays: Vec<ReplayStatus>,
    /// The value for `after` of the next call; `None` on the last page.
    pub next: Option<String>,
}

impl ReplayStatus {
    fn new(run: RunId, row: &RunRow) -> Self {
        let processors = row.processors.iter().map(|of| ReplayedProcessor {
            name: of.name.clone(),
            generation: of.generation,
            serves: of.is_switched,
        });
        Self {
            run,
            state: row.state,
            processors: processors.collect(),
            mode: row.mode,
            part: row.filter.as_ref().map(crate::replay::part_of),
            by: row.by.clone(),
            at: row.at,
            segments: row.segments,
        }
    }
}

impl Operator {
    /// Returns one page of the replays of all processors, the newest first. Replays are kept for
    /// 400 days.
    ///
    /// A replay is started by a process that has the projectors, with
    /// [`Replay`](crate::replay::Replay).
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn replays(&self, after: Option<String>) -> Result<ReplayPage, OperateError> {
        let page = self.rows.run_page(after).await?;
        let replays = page.rows.iter();
        Ok(ReplayPage {
            replays: replays
                .map(|(run, row)| ReplayStatus::new(*run, &row.value))
                .collect(),
            next: page.next,
        })
    }

    /// Returns the state of a replay and its numbers. Call it again and again to watch a replay of
    /// another process.
    ///
    /// # Errors
    /// - [`OperateError::UnknownReplay`] if there is no such replay.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn replay(&self, run: RunId) -> Result<(ReplayStatus, ReplayCounts), OperateError> {
        let row = self.rows.run(run).await?;
        let row = row.ok_or(OperateError::UnknownReplay { run })?;
        let (mut all, mut segments_done, mut after) = (SegmentCounts::default(), 0, None);
        loop {
            let page = self.rows.segment_page(run, after).await?;
            for (_, segment) in page.rows {
                all.add(&segment.value.counts);
                segments_done += u32::from(segment.value.is_done);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let counts = ReplayCounts {
            events: all.events,
            commits: all.commits,
            streams: all.streams,
            handled: all.handled,
            segments_done,
            read_units: all.read_units,
        };
        Ok((ReplayStatus::new(run, &row.value), counts))
    }

    /// Cancels a replay, or abandons one whose process has died. The generations of before serve,
    /// as they do anyway. A process that still works on the replay notices it within a few seconds.
    ///
    /// # Errors
    /// - [`OperateError::UnknownReplay`] if there is no such replay.
    /// - [`OperateError::Control`] if the control store refuses or fails. The call may be repeated.
    pub async fn cancel_replay(
        &self,
        run: RunId,
        reason: &Reason,
    ) -> Result<CancelOutcome, OperateError> {
        let act = async {
            let outcome = cancel(&self.rows, run).await.map_err(|error| match error {
                ReplayError::Control(error) => OperateError::Control(error),
                _ => OperateError::UnknownReplay { run },
            })?;
            let affected = u64::from(outcome == CancelOutcome::Cancelled);
            Ok((outcome, affected))
        };
        self.audited("cancel replay", run.to_string(), reason, act)
            .await
    }
}
