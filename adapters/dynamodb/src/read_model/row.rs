//! The row type that a user writes, its keys, and its place in the index.
use foldstream::{
    EventSet,
    runner::{EventContext, HandlerResult},
};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// A row of a [`ReadModel`](super::ReadModel), folded from events.
///
/// An implementation is all that a projector needs: `ReadModel<Row>` is the
/// [`Projector`](foldstream::runner::Projector) of it.
///
/// # Example
/// ```
/// use foldstream::{DomainEvent, runner::{EventContext, HandlerResult}};
/// use foldstream_dynamodb::{IndexKey, ReadModelRow};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "order")]
/// enum OrderEvent {
///     Placed { customer: String, total: u64 },
///     Shipped,
///     Cancelled,
/// }
///
/// /// One row per order, listed by customer.
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Order { customer: String, total: u64, is_shipped: bool }
///
/// impl ReadModelRow for Order {
///     const NAME: &'static str = "orders";
///     type Events = OrderEvent;
///
///     fn apply(row: &mut Option<Self>, event: &OrderEvent, _: &EventContext) -> HandlerResult {
///         match (event, row.as_mut()) {
///             (OrderEvent::Placed { customer, total }, _) => {
///                 let (customer, total) = (customer.clone(), *total);
///                 *row = Some(Self { customer, total, is_shipped: false });
///             }
///             (OrderEvent::Shipped, Some(order)) => order.is_shipped = true,
///             (OrderEvent::Shipped, None) => {}
///             (OrderEvent::Cancelled, _) => *row = None,
///         }
///         Ok(())
///     }
///     fn index(&self) -> Option<IndexKey> {
///         Some(IndexKey::new(&self.customer))
///     }
/// }
/// let order = Order { customer: "ann".into(), total: 3, is_shipped: false };
/// assert_eq!(order.index(), Some(IndexKey::new("ann")));
/// ```
pub trait ReadModelRow: Serialize + DeserializeOwned + Send + Sync + Sized + 'static {
    /// The name of the rows, 1 to 64 characters of `[A-Za-z0-9_.-]`. It is part of every key, and
    /// the name of the projector. Stored: never change it.
    const NAME: &'static str;
    /// The version of the rows' shape and meaning; see
    /// [`Projector::MODEL`](foldstream::runner::Projector::MODEL). Default: 1.
    const MODEL: u32 = 1;
    /// The events that feed the rows: one [`DomainEvent`](foldstream::DomainEvent), or several by
    /// [`event_set!`](foldstream::event_set).
    type Events: EventSet;
    /// The rows that an event changes. Default: one row per stream, [`RowKeys::Stream`].
    const KEYS: RowKeys<Self::Events> = RowKeys::Stream;

    /// Applies one event to a row. `None` means that there is no row: set it to create or to
    /// delete one.
    ///
    /// The result must depend on nothing but the arguments. The events of a stream are applied in
    /// order, each of them once. Some may be applied again to a row that was read again, because
    /// another process has changed it. Rows that several streams feed receive the events of
    /// different streams in any order, and must come out the same.
    ///
    /// # Errors
    /// The classified error of an event that cannot be applied. Neither this row nor the other rows
    /// of the event change.
    fn apply(row: &mut Option<Self>, event: &Self::Events, ctx: &EventContext) -> HandlerResult;

    /// Returns the place of this row in the index, or `None` to leave it out. Default: `None`.
    ///
    /// Read models are listed by it with [`ReadModel::query`](super::ReadModel::query).
    fn index(&self) -> Option<IndexKey> {
        None
    }
}

/// The rows that an event changes.
///
/// Changing it for rows that are stored already needs a new [`ReadModelRow::MODEL`].
pub enum RowKeys<E> {
    /// The row of the event's stream, whose key is the stream's id (`order#7`).
    ///
    /// The common case, and the cheapest: the row holds the position of its stream.
    Stream,
    /// The rows with the keys that the function returns: none, one or several per event.
    ///
    /// A row holds a position for each stream that feeds it, of which there are at most
    /// [`ReadModel::MAX_STREAMS`](super::ReadModel::MAX_STREAMS). The position of each stream also
    /// has an item of its own, which is written after the rows. The function must depend on nothing
    /// but its arguments. A key has 1 to 1,024 bytes.
    ///
    /// # Example
    /// ```
    /// use foldstream::{DomainEvent, runner::{EventContext, HandlerResult}};
    /// use foldstream_dynamodb::{ReadModelRow, RowKeys};
    ///
    /// #[derive(Clone, Debug, PartialEq, DomainEvent)]
    /// #[event(aggregate = "order")]
    /// enum OrderEvent {
    ///     Placed { customer: String, total: u64 },
    ///     Shipped,
    /// }
    ///
    /// /// The spending of one customer, over all orders.
    /// #[derive(Default, serde::Serialize, serde::Deserialize)]
    /// struct Spending { total: u64 }
    ///
    /// impl ReadModelRow for Spending {
    ///     const NAME: &'static str = "spending";
    ///     type Events = OrderEvent;
    ///     const KEYS: RowKeys<OrderEvent> = RowKeys::Of(|event, _| match event {
    ///         OrderEvent::Placed { customer, .. } => vec![customer.clone()],
    ///         OrderEvent::Shipped => vec![],
    ///     });
    ///     fn apply(
    ///         row: &mut Option<Self>,
    ///         event: &OrderEvent,
    ///         _: &EventContext,
    ///     ) -> HandlerResult {
    ///         if let OrderEvent::Placed { total, .. } = event {
    ///             row.get_or_insert_default().total += total;
    ///         }
    ///         Ok(())
    ///     }
    /// }
    /// assert!(matches!(Spending::KEYS, RowKeys::Of(_)));
    /// ```
    Of(fn(&E, &EventContext) -> Vec<String>),
}

impl<E> fmt::Debug for RowKeys<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "Stream",
            Self::Of(_) => "Of(..)",
        })
    }
}

/// The place of a row in the index: a partition, and an order within it.
///
/// # Example
/// ```
/// use foldstream_dynamodb::IndexKey;
/// let by_day = IndexKey::new("customer-7").with_sort("2026-01-31");
/// assert_eq!((by_day.partition(), by_day.sort()), ("customer-7", Some("2026-01-31")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IndexKey {
    partition: String,
    sort: Option<String>,
}

impl IndexKey {
    /// Creates a place in a partition of the index, 1 to 1,024 bytes long. Rows are sorted by their
    /// keys.
    ///
    /// DynamoDB takes about 1,000 writes per second to one partition of an index, so choose values
    /// of which there are many: a customer rather than a status.
    #[must_use]
    pub fn new(partition: impl Into<String>) -> Self {
        Self {
            partition: partition.into(),
            sort: None,
        }
    }
    /// Sorts the row by this text, 1 to 1,024 bytes long and compared byte by byte, in place of its
    /// key.
    #[must_use]
    pub fn with_sort(mut self, sort: impl Into<String>) -> Self {
        self.sort = Some(sort.into());
        self
    }
    /// Returns the partition.
    pub fn partition(&self) -> &str {
        &self.partition
    }
    /// Returns the text by which the row is sorted. `None`: by its key.
    pub fn sort(&self) -> Option<&str> {
        self.sort.as_deref()
    }
}
