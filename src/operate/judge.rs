//! The outcome of an item of a job, as pure functions of its rows.
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
    /// The owner of the partition is at work, on behalf of this job or of another request.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        StreamId, Timestamp,
        control::{Fingerprint, ItemTarget, LetterClass, ParkFailure, Request},
        ports::{PartitionId, Revision},
    };

    const JOB: JobId = JobId::from_u128(5);
    const OTHER: JobId = JobId::from_u128(6);

    fn failure(version: u64) -> ParkFailure {
        ParkFailure {
            version: Version::new(version),
            fingerprint: Fingerprint::from_u128(1),
            attempts: 1,
            at: Timestamp::default(),
        }
    }
    fn row(id: u128, from: u64, high: u64) -> ParkRow {
        ParkRow::new(ParkId::from_u128(id), &failure(from)).deferred_to(Version::new(high))
    }
    fn asked(row: &ParkRow, job: Option<JobId>) -> ParkRow {
        let by = "ann".into();
        let upto = job.map(|_| Version::new(4));
        row.requested(Request { by, job, upto }).unwrap()
    }
    fn item(state: ItemState, target: ItemTarget, seen: Option<u128>) -> Item {
        Item {
            partition: PartitionId::new("orders", 0),
            target,
            events: 3,
            state,
            seen: seen.map(Revision::from_u128),
            handled: 0,
        }
    }

    /// Judges the item of a stream that was parked under the id 1, from version 2 to 4.
    fn of_stream(state: ItemState, row: Option<&ParkRow>, is_confirmed: bool) -> Verdict {
        let parked = Parked {
            id: ParkId::from_u128(1),
            from: Version::new(2),
            high: Version::new(4),
        };
        let target = ItemTarget::Stream {
            stream: StreamId::new("cart", "a").unwrap(),
            id: parked.id,
            from: parked.from,
            high: parked.high,
        };
        judge_stream(JOB, &item(state, target, None), parked, row, is_confirmed)
    }

    #[test]
    fn an_item_whose_parking_has_ended_is_done_if_it_was_asked_for_and_gone_otherwise() {
        // Released; parked again below what was listed, since records came again after a crash;
        // redriven beyond the selection.
        for row in [None, Some(row(2, 2, 4)), Some(row(1, 5, 9))] {
            let waiting = of_stream(ItemState::Waiting, row.as_ref(), false);
            assert_eq!(waiting, Verdict::Over(ItemState::Gone, 0), "{row:?}");
            let asked = of_stream(ItemState::Asked, row.as_ref(), true);
            assert_eq!(asked, Verdict::Over(ItemState::Done, 3), "{row:?}");
        }
    }

    #[test]
    fn an_item_that_waits_is_asked_for_once_whoever_executes_the_job() {
        let waits = row(1, 2, 9);
        assert_eq!(
            of_stream(ItemState::Waiting, Some(&waits), false),
            Verdict::Ask
        );
        // The executor before has died between its note and its request.
        assert_eq!(
            of_stream(ItemState::Asked, Some(&waits), false),
            Verdict::Ask
        );
        let served = asked(&waits, Some(JOB)).claimed("a").unwrap();
        let failed = served.advanced(Version::new(3)).failed(&failure(3));
        for state in [ItemState::Waiting, ItemState::Asked] {
            for is_confirmed in [false, true] {
                let found = of_stream(state, Some(&failed), is_confirmed);
                assert_eq!(found, Verdict::Over(ItemState::Failed, 1), "{state:?}");
            }
        }
        let by_other = asked(&waits, Some(OTHER))
            .claimed("a")
            .unwrap()
            .failed(&failure(2));
        assert_eq!(
            of_stream(ItemState::Waiting, Some(&by_other), false),
            Verdict::Ask
        );
        // This executor knows that it has asked, whatever has become of the request.
        let confirmed = of_stream(ItemState::Asked, Some(&waits), true);
        assert_eq!(confirmed, Verdict::Over(ItemState::Failed, 0));
    }

    #[test]
    fn a_job_waits_for_every_redrive_that_is_under_way() {
        for job in [None, Some(JOB), Some(OTHER)] {
            let requested = asked(&row(1, 2, 9), job);
            for row in [requested.claimed("a").unwrap(), requested] {
                for state in [ItemState::Waiting, ItemState::Asked] {
                    assert_eq!(
                        of_stream(state, Some(&row), false),
                        Verdict::Wait,
                        "{row:?}"
                    );
                }
            }
        }
    }

    fn head(id: u128, revision: u128) -> Stored<LetterHead> {
        let text = format!(
            r#"{{"i":"{id:032x}","c":"permanent","y":"A","e":"no","p":"{id:032x}","n":1,"f":1,"l":2}}"#
        );
        let value: LetterHead = serde_json::from_str(&text).unwrap();
        assert_eq!(value.class, LetterClass::Permanent);
        let revision = Revision::from_u128(revision);
        Stored { value, revision }
    }
    /// Judges the item of the letter with the id 1, which had the revision 7 when it was asked for.
    fn of_letter(
        state: ItemState,
        is_requested: bool,
        letter: Option<&Stored<LetterHead>>,
        is_confirmed: bool,
    ) -> Verdict {
        let (stream, id) = (StreamId::new("cart", "a").unwrap(), LetterId::from_u128(1));
        let key = crate::control::LetterKey::event(stream, Version::new(7));
        let seen = (state == ItemState::Asked).then_some(7);
        let item = item(state, ItemTarget::Letter { key, id }, seen);
        let ask = AskRow {
            letter: id,
            what: crate::control::AskKind::Redrive,
            by: "ann".into(),
            job: Some(JOB),
            at: Timestamp::default(),
        };
        judge_letter(
            &item,
            id,
            is_requested.then_some(&ask),
            letter,
            is_confirmed,
        )
    }

    #[test]
    fn a_letter_is_over_once_its_request_is_gone_and_it_tells_the_outcome_itself() {
        use ItemState::{Asked, Done, Failed, Gone, Waiting};
        let (same, again, other) = (head(1, 7), head(1, 8), head(2, 7));
        for (state, is_requested, letter, is_confirmed, expected) in [
            (Waiting, false, Some(&same), false, Verdict::Ask),
            (Waiting, true, Some(&same), false, Verdict::Wait),
            (Waiting, false, None, false, Verdict::Over(Gone, 0)),
            (Waiting, false, Some(&other), false, Verdict::Over(Gone, 0)),
            (Asked, true, Some(&same), true, Verdict::Wait),
            (Asked, false, None, true, Verdict::Over(Done, 3)),
            (Asked, true, None, true, Verdict::Over(Done, 3)),
            (Asked, false, Some(&other), true, Verdict::Over(Done, 3)),
            (Asked, false, Some(&again), true, Verdict::Over(Failed, 0)),
            (Asked, false, Some(&again), false, Verdict::Over(Failed, 0)),
            // The owner has left the letter to its parked stream.
            (Asked, false, Some(&same), true, Verdict::Over(Failed, 0)),
            // The executor before has died before it could ask.
            (Asked, false, Some(&same), false, Verdict::Ask),
        ] {
            let found = of_letter(state, is_requested, letter, is_confirmed);
            let of = letter.map(|letter| letter.value.id);
            assert_eq!(
                found, expected,
                "{state:?} {is_requested} {of:?} {is_confirmed}"
            );
        }
    }
}
