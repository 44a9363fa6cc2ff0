//! Runs that end without a switch.
use super::harness::*;
use crate::runner::harness::World;
use foldstream::runner::ProcessorState;

#[tokio::test(start_paused = true)]
async fn a_run_whose_row_never_came_is_ended_after_a_lease_time() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let handle = start(&world, &books);
    pass(20).await;
    let _ = Replay::begin(&world).await;
    world.remove("run", RUN).await;
    pass(45).await;
    let proc = world.proc().await;
    assert!(proc.contains("preparing"), "the row may still come: {proc}");
    world.deposit("a").await;
    pass(60).await;
    assert!(serves(&world.proc().await, 1), "{}", world.proc().await);
    assert_eq!(
        books.versions(1, "a"),
        [1, 2],
        "the old one has served all the time"
    );
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waits_for_its_owner_is_left_alone() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let handle = start(&world, &books);
    pass(20).await;
    let _ = Replay::begin(&world).await;
    pass(600).await;
    assert!(world.proc().await.contains("preparing"));
    assert_eq!(state(&handle), ProcessorState::Running);
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_leaves_the_live_generation_untouched() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let handle = start(&world, &books);
    pass(20).await;
    let replay = Replay::begin(&world).await;
    books.scan(2, "a", 1..=1);
    let mut ends = world.end_offsets().await;
    ends[0] += 1;
    replay.catch_up_to(&ends).await;
    pass(20).await;
    assert!(handle.health().processor("books").unwrap().next.is_some());
    // The operator dies after the row of the run is written. From now on the new generation could
    // be switched to.
    replay
        .write_run("cancelled", &format!(r#","u":{{"GlobalEvents":{ends:?}}}"#))
        .await;
    world.deposit("a").await;
    pass(60).await;
    let proc = world.proc().await;
    assert!(serves(&proc, 1) && proc.contains(r#""t":2"#), "{proc}");
    world.deposit("a").await;
    pass(20).await;
    assert_eq!(books.versions(1, "a"), [1, 2, 3]);
    assert!(handle.health().processor("books").unwrap().next.is_none());
    assert_eq!(state(&handle), ProcessorState::Running);
    // What the run has built is deleted, and nothing of the live generation.
    pass(900).await;
    assert_eq!(*books.deleted.lock().unwrap(), [2]);
    assert!(world.rows("boot/books/1").await > 0);
    assert_eq!(world.rows("boot/books/2").await, 0);
    stop(handle).await;
}
