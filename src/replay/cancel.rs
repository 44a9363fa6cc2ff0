//! The end of a replay from outside: the row of the run first, then those of the processors.
use super::{ReplayError, RunId, RunState};
use crate::{
    control::{PutIf, ReplayMode, Rows, RunRow, Stored},
    ports::ControlStoreError,
};

/// The most races that one step loses before it gives up.
const RACES: usize = 20;

fn raced(what: &str) -> ControlStoreError {
    ControlStoreError::Unavailable {
        source: format!("{what} was changed by others {RACES} times meanwhile").into(),
    }
}

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
    for _ in 0..RACES {
        if stored.value.state == RunState::Done {
            return Ok(CancelOutcome::TooLate);
        }
        let Some(next) = stored.value.cancelled() else {
            break;
        };
        match rows.run_put(run, next, Some(stored.revision)).await? {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => stored = row,
            PutIf::Conflict(None) => return Err(ReplayError::NotFound { run }),
        }
    }
    if stored.value.state != RunState::Cancelled {
        return Err(raced(&format!("replay {run}")).into());
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
    for _ in 0..RACES {
        let Some(stored) = rows.generations(name).await? else {
            return Ok(());
        };
        let Some(next) = stored.value.without(run) else {
            return Ok(());
        };
        if generation > 0 && generation != stored.value.active {
            rows.retired_put(name, generation, row.mode == ReplayMode::InPlace)
                .await?;
        }
        let put = rows.generations_put(name, next, Some(stored.revision));
        if matches!(put.await?, PutIf::Written(_)) {
            return Ok(());
        }
    }
    Err(raced(&format!("the row of {name}")))
}

/// Notes the processors that have switched to their new generations although nobody has noted it:
/// the instance that has switched may have died before.
pub(super) async fn note_switches(
    rows: &Rows,
    run: RunId,
    mut stored: Stored<RunRow>,
) -> Result<CancelOutcome, ReplayError> {
    let processors = stored.value.processors.clone();
    for of in processors.iter().filter(|of| !of.is_switched) {
        let found = rows.generations(&of.name).await?;
        // The row of a run in catch-up is cleared by the switch only. After it, other runs may
        // have switched to later generations.
        let is_catching_up = stored.value.state == RunState::CatchUp;
        let serves = found.is_some_and(|found| {
            let found = found.value;
            let is_later = is_catching_up && found.active > of.generation && !found.is_of(run);
            found.active == of.generation || is_later
        });
        if of.generation == 0 || !serves || stored.value.filter.is_some() {
            continue;
        }
        for _ in 0..RACES {
            let Some(next) = stored.value.switched(&of.name) else {
                break;
            };
            match rows.run_put(run, next, Some(stored.revision)).await? {
                PutIf::Written(row) | PutIf::Conflict(Some(row)) => stored = row,
                PutIf::Conflict(None) => return Err(ReplayError::NotFound { run }),
            }
        }
    }
    Ok(match stored.value.state {
        RunState::Done => CancelOutcome::TooLate,
        _ => CancelOutcome::Cancelled,
    })
}
