//! A record that has arrived, and was understood.
use crate::{
    RecordedEvent, Version, WireError,
    control::StoredRecord,
    from_message,
    ports::{AssignmentEpoch, Delivery, Message, Offset, PartitionId},
    previous_record,
};

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
    /// Reads a delivery.
    ///
    /// # Errors
    /// [`WireError`] if it is not an event of this library, or of a newer format.
    pub(in crate::runner) fn read(delivery: &Delivery) -> Result<Self, WireError> {
        let message = &delivery.message;
        Ok(Self {
            message: message.clone(),
            partition: delivery.partition.clone(),
            offset: delivery.offset,
            epoch: delivery.epoch,
            bytes: message.size(),
            event: from_message(message)?,
            previous: previous_record(message)?,
        })
    }

    /// Returns the record in its stored form.
    pub(in crate::runner) fn stored(&self) -> StoredRecord {
        StoredRecord::new(self.message.clone(), self.offset)
    }
}
