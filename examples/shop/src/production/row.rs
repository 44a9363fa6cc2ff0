//! The stored form of a row of the read model.
//!
//! ```text
//! order    S  the stream, as in cart#536365 (partition key)
//! version  N  the last event that is in the row
//! units    M  stock code -> N
//! revenue  L  of M { country S, amount S }
//! ```
//!
//! `revenue` is a list because a country may be empty, and the key of a map may not.
use crate::read_model::{OrderEntry, OrderRow, ReadModelError};
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{StreamId, Version};
use std::{collections::HashMap, str::FromStr};

/// The attribute of the partition key.
pub(super) const ORDER: &str = "order";
/// The attribute that a write's condition compares.
pub(super) const VERSION: &str = "version";

type Item = HashMap<String, AttributeValue>;

pub(super) fn to_item(order: &StreamId, row: &OrderRow) -> Item {
    let text = |text: &str| AttributeValue::S(text.into());
    let units = row
        .units
        .iter()
        .map(|(code, n)| (code.clone(), AttributeValue::N(n.to_string())));
    let revenue = row.revenue.iter().map(|(country, amount)| {
        let entry = [
            ("country", text(country)),
            ("amount", text(&amount.to_string())),
        ];
        AttributeValue::M(entry.map(|(name, value)| (name.into(), value)).into())
    });
    let item = [
        (ORDER, text(order.as_str())),
        (VERSION, AttributeValue::N(row.version.to_string())),
        ("units", AttributeValue::M(units.collect())),
        ("revenue", AttributeValue::L(revenue.collect())),
    ];
    item.map(|(name, value)| (name.into(), value)).into()
}

pub(super) fn from_item(item: &Item) -> Result<OrderEntry, ReadModelError> {
    let order = item.get(ORDER).and_then(|value| value.as_s().ok());
    read(item).ok_or_else(|| ReadModelError::Corrupt {
        order: order.cloned().unwrap_or_default(),
        reason: "an attribute is missing or of another type".into(),
    })
}

fn read(item: &Item) -> Option<OrderEntry> {
    let order = StreamId::parse(text(item, ORDER)?).ok()?;
    let units = item.get("units")?.as_m().ok()?.iter();
    let units = units.map(|(code, n)| Some((code.clone(), number(n)?)));
    let revenue = item.get("revenue")?.as_l().ok()?.iter().map(|entry| {
        let entry = entry.as_m().ok()?;
        Some((
            text(entry, "country")?.into(),
            text(entry, "amount")?.parse().ok()?,
        ))
    });
    let row = OrderRow {
        version: Version::new(number(item.get(VERSION)?)?),
        units: units.collect::<Option<_>>()?,
        revenue: revenue.collect::<Option<_>>()?,
    };
    Some((order, row))
}

fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

fn number<N: FromStr>(value: &AttributeValue) -> Option<N> {
    value.as_n().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_was_stored() {
        let order = StreamId::new("cart", "C536379").unwrap();
        let row = OrderRow {
            version: Version::new(3),
            units: [("85123A".into(), -6), ("85123a".into(), i64::MAX)].into(),
            revenue: [
                (String::new(), "-0.10".parse().unwrap()),
                ("EIRE".into(), "2".parse().unwrap()),
            ]
            .into(),
        };
        assert_eq!(from_item(&to_item(&order, &row)).unwrap(), (order, row));
    }

    #[test]
    fn a_row_that_another_program_wrote_is_corrupt() {
        let order = StreamId::new("cart", "1").unwrap();
        let row = OrderRow {
            revenue: [("EIRE".into(), "2".parse().unwrap())].into(),
            ..OrderRow::default()
        };
        for attribute in [VERSION, "units", "revenue"] {
            let mut item = to_item(&order, &row);
            item.insert(attribute.into(), AttributeValue::S("?".into()));
            let error = from_item(&item).unwrap_err();
            assert!(matches!(error, ReadModelError::Corrupt { order, .. } if order == "cart#1"));
        }
    }
}
