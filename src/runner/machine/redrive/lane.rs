//! The redrive of a stream that shares its lane with others.
use super::{
    super::{
        Machine,
        rows::RowOp,
        tasks::{Kind, TaskId},
    },
    Step,
};

impl Machine {
    /// Deletes the row of a stream whose lane has nothing left to handle.
    pub(super) fn delete_drained(&mut self, id: TaskId) {
        if let Some((reply, Kind::Redrive(redrive))) = self.tasks.take(id) {
            self.delete_row(&reply, redrive);
        }
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
