//! [`ProcessorRows`]: the rows about failed events of one generation of a processor.
//!
//! ```text
//! park/<name>/<N>/<topic>/<partition>       <stream>                     ParkRow
//! dlq/<name>/<N>/<topic>/<partition>        <stream>\u{1f}<version:020>  DeadLetter
//! discarded/<name>/<N>/<topic>/<partition>  <stream>\u{1f}<version:020>  DiscardRow
//! archive/<name>/<N>/<topic>/<partition>    <stream>\u{1f}<version:020>  DiscardRow, later
//! def/<name>/<N>/<topic>/<partition>        <stream>\u{1f}<version:020>  StoredRecord
//! ask/<name>/<N>/<topic>/<partition>        <stream>\u{1f}<version:020>  AskRow
//! park/<name>/<N>                           !changed                     ChangeToken
//! ```
//! The rows are kept by partition of the bus, so that the owner of a partition finds them when it
//! gets the partition. Every method is one row operation, so that a crash may fall between any two.
//! The order of the operations is the decision of their caller.
//!
//! # Why is the token written after the rows, and read before them?
//! A reader that reads the token first and the rows then has either seen a change, or finds another
//! token when it looks again. In the opposite order a change between the two reads would be missed
//! until the next one.
use super::{
    LargeRows, PutIf, Rows, Stored,
    generation::{Generations, generations_key},
    hex_id::hex_id,
    rows::decode,
};
use crate::{
    Clock, IdSource, StreamId, Version,
    ports::{
        ControlStore, ControlStoreError, Expect, Offset, PartitionId, RangeQuery, RowKey,
        SortBounds,
    },
};
use std::sync::Arc;

/// The separator between the parts of a sort key. No stream id holds it.
pub(super) const SEPARATOR: char = '\u{1f}';
/// The first part of the sort key of a record without a readable stream and version. No aggregate
/// type begins with it.
const RECORD: &str = "!";
const CHANGED: &str = "!changed";

hex_id! {
    /// A value that changes whenever a process from outside has changed rows of a processor.
    pub(crate) ChangeToken, "a change token"
}

/// The value of the row `park/<name>/<N>`, `!changed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Changed {
    #[serde(rename = "k")]
    token: ChangeToken,
}

/// The answer to a poll of an instance.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Polled {
    /// The change token; `None` before the first change from outside.
    pub(crate) token: Option<ChangeToken>,
    /// The generations of the processor; `None` before its first start.
    pub(crate) generations: Option<Stored<Generations>>,
}

/// The rows about failed events of one generation of a processor. Clones share the store.
#[derive(Clone, Debug)]
pub(crate) struct ProcessorRows {
    pub(crate) rows: Rows,
    pub(super) large: LargeRows,
    processor: Arc<str>,
    generation: u32,
}

impl ProcessorRows {
    /// Creates access to the rows of one generation of a processor.
    pub(crate) fn over(
        control: Arc<dyn ControlStore>,
        ids: Arc<dyn IdSource>,
        clock: Arc<dyn Clock>,
        processor: impl Into<Arc<str>>,
        generation: u32,
    ) -> Self {
        Self {
            rows: Rows::new(control.clone(), ids.clone()),
            large: LargeRows::new(control, ids, clock),
            processor: processor.into(),
            generation,
        }
    }

    pub(crate) fn processor(&self) -> &Arc<str> {
        &self.processor
    }
    pub(crate) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the partition of the rows of one kind.
    pub(super) fn partition(&self, kind: &str, of: &PartitionId) -> String {
        let Self {
            processor,
            generation,
            ..
        } = self;
        format!(
            "{kind}/{processor}/{generation}/{}/{}",
            of.topic, of.partition
        )
    }

    fn changed_key(&self) -> RowKey {
        let partition = format!("park/{}/{}", self.processor, self.generation);
        RowKey::new(partition, CHANGED)
    }

    /// Returns the change token. Call this before the rows are read.
    pub(crate) async fn token(&self) -> Result<Option<ChangeToken>, ControlStoreError> {
        let row = self.rows.get::<Changed>(&self.changed_key()).await?;
        Ok(row.map(|row| row.value.token))
    }

    /// Writes another change token, so that every instance reads the rows again. Call this after
    /// the rows are written, also if they had the wanted values already: the process that wrote
    /// them may have died before this call.
    pub(crate) async fn announce(&self) -> Result<ChangeToken, ControlStoreError> {
        let revision = self.rows.fresh_revision();
        let token = ChangeToken::from_u128(revision.as_u128());
        let (key, changed) = (self.changed_key(), Changed { token });
        let put = self.rows.put_as(&key, changed, revision, Expect::Any, None);
        // Without a condition there is no conflict.
        let (PutIf::Written(_) | PutIf::Conflict(_)) = put.await?;
        Ok(token)
    }

    /// Reads the change token and the generations of the processor at once.
    pub(crate) async fn poll(&self) -> Result<Polled, ControlStoreError> {
        let keys = [self.changed_key(), generations_key(&self.processor)];
        let mut found = self.rows.get_raw(&keys).await?.into_iter();
        let changed = found.next().flatten().map(decode::<Changed>).transpose()?;
        let generations = found.next().flatten().map(decode).transpose()?;
        Ok(Polled {
            token: changed.map(|row| row.value.token),
            generations,
        })
    }
}

/// The place of an event or record within a partition, as the sort key of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LetterKey {
    /// An event, by its stream and version.
    Event {
        /// The stream of the event.
        stream: StreamId,
        /// The version of the event.
        version: Version,
    },
    /// A record whose stream or version cannot be read, by its offset.
    Record(Offset),
}

impl LetterKey {
    /// Creates the key of an event.
    #[must_use]
    pub const fn event(stream: StreamId, version: Version) -> Self {
        Self::Event { stream, version }
    }
    /// Returns the stream of the event; `None` for a record that cannot be read.
    pub const fn stream(&self) -> Option<&StreamId> {
        match self {
            Self::Event { stream, .. } => Some(stream),
            Self::Record(_) => None,
        }
    }
    pub(super) fn sort(&self) -> String {
        match self {
            Self::Event { stream, version } => event_sort(stream, *version),
            Self::Record(offset) => format!("{RECORD}{SEPARATOR}{:020}", offset.get()),
        }
    }
    pub(super) fn parse(sort: &str) -> Option<Self> {
        let (what, number) = sort.rsplit_once(SEPARATOR)?;
        let number = number.parse().ok()?;
        if what == RECORD {
            return Some(Self::Record(Offset::new(number)));
        }
        let stream = StreamId::parse(what).ok()?;
        Some(Self::event(stream, Version::new(number)))
    }
}

/// Returns the sort key of an event. The versions of a stream sort by their numbers.
pub(super) fn event_sort(stream: &StreamId, version: Version) -> String {
    format!("{stream}{SEPARATOR}{:020}", version.get())
}

pub(super) fn parse_event(sort: &str) -> Option<(StreamId, Version)> {
    match LetterKey::parse(sort)? {
        LetterKey::Event { stream, version } => Some((stream, version)),
        LetterKey::Record(_) => None,
    }
}

/// Returns a query for the rows of one stream from a version to another, both included.
pub(super) fn stream_query(
    partition: String,
    stream: &StreamId,
    first: Version,
    last: Version,
    after: Option<String>,
) -> RangeQuery {
    let bounds = SortBounds::Between(event_sort(stream, first), event_sort(stream, last));
    RangeQuery::new(partition)
        .with_bounds(bounds)
        .with_after(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_key_sorts_by_stream_and_version_and_reads_back() {
        let stream = StreamId::new("cart", "a#1").unwrap();
        let key = |version| LetterKey::event(stream.clone(), Version::new(version));
        assert_eq!(key(7).sort(), "cart#a#1\u{1f}00000000000000000007");
        assert!(key(9).sort() < key(10).sort() && key(10).sort() < key(u64::MAX).sort());
        let record = LetterKey::Record(Offset::new(7));
        assert_eq!(record.sort(), "!\u{1f}00000000000000000007");
        for key in [key(7), key(u64::MAX), record] {
            assert_eq!(LetterKey::parse(&key.sort()), Some(key));
        }
        for foreign in ["!changed", "cart#a", "cart#a\u{1f}x", "\u{1f}1"] {
            assert_eq!(LetterKey::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_stored_form_of_the_change_token_is_fixed() {
        let token = ChangeToken::from_u128(0xab);
        let text = serde_json::to_string(&Changed { token }).unwrap();
        assert_eq!(text, r#"{"k":"000000000000000000000000000000ab"}"#);
        assert_eq!(serde_json::from_str::<Changed>(&text).unwrap().token, token);
    }
}
