//! Discards: versions that an operator wants a processor to pass over, and what became of them.
//!
//! ```text
//! discarded/<name>/<N>/<topic>/<partition>  <stream>\u{1f}<version:020> -> DiscardRow
//! archive/<name>/<N>/<topic>/<partition>    the same, once no redrive can meet the version
//! ```
//! A discard is a row, and not a state of the stream: a state could be overwritten by an owner that
//! has not seen it. The owner consults the rows before it handles a version, and notes in the row
//! that it has passed the version over.
use super::{
    DeleteIf, KeyedPage, ProcessorRows, PutIf, Stored,
    processor_rows::{event_sort, parse_event, stream_query},
    rows::decode,
};
use crate::{
    StreamId, Timestamp, Version,
    ports::{ControlStoreError, Expect, Offset, PartitionId, RangeQuery, Revision, RowKey},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The state of a discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DiscardState {
    /// The operator has asked, and no owner has answered.
    Asked,
    /// The owner has passed the version over: it is not handled, now or later.
    Passed,
    /// The version was handled before the owner saw the request.
    Handled,
}

/// The value of a discard's row. It is kept for good, as a record of who decided what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DiscardRow {
    #[serde(rename = "r")]
    pub(crate) reason: String,
    /// The name of the operator.
    #[serde(rename = "b")]
    pub(crate) by: String,
    #[serde(rename = "t")]
    pub(crate) at: Timestamp,
    #[serde(rename = "s")]
    pub(crate) state: DiscardState,
    /// True if the version need not have failed: the operator skips an event that may still come.
    #[serde(rename = "k", default, skip_serializing_if = "is_false")]
    pub(crate) is_skip: bool,
    /// The offset of the record that was passed over, or of a later one of its stream, if the owner
    /// had one: once this offset is committed, the record does not come again.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<Offset>,
    /// The fields that a newer build has written. This build keeps them.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl DiscardRow {
    pub(crate) fn asked(by: &str, reason: &str, at: Timestamp) -> Self {
        Self {
            reason: reason.into(),
            by: by.into(),
            at,
            state: DiscardState::Asked,
            is_skip: false,
            offset: None,
            rest: Map::new(),
        }
    }
    /// Returns the row for a version whose record has this offset.
    #[must_use]
    pub(crate) const fn at_offset(mut self, offset: Offset) -> Self {
        self.offset = Some(offset);
        self
    }
    /// Returns true if no delivery can meet the version any more, and no redrive either, unless
    /// the stream is parked at the version or below. Then the row only tells what was decided.
    ///
    /// `position` is the durable position in the stream, if one is known, and `committed` is the
    /// offset up to which the partition is committed.
    pub(crate) fn is_over(
        &self,
        version: Version,
        position: Option<Version>,
        committed: Offset,
    ) -> bool {
        let is_behind = position.is_some_and(|position| version <= position);
        let is_committed = self.offset.is_some_and(|offset| offset < committed);
        match self.state {
            // It was handled before anybody asked.
            DiscardState::Asked => is_behind,
            DiscardState::Passed => is_behind || is_committed,
            DiscardState::Handled => true,
        }
    }
    /// Returns the row for a version that need not have failed.
    #[must_use]
    pub(crate) fn skipping(mut self) -> Self {
        self.is_skip = true;
        self
    }
    /// Returns the row once the owner has passed the version over.
    #[must_use]
    pub(crate) fn passed(&self) -> Self {
        self.in_state(DiscardState::Passed)
    }
    /// Returns the row if the version was handled before.
    #[must_use]
    pub(crate) fn handled(&self) -> Self {
        self.in_state(DiscardState::Handled)
    }
    fn in_state(&self, state: DiscardState) -> Self {
        Self {
            state,
            ..self.clone()
        }
    }
    /// Returns true if a redrive or a delivery must pass the version over.
    pub(crate) fn is_in_force(&self) -> bool {
        self.state != DiscardState::Handled
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl ProcessorRows {
    fn discard_key(&self, partition: &PartitionId, stream: &StreamId, version: Version) -> RowKey {
        let sort = event_sort(stream, version);
        RowKey::new(self.partition("discarded", partition), sort)
    }

    /// Returns one page of the discards of a partition.
    pub(crate) async fn discard_page(
        &self,
        partition: &PartitionId,
        after: Option<String>,
    ) -> Result<KeyedPage<(StreamId, Version), DiscardRow>, ControlStoreError> {
        let query = RangeQuery::new(self.partition("discarded", partition)).with_after(after);
        self.rows.page(&query, parse_event).await
    }

    /// Returns one page of the discards of a stream, of versions between two, both included.
    pub(crate) async fn discards_of(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        (first, last): (Version, Version),
        after: Option<String>,
    ) -> Result<KeyedPage<Version, DiscardRow>, ControlStoreError> {
        let rows = self.partition("discarded", partition);
        let query = stream_query(rows, stream, first, last, after);
        let version_of = |sort: &str| parse_event(sort).map(|(_, version)| version);
        self.rows.page(&query, version_of).await
    }

    /// Returns the discard of a version; `None` if nobody has asked for it.
    pub(crate) async fn discard_get(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
    ) -> Result<Option<Stored<DiscardRow>>, ControlStoreError> {
        let key = self.discard_key(partition, stream, version);
        self.rows.get(&key).await
    }

    /// Returns the discards of several events, in their order.
    pub(crate) async fn discard_get_many<'a>(
        &self,
        partition: &PartitionId,
        events: impl Iterator<Item = (&'a StreamId, Version)>,
    ) -> Result<Vec<Option<Stored<DiscardRow>>>, ControlStoreError> {
        let keys: Vec<_> = events
            .map(|(stream, version)| self.discard_key(partition, stream, version))
            .collect();
        let found = self.rows.get_raw(&keys).await?.into_iter();
        found.map(|row| row.map(decode).transpose()).collect()
    }

    /// Asks for a discard, unless somebody has asked for it already. The change token is written
    /// after it in either case.
    pub(crate) async fn discard_ask(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
        row: DiscardRow,
    ) -> Result<PutIf<DiscardRow>, ControlStoreError> {
        let key = self.discard_key(partition, stream, version);
        self.rows.put(&key, row, Expect::Absent).await
    }

    /// Replaces the write of a discard's row that was `seen`: the owner's answer.
    pub(crate) async fn discard_replace(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
        row: DiscardRow,
        seen: Revision,
    ) -> Result<PutIf<DiscardRow>, ControlStoreError> {
        let key = self.discard_key(partition, stream, version);
        self.rows.put(&key, row, Expect::Revision(seen)).await
    }

    /// Copies a discard to the archive, from where no owner reads it. The row itself is deleted
    /// after that.
    pub(crate) async fn discard_archive(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
        row: DiscardRow,
    ) -> Result<PutIf<DiscardRow>, ControlStoreError> {
        let key = self.archive_key(partition, stream, version);
        self.rows.put(&key, row, Expect::Any).await
    }

    /// Returns the discard of a version from the archive.
    pub(crate) async fn discard_archived(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
    ) -> Result<Option<Stored<DiscardRow>>, ControlStoreError> {
        let key = self.archive_key(partition, stream, version);
        self.rows.get(&key).await
    }

    fn archive_key(&self, partition: &PartitionId, stream: &StreamId, version: Version) -> RowKey {
        let sort = event_sort(stream, version);
        RowKey::new(self.partition("archive", partition), sort)
    }

    /// Deletes the write of a discard's row that was `seen`, after it was archived.
    pub(crate) async fn discard_delete(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
        seen: Revision,
    ) -> Result<DeleteIf<DiscardRow>, ControlStoreError> {
        let key = self.discard_key(partition, stream, version);
        self.rows.delete(&key, seen).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_discard_is_fixed_and_fields_of_newer_builds_are_kept() {
        let row = DiscardRow::asked("ann", "a duplicate", Timestamp::from_micros(7));
        let text = r#"{"r":"a duplicate","b":"ann","t":7,"s":"asked"}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        let newer = r#"{"r":"a duplicate","b":"ann","t":7,"s":"asked","z":[1]}"#;
        let read: DiscardRow = serde_json::from_str(newer).unwrap();
        let passed = serde_json::to_string(&read.passed()).unwrap();
        assert_eq!(passed, newer.replace("asked", "passed"));
        let handled = serde_json::to_string(&row.handled()).unwrap();
        assert_eq!(handled, text.replace("asked", "handled"));
        let skip = serde_json::to_string(&row.clone().skipping()).unwrap();
        assert_eq!(skip, text.replace('}', r#","k":true}"#));
        let record = row.clone().at_offset(Offset::new(4)).passed();
        let text_of_it = text.replace("asked", "passed").replace('}', r#","o":4}"#);
        assert_eq!(serde_json::to_string(&record).unwrap(), text_of_it);
        assert!(row.is_in_force() && row.passed().is_in_force() && !row.handled().is_in_force());
    }

    #[test]
    fn a_discard_is_over_once_its_event_cannot_come_again() {
        let asked = DiscardRow::asked("ann", "a duplicate", Timestamp::from_micros(7));
        let (passed, handled) = (asked.passed(), asked.handled());
        let record = passed.clone().at_offset(Offset::new(4));
        let v = Version::new;
        let is_over = |row: &DiscardRow, position: Option<u64>, committed| {
            row.is_over(v(3), position.map(v), Offset::new(committed))
        };
        assert!(!is_over(&asked, Some(2), 9) && is_over(&asked, Some(3), 0));
        assert!(!is_over(&asked, None, 9) && is_over(&handled, None, 0));
        assert!(!is_over(&passed, Some(2), 9) && is_over(&passed, Some(3), 0));
        assert!(!is_over(&record, None, 4) && is_over(&record, None, 5));
        assert!(!is_over(&passed, None, 9), "its record is not known");
    }
}
