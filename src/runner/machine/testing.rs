//! Records for tests of the machine.
use super::Record;
use crate::{
    CommitId, EventHeader, RecordedEvent, StreamId, Timestamp, Version,
    ports::{AssignmentEpoch, Message, Offset, PartitionId},
};
use std::sync::Arc;

pub(super) fn stream(id: &str) -> StreamId {
    StreamId::new("s", id).unwrap()
}

pub(super) fn partition(number: u32) -> PartitionId {
    PartitionId::new("t", number)
}

/// A record of a stream, under the first assignment of its partition.
pub(super) fn record(number: u32, offset: u64, id: &str, version: u64) -> Arc<Record> {
    let commit_id = CommitId::from_u128(u128::from(version));
    let header = EventHeader::new(
        commit_id.event_id(0),
        stream(id),
        Version::new(version),
        "Happened",
        Timestamp::from_micros(1),
    );
    Arc::new(Record {
        partition: partition(number),
        offset: Offset::new(offset),
        epoch: AssignmentEpoch::new(1),
        bytes: 100,
        message: Message::new("t", Timestamp::from_micros(1)),
        event: RecordedEvent::new(header, "{}".into()),
        previous: None,
    })
}
