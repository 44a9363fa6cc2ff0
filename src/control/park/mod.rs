//! Park rows: the streams whose events wait behind one that failed.
//!
//! ```text
//! park/<name>/<N>/<topic>/<partition>   <stream> -> ParkRow
//! ```
//! The event store is the queue: the row says from which version to which the events of the stream
//! wait, and not what they hold. `from` is a durable position. The projector is flushed before the
//! row is created and before `from` moves, so that every version below `from` is done.
mod merge;
mod row;

pub(crate) use merge::merge;
pub(crate) use row::{Followed, ParkFailure, ParkId, ParkNotes, ParkRow, ParkState, Request};

use super::{DeleteIf, KeyedPage, ProcessorRows, PutIf, Stored, rows::decode};
use crate::{
    StreamId,
    ports::{ControlStoreError, Expect, PartitionId, RangeQuery, Revision, RowKey},
};
use std::num::NonZeroU32;

impl ProcessorRows {
    fn park_key(&self, partition: &PartitionId, stream: &StreamId) -> RowKey {
        RowKey::new(self.partition("park", partition), stream.as_str())
    }

    /// Returns one page of the parked streams of a partition.
    pub(crate) async fn park_page(
        &self,
        partition: &PartitionId,
        after: Option<String>,
    ) -> Result<KeyedPage<StreamId, ParkRow>, ControlStoreError> {
        let query = RangeQuery::new(self.partition("park", partition)).with_after(after);
        self.rows
            .page(&query, |sort| StreamId::parse(sort).ok())
            .await
    }

    /// Returns a page of at most `limit` parked streams of a partition, for a list.
    pub(crate) async fn park_list(
        &self,
        partition: &PartitionId,
        after: Option<String>,
        limit: NonZeroU32,
    ) -> Result<KeyedPage<StreamId, ParkRow>, ControlStoreError> {
        let query = RangeQuery::new(self.partition("park", partition))
            .with_after(after)
            .with_limit(limit);
        self.rows
            .page(&query, |sort| StreamId::parse(sort).ok())
            .await
    }

    /// Returns the park rows of several streams of a partition, in their order.
    pub(crate) async fn park_get_many<'a>(
        &self,
        partition: &PartitionId,
        streams: impl Iterator<Item = &'a StreamId>,
    ) -> Result<Vec<Option<Stored<ParkRow>>>, ControlStoreError> {
        let keys: Vec<_> = streams
            .map(|stream| self.park_key(partition, stream))
            .collect();
        let found = self.rows.get_raw(&keys).await?.into_iter();
        found.map(|row| row.map(decode).transpose()).collect()
    }

    /// Returns the park row of a stream; `None` if the stream is not parked.
    pub(crate) async fn park_get(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
    ) -> Result<Option<Stored<ParkRow>>, ControlStoreError> {
        self.rows.get(&self.park_key(partition, stream)).await
    }

    /// Parks a stream at the version that failed, unless the stream is parked already. The caller
    /// adopts the row of a conflict, whatever its `from`: the failed event waits there like any
    /// other.
    pub(crate) async fn park_create(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        failure: &ParkFailure,
        notes: ParkNotes,
    ) -> Result<PutIf<ParkRow>, ControlStoreError> {
        let revision = self.rows.fresh_revision();
        let row = ParkRow::new(ParkId::from_u128(revision.as_u128()), failure).noting(notes);
        let key = self.park_key(partition, stream);
        self.rows
            .put_as(&key, row, revision, Expect::Absent, None)
            .await
    }

    /// Parks a stream that waits since another stream of its lane has failed, unless the stream is
    /// parked already.
    pub(crate) async fn park_follower(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        followed: &Followed,
    ) -> Result<PutIf<ParkRow>, ControlStoreError> {
        let revision = self.rows.fresh_revision();
        let row = ParkRow::following(ParkId::from_u128(revision.as_u128()), followed);
        let key = self.park_key(partition, stream);
        self.rows
            .put_as(&key, row, revision, Expect::Absent, None)
            .await
    }

    /// Replaces the write of a park row that was `seen`. A conflict without a row means that the
    /// stream was released.
    pub(crate) async fn park_replace(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        row: ParkRow,
        seen: Revision,
    ) -> Result<PutIf<ParkRow>, ControlStoreError> {
        let key = self.park_key(partition, stream);
        self.rows.put(&key, row, Expect::Revision(seen)).await
    }

    /// Releases a stream: deletes the write of its park row that was `seen`. The letters below
    /// `from` are deleted before.
    pub(crate) async fn park_delete(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        seen: Revision,
    ) -> Result<DeleteIf<ParkRow>, ControlStoreError> {
        self.rows
            .delete(&self.park_key(partition, stream), seen)
            .await
    }
}
