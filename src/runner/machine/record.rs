//! A record that has arrived, and was understood.
use crate::{
    EventSelector, RecordedEvent, Version, WireError,
    control::StoredRecord,
    ports::{AssignmentEpoch, Delivery, Message, Offset, PartitionId},
    wire::read,
};
use std::sync::Arc;

/// The bytes that a record counts beside its key, value and headers: about what is kept with it in
/// the window and in its lane. Without it, the memory of many small records would have no bound.
const KEPT_WITH_EACH: usize = 1024;

/// Returns the bytes that a record counts towards the window.
pub(super) fn held_size(message: &Message) -> usize {
    message.size() + KEPT_WITH_EACH
}

/// A record that has arrived, and was understood.
#[derive(Debug)]
pub(in crate::runner) struct Record {
    pub(in crate::runner) partition: PartitionId,
    pub(in crate::runner) offset: Offset,
    pub(in crate::runner) epoch: AssignmentEpoch,
    /// The size that counts towards the window.
    pub(in crate::runner) bytes: usize,
    /// The record as it came, for a dead letter.
    pub(in crate::runner) message: Message,
    pub(in crate::runner) event: RecordedEvent,
    /// The version of the stream's previous record in the topic, if the record says that it is not
    /// the version before.
    pub(in crate::runner) previous: Option<Version>,
}

impl Record {
    /// Reads a delivery. Names of events that are `known` need no memory of their own.
    ///
    /// # Errors
    /// The delivery and the [`WireError`] if it is not an event of this library, or of a newer
    /// format.
    pub(in crate::runner) fn read(
        delivery: Delivery,
        known: &[EventSelector],
    ) -> Result<Self, Box<(Delivery, WireError)>> {
        let (event, previous) = match read(&delivery.message, known) {
            Ok(read) => read,
            Err(error) => return Err(Box::new((delivery, error))),
        };
        Ok(Self {
            bytes: held_size(&delivery.message),
            message: delivery.message,
            partition: delivery.partition,
            offset: delivery.offset,
            epoch: delivery.epoch,
            event,
            previous,
        })
    }

    /// Returns the record in its stored form.
    pub(in crate::runner) fn stored(&self) -> StoredRecord {
        StoredRecord::new(self.message.clone(), self.offset)
    }
}

/// Adds a record to the deferred records of a stream or lane, in the order of their offsets.
///
/// A record may arrive after its stream's park row is written and before the records that are
/// queued with the failed event are deferred. Its place is after them.
pub(super) fn defer_in_order(deferred: &mut Vec<Arc<Record>>, record: &Arc<Record>) {
    let at = deferred.partition_point(|other| other.offset < record.offset);
    deferred.insert(at, record.clone());
}
