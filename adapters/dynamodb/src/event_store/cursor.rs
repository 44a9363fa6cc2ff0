//! Cursors: the position of a scan or listing, as bytes that outlive the process.
use crate::attributes::{Attributes, number, text};
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{
    StreamId,
    ports::{EventStoreError, ScanCursor, Segment},
};
use serde::{Deserialize, Serialize};

/// A position in a scan or listing. It names that scan or listing, so that any other one refuses
/// it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cursor {
    of: Listing,
    /// The shard of the index. 0 for a scan.
    #[serde(default)]
    pub(super) shard: u32,
    /// The last item seen in the shard or segment. `None` at its start.
    pub(super) last: Option<LastItem>,
    /// The stream after which the listing goes on in the shard. It has no `last` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) past: Option<StreamId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Listing {
    Scan { index: u32, total: u32, tails: bool },
    Streams { aggregate: String },
    Unpublished { index: u32, total: u32 },
}

/// The key of an item. Its partition in an index follows from the shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LastItem {
    pk: String,
    sk: String,
}

impl Listing {
    pub(super) const fn scan(segment: Segment, tails: bool) -> Self {
        Self::Scan {
            index: segment.index(),
            total: segment.total(),
            tails,
        }
    }
    pub(super) const fn unpublished(segment: Segment) -> Self {
        Self::Unpublished {
            index: segment.index(),
            total: segment.total(),
        }
    }

    /// Returns the position of a cursor, or the start of `shard` without a cursor.
    ///
    /// # Errors
    /// `Invalid` if the cursor belongs to another scan or listing.
    pub(super) fn resume(
        self,
        after: Option<&ScanCursor>,
        shard: u32,
    ) -> Result<Cursor, EventStoreError> {
        let Some(after) = after else {
            return Ok(Cursor::at(self, shard, None));
        };
        match serde_json::from_slice::<Cursor>(after.as_bytes()) {
            Ok(cursor) if cursor.of == self => Ok(cursor),
            _ => Err(EventStoreError::Invalid {
                reason: format!("the cursor is not one of {self:?}"),
            }),
        }
    }
}

impl Cursor {
    pub(super) const fn at(of: Listing, shard: u32, last: Option<LastItem>) -> Self {
        Self {
            of,
            shard,
            last,
            past: None,
        }
    }
    /// Creates the position after all items of a stream in a shard.
    pub(super) const fn past(of: Listing, shard: u32, stream: StreamId) -> Self {
        Self {
            of,
            shard,
            last: None,
            past: Some(stream),
        }
    }
    pub(super) fn encode(&self) -> Result<ScanCursor, EventStoreError> {
        match serde_json::to_vec(self) {
            Ok(bytes) => Ok(ScanCursor::from_bytes(bytes)),
            Err(e) => Err(EventStoreError::Invalid {
                reason: format!("the cursor cannot be written: {e}"),
            }),
        }
    }
}

impl LastItem {
    /// Reads the key in a `LastEvaluatedKey`.
    pub(super) fn of(key: &Attributes) -> Option<Self> {
        match (key.get("pk")?, key.get("sk")?) {
            (AttributeValue::S(pk), AttributeValue::N(sk)) => Some(Self {
                pk: pk.clone(),
                sk: sk.clone(),
            }),
            _ => None,
        }
    }
    /// Returns the key as an `ExclusiveStartKey` of the table.
    pub(super) fn key(&self) -> Attributes {
        Attributes::from([
            ("pk".into(), text(&*self.pk)),
            ("sk".into(), number(&self.sk)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_another_listing_is_invalid() {
        let key = Attributes::from([("pk".into(), text("a#1")), ("sk".into(), number(7))]);
        let of = |tails| Listing::scan(Segment::ALL, tails);
        let cursor = Cursor::at(of(false), 0, LastItem::of(&key));
        let bytes = cursor.encode().unwrap();
        assert_eq!(of(false).resume(Some(&bytes), 0).unwrap(), cursor);
        assert_eq!(cursor.last.unwrap().key(), key);
        for (other, bytes) in [
            (of(true), bytes.clone()),
            (Listing::unpublished(Segment::ALL), bytes.clone()),
            (
                Listing::Streams {
                    aggregate: "a".into(),
                },
                bytes,
            ),
            (of(false), ScanCursor::from_bytes("nonsense")),
        ] {
            assert!(matches!(
                other.resume(Some(&bytes), 0),
                Err(EventStoreError::Invalid { .. })
            ));
        }
    }
}
