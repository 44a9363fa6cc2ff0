//! The fault wrappers: the effect of each fault, the replay of a seed, and the contract suites
//! through benign faults.
mod event_store;
mod process;
mod schedule;
mod small_stores;
mod bus;
mod topics;
mod suites;

use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp,
    ports::{
        Append, AppendOutcome, Commit, EventData, EventStore, EventStoreError, ReadFrom, Revision,
        Row, RowKey,
    },
};
use futures::TryStreamExt;

fn stream(id: &str) -> StreamId {
    StreamId::new("cart", id).unwrap()
}

/// Creates a commit with this number of events.
fn commit(head: StreamHead, events: usize) -> Append {
    let events = vec![EventData::new("Added", 1, "{}"); events];
    Append::after(head, CommitId::random(), Timestamp::from_micros(1), events)
}
fn first_commit(id: &str, events: usize) -> Append {
    commit(StreamHead::empty(stream(id)), events)
}

async fn appended(store: &dyn EventStore, append: &Append) -> StreamHead {
    match store.append(append).await.unwrap() {
        AppendOutcome::Appended(head) => head,
        other => panic!("{other:?}"),
    }
}
/// Stores commits of one event each.
async fn filled(store: &dyn EventStore, id: &str, commits: usize) -> StreamHead {
    let mut head = StreamHead::empty(stream(id));
    for _ in 0..commits {
        head = appended(store, &commit(head, 1)).await;
    }
    head
}
async fn history(store: &dyn EventStore, id: &str) -> Result<Vec<Commit>, EventStoreError> {
    let start = ReadFrom::After(StreamHead::empty(stream(id)));
    store.read(&stream(id), start, None).try_collect().await
}
async fn versions(store: &dyn EventStore, id: &str) -> Vec<u64> {
    let commits = history(store, id).await.unwrap();
    commits.iter().map(|c| c.first_version.get()).collect()
}

fn row(value: &'static str, revision: u128) -> Row {
    Row::new(RowKey::new("p", "s"), value, Revision::from_u128(revision))
}
