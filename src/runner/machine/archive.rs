//! Decided discards move to an archive once their events cannot come again, so that an owner does
//! not read all that was ever discarded. A request that came after its event was handled is
//! answered first.
use super::{
    Machine,
    rows::{Durable, Load, RowAnswer, RowOp},
    tasks::{Kind, Reply},
};
use crate::{
    StreamId, Version,
    control::{DiscardRow, DiscardState, LetterKey, PutIf, Stored},
    ports::Offset,
};
use std::collections::BTreeMap;

/// Discards that move to the archive: each is copied there, and then deleted.
#[derive(Debug)]
pub(super) struct Archive {
    left: Vec<(StreamId, Version, Stored<DiscardRow>)>,
    /// The last of them is copied.
    is_copied: bool,
}

impl Archive {
    fn op(&self) -> Option<RowOp> {
        let (stream, version, row) = self.left.last()?;
        let (stream, version) = (stream.clone(), *version);
        Some(if row.value.state == DiscardState::Asked {
            RowOp::ReplaceDiscard(stream, version, row.value.handled(), row.revision)
        } else if self.is_copied {
            RowOp::DeleteDiscard(stream, version, row.revision)
        } else {
            RowOp::ArchiveDiscard(stream, version, row.value.clone())
        })
    }
}

impl Machine {
    /// Begins to move the discards that are over, as the rows were just read.
    pub(super) fn archive_discards(
        &mut self,
        load: &Load,
        positions: &BTreeMap<StreamId, Durable>,
    ) {
        let mut tasks = self.tasks.running.values();
        let is_archiving = tasks
            .any(|task| matches!(task.kind, Kind::Archive(_)) && task.partition == load.partition);
        let Some(owned) = self.partitions.get(&load.partition, load.epoch) else {
            return;
        };
        if is_archiving {
            return;
        }
        let (parking, committed) = (&owned.parking, owned.window.committed_to());
        let mut left = Vec::new();
        for ((stream, version), row) in &parking.discards {
            let parked = parking.parked.get(stream);
            // What lies before the first version of a stream that waits for its lane may be a gap.
            let is_waiting = parked.is_some_and(|parked| {
                let row = &parked.row.value;
                row.is_follower || row.from <= *version
            });
            let is_over = match positions.get(stream) {
                Some(at) if at.is_of_model => {
                    row.value
                        .is_over(*version, Some(at.version), Offset::new(0))
                }
                position => {
                    // Without stored positions it is what has arrived and is committed since the
                    // partition was assigned.
                    let met = parking.met_to(stream);
                    let met = met.filter(|(_, offset)| *offset < committed);
                    let stored = position.map(|at| at.version);
                    let position = stored.max(met.map(|(version, _)| version));
                    row.value.is_over(*version, position, committed)
                }
            };
            // The request for a letter is answered when the letter is deleted.
            let key = LetterKey::event(stream.clone(), *version);
            let has_letter = parking.letters.contains_key(&key);
            if !is_waiting && !has_letter && is_over {
                left.push((stream.clone(), *version, row.clone()));
            }
        }
        let archive = Archive {
            left,
            is_copied: false,
        };
        if let Some(op) = archive.op() {
            let kind = Kind::Archive(archive);
            self.begin_task(&load.partition, load.epoch, kind, Some(op));
        }
    }

    /// Takes the answer to one step of the move.
    pub(super) fn archived(&mut self, reply: &Reply, mut archive: Archive) {
        let loads = self.polling.loads;
        if let Some((stream, version, row)) = archive.left.last_mut()
            && row.value.state == DiscardState::Asked
        {
            let owned = self.partitions.get(&reply.partition, reply.epoch);
            match (&reply.answer, owned) {
                (RowAnswer::Discard(PutIf::Written(answered)), Some(owned)) => {
                    let key = (stream.clone(), *version);
                    owned.parking.note_discard(key, answered.clone(), loads);
                    *row = answered.clone();
                }
                // The operator has written it again: it is looked at when the rows are read again.
                _ => drop(archive.left.pop()),
            }
            if let Some(op) = archive.op() {
                self.go_on(reply, Kind::Archive(archive), Some(op));
            }
            return;
        }
        if archive.is_copied
            && let Some((stream, version, row)) = archive.left.pop()
            && let Some(owned) = self.partitions.get(&reply.partition, reply.epoch)
        {
            // An operator may have asked again meanwhile: then the row stays.
            let discards = &mut owned.parking.discards;
            let is_same = |known: &Stored<DiscardRow>| known.revision == row.revision;
            let key = (stream, version);
            if matches!(reply.answer, RowAnswer::Done) && discards.get(&key).is_some_and(is_same) {
                discards.remove(&key);
            }
        }
        archive.is_copied = !archive.is_copied;
        if let Some(op) = archive.op() {
            self.go_on(reply, Kind::Archive(archive), Some(op));
        }
    }
}
