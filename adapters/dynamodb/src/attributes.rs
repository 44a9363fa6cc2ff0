//! Attributes: making, taking and measuring them.
use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use std::collections::HashMap;

/// One stored item.
pub(crate) type Attributes = HashMap<String, AttributeValue>;

/// The largest event that is taken, as [`EventData::bytes`](foldstream::ports::EventData::bytes) counts it. With the most
/// metadata, its key and what the format adds it is an item below [`HARD_ITEM_BYTES`].
pub(crate) const MAX_EVENT_BYTES: usize = 390 * 1024;
/// The largest commit that is taken, as [`Append::bytes`](foldstream::ports::Append::bytes) counts it. With what the format
/// adds to each of its parts it is below [`MAX_TRANSACTION_BYTES`].
pub(crate) const MAX_COMMIT_BYTES: usize = 3_900 * 1024;
/// The size up to which an item is filled, in DynamoDB's bytes. The rest is left for what later formats add.
pub(crate) const MAX_ITEM_BYTES: usize = 390 * 1024;
/// DynamoDB's limit of an item: 400 KB. Only an event that has an item for itself comes close to it.
pub(crate) const HARD_ITEM_BYTES: usize = 400 * 1024;
/// The most that is sent in one transaction, in DynamoDB's bytes. Its limit is 4 MB of items, and does not say whether its
/// megabyte has 1,000 or 1,024 kilobytes.
/// (<https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html>)
pub(crate) const MAX_TRANSACTION_BYTES: usize = 4_000_000;
/// The most items that one transaction writes or checks.
pub(crate) const MAX_TRANSACTION_ITEMS: usize = 100;

pub(crate) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}
#[expect(
    clippy::needless_pass_by_value,
    reason = "numbers are copied, and calls read better"
)]
pub(crate) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}
pub(crate) fn binary(value: impl Into<Vec<u8>>) -> AttributeValue {
    AttributeValue::B(Blob::new(value))
}

/// Why an item cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attribute {name}: {problem}")]
pub(crate) struct BadAttribute {
    name: &'static str,
    problem: String,
}
impl BadAttribute {
    pub(crate) fn new(name: &'static str, problem: &(impl ToString + ?Sized)) -> Self {
        let problem = problem.to_string();
        Self { name, problem }
    }
}

pub(crate) fn to_text(
    value: Option<AttributeValue>,
    name: &'static str,
) -> Result<Option<String>, BadAttribute> {
    match value {
        None => Ok(None),
        Some(AttributeValue::S(text)) => Ok(Some(text)),
        Some(_) => Err(BadAttribute::new(name, "not a string")),
    }
}
pub(crate) fn to_number<N: std::str::FromStr>(
    value: Option<AttributeValue>,
    name: &'static str,
) -> Result<Option<N>, BadAttribute> {
    match value {
        None => Ok(None),
        Some(AttributeValue::N(text)) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(BadAttribute::new(name, &format!("{text} is out of range"))),
        },
        Some(_) => Err(BadAttribute::new(name, "not a number")),
    }
}
pub(crate) fn to_binary(
    value: Option<AttributeValue>,
    name: &'static str,
) -> Result<Option<Vec<u8>>, BadAttribute> {
    match value {
        None => Ok(None),
        Some(AttributeValue::B(blob)) => Ok(Some(blob.into_inner())),
        Some(_) => Err(BadAttribute::new(name, "not binary")),
    }
}
pub(crate) fn take_text(
    item: &mut Attributes,
    name: &'static str,
) -> Result<Option<String>, BadAttribute> {
    to_text(item.remove(name), name)
}
pub(crate) fn take_number<N: std::str::FromStr>(
    item: &mut Attributes,
    name: &'static str,
) -> Result<Option<N>, BadAttribute> {
    to_number(item.remove(name), name)
}
pub(crate) fn take_binary(
    item: &mut Attributes,
    name: &'static str,
) -> Result<Option<Vec<u8>>, BadAttribute> {
    to_binary(item.remove(name), name)
}
/// What must be there.
pub(crate) fn required<T>(found: Option<T>, name: &'static str) -> Result<T, BadAttribute> {
    found.ok_or_else(|| BadAttribute::new(name, "missing"))
}

/// Bytes of an item as DynamoDB counts them: names and values, collections with 3 bytes and 1 for each element.
/// Numbers are counted as long as they can be.
/// (<https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html>)
pub(crate) fn item_bytes(item: &Attributes) -> usize {
    item.iter()
        .map(|(name, v)| name.len() + value_bytes(v))
        .sum()
}

fn value_bytes(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) => text.len(),
        AttributeValue::N(text) => number_bytes(text),
        AttributeValue::B(blob) => blob.as_ref().len(),
        AttributeValue::M(map) => {
            3 + map
                .iter()
                .map(|(k, v)| 1 + k.len() + value_bytes(v))
                .sum::<usize>()
        }
        AttributeValue::L(list) => 3 + list.iter().map(|v| 1 + value_bytes(v)).sum::<usize>(),
        AttributeValue::Ss(all) | AttributeValue::Ns(all) => all.iter().map(String::len).sum(),
        AttributeValue::Bs(all) => all.iter().map(|b| b.as_ref().len()).sum(),
        _ => 1,
    }
}

/// One byte for each two digits, one more, and one for a sign.
fn number_bytes(text: &str) -> usize {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    digits.div_ceil(2) + 1 + usize::from(text.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_measured_by_dynamodbs_rule() {
        let item = |name: &str, value| Attributes::from([(name.to_owned(), value)]);
        assert_eq!(item_bytes(&item("pk", text("äb"))), 2 + 3);
        assert_eq!(item_bytes(&item("sk", number(1))), 2 + 2);
        assert_eq!(item_bytes(&item("t", number(-1234))), 1 + 4);
        assert_eq!(item_bytes(&item("e", binary(vec![0; 10]))), 1 + 10);
        let map = Attributes::from([("k".to_owned(), text("vv"))]);
        assert_eq!(
            item_bytes(&item("m", AttributeValue::M(map))),
            1 + 3 + 1 + 1 + 2
        );
    }

    #[test]
    fn an_attribute_of_another_type_is_named() {
        let mut item = Attributes::from([("n".to_owned(), text("1"))]);
        let error = take_number::<u64>(&mut item, "n").unwrap_err().to_string();
        assert_eq!(error, "attribute n: not a number");
        let mut item = Attributes::from([("n".to_owned(), number(-1))]);
        assert!(take_number::<u64>(&mut item, "n").is_err());
    }
}
