//! Lists by the index, and of all rows.
use super::{Erased, Notebook, Process, World, model, notebook, noted};
use foldstream_dynamodb::IndexQuery;
use futures::{StreamExt as _, TryStreamExt as _};
use std::num::NonZeroU32;

async fn listed(process: &Process<Notebook>, query: IndexQuery) -> Vec<String> {
    let rows = process.rows.query(&model(), &query);
    let rows: Vec<_> = rows.try_collect().await.unwrap();
    rows.into_iter().map(|(key, _)| key).collect()
}

/// Stores notebooks whose first numbers are 1, 2, 3, ... and whose last numbers are below 10, 20,
/// 30, ... in descending order.
async fn given(world: &World, notebooks: u64) -> Process<Notebook> {
    let process: Process<Notebook> = world.process().await;
    for first in 1..=notebooks {
        let last = 100 - first;
        process.note(&notebook(first), 1, &[first, last]).await;
    }
    process.flush().await;
    process.operations();
    process
}

#[tokio::test]
async fn a_query_lists_the_rows_of_a_partition_in_order() {
    let world = World::new().await;
    let process = given(&world, 6).await;
    let odd = || IndexQuery::new("odd");
    let ascending = ["notebook#5", "notebook#3", "notebook#1"];
    let descending = ["notebook#1", "notebook#3", "notebook#5"];
    assert_eq!(listed(&process, odd()).await, ascending);
    assert_eq!(listed(&process, odd().descending()).await, descending);
    let prefixed = odd().with_sort_prefix("009");
    assert_eq!(listed(&process, prefixed).await, ascending);
    assert_eq!(
        listed(&process, odd().with_sort_prefix("0097")).await,
        ["notebook#3"]
    );
    assert_eq!(
        listed(&process, odd().with_sort_prefix("")).await,
        ascending
    );
    let after = odd().with_start_after("notebook#5", "0095");
    assert_eq!(listed(&process, after).await, ascending[1..]);
    let before = odd().descending().with_start_after("notebook#1", "0099");
    assert_eq!(listed(&process, before).await, descending[1..]);
    assert!(
        listed(&process, IndexQuery::new("neither"))
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn a_row_moves_in_the_index_with_its_content_and_leaves_it_when_deleted() {
    let world = World::new().await;
    let process = given(&world, 3).await;
    let query = || IndexQuery::new("odd");
    process.project(&notebook(3), 3, noted(50)).await;
    process.project(&notebook(1), 3, Erased).await;
    process.flush().await;
    assert_eq!(listed(&process, query()).await, ["notebook#3"]);
    let rows: Vec<_> = process
        .rows
        .query(&model(), &query())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(rows[0].1.numbers, [3, 97, 50]);
    process.project(&notebook(1), 4, noted(8)).await;
    process.flush().await;
    assert_eq!(listed(&process, query()).await, ["notebook#3"]);
    assert_eq!(
        listed(&process, IndexQuery::new("even")).await,
        ["notebook#1", "notebook#2"]
    );
}

#[tokio::test]
async fn pages_are_read_as_the_stream_is_polled() {
    let world = World::new().await;
    let process = given(&world, 20).await;
    let page = NonZeroU32::new(3).unwrap();
    let query = || IndexQuery::new("even").with_page_size(page);
    let model = model();
    let mut first: Vec<_> = process.rows.query(&model, &query()).take(3).collect().await;
    assert_eq!(first.remove(0).unwrap().0, "notebook#20");
    assert_eq!(process.operations(), ["Query"]);
    assert_eq!(listed(&process, query()).await.len(), 10);
    assert_eq!(process.operations(), ["Query"; 4]);
    assert_eq!(process.rows.all(&model).count().await, 20);
    assert_eq!(process.operations(), ["Query"; 64]);
}

#[tokio::test]
async fn reads_are_consistent_unless_asked_otherwise() {
    let world = World::new().await;
    let process = given(&world, 1).await;
    let model = model();
    for is_consistent in [true, false] {
        let rows = match is_consistent {
            true => process.rows.clone(),
            false => process.rows.clone().with_eventual_reads(),
        };
        process.wire.forget();
        rows.get(&model, "notebook#1").await.unwrap().unwrap();
        rows.all(&model).next().await.unwrap().unwrap();
        for call in process.wire.calls() {
            assert_eq!(call.body["ConsistentRead"], is_consistent, "{call:?}");
        }
        // What the projector builds on is always consistent.
        process.wire.forget();
        let event = super::context(&notebook(1), 3);
        use foldstream::runner::Projector as _;
        rows.project(&noted(3), &event).await.unwrap();
        rows.position(&model, &notebook(1)).await.unwrap();
        rows.forget_buffered(&model, &[notebook(1)]).await.unwrap();
        let calls = process.wire.calls();
        assert_eq!(calls.len(), 2);
        assert!(calls.iter().all(|call| call.body["ConsistentRead"] == true));
    }
}
