//! Pause and resume.
use super::{OperateError, Operator, Reason};
use crate::{
    Timestamp,
    control::{PauseRow, PutIf, Races},
    ports::RowKey,
};

/// The last decision about whether a processor is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PauseStatus {
    /// True if no instance may begin to handle an event.
    pub is_paused: bool,
    /// The name of the operator who decided.
    pub by: String,
    /// The reason for the decision.
    pub why: String,
    /// The time of the decision.
    pub at: Timestamp,
}

impl From<PauseRow> for PauseStatus {
    fn from(row: PauseRow) -> Self {
        Self {
            is_paused: row.is_paused,
            by: row.by,
            why: row.why,
            at: row.at,
        }
    }
}

/// The answer to a pause or a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PauseChange {
    /// 1 if the processor is paused or resumed by this call; 0 if it was so already.
    pub affected: u64,
}

impl Operator {
    /// Pauses a processor: no instance of it begins to handle an event until it is resumed, also
    /// none that starts later. Attempts that are running end.
    ///
    /// Instances follow within a few seconds. Each shows in its
    /// [state](super::InstanceState::Paused) that it has.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn pause(
        &self,
        processor: &str,
        reason: &Reason,
    ) -> Result<PauseChange, OperateError> {
        self.set_paused(processor, true, reason).await
    }

    /// Resumes a processor that was paused.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn resume(
        &self,
        processor: &str,
        reason: &Reason,
    ) -> Result<PauseChange, OperateError> {
        self.set_paused(processor, false, reason).await
    }

    async fn set_paused(
        &self,
        processor: &str,
        is_paused: bool,
        reason: &Reason,
    ) -> Result<PauseChange, OperateError> {
        let generations = self.generations(processor).await?;
        let action = if is_paused { "pause" } else { "resume" };
        let act = async {
            let affected = self.write_pause(processor, is_paused, reason).await?;
            self.announce(processor, &generations).await?;
            Ok((PauseChange { affected }, affected))
        };
        self.audited(action, processor.into(), reason, act).await
    }

    async fn write_pause(
        &self,
        processor: &str,
        is_paused: bool,
        reason: &Reason,
    ) -> Result<u64, OperateError> {
        let wanted = PauseRow::new(is_paused, reason.who(), reason.why(), self.clock.now());
        let mut seen = self.rows.pause_get(processor).await?;
        let (key, mut races) = (RowKey::new("op", processor), Races::default());
        loop {
            if seen.as_ref().is_some_and(|row| row.value.is_paused) == is_paused {
                return Ok(0);
            }
            let (row, revision) = match &seen {
                Some(row) => (row.value.with(wanted.clone()), Some(row.revision)),
                None => (wanted.clone(), None),
            };
            match self.rows.pause_put(processor, row, revision).await? {
                PutIf::Written(_) => return Ok(1),
                PutIf::Conflict(theirs) => seen = theirs,
            }
            self.rows.lost(&mut races, &key).await?;
        }
    }
}
