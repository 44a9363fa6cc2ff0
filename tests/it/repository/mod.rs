//! Rules of the repository.
mod cache;
mod load;
mod once;
mod rules;
mod several;
mod snapshots;

use crate::support::{
    Account, AccountCommand::*, AccountEvent, AccountId, InsufficientFunds, Misbehaving, Mischief,
    no_answer, stream,
};
use async_trait::async_trait;
use foldstream::{
    CodecError, CommitId, ConflictRetry, ExecuteError, ExpectedVersion, LoadError, Metadata,
    Repository, Settled, SnapshotPolicy, StreamHead, Timestamp, Upcast, Upcasters, Version,
    ports::{
        Append, AppendAll, AppendOutcome, Commit, EventData, EventStore, EventStoreError,
        PendingAppend, ReadFrom, RefusedKind, SaveOutcome, SnapshotStore, SnapshotStoreError,
        StoredSnapshot,
    },
};
use foldstream_testkit::{InMemoryEventStore, InMemorySnapshotStore, ManualClock};
use futures::TryStreamExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

pub(super) fn ann() -> AccountId {
    AccountId::from("ann")
}
pub(super) fn accounts(store: &Arc<InMemoryEventStore>) -> Repository<Account> {
    Repository::new(store.clone())
}
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
pub(super) async fn commits(store: &Arc<InMemoryEventStore>) -> Vec<Commit> {
    let all = ReadFrom::After(StreamHead::empty(stream("ann")));
    store
        .read(&stream("ann"), all, None)
        .try_collect()
        .await
        .unwrap()
}
pub(super) fn json(name: &'static str, schema_version: u16, payload: &'static str) -> EventData {
    EventData::new(name, schema_version, payload.as_bytes().to_vec())
}
pub(super) async fn store_raw(store: &InMemoryEventStore, events: Vec<EventData>) -> StreamHead {
    let head = StreamHead::empty(stream("ann"));
    let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
    match store.append(&append).await.unwrap() {
        AppendOutcome::Appended(head) => head,
        other => panic!("{other:?}"),
    }
}
