//! The projector behind the report, which keeps one row per order.
use crate::{
    cart::CartEvent,
    read_model::{OrderRow, ReadModel, ReadModelError},
};
use foldstream::{
    StreamId,
    runner::{
        ErrorClass, EventContext, HandlerError, HandlerResult, ModelId, Position, Projector,
        ResultExt,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The number of rows that are written concurrently.
const CONCURRENT_WRITES: usize = 16;

/// Feeds the [`ReadModel`] with the events of every cart.
///
/// Events change rows in memory. [`flush`](Projector::flush), which the runner calls before it
/// commits an offset, writes them: an invoice of 500 lines is one write. A crash loses unwritten
/// rows, but the offsets of their events were not committed either, so the events are delivered
/// again.
pub struct SalesProjector {
    model: Arc<dyn ReadModel>,
    /// Rows that are newer than the stored ones.
    unwritten: Mutex<HashMap<StreamId, OrderRow>>,
    progress: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for SalesProjector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SalesProjector")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl SalesProjector {
    /// Creates a projector that keeps its rows in `model`.
    pub fn new(model: Arc<dyn ReadModel>) -> Self {
        Self {
            model,
            unwritten: Mutex::default(),
            progress: Box::new(|| ()),
        }
    }

    /// Calls `progress` after each event.
    #[must_use]
    pub fn with_progress(mut self, progress: impl Fn() + Send + Sync + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<StreamId, OrderRow>> {
        // A row changes as a whole or not at all, so the rows are valid after a panic.
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl SalesProjector {
    async fn take_in(&self, event: &CartEvent, ctx: &EventContext) -> HandlerResult {
        let order = ctx.stream();
        if let Some(row) = self.unwritten().get_mut(order) {
            return take(row, event, ctx);
        }
        // No other task inserts this row during the read: the events of one order are handled in
        // order.
        let stored = self.model.row(order).await.classify(class_of)?;
        let mut rows = self.unwritten();
        let row = rows
            .entry(order.clone())
            .or_insert(stored.unwrap_or_default());
        take(row, event, ctx)
    }

    /// Writes one row, and drops it from memory unless it has changed during the write.
    async fn write(&self, order: StreamId, row: OrderRow) -> HandlerResult {
        self.model
            .put_if_newer(&order, &row)
            .await
            .classify(class_of)?;
        let mut rows = self.unwritten();
        if rows
            .get(&order)
            .is_some_and(|now| now.version == row.version)
        {
            rows.remove(&order);
        }
        Ok(())
    }
}

impl Projector for SalesProjector {
    const NAME: &'static str = "sales";
    type Events = CartEvent;

    async fn project(&self, event: &CartEvent, ctx: &EventContext) -> HandlerResult {
        self.take_in(event, ctx).await?;
        (self.progress)();
        Ok(())
    }

    async fn flush(&self, _: &ModelId) -> HandlerResult {
        // Copies the rows, so that the next events can be handled during the writes.
        let rows: Vec<_> = self.unwritten().clone().into_iter().collect();
        let writes = stream::iter(rows).map(|(order, row)| self.write(order, row));
        writes
            .buffer_unordered(CONCURRENT_WRITES)
            .try_collect()
            .await
    }

    async fn position(&self, _: &ModelId, order: &StreamId) -> Result<Position, HandlerError> {
        // Another process may have had this order's partition since the row was kept, so only the
        // stored row counts.
        self.unwritten().remove(order);
        let row = self.model.row(order).await.classify(class_of)?;
        Ok(Position::stored(row.unwrap_or_default().version))
    }

    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.unwritten().clear();
        self.model.clear().await.classify(class_of)
    }
}

fn take(row: &mut OrderRow, event: &CartEvent, ctx: &EventContext) -> HandlerResult {
    // The row already contains this event, because it is a duplicate or late delivery.
    if row.version >= ctx.version() {
        return Ok(());
    }
    row.take(ctx.version(), event).permanent()
}

fn class_of(error: &ReadModelError) -> ErrorClass {
    match error {
        ReadModelError::Unavailable(_) => ErrorClass::Transient,
        ReadModelError::Corrupt { .. } => ErrorClass::Permanent,
        ReadModelError::Refused { .. } => ErrorClass::Fatal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cart::CartItem,
        read_model::{InMemoryReadModel, OrderEntry},
    };
    use async_trait::async_trait;
    use foldstream::{
        CommitId, EventHeader, Timestamp, Version, ports::BoxStream, runner::EventSource,
    };
    use foldstream_testkit::ProjectorScenario;
    use tokio::sync::Notify;

    fn added(quantity: i64) -> CartEvent {
        CartEvent::CartItemAdded(CartItem {
            stock_code: "22".into(),
            description: String::new(),
            quantity,
            unit_price: "0.10".parse().unwrap(),
            invoiced_at: Timestamp::from_micros(0),
            customer: None,
            country: "France".into(),
        })
    }

    fn model() -> ModelId {
        ModelId::new(SalesProjector::NAME, 1)
    }

    fn order() -> StreamId {
        StreamId::new("cart", "1").unwrap()
    }

    async fn project(projector: &SalesProjector, version: u64) {
        let header = EventHeader::new(
            CommitId::random().event_id(0),
            order(),
            Version::new(version),
            "CartItemAdded",
            Timestamp::from_micros(0),
        );
        let ctx = EventContext::new(model(), header, EventSource::History);
        projector.project(&added(1 << version), &ctx).await.unwrap();
    }

    async fn stored(rows: &InMemoryReadModel) -> (u64, i64) {
        let row = rows.row(&order()).await.unwrap().unwrap_or_default();
        (
            row.version.get(),
            row.units.get("22").copied().unwrap_or_default(),
        )
    }

    #[tokio::test]
    async fn rows_are_stored_by_a_flush_and_their_version_is_the_position() {
        let rows = InMemoryReadModel::default();
        let projector = SalesProjector::new(Arc::new(rows.clone()));
        project(&projector, 1).await;
        project(&projector, 2).await;
        assert_eq!(stored(&rows).await, (0, 0));
        projector.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows).await, (2, 6));
        let position = projector.position(&model(), &order()).await.unwrap();
        assert_eq!(position, Position::stored(Version::new(2)));
        assert!(projector.unwritten().is_empty());
    }

    /// A read model whose writes wait for permission.
    #[derive(Debug, Default)]
    struct Slow {
        rows: InMemoryReadModel,
        began: Notify,
        let_on: Notify,
    }

    #[async_trait]
    impl ReadModel for Slow {
        async fn exists(&self) -> Result<bool, ReadModelError> {
            self.rows.exists().await
        }
        async fn create(&self) -> Result<(), ReadModelError> {
            self.rows.create().await
        }
        async fn row(&self, order: &StreamId) -> Result<Option<OrderRow>, ReadModelError> {
            self.rows.row(order).await
        }
        async fn put_if_newer(
            &self,
            order: &StreamId,
            row: &OrderRow,
        ) -> Result<(), ReadModelError> {
            self.began.notify_one();
            self.let_on.notified().await;
            self.rows.put_if_newer(order, row).await
        }
        fn rows(&self) -> BoxStream<'_, Result<OrderEntry, ReadModelError>> {
            self.rows.rows()
        }
        async fn clear(&self) -> Result<(), ReadModelError> {
            self.rows.clear().await
        }
    }

    #[tokio::test]
    async fn an_event_that_comes_during_a_flush_is_in_the_next_one() {
        let slow = Arc::new(Slow::default());
        let projector = SalesProjector::new(slow.clone());
        project(&projector, 1).await;
        let id = model();
        let flush = projector.flush(&id);
        let meanwhile = async {
            slow.began.notified().await;
            project(&projector, 2).await;
            slow.let_on.notify_one();
        };
        tokio::join!(flush, meanwhile).0.unwrap();
        assert_eq!(stored(&slow.rows).await, (1, 2));
        slow.let_on.notify_one();
        projector.flush(&id).await.unwrap();
        assert_eq!(stored(&slow.rows).await, (2, 6));
    }

    #[tokio::test]
    async fn an_event_that_comes_again_counts_once() {
        let rows = InMemoryReadModel::default();
        let projector = SalesProjector::new(Arc::new(rows.clone()));
        for version in [1, 2, 1, 2, 3, 3] {
            project(&projector, version).await;
            projector.flush(&model()).await.unwrap();
        }
        assert_eq!(stored(&rows).await, (3, 14));
    }

    #[tokio::test]
    async fn what_a_crash_loses_is_above_the_position() {
        let rows = InMemoryReadModel::default();
        let projector = SalesProjector::new(Arc::new(rows.clone()));
        project(&projector, 1).await;
        projector.flush(&model()).await.unwrap();
        project(&projector, 2).await;
        drop(projector);
        let projector = SalesProjector::new(Arc::new(rows.clone()));
        let position = projector.position(&model(), &order()).await.unwrap();
        assert_eq!(position, Position::stored(Version::new(1)));
        for version in [1, 2, 3] {
            project(&projector, version).await;
        }
        projector.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows).await, (3, 14));
    }

    /// Runs the projector in a runner through the whole life of a read model.
    #[test]
    fn duplicates_gaps_late_writes_and_rebuilds_leave_each_event_counted_once() {
        let rows = InMemoryReadModel::default();
        let projector = SalesProjector::new(Arc::new(rows.clone()));
        let units = async move |_: &SalesProjector| stored(&rows).await;
        ProjectorScenario::new(projector, units)
            .given("1", [added(1), added(2)])
            .when_delivered("1", 1)
            .then_unchanged()
            .when_applied_late("1", 1)
            .then_unchanged()
            .given_undelivered("1", [added(4)])
            .when("1", [added(8)])
            .then((4, 15))
            .when_delivered("1", 3)
            .then_unchanged()
            .when_rebuilt()
            .then_unchanged();
    }

    #[tokio::test]
    async fn a_process_that_lost_the_partition_changes_nothing() {
        let rows = InMemoryReadModel::default();
        let old = SalesProjector::new(Arc::new(rows.clone()));
        let new = SalesProjector::new(Arc::new(rows.clone()));
        project(&old, 1).await;
        for version in [1, 2, 3] {
            project(&new, version).await;
        }
        new.flush(&model()).await.unwrap();
        old.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows).await, (3, 14));
    }

    #[tokio::test]
    async fn a_reset_empties_the_model() {
        let rows = InMemoryReadModel::default();
        let projector = SalesProjector::new(Arc::new(rows.clone()));
        project(&projector, 1).await;
        projector.flush(&model()).await.unwrap();
        project(&projector, 2).await;
        projector.reset(&model()).await.unwrap();
        projector.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows).await, (0, 0));
    }
}
