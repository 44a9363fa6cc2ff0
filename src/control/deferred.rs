//! Deferred records: the records of parked streams, for a processor without an event store.
//!
//! ```text
//! def/<name>/<N>/<topic>/<partition>   <stream>\u{1f}<version:020> -> StoredRecord
//! ```
//! A service that has no event store of its own cannot read the history of a stream again. It keeps
//! each record that it passes over, before `high` of the park row moves.
use super::{
    LargePut, ProcessorRows, StoredRecord,
    processor_rows::{event_sort, parse_event, stream_query},
};
use crate::{
    StreamId, Version,
    ports::{ControlStoreError, Offset, PartitionId, RangeQuery, RowKey},
};
use std::num::NonZeroU32;

/// A page of deferred records of one stream, in version order.
#[derive(Debug, PartialEq)]
pub(crate) struct DeferredPage {
    pub(crate) records: Vec<(Version, StoredRecord)>,
    /// The sort key after which the next page starts; `None` on the last page.
    pub(crate) next: Option<String>,
}

/// The identity of a deferred record.
#[derive(Debug, PartialEq)]
pub(crate) struct DeferredKey {
    pub(crate) stream: StreamId,
    pub(crate) version: Version,
    pub(crate) offset: Offset,
}

/// The keys of a page of deferred records.
#[derive(Debug, PartialEq)]
pub(crate) struct DeferredKeys {
    pub(crate) keys: Vec<DeferredKey>,
    /// The sort key after which the next page starts; `None` on the last page.
    pub(crate) next: Option<String>,
}

/// The records of one page. Records are large, and a page of them is in memory.
const PAGE: NonZeroU32 = NonZeroU32::MIN.saturating_add(15);

impl ProcessorRows {
    fn deferred_key(&self, partition: &PartitionId, stream: &StreamId, version: Version) -> RowKey {
        let sort = event_sort(stream, version);
        RowKey::new(self.partition("def", partition), sort)
    }

    /// Keeps a record of a parked stream. Returns false if the record is kept already.
    pub(crate) async fn deferred_put(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
        record: &StoredRecord,
    ) -> Result<bool, ControlStoreError> {
        let key = self.deferred_key(partition, stream, version);
        let put = self.large.put(&key, &record.to_bytes(), None).await?;
        Ok(put != LargePut::Conflict)
    }

    /// Returns one page of the records of a stream, of versions between two, both included. The
    /// value of a large record is read on its own.
    pub(crate) async fn deferred_page(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        (first, last): (Version, Version),
        after: Option<String>,
    ) -> Result<DeferredPage, ControlStoreError> {
        let rows = self.partition("def", partition);
        let query = stream_query(rows, stream, first, last, after).with_limit(PAGE);
        let (values, next) = self.large.values(&query).await?;
        let mut records = Vec::with_capacity(values.len());
        for (sort, value) in values {
            let Some((_, version)) = parse_event(&sort) else {
                continue;
            };
            let record = StoredRecord::from_bytes(&value.value).map_err(|reason| {
                let key = RowKey::new(&*query.partition, &*sort);
                ControlStoreError::Corrupt { key, reason }
            })?;
            records.push((version, record));
        }
        Ok(DeferredPage { records, next })
    }

    /// Returns the keys of one page of the records of all streams. Values are not read whole.
    pub(crate) async fn deferred_keys(
        &self,
        partition: &PartitionId,
        after: Option<String>,
    ) -> Result<DeferredKeys, ControlStoreError> {
        let query = RangeQuery::new(self.partition("def", partition)).with_after(after);
        let (lines, next) = self.large.first_lines(&query).await?;
        let mut keys = Vec::with_capacity(lines.len());
        for (sort, line) in lines {
            let Some((stream, version)) = parse_event(&sort) else {
                continue;
            };
            let offset = StoredRecord::offset_in(&line.value).map_err(|reason| {
                let key = RowKey::new(&*query.partition, &*sort);
                ControlStoreError::Corrupt { key, reason }
            })?;
            keys.push(DeferredKey {
                stream,
                version,
                offset,
            });
        }
        Ok(DeferredKeys { keys, next })
    }

    /// Deletes a record that was handled. Returns false if there was none.
    pub(crate) async fn deferred_delete(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
    ) -> Result<bool, ControlStoreError> {
        let key = self.deferred_key(partition, stream, version);
        self.large.remove_value(&key).await
    }
}
