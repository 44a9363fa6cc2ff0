//! The stored form of control rows.
//!
//! `pk` and `sk` are the key, `d` is the value, `r` the revision (32 hexadecimal digits), and `x`
//! the expiry (seconds since 1970). `tests/it/stored_form.rs` fixes this form.
use crate::attributes::{
    Attributes, BadAttribute, binary, number, required, take_binary, take_number, take_text, text,
};
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{
    Timestamp,
    ports::{ControlStoreError, Revision, Row, RowKey},
};

const SECOND: i64 = 1_000_000;

pub(super) fn key(key: &RowKey) -> Attributes {
    Attributes::from([
        ("pk".into(), text(&*key.partition)),
        ("sk".into(), text(&*key.sort)),
    ])
}
pub(super) fn revision(revision: Revision) -> String {
    format!("{:032x}", revision.as_u128())
}
/// Returns the current time in the unit of `x`. A row has expired if its `x` is not above it.
pub(super) fn now(now: Timestamp) -> AttributeValue {
    number(now.as_micros().div_euclid(SECOND))
}
/// Returns the time in whole seconds, rounded up.
fn seconds(at: Timestamp) -> i64 {
    let micros = at.as_micros();
    micros.div_euclid(SECOND) + i64::from(micros.rem_euclid(SECOND) > 0)
}

pub(super) fn encode(row: &Row) -> Attributes {
    let mut item = key(&row.key);
    item.insert("d".into(), binary(row.value.to_vec()));
    item.insert("r".into(), text(revision(row.revision)));
    if let Some(at) = row.expires_at {
        item.insert("x".into(), number(seconds(at)));
    }
    item
}

pub(super) fn decode(mut item: Attributes) -> Result<Row, ControlStoreError> {
    let mut name = |name| {
        take_text(&mut item, name)
            .ok()
            .flatten()
            .unwrap_or_default()
    };
    let key = RowKey::new(name("pk"), name("sk"));
    decode_at(key.clone(), item).map_err(|e| ControlStoreError::Corrupt {
        key,
        reason: e.to_string(),
    })
}

fn decode_at(key: RowKey, mut item: Attributes) -> Result<Row, BadAttribute> {
    let digits = required(take_text(&mut item, "r")?, "r")?;
    let bits = u128::from_str_radix(&digits, 16).map_err(|e| BadAttribute::new("r", &e))?;
    let value = required(take_binary(&mut item, "d")?, "d")?;
    let expiry: Option<i64> = take_number(&mut item, "x")?;
    let at = expiry.map(|s| Timestamp::from_micros(s.saturating_mul(SECOND)));
    Ok(Row::new(key, value, Revision::from_u128(bits)).with_expiry(at))
}

/// Returns the sort key of a `LastEvaluatedKey`.
pub(super) fn sort(mut last: Attributes) -> Result<String, ControlStoreError> {
    let sort = take_text(&mut last, "sk").and_then(|sort| required(sort, "sk"));
    sort.map_err(|e| ControlStoreError::Corrupt {
        key: RowKey::new("", ""),
        reason: format!("a page ends at a key that is no row's: {e}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_rounded_up_to_the_second() {
        let at = |micros| seconds(Timestamp::from_micros(micros));
        assert_eq!([at(0), at(1), at(SECOND), at(SECOND + 1)], [0, 1, 1, 2]);
        assert_eq!([at(-1), at(-SECOND), at(-SECOND - 1)], [0, -1, -1]);
    }

    #[test]
    fn a_row_comes_back_as_it_was() {
        let key = RowKey::new("p", "s\u{1f}x");
        let row = Row::new(key, vec![0, 255], Revision::from_u128(10))
            .with_expiry(Some(Timestamp::from_micros(7 * SECOND)));
        let item = encode(&row);
        assert_eq!(item["r"], text("0000000000000000000000000000000a"));
        assert_eq!(item["x"], number(7));
        assert_eq!(decode(item).unwrap(), row);
    }
}
