//! The rows of the read model in memory, with the promises of `foldstream_dynamodb::ReadModel`.
use crate::{
    cart::CartEvent,
    read_model::{OrderEntry, OrderRow},
};
use foldstream::{
    StreamId, Version,
    runner::{EventContext, HandlerError, HandlerResult, ModelId, Position, ResultExt},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A row, and the version of the last event in it.
type Stored = (Version, Option<OrderRow>);

/// The stored rows. Clones share them, as connections to one database do.
#[derive(Clone, Debug, Default)]
pub struct InMemoryRows {
    rows: Arc<Mutex<BTreeMap<ModelId, BTreeMap<StreamId, Stored>>>>,
}

impl InMemoryRows {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelId, BTreeMap<StreamId, Stored>>> {
        // Each change of the map is a single call, so the rows are whole after a panic.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the stored rows of a model with their orders.
    pub fn all(&self, model: &ModelId) -> Vec<OrderEntry> {
        let rows = self.lock();
        let rows = rows.get(model).into_iter().flatten();
        let rows = rows.filter_map(|(order, (_, row))| Some((order.clone(), row.clone()?)));
        rows.collect()
    }

    fn stored(&self, model: &ModelId, order: &StreamId) -> Stored {
        let rows = self.lock();
        let row = rows.get(model).and_then(|rows| rows.get(order));
        row.cloned().unwrap_or_default()
    }
}

/// The buffer of one process in front of [`InMemoryRows`].
///
/// Events change rows in the buffer, and a flush stores them. A crash loses the buffer, but the
/// offsets of its events were not committed either, so the events are delivered again.
#[derive(Debug, Default)]
pub(crate) struct BufferedRows {
    rows: InMemoryRows,
    buffer: Mutex<HashMap<(ModelId, StreamId), Buffered>>,
}

/// A row that is newer than the stored one.
#[derive(Debug)]
struct Buffered {
    version: Version,
    row: Option<OrderRow>,
    /// The events since the last flush, which are applied to whatever row is stored then.
    events: Vec<(Version, CartEvent)>,
}

impl BufferedRows {
    pub(crate) fn new(rows: InMemoryRows) -> Self {
        Self {
            rows,
            buffer: Mutex::default(),
        }
    }

    fn buffer(&self) -> MutexGuard<'_, HashMap<(ModelId, StreamId), Buffered>> {
        // A row changes as a whole or not at all, so the rows are valid after a panic.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies an event to the row of its order.
    pub(crate) fn project(&self, event: &CartEvent, ctx: &EventContext) -> HandlerResult {
        let key = (ctx.model().clone(), ctx.stream().clone());
        let mut buffer = self.buffer();
        let known = buffer.get(&key);
        let (version, mut row) = match known {
            Some(buffered) => (buffered.version, buffered.row.clone()),
            None => self.rows.stored(ctx.model(), ctx.stream()),
        };
        // The row already contains this event, because it is a duplicate or late delivery.
        if version >= ctx.version() {
            return Ok(());
        }
        OrderRow::apply(&mut row, event).permanent()?;
        let buffered = buffer.entry(key).or_insert_with(|| Buffered {
            version,
            row: None,
            events: Vec::new(),
        });
        buffered.events.push((ctx.version(), event.clone()));
        (buffered.version, buffered.row) = (ctx.version(), row);
        Ok(())
    }

    /// Stores the buffered rows of a model. An event that the stored row contains already, because
    /// another process has written it, is not applied again.
    pub(crate) fn flush(&self, model: &ModelId) -> HandlerResult {
        let mut buffer = self.buffer();
        let mut stored = self.rows.lock();
        let stored = stored.entry(model.clone()).or_default();
        for ((_, order), buffered) in buffer.iter().filter(|((of, _), _)| of == model) {
            let (mut version, mut row) = stored.get(order).cloned().unwrap_or_default();
            for (at, event) in &buffered.events {
                if *at > version {
                    OrderRow::apply(&mut row, event).permanent()?;
                    version = *at;
                }
            }
            stored.insert(order.clone(), (version, row));
        }
        buffer.retain(|(of, _), _| of != model);
        Ok(())
    }

    /// Returns the stored position. What is only buffered does not count, and stays.
    pub(crate) fn position(
        &self,
        model: &ModelId,
        order: &StreamId,
    ) -> Result<Position, HandlerError> {
        Ok(Position::stored(self.rows.stored(model, order).0))
    }

    /// Drops what is buffered of these orders.
    pub(crate) fn forget(&self, model: &ModelId, orders: &[StreamId]) {
        self.buffer()
            .retain(|(of, order), _| of != model || !orders.contains(order));
    }

    /// Removes all rows of a model.
    pub(crate) fn reset(&self, model: &ModelId) {
        self.buffer().retain(|(of, _), _| of != model);
        self.rows.lock().remove(model);
    }
}
