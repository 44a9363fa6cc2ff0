//! Commits that are larger than an item: split between events, written together, and read as one.
use crate::{
    stored_form,
    support::{
        Call, Fate, Server, Wire, append_of, event, get_raw, put_raw, read, read_all, stream,
    },
};
use foldstream::{
    CommitId, Metadata, StreamHead, StreamId, Version,
    ports::{
        Append, AppendOutcome, Commit, CommitKey, EventData, EventStore as _, EventStoreError,
        ReadFrom, Segment,
    },
};
use foldstream_dynamodb::DynamoDb;
use futures::TryStreamExt as _;
use std::num::NonZeroU32;

const ITEM: usize = 390 * 1024;
const TRANSACTION: usize = 3_900 * 1024;

/// Returns an event whose payload is a JSON string of this size in bytes.
fn of_bytes(bytes: usize) -> EventData {
    event(format!("\"{}\"", "x".repeat(bytes - 2)))
}
fn append(head: &StreamHead, sizes: &[usize]) -> Append {
    let events: Vec<_> = sizes.iter().map(|bytes| of_bytes(*bytes)).collect();
    Append::after(head.clone(), CommitId::random(), head.recorded_at(), events)
}
/// Returns a commit of three parts, which have two events, one and two.
fn split(head: &StreamHead) -> Append {
    append(head, &[100_000, 200_000, 350_000, 150_000, 240_000])
}
fn empty() -> StreamHead {
    StreamHead::empty(stream())
}
fn too_large(error: &EventStoreError) -> (usize, usize) {
    match error {
        EventStoreError::TooLarge { bytes, limit, .. } => (*bytes, *limit),
        other => panic!("{other:?}"),
    }
}
async fn quiet(server: &Server) -> (DynamoDb, Wire) {
    server.stores_over(|_| Fate::Pass).await
}

#[tokio::test]
async fn a_commit_over_an_item_is_one_transaction_of_its_parts() {
    let server = Server::start();
    let (stores, wire) = quiet(&server).await;
    let (store, head) = (stores.event_store(), empty());
    let append = split(&head).with_metadata(Metadata::new().with_actor("me"));
    let outcome = store.append(&append).await.unwrap();
    assert_eq!(outcome, AppendOutcome::Appended(append.head_after()));
    assert_eq!(wire.operations(), ["TransactWriteItems"]);

    let attributes = ["p", "pn", "n", "c", "m", "ls", "mk"];
    let mut found = Vec::new();
    for first in [1, 3, 4] {
        let item = get_raw(stores.client(), head.stream(), first)
            .await
            .unwrap();
        let there: Vec<_> = attributes
            .iter()
            .filter(|a| item.contains_key(**a))
            .collect();
        found.push(there.into_iter().copied().collect::<Vec<_>>());
    }
    assert_eq!(
        found[0], attributes,
        "the first part has what is the commit's"
    );
    assert_eq!(found[1], ["p", "pn", "c"]);
    assert_eq!(found[2], ["p", "pn", "n", "c"]);
    let put = &wire.calls()[0].body["TransactItems"][1]["Put"];
    assert_eq!(put["ConditionExpression"], "attribute_not_exists(pk)");
    assert_eq!(put["ReturnValuesOnConditionCheckFailure"], "ALL_OLD");
}

#[tokio::test]
async fn a_split_commit_is_one_commit_to_every_reader() {
    let server = Server::start();
    let store = server.stores().await.event_store();
    let before = append_of(&empty(), 1);
    let split = split(&before.head_after());
    let after = append_of(&split.head_after(), 1);
    for append in [&before, &split, &after] {
        let _ = store.append(append).await.unwrap();
    }
    let stream = before.head.stream();
    let all = [&before, &split, &after].map(Append::to_commit);
    assert_eq!(read_all(&store, stream).await, all);
    let after = ReadFrom::After(split.head_after());
    assert_eq!(read(&store, stream, after).await.unwrap(), all[2..]);
    for version in 2..=6 {
        let from = ReadFrom::Event(Version::new(version));
        assert_eq!(
            read(&store, stream, from).await.unwrap(),
            all[1..],
            "{version}"
        );
    }
    let newest_first = all.iter().rev().cloned().collect::<Vec<_>>();
    assert_eq!(
        read(&store, stream, ReadFrom::Newest).await.unwrap(),
        newest_first
    );
    for (version, skipped) in [(1, 2), (3, 2), (5, 2), (6, 1), (7, 0)] {
        let from = ReadFrom::NewestAtOrBelow(Version::new(version));
        let found = read(&store, stream, from).await.unwrap();
        assert_eq!(found, newest_first[skipped..], "{version}");
    }
    assert_eq!(crate::read::scanned(&store).await, all);
    let tails = crate::read::scanned_tails(&store).await;
    assert_eq!(tails, all.each_ref().map(Commit::head));
}

#[tokio::test]
async fn a_limit_counts_commits_not_parts() {
    let server = Server::start();
    let (stores, wire) = quiet(&server).await;
    let store = stores.event_store();
    let first = split(&empty());
    let second = split(&first.head_after());
    for append in [&first, &second] {
        let _ = store.append(append).await.unwrap();
    }
    let stream = first.head.stream();
    for (from, expected) in [
        (ReadFrom::After(first.head.clone()), &first),
        (ReadFrom::Event(Version::new(4)), &first),
        (ReadFrom::Newest, &second),
        (ReadFrom::NewestAtOrBelow(Version::new(9)), &first),
    ] {
        let found: Vec<_> = store
            .read(stream, from, NonZeroU32::new(1))
            .try_collect()
            .await
            .unwrap();
        assert_eq!(found, [expected.to_commit()]);
    }
    // One part is read first, and then the others at once. The last two reads search for the commit
    // first, or skip one.
    let queries = wire.calls().into_iter().filter(|c| c.operation == "Query");
    let limits: Vec<_> = queries.map(|c| c.body["Limit"].as_u64().unwrap()).collect();
    assert_eq!(limits, [1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 2, 2]);
}

#[tokio::test]
async fn a_split_commit_is_unpublished_once_and_cleared_by_its_key() {
    let store = Server::start().stores().await.event_store();
    let append = split(&empty());
    let _ = store.append(&append).await.unwrap();
    let many = NonZeroU32::new(100).unwrap();
    let list = async || {
        store
            .unpublished(Segment::ALL, None, many)
            .await
            .unwrap()
            .keys
    };
    let key = append.to_commit().key();
    assert_eq!(list().await, std::slice::from_ref(&key));
    // A part is not a commit.
    let part = CommitKey::new(key.stream.clone(), Version::new(3));
    store.clear_unpublished(&[part]).await.unwrap();
    assert_eq!(list().await, std::slice::from_ref(&key));
    store.clear_unpublished(&[key]).await.unwrap();
    assert_eq!(list().await, []);
    let stream = append.head.stream();
    assert_eq!(read_all(&store, stream).await, [append.to_commit()]);
}

#[tokio::test]
async fn a_split_commit_after_a_stale_head_is_a_conflict_and_leaves_nothing() {
    let server = Server::start();
    let (stores, wire) = quiet(&server).await;
    let (store, head) = (stores.event_store(), empty());
    let theirs = append_of(&head, 2);
    let _ = store.append(&theirs).await.unwrap();
    let mine = split(&head);
    let AppendOutcome::Conflict(conflict) = store.append(&mine).await.unwrap() else {
        panic!("a stale head was taken")
    };
    assert_eq!(conflict.actual, Some(Version::new(2)));
    assert_eq!(wire.operations(), ["PutItem", "TransactWriteItems"]);
    assert_eq!(read_all(&store, head.stream()).await, [theirs.to_commit()]);
}

#[tokio::test]
async fn a_split_commit_sent_again_is_a_repeat_with_the_stored_events() {
    let server = Server::start();
    let store = server.stores().await.event_store();
    let append = split(&empty());
    let _ = store.append(&append).await.unwrap();
    let repeated = AppendOutcome::Repeated(vec![append.to_commit()]);
    assert_eq!(store.append(&append).await.unwrap(), repeated);
    // A command that was decided twice has the same id, whatever the size of its events is now.
    for sizes in [vec![10], vec![350_000, 350_000]] {
        let mut again = self::append(&append.head, &sizes);
        again.commit_id = append.commit_id;
        assert_eq!(store.append(&again).await.unwrap(), repeated, "{sizes:?}");
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_split_commit_is_settled() {
    for (lost, operations) in [
        ("answer", vec!["TransactWriteItems", "GetItem", "Query"]),
        (
            "request",
            vec!["TransactWriteItems", "GetItem", "TransactWriteItems"],
        ),
    ] {
        let server = Server::start();
        let (stores, wire) = server
            .stores_over(
                move |call: &Call| match (call.operation.as_str(), call.nth, lost) {
                    ("TransactWriteItems", 1, "answer") => Fate::LoseAnswer,
                    ("TransactWriteItems", 1, _) => Fate::LoseRequest,
                    _ => Fate::Pass,
                },
            )
            .await;
        let (store, append) = (stores.event_store(), split(&empty()));
        let outcome = store.append(&append).await.unwrap();
        assert_eq!(
            outcome,
            AppendOutcome::Appended(append.head_after()),
            "{lost}"
        );
        let mut made = wire.operations();
        made.dedup();
        assert_eq!(made, operations, "{lost}");
        let stream = append.head.stream();
        assert_eq!(read_all(&store, stream).await, [append.to_commit()]);
    }
}

/// A transaction is written during the read, which hides a part from the first queries.
#[tokio::test]
async fn a_torn_split_commit_is_read_whole_by_every_reader() {
    for hidden in ["2", "4", "5"] {
        for times in [1, 3, 100] {
            let torn = move |call: &Call| {
                if call.operation != "Query" || call.nth > times {
                    return Fate::Pass;
                }
                Fate::Change(Box::new(move |answer| {
                    let items = answer["Items"].as_array_mut().unwrap();
                    items.retain(|item| item["sk"]["N"] != hidden);
                }))
            };
            let server = Server::start();
            let stores = server.stores().await;
            let store = stores.event_store();
            let before = append_of(&empty(), 1);
            let stream: &StreamId = before.head.stream();
            let _ = store.append(&before).await.unwrap();
            // Small parts at the versions 2, 4 and 5, which are quicker to read than real ones.
            for part in stored_form::parts(CommitId::random(), stream, 2) {
                put_raw(stores.client(), part).await;
            }
            let split = read_all(&store, stream).await.remove(1);
            let after = append_of(&split.head(), 1);
            let _ = store.append(&after).await.unwrap();
            let all = [before.to_commit(), split, after.to_commit()];
            let newest_first: Vec<_> = all.iter().rev().cloned().collect();
            for (from, expected) in [
                (ReadFrom::After(before.head.clone()), all.to_vec()),
                (ReadFrom::Event(Version::new(4)), all[1..].to_vec()),
                (ReadFrom::Event(Version::new(6)), all[1..].to_vec()),
                (ReadFrom::Newest, newest_first.clone()),
                (
                    ReadFrom::NewestAtOrBelow(Version::new(6)),
                    newest_first[1..].to_vec(),
                ),
            ] {
                let (stores, _wire) = server.stores_over(torn).await;
                let what = format!("{hidden} hidden {times} times, {from:?}");
                let found = read(&stores.event_store(), stream, from).await;
                assert_eq!(found.expect(&what), expected, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_is_too_large_before_any_call() {
    let server = Server::start();
    let (stores, wire) = quiet(&server).await;
    let (store, head) = (stores.event_store(), empty());
    let capabilities = store.capabilities();
    assert_eq!(capabilities.max_event_bytes, ITEM);
    assert_eq!(capabilities.max_commit_bytes, TRANSACTION);
    for (sizes, limit) in [
        (vec![ITEM], ITEM),
        (vec![10, ITEM, 10], ITEM),
        (vec![300_000; 14], TRANSACTION),
        (vec![TRANSACTION / 11; 11], TRANSACTION),
        (vec![TRANSACTION], TRANSACTION),
    ] {
        let error = store.append(&append(&head, &sizes)).await.unwrap_err();
        let (bytes, named) = too_large(&error);
        assert_eq!(named, limit, "{sizes:?}");
        assert!(bytes > limit, "{bytes}");
    }
    assert_eq!(wire.operations(), [""; 0]);
}

#[tokio::test]
async fn an_event_that_just_fits_an_item_is_taken() {
    let server = Server::start();
    let store = server.stores().await.event_store();
    let head = empty();
    let (bytes, _) = too_large(&store.append(&append(&head, &[ITEM])).await.unwrap_err());
    // The same stream is used, since the shard of another one may have fewer digits.
    let largest = ITEM - (bytes - ITEM);
    let one_more = store.append(&append(&head, &[largest + 1])).await;
    assert_eq!(too_large(&one_more.unwrap_err()), (ITEM + 1, ITEM));
    let largest = append(&head, &[largest]);
    let outcome = store.append(&largest).await.unwrap();
    assert_eq!(outcome, AppendOutcome::Appended(largest.head_after()));
}

/// Each part has JSON text or CBOR, whatever the other parts have.
#[tokio::test]
async fn parts_keep_payloads_and_codecs_as_they_were_given() {
    let store = Server::start().stores().await.event_store();
    let head = empty();
    let coded = |bytes: usize, codec: &str| {
        EventData::new("Coded", 7, vec![0xFF; bytes]).with_codec(Some(codec.into()))
    };
    let events = vec![
        of_bytes(300_000),
        coded(200_000, "a/b"),
        event(" {\"padded\": 1.0} "),
        coded(5, "c/d"),
        of_bytes(380_000),
        coded(399_000, "c/d"),
        event("null"),
    ];
    let append = Append::after(head.clone(), CommitId::random(), head.recorded_at(), events);
    let _ = store.append(&append).await.unwrap();
    assert_eq!(read_all(&store, head.stream()).await, [append.to_commit()]);
}
