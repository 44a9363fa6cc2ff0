//! The deletion of generations that were left.
use super::harness::*;
use crate::runner::harness::{TOPIC, World};
use foldstream::{
    ports::MessageBus,
    runner::{ModelId, Projector},
};
use std::sync::Arc;

#[tokio::test(start_paused = true)]
async fn a_generation_that_was_left_is_kept_for_ten_minutes_and_then_deleted() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let handles = [start(&world, &books), start(&world, &books)];
    pass(20).await;
    let replay = Replay::begin(&world).await;
    books.scan(2, "a", 1..=1);
    replay.catch_up().await;
    pass(60).await;
    assert!(serves(&world.proc().await, 2));
    world
        .put("pos/books/1/7", "account#a", r#"{"v":1}"#.into())
        .await;
    world
        .put("park/books/1", "!changed", r#"{"k":"00"}"#.into())
        .await;
    world
        .put(&format!("dlq/books/1/{TOPIC}/0"), "x", "={}".into())
        .await;
    world
        .put(&format!("discarded/books/1/{TOPIC}/0"), "x", "{}".into())
        .await;
    pass(480).await;
    assert!(books.deleted.lock().unwrap().is_empty());
    assert_eq!(world.rows("old/books").await, 1);
    pass(300).await;
    assert_eq!(*books.deleted.lock().unwrap(), [1], "by one of the two");
    for partition in ["old/books", "boot/books/1", "pos/books/1/7", "park/books/1"] {
        assert_eq!(world.rows(partition).await, 0, "{partition}");
    }
    assert_eq!(world.rows(&format!("dlq/books/1/{TOPIC}/0")).await, 0);
    // It is audit.
    assert_eq!(world.rows(&format!("discarded/books/1/{TOPIC}/0")).await, 1);
    let committed = world.bus.committed(OLD, TOPIC).await.unwrap();
    assert!(
        committed.iter().all(|(_, at)| at.is_none()),
        "{committed:?}"
    );
    assert!(world.rows("boot/books/2").await > 0);
    world.deposit("a").await;
    pass(10).await;
    assert_eq!(books.versions(2, "a"), [1, 2]);
    for handle in handles {
        stop(handle).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_an_instance_still_runs_is_not_deleted() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let handle = start(&world, &books);
    pass(20).await;
    let row = r#"{"a":2,"st":"live","e":5,"m":2,"t":2}"#;
    world.put("proc", "books", row.into()).await;
    world.put("old/books", "0000000001", "{}".into()).await;
    let other = r#"{"l":"host-9","e":1,"g":1,"s":"running","t":7,"n":4}"#;
    world
        .put("inst/books", &format!("{:032x}", 9), other.into())
        .await;
    pass(1200).await;
    assert!(books.deleted.lock().unwrap().is_empty());
    world.remove("inst/books", &format!("{:032x}", 9)).await;
    pass(180).await;
    assert_eq!(*books.deleted.lock().unwrap(), [1]);
    stop(handle).await;
}

#[tokio::test]
async fn a_projector_behind_an_arc_deletes_its_model() {
    let books = Arc::new(Books::<1>::default());
    let model = ModelId::new("books", 1);
    Projector::delete_model(&books, &model).await.unwrap();
    assert_eq!(*books.deleted.lock().unwrap(), [1]);
}
