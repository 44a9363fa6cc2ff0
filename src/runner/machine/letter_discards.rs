//! Discards of dead letters that nobody else carries out.
//!
//! An operator writes the row of a discard, and then a request for the letter. Without the request
//! the letter would stay, and no redrive would select it. So the owner goes through the rows that
//! it has read: a letter whose version is discarded is deleted, once the row says that the version
//! is passed over.
//!
//! ```text
//! row of the discard: asked -> passed -> the letter is deleted
//! ```
use super::{
    Machine,
    rows::{Load, RowAnswer, RowOp},
    tasks::{Kind, Reply},
};
use crate::{
    StreamId, Version,
    control::{DiscardRow, DiscardState, LetterKey, PutIf, Stored},
    ports::{AssignmentEpoch, PartitionId},
};

/// Discards whose letters are deleted, one after the other.
#[derive(Debug)]
pub(super) struct LetterDiscards {
    left: Vec<(StreamId, Version, Stored<DiscardRow>)>,
}

impl LetterDiscards {
    fn op(&self) -> Option<RowOp> {
        let (stream, version, row) = self.left.last()?;
        let (stream, version) = (stream.clone(), *version);
        Some(match row.value.state {
            DiscardState::Asked => {
                RowOp::ReplaceDiscard(stream, version, row.value.passed(), row.revision)
            }
            // The answer is durable: now the letter may go.
            _ => RowOp::DeleteLetter(LetterKey::event(stream, version)),
        })
    }
}

impl Machine {
    /// Begins to carry out the discards of letters without a request, as the rows were just read.
    pub(super) fn carry_out_discards(&mut self, load: &Load) {
        let mut tasks = self.tasks.running.values();
        let is_at_work = tasks.any(|task| {
            matches!(task.kind, Kind::LetterDiscards(_)) && task.partition == load.partition
        });
        let Some(owned) = self.partitions.owned.get(&load.partition) else {
            return;
        };
        if is_at_work || owned.epoch != load.epoch {
            return;
        }
        let discards = owned.parking.discards.iter();
        let of_letters = discards.filter(|((stream, version), row)| {
            row.value.is_in_force()
                && self.is_discard_left(&load.partition, load.epoch, stream, *version)
        });
        let left =
            of_letters.map(|((stream, version), row)| (stream.clone(), *version, row.clone()));
        let discards = LetterDiscards {
            left: left.collect(),
        };
        if let Some(op) = discards.op() {
            let kind = Kind::LetterDiscards(discards);
            self.begin_task(&load.partition, load.epoch, kind, Some(op));
        }
    }

    /// Returns true if there is a letter of a version that is discarded, and nothing else deletes
    /// it: no request for the letter, and no redrive of its stream.
    fn is_discard_left(
        &self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        stream: &StreamId,
        version: Version,
    ) -> bool {
        let key = LetterKey::event(stream.clone(), version);
        let owned = self.partitions.owned.get(partition);
        let Some(owned) = owned.filter(|owned| owned.epoch == epoch) else {
            return false;
        };
        let parking = &owned.parking;
        let mut tasks = self.tasks.running.values();
        let Some(is_given_up) = parking.letters.get(&key) else {
            return false;
        };
        let parked = parking.parked.get(stream);
        // No redrive meets an event that was given up before its stream was parked.
        parked.is_none_or(|parked| *is_given_up && parked.row.value.is_duplicate(version))
            && !parking.asks.contains_key(&key)
            && !tasks.any(|task| match &task.kind {
                Kind::Ask(ask) => ask.letter == key,
                Kind::GiveUp(give_up) => give_up.record.event.header.stream == *stream,
                _ => false,
            })
    }

    /// Takes the answer to one step of a discard.
    pub(super) fn letter_discarded(&mut self, reply: &Reply, mut discards: LetterDiscards) {
        let loads = self.polling.loads;
        let Some((stream, version, row)) = discards.left.last_mut() else {
            return;
        };
        let (stream, version) = (stream.clone(), *version);
        match &reply.answer {
            RowAnswer::Discard(PutIf::Written(now) | PutIf::Conflict(Some(now))) => {
                *row = now.clone();
                let is_in_force = now.value.is_in_force();
                if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
                    let key = (stream, version);
                    owned.parking.note_discard(key, now.clone(), loads);
                }
                if !is_in_force {
                    discards.left.pop();
                }
            }
            answer => {
                // The letter is deleted, or the row has gone to the archive.
                if matches!(answer, RowAnswer::Done) {
                    self.letter_deleted(reply, &LetterKey::event(stream, version));
                }
                discards.left.pop();
            }
        }
        // Since the rows were read, a stream may have been parked: then its redrive does it.
        while let Some((stream, version, _)) = discards.left.last() {
            if self.is_discard_left(&reply.partition, reply.epoch, stream, *version) {
                break;
            }
            discards.left.pop();
        }
        if let Some(op) = discards.op() {
            self.go_on(reply, Kind::LetterDiscards(discards), Some(op));
        }
    }
}
