//! Layers over an event store, with the types of their arguments and answers.
use super::Intercepted;
use async_trait::async_trait;
use foldstream::{
    StreamHead, StreamId,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, ScanCursor, ScanPage, ScanScope, Segment, StreamPage,
        UnpublishedPage,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{fmt, num::NonZeroU32, sync::Arc};

/// The arguments of a read, some of which a layer may change before it passes the read on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Read {
    /// The stream that is read from.
    pub stream: StreamId,
    /// The direction and the start of the read.
    pub from: ReadFrom,
    /// The highest number of commits that are read; `None` reads all.
    pub limit: Option<NonZeroU32>,
}

impl Read {
    /// Passes the read on and returns the commits of the store as they come.
    pub fn pass<'a>(&self, inner: &'a Arc<dyn EventStore>) -> Commits<'a> {
        inner
            .read(&self.stream, self.from.clone(), self.limit)
            .into()
    }
    /// Passes the read on, collects all commits and returns them.
    ///
    /// # Errors
    /// If the read fails, with the first error of the store. The commits before it are dropped.
    pub async fn all(&self, inner: &Arc<dyn EventStore>) -> Result<Vec<Commit>, EventStoreError> {
        self.pass(inner).0.try_collect().await
    }
}

/// The arguments of a page of a scan, some of which a layer may change before it passes the call
/// on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Scan {
    /// The segment that is scanned.
    pub segment: Segment,
    /// The cursor after which the page starts; `None` for the first page.
    pub after: Option<ScanCursor>,
    /// The parts of the commits that the page shows.
    pub what: ScanScope,
    /// The highest number of commits on the page.
    pub max_items: NonZeroU32,
}

impl Scan {
    /// Passes the call on and returns the page of the store.
    ///
    /// # Errors
    /// If the scan fails, with the error of the store.
    pub async fn pass(&self, inner: &Arc<dyn EventStore>) -> Result<ScanPage, EventStoreError> {
        let after = self.after.clone();
        inner
            .scan(self.segment, after, self.what, self.max_items)
            .await
    }
}

/// The answer of a layer to a read.
///
/// Converts from a list of commits and from the stream that another read returned.
pub struct Commits<'a>(BoxStream<'a, Result<Commit, EventStoreError>>);

impl<'a> From<BoxStream<'a, Result<Commit, EventStoreError>>> for Commits<'a> {
    fn from(commits: BoxStream<'a, Result<Commit, EventStoreError>>) -> Self {
        Self(commits)
    }
}
impl From<Vec<Commit>> for Commits<'_> {
    fn from(commits: Vec<Commit>) -> Self {
        Self(stream::iter(commits.into_iter().map(Ok)).boxed())
    }
}
impl fmt::Debug for Commits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commits").finish_non_exhaustive()
    }
}

/// A layer over an event store. Every method passes the call on unless the layer overrides it.
///
/// # Example
/// A store that answers a read only after the test permits it.
/// ```
/// use foldstream::{StreamHead, StreamId, ports::*};
/// use foldstream_testkit::{
///     InMemoryEventStore,
///     intercept::{self, Commits, EventStoreLayer, Read, async_trait},
/// };
/// use std::sync::Arc;
/// use tokio::sync::Semaphore;
///
/// struct Gate(Semaphore);
///
/// #[async_trait]
/// impl EventStoreLayer for Gate {
///     async fn read<'a>(
///         &'a self,
///         inner: &'a Arc<dyn EventStore>,
///         read: Read,
///     ) -> Result<Commits<'a>, EventStoreError> {
///         self.0.acquire().await.expect("the gate is never closed").forget();
///         Ok(read.pass(inner))
///     }
/// }
///
/// # use futures::{FutureExt, StreamExt};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let store = intercept::event_store(InMemoryEventStore::new(), Gate(Semaphore::new(0)));
/// let stream = StreamId::new("cart", "a")?;
/// let mut commits = store.read(&stream, ReadFrom::Newest, None);
/// assert!(commits.next().now_or_never().is_none(), "the read waits");
/// store.layer().0.add_permits(1);
/// assert!(commits.next().await.is_none(), "an empty stream");
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
pub trait EventStoreLayer: Send + Sync + 'static {
    /// Returns the capabilities of the store.
    fn capabilities(&self, inner: &Arc<dyn EventStore>) -> Capabilities {
        inner.capabilities()
    }
    /// Returns the store's incarnation, which changes when its table is replaced.
    fn incarnation(&self, inner: &Arc<dyn EventStore>) -> u64 {
        inner.incarnation()
    }
    /// Stores one commit at the head of its stream.
    async fn append(
        &self,
        inner: &Arc<dyn EventStore>,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        inner.append(append).await
    }
    /// Stores all commits of several streams, or none.
    async fn append_all(
        &self,
        inner: &Arc<dyn EventStore>,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        inner.append_all(all).await
    }
    /// Reads commits of one stream.
    ///
    /// This method runs when the caller asks for the first commit, and its waiting delays that
    /// commit. It returns [`read.pass(inner)`](Read::pass), or a list as in `Ok(commits.into())`.
    /// If it fails, the read ends with its error.
    async fn read<'a>(
        &'a self,
        inner: &'a Arc<dyn EventStore>,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        Ok(read.pass(inner))
    }
    /// Lists the streams of an aggregate type.
    async fn streams(
        &self,
        inner: &Arc<dyn EventStore>,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        inner.streams(aggregate, after).await
    }
    /// Reads a page of a scan.
    async fn scan(
        &self,
        inner: &Arc<dyn EventStore>,
        scan: Scan,
    ) -> Result<ScanPage, EventStoreError> {
        scan.pass(inner).await
    }
    /// Lists commits that are not cleared yet.
    async fn unpublished(
        &self,
        inner: &Arc<dyn EventStore>,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        inner.unpublished(segment, after, limit).await
    }
    /// Removes commits from the list of unpublished ones.
    async fn clear_unpublished(
        &self,
        inner: &Arc<dyn EventStore>,
        commits: &[CommitKey],
    ) -> Result<(), EventStoreError> {
        inner.clear_unpublished(commits).await
    }
}

// Denied because a method with a default must pass through the layer too.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<L: EventStoreLayer> EventStore for Intercepted<dyn EventStore, L> {
    fn capabilities(&self) -> Capabilities {
        self.layer.capabilities(&self.inner)
    }
    fn incarnation(&self) -> u64 {
        self.layer.incarnation(&self.inner)
    }
    fn identity(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        self.layer.append(&self.inner, append).await
    }
    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        self.layer.append_all(&self.inner, all).await
    }
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        let read = Read {
            stream: stream.clone(),
            from,
            limit,
        };
        stream::once(self.layer.read(&self.inner, read))
            .map_ok(|Commits(commits)| commits)
            .try_flatten()
            .boxed()
    }
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        self.layer.streams(&self.inner, aggregate, after).await
    }
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanScope,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        let scan = Scan {
            segment,
            after,
            what,
            max_items,
        };
        self.layer.scan(&self.inner, scan).await
    }
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        self.layer
            .unpublished(&self.inner, segment, after, limit)
            .await
    }
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        self.layer.clear_unpublished(&self.inner, commits).await
    }
}
