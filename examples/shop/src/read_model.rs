//! The read model: one row per order, from which the report is summed.
//!
//! A row holds the version of its last event, and is written only if that version is higher than
//! the stored one. The row itself therefore says how far the projector is. A duplicate event counts
//! once, and a late write of an older row changes nothing.
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

/// The contribution of one order to the totals.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OrderRow {
    /// The last event in the row, which is the projector's position in this order's stream.
    pub version: Version,
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
    /// Adds one event to the row. This is a pure function of the row and the event.
    ///
    /// # Errors
    /// [`SumError`] if a sum cannot be held; the row is unchanged.
    pub fn take(&mut self, version: Version, event: &CartEvent) -> Result<(), SumError> {
        match event {
            CartEvent::CartItemAdded(item) => self.add(item, item.quantity)?,
            // A cart holds only positive quantities, so changing the sign cannot overflow.
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

/// An error of the read model.
#[derive(Debug, thiserror::Error)]
pub enum ReadModelError {
    /// The read model does not answer now; a retry may succeed.
    #[error("the read model is unavailable")]
    Unavailable(#[source] BoxError),
    /// The read model refuses until a table, credentials or permissions are changed.
    #[error("the read model refuses: {todo}")]
    Refused {
        /// The action that is needed.
        todo: String,
        /// The error of the backend.
        #[source]
        source: BoxError,
    },
    /// A stored row is damaged or has an unknown form.
    #[error("the row of {order} cannot be read: {reason}")]
    Corrupt {
        /// The order of the row.
        order: String,
        /// The problem with the row.
        reason: String,
    },
}

/// A row and the order that it belongs to.
pub type OrderEntry = (StreamId, OrderRow);

/// The storage of the rows: a port of the shop, with an adapter in memory and one on DynamoDB.
#[async_trait]
pub trait ReadModel: Debug + Send + Sync {
    /// Returns true if the storage for rows exists.
    ///
    /// # Errors
    /// [`ReadModelError`] if the backend does not say.
    async fn exists(&self) -> Result<bool, ReadModelError>;

    /// Creates the storage for rows unless it exists.
    ///
    /// # Errors
    /// [`ReadModelError`] if it cannot be created.
    async fn create(&self) -> Result<(), ReadModelError>;

    /// Returns the row of an order as of the last acknowledged write.
    ///
    /// # Errors
    /// [`ReadModelError`] if the row cannot be read.
    async fn row(&self, order: &StreamId) -> Result<Option<OrderRow>, ReadModelError>;

    /// Stores a row unless the stored one has the same or a higher version, which is not an error.
    ///
    /// # Errors
    /// [`ReadModelError`] if it is unknown whether the row is stored.
    async fn put_if_newer(&self, order: &StreamId, row: &OrderRow) -> Result<(), ReadModelError>;

    /// Returns all rows, each once, in no particular order.
    fn rows(&self) -> BoxStream<'_, Result<OrderEntry, ReadModelError>>;

    /// Removes all rows from the storage.
    ///
    /// # Errors
    /// [`ReadModelError`] if not all rows could be removed; some may be gone.
    async fn clear(&self) -> Result<(), ReadModelError>;
}

/// A read model in memory. Clones share the rows, as connections to one database do.
#[derive(Clone, Debug, Default)]
pub struct InMemoryReadModel {
    rows: Arc<Mutex<BTreeMap<StreamId, OrderRow>>>,
}

impl InMemoryReadModel {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamId, OrderRow>> {
        // Each change of the map is a single call, so the rows are whole after a panic.
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
