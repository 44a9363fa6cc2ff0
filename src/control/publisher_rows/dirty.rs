//! Dirty streams: those that a publisher has set aside, so that their triggers may forget them.
use super::PublisherRows;
use crate::{
    Backoff, StreamId, Timestamp, Version,
    control::{DeleteIf, KeyedPage, PutIf, Stored, rows::Races},
    ports::{ControlStoreError, Expect, RangeQuery, Revision, RowKey},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::num::NonZeroU32;

/// The reason why a stream is dirty: it has commits that are not published, and no notice of them
/// may come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DirtyReason {
    /// An event cannot be published until an operator changes something.
    Stuck,
    /// The notice was so old that the change stream might have dropped it.
    Old,
    /// There was more to publish than the trigger had time for, or a backend was away.
    Backlog,
}

/// The value of the row of a dirty stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DirtyRow {
    /// The highest version that is known to be stored. Once the watermark covers it, the row is
    /// deleted.
    #[serde(rename = "v")]
    pub(crate) known: Version,
    #[serde(rename = "w")]
    pub(crate) why: DirtyReason,
    /// The number of attempts to publish the stream since it is dirty.
    #[serde(rename = "n")]
    pub(crate) attempts: u32,
    /// The error of the last attempt, with its sources.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(rename = "t")]
    pub(crate) since: Timestamp,
    /// The time of the last attempt.
    #[serde(rename = "l")]
    pub(crate) last: Timestamp,
    /// The fields that a newer build has written. This build keeps them.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl DirtyRow {
    /// The most bytes of an error that are kept.
    const MAX_ERROR: usize = 1000;

    pub(crate) fn new(
        known: Version,
        why: DirtyReason,
        error: Option<&str>,
        at: Timestamp,
    ) -> Self {
        Self {
            known,
            why,
            attempts: u32::from(error.is_some()),
            error: error.map(|text| cut(text, Self::MAX_ERROR)),
            since: at,
            last: at,
            rest: Map::new(),
        }
    }
    /// Returns the row after this later finding about the same stream.
    fn merged(&self, later: &Self) -> Self {
        Self {
            known: self.known.max(later.known),
            why: later.why,
            attempts: self.attempts.saturating_add(later.attempts),
            error: later.error.clone().or_else(|| self.error.clone()),
            since: self.since,
            last: later.last,
            rest: self.rest.clone(),
        }
    }
    /// Returns the time from which the stream is to be tried again.
    pub(crate) fn due_at(&self, backoff: Backoff) -> Timestamp {
        match self.attempts {
            0 => self.last,
            attempts => self.last.plus(backoff.bound(attempts)),
        }
    }
}

/// Returns the beginning of a text, of at most this many bytes.
fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev();
    let end = end.into_iter().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

impl PublisherRows {
    fn dirty_key(&self, stream: &StreamId) -> RowKey {
        RowKey::new(self.shard_of("dirty", stream), stream.as_str())
    }

    /// Returns the row of a dirty stream; `None` if the stream is not dirty.
    pub(crate) async fn dirty_get(
        &self,
        stream: &StreamId,
    ) -> Result<Option<Stored<DirtyRow>>, ControlStoreError> {
        self.rows.get(&self.dirty_key(stream)).await
    }

    /// Returns one page of at most `limit` dirty streams of a shard.
    pub(crate) async fn dirty_page(
        &self,
        shard: u32,
        after: Option<String>,
        limit: NonZeroU32,
    ) -> Result<KeyedPage<StreamId, DirtyRow>, ControlStoreError> {
        let query = RangeQuery::new(self.shard("dirty", shard))
            .with_after(after)
            .with_limit(limit);
        let stream_of = |sort: &str| StreamId::parse(sort).ok();
        self.rows.page(&query, stream_of).await
    }

    /// Notes that a stream is dirty, and returns the row. What an earlier finding has noted about
    /// the stream is kept.
    pub(crate) async fn dirty_note(
        &self,
        stream: &StreamId,
        finding: &DirtyRow,
    ) -> Result<Stored<DirtyRow>, ControlStoreError> {
        let key = self.dirty_key(stream);
        let mut races = Races::default();
        let mut seen: Option<Stored<DirtyRow>> = self.rows.get(&key).await?;
        loop {
            let (row, expect) = match &seen {
                Some(known) => (
                    known.value.merged(finding),
                    Expect::Revision(known.revision),
                ),
                None => (finding.clone(), Expect::Absent),
            };
            match self.rows.put(&key, row, expect).await? {
                PutIf::Written(row) => return Ok(row),
                PutIf::Conflict(theirs) => seen = theirs,
            }
            self.rows.lost(&mut races, &key).await?;
        }
    }

    /// Deletes the write of a row that was `seen`: the stream is published.
    pub(crate) async fn dirty_delete(
        &self,
        stream: &StreamId,
        seen: Revision,
    ) -> Result<DeleteIf<DirtyRow>, ControlStoreError> {
        self.rows.delete(&self.dirty_key(stream), seen).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Rows, test_store::TestStore};
    use std::time::Duration;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn the_stored_form_of_a_dirty_stream_is_fixed_and_fields_of_newer_builds_are_kept() {
        let row = DirtyRow::new(
            Version::new(7),
            DirtyReason::Stuck,
            Some("too large"),
            at(3),
        );
        let text = r#"{"v":7,"w":"stuck","n":1,"e":"too large","t":3,"l":3}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        let backlog = DirtyRow::new(Version::new(7), DirtyReason::Backlog, None, at(3));
        let text_of_it = r#"{"v":7,"w":"backlog","n":0,"t":3,"l":3}"#;
        assert_eq!(serde_json::to_string(&backlog).unwrap(), text_of_it);
        let newer = text.replace("\"t\"", "\"z\":[1],\"t\"");
        let read: DirtyRow = serde_json::from_str(&newer).unwrap();
        let merged = serde_json::to_string(&read.merged(&backlog)).unwrap();
        let expected = r#"{"v":7,"w":"backlog","n":1,"e":"too large","t":3,"l":3,"z":[1]}"#;
        assert_eq!(merged, expected);
    }

    #[test]
    fn an_error_is_cut_between_characters() {
        let long = "ä".repeat(DirtyRow::MAX_ERROR);
        let row = DirtyRow::new(Version::new(1), DirtyReason::Stuck, Some(&long), at(0));
        assert_eq!(row.error.unwrap().len(), DirtyRow::MAX_ERROR);
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
    }

    #[test]
    fn a_stream_is_due_later_after_each_attempt() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        let mut row = DirtyRow::new(Version::new(1), DirtyReason::Old, None, at(0));
        assert_eq!(row.due_at(backoff), at(0));
        for seconds in [1, 2, 4, 4] {
            row.attempts += 1;
            assert_eq!(row.due_at(backoff), at(seconds * 1_000_000));
        }
    }

    #[tokio::test]
    async fn a_second_finding_keeps_since_when_and_the_highest_version() {
        let store = TestStore::new(1);
        let rows = PublisherRows::over(Rows::new(store.clone(), store), None);
        let stream = StreamId::new("cart", "a").unwrap();
        let finding =
            |version, why, error, time| DirtyRow::new(Version::new(version), why, error, at(time));
        rows.dirty_note(&stream, &finding(9, DirtyReason::Backlog, None, 1))
            .await
            .unwrap();
        let stuck = finding(5, DirtyReason::Stuck, Some("no"), 2);
        let row = rows.dirty_note(&stream, &stuck).await.unwrap();
        let row_now = rows.dirty_get(&stream).await.unwrap().unwrap();
        assert_eq!(row_now, row);
        let DirtyRow {
            known, why, since, ..
        } = row.value;
        assert_eq!(
            (known, why, since, row.value.last, row.value.attempts),
            (Version::new(9), DirtyReason::Stuck, at(1), at(2), 1)
        );
        let deleted = rows.dirty_delete(&stream, row.revision).await.unwrap();
        assert_eq!(deleted, DeleteIf::Deleted);
        assert_eq!(rows.dirty_get(&stream).await.unwrap(), None);
    }
}
