//! A record that has arrived, and was understood.
use crate::{
    RecordedEvent, Version, WireError, from_message,
    ports::{AssignmentEpoch, Delivery, Offset, PartitionId},
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
            partition: delivery.partition.clone(),
            offset: delivery.offset,
            epoch: delivery.epoch,
            bytes: message.size(),
            event: from_message(message)?,
            previous: previous_record(message)?,
        })
    }
}
