//! Taking up a partition: where nothing was committed, the start is committed and noted before anything is handled.
use super::{
    RunnerError,
    processor::was_stopped,
    session::{Owned, Session},
    window::Window,
};
use crate::ports::{
    AssignedPartition, ControlStoreError, MessageBusError, Offset, OffsetCommit, PartitionId,
    StartedFrom,
};
use tokio_util::sync::CancellationToken;

impl Session<'_> {
    /// Takes up a partition, unless it is told to stop. Where nothing was committed, the start is committed, then noted,
    /// before anything is handled.
    pub(super) async fn begin(
        &mut self,
        assigned: AssignedPartition,
        stop: &CancellationToken,
    ) -> Result<(), RunnerError> {
        let partition = assigned.partition.clone();
        if assigned.from == StartedFrom::Configured {
            if !self.read_boot_again(&partition, stop).await? {
                return Ok(());
            }
            if self.was_started(&partition) {
                return self.check_not_lost(partition, stop).await;
            }
            let mark = OffsetCommit::new(partition.clone(), assigned.epoch, assigned.next);
            if !self.commit_start(&mark, stop).await? {
                return Ok(());
            }
        }
        if !self.was_started(&partition) && !self.note_started(&partition, stop).await? {
            return Ok(());
        }
        let owned = Owned {
            epoch: assigned.epoch,
            window: Window::starting_at(assigned.next),
            is_paused: false,
            unreadable: None,
        };
        self.partitions.insert(partition, owned);
        Ok(())
    }

    fn was_started(&self, partition: &PartitionId) -> bool {
        self.boot.get(partition).is_some_and(|boot| boot.started)
    }

    /// It had started, and nothing was committed when this assignment was made. Either the commit was lost since, or
    /// another instance has taken over and started it: then this assignment has ended, and the consumer will say so.
    async fn check_not_lost(
        &mut self,
        partition: PartitionId,
        stop: &CancellationToken,
    ) -> Result<(), RunnerError> {
        let (bus, group) = (self.processor.bus.clone(), self.group);
        let call = || bus.committed(group, &partition.topic);
        let committed = match self.processor.patiently(stop, call).await {
            None => return Ok(()),
            Some(committed) => committed.map_err(|error| self.processor.bus_error(error))?,
        };
        let is_of = |(of, next): &(PartitionId, Option<Offset>)| *of == partition && next.is_some();
        if committed.iter().any(is_of) {
            return Ok(());
        }
        Err(self.position_lost(partition, "its committed offset is gone"))
    }

    /// The boot row as it is now; false if it was told to stop first.
    async fn read_boot_again(
        &mut self,
        partition: &PartitionId,
        stop: &CancellationToken,
    ) -> Result<bool, RunnerError> {
        let mut attempts = self.processor.patience(stop);
        while let Err(error) = self.boot.read_again(partition).await {
            if !self.processor.is_waited_for(&mut attempts, &error).await {
                return self.unless_stopped(stop, error);
            }
        }
        Ok(true)
    }

    /// Commits where it starts; false if it was told to stop first, or if the partition was taken away again already.
    async fn commit_start(
        &mut self,
        mark: &OffsetCommit,
        stop: &CancellationToken,
    ) -> Result<bool, RunnerError> {
        let call = || self.consumer.commit(std::slice::from_ref(mark));
        match self.processor.patiently(stop, call).await {
            Some(Ok(())) => Ok(true),
            None | Some(Err(MessageBusError::StaleAssignment { .. })) => Ok(false),
            Some(Err(error)) => Err(self.processor.bus_error(error)),
        }
    }

    /// Notes the start; false if it was told to stop first. A control store that is away for a moment does not halt the
    /// processor.
    async fn note_started(
        &mut self,
        partition: &PartitionId,
        stop: &CancellationToken,
    ) -> Result<bool, RunnerError> {
        let mut attempts = self.processor.patience(stop);
        while let Err(error) = self.boot.set_started(partition).await {
            if !self.processor.is_waited_for(&mut attempts, &error).await {
                return self.unless_stopped(stop, error);
            }
        }
        Ok(true)
    }

    fn unless_stopped(
        &self,
        stop: &CancellationToken,
        error: ControlStoreError,
    ) -> Result<bool, RunnerError> {
        if was_stopped(stop, &error) {
            return Ok(false);
        }
        Err(self.processor.control_error(error))
    }
}
