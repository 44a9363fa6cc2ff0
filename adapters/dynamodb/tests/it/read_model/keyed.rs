//! Rows that several streams feed.
use super::{Board, Process, Refused, Skipped, World, model, notebook, noted_on, shard_of, typed};
use crate::support::{Fate, s};
use foldstream::runner::{ErrorClass, Projector as _};
use foldstream_dynamodb::{ReadModel, ReadModelError};
use std::collections::BTreeMap;

/// Returns the numbers on a stored board, by the id of the notebook.
async fn board(process: &Process<Board>, key: &str) -> BTreeMap<String, Vec<u64>> {
    let board = process.get(key).await.unwrap_or_default();
    let numbers = board.numbers.into_iter();
    numbers
        .map(|(stream, n)| (stream.id().to_owned(), n))
        .collect()
}
fn expected<const N: usize>(all: [(&str, &[u64]); N]) -> BTreeMap<String, Vec<u64>> {
    all.map(|(id, numbers)| (id.into(), numbers.to_vec()))
        .into()
}

#[tokio::test]
async fn a_row_has_a_position_per_stream() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    let (a, b) = (notebook("a"), notebook("b"));
    process.project(&a, 7, noted_on(7, &["red"])).await;
    process.project(&b, 3, noted_on(3, &["red"])).await;
    process.flush().await;
    // A version that is low for one stream is new for the other.
    process.project(&b, 4, noted_on(4, &["red"])).await;
    process.project(&a, 7, noted_on(7, &["red"])).await;
    process.flush().await;
    let red = expected([("a", &[7]), ("b", &[3, 4])]);
    assert_eq!(board(&process, "red").await, red);
    assert_eq!(
        (process.position(&a).await, process.position(&b).await),
        (7, 4)
    );
}

#[tokio::test]
async fn an_event_changes_all_of_its_rows_or_none() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    let (a, b) = (notebook("a"), notebook("b"));
    process
        .project(&a, 1, noted_on(1, &["blue", "red", "blue"]))
        .await;
    let boards = ["blue", "green", "red"].map(Into::into).to_vec();
    let refused = process.try_project(&a, 2, Refused { boards }).await;
    assert_eq!(refused.unwrap_err().class(), ErrorClass::Permanent);
    process.project(&b, 1, noted_on(5, &["blue"])).await;
    process.flush().await;
    assert_eq!(
        board(&process, "blue").await,
        expected([("a", &[1]), ("b", &[5])])
    );
    assert_eq!(board(&process, "red").await, expected([("a", &[1])]));
    assert_eq!(process.get("green").await, None);
    assert_eq!(process.position(&a).await, 1);
    // No row took note of the version that failed, so the event may come again after a fix.
    process.project(&a, 2, noted_on(2, &["blue"])).await;
    process.flush().await;
    let blue = expected([("a", &[1, 2]), ("b", &[5])]);
    assert_eq!(board(&process, "blue").await, blue);
}

#[tokio::test]
async fn an_event_of_no_row_moves_the_position() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    let a = notebook("a");
    process.project(&a, 1, Skipped).await;
    process.flush().await;
    assert_eq!(process.operations(), ["PutItem"]);
    assert_eq!(process.position(&a).await, 1);
    assert!(process.all().await.is_empty());
}

/// The costs in the adapter's README.
#[tokio::test]
async fn a_flush_writes_each_row_and_the_position_of_each_stream_once() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    for stream in [notebook("a"), notebook("b"), notebook("c")] {
        process.project(&stream, 1, noted_on(1, &["red"])).await;
        process.project(&stream, 2, noted_on(2, &["red"])).await;
    }
    process.flush().await;
    // One read, one write of the row, one of each position.
    let operations = process.operations();
    assert_eq!(
        operations,
        ["GetItem", "PutItem", "PutItem", "PutItem", "PutItem"]
    );
    process.flush().await;
    assert!(process.operations().is_empty());
}

/// Two processes own different streams that feed the same row, both rightly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_feed_one_row_at_the_same_time() {
    let world = World::new().await;
    let mut writers = Vec::new();
    for id in 0..6 {
        let process: Process<Board> = world.process().await;
        writers.push(tokio::spawn(async move {
            let stream = notebook(id);
            for version in 1..=10 {
                process
                    .project(&stream, version, noted_on(version, &["red"]))
                    .await;
                // On a busy machine the others may win often enough for a flush to give up.
                while let Err(error) = process.rows.flush(&model()).await {
                    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
                }
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let process: Process<Board> = world.process().await;
    let red = board(&process, "red").await;
    let numbers: Vec<u64> = (1..=10).collect();
    assert_eq!(red.len(), 6);
    assert!(red.values().all(|found| *found == numbers), "{red:?}");
}

#[tokio::test]
async fn a_position_is_stored_after_every_row_of_its_stream() {
    let world = World::new().await;
    let a = notebook("a");
    // Whichever write fails, the position is not stored before the other rows.
    for failing in 1..=4 {
        let process: Process<Board> = world
            .process_over(move |call| match call.operation.as_str() {
                "PutItem" if call.nth == failing => Fate::error(400, "AccessDeniedException", "no"),
                _ => Fate::Pass,
            })
            .await;
        process
            .project(&a, 1, noted_on(1, &["blue", "red", "green"]))
            .await;
        process.rows.flush(&model()).await.unwrap_err();
        assert_eq!(process.position(&a).await, 0);
        // After the crash the event comes again, and the rows that have it pass it over.
        let process: Process<Board> = world.process().await;
        process
            .project(&a, 1, noted_on(1, &["blue", "red", "green"]))
            .await;
        process.flush().await;
        assert_eq!(process.position(&a).await, 1);
        for key in ["blue", "red", "green"] {
            assert_eq!(board(&process, key).await, expected([("a", &[1])]));
        }
        process.rows.reset(&model()).await.unwrap();
    }
}

#[tokio::test]
async fn forgetting_a_stream_keeps_the_events_of_the_others() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    let (kept, lost) = (notebook("kept"), notebook("lost"));
    process
        .project(&lost, 1, noted_on(1, &["red", "blue"]))
        .await;
    process.project(&kept, 1, noted_on(2, &["red"])).await;
    process.project(&lost, 2, noted_on(3, &["red"])).await;
    let streams = [lost.clone()];
    process
        .rows
        .forget_buffered(&model(), &streams)
        .await
        .unwrap();
    process.project(&kept, 2, noted_on(4, &["red"])).await;
    process.flush().await;
    assert_eq!(board(&process, "red").await, expected([("kept", &[2, 4])]));
    assert_eq!(process.get("blue").await, None);
    assert_eq!(
        (process.position(&kept).await, process.position(&lost).await),
        (2, 0)
    );
}

/// Stores a board that this many streams have fed.
async fn given_board(world: &World, streams: usize) {
    let ids = || (0..streams).map(|id| notebook(id).to_string());
    let positions: BTreeMap<String, u64> = ids().map(|id| (id, 1)).collect();
    let numbers: BTreeMap<String, [u64; 1]> = ids().map(|id| (id, [1])).collect();
    let item = [
        (
            "pk".into(),
            s(format!("notes.g1/boards/{:02}", shard_of("red"))),
        ),
        ("sk".into(), s("red")),
        ("p".into(), s(serde_json::to_string(&positions).unwrap())),
        (
            "d".into(),
            s(serde_json::json!({ "numbers": numbers }).to_string()),
        ),
    ];
    let stores = world.stores().await;
    let put = stores.client().put_item().table_name("events-models");
    put.set_item(Some(item.into())).send().await.unwrap();
}

#[tokio::test]
async fn one_stream_more_than_a_row_can_hold_is_a_permanent_error() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    let most = ReadModel::<Board>::MAX_STREAMS;
    given_board(&world, most - 1).await;
    let (last, too_many) = (notebook("last"), notebook("too many"));
    process.project(&last, 1, noted_on(1, &["red"])).await;
    let error = process
        .try_project(&too_many, 1, noted_on(1, &["red"]))
        .await;
    let error = error.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(matches!(
        typed(&error),
        ReadModelError::TooManyStreams { limit: 1_000, .. }
    ));
    // The streams that feed the row already go on.
    process
        .project(&notebook(0), 2, noted_on(2, &["red"]))
        .await;
    process.flush().await;
    let red = board(&process, "red").await;
    assert_eq!(
        (red.len(), &red["0"][..], &red["last"][..]),
        (most, &[1, 2][..], &[1][..])
    );
}

#[tokio::test]
async fn a_key_that_dynamodb_cannot_hold_is_a_permanent_error() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    for key in [String::new(), "x".repeat(1_025)] {
        let event = noted_on(1, &[&key]);
        let error = process.try_project(&notebook("a"), 1, event).await;
        let error = error.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(matches!(typed(&error), ReadModelError::Invalid { .. }));
    }
    process
        .project(&notebook("a"), 1, noted_on(1, &[&"x".repeat(1_024)]))
        .await;
    process.flush().await;
}
