//! The park row of a stream that is redriven: `from` moves, and at the end the row goes.
use super::{
    super::{
        Machine,
        rows::RowOp,
        tasks::{Kind, Reply},
    },
    Redrive, Step,
};

impl Machine {
    /// Moves `from`, or parks the stream again at a new failure.
    pub(super) fn advance_row(&mut self, reply: &Reply, mut redrive: Box<Redrive>) {
        let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) else {
            return;
        };
        let Some(parked) = owned.parking.parked.get(&redrive.stream) else {
            return;
        };
        let row = &parked.row.value;
        let mut wanted = match redrive.failure.take() {
            Some(failure) => row.failed(&failure),
            None => row.advanced(redrive.next),
        };
        // What has arrived meanwhile needs no operation of its own, so that a long redrive does not
        // keep the offset back.
        let last = parked.deferred.iter().map(|r| r.event.header.version).max();
        if let Some(last) = last.filter(|_| self.rules.has_event_store) {
            wanted = wanted.deferred_to_history(last);
        }
        redrive.step = Step::Advance;
        redrive.wanted = Some(wanted.clone());
        let op = RowOp::ReplacePark(redrive.stream.clone(), wanted, parked.row.revision);
        self.go_on(reply, Kind::Redrive(redrive), Some(op));
    }

    /// Deletes the row of a stream of which everything is handled.
    ///
    /// A runner that stores positions stores that of the stream before. Otherwise a process that
    /// dies here would leave no trace of what was handled: the offset has passed the deferred
    /// records, and the next owner would handle them again, or miss them.
    pub(super) fn delete_row(&mut self, reply: &Reply, mut redrive: Box<Redrive>) {
        let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) else {
            return;
        };
        let Some(parked) = owned.parking.parked.get(&redrive.stream) else {
            return;
        };
        let op = RowOp::DeletePark(redrive.stream.clone(), parked.row.revision);
        let is_stored = self.is_position_stored(&reply.partition, &redrive.stream);
        redrive.step = if is_stored {
            Step::Delete
        } else {
            Step::Position
        };
        self.go_on(reply, Kind::Redrive(redrive), is_stored.then_some(op));
    }
}
