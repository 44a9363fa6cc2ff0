//! [`merge`]: the value to put after an owner's write has met another one.
use super::{ParkRow, ParkState};

/// Merges the value that an owner wanted to put with the one that it has met. The owner puts the
/// result in place of the other write. `None` if the row is another owner's, or another parking of
/// the stream: the owner then takes the row as it is, and stops.
///
/// - `from` is a durable position, whichever of the two owners has reached it, so that the higher
///   one counts. `high` is the higher one too: each is the version of a record that is not done.
/// - A request in the row that was met is newer than the one that the owner was serving. It stays,
///   also if the owner has just parked the stream again.
/// - `from` of a stream that only waits for another one of its lane is not a durable position. That
///   of a failure counts instead, also if it is lower.
/// - The records of all versions that wait are stored if both rows say so.
/// - An owner that finds another owner's name has lost its partition, or will lose it.
pub(crate) fn merge(wanted: &ParkRow, theirs: &ParkRow, me: &str) -> Option<ParkRow> {
    if theirs.id != wanted.id {
        return None;
    }
    let mut merged = theirs.clone();
    match &theirs.state {
        ParkState::Redriving { owner, .. } if owner != me => return None,
        ParkState::Requested(_) => {}
        ParkState::Parked | ParkState::Redriving { .. } => merged.state = wanted.state.clone(),
    }
    let is_first_failure = theirs.is_follower && !wanted.is_follower;
    if is_first_failure {
        merged.from = wanted.from;
    }
    // The failure is the one at the `from` that counts.
    let is_ours = is_first_failure || wanted.from >= theirs.from;
    if is_ours {
        merged.fingerprint = wanted.fingerprint;
        merged.attempts = wanted.attempts;
        merged.since = wanted.since;
    }
    merged.last_job = wanted.last_job.or(theirs.last_job);
    merged.high = wanted.high.max(theirs.high);
    merged.has_records = wanted.has_records && theirs.has_records;
    merged.is_late = wanted.is_late || theirs.is_late;
    let mut merged = merged.advanced(wanted.from);
    if is_ours {
        merged.is_follower = wanted.is_follower;
    }
    Some(merged)
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
