//! The report: the products that sell most, and the revenue by country.
use crate::{
    money::Money,
    read_model::{OrderRow, ReadModelError, SalesModel, SumError},
};
use foldstream::{StreamId, runner::ModelId};
use futures::TryStreamExt;
use serde::Serialize;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

/// The units sold of one product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HotProduct {
    /// The code of the product.
    pub stock_code: String,
    /// The units sold, minus those taken back.
    pub units: i64,
}

impl HotProduct {
    /// Creates the list of products from units by code, highest first; products with equal units
    /// by code, in byte order.
    pub fn ranked(units: impl IntoIterator<Item = (String, i64)>) -> Vec<Self> {
        let products = units.into_iter();
        let mut products: Vec<_> = products
            .map(|(stock_code, units)| Self { stock_code, units })
            .collect();
        products.sort_by(|a, b| {
            (Reverse(a.units), &a.stock_code).cmp(&(Reverse(b.units), &b.stock_code))
        });
        products
    }
}

/// The totals over all orders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All products by units, highest first; products with equal units by code, in byte order.
    pub hot_products: Vec<HotProduct>,
    /// The exact revenue by country, in byte order of the countries.
    ///
    /// Amounts are in plain notation, with as many decimals as the most precise price.
    pub revenue_by_country: BTreeMap<String, Money>,
    /// The number of orders with at least one event.
    pub orders: u64,
    /// The number of events of all orders. An imported file has one event per line.
    pub events: u64,
}

/// The error of a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The rows cannot be read.
    #[error("the report cannot be summed")]
    ReadModel(#[from] ReadModelError),
    /// A total cannot be held exactly.
    #[error("the report has no exact total")]
    Sum(#[from] SumError),
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
}

impl Report {
    /// Sums the rows of the orders that `wanted` accepts. It reads only the read model.
    ///
    /// # Errors
    /// [`ReportError`] if the rows cannot be read or summed.
    pub async fn read(
        rows: &SalesModel,
        model: &ModelId,
        wanted: impl Fn(&StreamId) -> bool,
    ) -> Result<Self, ReportError> {
        let mut totals = Totals::default();
        let mut rows = rows.rows(model);
        while let Some((order, row)) = rows.try_next().await? {
            if wanted(&order) {
                totals.add(row)?;
            }
        }
        Ok(totals.into_report())
    }

    /// Creates a report from units by code and the other totals, and sorts the products.
    pub fn new(
        units: impl IntoIterator<Item = (String, i64)>,
        revenue_by_country: BTreeMap<String, Money>,
        orders: u64,
        events: u64,
    ) -> Self {
        Self {
            hot_products: HotProduct::ranked(units),
            revenue_by_country,
            orders,
            events,
        }
    }

    /// Writes the report as JSON.
    ///
    /// # Errors
    /// [`ReportError::Write`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let json = serde_json::to_string_pretty(self).map_err(io::Error::from);
        let written = json.and_then(|json| fs::write(path, json + "\n"));
        written.map_err(|source| ReportError::Write {
            path: path.into(),
            source,
        })
    }
}

/// The running sums over the rows.
#[derive(Debug, Default)]
struct Totals {
    units: HashMap<String, i64>,
    revenue: BTreeMap<String, Money>,
    orders: u64,
    events: u64,
}

impl Totals {
    fn add(&mut self, row: OrderRow) -> Result<(), SumError> {
        for (stock_code, units) in row.units {
            let sum = self.units.get(&stock_code).copied().unwrap_or_default();
            let Some(sum) = sum.checked_add(units) else {
                return Err(SumError::Units { stock_code });
            };
            self.units.insert(stock_code, sum);
        }
        for (country, amount) in row.revenue {
            let sum = self.revenue.get(&country).copied().unwrap_or_default();
            let sum = sum.plus(amount);
            let sum = sum.map_err(|source| SumError::Revenue {
                country: country.clone(),
                source,
            })?;
            self.revenue.insert(country, sum);
        }
        self.orders += 1;
        self.events += row.events;
        Ok(())
    }

    fn into_report(self) -> Report {
        Report::new(self.units, self.revenue, self.orders, self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(events: u64, units: &[(&str, i64)], revenue: &[(&str, &str)]) -> OrderRow {
        OrderRow {
            events,
            units: units.iter().map(|(code, n)| ((*code).into(), *n)).collect(),
            revenue: revenue
                .iter()
                .map(|(c, m)| ((*c).into(), m.parse().unwrap()))
                .collect(),
        }
    }

    #[test]
    fn rows_are_summed_and_products_ordered_by_units_then_bytes() {
        let mut totals = Totals::default();
        let units = [("85123a", 2), ("85123A", 2), ("22", 5)];
        totals.add(row(3, &units, &[("France", "1.50")])).unwrap();
        totals
            .add(row(1, &[("22", -6)], &[("France", "-0.1")]))
            .unwrap();
        assert_eq!(
            serde_json::to_string(&totals.into_report()).unwrap(),
            r#"{"hot_products":[{"stock_code":"85123A","units":2},{"stock_code":"85123a","units":2},{"stock_code":"22","units":-1}],"revenue_by_country":{"France":"1.40"},"orders":2,"events":4}"#
        );
    }

    #[test]
    fn a_total_that_is_not_exact_is_an_error() {
        let mut totals = Totals::default();
        totals.add(row(1, &[("22", i64::MAX)], &[])).unwrap();
        let refused = totals.add(row(1, &[("22", 1)], &[]));
        assert_eq!(
            refused,
            Err(SumError::Units {
                stock_code: "22".into()
            })
        );
    }
}
