//! The consumers of the in-memory message bus, each a member of a group.
use super::{
    group::{MemberId, Polled},
    message_bus::Shared,
};
use async_trait::async_trait;
use foldstream::ports::{
    AssignmentEpoch, Consumer, ConsumerEvent, MessageBusError, OffsetCommit, PartitionId,
    Revocation,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, time};

#[derive(Debug)]
pub(super) struct InMemoryConsumer {
    pub(super) shared: Arc<Shared>,
    pub(super) group: String,
    pub(super) id: MemberId,
    /// Wakes `next` after a change. It keeps one permit, so that a change between reading the state
    /// and waiting is not missed.
    pub(super) changed: Arc<Notify>,
}

impl InMemoryConsumer {
    fn revocation(
        &self,
        revoked: Vec<(PartitionId, AssignmentEpoch)>,
        grace: Duration,
    ) -> Revocation {
        let partitions = revoked.iter().map(|(partition, _)| partition.clone());
        let (shared, group, id) = (self.shared.clone(), self.group.clone(), self.id);
        Revocation::new(partitions.collect(), grace, move || {
            shared.with_group(&group, |group, around| group.release(id, &revoked, around));
        })
    }

    fn leave_now(&self) {
        self.shared
            .with_group(&self.group, |group, around| group.leave(self.id, around));
    }
}

impl Drop for InMemoryConsumer {
    fn drop(&mut self) {
        self.leave_now();
    }
}

#[async_trait]
impl Consumer for InMemoryConsumer {
    async fn next(&self) -> Result<ConsumerEvent, MessageBusError> {
        // A backlog is always ready. Without this, reading it would starve the other tasks of the
        // thread.
        tokio::task::coop::consume_budget().await;
        loop {
            // A caller may drop this future at any await. Nothing is awaited between taking an
            // event and returning it, so a dropped future has taken none.
            let polled = self
                .shared
                .with_group(&self.group, |group, around| group.poll(self.id, around));
            match polled.ok_or(MessageBusError::Closed)?? {
                Polled::Event(event) => return Ok(event),
                Polled::Revoking(revoked, grace) => {
                    return Ok(ConsumerEvent::Revoking(self.revocation(revoked, grace)));
                }
                Polled::Nothing(None) => self.changed.notified().await,
                Polled::Nothing(Some(deadline)) => {
                    // After a notification or the deadline, the loop reads the state again.
                    let _ = time::timeout_at(deadline, self.changed.notified()).await;
                }
            }
        }
    }

    async fn commit(&self, commits: &[OffsetCommit]) -> Result<(), MessageBusError> {
        self.shared
            .with_group(&self.group, |group, around| {
                group.commit(self.id, commits, around)
            })
            .ok_or(MessageBusError::Closed)?
    }

    async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        self.shared
            .with_group(&self.group, |group, _| {
                group.set_paused(self.id, partitions, true)
            })
            .ok_or(MessageBusError::Closed)?
    }

    async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        self.shared
            .with_group(&self.group, |group, _| {
                group.set_paused(self.id, partitions, false)
            })
            .ok_or(MessageBusError::Closed)?
    }

    async fn leave(&self) -> Result<(), MessageBusError> {
        self.leave_now();
        Ok(())
    }
}
