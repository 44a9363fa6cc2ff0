//! The projector behind the report, which keeps one row per order.
use crate::{
    cart::CartEvent,
    memory_rows::BufferedRows,
    read_model::{OrderRow, SalesModel},
};
use foldstream::{
    StreamId,
    runner::{EventContext, HandlerError, HandlerResult, ModelId, Position, Projector},
};
use std::fmt;

/// Feeds the [`SalesModel`] with the events of every cart.
///
/// Events change rows in memory. [`flush`](Projector::flush), which the runner calls before it
/// commits an offset, writes each changed row with its position: an invoice of 500 lines is one
/// write. A crash loses unwritten rows, but the offsets of their events were not committed either,
/// so the events are delivered again.
pub struct SalesProjector {
    rows: Rows,
    progress: Box<dyn Fn() + Send + Sync>,
}

enum Rows {
    InMemory(BufferedRows),
    #[cfg(feature = "production")]
    DynamoDb(foldstream_dynamodb::ReadModel<OrderRow>),
}

impl fmt::Debug for SalesProjector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SalesProjector").finish_non_exhaustive()
    }
}

impl SalesProjector {
    /// Creates a projector that keeps its rows in `model`.
    pub fn new(model: &SalesModel) -> Self {
        let rows = match model {
            SalesModel::InMemory(rows) => Rows::InMemory(BufferedRows::new(rows.clone())),
            #[cfg(feature = "production")]
            SalesModel::DynamoDb(rows) => Rows::DynamoDb(rows.projector()),
        };
        Self {
            rows,
            progress: Box::new(|| ()),
        }
    }

    /// Calls `progress` after each event.
    #[must_use]
    pub fn with_progress(mut self, progress: impl Fn() + Send + Sync + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }
}

impl Projector for SalesProjector {
    const NAME: &'static str = OrderRow::NAME;
    type Events = CartEvent;

    async fn project(&self, event: &CartEvent, ctx: &EventContext) -> HandlerResult {
        match &self.rows {
            Rows::InMemory(rows) => rows.project(event, ctx)?,
            #[cfg(feature = "production")]
            Rows::DynamoDb(rows) => rows.project(event, ctx).await?,
        }
        (self.progress)();
        Ok(())
    }

    async fn prepare(&self, model: &ModelId) -> HandlerResult {
        match &self.rows {
            Rows::InMemory(_) => {
                // Memory needs no preparation, whatever the model.
                let _ = model;
                Ok(())
            }
            #[cfg(feature = "production")]
            Rows::DynamoDb(rows) => rows.prepare(model).await,
        }
    }

    async fn flush(&self, model: &ModelId) -> HandlerResult {
        match &self.rows {
            Rows::InMemory(rows) => rows.flush(model),
            #[cfg(feature = "production")]
            Rows::DynamoDb(rows) => rows.flush(model).await,
        }
    }

    async fn forget_buffered(&self, model: &ModelId, streams: &[StreamId]) -> HandlerResult {
        match &self.rows {
            Rows::InMemory(rows) => {
                rows.forget(model, streams);
                Ok(())
            }
            #[cfg(feature = "production")]
            Rows::DynamoDb(rows) => rows.forget_buffered(model, streams).await,
        }
    }

    async fn position(&self, model: &ModelId, order: &StreamId) -> Result<Position, HandlerError> {
        match &self.rows {
            Rows::InMemory(rows) => rows.position(model, order),
            #[cfg(feature = "production")]
            Rows::DynamoDb(rows) => rows.position(model, order).await,
        }
    }

    async fn reset(&self, model: &ModelId) -> HandlerResult {
        match &self.rows {
            Rows::InMemory(rows) => {
                rows.reset(model);
                Ok(())
            }
            #[cfg(feature = "production")]
            Rows::DynamoDb(rows) => rows.reset(model).await,
        }
    }

    /// Each generation has rows of its own.
    async fn delete_model(&self, model: &ModelId) -> HandlerResult {
        self.reset(model).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cart::CartItem, memory_rows::InMemoryRows};
    use foldstream::{CommitId, EventHeader, Timestamp, Version, runner::EventSource};
    use foldstream_testkit::ProjectorScenario;

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
        SalesModel::id(None)
    }

    fn order() -> StreamId {
        StreamId::new("cart", "1").unwrap()
    }

    /// Creates a projector with a buffer of its own, as another process would have.
    fn process(rows: &InMemoryRows) -> SalesProjector {
        SalesModel::InMemory(rows.clone()).projector()
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

    async fn position(projector: &SalesProjector) -> u64 {
        match projector.position(&model(), &order()).await.unwrap() {
            Position::Stored { version, .. } => version.get(),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the number of events in the stored row, and its units.
    fn stored(rows: &InMemoryRows) -> (u64, i64) {
        let row = rows.all(&model()).pop().map(|(_, row)| row);
        row.map_or((0, 0), |row| (row.events, row.units["22"]))
    }

    #[tokio::test]
    async fn rows_are_stored_by_a_flush_and_their_version_is_the_position() {
        let rows = InMemoryRows::default();
        let projector = process(&rows);
        project(&projector, 1).await;
        project(&projector, 2).await;
        assert_eq!(stored(&rows), (0, 0));
        projector.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows), (2, 6));
        assert_eq!(position(&projector).await, 2);
    }

    /// The runner asks for the position of a stream again when it tries an event once more.
    #[tokio::test]
    async fn a_question_for_the_position_keeps_what_is_buffered() {
        let rows = InMemoryRows::default();
        let projector = process(&rows);
        project(&projector, 1).await;
        assert_eq!(position(&projector).await, 0);
        project(&projector, 2).await;
        projector.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows), (2, 6));
    }

    #[tokio::test]
    async fn an_event_that_comes_again_counts_once() {
        let rows = InMemoryRows::default();
        let projector = process(&rows);
        for version in [1, 2, 1, 2, 3, 3] {
            project(&projector, version).await;
            projector.flush(&model()).await.unwrap();
        }
        assert_eq!(stored(&rows), (3, 14));
    }

    #[tokio::test]
    async fn what_a_crash_loses_is_above_the_position() {
        let rows = InMemoryRows::default();
        let projector = process(&rows);
        project(&projector, 1).await;
        projector.flush(&model()).await.unwrap();
        project(&projector, 2).await;
        drop(projector);
        let projector = process(&rows);
        assert_eq!(position(&projector).await, 1);
        for version in [1, 2, 3] {
            project(&projector, version).await;
        }
        projector.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows), (3, 14));
    }

    /// Runs the projector in a runner through the whole life of a read model.
    #[test]
    fn duplicates_gaps_late_writes_and_rebuilds_leave_each_event_counted_once() {
        let rows = InMemoryRows::default();
        let projector = process(&rows);
        let units = async move |_: &SalesProjector| stored(&rows);
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
        let rows = InMemoryRows::default();
        let (old, new) = (process(&rows), process(&rows));
        project(&old, 1).await;
        for version in [1, 2, 3] {
            project(&new, version).await;
        }
        new.flush(&model()).await.unwrap();
        old.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows), (3, 14));
    }

    /// The partition went to another process and came back.
    #[tokio::test]
    async fn what_is_forgotten_is_not_stored_and_is_read_again() {
        let rows = InMemoryRows::default();
        let (here, there) = (process(&rows), process(&rows));
        project(&here, 1).await;
        here.forget_buffered(&model(), &[order()]).await.unwrap();
        here.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows), (0, 0));
        for version in [1, 2] {
            project(&there, version).await;
        }
        there.flush(&model()).await.unwrap();
        project(&here, 3).await;
        here.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows), (3, 14));
    }

    #[tokio::test]
    async fn a_reset_empties_the_model() {
        let rows = InMemoryRows::default();
        let projector = process(&rows);
        project(&projector, 1).await;
        projector.flush(&model()).await.unwrap();
        project(&projector, 2).await;
        projector.reset(&model()).await.unwrap();
        projector.flush(&model()).await.unwrap();
        assert_eq!(stored(&rows), (0, 0));
    }
}
