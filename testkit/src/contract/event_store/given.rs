//! Streams, commits and reads that the cases share.
use crate::contract::support::{PATIENCE, unique};
use foldstream::{
    Backoff, CommitId, RetryPolicy, StreamHead, StreamId, Timestamp, Version,
    adapter::observed_head,
    ports::{
        Append, AppendAll, AppendOutcome, Commit, EventData, EventStore, EventStoreError, ReadFrom,
    },
    resilience::Retryable,
};
use futures::TryStreamExt;
use std::{num::NonZeroU32, sync::Arc, time::Duration};

/// The port that every case takes.
pub(super) type Store = Arc<dyn EventStore>;

/// Returns a stream that no other test uses.
pub(super) fn fresh_stream() -> StreamId {
    stream("contract", &unique())
}

/// Returns a stream from its parts.
pub(super) fn stream(aggregate: &str, id: &str) -> StreamId {
    StreamId::new(aggregate, id).unwrap()
}

/// Returns an aggregate type that no other test uses.
pub(super) fn fresh_type() -> String {
    format!("t-{}", unique())
}

/// Returns `count` events that differ from each other.
pub(super) fn events(count: usize) -> Arc<[EventData]> {
    (0..count)
        .map(|n| EventData::new("Counted", 1, format!(r#"{{"n":{n}}}"#)))
        .collect()
}

/// Returns one event with a JSON string of about `bytes` bytes.
pub(super) fn large_event(bytes: usize) -> EventData {
    EventData::new("Large", 1, format!("\"{}\"", "x".repeat(bytes)))
}

/// Returns an append of `count` events after `head`, with a fresh commit id.
pub(super) fn commit_after(head: &StreamHead, count: usize) -> Append {
    append_of(head, events(count))
}

/// Returns an append of one event that says who wrote it.
pub(super) fn signed_by(head: &StreamHead, writer: usize) -> Append {
    let event = EventData::new("Signed", 1, format!(r#"{{"writer":{writer}}}"#));
    append_of(head, [event])
}

/// Returns an append of these events after `head`, with a fresh commit id.
pub(super) fn append_of(head: &StreamHead, events: impl Into<Arc<[EventData]>>) -> Append {
    Append::after(head.clone(), CommitId::random(), Timestamp::now(), events)
}

/// Appends a commit that must be stored, and returns the new head.
pub(super) async fn must_append(store: &Store, append: &Append) -> StreamHead {
    match store.append(append).await.unwrap() {
        AppendOutcome::Appended(head) => {
            assert_eq!(head, append.head_after(), "the new head");
            head
        }
        other => panic!("an append at the tail was answered by {}", brief(&other)),
    }
}

/// Fills a fresh stream with commits of these lengths and returns them as they must be read back.
pub(super) async fn given(store: &Store, lengths: &[usize]) -> (StreamId, Vec<Commit>) {
    let stream = fresh_stream();
    let commits = given_on(store, &stream, lengths).await;
    (stream, commits)
}

/// Fills an empty stream with commits of these lengths and returns them as they must be read back.
pub(super) async fn given_on(store: &Store, stream: &StreamId, lengths: &[usize]) -> Vec<Commit> {
    let mut head = StreamHead::empty(stream.clone());
    let mut commits = Vec::new();
    for &length in lengths {
        let append = commit_after(&head, length);
        head = must_append(store, &append).await;
        commits.push(append.to_commit());
    }
    commits
}

/// Returns the head of the last of these commits.
pub(super) fn tail(commits: &[Commit]) -> StreamHead {
    commits.last().unwrap().head()
}

/// A head of this stream that nobody has read from it.
pub(super) fn foreign(stream: &StreamId, version: u64) -> StreamHead {
    let (version, time) = (Version::new(version), Timestamp::from_micros(1));
    observed_head(stream.clone(), version, CommitId::random(), time)
}

/// Returns everything that a read returns.
pub(super) async fn try_read(
    store: &Store,
    stream: &StreamId,
    from: ReadFrom,
    limit: Option<u32>,
) -> Result<Vec<Commit>, EventStoreError> {
    let limit = limit.map(|l| NonZeroU32::new(l).unwrap());
    store.read(stream, from, limit).try_collect().await
}

/// Returns everything that a read returns, and panics if the read fails.
pub(super) async fn read(
    store: &Store,
    stream: &StreamId,
    from: ReadFrom,
    limit: Option<u32>,
) -> Vec<Commit> {
    try_read(store, stream, from, limit).await.unwrap()
}

/// Returns the whole stream, oldest commit first.
pub(super) async fn history(store: &Store, stream: &StreamId) -> Vec<Commit> {
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    read(store, stream, start, None).await
}

/// Asserts that two lists of commits are equal. Versions are compared first, so that a failure is
/// readable.
pub(super) fn assert_commits(what: &str, found: &[Commit], expected: &[Commit]) {
    let places = |commits: &[Commit]| -> Vec<(u64, usize, CommitId)> {
        let place = |c: &Commit| (c.first_version.get(), c.events.len(), c.id);
        commits.iter().map(place).collect()
    };
    assert_eq!(
        places(found),
        places(expected),
        "{what}: (version, length, id)"
    );
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "{what}");
    }
}

/// Asserts that the stream holds exactly these commits.
pub(super) async fn assert_history(store: &Store, stream: &StreamId, expected: &[Commit]) {
    assert_commits("the history", &history(store, stream).await, expected);
}

/// Asserts that versions continue from 1 without gaps.
pub(super) fn assert_contiguous(commits: &[Commit]) {
    let mut next = Version::new(1);
    for commit in commits {
        assert_eq!(commit.first_version, next, "a gap or an overlap");
        next = commit.last_version().next();
    }
}

/// Asserts that an append was a conflict of this stream that names no version above its tail.
pub(super) fn assert_conflict<T: std::fmt::Debug>(
    outcome: &AppendOutcome<T>,
    head: &StreamHead,
    tail: Version,
) {
    let AppendOutcome::Conflict(conflict) = outcome else {
        panic!("expected a conflict, found {}", brief(outcome));
    };
    assert_eq!(
        &conflict.stream,
        head.stream(),
        "the stream of the conflict"
    );
    assert_eq!(conflict.expected, head.version(), "what was expected");
    assert!(
        conflict.actual.is_none_or(|actual| actual <= tail),
        "the conflict names {:?}, the tail is {tail}",
        conflict.actual
    );
}

/// Asserts that an append was a repeat of this stored commit.
pub(super) fn assert_repeated<T: std::fmt::Debug>(outcome: &AppendOutcome<T>, stored: &[Commit]) {
    let AppendOutcome::Repeated(found) = outcome else {
        panic!("expected a repeat, found {}", brief(outcome));
    };
    assert_commits("the repeat", found, stored);
}

/// Asserts that a request was refused as malformed.
pub(super) fn assert_invalid<T: std::fmt::Debug>(answer: &Result<T, EventStoreError>) {
    assert!(
        matches!(answer, Err(EventStoreError::Invalid { .. })),
        "expected Invalid, found {answer:.300?}"
    );
}

/// Returns the text of an outcome without its payloads.
pub(super) fn brief<T>(outcome: &AppendOutcome<T>) -> String {
    match outcome {
        AppendOutcome::Appended(_) => "Appended".into(),
        AppendOutcome::Repeated(stored) => format!("Repeated({} commits)", stored.len()),
        AppendOutcome::Conflict(conflict) => conflict.to_string(),
    }
}

/// The retries of a request to a busy backend, as a caller makes them.
const BUSY: RetryPolicy = RetryPolicy::new(
    Backoff::new(Duration::from_millis(20), Duration::from_millis(200)),
    PATIENCE,
);

/// Appends under contention, with retries while the backend is busy.
pub(super) async fn append_settled(store: &Store, append: &Append) -> AppendOutcome {
    let append = (|| store.append(append)).retry(BUSY);
    let settled = append.when(EventStoreError::is_transient).run().await;
    settled.unwrap()
}

/// Appends to several streams as [`append_settled`] does to one.
pub(super) async fn append_all_settled(
    store: &Store,
    all: &AppendAll,
) -> AppendOutcome<Vec<StreamHead>> {
    let append = (|| store.append_all(all)).retry(BUSY);
    let settled = append.when(EventStoreError::is_transient).run().await;
    settled.unwrap()
}
