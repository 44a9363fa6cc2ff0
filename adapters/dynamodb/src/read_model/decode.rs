//! The stored form of rows and positions, on the way from DynamoDB.
use super::{
    ReadModelError, ReadModelRow,
    encode::{At, Positions},
    location::Location,
};
use crate::attributes::{Attributes, BadAttribute, required, take_binary, take_number, take_text};
use foldstream::{CommitId, StreamId, Version};
use std::collections::BTreeMap;

/// A stored row with its positions.
#[derive(Debug)]
pub(super) struct Stored<T> {
    pub(super) row: Option<T>,
    pub(super) positions: Positions,
}

impl<T> Stored<T> {
    /// The row that is not stored.
    pub(super) const NOTHING: Self = Self {
        row: None,
        positions: Positions::new(),
    };
}

/// Decodes the item of a row. Without an item, nothing is stored.
///
/// # Errors
/// `Corrupt` if this build cannot read the item.
pub(super) fn row<T: ReadModelRow>(
    location: &Location<T>,
    key: &str,
    item: Option<Attributes>,
) -> Result<Stored<T>, ReadModelError> {
    let Some(mut item) = item else {
        return Ok(Stored::NOTHING);
    };
    let mut decoded = || {
        check_format(&mut item)?;
        Ok::<_, BadAttribute>(Stored {
            row: value(&mut item)?,
            positions: positions(location, key, &mut item)?,
        })
    };
    decoded().map_err(|bad| corrupt(location, key, &bad))
}

/// Decodes an item of a list. Returns its key and its row, if there is one.
///
/// # Errors
/// `Corrupt` if this build cannot read the item.
pub(super) fn listed<T: ReadModelRow>(
    location: &Location<T>,
    mut item: Attributes,
) -> Result<Option<(String, T)>, ReadModelError> {
    let key = take_text(&mut item, "sk").and_then(|key| required(key, "sk"));
    let key = key.map_err(|bad| corrupt(location, "(not readable)", &bad))?;
    let row = check_format(&mut item).and_then(|()| value(&mut item));
    let row = row.map_err(|bad| corrupt(location, &key, &bad))?;
    Ok(row.map(|row| (key, row)))
}

/// Decodes the position that an item holds. Without an item, there is none.
///
/// # Errors
/// `Corrupt` if this build cannot read the item.
pub(super) fn position<T: ReadModelRow>(
    location: &Location<T>,
    stream: &StreamId,
    item: Option<Attributes>,
) -> Result<Option<At>, ReadModelError> {
    let Some(mut item) = item else {
        return Ok(None);
    };
    let decoded = check_format(&mut item).and_then(|()| at(&mut item));
    let decoded = decoded.map_err(|bad| corrupt(location, stream.as_str(), &bad))?;
    Ok(Some(decoded))
}

fn corrupt<T: ReadModelRow>(
    location: &Location<T>,
    key: &str,
    bad: &BadAttribute,
) -> ReadModelError {
    ReadModelError::Corrupt {
        model: location.model.clone(),
        key: key.into(),
        reason: bad.to_string(),
    }
}

/// Refuses an item of another format: this build would drop the attributes that it does not know.
fn check_format(item: &mut Attributes) -> Result<(), BadAttribute> {
    match take_number::<u32>(item, "f")? {
        None | Some(1) => Ok(()),
        Some(format) => Err(BadAttribute::new(
            "f",
            &format!("format {format} of a newer build: deploy that build"),
        )),
    }
}

fn value<T: ReadModelRow>(item: &mut Attributes) -> Result<Option<T>, BadAttribute> {
    let json = take_text(item, "d")?;
    let row = json.map(|json| serde_json::from_str(&json)).transpose();
    // The error of serde names a place, and may quote a value of the row.
    row.map_err(|e| {
        let place = format!("not a row, at line {} column {}", e.line(), e.column());
        BadAttribute::new("d", &place)
    })
}

fn positions<T: ReadModelRow>(
    location: &Location<T>,
    key: &str,
    item: &mut Attributes,
) -> Result<Positions, BadAttribute> {
    if location.is_per_stream() {
        let stream = StreamId::parse(key).map_err(|e| BadAttribute::new("sk", &e))?;
        return Ok(Positions::from([(stream, at(item)?)]));
    }
    let text = required(take_text(item, "p")?, "p")?;
    let versions: BTreeMap<StreamId, Version> =
        serde_json::from_str(&text).map_err(|e| BadAttribute::new("p", &e))?;
    let commit_id = None;
    let at = |(stream, version)| (stream, At { version, commit_id });
    Ok(versions.into_iter().map(at).collect())
}

fn at(item: &mut Attributes) -> Result<At, BadAttribute> {
    let version = Version::new(required(take_number(item, "v")?, "v")?);
    let commit_id = take_binary(item, "c")?.map(|bytes| {
        let length = bytes.len();
        <[u8; 16]>::try_from(bytes)
            .map(|bytes| CommitId::from_u128(u128::from_be_bytes(bytes)))
            .map_err(|_| BadAttribute::new("c", &format!("{length} bytes instead of 16")))
    });
    let commit_id = commit_id.transpose()?;
    Ok(At { version, commit_id })
}
