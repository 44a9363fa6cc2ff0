//! The hot products: how many units of each product customers have put into their carts.
//!
//! A projector need not read all that an aggregate writes: this one knows one event of a cart, and
//! skips the others.
use crate::{cart::CartItem, read_model::ReadModelError, report::HotProduct};
use foldstream::{
    DomainEvent, StreamId, Version,
    ports::BoxStream,
    runner::{
        EventContext, HandlerError, HandlerResult, ModelId, Position, ProcessorPolicy, Projector,
        ResultExt, UnknownEvents,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The events of a cart that count for hot products.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
pub enum ItemEvent {
    /// Some units were put into the cart.
    CartItemAdded(CartItem),
}

/// The units of each product that were put into one cart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddedRow {
    /// The units by stock code.
    pub units: BTreeMap<String, i64>,
}

/// The error of a number of units that cannot be held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the units of {stock_code} are out of range")]
pub struct TooManyUnits {
    stock_code: String,
}

impl AddedRow {
    /// The name of the rows, and of the projector that keeps them. Stored: never change it.
    pub const NAME: &'static str = "hot-products";

    /// Adds one event to the row of its cart. This is a pure function of the row and the event.
    ///
    /// # Errors
    /// [`TooManyUnits`] if the sum cannot be held; the row is unchanged.
    pub fn apply(row: &mut Option<Self>, event: &ItemEvent) -> Result<(), TooManyUnits> {
        let ItemEvent::CartItemAdded(item) = event;
        let known = row.as_ref().and_then(|row| row.units.get(&item.stock_code));
        let sum = add(known.copied(), &item.stock_code, item.quantity)?;
        let units = &mut row.get_or_insert_default().units;
        units.insert(item.stock_code.clone(), sum);
        Ok(())
    }
}

fn add(known: Option<i64>, stock_code: &str, units: i64) -> Result<i64, TooManyUnits> {
    let sum = known.unwrap_or_default().checked_add(units);
    sum.ok_or_else(|| TooManyUnits {
        stock_code: stock_code.into(),
    })
}

/// The rows of one model in memory, with the version of the last event in each.
type Rows = HashMap<StreamId, (Version, Option<AddedRow>)>;

/// The rows of all generations of the hot products, and the way to them.
#[derive(Clone, Debug)]
pub enum HotProducts {
    /// The rows are in memory.
    InMemory(InMemoryProducts),
    /// The rows are in a table of DynamoDB.
    #[cfg(feature = "production")]
    DynamoDb(foldstream_dynamodb::ReadModel<AddedRow>),
}

/// Rows in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct InMemoryProducts(Arc<Mutex<BTreeMap<ModelId, Rows>>>);

impl InMemoryProducts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelId, Rows>> {
        // A row changes as a whole or not at all, so the rows are valid after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn project(&self, event: &ItemEvent, ctx: &EventContext) -> HandlerResult {
        let mut models = self.lock();
        let rows = models.entry(ctx.model().clone()).or_default();
        let (version, row) = rows.entry(ctx.stream().clone()).or_default();
        if *version < ctx.version() {
            AddedRow::apply(row, event).permanent()?;
            *version = ctx.version();
        }
        Ok(())
    }
    fn position(&self, model: &ModelId, cart: &StreamId) -> Position {
        let models = self.lock();
        let row = models.get(model).and_then(|rows| rows.get(cart));
        Position::stored(row.map_or(Version::NONE, |(version, _)| *version))
    }
    fn rows(&self, model: &ModelId) -> Vec<AddedRow> {
        let models = self.lock();
        let rows = models.get(model).into_iter().flatten();
        rows.filter_map(|(_, (_, row))| row.clone()).collect()
    }
}

impl HotProducts {
    /// Returns the policy of the projector: events that it does not know are skipped.
    pub fn policy() -> ProcessorPolicy {
        ProcessorPolicy::projector().with_unknown_events(UnknownEvents::Skip)
    }

    /// Returns the products of a model with the most units, at most `limit` of them.
    ///
    /// # Errors
    /// - [`ReadModelError::Missing`] if the model was never filled.
    /// - [`ReadModelError::Failed`] if the rows cannot be read or summed.
    pub async fn top(
        &self,
        model: &ModelId,
        limit: usize,
    ) -> Result<Vec<HotProduct>, ReadModelError> {
        let (mut units, mut rows) = (BTreeMap::<String, i64>::new(), self.rows(model));
        while let Some(row) = rows.try_next().await? {
            for (code, more) in row.units {
                let sum = add(units.get(&code).copied(), &code, more);
                let sum = sum.map_err(|error| ReadModelError::Failed(error.into()))?;
                units.insert(code, sum);
            }
        }
        let mut products = HotProduct::ranked(units);
        products.truncate(limit);
        Ok(products)
    }

    fn rows(&self, model: &ModelId) -> BoxStream<'_, Result<AddedRow, ReadModelError>> {
        match self {
            Self::InMemory(rows) => stream::iter(rows.rows(model).into_iter().map(Ok)).boxed(),
            #[cfg(feature = "production")]
            Self::DynamoDb(rows) => {
                use foldstream_dynamodb::ReadModelError as Failure;
                let row = |found| match found {
                    Ok((_, row)) => Ok(row),
                    Err(Failure::NoTable { model, .. }) => Err(ReadModelError::Missing(model)),
                    Err(error) => Err(ReadModelError::Failed(error.into())),
                };
                rows.all(model).map(row).boxed()
            }
        }
    }
}

impl Projector for HotProducts {
    const NAME: &'static str = AddedRow::NAME;
    type Events = ItemEvent;

    async fn project(&self, event: &ItemEvent, ctx: &EventContext) -> HandlerResult {
        match self {
            Self::InMemory(rows) => rows.project(event, ctx),
            #[cfg(feature = "production")]
            Self::DynamoDb(rows) => rows.project(event, ctx).await,
        }
    }

    async fn prepare(&self, model: &ModelId) -> HandlerResult {
        match self {
            Self::InMemory(rows) => {
                rows.lock().entry(model.clone()).or_default();
                Ok(())
            }
            #[cfg(feature = "production")]
            Self::DynamoDb(rows) => rows.prepare(model).await,
        }
    }

    async fn flush(&self, model: &ModelId) -> HandlerResult {
        match self {
            Self::InMemory(_) => {
                // Rows in memory are written at once, whatever the model.
                let _ = model;
                Ok(())
            }
            #[cfg(feature = "production")]
            Self::DynamoDb(rows) => rows.flush(model).await,
        }
    }

    async fn forget_buffered(&self, model: &ModelId, streams: &[StreamId]) -> HandlerResult {
        match self {
            Self::InMemory(_) => {
                let _ = (model, streams);
                Ok(())
            }
            #[cfg(feature = "production")]
            Self::DynamoDb(rows) => rows.forget_buffered(model, streams).await,
        }
    }

    async fn position(&self, model: &ModelId, cart: &StreamId) -> Result<Position, HandlerError> {
        match self {
            Self::InMemory(rows) => Ok(rows.position(model, cart)),
            #[cfg(feature = "production")]
            Self::DynamoDb(rows) => rows.position(model, cart).await,
        }
    }

    async fn reset(&self, model: &ModelId) -> HandlerResult {
        match self {
            Self::InMemory(rows) => {
                rows.lock().remove(model);
                Ok(())
            }
            #[cfg(feature = "production")]
            Self::DynamoDb(rows) => rows.reset(model).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cart::CartEvent;
    use foldstream::Timestamp;
    use foldstream_testkit::ProjectorScenario;

    fn item(code: &str, quantity: i64) -> CartItem {
        CartItem {
            stock_code: code.into(),
            description: String::new(),
            quantity,
            unit_price: "1".parse().unwrap(),
            invoiced_at: Timestamp::from_micros(0),
            customer: None,
            country: "France".into(),
        }
    }

    #[test]
    fn a_row_counts_the_units_of_each_product() {
        let mut row = None;
        for (code, units) in [("tea", 2), ("milk", 1), ("tea", 3)] {
            AddedRow::apply(&mut row, &ItemEvent::CartItemAdded(item(code, units))).unwrap();
        }
        let before = row.clone();
        assert_eq!(row.as_ref().unwrap().units["tea"], 5);
        let refused = AddedRow::apply(&mut row, &ItemEvent::CartItemAdded(item("tea", i64::MAX)));
        let stock_code = "tea".into();
        assert_eq!((refused, row), (Err(TooManyUnits { stock_code }), before));
    }

    #[test]
    fn its_event_is_stored_as_the_cart_stores_it() {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        let added = item("tea", 2);
        let event = CartEvent::CartItemAdded(added.clone());
        event.encode(&mut theirs).unwrap();
        let event = ItemEvent::CartItemAdded(added);
        event.encode(&mut ours).unwrap();
        assert_eq!(ours, theirs);
        assert_eq!(ItemEvent::TYPES[0], CartEvent::TYPES[0]);
    }

    #[test]
    fn duplicates_gaps_and_rebuilds_leave_each_event_counted_once() {
        let rows = InMemoryProducts::default();
        let projector = HotProducts::InMemory(rows);
        let added = |units| ItemEvent::CartItemAdded(item("tea", units));
        let top = async |projector: &HotProducts| {
            let model = ModelId::new(AddedRow::NAME, 1);
            projector.top(&model, 1).await.unwrap()
        };
        let tea = |units| {
            let stock_code = "tea".into();
            vec![HotProduct { stock_code, units }]
        };
        ProjectorScenario::new(projector, top)
            .given("1", [added(1), added(2)])
            .given("2", [added(1)])
            .when_delivered("1", 1)
            .then_unchanged()
            .given_undelivered("1", [added(4)])
            .when("1", [added(8)])
            .then(tea(16))
            .when_rebuilt()
            .then_unchanged();
    }
}
