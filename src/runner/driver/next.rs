//! The membership in the group, and what it receives.
use super::Driver;
use crate::{
    control::{BootRows, StoredRecord},
    ports::{Consumer, ConsumerEvent, MessageBusError},
    runner::{
        attempt::Shared,
        machine::{Input, Record, RevocationId},
    },
};
use std::sync::Arc;
use tokio::time::Instant;

/// A membership in the group.
pub(super) struct Membership {
    pub(super) group: Arc<str>,
    pub(super) consumer: Arc<dyn Consumer>,
    /// The start positions as they were when the group was joined.
    pub(super) boot: BootRows,
    pub(super) shared: Arc<Shared>,
}

type Received = Result<ConsumerEvent, MessageBusError>;

/// Waits for the next event. Dropping the future loses nothing.
pub(super) async fn receive(consumer: Option<&dyn Consumer>) -> Received {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

/// Returns the next event if it is there already.
pub(super) fn receive_now(consumer: Option<&dyn Consumer>) -> Option<Received> {
    consumer?.try_next()
}

impl Driver {
    pub(super) fn received(&mut self, event: Received) -> Option<Input> {
        let event = match event {
            Ok(event) => event,
            Err(error) => return Some(Input::NotReceived(error)),
        };
        Some(match event {
            ConsumerEvent::Delivery(delivery) => {
                match Record::read(delivery, &self.settings.rules.selectors) {
                    Ok(record) => Input::Delivered(Arc::new(record)),
                    Err(unreadable) => {
                        let (delivery, error) = *unreadable;
                        let message = delivery
                            .message
                            .with_partition(delivery.partition.partition);
                        let record = StoredRecord::new(message, delivery.offset);
                        Input::Unreadable(Box::new(record), delivery.epoch, error)
                    }
                }
            }
            ConsumerEvent::Reached(partition, epoch, next) => {
                Input::Reached(partition, epoch, next)
            }
            ConsumerEvent::Assigned(assignment) => {
                let partitions = assignment.partitions;
                let named: Vec<_> = partitions.iter().map(|a| a.partition.to_string()).collect();
                tracing::info!(processor = %self.settings.rules.name, partitions = ?named, "partitions are assigned");
                self.watch.assigned(Instant::now());
                Input::Assigned(partitions)
            }
            ConsumerEvent::Revoking(revocation) => {
                self.last_revocation += 1;
                let id = RevocationId(self.last_revocation);
                let partitions = revocation.partitions().to_vec();
                let grace = revocation.grace();
                let named: Vec<_> = partitions.iter().map(ToString::to_string).collect();
                tracing::info!(processor = %self.settings.rules.name, partitions = ?named, ?grace, "partitions are to be given up");
                self.revocations.insert(id, revocation);
                Input::Revoking(id, partitions, grace)
            }
            ConsumerEvent::Lost(partitions) => Input::Lost(partitions),
            ConsumerEvent::NoPosition(partition, why) => {
                let membership = self.membership.as_ref();
                let has_start = membership.is_some_and(|m| m.boot.get(&partition).is_some());
                Input::NoPosition(partition, why, has_start)
            }
        })
    }
}
