//! Attributes of items: building, taking and measuring them.
use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use std::collections::HashMap;

/// The attributes of one stored item, by name.
pub(crate) type Attributes = HashMap<String, AttributeValue>;

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

/// The error of an item that cannot be read: the attribute, and the problem with its value.
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
/// Returns the value of an attribute that every item has, or an error that names it.
pub(crate) fn required<T>(found: Option<T>, name: &'static str) -> Result<T, BadAttribute> {
    found.ok_or_else(|| BadAttribute::new(name, "missing"))
}

/// Returns the size of an item in bytes, as DynamoDB counts them.
///
/// Names and values count, and so do 3 bytes per collection and 1 byte per element of it. A number
/// counts with the most bytes that it may take.
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

/// Returns the bytes of a number: one per two digits, one more, and one for a minus sign.
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
