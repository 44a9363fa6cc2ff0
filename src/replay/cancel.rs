//! The end of a replay from outside: the row of the run first, then those of the processors.
use super::{ReplayError, RunId, RunState};
use crate::{
    control::{PutIf, Races, ReplayMode, Rows, RunRow, Stored, generations_key, run_key},
    ports::ControlStoreError,
};

/// The result of a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelOutcome {
    /// The replay is cancelled. The generations of before serve.
    Cancelled,
    /// Every new generation serves already.
    TooLate,
}

/// Cancels a run. What was done before may be done again, so that a cancellation that was broken
/// off can be repeated.
pub(crate) async fn cancel(rows: &Rows, run: RunId) -> Result<CancelOutcome, ReplayError> {
    let mut stored = rows.run(run).await?.ok_or(ReplayError::NotFound { run })?;
    let mut races = Races::default();
    while let Some(next) = stored.value.cancelled() {
        match rows.run_put(run, next, Some(stored.revision)).await? {
            PutIf::Written(row) => stored = row,
            PutIf::Conflict(Some(row)) => {
                stored = row;
                rows.lost(&mut races, &run_key(run)).await?;
            }
            PutIf::Conflict(None) => return Err(ReplayError::NotFound { run }),
        }
    }
    match stored.value.state {
        RunState::Done => return Ok(CancelOutcome::TooLate),
        RunState::Cancelled => {}
        _ => {
            let source = format!("replay {run} is in a state that a newer build has written");
            let source = source.into();
            return Err(ControlStoreError::Unavailable { source }.into());
        }
    }
    for of in &stored.value.processors {
        release(rows, (run, &stored.value), &of.name).await?;
    }
    note_switches(rows, run, stored).await
}

/// Takes the run out of the row of a processor. The generation that it has built is left to the
/// runners, which delete it.
pub(super) async fn release(
    rows: &Rows,
    (run, row): (RunId, &RunRow),
    name: &str,
) -> Result<(), ControlStoreError> {
    let generation = row.processor(name).map_or(0, |of| of.generation);
    let mut races = Races::default();
    loop {
        let Some(stored) = rows.generations(name).await? else {
            return Ok(());
        };
        let Some(next) = stored.value.without(run, Some(row)) else {
            return Ok(());
        };
        if stored.value.has_left(generation) {
            rows.retired_put(name, generation, row.mode == ReplayMode::InPlace)
                .await?;
        }
        let put = rows.generations_put(name, next, Some(stored.revision));
        if matches!(put.await?, PutIf::Written(_)) {
            return Ok(());
        }
        rows.lost(&mut races, &generations_key(name)).await?;
    }
}

/// Notes the processors that have switched to their new generations although nobody has noted it:
/// the instance that has switched may have died before.
async fn note_switches(
    rows: &Rows,
    run: RunId,
    mut stored: Stored<RunRow>,
) -> Result<CancelOutcome, ReplayError> {
    if stored.value.filter.is_none() {
        let processors = stored.value.processors.clone();
        for of in processors.iter().filter(|of| !of.is_switched) {
            let found = rows.generations(&of.name).await?;
            if found.is_some_and(|found| found.value.active == of.generation) {
                let noted = rows.run_switched(run, &of.name).await?;
                stored = noted.ok_or(ReplayError::NotFound { run })?;
            }
        }
    }
    Ok(match stored.value.state {
        RunState::Done => CancelOutcome::TooLate,
        _ => CancelOutcome::Cancelled,
    })
}
