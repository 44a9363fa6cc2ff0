//! The stored form of rows and positions, which is final.
use super::{Board, Erased, Notebook, Process, World, model, notebook, noted_on, typed};
use crate::support::{Item, n, s};
use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use foldstream::runner::{ErrorClass, Projector as _};
use foldstream_dynamodb::ReadModelError;

const TABLE: &str = "events-models";

/// Returns all items of the table, by sort key and then partition.
async fn items(world: &World) -> Vec<Item> {
    let stores = world.stores().await;
    let scan = stores.client().scan().table_name(TABLE);
    let mut items = scan.send().await.unwrap().items.unwrap();
    let key = |item: &Item| format!("{:?} {:?}", item["sk"], item["pk"]);
    items.sort_by_key(key);
    items
}
fn commit(version: u64, shard: u8) -> AttributeValue {
    let mut bytes = [0_u8; 16];
    (bytes[14], bytes[15]) = (u8::try_from(version).unwrap(), shard);
    AttributeValue::B(Blob::new(bytes))
}
fn shard(key: &str) -> String {
    format!("{:02}", super::shard_of(key))
}
fn item<const N: usize>(attributes: [(&str, AttributeValue); N]) -> Item {
    attributes.map(|(name, value)| (name.into(), value)).into()
}

#[tokio::test]
async fn the_items_of_a_row_per_stream_are_fixed() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let (kept, erased) = (notebook("a"), notebook("b"));
    process.note(&kept, 1, &[4, 12]).await;
    process.note(&erased, 1, &[1]).await;
    process.project(&erased, 2, Erased).await;
    process.flush().await;
    let id = |stream: &foldstream::StreamId| u8::try_from(stream.shard(251)).unwrap();
    // The shards of these keys, by FNV-1a: they must never change.
    assert_eq!(
        (shard("notebook#a"), shard("notebook#b")),
        ("08".into(), "01".into())
    );
    let expected = [
        item([
            ("pk", s("notes.g1/notebooks/08")),
            ("sk", s("notebook#a")),
            ("d", s(r#"{"numbers":[4,12],"ratio":0.0}"#)),
            ("v", n(2)),
            ("c", commit(2, id(&kept))),
            ("ip", s("notes.g1/notebooks/even")),
            ("is", s("0012")),
        ]),
        item([
            ("pk", s("notes.g1/notebooks/01")),
            ("sk", s("notebook#b")),
            ("v", n(2)),
            ("c", commit(2, id(&erased))),
        ]),
    ];
    assert_eq!(items(&world).await, expected);
}

#[tokio::test]
async fn the_items_of_rows_by_keys_are_fixed() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    let (one, two) = (notebook("a"), notebook("b"));
    process.project(&two, 1, noted_on(5, &["red"])).await;
    process.project(&one, 3, noted_on(9, &["red"])).await;
    process.flush().await;
    let id = |stream: &foldstream::StreamId| u8::try_from(stream.shard(251)).unwrap();
    let expected = [
        item([
            ("pk", s("notes.g1/boards/p08")),
            ("sk", s("notebook#a")),
            ("v", n(3)),
            ("c", commit(3, id(&one))),
        ]),
        item([
            ("pk", s("notes.g1/boards/p01")),
            ("sk", s("notebook#b")),
            ("v", n(1)),
            ("c", commit(1, id(&two))),
        ]),
        item([
            ("pk", s(format!("notes.g1/boards/{}", shard("red")))),
            ("sk", s("red")),
            ("d", s(r#"{"numbers":{"notebook#a":[9],"notebook#b":[5]}}"#)),
            ("p", s(r#"{"notebook#a":3,"notebook#b":1}"#)),
        ]),
    ];
    assert_eq!(items(&world).await, expected);
}

/// A newer build may add attributes, which a put of this build would drop: it must then write
/// another format.
#[tokio::test]
async fn an_item_of_another_format_or_of_another_shape_is_refused() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let key = |sk: &str| {
        let pk = format!("notes.g1/notebooks/{}", shard(sk));
        [("pk".into(), s(pk)), ("sk".into(), s(sk))]
    };
    let row = || ("d".to_owned(), s(r#"{"numbers":[1]}"#));
    let broken: [(&str, Vec<(String, AttributeValue)>); 4] = [
        (
            "format 2",
            vec![row(), ("v".into(), n(1)), ("f".into(), n(2))],
        ),
        ("attribute v", vec![row()]),
        (
            "attribute d",
            vec![("d".into(), s("{}")), ("v".into(), n(1))],
        ),
        (
            "attribute c",
            vec![
                row(),
                ("v".into(), n(1)),
                ("c".into(), commit(0, 0)),
                ("c".into(), AttributeValue::B(Blob::new([1]))),
            ],
        ),
    ];
    let stores = world.stores().await;
    for (problem, attributes) in broken {
        let stream = notebook("a");
        let mut item = Item::from(key(stream.as_str()));
        item.extend(attributes);
        let put = stores.client().put_item().table_name(TABLE);
        put.set_item(Some(item)).send().await.unwrap();
        let error = process.rows.get(&model(), stream.as_str()).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
        assert!(matches!(error, ReadModelError::Corrupt { .. }));
        let error = process.try_project(&stream, 2, super::noted(2)).await;
        let error = error.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(matches!(typed(&error), ReadModelError::Corrupt { .. }));
        process.rows.reset(&model()).await.unwrap();
    }
}
