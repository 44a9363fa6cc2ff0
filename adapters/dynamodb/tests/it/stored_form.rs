//! The stored items as they are in the tables. Their form is final: these tests grow, but never
//! change.
use crate::support::{Item, Server, event, get_raw, n, put_raw, read, read_all, s, stream};
use aws_sdk_dynamodb::{
    primitives::Blob,
    types::{AttributeValue, ReturnConsumedCapacity},
};
use foldstream::{
    CommitId, Metadata, StreamHead, StreamId, Timestamp, Version,
    ports::{
        Append, AppendOutcome, ControlStore as _, EventData, EventStore as _, EventStoreError,
        Expect, PutOutcome, ReadFrom, Revision, Row, RowKey, SaveOutcome, SnapshotStore as _,
        StoredSnapshot,
    },
};
use foldstream_dynamodb::PublishMode;

const ID: CommitId = CommitId::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_001);

fn cart() -> StreamId {
    StreamId::new("cart", "größe").unwrap()
}
fn first(events: Vec<EventData>) -> Append {
    Append::after(StreamHead::empty(cart()), ID, NOW, events)
}
fn item<const N: usize>(attributes: [(&str, AttributeValue); N]) -> Item {
    let attributes = attributes.into_iter();
    attributes
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
fn binary(bytes: impl Into<Vec<u8>>) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}
/// Encodes a commit id and the time of recording.
fn stamp(id: CommitId) -> AttributeValue {
    let (id, at) = (id.as_u128().to_be_bytes(), NOW.as_micros().to_be_bytes());
    binary([&id[..], &at].concat())
}

#[tokio::test]
async fn the_first_commit_of_one_event_has_only_what_is_not_the_default() {
    let stores = Server::start().stores().await;
    let _ = stores
        .event_store()
        .append(&first(vec![event("{\"q\": 1.0}")]))
        .await
        .unwrap();
    let shard = foldstream::adapter::murmur2("cart#größe".as_bytes()) % 16;
    let expected = item([
        ("pk", s("cart#größe")),
        ("sk", n(1)),
        (
            "c",
            binary(*b"\x01\x92\0\0\0\0\x70\0\x80\0\0\0\0\0\0\x01\0\x06\x47\x48\x46\x20\x40\x01"),
        ),
        ("e", s(r#"["ItemAdded",{"q": 1.0}]"#)),
        ("ls", s(format!("cart#{shard}"))),
        ("mk", s(shard.to_string())),
    ]);
    assert_eq!(get_raw(stores.client(), &cart(), 1).await, Some(expected));
}

#[tokio::test]
async fn a_later_commit_of_several_events_says_where_it_ends() {
    let server = Server::start();
    let config = server.config().with_publish_mode(PublishMode::Stream);
    let stores = server.stores_with(config).await;
    let store = stores.event_store();
    let one = first(vec![event("1"), event("2")]);
    let _ = store.append(&one).await.unwrap();
    let metadata = Metadata::new()
        .with_command_id("cmd")
        .with_correlation_id("cor")
        .with_causation_id("cau")
        .with_actor("me")
        .with_traceparent("00-a-b-01")
        .with("actor", "mine")
        .with("", "");
    let events = vec![EventData::new("A", 2, "[]"), event("null"), event("\"x\"")];
    let id = CommitId::random();
    let two = Append::after(one.head_after(), id, NOW, events).with_metadata(metadata);
    let _ = store.append(&two).await.unwrap();
    let metadata = [
        ("command", s("cmd")),
        ("correlation", s("cor")),
        ("causation", s("cau")),
        ("actor", s("me")),
        ("traceparent", s("00-a-b-01")),
        ("user_actor", s("mine")),
        ("user_", s("")),
    ];
    let expected = item([
        ("pk", s("cart#größe")),
        ("sk", n(3)),
        ("n", n(5)),
        ("c", stamp(id)),
        ("e", s(r#"[["A",2],[],"ItemAdded",null,"ItemAdded","x"]"#)),
        ("m", AttributeValue::M(item(metadata))),
    ]);
    assert_eq!(get_raw(stores.client(), &cart(), 3).await, Some(expected));
}

#[tokio::test]
async fn events_that_are_not_json_are_cbor_under_their_codec() {
    let stores = Server::start().stores().await;
    let events = vec![
        EventData::new("P", 2, vec![0xff]).with_codec(Some("x/y".into())),
        EventData::new("J", 1, "{}"),
    ];
    let append = first(events);
    let _ = stores.event_store().append(&append).await.unwrap();
    let stored = get_raw(stores.client(), &cart(), 1).await.unwrap();
    assert_eq!(stored["k"], s("x/y"));
    // [["P", 2], h'ff', ["J", 1, null], h'7b7d']
    let expected = b"\x84\x82\x61P\x02\x41\xff\x83\x61J\x01\xf6\x42{}";
    assert_eq!(stored["e"], binary(expected.to_vec()));
    assert_eq!(
        read_all(&stores.event_store(), &cart()).await,
        [append.to_commit()]
    );
}

#[tokio::test]
async fn an_unknown_format_is_a_typed_error_wherever_it_is_met() {
    let stores = Server::start().stores().await;
    let store = stores.event_store();
    let append = first(vec![event("1")]);
    let _ = store.append(&append).await.unwrap();
    let alien = [
        ("pk", s(cart().as_str())),
        ("sk", n(2)),
        ("f", n(7)),
        ("z", s("?")),
    ];
    put_raw(stores.client(), item(alien)).await;
    let is_unknown = |error: &EventStoreError| {
        let EventStoreError::UnknownFormat {
            stream,
            version,
            found,
        } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!((stream, version.get(), *found), (&cart(), 2, 7));
    };
    for from in [ReadFrom::After(append.head_after()), ReadFrom::Newest] {
        is_unknown(&read(&store, &cart(), from).await.unwrap_err());
    }
    let next = Append::after(
        append.head_after(),
        CommitId::random(),
        NOW,
        vec![event("2")],
    );
    is_unknown(&store.append(&next).await.unwrap_err());
}

#[tokio::test]
async fn unknown_attributes_are_ignored_and_format_1_may_be_written_out() {
    let stores = Server::start().stores().await;
    let append = first(vec![event("1")]);
    let _ = stores.event_store().append(&append).await.unwrap();
    let mut stored = get_raw(stores.client(), &cart(), 1).await.unwrap();
    stored.extend(item([("f", n(1)), ("n", n(1)), ("p", n(0)), ("pn", n(1))]));
    stored.extend(item([("later", AttributeValue::Bool(true))]));
    put_raw(stores.client(), stored).await;
    assert_eq!(
        read_all(&stores.event_store(), &cart()).await,
        [append.to_commit()]
    );
}

#[tokio::test]
async fn what_format_1_does_not_have_is_corrupt_and_never_guessed() {
    let longer = [&ID.as_u128().to_be_bytes()[..], &[0; 9]].concat();
    for (name, value) in [
        ("c", Some(binary(longer))),
        ("c", Some(s(ID.to_string()))),
        ("c", None),
        ("e", Some(s(r#"[["ItemAdded",1,"later"],1]"#))),
        ("e", Some(s(r#"["ItemAdded",1,"ItemAdded",2]"#))),
        ("e", Some(s(r#"[{"y":"ItemAdded","d":1}]"#))),
        ("e", Some(binary(*b"\x82\x84\x61P\x02\xf6\xf6\x41\xff"))),
        ("e", None),
        ("n", Some(n(2))),
        ("p", Some(n(1))),
    ] {
        let stores = Server::start().stores().await;
        let append = first(vec![event("1")]);
        let _ = stores.event_store().append(&append).await.unwrap();
        let mut stored = get_raw(stores.client(), &cart(), 1).await.unwrap();
        let what = format!("{name}: {value:?}");
        match value {
            Some(value) => stored.insert(name.into(), value),
            None => stored.remove(name),
        };
        put_raw(stores.client(), stored).await;
        let start = ReadFrom::After(StreamHead::empty(cart()));
        for from in [start, ReadFrom::Newest] {
            let answer = read(&stores.event_store(), &cart(), from).await;
            let Err(EventStoreError::Corrupt { reason, .. }) = answer else {
                panic!("{what}: {answer:?}")
            };
            assert!(!reason.contains("ItemAdded\",1"), "{reason}");
        }
    }
}

/// The cost of an item is the cost of a command. The item has `mk` and `ls`, and its stream id is a
/// UUID.
#[tokio::test]
async fn ten_events_of_80_bytes_are_one_write_unit() {
    let uuid = CommitId::random().to_string();
    for (id, mode) in [
        ("account-00000000", PublishMode::Poller),
        (&*uuid, PublishMode::Poller),
        (&*uuid, PublishMode::Stream),
    ] {
        let server = Server::start();
        let config = server.config().with_publish_mode(mode);
        let stores = server.stores_with(config).await;
        let stream = StreamId::new("account", id).unwrap();
        let payload = format!("\"{}\"", "x".repeat(78));
        let begin = Append::after(StreamHead::empty(stream.clone()), ID, NOW, [event("1")]);
        let ten = vec![event(payload); 10];
        let ten = Append::after(begin.head_after(), CommitId::random(), NOW, ten);
        for append in [&begin, &ten] {
            let _ = stores.event_store().append(append).await.unwrap();
        }
        let stored = get_raw(stores.client(), &stream, 2).await.unwrap();
        // The item replaces itself, so no index changes.
        let put = stores.client().put_item().table_name("events");
        let put = put
            .set_item(Some(stored))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .unwrap();
        let units = put.consumed_capacity.unwrap().capacity_units;
        assert_eq!(units, Some(1.0), "{id}, {mode:?}");
    }
}

#[tokio::test]
async fn clearing_removes_the_mark_and_nothing_else() {
    let stores = Server::start().stores().await;
    let store = stores.event_store();
    let append = first(vec![event("1")]);
    let _ = store.append(&append).await.unwrap();
    let mut expected = get_raw(stores.client(), &cart(), 1).await.unwrap();
    assert!(expected.remove("mk").is_some());
    let keys = [append.to_commit().key()];
    store.clear_unpublished(&keys).await.unwrap();
    store.clear_unpublished(&keys).await.unwrap();
    assert_eq!(get_raw(stores.client(), &cart(), 1).await, Some(expected));
}

#[tokio::test]
async fn a_snapshot_is_one_item() {
    let stores = Server::start().stores().await;
    let snapshot = StoredSnapshot::new(cart(), Version::new(7), ID, 3, vec![0, 1].into());
    let saved = stores.snapshot_store().save(&snapshot).await.unwrap();
    assert_eq!(saved, SaveOutcome::Saved);
    let get = stores.client().get_item().table_name("events-snapshots");
    let found = get.key("pk", s("cart#größe")).send().await.unwrap().item;
    let expected = item([
        ("pk", s("cart#größe")),
        ("v", n(7)),
        ("c", binary(ID.as_u128().to_be_bytes())),
        ("s", n(3)),
        ("d", binary([0, 1])),
    ]);
    assert_eq!(found, Some(expected));
}

#[tokio::test]
async fn a_control_row_is_one_item_and_so_is_the_format() {
    let stores = Server::start().stores().await;
    let at = Timestamp::from_micros(4_000_000_000_000_001);
    let row = Row::new(RowKey::new("p", "s"), "v", Revision::from_u128(255)).with_expiry(Some(at));
    let put = stores
        .control_store()
        .put(&row, Expect::Absent)
        .await
        .unwrap();
    assert_eq!(put, PutOutcome::Written);
    let get = stores.client().get_item().table_name("events-control");
    let found = get
        .clone()
        .key("pk", s("p"))
        .key("sk", s("s"))
        .send()
        .await
        .unwrap()
        .item;
    let expected = item([
        ("pk", s("p")),
        ("sk", s("s")),
        ("d", binary("v")),
        ("r", s("000000000000000000000000000000ff")),
        ("x", n(4_000_000_001_u64)),
    ]);
    assert_eq!(found, Some(expected));
    let format = get
        .key("pk", s("meta"))
        .key("sk", s("format"))
        .send()
        .await
        .unwrap()
        .item;
    let value = br#"{"format":1,"list_shards":16,"marker_shards":16,"hash":"murmur2","publish_mode":"poller"}"#;
    let expected = item([
        ("pk", s("meta")),
        ("sk", s("format")),
        ("d", binary(*value)),
        ("r", s("0".repeat(32))),
    ]);
    assert_eq!(format, Some(expected));
}

/// Returns the three parts of a split commit of five events. The first part starts at version `at`.
pub(crate) fn parts(id: CommitId, stream: &StreamId, at: u64) -> [Item; 3] {
    let part = |p: u64, first: u64, last: u64, e: &str| {
        let mut part = item([
            ("pk", s(stream.as_str())),
            ("sk", n(first)),
            ("c", stamp(id)),
            ("e", s(e)),
            ("p", n(p)),
            ("pn", n(3)),
        ]);
        if last != first {
            part.insert("n".into(), n(last));
        }
        part
    };
    let metadata = AttributeValue::M(item([("actor", s("me"))]));
    let mut first = part(0, at, at + 1, r#"["A",1,"A",2]"#);
    first.insert("m".into(), metadata);
    [
        first,
        part(1, at + 2, at + 2, r#"["A",3]"#),
        part(2, at + 3, at + 4, r#"["A",4,["B",2],5]"#),
    ]
}

#[tokio::test]
async fn a_split_commit_is_assembled_in_every_direction() {
    let stores = Server::start().stores().await;
    let store = stores.event_store();
    let stream = stream();
    let before = crate::support::given(&store, &stream, &[1]).await.remove(0);
    let id = CommitId::random();
    for part in parts(id, &stream, 2) {
        put_raw(stores.client(), part).await;
    }
    let events: Vec<_> = (1..=4)
        .map(|d| EventData::new("A", 1, d.to_string()))
        .collect();
    let events = [events, vec![EventData::new("B", 2, "5")]].concat();
    let split = Append::after(before.head(), id, NOW, events)
        .with_metadata(Metadata::new().with_actor("me"))
        .to_commit();
    let next = Append::after(split.head(), CommitId::random(), NOW, vec![event("6")]);
    let _ = store.append(&next).await.unwrap();
    let after = next.to_commit();

    let forwards = [before.clone(), split.clone(), after.clone()];
    assert_eq!(read_all(&store, &stream).await, forwards);
    let backwards = [after.clone(), split.clone(), before.clone()];
    assert_eq!(
        read(&store, &stream, ReadFrom::Newest).await.unwrap(),
        backwards
    );
    for version in 2..=6 {
        let from = ReadFrom::Event(Version::new(version));
        assert_eq!(
            read(&store, &stream, from).await.unwrap(),
            forwards[1..],
            "{version}"
        );
    }
    for (version, skipped) in [(1, 2), (2, 2), (4, 2), (5, 2), (6, 1), (7, 0), (99, 0)] {
        let from = ReadFrom::NewestAtOrBelow(Version::new(version));
        let found = read(&store, &stream, from).await.unwrap();
        assert_eq!(found, backwards[skipped..], "{version}");
    }
    // A repeat is recognized at the first version. The parts are one commit of a scan, and one
    // tail.
    let again = Append::after(before.head(), id, NOW, vec![event("0")]);
    let outcome = store.append(&again).await.unwrap();
    assert_eq!(outcome, AppendOutcome::Repeated(vec![split.clone()]));
    assert_eq!(crate::read::scanned(&store).await, forwards);
    let tails = crate::read::scanned_tails(&store).await;
    assert_eq!(tails, forwards.map(|c| c.head()));
}

#[tokio::test]
async fn a_missing_part_is_corrupt_in_every_direction() {
    for missing in 0..3 {
        let stores = Server::start().stores().await;
        let store = stores.event_store();
        let stream = stream();
        let id = CommitId::random();
        for (index, part) in parts(id, &stream, 1).into_iter().enumerate() {
            if index != missing {
                put_raw(stores.client(), part).await;
            }
        }
        let start = ReadFrom::After(StreamHead::empty(stream.clone()));
        for from in [
            start,
            ReadFrom::Newest,
            ReadFrom::NewestAtOrBelow(Version::new(9)),
        ] {
            let what = format!("without part {missing}, {from:?}");
            let answer = read(&store, &stream, from).await;
            assert!(
                matches!(answer, Err(EventStoreError::Corrupt { .. })),
                "{what}: {answer:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_parts_of_another_commit_are_not_taken_for_a_commits_own() {
    let stores = Server::start().stores().await;
    let store = stores.event_store();
    let stream = stream();
    let mut all = parts(CommitId::random(), &stream, 1);
    all[1].insert("c".into(), stamp(CommitId::random()));
    for part in all {
        put_raw(stores.client(), part).await;
    }
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    for from in [start, ReadFrom::Newest] {
        let answer = read(&store, &stream, from).await;
        assert!(
            matches!(answer, Err(EventStoreError::Corrupt { .. })),
            "{answer:?}"
        );
    }
}
