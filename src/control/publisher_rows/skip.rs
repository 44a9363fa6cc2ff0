//! Skipped events: versions that an operator keeps out of the topic, since they cannot be sent.
use super::PublisherRows;
use crate::{
    StreamId, Timestamp, Version,
    control::{
        PutIf,
        processor_rows::{event_sort, parse_event, stream_query},
    },
    ports::{ControlStoreError, Expect, RangeQuery, RowKey},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// The value of the row of a skipped event. It is written once and never deleted: whoever reads the
/// stream for a handler passes the event over as the topic does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SkipRow {
    #[serde(rename = "r")]
    pub(crate) reason: String,
    /// The name of the operator.
    #[serde(rename = "b")]
    pub(crate) by: String,
    #[serde(rename = "t")]
    pub(crate) at: Timestamp,
}

impl PublisherRows {
    /// Notes that an event is skipped, unless an operator has noted it before.
    pub(crate) async fn skip_put(
        &self,
        stream: &StreamId,
        version: Version,
        row: SkipRow,
    ) -> Result<PutIf<SkipRow>, ControlStoreError> {
        let key = RowKey::new(self.shard_of("skip", stream), event_sort(stream, version));
        self.rows.put(&key, row, Expect::Absent).await
    }

    /// Returns the skipped versions of a stream between two, both included.
    pub(crate) async fn skips_of(
        &self,
        stream: &StreamId,
        (first, last): (Version, Version),
    ) -> Result<BTreeSet<Version>, ControlStoreError> {
        let (mut versions, mut after) = (BTreeSet::new(), None);
        loop {
            let partition = self.shard_of("skip", stream);
            let query = stream_query(partition, stream, first, last, after);
            let version_of = |sort: &str| parse_event(sort).map(|(_, version)| version);
            let page = self.rows.page::<_, SkipRow>(&query, version_of).await?;
            versions.extend(page.rows.into_iter().map(|(version, _)| version));
            after = page.next;
            if after.is_none() {
                return Ok(versions);
            }
        }
    }

    /// Returns the skipped versions of all streams; `None` if there are more than `limit`.
    pub(crate) async fn all_skips(
        &self,
        limit: usize,
    ) -> Result<Option<HashMap<StreamId, BTreeSet<Version>>>, ControlStoreError> {
        let (mut skips, mut found) = (HashMap::<_, BTreeSet<_>>::new(), 0);
        for shard in 0..Self::SHARDS {
            let partition = self.shard("skip", shard);
            let mut after = None;
            loop {
                let query = RangeQuery::new(partition.clone()).with_after(after);
                let page = self.rows.page::<_, SkipRow>(&query, parse_event).await?;
                found += page.rows.len();
                if found > limit {
                    return Ok(None);
                }
                for ((stream, version), _) in page.rows {
                    skips.entry(stream).or_default().insert(version);
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(Some(skips))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Rows, test_store::TestStore};

    #[test]
    fn the_stored_form_of_a_skip_is_fixed() {
        let row = SkipRow {
            reason: "a test order".into(),
            by: "ann".into(),
            at: Timestamp::from_micros(7),
        };
        let text = r#"{"r":"a test order","b":"ann","t":7}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        assert_eq!(serde_json::from_str::<SkipRow>(text).unwrap(), row);
    }

    #[tokio::test]
    async fn the_skips_of_a_stream_are_its_own_and_the_first_reason_stays() {
        let store = TestStore::new(1);
        let rows = PublisherRows::over(Rows::new(store.clone(), store), None);
        let row = |reason: &str| SkipRow {
            reason: reason.into(),
            by: "ann".into(),
            at: Timestamp::default(),
        };
        let stream = |id| StreamId::new("cart", id).unwrap();
        for (id, version) in [("a", 3), ("a", 12), ("a#1", 4), ("b", 5)] {
            let stream = stream(id);
            let put = rows.skip_put(&stream, Version::new(version), row("first"));
            assert!(matches!(put.await.unwrap(), PutIf::Written(_)));
        }
        let a = stream("a");
        let again = rows.skip_put(&a, Version::new(3), row("second"));
        let PutIf::Conflict(Some(first)) = again.await.unwrap() else {
            panic!("it was written twice");
        };
        assert_eq!(first.value, row("first"));
        let all = (Version::new(1), Version::new(u64::MAX));
        let found = rows.skips_of(&stream("a"), all).await.unwrap();
        assert_eq!(found, [3, 12].map(Version::new).into());
        let some = (Version::new(4), Version::new(12));
        let found = rows.skips_of(&stream("a"), some).await.unwrap();
        assert_eq!(found, [Version::new(12)].into());
    }
}
