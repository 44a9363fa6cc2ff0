//! Builds of different models.
use super::harness::*;
use crate::runner::harness::World;
use foldstream::runner::{ModelId, ProcessorState, ReadModelError};

#[tokio::test(start_paused = true)]
async fn a_build_without_a_generation_of_its_model_waits_for_a_replay_and_the_old_one_is_superseded()
 {
    let world = World::new(1);
    let (old_books, new_books) = (Books::<1>::default(), Books::<2>::default());
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let old = start(&world, &old_books);
    pass(20).await;
    let old_models = old.read_models();
    assert_eq!(
        old_models.active_model("books").await.unwrap(),
        ModelId::new("books", 1)
    );
    let new = start(&world, &new_books);
    pass(20).await;
    assert_eq!(state(&new), ProcessorState::Waiting);
    assert!(
        trouble(&new).contains("start a replay"),
        "{}",
        trouble(&new)
    );
    // A rolling deployment must go on, so that the replay can be started.
    assert!(new.health().readiness().is_ok());
    let error = new.read_models().active_model("books").await.unwrap_err();
    assert!(
        matches!(error, ReadModelError::OtherModel { .. }),
        "{error:?}"
    );

    let mut replay = Replay::begin(&world).await;
    replay.model = (1, 2);
    new_books.scan(2, "a", 1..=3);
    replay.catch_up().await;
    world.deposit("a").await;
    pass(60).await;
    assert!(serves(&world.proc().await, 2));
    assert_eq!(new_books.versions(2, "a"), [1, 2, 3, 4]);
    assert_eq!(
        old_books.versions(2, "a"),
        [0; 0],
        "old code fills no new model"
    );
    assert_eq!(state(&new), ProcessorState::Running);
    assert_eq!(state(&old), ProcessorState::Superseded);
    let rows = world.row_values("inst/books").await;
    assert!(
        rows.iter().any(|row| row.contains(r#""s":"superseded""#)),
        "{rows:?}"
    );
    // Nothing has halted, and the old build goes on answering queries for a while.
    assert!(old.report().processor("books").unwrap().error.is_none());
    assert_eq!(
        old_models.active_model("books").await.unwrap(),
        ModelId::new("books", 1)
    );
    world.deposit("a").await;
    pass(10).await;
    assert_eq!(old_books.versions(1, "a"), [1, 2, 3, 4]);
    pass(600).await;
    let error = old_models.active_model("books").await.unwrap_err();
    assert!(
        matches!(error, ReadModelError::OtherModel { .. }),
        "{error:?}"
    );
    stop(new).await;
    stop(old).await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_state_stops_nothing_that_runs_and_an_instance_that_starts_waits() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let running = start(&world, &books);
    pass(20).await;
    let row = r#"{"a":1,"st":"of tomorrow","s":true,"e":9,"m":1,"t":2,"r":"x"}"#;
    world.put("proc", "books", row.into()).await;
    pass(20).await;
    let waiting = start(&world, &books);
    world.deposit("a").await;
    pass(20).await;
    assert_eq!(state(&running), ProcessorState::Running);
    assert_eq!(books.versions(1, "a"), [1, 2]);
    assert_eq!(state(&waiting), ProcessorState::Waiting);
    assert!(
        trouble(&waiting).contains("of tomorrow"),
        "{}",
        trouble(&waiting)
    );
    let row = r#"{"a":1,"st":"live","e":10,"m":1,"t":2}"#;
    world.put("proc", "books", row.into()).await;
    pass(20).await;
    assert_eq!(state(&waiting), ProcessorState::Running);
    stop(running).await;
    stop(waiting).await;
}
