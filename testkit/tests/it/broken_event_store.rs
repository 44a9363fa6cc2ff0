//! Event stores that each break one rule of the contract, and the proof that every case is needed.
mod append;
mod atomic;
mod heads;
mod limits;
mod lists;
mod races;
mod read;
mod repeats;
mod round_trip;
mod scan;

use crate::matrix::{Suspect, assert_every_case_is_needed};
use foldstream::{
    CommitId, StreamHead, StreamId,
    ports::{Append, AppendOutcome, Capabilities, Commit, EventStore, EventStoreError, ReadFrom},
};
use foldstream_testkit::{
    InMemoryEventStore, contract,
    intercept::{self, Commits, EventStoreLayer, Read, Scan},
};
use futures::TryStreamExt;
use std::sync::Arc;

type Store = Arc<dyn EventStore>;
type Appended = Result<AppendOutcome, EventStoreError>;
type AppendedAll = Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>;
type Answer<'a> = Result<Commits<'a>, EventStoreError>;

fn is_backwards(read: &Read) -> bool {
    matches!(read.from, ReadFrom::Newest | ReadFrom::NewestAtOrBelow(_))
}

/// Returns the whole stream, oldest commit first.
async fn history(store: &Store, stream: &StreamId) -> Vec<Commit> {
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    store.read(stream, start, None).try_collect().await.unwrap()
}

/// Returns the head of the last commit of a stream.
async fn tail(store: &Store, stream: &StreamId) -> StreamHead {
    let commits = history(store, stream).await;
    let empty = || StreamHead::empty(stream.clone());
    commits.last().map_or_else(empty, Commit::head)
}

/// Appends the events of a request at the tail, wherever the tail is by now.
async fn append_at_the_tail(store: &Store, append: &Append) -> Appended {
    let head = tail(store, append.head.stream()).await;
    let mut forced = append.clone();
    forced.head = head;
    forced.commit_id = CommitId::random();
    store.append(&forced).await
}

/// A layer that changes nothing, which shows that the wrapper itself breaks no rule.
#[derive(Debug, Default)]
struct Nothing;
impl EventStoreLayer for Nothing {}

/// The maximum size of a commit in bytes. It is small, because hundreds of cases try to exceed it.
const LIMIT: usize = 200_000;

type Suspects = Vec<Suspect<Arc<dyn EventStore>>>;

/// Breaks a store with all capabilities.
fn full<L: EventStoreLayer + Default>(
    rejected_by: &'static [&'static str],
) -> Suspect<Arc<dyn EventStore>> {
    Suspect::new::<L>(
        &[
            "atomic_append",
            "unpublished",
            "atomic_append_and_unpublished",
        ],
        || {
            intercept::event_store(
                InMemoryEventStore::with_capabilities(
                    Capabilities::new(LIMIT)
                        .with_max_event_bytes(LIMIT / 4 * 3)
                        .with_streams_per_append(10)
                        .with_unpublished_list(true),
                ),
                L::default(),
            )
        },
        rejected_by,
    )
}

/// Breaks a store without optional capabilities.
fn plain<L: EventStoreLayer + Default>(
    rejected_by: &'static [&'static str],
) -> Suspect<Arc<dyn EventStore>> {
    Suspect::new::<L>(
        &["single_stream_append", "no_unpublished"],
        || {
            intercept::event_store(
                InMemoryEventStore::with_capabilities(Capabilities::new(LIMIT)),
                L::default(),
            )
        },
        rejected_by,
    )
}

/// Breaks a store that checks only the slot after a head.
fn slots_only<L: EventStoreLayer + Default>(
    rejected_by: &'static [&'static str],
) -> Suspect<Arc<dyn EventStore>> {
    Suspect::new::<L>(
        &[
            "atomic_append",
            "unpublished",
            "atomic_append_and_unpublished",
        ],
        || {
            intercept::event_store(
                InMemoryEventStore::with_capabilities(
                    Capabilities::new(LIMIT)
                        .with_max_event_bytes(LIMIT / 4 * 3)
                        .with_streams_per_append(10)
                        .with_unpublished_list(true)
                        .with_checked_heads(false),
                ),
                L::default(),
            )
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
        repeats::suspects(),
        limits::suspects(),
        races::suspects(),
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
