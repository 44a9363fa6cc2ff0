//! The conversion of Kafka's records into messages of the port.
use foldstream::{
    Timestamp,
    adapter::MessageCopier,
    ports::{Message, PartitionId},
};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Headers as _, Message as _};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Copies a record out of the client.
pub(super) fn message(
    copier: &mut MessageCopier,
    id: &PartitionId,
    record: &BorrowedMessage<'_>,
) -> Message {
    let millis = record.timestamp().to_millis().unwrap_or_default();
    let timestamp = Timestamp::from_micros(millis.saturating_mul(1_000));
    let headers = record.headers();
    let count = headers.map_or(0, BorrowedHeaders::count);
    let headers = (0..count).filter_map(|at| {
        let header = readable_header(record, headers?, at)?;
        Some((header.key, header.value))
    });
    copier.copy(id, timestamp, record.key(), record.payload(), headers)
}

/// Returns a header if its name is UTF-8, as Kafka's protocol demands.
///
/// rdkafka panics on other names, and a foreign sender's mistake must not end this consumer.
fn readable_header<'r>(
    record: &BorrowedMessage<'_>,
    headers: &'r BorrowedHeaders,
    at: usize,
) -> Option<Header<'r, &'r [u8]>> {
    catch_unwind(AssertUnwindSafe(|| headers.try_get(at))).unwrap_or_else(|_| {
        tracing::warn!(
            topic = record.topic(),
            partition = record.partition(),
            offset = record.offset(),
            "a header whose name is not UTF-8 is left out"
        );
        None
    })
}
