//! Read models: rows that a projector keeps up to date, and that queries read.
mod row;
mod query;
mod error;
mod location;
mod encode;
mod decode;
mod buffer;
mod read;
mod write;
mod reset;

pub use error::ReadModelError;
pub use query::IndexQuery;
pub use row::{IndexKey, ReadModelRow, RowKeys};

use self::{
    buffer::{Applied, Buffer, Found},
    decode::Stored,
    encode::Positions,
    error::classified,
    location::Location,
};
use crate::{TableOptions, client::Connection, replication, tables};
use foldstream::{
    StreamId, Version,
    ports::BoxStream,
    runner::{EventContext, HandlerError, HandlerResult, ModelId, Position, Projector},
};
use futures::StreamExt as _;
use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The longest name of a table (a limit of DynamoDB).
const MAX_TABLE_NAME: usize = 255;
/// The most times that an event asks for its rows. Once is enough unless writes of the same rows
/// fail or are forgotten meanwhile.
const MAX_READS: u32 = 20;

/// A read model on DynamoDB: rows of type `T`, and the projector that keeps them.
///
/// A user writes [`ReadModelRow`] for the type of a row. The value is then registered as a
/// projector, and read by queries, in the same process or in another one.
///
/// # How rows are written
/// [`project`](Projector::project) applies an event to a row in memory.
/// [`flush`](Projector::flush), which the runner calls before it commits offsets, writes each row
/// that has changed, however many events have changed it. The write is one conditional put of the
/// row together with the position of its stream. So the position is never ahead of the row, and
/// the runner gives each event to the row once
/// ([`Position::Stored`](foldstream::runner::Position::Stored)): duplicates are dropped, and what
/// a crash loses is delivered again.
///
/// The condition is that the stored position is the one that the row was read with. If another
/// process has written the row, this one takes the stored row and applies only events after its
/// position. A process that has lost its partition and does not know it yet therefore changes
/// nothing.
///
/// Rows that several streams feed ([`RowKeys::Of`]) hold a position per stream. Several processes
/// may feed the same row.
///
/// # Models
/// The keys of all items begin with the [`ModelId`], so that generations of a model, and many
/// models, share one table ([`read_models_table`](crate::DynamoDbConfig::read_models_table)).
///
/// Cloning is a reference count. Clones share the rows in memory.
///
/// # Example
/// ```
/// # use foldstream::{BoxError, DomainEvent};
/// # use foldstream::runner::{EventContext, HandlerResult};
/// # use foldstream::{Aggregate, CommitId, EventHeader, StreamId, Timestamp, Version};
/// # use foldstream::runner::EventSource;
/// # use foldstream_testkit::embedded::DynamoDbServer;
/// # use foldstream_dynamodb::{DynamoDbConfig, TableOptions, create_tables};
/// use foldstream::runner::{ModelId, Projector};
/// use foldstream_dynamodb::{DynamoDb, IndexKey, IndexQuery, ReadModelRow};
/// use futures::TryStreamExt;
/// use serde::{Deserialize, Serialize};
///
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "order")]
/// # enum OrderEvent { Placed { customer: String, total: u64 }, Shipped, Cancelled }
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
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// # let server = DynamoDbServer::start()?;
/// # let config = DynamoDbConfig::default().with_endpoint(server.endpoint());
/// # create_tables(&config, &TableOptions::default()).await?;
/// # let dynamodb = DynamoDb::connect(config).await?;
/// let orders = dynamodb.read_model::<Order>();
/// let model = ModelId::new(Order::NAME, 1);
/// orders.create_table(&model).await?;
///
/// // The runner does this with each event: `Runner::builder(..).projector(orders.clone())`.
/// # let stream = StreamId::new("order", "7")?;
/// # let id = CommitId::random().event_id(0);
/// # let header = EventHeader::new(id, stream, Version::new(1), "Placed", Timestamp::now());
/// # let ctx = EventContext::new(model.clone(), header, EventSource::History);
/// let placed = OrderEvent::Placed { customer: "ann".into(), total: 30 };
/// # async {
/// orders.project(&placed, &ctx).await?;
/// orders.flush(&model).await
/// # }.await.map_err(foldstream::runner::HandlerError::into_source)?;
///
/// // Queries read single rows, and lists by the index.
/// let order = orders.get(&model, "order#7").await?;
/// assert_eq!(order.map(|order| order.total), Some(30));
/// let of_ann: Vec<_> = orders.query(&model, &IndexQuery::new("ann")).try_collect().await?;
/// assert_eq!(of_ann[0].0, "order#7");
/// # Ok(()) }
/// ```
pub struct ReadModel<T: ReadModelRow> {
    connection: Connection,
    options: Arc<TableOptions>,
    has_own_tables: bool,
    is_consistent: bool,
    models: Arc<Mutex<HashMap<ModelId, Arc<Model<T>>>>>,
}

/// One generation of a read model in this process.
struct Model<T: ReadModelRow> {
    location: Location<T>,
    buffer: Mutex<Buffer<T>>,
    /// Held by the flush that runs. A reset, and the dropping of buffered events, wait for it.
    flushing: tokio::sync::Mutex<()>,
}

impl<T: ReadModelRow> Model<T> {
    fn buffer(&self) -> MutexGuard<'_, Buffer<T>> {
        // A panic in `apply` leaves rows that are read again, see `Buffer::apply`.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ReadModelRow> Clone for ReadModel<T> {
    fn clone(&self) -> Self {
        Self {
            connection: self.connection.clone(),
            options: self.options.clone(),
            models: self.models.clone(),
            ..*self
        }
    }
}
impl<T: ReadModelRow> fmt::Debug for ReadModel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadModel")
            .field("rows", &T::NAME)
            .field("has_own_tables", &self.has_own_tables)
            .field("is_consistent", &self.is_consistent)
            .finish_non_exhaustive()
    }
}

impl<T: ReadModelRow> ReadModel<T> {
    /// The most streams that may feed one row of [`RowKeys::Of`], of which it holds the positions.
    ///
    /// Each takes the length of its id and about 5 bytes more, which every write of the row pays
    /// for. An event of a further stream is a permanent error
    /// ([`ReadModelError::TooManyStreams`]).
    pub const MAX_STREAMS: usize = 1_000;

    pub(crate) fn over(connection: Connection) -> Self {
        Self {
            connection,
            options: Arc::default(),
            has_own_tables: false,
            is_consistent: true,
            models: Arc::default(),
        }
    }

    /// Sets the options of tables that [`create_table`](Self::create_table) creates. Continuous
    /// backups are never enabled, since a read model can be built again.
    #[must_use]
    pub fn with_table_options(mut self, options: TableOptions) -> Self {
        self.options = Arc::new(options);
        self
    }
    /// Gives each generation of the model a table of its own,
    /// `<read_models_table>-<name>.g<generation>`. Default: all models share one table.
    ///
    /// A generation that is no longer read can then be deleted with its table, at no cost.
    #[must_use]
    pub fn with_own_tables(mut self) -> Self {
        self.has_own_tables = true;
        self.models = Arc::default();
        self
    }
    /// Lets [`get`](Self::get) and [`all`](Self::all) read eventually consistently, at half the
    /// price. Default: strongly consistently. What the projector reads is always consistent.
    #[must_use]
    pub const fn with_eventual_reads(mut self) -> Self {
        self.is_consistent = false;
        self
    }

    /// Creates the table of the model if it does not exist, and checks it otherwise.
    ///
    /// The call is idempotent. The runner does the same at its start, by
    /// [`prepare`](Projector::prepare). If a service may not create tables, call it in a deployment
    /// step.
    ///
    /// # Errors
    /// - [`ReadModelError::Prepare`] if the table cannot be created or described, has another key
    ///   or no index `rows`, or is written in several regions. The error says which permission is
    ///   missing.
    /// - [`ReadModelError::Invalid`] if the name of the rows or of the table is not allowed.
    pub async fn create_table(&self, model: &ModelId) -> Result<(), ReadModelError> {
        let model = self.model(model)?;
        let (connection, location) = (&self.connection, &model.location);
        let prepared = async {
            tables::prepare_read_models(connection, &location.table, &self.options).await?;
            replication::check(connection, &location.table).await
        };
        prepared.await.map_err(|error| ReadModelError::Prepare {
            model: location.model.clone(),
            source: Box::new(error),
        })
    }

    /// Returns the row with this key. The key of a row per stream is the stream's id, `order#7`.
    ///
    /// Rows are visible once they are flushed.
    ///
    /// # Errors
    /// - [`ReadModelError::Request`] if DynamoDB cannot be asked, or `NoTable`.
    /// - [`ReadModelError::Corrupt`] if this build cannot read the row.
    /// - [`ReadModelError::Invalid`] if the key is empty or too long.
    pub async fn get(&self, model: &ModelId, key: &str) -> Result<Option<T>, ReadModelError> {
        let location = self.location(model)?;
        let stored = read::row(&self.connection, &location, key, self.is_consistent).await?;
        Ok(stored.row)
    }

    /// Lists the rows of a partition of the index with their keys, in the order of the index.
    ///
    /// Pages are read while the stream is polled, so only one page is in memory.
    ///
    /// The index is eventually consistent. DynamoDB updates it after the row, usually within a
    /// second and without a guarantee: a list may lack a row that [`get`](Self::get) returns, or
    /// hold one as it was before.
    ///
    /// # Errors
    /// The items of the stream have the errors of [`get`](Self::get).
    pub fn query(
        &self,
        model: &ModelId,
        query: &IndexQuery,
    ) -> BoxStream<'_, Result<(String, T), ReadModelError>> {
        match self.location(model) {
            Ok(location) => read::indexed(&self.connection, location, query).boxed(),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    /// Lists all rows of the model with their keys, in no particular order.
    ///
    /// Pages are read while the stream is polled. Rows that change meanwhile are listed as they are
    /// when their page is read.
    ///
    /// # Errors
    /// The items of the stream have the errors of [`get`](Self::get).
    pub fn all(&self, model: &ModelId) -> BoxStream<'_, Result<(String, T), ReadModelError>> {
        match self.location(model) {
            Ok(location) => read::all(&self.connection, location, self.is_consistent).boxed(),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    fn location(&self, model: &ModelId) -> Result<Location<T>, ReadModelError> {
        let shared = self.connection.config().read_models_table();
        let table = match self.has_own_tables {
            true => format!("{shared}-{model}"),
            false => shared,
        };
        if table.len() > MAX_TABLE_NAME {
            return Err(ReadModelError::Invalid {
                model: model.clone(),
                reason: format!(
                    "the table name {table} has {} characters, and DynamoDB takes {MAX_TABLE_NAME}: choose a shorter name or prefix",
                    table.len()
                ),
            });
        }
        Location::new(model, table)
    }

    fn model(&self, id: &ModelId) -> Result<Arc<Model<T>>, ReadModelError> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models.get(id) {
            return Ok(model.clone());
        }
        let model = Arc::new(Model {
            location: self.location(id)?,
            buffer: Mutex::default(),
            flushing: tokio::sync::Mutex::default(),
        });
        models.insert(id.clone(), model.clone());
        Ok(model)
    }

    /// Returns the keys of the rows that an event changes, each once.
    fn keys(
        location: &Location<T>,
        event: &T::Events,
        ctx: &EventContext,
    ) -> Result<Vec<String>, ReadModelError> {
        let mut keys = match T::KEYS {
            RowKeys::Stream => return Ok(vec![ctx.stream().to_string()]),
            RowKeys::Of(keys) => keys(event, ctx),
        };
        keys.sort_unstable();
        keys.dedup();
        for key in &keys {
            location.check_key("the key of a row", key)?;
        }
        Ok(keys)
    }

    async fn apply(&self, event: &T::Events, ctx: &EventContext) -> HandlerResult {
        let model = self.model(ctx.model()).map_err(classified)?;
        let location = &model.location;
        let keys = Self::keys(location, event, ctx).map_err(classified)?;
        let is_large = model.buffer().is_large();
        if is_large {
            self.flush(ctx.model()).await?;
        }
        let mut found = HashMap::new();
        for _ in 0..MAX_READS {
            // The guard must not live until the end of the match.
            let applied = model.buffer().apply(location, &keys, event, ctx, found)?;
            let missing = match applied {
                Applied::Yes => return Ok(()),
                Applied::Read(missing) => missing,
            };
            // Rows are read in parallel with a flush, so the buffer must be checked before a read
            // and not after it.
            let is_full = model.buffer().is_full();
            if is_full {
                self.flush(ctx.model()).await?;
            }
            found = HashMap::new();
            for (key, asked) in missing {
                let row = self.read(location, &key, asked, ctx).await;
                found.insert(key, row.map_err(classified)?);
            }
        }
        Err(classified(ReadModelError::Contended {
            model: location.model.clone(),
            key: keys.join(", "),
            attempts: MAX_READS,
        }))
    }

    /// Reads a row, unless it cannot exist yet.
    async fn read(
        &self,
        location: &Location<T>,
        key: &str,
        asked: Option<Positions>,
        ctx: &EventContext,
    ) -> Result<Found<T>, ReadModelError> {
        // The row of a stream's first event. If it exists after all, since the event is a
        // duplicate, then the condition of the write fails and returns the stored row.
        let is_first = location.is_per_stream() && ctx.version() == Version::NONE.next();
        let is_assumed = is_first && asked.is_none();
        let stored = match is_assumed {
            true => Stored::NOTHING,
            false => read::row(&self.connection, location, key, true).await?,
        };
        Ok(Found {
            asked,
            stored,
            is_assumed,
        })
    }
}

impl<T: ReadModelRow> Projector for ReadModel<T> {
    const NAME: &'static str = T::NAME;
    const MODEL: u32 = T::MODEL;
    type Events = T::Events;

    async fn project(&self, event: &T::Events, ctx: &EventContext) -> HandlerResult {
        self.apply(event, ctx).await
    }

    async fn flush(&self, model: &ModelId) -> HandlerResult {
        let model = self.model(model).map_err(classified)?;
        let _flushing = model.flushing.lock().await;
        write::flush(&self.connection, &model).await
    }

    async fn position(&self, model: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        let location = self.location(model).map_err(classified)?;
        let stored = read::position(&self.connection, &location, stream).await;
        let at = stored.map_err(classified)?;
        Ok(Position::Stored {
            version: at.map_or(Version::NONE, |at| at.version),
            commit_id: at.and_then(|at| at.commit_id),
        })
    }

    async fn prepare(&self, model: &ModelId) -> HandlerResult {
        self.create_table(model).await.map_err(classified)
    }

    async fn forget_buffered(&self, model: &ModelId, streams: &[StreamId]) -> HandlerResult {
        let model = self.model(model).map_err(classified)?;
        let _flushing = model.flushing.lock().await;
        let streams: HashSet<&StreamId> = streams.iter().collect();
        model.buffer().forget(&streams);
        Ok(())
    }

    async fn reset(&self, model: &ModelId) -> HandlerResult {
        let model = self.model(model).map_err(classified)?;
        let _flushing = model.flushing.lock().await;
        model.buffer().clear();
        let emptied = reset::reset(&self.connection, &model.location).await;
        // Also what was projected in the meantime is of the model that was emptied.
        model.buffer().clear();
        emptied.map_err(classified)
    }

    /// Deletes the rows and positions of the model. A table of its own stays, without items.
    async fn delete_model(&self, model: &ModelId) -> HandlerResult {
        self.reset(model).await
    }
}
