//! Promises of the in-memory event store beyond the contract suite: laziness, cursors, bounds,
//! determinism.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
use foldstream::{
    CommitId, IdSource, Metadata, StreamHead, StreamId, Timestamp, Version,
    adapter::observed_head,
    ports::{
        Append, AppendAll, AppendOutcome, Capabilities, Commit, CommitKey, EventData, EventStore,
        EventStoreError, ReadFrom, RefusedKind, ScanItems, ScanScope, Segment,
    },
};
use foldstream_testkit::{InMemoryEventStore, SeededIds};
use futures::StreamExt;
use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

fn stream(id: impl std::fmt::Display) -> StreamId {
    StreamId::new("cart", &id).unwrap()
}
fn max(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}
fn commit(head: StreamHead, events: usize) -> Append {
    let events: Vec<_> = (0..events)
        .map(|_| EventData::new("Added", 1, "{}"))
        .collect();
    Append::after(head, CommitId::random(), Timestamp::from_micros(1), events)
}
async fn append(store: &InMemoryEventStore, append: &Append) -> StreamHead {
    match store.append(append).await.unwrap() {
        AppendOutcome::Appended(head) => head,
        other => panic!("not appended: {other:?}"),
    }
}
/// Stores a stream of `commits` commits with one event each.
async fn fill(store: &InMemoryEventStore, id: StreamId, commits: usize) -> StreamHead {
    let mut head = StreamHead::empty(id);
    for _ in 0..commits {
        head = append(store, &commit(head, 1)).await;
    }
    head
}

#[tokio::test]
async fn a_page_of_streams_looks_at_a_bounded_number_of_streams() {
    let store = InMemoryEventStore::new();
    for n in 0..2_500 {
        fill(&store, stream(n), 1).await;
    }
    let (mut cursor, mut pages) = (None, Vec::new());
    loop {
        let page = store.streams("cart", cursor).await.unwrap();
        pages.push(page.streams.len());
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, [1_000, 1_000, 500]);
}

#[tokio::test]
async fn commits_and_events_are_measured_to_the_byte() {
    let metadata = Metadata::new()
        .with_command_id("c1")
        .with_correlation_id("xyz")
        .with_causation_id("z")
        .with_actor("anna")
        .with_traceparent("00-1-2-00")
        .with("key", "value");
    let metadata_bytes = 2 + 3 + 1 + 4 + 9 + 3 + 5 + 6 * Metadata::ENTRY_BYTES;
    let events = [
        EventData::new("Added", 1, "{}"),
        EventData::new("Sealed", 1, vec![0; 30]).with_codec(Some("lz4".into())),
    ];
    let overhead = EventData::OVERHEAD_BYTES;
    let (first, second) = (5 + 2 + overhead, 6 + 30 + 3 + overhead);
    let head = StreamHead::empty(stream("a"));
    let append = Append::after(head, CommitId::random(), Timestamp::from_micros(1), events);
    let plain = "cart#a".len() + first + second;
    let append_into = async |capabilities: Capabilities, append: &Append| {
        let store = InMemoryEventStore::with_capabilities(capabilities);
        match store.append(append).await {
            Ok(AppendOutcome::Appended(_)) => None,
            Err(EventStoreError::TooLarge { bytes, limit, .. }) => Some((bytes, limit)),
            other => panic!("{other:?}"),
        }
    };
    for (append, bytes) in [
        (append.clone(), plain),
        (
            append.clone().with_metadata(metadata),
            plain + metadata_bytes,
        ),
    ] {
        assert_eq!(append_into(Capabilities::new(bytes), &append).await, None);
        let refused = append_into(Capabilities::new(bytes - 1), &append).await;
        assert_eq!(refused, Some((bytes, bytes - 1)));
    }
    let of_events = |bytes| Capabilities::new(1_000).with_max_event_bytes(bytes);
    assert_eq!(append_into(of_events(second), &append).await, None);
    let refused = append_into(of_events(second - 1), &append).await;
    assert_eq!(refused, Some((second, second - 1)));
}

#[tokio::test]
async fn a_read_of_a_long_history_takes_only_what_is_asked_for_and_sees_later_commits() {
    let store = InMemoryEventStore::new();
    let head = fill(&store, stream("long"), 100_000).await;
    // If each open read took a page up front, 1,000 reads would hold 100,000 commits each, about 8
    // GB.
    let mut reads: Vec<_> = (0..1000)
        .map(|_| store.read(head.stream(), ReadFrom::Event(Version::NONE), None))
        .collect();
    for read in &mut reads {
        let first = read.next().await.unwrap().unwrap();
        assert_eq!(first.first_version, Version::new(1));
    }
    append(&store, &commit(head, 1)).await;
    let rest = reads.swap_remove(0).map(|c| c.unwrap().first_version.get());
    assert_eq!(
        rest.collect::<Vec<_>>().await,
        (2..=100_001).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn pages_join_without_a_seam_in_both_directions_and_under_every_limit() {
    let store = InMemoryEventStore::new();
    let head = fill(&store, stream("x"), 600).await;
    let read = async |from: ReadFrom, limit: Option<u32>| -> Vec<u64> {
        store
            .read(head.stream(), from, limit.map(max))
            .map(|c| c.unwrap().first_version.get())
            .collect()
            .await
    };
    for limit in [1, 255, 256, 257, 511, 512, 513, 600, 700] {
        let n = u64::from(limit).min(600);
        let forwards = read(ReadFrom::Event(Version::new(1)), Some(limit)).await;
        assert_eq!(forwards, (1..=n).collect::<Vec<_>>(), "{limit}");
        let backwards = read(ReadFrom::Newest, Some(limit)).await;
        assert_eq!(
            backwards,
            (601 - n..=600).rev().collect::<Vec<_>>(),
            "{limit}"
        );
    }
    assert_eq!(read(ReadFrom::Newest, None).await.len(), 600);
}

#[tokio::test]
async fn a_read_after_a_head_that_no_commit_ends_at_is_corrupt_not_a_gap() {
    let store = InMemoryEventStore::new();
    let id = stream("forged");
    append(&store, &commit(StreamHead::empty(id.clone()), 2)).await;
    let inside = observed_head(
        id.clone(),
        Version::new(1),
        CommitId::random(),
        Timestamp::from_micros(1),
    );
    let found: Vec<_> = store
        .read(&id, ReadFrom::After(inside), None)
        .collect()
        .await;
    assert!(
        matches!(&found[..], [Err(EventStoreError::Corrupt { .. })]),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_head_of_another_history_is_a_conflict_even_at_the_same_version() {
    let store = InMemoryEventStore::new();
    let head = fill(&store, stream("forked"), 1).await;
    let other = observed_head(
        head.stream().clone(),
        head.version(),
        CommitId::random(),
        head.recorded_at(),
    );
    let outcome = store.append(&commit(other, 1)).await.unwrap();
    assert!(matches!(outcome, AppendOutcome::Conflict(_)), "{outcome:?}");
}

async fn scan_all(store: &InMemoryEventStore, segments: u32, page: u32) -> Vec<Commit> {
    let mut all = Vec::new();
    for segment in Segment::split(segments) {
        let mut after = None;
        loop {
            let found = store
                .scan(segment, after, ScanScope::Commits, max(page))
                .await
                .unwrap();
            let ScanItems::Commits(commits) = found.items else {
                panic!("commits were asked for")
            };
            assert!(commits.len() <= page as usize);
            all.extend(commits);
            after = found.next;
            if after.is_none() {
                break;
            }
        }
    }
    all
}

#[tokio::test]
async fn a_scan_in_any_number_of_segments_and_any_page_size_yields_each_commit_once() {
    let store = InMemoryEventStore::new();
    for n in 0..200 {
        fill(&store, stream(n), n % 5 + 1).await;
    }
    for (segments, page) in [(1, 1), (1, 7), (3, 10), (64, 1000), (100, 3)] {
        let mut keys: Vec<_> = scan_all(&store, segments, page)
            .await
            .iter()
            .map(Commit::key)
            .collect();
        assert_eq!(keys.len(), 600, "{segments} segments, {page} a page");
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 600, "{segments} segments, {page} a page");
    }
}

#[tokio::test]
async fn a_scan_that_began_earlier_goes_on_while_others_append() {
    let store = InMemoryEventStore::new();
    let mut heads = Vec::new();
    for n in 0..50 {
        heads.push(fill(&store, stream(n), 2).await);
    }
    let mut seen = Vec::new();
    let mut after = None;
    let mut round = 0;
    loop {
        let page = store
            .scan(Segment::ALL, after, ScanScope::Tails, max(3))
            .await
            .unwrap();
        let ScanItems::Tails(tails) = page.items else {
            panic!("tails were asked for")
        };
        seen.extend(tails.into_iter().filter(|h| h.version().get() <= 2));
        after = page.next;
        if after.is_none() {
            break;
        }
        if round < 20 {
            fill(&store, stream(format!("new-{round}")), 1).await;
            heads[round] = append(&store, &commit(heads[round].clone(), 1)).await;
            round += 1;
        }
    }
    let old: Vec<_> = seen
        .iter()
        .filter(|h| !h.stream().id().starts_with("new"))
        .collect();
    assert_eq!(old.len(), 100);
}

#[tokio::test]
async fn commits_cleared_in_any_order_leave_exactly_the_others_listed() {
    let store = InMemoryEventStore::new();
    for n in 0..5 {
        fill(&store, stream(n), 40).await;
    }
    let mut rng = fastrand::Rng::with_seed(11);
    let mut left: Vec<CommitKey> = (0..5u32)
        .flat_map(|n| (1..=40).map(move |v| CommitKey::new(stream(n), Version::new(v))))
        .collect();
    while !left.is_empty() {
        let cleared: Vec<_> = (0..rng.usize(1..30).min(left.len()))
            .map(|_| left.swap_remove(rng.usize(..left.len())))
            .collect();
        store.clear_unpublished(&cleared).await.unwrap();
        store.clear_unpublished(&cleared).await.unwrap();
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let page = store
                .unpublished(Segment::ALL, after, max(7))
                .await
                .unwrap();
            listed.extend(page.keys);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        listed.sort();
        left.sort();
        assert_eq!(listed, left);
    }
}

#[tokio::test]
async fn an_appended_commit_is_listed_again_after_all_before_it_were_cleared() {
    let store = InMemoryEventStore::new();
    let head = fill(&store, stream("x"), 1).await;
    let first = CommitKey::new(head.stream().clone(), Version::new(1));
    store.clear_unpublished(&[first]).await.unwrap();
    let next = append(&store, &commit(head, 2)).await;
    let page = store
        .unpublished(Segment::ALL, None, max(10))
        .await
        .unwrap();
    assert_eq!(
        page.keys,
        [CommitKey::new(next.stream().clone(), Version::new(2))]
    );
}

#[tokio::test]
async fn a_store_without_atomic_appends_refuses_several_streams_and_takes_one() {
    let store = InMemoryEventStore::with_capabilities(Capabilities::new(1000));
    let one = commit(StreamHead::empty(stream("a")), 1);
    let two = commit(StreamHead::empty(stream("b")), 1);
    let refused = store
        .append_all(&AppendAll::new(vec![one.clone(), two.clone()]))
        .await;
    assert!(matches!(
        refused,
        Err(EventStoreError::Refused {
            kind: RefusedKind::Unsupported,
            ..
        })
    ));
    let stored = store.append_all(&AppendAll::new(vec![one])).await.unwrap();
    assert!(matches!(stored, AppendOutcome::Appended(heads) if heads.len() == 1));
    let listed = store.unpublished(Segment::ALL, None, max(1)).await;
    assert!(matches!(
        listed,
        Err(EventStoreError::Refused {
            kind: RefusedKind::Unsupported,
            ..
        })
    ));
}

#[tokio::test]
async fn an_atomic_append_of_which_only_a_part_is_there_is_a_conflict() {
    let store = InMemoryEventStore::new();
    let one = commit(StreamHead::empty(stream("a")), 1);
    let two = commit(StreamHead::empty(stream("b")), 1);
    append(&store, &one).await;
    let outcome = store
        .append_all(&AppendAll::new(vec![one, two]))
        .await
        .unwrap();
    assert!(matches!(outcome, AppendOutcome::Conflict(c) if c.stream == stream("a")));
    let read: Vec<_> = store
        .read(&stream("b"), ReadFrom::Newest, None)
        .collect()
        .await;
    assert!(read.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn crossing_atomic_appends_neither_deadlock_nor_tear() {
    let store = InMemoryEventStore::new();
    let ids: Arc<[StreamId]> = (0..6).map(stream).collect();
    let workers = (0..4u64).map(|seed| {
        let (store, ids) = (store.clone(), ids.clone());
        tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut stored = 0;
            while stored < 200 {
                let (a, b) = (rng.usize(..6), rng.usize(..6));
                if a == b {
                    continue;
                }
                let mut commits = Vec::new();
                for id in [&ids[a], &ids[b]] {
                    let mut newest = store.read(id, ReadFrom::Newest, Some(max(1)));
                    let head = match newest.next().await {
                        Some(commit) => commit.unwrap().head(),
                        None => StreamHead::empty(id.clone()),
                    };
                    commits.push(commit(head, 1));
                }
                match store.append_all(&AppendAll::new(commits)).await.unwrap() {
                    AppendOutcome::Appended(_) => stored += 1,
                    AppendOutcome::Conflict(_) => tokio::task::yield_now().await,
                    AppendOutcome::Repeated(_) => panic!("ids are fresh"),
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let mut versions: BTreeMap<StreamId, Vec<u64>> = BTreeMap::new();
    for commit in scan_all(&store, 4, 100).await {
        versions
            .entry(commit.stream.clone())
            .or_default()
            .push(commit.first_version.get());
    }
    assert_eq!(versions.values().map(Vec::len).sum::<usize>(), 4 * 200 * 2);
    for (id, versions) in versions {
        assert_eq!(
            versions,
            (1..=versions.len() as u64).collect::<Vec<_>>(),
            "{id}"
        );
    }
}

#[tokio::test]
async fn the_same_calls_give_the_same_scan_in_the_same_order() {
    let run = async || {
        let store = InMemoryEventStore::new();
        let ids = SeededIds::new(3);
        for n in 0..500 {
            let head = StreamHead::empty(stream(n));
            let event = [EventData::new("Added", 1, "{}")];
            let one = Append::after(head, ids.commit_id(), Timestamp::from_micros(1), event);
            append(&store, &one).await;
        }
        scan_all(&store, 3, 17).await
    };
    assert_eq!(run().await, run().await);
}

#[tokio::test]
async fn a_replaced_store_has_another_incarnation_and_refuses_heads_of_the_old_one() {
    let slots_only = Capabilities::new(10_000)
        .with_streams_per_append(5)
        .with_unpublished_list(true)
        .with_checked_heads(false);
    for capabilities in [slots_only, slots_only.with_checked_heads(true)] {
        let store = InMemoryEventStore::with_capabilities(capabilities);
        let head = fill(&store, stream("a"), 3).await;
        let before = store.incarnation();
        let other = commit(StreamHead::empty(stream("b")), 2).to_commit();
        store.replace([other.clone()]);
        assert_ne!(store.incarnation(), before);
        let stale = commit(head.clone(), 1);
        let together = AppendAll::new(vec![stale.clone()]).with_unchanged(vec![other.head()]);
        let answers = [
            store.append(&stale).await.map(|_| ()),
            store.append_all(&together).await.map(|_| ()),
        ];
        for answer in answers {
            assert_eq!(
                matches!(answer, Err(EventStoreError::Replaced { .. })),
                !capabilities.checks_heads,
                "{answer:?}"
            );
        }
        let left = store.read(head.stream(), ReadFrom::Newest, None);
        assert_eq!(left.count().await, 0);
        append(&store, &commit(other.head(), 1)).await;
    }
}

#[tokio::test]
async fn commits_that_fill_a_hole_are_listed_until_they_are_cleared() {
    let capabilities = Capabilities::new(10_000)
        .with_unpublished_list(true)
        .with_checked_heads(false);
    let store = InMemoryEventStore::with_capabilities(capabilities);
    let id = stream("holes");
    let at = |version: u64| {
        let (version, id) = (Version::new(version), id.clone());
        observed_head(id, version, CommitId::random(), Timestamp::from_micros(1))
    };
    let listed = async || -> Vec<u64> {
        let page = store
            .unpublished(Segment::ALL, None, max(10))
            .await
            .unwrap();
        page.keys
            .iter()
            .map(|key| key.first_version.get())
            .collect()
    };
    let clear = async |first: u64| {
        let key = CommitKey::new(id.clone(), Version::new(first));
        store.clear_unpublished(&[key]).await.unwrap();
    };
    append(&store, &commit(StreamHead::empty(id.clone()), 1)).await;
    append(&store, &commit(at(3), 1)).await;
    append(&store, &commit(at(5), 1)).await;
    clear(1).await;
    clear(4).await;
    assert_eq!(listed().await, [6]);
    append(&store, &commit(at(1), 1)).await;
    append(&store, &commit(at(4), 1)).await;
    assert_eq!(listed().await, [2, 5, 6]);
    for first in [6, 2, 5] {
        clear(first).await;
    }
    assert_eq!(listed().await, [0; 0]);
    append(&store, &commit(at(2), 1)).await;
    assert_eq!(listed().await, [3]);
    let whole = store.read(&id, ReadFrom::Event(Version::new(1)), None);
    let versions = whole.map(|c| c.unwrap().first_version.get());
    assert_eq!(
        versions.collect::<Vec<_>>().await,
        (1..=6).collect::<Vec<_>>()
    );
}
