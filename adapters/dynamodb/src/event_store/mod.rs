//! `EventStore` on the events table.
mod append;
mod read;
mod scan;
mod lists;
mod cursor;
mod query;
mod encode;
mod decode;
mod events;

pub(crate) use encode::FORMAT;

use crate::{
    DynamoDb, DynamoDbConfig, DynamoDbError, PublishMode,
    attributes::{MAX_COMMIT_BYTES, MAX_EVENT_BYTES, MAX_TRANSACTION_ITEMS},
    client::Connection,
};
use async_trait::async_trait;
use foldstream::{
    StreamHead, StreamId,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, RefusedKind, ScanCursor, ScanPage, ScanWhat, Segment,
        StreamPage, UnpublishedPage,
    },
};
use std::num::NonZeroU32;

/// Streams that one transaction can write or check.
const MAX_STREAMS: u32 = MAX_TRANSACTION_ITEMS as u32;

/// The event store: one item is one commit, written by one conditional put. A commit that is larger than an item, and
/// commits on several streams, are written by one transaction.
///
/// Cloning is a reference count.
#[derive(Clone, Debug)]
pub struct DynamoDbEventStore {
    connection: Connection,
}

impl DynamoDbEventStore {
    /// Connects, and checks that the tables are of this process's format. [`DynamoDb`] gives all stores over one
    /// connection, and takes a client of your own.
    ///
    /// # Errors
    /// [`DynamoDbError`]: a configuration that cannot work, a table that is missing or of another format.
    pub async fn connect(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        Ok(DynamoDb::connect(config).await?.event_store())
    }

    pub(crate) const fn over(connection: Connection) -> Self {
        Self { connection }
    }

    fn marks(&self) -> bool {
        self.connection.config().publish_mode == PublishMode::Poller
    }
}

/// What the adapter cannot do, as its capabilities say.
fn unsupported(reason: &str) -> EventStoreError {
    EventStoreError::Refused {
        kind: RefusedKind::Unsupported,
        reason: reason.into(),
        source: reason.into(),
    }
}

#[async_trait]
impl EventStore for DynamoDbEventStore {
    fn capabilities(&self) -> Capabilities {
        let capabilities = if self.connection.has_transactions() {
            Capabilities::new(MAX_COMMIT_BYTES)
                .with_max_event_bytes(MAX_EVENT_BYTES)
                .with_streams_per_append(MAX_STREAMS)
        } else {
            Capabilities::new(MAX_EVENT_BYTES)
        };
        capabilities.with_unpublished_list(self.marks())
    }

    fn identity(&self) -> usize {
        self.connection.identity()
    }

    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        append.validate_for(&self.capabilities())?;
        let commits = std::slice::from_ref(append);
        Ok(
            match append::append(&self.connection, commits, &[]).await? {
                AppendOutcome::Appended(_) => AppendOutcome::Appended(append.head_after()),
                AppendOutcome::Repeated(commits) => AppendOutcome::Repeated(commits),
                AppendOutcome::Conflict(conflict) => AppendOutcome::Conflict(conflict),
            },
        )
    }

    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        all.validate()?;
        let (touched, most) = (
            all.commits.len() + all.unchanged.len(),
            self.capabilities().max_streams_per_append as usize,
        );
        if touched > most {
            return Err(unsupported(&format!(
                "an append touches {touched} streams, at most {most} can be written or checked together; see capabilities()"
            )));
        }
        all.validate_for(&self.capabilities())?;
        append::append(&self.connection, &all.commits, &all.unchanged).await
    }

    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        read::read(self.connection.clone(), stream.clone(), from, limit)
    }

    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        lists::streams(&self.connection, aggregate, after).await
    }

    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanWhat,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        scan::scan(&self.connection, segment, after, what, max_items).await
    }

    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        if !self.marks() {
            return Err(unsupported(
                "commits are not marked in publish_mode Stream: the table's change stream tells of them",
            ));
        }
        lists::unpublished(&self.connection, segment, after, limit).await
    }

    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        if !self.marks() {
            return Ok(());
        }
        lists::clear_unpublished(&self.connection, commits).await
    }
}
