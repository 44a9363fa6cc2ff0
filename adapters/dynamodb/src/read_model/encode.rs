//! The stored form of rows and positions, on the way to DynamoDB.
//!
//! ```text
//! row       pk S "<model>/<rows>/<shard>"    sk S key of the row
//!           d S JSON of the row (absent: there is no row, only a position)
//!           v N version, c B commit id: the position of the row's stream (one row per stream)
//!           p S JSON {stream: version}: the positions of the row's streams (rows by keys)
//!           ip S "<model>/<rows>/<partition>", is S: the place in the index (absent: not in it)
//!           f N format (absent: 1)
//! position  pk S "<model>/<rows>/p<shard>"   sk S stream   v N   c B (rows by keys only)
//! ```
//! The tests in `tests/it/read_model/stored.rs` fix this form.
use super::{ReadModel, ReadModelError, ReadModelRow, location::Location};
use crate::{
    attributes::{Attributes, binary, item_bytes, number, text},
    limits::HARD_ITEM_BYTES,
};
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{CommitId, StreamId, Version};
use std::collections::BTreeMap;

/// The last version of a stream in a row, and its commit if the row holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) version: Version,
    pub(super) commit_id: Option<CommitId>,
}

/// The positions of the streams that feed a row. Empty if nothing is stored.
pub(super) type Positions = BTreeMap<StreamId, At>;

/// Returns true if `later` is not before `earlier` in any stream.
pub(super) fn covers(later: &Positions, earlier: &Positions) -> bool {
    earlier.iter().all(|(stream, at)| {
        let later = later.get(stream);
        later.is_some_and(|later| later.version >= at.version)
    })
}

/// Returns the item of a row.
///
/// # Errors
/// - `Encode` if the row cannot be stored, or could not be read again.
/// - `Invalid` if its place in the index is not allowed.
/// - `TooLarge` if it is larger than an item may be.
/// - `TooManyStreams` if too many streams feed it.
pub(super) fn row<T: ReadModelRow>(
    location: &Location<T>,
    key: &str,
    row: Option<&T>,
    positions: &Positions,
) -> Result<Attributes, ReadModelError> {
    if positions.len() > ReadModel::<T>::MAX_STREAMS {
        return Err(ReadModelError::TooManyStreams {
            model: location.model.clone(),
            key: key.into(),
            limit: ReadModel::<T>::MAX_STREAMS,
        });
    }
    let mut item = location.row(key);
    item.extend(position_attributes(location, positions));
    if let Some(row) = row {
        item.insert("d".into(), text(json(location, key, row)?));
        if let Some(place) = row.index() {
            let sort = place.sort().unwrap_or(key);
            location.check_key("the partition of an index", place.partition())?;
            location.check_key("the sort text of an index", sort)?;
            let partition = location.index_partition(place.partition());
            item.insert("ip".into(), text(partition));
            item.insert("is".into(), text(sort));
        }
    }
    match item_bytes(&item) {
        0..=HARD_ITEM_BYTES => Ok(item),
        bytes => Err(ReadModelError::TooLarge {
            model: location.model.clone(),
            key: key.into(),
            bytes,
            limit: HARD_ITEM_BYTES,
        }),
    }
}

/// Encodes a row, and checks that it can be read again: a row that cannot would block its streams
/// until the model is reset.
fn json<T: ReadModelRow>(
    location: &Location<T>,
    key: &str,
    row: &T,
) -> Result<String, ReadModelError> {
    let unfit = |source: serde_json::Error| ReadModelError::Encode {
        model: location.model.clone(),
        key: key.into(),
        source: source.into(),
    };
    let json = serde_json::to_string(row).map_err(unfit)?;
    serde_json::from_str::<T>(&json).map_err(unfit)?;
    Ok(json)
}

/// Returns the attributes that hold the positions in a row.
fn position_attributes<T: ReadModelRow>(
    location: &Location<T>,
    positions: &Positions,
) -> Vec<(String, AttributeValue)> {
    if location.is_per_stream() {
        return positions
            .values()
            .flat_map(|at| attributes_of(*at))
            .collect();
    }
    vec![("p".into(), keyed(positions))]
}

/// Returns the positions as a text that is the same for the same positions, so that a condition
/// can compare it.
fn keyed(positions: &Positions) -> AttributeValue {
    let versions = positions
        .iter()
        .map(|(stream, at)| (stream.as_str().to_owned(), at.version.get().into()));
    text(serde_json::Value::Object(versions.collect()).to_string())
}

fn attributes_of(at: At) -> Vec<(String, AttributeValue)> {
    let commit = at.commit_id.map(|id| {
        let bytes = id.as_u128().to_be_bytes();
        ("c".into(), binary(bytes))
    });
    let version = ("v".into(), number(at.version));
    std::iter::once(version).chain(commit).collect()
}

/// Returns the item that holds the position of a stream.
pub(super) fn position<T: ReadModelRow>(
    location: &Location<T>,
    stream: &StreamId,
    at: At,
) -> Attributes {
    let mut item = location.position(stream);
    item.extend(attributes_of(at));
    item
}

/// Returns the condition under which a row is replaced, and the value in it: that the stored
/// positions are those of `base`.
pub(super) fn condition<T: ReadModelRow>(
    location: &Location<T>,
    base: &Positions,
) -> (&'static str, Option<AttributeValue>) {
    match base.values().next() {
        None => ("attribute_not_exists(pk)", None),
        Some(at) if location.is_per_stream() => ("v = :base", Some(number(at.version))),
        Some(_) => ("p = :base", Some(keyed(base))),
    }
}
