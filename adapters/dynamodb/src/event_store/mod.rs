//! The `EventStore` port on the events table.
mod append;
mod read;
mod scan;
mod lists;
mod cursor;
mod gapless;
mod query;
mod encode;
mod decode;
mod events_attribute;

pub(crate) use encode::FORMAT;

use crate::{
    DynamoDb, DynamoDbConfig, DynamoDbError,
    attributes::Attributes,
    client::Connection,
    limits::{
        MAX_COMMIT_BYTES, MAX_EVENT_BYTES, MAX_ITEM_BYTES, MAX_STREAMS, MAX_TRANSACTION_BYTES,
    },
    tables::describe,
};
use async_trait::async_trait;
use foldstream::{
    StreamHead, StreamId,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, RefusedKind, ScanCursor, ScanPage, ScanScope, Segment,
        StreamPage, UnpublishedPage,
    },
};
use futures::{StreamExt as _, TryStreamExt as _};
use std::num::NonZeroU32;

/// Returns the commit that an item holds as a whole; `None` for a part of a split commit, and for
/// an item that this build cannot read or whose key is another one.
pub(crate) fn decode_commit(key: &CommitKey, item: Attributes) -> Option<Commit> {
    let item = decode::StoredItem::read(item).ok()?;
    if item.parts != 1 || item.first != key.first_version {
        return None;
    }
    let mut names = events_attribute::Names::default();
    decode::join(&key.stream, item, Vec::new(), &mut names).ok()
}

/// Returns the items of a commit, for tests of whatever reads them.
#[cfg(test)]
pub(crate) fn encode_commit(
    append: &Append,
    config: &DynamoDbConfig,
) -> Result<Vec<Attributes>, EventStoreError> {
    encode::items(append, config, true)
}

/// The event store on DynamoDB: one item is one commit, written by one conditional put.
///
/// A commit that is larger than an item, and commits on several streams, are written by one
/// transaction. Cloning is a reference count.
#[derive(Clone, Debug)]
pub struct DynamoDbEventStore {
    connection: Connection,
}

impl DynamoDbEventStore {
    /// Connects and checks that this process may use the tables.
    ///
    /// [`DynamoDb`] provides all stores over one connection, and accepts the caller's own client.
    ///
    /// # Errors
    /// The same as [`DynamoDb::connect`].
    pub async fn connect(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        Ok(DynamoDb::connect(config).await?.event_store())
    }

    pub(crate) const fn over(connection: Connection) -> Self {
        Self { connection }
    }

    /// Replaces the error "no such table" by `Replaced` if another table has that name by now.
    async fn explained<T>(&self, answer: Result<T, EventStoreError>) -> Result<T, EventStoreError> {
        let (kind, reason, source) = match answer {
            Err(EventStoreError::Refused {
                kind: kind @ RefusedKind::MissingTable,
                reason,
                source,
            }) => (kind, reason, source),
            answer => return answer,
        };
        let table = self.connection.events();
        // The table may still be missing, or this process may not describe it. The first error is
        // the better answer then.
        let found = describe(&self.connection, table).await;
        if found.is_ok_and(|found| self.connection.incarnation().is_news(&found)) {
            return Err(EventStoreError::Replaced {
                reason: format!(
                    "table {table} was deleted and made again, or restored, while this process used it; what was read before is \
                     dropped. If it was restored from a backup, stop all writers and publishers and follow the runbook \
                     \"After a restore\" of foldstream-dynamodb"
                ),
                source,
            });
        }
        Err(EventStoreError::Refused {
            kind,
            reason,
            source,
        })
    }

    fn has_markers(&self) -> bool {
        self.connection.config().marks_commits()
    }
}

/// Creates the error of a request that the capabilities of the adapter exclude.
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
                .with_max_part_bytes(MAX_ITEM_BYTES)
                .with_max_append_bytes(MAX_TRANSACTION_BYTES)
                .with_streams_per_append(MAX_STREAMS)
        } else {
            Capabilities::new(MAX_EVENT_BYTES)
        };
        // A condition sees only the item in the slot, so heads are not checked.
        capabilities
            .with_unpublished_list(self.has_markers())
            .with_checked_heads(false)
    }

    fn identity(&self) -> usize {
        self.connection.identity()
    }

    fn incarnation(&self) -> u64 {
        self.connection.incarnation().number()
    }

    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        append.validate_for(&self.capabilities())?;
        let commits = std::slice::from_ref(append);
        let outcome = append::append(&self.connection, commits, &[]).await;
        Ok(match self.explained(outcome).await? {
            AppendOutcome::Appended(_) => AppendOutcome::Appended(append.head_after()),
            AppendOutcome::Repeated(commits) => AppendOutcome::Repeated(commits),
            AppendOutcome::Conflict(conflict) => AppendOutcome::Conflict(conflict),
        })
    }

    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        all.validate_for(&self.capabilities())?;
        let outcome = append::append(&self.connection, &all.commits, &all.unchanged).await;
        self.explained(outcome).await
    }

    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        read::read(self.connection.clone(), stream.clone(), from, limit)
            .or_else(|error| self.explained(Err(error)))
            .boxed()
    }

    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        let page = lists::streams(&self.connection, aggregate, after).await;
        self.explained(page).await
    }

    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanScope,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        let page = scan::scan(&self.connection, segment, after, what, max_items).await;
        self.explained(page).await
    }

    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        if !self.has_markers() {
            return Err(unsupported(
                "commits have no markers in publish mode stream: the table's change stream tells of them",
            ));
        }
        let page = lists::unpublished(&self.connection, segment, after, limit).await;
        self.explained(page).await
    }

    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        if !self.has_markers() {
            return Ok(());
        }
        let cleared = lists::clear_unpublished(&self.connection, commits).await;
        self.explained(cleared).await
    }
}
