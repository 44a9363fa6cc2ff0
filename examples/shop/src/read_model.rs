//! The read model: one row per order, from which the report is summed.
//!
//! [`OrderRow::apply`] is all that the shop itself decides: the row after one more event. The
//! [`SalesModel`] keeps the rows and counts each event once. In production it is
//! `foldstream_dynamodb::ReadModel<OrderRow>`. In memory it is [`InMemoryRows`], which keeps the
//! same promises.
use crate::{
    cart::{CartEvent, CartItem},
    memory_rows::InMemoryRows,
    money::{Money, MoneyError},
    projector::SalesProjector,
};
use foldstream::{BoxError, StreamId, ports::BoxStream, runner::ModelId};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The contribution of one order to the totals.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderRow {
    /// The number of events that are in the row.
    pub events: u64,
    /// The units by stock code.
    pub units: BTreeMap<String, i64>,
    /// The revenue by country. An order has one country unless an imported invoice names more.
    pub revenue: BTreeMap<String, Money>,
}

/// The error of a sum that cannot be held exactly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SumError {
    /// The units of a product are out of range.
    #[error("the units of {stock_code} are out of range")]
    Units {
        /// The code of the product.
        stock_code: String,
    },
    /// The revenue of a country is out of range.
    #[error("the revenue of {country:?} is out of range")]
    Revenue {
        /// The name of the country.
        country: String,
        /// The error of the addition.
        #[source]
        source: MoneyError,
    },
}

impl OrderRow {
    /// The name of the rows, and of the projector that keeps them. Stored: never change it.
    pub const NAME: &'static str = "sales";

    /// Adds one event to the row of its order. This is a pure function of the row and the event.
    ///
    /// # Errors
    /// [`SumError`] if a sum cannot be held; the row is unchanged.
    pub fn apply(row: &mut Option<Self>, event: &CartEvent) -> Result<(), SumError> {
        let mut after = row.clone().unwrap_or_default();
        match event {
            CartEvent::CartItemAdded(item) => after.add(item, item.quantity)?,
            // A cart holds only positive quantities, so changing the sign cannot overflow.
            CartEvent::CartItemRemoved(item) => after.add(item, item.quantity.saturating_neg())?,
            CartEvent::CartCheckedOut { .. } => {}
        }
        after.events += 1;
        *row = Some(after);
        Ok(())
    }

    fn add(&mut self, item: &CartItem, quantity: i64) -> Result<(), SumError> {
        let units = self
            .units
            .get(&item.stock_code)
            .copied()
            .unwrap_or_default();
        let units = units.checked_add(quantity).ok_or_else(|| SumError::Units {
            stock_code: item.stock_code.clone(),
        })?;
        let revenue = self.revenue.get(&item.country).copied().unwrap_or_default();
        let amount = item.unit_price.times(quantity);
        let revenue = amount
            .and_then(|amount| revenue.plus(amount))
            .map_err(|source| SumError::Revenue {
                country: item.country.clone(),
                source,
            })?;
        self.units.insert(item.stock_code.clone(), units);
        self.revenue.insert(item.country.clone(), revenue);
        Ok(())
    }
}

/// An error of the read model.
#[derive(Debug, thiserror::Error)]
pub enum ReadModelError {
    /// The rows of this model have never been stored, or were deleted.
    #[error("there is no read model {0}: `shop run` fills it")]
    Missing(ModelId),
    /// The rows cannot be read or prepared.
    #[error("the read model cannot be used")]
    Failed(#[source] BoxError),
}

/// A row and the order that it belongs to.
pub type OrderEntry = (StreamId, OrderRow);

/// The rows of all generations of the read model, and the way to them.
#[derive(Clone, Debug)]
pub enum SalesModel {
    /// The rows are in memory.
    InMemory(InMemoryRows),
    /// The rows are in a table of DynamoDB.
    #[cfg(feature = "production")]
    DynamoDb(crate::production::DynamoDbRows),
}

impl SalesModel {
    /// Returns the first model that a processor of this name keeps, before any replay. A processor
    /// under another name builds a model of its own, beside the first.
    pub fn id(processor: Option<&str>) -> ModelId {
        ModelId::new(processor.unwrap_or(OrderRow::NAME), 1)
    }

    /// Creates the projector that keeps the rows. Each has a buffer of its own, as each process
    /// has.
    pub fn projector(&self) -> SalesProjector {
        SalesProjector::new(self)
    }

    /// Returns true if the storage of the rows exists.
    ///
    /// # Errors
    /// [`ReadModelError::Failed`] if the backend does not say.
    pub async fn exists(&self, model: &ModelId) -> Result<bool, ReadModelError> {
        match self.rows(model).next().await {
            Some(Err(ReadModelError::Missing(_))) => Ok(false),
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(true),
        }
    }

    /// Returns all rows of a model, each once, in no particular order.
    pub fn rows(&self, model: &ModelId) -> BoxStream<'_, Result<OrderEntry, ReadModelError>> {
        match self {
            Self::InMemory(rows) => stream::iter(rows.all(model).into_iter().map(Ok)).boxed(),
            #[cfg(feature = "production")]
            Self::DynamoDb(rows) => rows.all(model),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream::Timestamp;

    fn item(quantity: i64, price: &str, country: &str) -> CartItem {
        CartItem {
            stock_code: "22".into(),
            description: String::new(),
            quantity,
            unit_price: price.parse().unwrap(),
            invoiced_at: Timestamp::from_micros(0),
            customer: None,
            country: country.into(),
        }
    }

    #[test]
    fn a_row_is_the_exact_sum_of_its_events() {
        use CartEvent::{CartCheckedOut, CartItemAdded, CartItemRemoved};
        let mut row = None;
        let events = [
            CartItemAdded(item(3, "0.10", "France")),
            CartItemAdded(item(-1, "0.2", "France")),
            CartItemAdded(item(5, "1", "Norway")),
            CartItemRemoved(item(5, "1", "Norway")),
            CartCheckedOut { total: Money::ZERO },
        ];
        for event in &events {
            OrderRow::apply(&mut row, event).unwrap();
        }
        let row = row.unwrap();
        assert_eq!((row.events, row.units["22"]), (5, 2));
        let revenue: Vec<_> = row
            .revenue
            .iter()
            .map(|(c, m)| format!("{c} {m}"))
            .collect();
        assert_eq!(revenue, ["France 0.10", "Norway 0"]);
    }

    #[test]
    fn an_event_that_does_not_fit_leaves_the_row_as_it_was() {
        let mut row = None;
        let added = |quantity| CartEvent::CartItemAdded(item(quantity, "1", "France"));
        OrderRow::apply(&mut row, &added(i64::MAX)).unwrap();
        let before = row.clone();
        let refused = OrderRow::apply(&mut row, &added(1));
        let stock_code = "22".into();
        assert_eq!(
            (refused, row),
            (Err(SumError::Units { stock_code }), before)
        );
    }

    #[test]
    fn a_row_comes_back_as_it_was_stored() {
        let row = OrderRow {
            events: 3,
            units: [("85123A".into(), -6), ("85123a".into(), i64::MAX)].into(),
            revenue: [
                (String::new(), "-0.10".parse().unwrap()),
                ("EIRE".into(), "2".parse().unwrap()),
            ]
            .into(),
        };
        let stored = serde_json::to_string(&row).unwrap();
        let golden = r#"{"events":3,"units":{"85123A":-6,"85123a":9223372036854775807},"revenue":{"":"-0.10","EIRE":"2"}}"#;
        assert_eq!(stored, golden);
        assert_eq!(serde_json::from_str::<OrderRow>(golden).unwrap(), row);
    }
}
