//! The rows of running publishers, for operators in other processes.
//!
//! ```text
//! pub   inst/<id of the process>   PublisherInstanceRow
//! ```
//! A publisher writes its row at most every ten seconds. The row of a process that has died expires
//! after ten minutes.
use super::PublisherRows;
use crate::{
    Timestamp,
    control::{InstanceId, KeyedPage},
    ports::{ControlStoreError, RangeQuery, RowKey, SortBounds},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// The value of a publisher's row. Only the publisher itself writes it, so that no field of another
/// build is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublisherInstanceRow {
    /// The stable name of the process: by default that of its host.
    #[serde(rename = "l")]
    pub(crate) label: String,
    /// The time since which the publisher writes its row.
    #[serde(rename = "t")]
    pub(crate) since: Timestamp,
    /// The time of this write.
    #[serde(rename = "u")]
    pub(crate) updated: Timestamp,
    /// The number of streams that are being published.
    #[serde(rename = "w", default)]
    pub(crate) working: u64,
    /// The time of the oldest commit that was read and is not acknowledged.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub(crate) oldest: Option<Timestamp>,
    /// The number of streams that the process has set aside as dirty.
    #[serde(rename = "d", default)]
    pub(crate) dirty: u64,
    /// The numbers of each topic, by its name.
    #[serde(rename = "tp", default)]
    pub(crate) topics: BTreeMap<String, TopicNumbers>,
}

/// The numbers of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TopicNumbers {
    /// The number of acknowledged records.
    #[serde(rename = "n", default)]
    pub(crate) published: u64,
    #[serde(rename = "b", default)]
    pub(crate) bytes: u64,
    /// The number of duplicates that were suppressed.
    #[serde(rename = "x", default)]
    pub(crate) suppressed: u64,
    #[serde(rename = "f", default)]
    pub(crate) failures: u64,
    /// The number of events that are known to wait.
    #[serde(rename = "g", default)]
    pub(crate) lag: u64,
    /// The time of the last acknowledgement.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(crate) acknowledged: Option<Timestamp>,
}

const PREFIX: &str = "inst/";

impl PublisherRows {
    fn instance_key(&self, instance: InstanceId) -> RowKey {
        self.single_key(&format!("{PREFIX}{instance}"))
    }

    /// Writes the row of this process.
    pub(crate) async fn instance_put(
        &self,
        instance: InstanceId,
        row: PublisherInstanceRow,
    ) -> Result<(), ControlStoreError> {
        let (key, now) = (self.instance_key(instance), row.updated);
        // Without a condition there is no conflict.
        let _ = self.rows.put_alive(&key, row, now, Duration::ZERO).await?;
        Ok(())
    }

    /// Deletes the row of this process.
    pub(crate) async fn instance_delete(
        &self,
        instance: InstanceId,
    ) -> Result<(), ControlStoreError> {
        self.rows.remove(&self.instance_key(instance)).await
    }

    /// Returns one page of the rows of running processes.
    pub(crate) async fn instance_page(
        &self,
        after: Option<String>,
    ) -> Result<KeyedPage<InstanceId, PublisherInstanceRow>, ControlStoreError> {
        let query = RangeQuery::new(self.single_key("").partition)
            .with_bounds(SortBounds::Prefix(PREFIX.into()))
            .with_after(after);
        let id_of = |sort: &str| sort.strip_prefix(PREFIX)?.parse().ok();
        self.rows.page(&query, id_of).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_running_publisher_is_fixed() {
        let numbers = TopicNumbers {
            published: 5,
            bytes: 900,
            suppressed: 2,
            failures: 1,
            lag: 3,
            acknowledged: Some(Timestamp::from_micros(8)),
        };
        let row = PublisherInstanceRow {
            label: "host-1".into(),
            since: Timestamp::from_micros(7),
            updated: Timestamp::from_micros(9),
            working: 1,
            oldest: Some(Timestamp::from_micros(6)),
            dirty: 4,
            topics: [("orders".into(), numbers)].into(),
        };
        let text = r#"{"l":"host-1","t":7,"u":9,"w":1,"o":6,"d":4,"tp":{"orders":{"n":5,"b":900,"x":2,"f":1,"g":3,"a":8}}}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        // A newer build may write more, an older one less.
        let read = r#"{"l":"host-1","t":7,"u":9,"zz":1,"tp":{"orders":{}}}"#;
        let read: PublisherInstanceRow = serde_json::from_str(read).unwrap();
        assert_eq!(read.topics["orders"], TopicNumbers::default());
        assert_eq!((read.oldest, read.dirty), (None, 0));
    }
}
