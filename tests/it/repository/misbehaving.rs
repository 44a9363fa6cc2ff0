//! An event store whose calls a test steps into: to hold them, to count them, to let others in between. What only fails,
//! delays or loses is written with the testkit's faults.
use crate::support::Account;
use async_trait::async_trait;
use foldstream::{
    Repository, StreamHead, StreamId,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, ScanCursor, ScanPage, ScanWhat, Segment, StreamPage,
        UnpublishedPage,
    },
};
use foldstream_testkit::InMemoryEventStore;
use futures::{FutureExt, StreamExt};
use std::{num::NonZeroU32, sync::Arc};

/// What a misbehaving store does at its next calls.
#[async_trait]
pub(super) trait Mischief: std::fmt::Debug + Send + Sync + 'static {
    /// Instead of an append.
    async fn append(
        &self,
        inner: &dyn EventStore,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        inner.append(append).await
    }
    /// When a read begins.
    fn reading(&self) {}
    /// Before a read answers.
    async fn before_read(&self) {}
}

/// An event store that misbehaves.
#[derive(Debug)]
pub(super) struct Misbehaving<M> {
    pub(super) inner: Arc<dyn EventStore>,
    pub(super) mischief: M,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<M: Mischief> EventStore for Misbehaving<M> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn incarnation(&self) -> u64 {
        self.inner.incarnation()
    }
    fn identity(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        self.mischief.append(&*self.inner, append).await
    }
    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        self.inner.append_all(all).await
    }
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        self.mischief.reading();
        let commits = self.inner.read(stream, from, limit);
        let commits = async move {
            self.mischief.before_read().await;
            commits
        };
        commits.flatten_stream().boxed()
    }
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        self.inner.streams(aggregate, after).await
    }
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanWhat,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        self.inner.scan(segment, after, what, max_items).await
    }
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        self.inner.unpublished(segment, after, limit).await
    }
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        self.inner.clear_unpublished(commits).await
    }
}

/// A repository over such a store, and the store below it.
pub(super) fn misbehaving(
    mischief: impl Mischief,
) -> (Arc<InMemoryEventStore>, Repository<Account>) {
    let inner = InMemoryEventStore::new();
    let store = Misbehaving {
        inner: inner.clone(),
        mischief,
    };
    (inner, Repository::new(Arc::new(store)))
}
