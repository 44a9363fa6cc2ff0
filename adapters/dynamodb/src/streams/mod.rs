//! The reader of the events table's change stream: the trigger of a publisher that runs as a
//! service.
//!
//! A [`StreamsReader`] reads all shards of the stream at the same time, and publishes what they
//! report. Several instances share the shards. If an instance dies, the others take its shards
//! over after the lease time. An instance that stops hands its shards on at once.
//!
//! # Guarantees
//! A record is forgotten only when the watermark of its stream covers it, or when a durable row
//! says that the stream is dirty. The checkpoint of a shard is the last record up to which that
//! holds, so that an instance that takes over misses nothing. A shard is read only after its
//! parent is done. Order within a stream of events does not depend on any of this: the publisher
//! keeps it.
//!
//! # Losses
//! DynamoDB deletes records after 24 hours. If a reader was stopped for that long, or if the
//! stream was disabled and enabled again, records are lost. The reader then goes on with the
//! oldest record that is left, and notes durably that
//! [`Publisher::reconcile`](foldstream::publisher::Publisher::reconcile) must be called. The note
//! is [`StreamsStatus::reconcile`], and an error is logged. Call [`StreamsReader::reconciled`]
//! afterwards.
//!
//! # Limits of the service
//! - Not more than two processes should read one shard, or requests are throttled
//!   ([quotas](https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/ServiceQuotas.html)).
//!   The instances of one reader count as one, since each shard has one holder. A Lambda function
//!   on the same stream is the second.
//! - A page has at most 1,000 records or 1 MB, and an iterator expires after 15 minutes
//!   ([`GetRecords`](https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_GetRecords.html)).
//! - A stream can be described ten times per second
//!   ([`DescribeStream`](https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_DescribeStream.html)).
//!
//! # Permissions
//! On the stream (`table/<events table>/stream/*`): `dynamodb:DescribeStream`,
//! `dynamodb:GetShardIterator` and `dynamodb:GetRecords`. On the events table:
//! `dynamodb:DescribeTable`. Besides those, whatever the publisher needs: the crate's documentation
//! lists it.
mod config;
mod status;
mod error;
mod service;
mod sdk;
mod shards;
mod window;
mod rows;
mod context;
mod fetch;
mod batch;
mod shard;
mod coordinate;

pub use config::StreamsConfig;
pub use error::StreamsError;
pub use service::{
    ChangeStream, RecordPage, SequenceNumber, ShardDescription, ShardPage, ShardStart,
    StreamRecord, StreamService, StreamServiceError,
};
pub use status::{ReaderState, ReconcileNeeded, ShardStatus, StreamsReport, StreamsStatus};

use crate::{DynamoDb, DynamoDbError};
use context::Context;
use coordinate::Coordinator;
use foldstream::{
    Backoff, Clock, IdSource, RetryPolicy, SystemClock, SystemIds,
    control::Members,
    ports::{ControlStore, ControlStoreError},
    publisher::Publisher,
};
use futures::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};
use rows::ReaderRows;
use shard::ShardEnd;
use std::{collections::BTreeMap, future::Future, pin::pin, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The reader of the change stream: publishes what is appended to the events table.
///
/// Clones are the same instance. One instance per process is enough.
///
/// # Example
/// ```no_run
/// use foldstream::publisher::Publisher;
/// use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, streams::StreamsReader};
/// # use foldstream::{BoxError, ports::MessageBus};
/// # async fn example(bus: impl MessageBus) -> Result<(), BoxError> {
/// let dynamodb = DynamoDb::connect(DynamoDbConfig::from_env()?).await?;
/// let publisher = Publisher::new(dynamodb.event_store(), bus, dynamodb.control_store());
/// let reader = StreamsReader::new(&dynamodb, publisher).await?;
/// let health = reader.clone();
/// let shutdown = async {
///     // A signal, say.
/// };
/// reader.run(shutdown).await?;
/// println!("{:?}", health.status());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StreamsReader {
    service: Arc<dyn StreamService>,
    publisher: Publisher,
    rows: ReaderRows,
    config: StreamsConfig,
    instance: String,
    context: Arc<Context>,
}

impl StreamsReader {
    /// Creates a reader of the change stream of these tables, with the endpoint, region and
    /// credentials of their configuration. Sends no request.
    ///
    /// An endpoint in the configuration is used for the streams API as well, as emulators need it.
    /// If `dynamodb` has a client of the caller, use [`with_client`](Self::with_client).
    ///
    /// # Errors
    /// [`DynamoDbError::Config`] if the configuration cannot work.
    pub async fn new(dynamodb: &DynamoDb, publisher: Publisher) -> Result<Self, DynamoDbError> {
        let service = sdk::SdkStreamService::open(&dynamodb.connection).await?;
        Ok(Self::over(service, dynamodb.control_store(), publisher))
    }

    /// Creates a reader as [`new`](Self::new) does, over the caller's client of the streams API.
    /// The client's own retries do not apply.
    #[must_use]
    pub fn with_client(
        client: &aws_sdk_dynamodbstreams::Client,
        dynamodb: &DynamoDb,
        publisher: Publisher,
    ) -> Self {
        let service = sdk::SdkStreamService::with_client(client, &dynamodb.connection);
        Self::over(service, dynamodb.control_store(), publisher)
    }

    /// Creates a reader of another source of change streams, for tests. The control store keeps
    /// leases and checkpoints.
    #[must_use]
    pub fn over(
        service: impl StreamService,
        control: impl ControlStore,
        publisher: Publisher,
    ) -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let rows = ReaderRows {
            store: Arc::new(control),
            ids: Arc::new(SystemIds),
            clock: Arc::new(SystemClock),
            retry: RetryPolicy::new(backoff, Duration::from_secs(5))
                .with_max_throttle(Duration::from_secs(5)),
        };
        let instance = format!("{:032x}", rows.ids.revision().as_u128());
        let service: Arc<dyn StreamService> = Arc::new(service);
        let config = StreamsConfig::default();
        let context = Self::context(&service, &publisher, &rows, &config, &instance);
        Self {
            service,
            publisher,
            rows,
            config,
            instance,
            context,
        }
    }

    fn context(
        service: &Arc<dyn StreamService>,
        publisher: &Publisher,
        rows: &ReaderRows,
        config: &StreamsConfig,
        instance: &str,
    ) -> Arc<Context> {
        Arc::new(Context::new(
            service.clone(),
            publisher.clone(),
            rows.clone(),
            config.clone(),
            instance.into(),
        ))
    }
    fn changed(mut self) -> Self {
        self.context = Self::context(
            &self.service,
            &self.publisher,
            &self.rows,
            &self.config,
            &self.instance,
        );
        self
    }

    /// Sets the times and limits of the reader.
    #[must_use]
    pub fn with_config(mut self, config: StreamsConfig) -> Self {
        self.config = config;
        self.changed()
    }
    /// Names this instance, for people who look at leases. Two running instances must not have the
    /// same name. Default: a random one.
    #[must_use]
    pub fn with_instance(mut self, name: impl Into<String>) -> Self {
        self.instance = name.into();
        self.changed()
    }
    /// Sets the clock that tells how old records are. Pauses follow tokio's clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.rows.clock = clock;
        self.changed()
    }
    /// Sets the source of the revisions of rows. Default: the system's randomness.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.rows.ids = ids;
        self.changed()
    }

    /// Returns the state of this instance at this moment. It reads nothing.
    #[must_use]
    pub fn status(&self) -> StreamsStatus {
        self.context.status()
    }

    /// Deletes the note that a reconcile is needed, after the operator has reconciled. Returns
    /// false if records were lost again meanwhile: the note stays then.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the note cannot be deleted, after repeats.
    pub async fn reconciled(&self, note: &ReconcileNeeded) -> Result<bool, ControlStoreError> {
        self.rows.reconciled(note.revision).await
    }

    /// Reads and publishes until `shutdown` is ready. Then it finishes what is being published,
    /// writes checkpoints, and hands its shards on. It also [sweeps](Publisher::sweep) every 5 min,
    /// under a lease, and [shows the status](Publisher::show_status) of its publisher.
    ///
    /// What may pass by itself never ends the reader, and what it waits for is in
    /// [`status`](Self::status). If the future is dropped, nothing is lost: other instances take
    /// over after the lease time.
    ///
    /// # Errors
    /// [`StreamsError`] if the first requests are refused: something must be changed before
    /// anything can be read, such as a permission or a missing table.
    pub async fn run(
        &self,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<StreamsReport, StreamsError> {
        let cx = &*self.context;
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let reading = async {
            let fatal = self.read_until(shutdown, &stop).await;
            self.leave().await;
            ended.cancel();
            fatal
        };
        let sweeping = cx.publisher.sweep_every(cx.config.sweep, stop.cancelled());
        let showing = cx.publisher.show_status(ended.cancelled());
        let (fatal, (), ()) = tokio::join!(reading, sweeping, showing);
        let status = cx.status();
        match fatal {
            Some(error) => Err(error),
            None => Ok(StreamsReport {
                messages: status.messages,
                set_aside: status.set_aside,
            }),
        }
    }

    /// Reads shards until `shutdown` is ready and all of them are handed on. Returns the failure
    /// after which the reader could not go on.
    async fn read_until(
        &self,
        shutdown: impl Future<Output = ()> + Send,
        stop: &CancellationToken,
    ) -> Option<StreamsError> {
        let cx = &*self.context;
        let mut shutdown = pin!(shutdown.fuse());
        let mut reading = FuturesUnordered::new();
        let mut held = BTreeMap::new();
        let mut coordinator = Some(Coordinator::new(cx));
        let mut coordinating = pin!(Fuse::terminated());
        let mut fatal = None;
        loop {
            if !stop.is_cancelled()
                && let Some(coordinator) = coordinator.take()
            {
                let held = held.keys().cloned().collect();
                coordinating.set(coordinator.round(cx, held, stop).fuse());
            }
            if stop.is_cancelled() && reading.is_empty() && coordinating.is_terminated() {
                return fatal;
            }
            tokio::select! {
                biased;
                () = &mut shutdown, if !shutdown.is_terminated() => stop.cancel(),
                Some((shard, end)) = reading.next(), if !reading.is_empty() => {
                    held.remove(&shard);
                    if end == ShardEnd::Done {
                        // The children are looked for at once.
                        cx.shared().describe_now = true;
                        cx.poke.notify_one();
                    }
                }
                (next, round) = &mut coordinating, if !coordinating.is_terminated() => {
                    coordinator = Some(next);
                    for shard in &round.released {
                        let _known = held.get(shard).map(CancellationToken::cancel);
                    }
                    for assignment in round.taken {
                        let released = stop.child_token();
                        held.insert(assignment.shard.clone(), released.clone());
                        reading.push(shard::read(cx, assignment, released));
                    }
                    if round.fatal.is_some() {
                        fatal = round.fatal;
                        stop.cancel();
                    }
                }
            }
        }
    }

    fn members(&self, label: &str) -> Members {
        let lease = self.config.lease;
        self.rows.members(label, &self.instance, lease)
    }

    /// Tells the other instances that this one needs no share any more.
    async fn leave(&self) {
        let stream = {
            let mut shared = self.context.shared();
            shared.status.state = ReaderState::Stopped;
            shared.status.stream.clone()
        };
        if let Some(label) = stream
            && let Err(error) = self.members(&label).leave().await
        {
            let error = foldstream::chain(&error);
            tracing::debug!(error, "the row of this instance expires");
        }
    }
}
