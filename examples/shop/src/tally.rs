//! The direct aggregation that the projections are compared with.
//!
//! It sees the events where they were decided, before any store, bus or projector, and shares no
//! code with the projector. If both agree, no event was lost, counted twice or reordered on the
//! way.
use crate::{
    cart::{CartEvent, CartId, CartItem},
    money::{Money, MoneyError},
    report::Report,
};
use std::collections::{BTreeMap, BTreeSet};

/// The units, revenue and counts of the events that were decided.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    orders: BTreeSet<CartId>,
    units: BTreeMap<String, i64>,
    revenue: BTreeMap<String, Money>,
    events: u64,
}

impl Tally {
    /// Counts the events of one command.
    ///
    /// # Errors
    /// [`MoneyError`] if a sum is not exact.
    pub fn add(&mut self, order: &CartId, events: &[CartEvent]) -> Result<(), MoneyError> {
        for event in events {
            self.orders.insert(order.clone());
            self.events += 1;
            let (item, units) = match event {
                CartEvent::CartItemAdded(item) => (item, item.quantity),
                CartEvent::CartItemRemoved(item) => (item, item.quantity.saturating_neg()),
                CartEvent::CartCheckedOut { .. } => continue,
            };
            self.sale(item, units)?;
        }
        Ok(())
    }

    fn sale(&mut self, item: &CartItem, units: i64) -> Result<(), MoneyError> {
        let sold = self.units.entry(item.stock_code.clone()).or_default();
        *sold = sold.checked_add(units).ok_or(MoneyError::TooManyDigits)?;
        let earned = self.revenue.entry(item.country.clone()).or_default();
        *earned = earned.plus(item.unit_price.times(units)?)?;
        Ok(())
    }

    /// Returns true if an event of this order was counted.
    pub fn has(&self, order: &str) -> bool {
        self.orders.contains(&CartId::from(order))
    }

    /// Returns the report that the projections must yield for these orders.
    pub fn report(&self) -> Report {
        let (units, revenue) = (self.units.clone(), self.revenue.clone());
        Report::new(units, revenue, self.orders.len() as u64, self.events)
    }
}

/// Describes the first few differences between two reports; empty if they are equal.
pub fn differences(expected: &Report, found: &Report) -> Vec<String> {
    const SHOWN: usize = 5;
    let by_code = |report: &Report| -> BTreeMap<String, String> {
        let units = report.hot_products.iter();
        units
            .map(|p| (p.stock_code.clone(), p.units.to_string()))
            .collect()
    };
    let by_country = |report: &Report| -> BTreeMap<String, String> {
        let revenue = report.revenue_by_country.iter();
        revenue
            .map(|(country, sum)| (country.clone(), sum.to_string()))
            .collect()
    };
    let mut all = Vec::new();
    for (what, expected, found) in [
        ("orders", expected.orders, found.orders),
        ("events", expected.events, found.events),
    ] {
        if expected != found {
            all.push(format!("{what}: {expected} expected, {found} found"));
        }
    }
    let maps = [
        ("units of", by_code(expected), by_code(found)),
        ("revenue of", by_country(expected), by_country(found)),
    ];
    for (what, expected, found) in maps {
        let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
        let none = String::from("nothing");
        for key in keys {
            let (a, b) = (
                expected.get(key).unwrap_or(&none),
                found.get(key).unwrap_or(&none),
            );
            if a != b {
                all.push(format!("{what} {key}: {a} expected, {b} found"));
            }
        }
    }
    let hidden = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    if hidden > 0 {
        all.push(format!("and {hidden} more"));
    } else if all.is_empty() && expected != found {
        all.push("the order of the products".into());
    }
    all
}
