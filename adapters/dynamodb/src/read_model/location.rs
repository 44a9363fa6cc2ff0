//! The table and the keys of a model's items.
//!
//! The keys of a generation begin with its name, and its items are spread over a fixed number of
//! partitions. So a reset or a list reads the items of one generation and no others, and no single
//! partition takes all writes.
use super::{ReadModelError, ReadModelRow, RowKeys};
use crate::{
    attributes::{Attributes, text},
    limits::MAX_SORT_KEY_BYTES,
};
use foldstream::{StreamId, runner::ModelId};
use std::marker::PhantomData;

/// The number of partitions of a model's rows. Stored: never change it.
pub(super) const SHARDS: u32 = 64;
/// The longest name of rows.
const MAX_NAME: usize = 64;

/// The table and the keys of the items of one model's rows.
#[derive(Debug)]
pub(super) struct Location<T> {
    pub(super) model: ModelId,
    pub(super) table: String,
    /// The first part of the keys, `<model>/<rows>/`.
    start: String,
    rows: PhantomData<fn() -> T>,
}

impl<T: ReadModelRow> Location<T> {
    /// Creates the location of a model.
    ///
    /// # Errors
    /// `Invalid` if the name of the rows is not allowed.
    pub(super) fn new(model: &ModelId, table: String) -> Result<Self, ReadModelError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if !(1..=MAX_NAME).contains(&T::NAME.len()) || !T::NAME.bytes().all(allowed) {
            return Err(ReadModelError::Invalid {
                model: model.clone(),
                reason: format!(
                    "{:?} is not a name of rows: 1 to {MAX_NAME} characters of A-Z a-z 0-9 _ . -",
                    T::NAME
                ),
            });
        }
        Ok(Self {
            start: format!("{model}/{}/", T::NAME),
            model: model.clone(),
            table,
            rows: PhantomData,
        })
    }

    /// Returns true if the position of a stream is in the row of the stream.
    pub(super) const fn is_per_stream(&self) -> bool {
        matches!(T::KEYS, RowKeys::Stream)
    }

    /// Returns the partitions of all rows.
    pub(super) fn row_partitions(&self) -> impl Iterator<Item = String> + use<T> {
        let start = self.start.clone();
        (0..SHARDS).map(move |shard| format!("{start}{shard:02}"))
    }
    /// Returns the partitions of all positions that have items of their own.
    pub(super) fn position_partitions(&self) -> impl Iterator<Item = String> + use<T> {
        let start = self.start.clone();
        let shards = if self.is_per_stream() { 0 } else { SHARDS };
        (0..shards).map(move |shard| format!("{start}p{shard:02}"))
    }

    /// Returns the key of a row's item.
    pub(super) fn row(&self, key: &str) -> Attributes {
        self.item("", key)
    }
    /// Returns the key of the item that holds the position of a stream.
    pub(super) fn position(&self, stream: &StreamId) -> Attributes {
        let kind = if self.is_per_stream() { "" } else { "p" };
        self.item(kind, stream.as_str())
    }
    fn item(&self, kind: &str, sort: &str) -> Attributes {
        let shard = fnv1a(sort.as_bytes()) % SHARDS;
        let partition = format!("{}{kind}{shard:02}", self.start);
        Attributes::from([("pk".into(), text(partition)), ("sk".into(), text(sort))])
    }
    /// Returns the partition of the index that holds the rows of a partition of the user's.
    pub(super) fn index_partition(&self, partition: &str) -> String {
        format!("{}{partition}", self.start)
    }

    /// Checks a text that becomes a key.
    ///
    /// # Errors
    /// `Invalid` if the text is empty or too long.
    pub(super) fn check_key(&self, what: &str, key: &str) -> Result<(), ReadModelError> {
        if (1..=MAX_SORT_KEY_BYTES).contains(&key.len()) {
            return Ok(());
        }
        Err(ReadModelError::Invalid {
            model: self.model.clone(),
            reason: format!(
                "{what} has 1 to {MAX_SORT_KEY_BYTES} bytes, not {}: {:?}",
                key.len(),
                key.chars().take(40).collect::<String>()
            ),
        })
    }
}

/// Returns the 32-bit FNV-1a hash, which decides the partition of an item. Stored: never change it.
fn fnv1a(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of the algorithm's authors.
    #[test]
    fn the_hash_is_fnv_1a() {
        for (text, expected) in [
            ("", 0x811c_9dc5),
            ("a", 0xe40c_292c),
            ("foobar", 0xbf9c_f968),
        ] {
            assert_eq!(fnv1a(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn keys_are_spread_over_all_partitions() {
        let mut rows = [0_u32; SHARDS as usize];
        for n in 0..6_400 {
            rows[(fnv1a(format!("order#{n}").as_bytes()) % SHARDS) as usize] += 1;
        }
        assert!(
            rows.iter().all(|rows| (50..=200).contains(rows)),
            "{rows:?}"
        );
    }
}
