//! Replays in place, and the row of an instance as a lease.
use super::harness::*;
use crate::runner::harness::World;
use foldstream::runner::ProcessorState;
use foldstream_testkit::faults::{Call, Fault, Faults, Op};

#[tokio::test(start_paused = true)]
async fn in_place_nothing_is_handled_from_draining_until_the_catch_up() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let handle = start(&world, &books);
    pass(20).await;
    let mut replay = Replay::begin(&world).await;
    replay.in_place = true;
    replay.write_run("draining", "").await;
    replay.write_proc("draining", 1, "").await;
    pass(15).await;
    // The row says that what must stop has stopped.
    let rows = world.row_values("inst/books").await;
    assert!(rows[0].contains(r#""e":1,"g":0,"s":"waiting""#), "{rows:?}");
    let started = start(&world, &books);
    books.calls.lock().unwrap().clear();
    world.deposit("a").await;
    pass(60).await;
    assert_eq!(*books.calls.lock().unwrap(), [0; 0]);
    for handle in [&handle, &started] {
        assert_eq!(state(handle), ProcessorState::Waiting);
        assert!(trouble(handle).contains("in place"), "{}", trouble(handle));
    }
    books.scan(2, "a", 1..=2);
    replay.catch_up().await;
    world.deposit("a").await;
    pass(60).await;
    assert!(serves(&world.proc().await, 2));
    assert_eq!(books.versions(2, "a"), [1, 2, 3]);
    assert_eq!(state(&handle), ProcessorState::Running);
    // The model is that of the generation that serves: only the rows of the old one are deleted.
    pass(900).await;
    assert!(books.deleted.lock().unwrap().is_empty());
    assert_eq!(
        (
            world.rows("old/books").await,
            world.rows("boot/books/1").await
        ),
        (0, 0)
    );
    stop(started).await;
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_row_could_not_be_renewed_starts_no_attempt() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let away = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = away.clone();
    let of_row = move |call: &Call<'_>| {
        let is_row =
            matches!(call, Call::Put { row, .. } if row.key.partition.starts_with("inst/"));
        is_row && asked.load(std::sync::atomic::Ordering::SeqCst)
    };
    let faults = Faults::script([Fault::Unavailable.on(Op::Put).matching(of_row)]);
    let runner = world
        .faulty_builder(&faults)
        .projector_with(books.clone(), policy());
    let handle = runner.build().unwrap().start();
    pass(20).await;
    away.store(true, std::sync::atomic::Ordering::SeqCst);
    pass(20).await;
    world.deposit("a").await;
    pass(5).await;
    assert_eq!(books.versions(1, "a"), [1], "the lease lasts");
    pass(60).await;
    world.deposit("a").await;
    pass(60).await;
    assert_eq!(books.versions(1, "a"), [1]);
    assert_eq!(state(&handle), ProcessorState::Unreachable);
    away.store(false, std::sync::atomic::Ordering::SeqCst);
    pass(15).await;
    assert_eq!(books.versions(1, "a"), [1, 2]);
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_reads_the_generations_only_after_its_row_is_written() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let row = r#"{"a":1,"st":"live","e":0,"m":1}"#;
    world.put("proc", "books", row.into()).await;
    world.deposit("a").await;
    // The row of the instance is on its way for a while, and a replay in place begins meanwhile.
    let of_row = |call: &Call<'_>| matches!(call, Call::Put { row, .. } if row.key.partition.starts_with("inst/"));
    let late = Fault::Delay(std::time::Duration::from_secs(5)).on(Op::Put);
    let faults = Faults::script([late.matching(of_row).first(1)]);
    let runner = world
        .faulty_builder(&faults)
        .projector_with(books.clone(), policy());
    let handle = runner.build().unwrap().start();
    pass(2).await;
    let mut replay = Replay::begin(&world).await;
    replay.in_place = true;
    replay.write_proc("draining", 1, "").await;
    pass(30).await;
    assert_eq!(*books.calls.lock().unwrap(), [0; 0]);
    assert_eq!(state(&handle), ProcessorState::Waiting);
    stop(handle).await;
}
