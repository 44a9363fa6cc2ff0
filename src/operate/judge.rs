//! What has become of an item of a job, as pure functions of its rows.
//!
//! Each item is asked for once, also if the executor of the job dies and another takes over. What
//! tells that an item was asked for is in the rows: the park row names the job that asked last, and
//! a letter that has failed again has another revision.
use crate::{
    Version,
    control::{
        AskRow, Item, ItemState, JobId, LetterHead, LetterId, ParkId, ParkRow, ParkState, Stored,
    },
};

/// The decision about an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The owner of the partition is at work, on behalf of this job or of somebody else.
    Wait,
    /// The job asks for the item now.
    Ask,
    /// The item is over, after this number of its events were handled.
    Over(ItemState, u64),
}

/// The parked stream of an item.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    pub(super) id: ParkId,
    pub(super) from: Version,
    pub(super) high: Version,
}

/// Judges a parked stream by its row as it is now. `is_confirmed`: this executor knows that its
/// request was written.
pub(super) fn judge_stream(
    job: JobId,
    item: &Item,
    parked: Parked,
    row: Option<&ParkRow>,
    is_confirmed: bool,
) -> Verdict {
    let is_asked = item.state == ItemState::Asked;
    // Released, and perhaps parked again since, or redriven beyond the selection.
    let Some(row) = row.filter(|row| row.id == parked.id && row.from <= parked.high) else {
        return gone(item);
    };
    match &row.state {
        ParkState::Requested(_) | ParkState::Redriving { .. } => Verdict::Wait,
        ParkState::Parked if row.last_job == Some(job) || (is_asked && is_confirmed) => {
            let handled = row.from.get().saturating_sub(parked.from.get());
            Verdict::Over(ItemState::Failed, handled.min(item.events))
        }
        // Either nobody has asked yet, or the executor before this one died before it could.
        ParkState::Parked => Verdict::Ask,
    }
}

/// Judges a letter by its request, which is read first, and by the letter as it is now. The owner
/// deletes the request after it has changed the letter.
pub(super) fn judge_letter(
    item: &Item,
    id: LetterId,
    ask: Option<&AskRow>,
    letter: Option<&Stored<LetterHead>>,
    is_confirmed: bool,
) -> Verdict {
    let Some(letter) = letter.filter(|letter| letter.value.id == id) else {
        return gone(item);
    };
    if ask.is_some() {
        return Verdict::Wait;
    }
    let is_asked = item.state == ItemState::Asked;
    let has_failed = item.seen.is_some_and(|seen| seen != letter.revision);
    if is_asked && (has_failed || is_confirmed) {
        return Verdict::Over(ItemState::Failed, 0);
    }
    Verdict::Ask
}

const fn gone(item: &Item) -> Verdict {
    match item.state {
        ItemState::Asked => Verdict::Over(ItemState::Done, item.events),
        _ => Verdict::Over(ItemState::Gone, 0),
    }
}
