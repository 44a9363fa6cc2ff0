//! Reads: pages, gaps, and the rule that no commit is ever left out.
use crate::support::{
    Call, Fate, Server, delete_raw, event, get_raw, given, n, put_raw, read, read_all, s, stream,
};
use foldstream::{
    CommitId, StreamHead, Version,
    ports::{Append, Commit, EventStore, EventStoreError, ReadFrom, ScanItems, ScanScope, Segment},
};
use futures::TryStreamExt as _;
use std::{
    collections::HashSet,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

const MANY: NonZeroU32 = NonZeroU32::new(1000).unwrap();

async fn pages(store: &impl EventStore, what: ScanScope) -> Vec<ScanItems> {
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = store.scan(Segment::ALL, after, what, MANY).await.unwrap();
        assert!(page.read_units.is_some_and(|units| units > 0.0));
        pages.push(page.items);
        after = page.next;
        if after.is_none() {
            return pages;
        }
    }
}
pub(crate) async fn scanned(store: &impl EventStore) -> Vec<Commit> {
    let pages = pages(store, ScanScope::Commits).await.into_iter();
    let commits = pages.flat_map(|page| match page {
        ScanItems::Commits(commits) => commits,
        ScanItems::Tails(_) => panic!("tails"),
    });
    commits.collect()
}
pub(crate) async fn scanned_tails(store: &impl EventStore) -> Vec<StreamHead> {
    let pages = pages(store, ScanScope::Tails).await.into_iter();
    let heads = pages.flat_map(|page| match page {
        ScanItems::Tails(heads) => heads,
        ScanItems::Commits(_) => panic!("commits"),
    });
    heads.collect()
}

#[tokio::test]
async fn a_stream_is_read_from_the_table_and_consistently_never_by_an_index() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, stream) = (stores.event_store(), stream());
    let commits = given(&store, &stream, &[2, 1, 3]).await;
    let written = wire.calls().len();
    let starts = [
        ReadFrom::After(commits[0].head()),
        ReadFrom::Event(Version::new(2)),
        ReadFrom::Newest,
        ReadFrom::NewestAtOrBelow(Version::new(3)),
        ReadFrom::NewestAtOrBelow(Version::new(99)),
    ];
    for from in starts {
        read(&store, &stream, from).await.unwrap();
    }
    let reads = wire.calls().split_off(written);
    assert!(reads.len() >= 5);
    for call in reads {
        assert_eq!(call.operation, "Query");
        assert_eq!(call.body["TableName"], "events");
        assert_eq!(call.body["ConsistentRead"], true);
        assert!(call.body.get("IndexName").is_none(), "{call:?}");
    }
}

/// A stream over 1 MB takes several pages. A reader that ignores `LastEvaluatedKey` sees only the
/// first.
#[tokio::test]
async fn last_evaluated_key_is_followed_to_the_tail_and_page_by_page() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, stream) = (stores.event_store(), stream());
    let mut head = StreamHead::empty(stream.clone());
    let mut commits = Vec::new();
    for _ in 0..9 {
        let events = vec![event(format!("\"{}\"", "x".repeat(300_000)))];
        let append = Append::after(head.clone(), CommitId::random(), head.recorded_at(), events);
        let _ = store.append(&append).await.unwrap();
        head = append.head_after();
        commits.push(append.to_commit());
    }
    let pages_read = || wire.operations().iter().filter(|o| *o == "Query").count();
    assert_eq!(read_all(&store, &stream).await, commits);
    assert_eq!(pages_read(), 3);
    commits.reverse();
    assert_eq!(
        read(&store, &stream, ReadFrom::Newest).await.unwrap(),
        commits
    );
    assert_eq!(pages_read(), 6);
    // The read is lazy: the second page is not requested before the first is used up.
    let mut lazily = store.read(&stream, ReadFrom::Newest, None);
    for _ in 0..3 {
        lazily.try_next().await.unwrap().unwrap();
    }
    assert_eq!(pages_read(), 7);
}

#[tokio::test]
async fn a_limit_is_passed_on_so_that_nothing_else_is_paid_for() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, stream) = (stores.event_store(), stream());
    given(&store, &stream, &[1; 5]).await;
    let limit = NonZeroU32::new(2);
    let newest: Vec<_> = store
        .read(&stream, ReadFrom::Newest, limit)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(newest.len(), 2);
    let queries: Vec<_> = wire
        .calls()
        .into_iter()
        .filter(|c| c.operation == "Query")
        .collect();
    assert_eq!(queries.len(), 1);
    assert_eq!(queries[0].body["Limit"], 2);
}

#[tokio::test]
async fn a_hole_is_corrupt_and_never_a_shorter_history() {
    let stores = Server::start().stores().await;
    let (store, stream) = (stores.event_store(), stream());
    let commits = given(&store, &stream, &[1, 2, 1, 2, 1]).await;
    delete_raw(stores.client(), &stream, 4).await;
    let start = StreamHead::empty(stream.clone());
    let starts = [
        (ReadFrom::After(start), 2),
        (ReadFrom::After(commits[1].head()), 0),
        (ReadFrom::Event(Version::new(2)), 1),
        (ReadFrom::Event(Version::new(4)), 0),
        (ReadFrom::Newest, 2),
        (ReadFrom::NewestAtOrBelow(Version::new(6)), 1),
        (ReadFrom::NewestAtOrBelow(Version::new(4)), 0),
    ];
    for (from, whole) in starts {
        let mut commits = store.read(&stream, from.clone(), None);
        for _ in 0..whole {
            commits.try_next().await.unwrap().unwrap();
        }
        match commits.try_next().await {
            Err(EventStoreError::Corrupt { reason, .. }) => {
                assert!(
                    reason.contains("item at 4 is missing"),
                    "{from:?}: {reason}"
                );
            }
            other => panic!("{from:?}: {other:?}"),
        }
        assert_eq!(
            commits.try_next().await.unwrap(),
            None,
            "{from:?}: the stream ends"
        );
    }
}

#[tokio::test]
async fn a_missing_first_commit_is_corrupt() {
    let stores = Server::start().stores().await;
    let (store, stream) = (stores.event_store(), stream());
    given(&store, &stream, &[2, 1]).await;
    delete_raw(stores.client(), &stream, 1).await;
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    for from in [start, ReadFrom::Newest, ReadFrom::Event(Version::new(1))] {
        let answer = read(&store, &stream, from.clone()).await;
        assert!(
            matches!(answer, Err(EventStoreError::Corrupt { .. })),
            "{from:?}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn an_overlap_is_corrupt() {
    let stores = Server::start().stores().await;
    let (store, stream) = (stores.event_store(), stream());
    given(&store, &stream, &[3]).await;
    let mut overlapping = get_raw(stores.client(), &stream, 1).await.unwrap();
    overlapping.insert("sk".into(), n(2));
    put_raw(stores.client(), overlapping).await;
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    for from in [start, ReadFrom::Newest] {
        let answer = read(&store, &stream, from.clone()).await;
        assert!(
            matches!(answer, Err(EventStoreError::Corrupt { .. })),
            "{from:?}: {answer:?}"
        );
    }
}

/// Hides the item at `missing` from the first `times` queries, as a concurrent transaction may.
fn torn(missing: &'static str, times: usize) -> impl Fn(&Call) -> Fate + Send + Sync {
    move |call| {
        if call.operation != "Query" || call.nth > times {
            return Fate::Pass;
        }
        Fate::Change(Box::new(move |answer| {
            let items = answer["Items"].as_array_mut().unwrap();
            items.retain(|item| item["sk"]["N"] != missing);
        }))
    }
}

#[tokio::test]
async fn a_torn_page_is_read_again() {
    for missing in ["1", "3", "4"] {
        for times in [1, 3, 100] {
            let server = Server::start();
            let (stores, wire) = server.stores_over(torn(missing, times)).await;
            let (store, stream) = (stores.event_store(), stream());
            let mut commits = given(&store, &stream, &[2, 1, 1, 1]).await;
            let what = format!("{missing}, torn {times} times");
            assert_eq!(read_all(&store, &stream).await, commits, "{what}");
            // The key itself is requested only if queries continue to hide it.
            let asked = wire.operations().contains(&"GetItem".to_owned());
            assert_eq!(asked, times == 100, "{what}");

            let (stores, _wire) = server.stores_over(torn(missing, times)).await;
            let from = ReadFrom::Event(Version::new(4));
            let found = read(&stores.event_store(), &stream, from).await.unwrap();
            assert_eq!(found, commits[2..], "{what}, from an event");

            let (stores, _wire) = server.stores_over(torn(missing, times)).await;
            commits.reverse();
            let found = read(&stores.event_store(), &stream, ReadFrom::Newest)
                .await
                .unwrap();
            assert_eq!(found, commits, "{what}, backwards");
        }
    }
}

#[tokio::test]
async fn below_a_version_nothing_is_left_out_of_a_torn_page() {
    let server = Server::start();
    let (store, stream) = (server.stores().await.event_store(), stream());
    let mut commits = given(&store, &stream, &[2, 1, 1, 1]).await;
    commits.reverse();
    let (stores, _wire) = server.stores_over(torn("4", 1)).await;
    let from = ReadFrom::NewestAtOrBelow(Version::new(4));
    let found = read(&stores.event_store(), &stream, from).await.unwrap();
    assert_eq!(found, commits[1..]);
}

/// Answers every query and scan with an empty page first, and then with one item at a time.
fn stuttering() -> impl Fn(&Call) -> Fate + Send + Sync {
    let met = Mutex::new(HashSet::new());
    move |call| {
        if !["Query", "Scan"].contains(&&*call.operation) {
            return Fate::Pass;
        }
        let start = call.body.get("ExclusiveStartKey").cloned();
        if let Some(start) = start
            && met.lock().unwrap().insert(start.to_string())
        {
            return Fate::Change(Box::new(|answer| {
                answer["Items"] = serde_json::json!([]);
                answer["LastEvaluatedKey"] = start;
            }));
        }
        let index = match call.body.get("IndexName").and_then(|i| i.as_str()) {
            Some("streams") => &["pk", "sk", "ls"][..],
            Some(_) => &["pk", "sk", "mk"],
            None => &["pk", "sk"],
        };
        Fate::Change(Box::new(|answer| {
            let items = answer["Items"].as_array_mut().unwrap();
            if items.len() > 1 {
                items.truncate(1);
                let key = index
                    .iter()
                    .map(|name| ((*name).to_owned(), items[0][name].clone()));
                answer["LastEvaluatedKey"] = serde_json::Value::Object(key.collect());
            }
        }))
    }
}

#[tokio::test]
async fn an_empty_page_is_not_the_end() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(stuttering()).await;
    let (store, stream) = (stores.event_store(), stream());
    let commits = given(&store, &stream, &[1, 2, 1]).await;
    assert_eq!(read_all(&store, &stream).await, commits);
    assert_eq!(
        wire.operations().iter().filter(|o| *o == "Query").count(),
        5
    );
    let newest_first: Vec<_> = commits.iter().rev().cloned().collect();
    let found = read(&store, &stream, ReadFrom::Newest).await.unwrap();
    assert_eq!(found, newest_first);
    let from = ReadFrom::Event(Version::new(3));
    assert_eq!(read(&store, &stream, from).await.unwrap(), commits[1..]);
    let from = ReadFrom::NewestAtOrBelow(Version::new(3));
    let found = read(&store, &stream, from).await.unwrap();
    assert_eq!(found, newest_first[1..]);
    // The same holds with a limit of commits.
    let two = NonZeroU32::new(2);
    let found: Vec<_> = store
        .read(&stream, ReadFrom::Newest, two)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(found, newest_first[..2]);
}

#[tokio::test]
async fn an_empty_page_is_not_the_end_of_scans_and_lists() {
    let server = Server::start();
    let (stores, _wire) = server.stores_over(stuttering()).await;
    let store = stores.event_store();
    // There are more streams than shards of a list, so that some share one.
    let mut all = Vec::new();
    for _ in 0..20 {
        all.extend(given(&store, &stream(), &[1, 1]).await);
    }
    let mut keys: Vec<_> = all.iter().map(Commit::key).collect();
    keys.sort();
    let mut scanned: Vec<_> = scanned(&store).await.iter().map(Commit::key).collect();
    scanned.sort();
    assert_eq!(scanned, keys);
    assert_eq!(scanned_tails(&store).await.len(), keys.len());

    let (mut unpublished, mut after) = (Vec::new(), None);
    loop {
        let seven = NonZeroU32::new(7).unwrap();
        let page = store.unpublished(Segment::ALL, after, seven).await.unwrap();
        unpublished.extend(page.keys);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    unpublished.sort();
    assert_eq!(unpublished, keys);

    let page = store.streams("cart", None).await.unwrap();
    let mut listed = page.streams;
    listed.sort();
    let mut streams: Vec<_> = all.into_iter().map(|commit| commit.stream).collect();
    streams.sort();
    streams.dedup();
    assert_eq!((listed, page.next), (streams, None));
}

#[tokio::test]
async fn a_lagging_index_only_delays_what_is_listed() {
    let server = Server::start();
    let lag = Arc::new(AtomicBool::new(true));
    let (stores, _wire) = {
        let lag = lag.clone();
        server
            .stores_over(move |call| {
                let of_index = call.body.get("IndexName").is_some();
                if !of_index || !lag.load(Ordering::SeqCst) {
                    return Fate::Pass;
                }
                Fate::Change(Box::new(|answer| answer["Items"] = serde_json::json!([])))
            })
            .await
    };
    let (store, stream) = (stores.event_store(), stream());
    let commits = given(&store, &stream, &[1]).await;
    let listed = async || {
        store
            .unpublished(Segment::ALL, None, MANY)
            .await
            .unwrap()
            .keys
    };
    assert_eq!(listed().await, []);
    assert_eq!(store.streams("cart", None).await.unwrap().streams, []);
    // No read of a stream uses an index.
    assert_eq!(read_all(&store, &stream).await, commits);
    lag.store(false, Ordering::SeqCst);
    assert_eq!(listed().await, [commits[0].key()]);
    assert_eq!(store.streams("cart", None).await.unwrap().streams, [stream]);
}

/// A backward reader without a limit may stop at any time, and pays for all that was read until
/// then.
#[tokio::test]
async fn reading_backwards_asks_for_little_first_and_for_more_then() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, stream) = (stores.event_store(), stream());
    let commits = given(&store, &stream, &[1; 90]).await;
    let limits = || -> Vec<_> {
        let queries = wire.calls().into_iter().filter(|c| c.operation == "Query");
        queries.map(|c| c.body["Limit"].as_u64()).collect()
    };
    let mut lazily = store.read(&stream, ReadFrom::Newest, None);
    for _ in 0..16 {
        lazily.try_next().await.unwrap().unwrap();
    }
    assert_eq!(limits(), [Some(16)]);
    assert_eq!(lazily.try_collect::<Vec<_>>().await.unwrap().len(), 74);
    assert_eq!(limits(), [Some(16), Some(64), Some(256)]);
    // A snapshot or a version from outside requests one commit, and one is read.
    let from = ReadFrom::NewestAtOrBelow(Version::new(40));
    let one: Vec<_> = store
        .read(&stream, from, NonZeroU32::new(1))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(one, commits[39..40]);
    assert_eq!(limits()[3..], [Some(1)]);
}

#[tokio::test]
async fn a_foreign_row_does_not_end_a_scan_silently() {
    let stores = Server::start().stores().await;
    let store = stores.event_store();
    given(&store, &stream(), &[1]).await;
    let foreign = [("pk".to_owned(), s("no-stream")), ("sk".to_owned(), n(1))];
    put_raw(stores.client(), foreign.into()).await;
    let error = store
        .scan(Segment::ALL, None, ScanScope::Commits, MANY)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("EVENTSTORE_TABLE_NAME"), "{text}");
}

#[tokio::test]
async fn a_scan_of_tails_reads_no_payload() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let store = stores.event_store();
    let commits = given(&store, &stream(), &[2, 1]).await;
    let heads: Vec<_> = commits.iter().map(Commit::head).collect();
    assert_eq!(scanned_tails(&store).await, heads);
    let call = wire.calls().pop().unwrap();
    assert_eq!(call.body["ProjectionExpression"], "pk, sk, c, n, f, p, pn");
    assert_eq!(call.body["ConsistentRead"], true);
}
