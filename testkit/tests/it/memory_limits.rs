//! Production limits in the in-memory stores: DynamoDB accepts everything that they accept.
use foldstream::{
    Clock, CommitId, StreamHead, StreamId, Timestamp, Version,
    adapter::observed_head,
    ports::{
        Append, AppendAll, AppendOutcome, ControlStore, EventData, EventStore, EventStoreError,
        Expect, PutOutcome, RangeQuery, ReadFrom, RefusedKind, Revision, Row, RowKey,
        SnapshotStore, SnapshotStoreError, SortBounds, StoredSnapshot,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemorySnapshotStore, ManualClock,
};
use futures::StreamExt;
use std::time::Duration;

const PART: usize = 390 * 1024;

fn stream(id: impl std::fmt::Display) -> StreamId {
    StreamId::new("cart", &id).unwrap()
}
/// Creates a commit of events with payloads of these sizes, on a stream of its own.
fn commit(id: impl std::fmt::Display, payloads: &[usize]) -> Append {
    let payload = |bytes: &usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let events = payloads.iter().map(payload);
    let events: Vec<_> = events
        .map(|json| EventData::new("Added", 1, json))
        .collect();
    let head = StreamHead::empty(stream(id));
    Append::after(head, CommitId::random(), Timestamp::now(), events)
}
fn small(count: usize) -> Vec<Append> {
    (0..count).map(|n| commit(n, &[2])).collect()
}

#[test]
fn parts_are_filled_with_whole_events_in_order() {
    for (payloads, parts) in [
        (&[2][..], 1),
        (&[PART - 32 - 5], 1),
        (&[200_000, 190_000], 1),
        (&[200_000, 200_000], 2),
        (&[200_000, 2, 200_000], 2),
        (&[300_000, 300_000, 300_000], 3),
        // An event that leaves no room for the overhead of a part is still one part.
        (&[2, PART - 32 - 5, 2], 3),
    ] {
        assert_eq!(commit("a", payloads).parts(PART), parts, "{payloads:?}");
        assert_eq!(commit("a", payloads).parts(usize::MAX), 1);
    }
    let two = commit("a", &[200_000, 200_000]);
    let id = "cart#a".len();
    assert_eq!(two.bytes_in_parts(usize::MAX), two.bytes() + 128);
    assert_eq!(two.bytes_in_parts(PART), two.bytes() + 2 * 128 + id);
}

#[tokio::test]
async fn an_append_of_more_parts_than_a_transaction_has_items_is_unsupported() {
    let store = InMemoryEventStore::new();
    // 60 streams are accepted, until the parts of some of them are more than 100 items.
    let mut split = small(96);
    split.push(commit("large-1", &[300_000, 300_000, 300_000]));
    split.push(commit("large-2", &[300_000, 300_000]));
    let checked = AppendAll::new(split[2..].to_vec()).with_unchanged(
        (0..3)
            .map(|n| StreamHead::empty(stream(format!("read-{n}"))))
            .collect(),
    );
    for all in [AppendAll::new(split.clone()), checked] {
        let error = store.append_all(&all).await.unwrap_err();
        assert!(
            matches!(
                error,
                EventStoreError::Refused {
                    kind: RefusedKind::Unsupported,
                    ..
                }
            ),
            "{error:?}"
        );
        let text = error.to_string();
        for said in ["needs 1", "at most 100", "2 are over 390 KiB"] {
            assert!(text.contains(said), "{text}");
        }
        assert!(error.is_certainly_not_applied());
    }
    let none = store
        .read(&stream("large-1"), ReadFrom::Newest, None)
        .count()
        .await;
    assert_eq!(none, 0);
    let all = AppendAll::new(split[1..].to_vec());
    let outcome = store.append_all(&all).await.unwrap();
    assert!(matches!(outcome, AppendOutcome::Appended(heads) if heads.len() == 97));
}

#[tokio::test]
async fn an_append_over_a_transaction_with_what_it_adds_is_too_large() {
    let store = InMemoryEventStore::new();
    // 100 commits of 3,993,000 bytes together are within 3,900 KiB, but not with the overhead of
    // each.
    let overhead = commit("00", &[2]).bytes() - 2;
    let all = (10..110)
        .map(|n| commit(n % 100, &[39_930 - overhead]))
        .collect();
    match store.append_all(&AppendAll::new(all)).await {
        Err(EventStoreError::TooLarge { bytes, limit, .. }) => {
            assert_eq!(limit, 4_000_000);
            assert!(bytes > limit, "{bytes}");
        }
        other => panic!("{other:.300?}"),
    }
    let all = (10..110)
        .map(|n| commit(n % 100, &[39_800 - overhead]))
        .collect();
    let outcome = store.append_all(&AppendAll::new(all)).await.unwrap();
    assert!(matches!(outcome, AppendOutcome::Appended(_)));
}

#[tokio::test]
async fn a_store_with_dynamodbs_capabilities_takes_a_head_above_the_tail() {
    let above = |head: &StreamHead| {
        let version = Version::new(head.version().get() + 5);
        let head = observed_head(
            head.stream().clone(),
            version,
            CommitId::random(),
            Timestamp::now(),
        );
        let events = [EventData::new("Added", 1, "{}")];
        Append::after(head, CommitId::random(), Timestamp::now(), events)
    };
    let (strict, as_dynamodb) = (
        InMemoryEventStore::new(),
        InMemoryEventStore::with_capabilities(InMemoryEventStore::DYNAMODB),
    );
    let first = commit("a", &[2]);
    for store in [&strict, &as_dynamodb] {
        assert!(matches!(
            store.append(&first).await.unwrap(),
            AppendOutcome::Appended(_)
        ));
    }
    let append = above(&first.head_after());
    assert!(matches!(
        strict.append(&append).await.unwrap(),
        AppendOutcome::Conflict(_)
    ));
    assert!(matches!(
        as_dynamodb.append(&append).await.unwrap(),
        AppendOutcome::Appended(_)
    ));
    let read: Vec<_> = as_dynamodb
        .read(first.head.stream(), ReadFrom::Newest, None)
        .collect()
        .await;
    assert!(
        matches!(read.last(), Some(Err(EventStoreError::Corrupt { .. }))),
        "{read:?}"
    );
    assert_eq!(
        strict.capabilities(),
        as_dynamodb.capabilities().with_checked_heads(true)
    );
}

#[tokio::test]
async fn a_row_expires_at_a_whole_second() {
    let clock = ManualClock::new();
    let store = InMemoryControlStore::with_clock(clock.clone());
    let start = clock.now();
    let key = RowKey::new("p", "s");
    let row = Row::new(key.clone(), "v", Revision::from_u128(1))
        .with_expiry(Some(start.plus(Duration::from_millis(1_500))));
    assert_eq!(
        store.put(&row, Expect::Absent).await.unwrap(),
        PutOutcome::Written
    );
    let stored = store.get(&key).await.unwrap().unwrap();
    assert_eq!(stored.expires_at, Some(start.plus(Duration::from_secs(2))));
    clock.advance(Duration::from_millis(1_999));
    assert!(store.get(&key).await.unwrap().is_some());
    clock.advance(Duration::from_millis(1));
    assert!(store.get(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_bound_that_no_sort_key_of_dynamodb_has_is_invalid() {
    let store = InMemoryControlStore::new();
    let of = |bytes: usize| "x".repeat(bytes);
    for (bytes, is_taken) in [(1_024, true), (1_025, false)] {
        for query in [
            RangeQuery::new("p").with_bounds(SortBounds::Prefix(of(bytes))),
            RangeQuery::new("p").with_bounds(SortBounds::Between(of(bytes), of(1_024))),
            RangeQuery::new("p").with_bounds(SortBounds::Between(of(1), of(bytes))),
            RangeQuery::new("p").with_after(Some(of(bytes))),
        ] {
            let answer = store.range(&query).await;
            assert_eq!(answer.is_ok(), is_taken, "{bytes}: {answer:?}");
        }
    }
}

fn snapshot(version: u64, bytes: usize) -> StoredSnapshot {
    let (version, id) = (Version::new(version), CommitId::from_u128(1));
    StoredSnapshot::new(stream("a"), version, id, 1, vec![0; bytes].into())
}

#[tokio::test]
async fn a_snapshot_is_measured_by_the_port() {
    let store = InMemorySnapshotStore::new();
    let own = snapshot(1, 0).bytes();
    assert_eq!(own, "cart#a".len() + StoredSnapshot::OVERHEAD_BYTES);
    store.save(&snapshot(1, PART - own)).await.unwrap();
    match store.save(&snapshot(2, PART - own + 1)).await {
        Err(SnapshotStoreError::TooLarge { bytes, limit, .. }) => {
            assert_eq!((bytes, limit), (PART + 1, PART));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_save_is_seen_by_a_later_load_where_loads_lag() {
    let store = InMemorySnapshotStore::new();
    let version = async || {
        let found = store.load(&stream("a")).await.unwrap();
        found.map(|snapshot| snapshot.version.get())
    };
    store.set_lag(2);
    store.save(&snapshot(1, 1)).await.unwrap();
    assert_eq!(
        [version().await, version().await, version().await],
        [None, None, Some(1)]
    );
    store.save(&snapshot(2, 1)).await.unwrap();
    store.save(&snapshot(3, 1)).await.unwrap();
    assert_eq!(
        [version().await, version().await, version().await],
        [Some(1), Some(1), Some(3)]
    );
    // Conditions are checked against the stored state.
    store.save(&snapshot(5, 1)).await.unwrap();
    let stale = store.save(&snapshot(4, 1)).await.unwrap();
    assert_eq!(stale, foldstream::ports::SaveOutcome::Stale);
    store.set_lag(0);
    assert_eq!(version().await, Some(5));
}
