//! The read model: one row per order, from which the report is summed.
//!
//! A row holds the version of the last event in it, and is written only if that is newer. So the row itself says how far
//! the projector is, an event that is delivered twice counts once, and a late write of an older row changes nothing.
use crate::{
    cart::{CartEvent, CartItem},
    money::{Money, MoneyError},
};
use async_trait::async_trait;
use foldstream::{BoxError, StreamId, Version, ports::BoxStream};
use futures::{StreamExt, stream};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What one order adds to the totals.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OrderRow {
    /// The last event that is in the row: the projector's position in this order's stream.
    pub version: Version,
    /// Units by stock code.
    pub units: BTreeMap<String, i64>,
    /// Revenue by country: one country, save where an imported invoice says otherwise.
    pub revenue: BTreeMap<String, Money>,
}

/// A sum that cannot be held exactly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SumError {
    /// The units of a product.
    #[error("the units of {stock_code} are out of range")]
    Units {
        /// The product.
        stock_code: String,
    },
    /// The revenue of a country.
    #[error("the revenue of {country:?} is out of range")]
    Revenue {
        /// The country.
        country: String,
        /// Why.
        #[source]
        source: MoneyError,
    },
}

impl OrderRow {
    /// The row after one more event. A pure function: whoever computes the row of a version gets the same.
    ///
    /// # Errors
    /// [`SumError`]; the row is as it was.
    pub fn take(&mut self, version: Version, event: &CartEvent) -> Result<(), SumError> {
        match event {
            CartEvent::CartItemAdded(item) => self.add(item, item.quantity)?,
            // A cart holds only what was added above zero, so the sign can change.
            CartEvent::CartItemRemoved(item) => self.add(item, item.quantity.saturating_neg())?,
            CartEvent::CartCheckedOut { .. } => {}
        }
        self.version = version;
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

/// Why the read model could not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadModelError {
    /// May work next time.
    #[error("the read model is unavailable")]
    Unavailable(#[source] BoxError),
    /// Something must be changed first: table, credentials, permission.
    #[error("the read model refuses: {todo}")]
    Refused {
        /// What to do about it.
        todo: String,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// A stored row is not as it was written.
    #[error("the row of {order} cannot be read: {reason}")]
    Corrupt {
        /// Whose row.
        order: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A row and the order that it belongs to.
pub type OrderEntry = (StreamId, OrderRow);

/// Where the rows are kept: a port of the shop's own, with an adapter in memory and one on DynamoDB.
#[async_trait]
pub trait ReadModel: Debug + Send + Sync {
    /// Whether there is a place for rows.
    ///
    /// # Errors
    /// [`ReadModelError`].
    async fn exists(&self) -> Result<bool, ReadModelError>;

    /// Makes a place for rows, unless there is one.
    ///
    /// # Errors
    /// [`ReadModelError`].
    async fn create(&self) -> Result<(), ReadModelError>;

    /// The row of an order, as of the last acknowledged write.
    ///
    /// # Errors
    /// [`ReadModelError`].
    async fn row(&self, order: &StreamId) -> Result<Option<OrderRow>, ReadModelError>;

    /// Stores a row unless the stored one is of the same version or newer, which is no error.
    ///
    /// # Errors
    /// [`ReadModelError`].
    async fn put_if_newer(&self, order: &StreamId, row: &OrderRow) -> Result<(), ReadModelError>;

    /// All rows, each once, in no order.
    fn rows(&self) -> BoxStream<'_, Result<OrderEntry, ReadModelError>>;

    /// Removes all rows.
    ///
    /// # Errors
    /// [`ReadModelError`]; some rows may be gone.
    async fn clear(&self) -> Result<(), ReadModelError>;
}

/// Rows in memory. Clones share them: they stand for a database that outlives the projector.
#[derive(Clone, Debug, Default)]
pub struct InMemoryReadModel {
    rows: Arc<Mutex<BTreeMap<StreamId, OrderRow>>>,
}

impl InMemoryReadModel {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamId, OrderRow>> {
        // Nothing below leaves a row half written, so rows that a panic left behind are whole.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ReadModel for InMemoryReadModel {
    async fn exists(&self) -> Result<bool, ReadModelError> {
        Ok(true)
    }

    async fn create(&self) -> Result<(), ReadModelError> {
        Ok(())
    }

    async fn row(&self, order: &StreamId) -> Result<Option<OrderRow>, ReadModelError> {
        Ok(self.lock().get(order).cloned())
    }

    async fn put_if_newer(&self, order: &StreamId, row: &OrderRow) -> Result<(), ReadModelError> {
        let mut rows = self.lock();
        let stored = rows.entry(order.clone()).or_default();
        if stored.version < row.version {
            stored.clone_from(row);
        }
        Ok(())
    }

    fn rows(&self) -> BoxStream<'_, Result<OrderEntry, ReadModelError>> {
        let rows: Vec<_> = self
            .lock()
            .iter()
            .map(|(id, row)| Ok((id.clone(), row.clone())))
            .collect();
        stream::iter(rows).boxed()
    }

    async fn clear(&self) -> Result<(), ReadModelError> {
        self.lock().clear();
        Ok(())
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
        let mut row = OrderRow::default();
        let events = [
            CartItemAdded(item(3, "0.10", "France")),
            CartItemAdded(item(-1, "0.2", "France")),
            CartItemAdded(item(5, "1", "Norway")),
            CartItemRemoved(item(5, "1", "Norway")),
            CartCheckedOut { total: Money::ZERO },
        ];
        for (version, event) in (1..).zip(&events) {
            row.take(Version::new(version), event).unwrap();
        }
        assert_eq!((row.version.get(), row.units["22"]), (5, 2));
        let revenue: Vec<_> = row
            .revenue
            .iter()
            .map(|(c, m)| format!("{c} {m}"))
            .collect();
        assert_eq!(revenue, ["France 0.10", "Norway 0"]);
    }

    #[test]
    fn an_event_that_does_not_fit_leaves_the_row_as_it_was() {
        let mut row = OrderRow::default();
        row.take(
            Version::new(1),
            &CartEvent::CartItemAdded(item(i64::MAX, "1", "France")),
        )
        .unwrap();
        let before = row.clone();
        let refused = row.take(
            Version::new(2),
            &CartEvent::CartItemAdded(item(1, "1", "France")),
        );
        assert_eq!(
            (refused, row),
            (
                Err(SumError::Units {
                    stock_code: "22".into()
                }),
                before
            )
        );
    }
}
