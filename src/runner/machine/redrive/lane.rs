//! The redrive of a stream that shares its lane with others.
use super::{
    super::{
        Machine,
        rows::RowOp,
        tasks::{Kind, Reply, TaskId},
    },
    Redrive, Step,
};

impl Machine {
    /// Deletes the row of a stream whose lane has nothing left to handle.
    pub(super) fn delete_drained(&mut self, id: TaskId) {
        if let Some((reply, Kind::Redrive(redrive))) = self.tasks.take(id) {
            self.delete_row(&reply, redrive);
        }
    }

    /// Deletes the row of a stream of which everything is handled.
    ///
    /// Where the runner stores positions, that of the stream is stored before. Otherwise a process
    /// that dies here would leave no trace of what was handled: the offset has passed the deferred
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

    /// Parks a stream again whose lane cannot go on, since another stream of it has failed.
    pub(in super::super) fn stop_redrive(&mut self, id: TaskId) {
        let Some((reply, Kind::Redrive(mut redrive))) = self.tasks.take(id) else {
            return;
        };
        if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch)
            && let Some(parked) = owned.parking.parked.get(&redrive.stream)
        {
            let stopped = parked.row.value.stopped();
            let op =
                RowOp::ReplacePark(redrive.stream.clone(), stopped.clone(), parked.row.revision);
            (redrive.step, redrive.wanted) = (Step::Advance, Some(stopped));
            self.go_on(&reply, Kind::Redrive(redrive), Some(op));
        }
    }
}
