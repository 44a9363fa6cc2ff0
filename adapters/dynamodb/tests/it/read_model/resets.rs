//! Resets: complete, resumable, and of one generation only.
use super::{Board, Notebook, Process, World, model, notebook, noted, noted_on};
use crate::support::{Call, Fate, Item, s};
use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
use foldstream::runner::{EventContext, ModelId, Projector as _};

#[tokio::test]
async fn a_reset_deletes_the_rows_and_positions_of_one_generation() {
    let world = World::new().await;
    let process: Process<Board> = world.process().await;
    let a = notebook("a");
    let next = ModelId::new("notes", 2);
    let header = super::context(&a, 1).header().clone();
    let source = super::context(&a, 1).source().clone();
    let of_next = EventContext::new(next.clone(), header, source);
    process.project(&a, 1, noted_on(1, &["red", "blue"])).await;
    process
        .rows
        .project(&noted_on(1, &["red"]), &of_next)
        .await
        .unwrap();
    process.flush().await;
    process.rows.flush(&next).await.unwrap();
    // Rows of another type in the same model.
    let notebooks: Process<Notebook> = world.process().await;
    notebooks.note(&a, 1, &[1]).await;
    notebooks.flush().await;

    process.project(&a, 2, noted_on(2, &["red"])).await;
    process.rows.reset(&model()).await.unwrap();
    process.flush().await;
    assert!(process.all().await.is_empty());
    assert_eq!(process.position(&a).await, 0);
    assert!(process.rows.get(&next, "red").await.unwrap().is_some());
    assert_eq!(notebooks.numbers(&a).await, [1]);
}

#[tokio::test]
async fn a_reset_that_was_interrupted_leaves_no_position_ahead_of_its_rows() {
    let world = World::new().await;
    let streams: Vec<_> = (0..30).map(notebook).collect();
    for failing in [1, 5, 20, 40] {
        let process: Process<Board> = world.process().await;
        for stream in &streams {
            let board = format!("board of {stream}");
            process
                .project(stream, 1, noted_on(1, &[&board, "all"]))
                .await;
        }
        process.flush().await;
        process.wire.forget();
        process
            .wire
            .decide(move |call| match call.operation.as_str() {
                "BatchWriteItem" if call.nth >= failing => {
                    Fate::error(400, "AccessDeniedException", "no")
                }
                _ => Fate::Pass,
            });
        process.rows.reset(&model()).await.unwrap_err();
        process.wire.decide(|_| Fate::Pass);
        // A process that starts now is given the events again, and no row is short of one.
        let process: Process<Board> = world.process().await;
        for stream in &streams {
            if process.position(stream).await == 0 {
                let board = format!("board of {stream}");
                process
                    .project(stream, 1, noted_on(1, &[&board, "all"]))
                    .await;
            }
        }
        process.flush().await;
        assert_eq!(process.all().await.len(), 31, "{failing}");
        assert_eq!(process.get("all").await.unwrap().numbers.len(), 30);
        process.rows.reset(&model()).await.unwrap();
        assert!(process.all().await.is_empty());
        for stream in &streams {
            assert_eq!(process.position(stream).await, 0);
        }
    }
}

/// Puts this many rows into one partition of the model, by a raw client.
async fn fill_one_partition(world: &World, rows: usize) {
    let stores = world.stores().await;
    let keys = (0..).map(|n| format!("notebook#{n}"));
    let keys: Vec<String> = keys
        .filter(|key| super::shard_of(key) == 0)
        .take(rows)
        .collect();
    for batch in keys.chunks(25) {
        let puts = batch.iter().map(|key| {
            let item: Item = [
                ("pk".into(), s("notes.g1/notebooks/00")),
                ("sk".into(), s(key)),
                ("d".into(), s(r#"{"numbers":[1]}"#)),
                ("v".into(), crate::support::n(1)),
            ]
            .into();
            let put = PutRequest::builder().set_item(Some(item)).build().unwrap();
            WriteRequest::builder().put_request(put).build()
        });
        let request = stores.client().batch_write_item();
        let request = request.request_items("events-models", puts.collect());
        request.send().await.unwrap();
    }
}

#[tokio::test]
async fn a_reset_follows_every_page_and_deletes_what_was_left_unprocessed() {
    let world = World::new().await;
    fill_one_partition(&world, 1_030).await;
    // Of every seventh batch the server deletes nothing, and says so.
    let process: Process<Notebook> = world
        .process_over(|call| match call.operation.as_str() {
            "BatchWriteItem" if call.nth % 7 == 1 => unprocessed(call),
            _ => Fate::Pass,
        })
        .await;
    process.rows.reset(&model()).await.unwrap();
    let operations = process.operations();
    let queries = operations.iter().filter(|o| *o == "Query");
    // One per partition, and one more for the page that follows a full one.
    assert_eq!(queries.count(), 65);
    assert!(process.all().await.is_empty());
}

/// Returns the answer that nothing of a batch was processed.
fn unprocessed(call: &Call) -> Fate {
    let asked = &call.body["RequestItems"];
    let answer = serde_json::json!({ "UnprocessedItems": asked });
    Fate::Answer(200, answer.to_string())
}

#[tokio::test]
async fn an_item_that_is_never_processed_is_throttling() {
    let world = World::new().await;
    fill_one_partition(&world, 3).await;
    let process: Process<Notebook> = world
        .process_over(|call| match call.operation.as_str() {
            "BatchWriteItem" => unprocessed(call),
            _ => Fate::Pass,
        })
        .await;
    let error = process.rows.reset(&model()).await.unwrap_err();
    assert_eq!(error.class(), foldstream::runner::ErrorClass::Transient);
    assert!(format!("{error}").contains("unprocessed"), "{error}");
}

#[tokio::test]
async fn what_is_projected_during_a_reset_is_of_the_model_that_is_emptied() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.note(&stream, 1, &[1, 2]).await;
    process.flush().await;
    let (model, event) = (model(), noted(3));
    let reset = process.rows.reset(&model);
    let meanwhile = process.project(&stream, 3, event);
    let (reset, ()) = tokio::join!(reset, meanwhile);
    reset.unwrap();
    process.flush().await;
    assert!(process.all().await.is_empty());
    assert_eq!(process.position(&stream).await, 0);
    process.note(&stream, 1, &[1]).await;
    process.flush().await;
    assert_eq!(process.numbers(&stream).await, [1]);
}
