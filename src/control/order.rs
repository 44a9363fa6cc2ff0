//! The order of deferred records in lanes that several streams share.
//!
//! ```text
//! order/<name>/<N>/<topic>/<partition>   <hash of the lane:08x>\u{1f}<offset:020> -> OrderRow
//! ```
//! The event store knows the order of the events of one stream, and not the order between streams.
//! So an owner that defers a record of a shared lane keeps the offset, before `high` of the park
//! row moves. A redrive handles the events of the lane in the order of these rows.
//!
//! The key begins with a hash of the lane, so that the rows of a lane are read in order, page by
//! page. Two lanes may have the same hash: a reader leaves out the streams of other lanes.
use super::{KeyedPage, ProcessorRows, PutIf, processor_rows::SEPARATOR};
use crate::{
    StreamId, Version,
    ports::{ControlStoreError, Expect, Offset, PartitionId, RangeQuery, RowKey, SortBounds},
};
use serde::{Deserialize, Serialize};

/// The hash of a lane's name, by which the rows of the lane are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LaneHash(u32);

impl LaneHash {
    pub(crate) fn of(lane: &str) -> Self {
        Self(crate::murmur2(lane.as_bytes()))
    }
}

/// The place of a deferred record: its lane and its offset.
pub(crate) type OrderKey = (LaneHash, Offset);

/// The value of an order row: the event of the deferred record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderRow {
    #[serde(rename = "s")]
    pub(crate) stream: StreamId,
    #[serde(rename = "v")]
    pub(crate) version: Version,
}

fn sort((lane, offset): OrderKey) -> String {
    format!("{:08x}{SEPARATOR}{:020}", lane.0, offset.get())
}

fn parse(sort: &str) -> Option<OrderKey> {
    let (lane, offset) = sort.split_once(SEPARATOR)?;
    let lane = u32::from_str_radix(lane, 16).ok()?;
    Some((LaneHash(lane), Offset::new(offset.parse().ok()?)))
}

impl ProcessorRows {
    fn order_key(&self, partition: &PartitionId, key: OrderKey) -> RowKey {
        RowKey::new(self.partition("order", partition), sort(key))
    }

    /// Keeps the place of a deferred record. It may be written again.
    pub(crate) async fn order_put(
        &self,
        partition: &PartitionId,
        key: OrderKey,
        row: OrderRow,
    ) -> Result<(), ControlStoreError> {
        let key = self.order_key(partition, key);
        // Without a condition there is no conflict.
        let (PutIf::Written(_) | PutIf::Conflict(_)) =
            self.rows.put(&key, row, Expect::Any).await?;
        Ok(())
    }

    /// Returns one page of the places of a lane, in order. Lanes with the same hash are among them.
    pub(crate) async fn order_of(
        &self,
        partition: &PartitionId,
        lane: LaneHash,
        after: Option<String>,
    ) -> Result<KeyedPage<OrderKey, OrderRow>, ControlStoreError> {
        let first = sort((lane, Offset::new(0)));
        let last = sort((lane, Offset::new(u64::MAX)));
        let query = RangeQuery::new(self.partition("order", partition))
            .with_bounds(SortBounds::Between(first, last))
            .with_after(after);
        self.rows.page(&query, parse).await
    }

    /// Returns one page of the places of all lanes.
    pub(crate) async fn order_page(
        &self,
        partition: &PartitionId,
        after: Option<String>,
    ) -> Result<KeyedPage<OrderKey, OrderRow>, ControlStoreError> {
        let query = RangeQuery::new(self.partition("order", partition)).with_after(after);
        self.rows.page(&query, parse).await
    }

    /// Deletes the place of a record that was handled.
    pub(crate) async fn order_delete(
        &self,
        partition: &PartitionId,
        key: OrderKey,
    ) -> Result<(), ControlStoreError> {
        self.rows.remove(&self.order_key(partition, key)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_place_in_a_lane_is_fixed() {
        let row = OrderRow {
            stream: StreamId::new("cart", "a").unwrap(),
            version: Version::new(7),
        };
        let text = r#"{"s":"cart#a","v":7}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        assert_eq!(serde_json::from_str::<OrderRow>(text).unwrap(), row);
        let key = (LaneHash::of("ann"), Offset::new(12));
        assert_eq!(sort(key), "f8917eb2\u{1f}00000000000000000012");
        assert_eq!(parse(&sort(key)), Some(key));
        assert!(sort((key.0, Offset::new(9))) < sort((key.0, Offset::new(10))));
    }
}
