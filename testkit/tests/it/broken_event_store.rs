//! Event stores that each break one rule of the contract, and the proof that every case is needed.
mod append;
mod atomic;
mod heads;
mod lists;
mod read;
mod round_trip;
mod scan;

use crate::matrix::{Suspect, assert_every_case_is_needed};
use async_trait::async_trait;
use foldstream::{
    StreamHead, StreamId,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, ScanCursor, ScanPage, ScanWhat, Segment, StreamPage,
        UnpublishedPage,
    },
};
use foldstream_testkit::{InMemoryEventStore, contract};
use futures::{StreamExt, TryStreamExt, stream};
use std::{fmt::Debug, num::NonZeroU32, sync::Arc};

type Appended = Result<AppendOutcome, EventStoreError>;
type AppendedAll = Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>;
type Commits = Result<Vec<Commit>, EventStoreError>;

/// What a broken store does otherwise than the sound one that it wraps.
#[async_trait]
trait Sabotage: Debug + Default + Send + Sync + 'static {
    fn capabilities(&self, sound: Capabilities) -> Capabilities {
        sound
    }
    async fn append(&self, store: &InMemoryEventStore, append: &Append) -> Appended {
        store.append(append).await
    }
    async fn append_all(&self, store: &InMemoryEventStore, all: &AppendAll) -> AppendedAll {
        store.append_all(all).await
    }
    async fn read(&self, store: &InMemoryEventStore, what: Read) -> Commits {
        what.from(store).await
    }
    async fn streams(
        &self,
        store: &InMemoryEventStore,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        store.streams(aggregate, after).await
    }
    async fn scan(
        &self,
        store: &InMemoryEventStore,
        what: Scan,
    ) -> Result<ScanPage, EventStoreError> {
        what.from(store).await
    }
    async fn unpublished(
        &self,
        store: &InMemoryEventStore,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        store.unpublished(segment, after, limit).await
    }
    async fn clear_unpublished(
        &self,
        store: &InMemoryEventStore,
        commits: &[CommitKey],
    ) -> Result<(), EventStoreError> {
        store.clear_unpublished(commits).await
    }
}

/// The arguments of a read.
#[derive(Clone, Debug)]
struct Read {
    stream: StreamId,
    from: ReadFrom,
    limit: Option<NonZeroU32>,
}

impl Read {
    async fn from(&self, store: &InMemoryEventStore) -> Commits {
        let commits = store.read(&self.stream, self.from.clone(), self.limit);
        commits.try_collect().await
    }
    fn is_backwards(&self) -> bool {
        matches!(self.from, ReadFrom::Newest | ReadFrom::NewestAtOrBelow(_))
    }
}

/// The arguments of a scan.
#[derive(Clone, Debug)]
struct Scan {
    segment: Segment,
    after: Option<ScanCursor>,
    what: ScanWhat,
    max_items: NonZeroU32,
}

impl Scan {
    async fn from(&self, store: &InMemoryEventStore) -> Result<ScanPage, EventStoreError> {
        let after = self.after.clone();
        store
            .scan(self.segment, after, self.what, self.max_items)
            .await
    }
}

/// The whole of a stream, oldest first.
async fn history(store: &InMemoryEventStore, stream: &StreamId) -> Vec<Commit> {
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    store.read(stream, start, None).try_collect().await.unwrap()
}

/// Where a stream ends.
async fn tail(store: &InMemoryEventStore, stream: &StreamId) -> StreamHead {
    let commits = history(store, stream).await;
    let empty = || StreamHead::empty(stream.clone());
    commits.last().map_or_else(empty, Commit::head)
}

/// A sound store with one thing changed.
#[derive(Debug)]
struct Broken<S> {
    store: Arc<InMemoryEventStore>,
    sabotage: S,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: Sabotage> EventStore for Broken<S> {
    fn capabilities(&self) -> Capabilities {
        self.sabotage.capabilities(self.store.capabilities())
    }
    fn incarnation(&self) -> u64 {
        self.store.incarnation()
    }
    fn identity(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
    async fn append(&self, append: &Append) -> Appended {
        self.sabotage.append(&self.store, append).await
    }
    async fn append_all(&self, all: &AppendAll) -> AppendedAll {
        self.sabotage.append_all(&self.store, all).await
    }
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        let what = Read {
            stream: stream.clone(),
            from,
            limit,
        };
        stream::once(self.sabotage.read(&self.store, what))
            .map_ok(|commits| stream::iter(commits.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        self.sabotage.streams(&self.store, aggregate, after).await
    }
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanWhat,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        let what = Scan {
            segment,
            after,
            what,
            max_items,
        };
        self.sabotage.scan(&self.store, what).await
    }
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        self.sabotage
            .unpublished(&self.store, segment, after, limit)
            .await
    }
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        self.sabotage.clear_unpublished(&self.store, commits).await
    }
}

/// Changes nothing: the wrapper itself must not break a rule.
#[derive(Debug, Default)]
struct Nothing;
#[async_trait]
impl Sabotage for Nothing {}

/// Bytes of a commit: small, since hundreds of cases try to exceed it.
const LIMIT: usize = 200_000;

type Suspects = Vec<Suspect<Arc<dyn EventStore>>>;

/// Breaks a store that can do everything.
fn full<S: Sabotage>(rejected_by: &'static [&'static str]) -> Suspect<Arc<dyn EventStore>> {
    Suspect::new::<S>(
        &[
            "atomic_append",
            "unpublished",
            "atomic_append_and_unpublished",
        ],
        || {
            Arc::new(Broken {
                store: InMemoryEventStore::with_capabilities(
                    Capabilities::new(LIMIT)
                        .with_max_event_bytes(LIMIT / 4 * 3)
                        .with_streams_per_append(10)
                        .with_unpublished_list(true),
                ),
                sabotage: S::default(),
            })
        },
        rejected_by,
    )
}

/// Breaks a store without optional capabilities.
fn plain<S: Sabotage>(rejected_by: &'static [&'static str]) -> Suspect<Arc<dyn EventStore>> {
    Suspect::new::<S>(
        &["single_stream_append", "no_unpublished"],
        || {
            Arc::new(Broken {
                store: InMemoryEventStore::with_capabilities(Capabilities::new(LIMIT)),
                sabotage: S::default(),
            })
        },
        rejected_by,
    )
}

/// Breaks a store that looks at nothing but the slot after a head.
fn slots_only<S: Sabotage>(rejected_by: &'static [&'static str]) -> Suspect<Arc<dyn EventStore>> {
    Suspect::new::<S>(
        &[
            "atomic_append",
            "unpublished",
            "atomic_append_and_unpublished",
        ],
        || {
            Arc::new(Broken {
                store: InMemoryEventStore::with_capabilities(
                    Capabilities::new(LIMIT)
                        .with_max_event_bytes(LIMIT / 4 * 3)
                        .with_streams_per_append(10)
                        .with_unpublished_list(true)
                        .with_checked_heads(false),
                ),
                sabotage: S::default(),
            })
        },
        rejected_by,
    )
}

#[test]
fn every_case_rejects_a_broken_event_store() {
    let sound = vec![
        full::<Nothing>(&[]),
        plain::<Nothing>(&[]),
        slots_only::<Nothing>(&[]),
    ];
    let suspects: Suspects = [
        sound,
        append::suspects(),
        atomic::suspects(),
        heads::suspects(),
        read::suspects(),
        round_trip::suspects(),
        scan::suspects(),
        lists::suspects(),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert_every_case_is_needed(&contract::event_store::cases(), &suspects);
}
