use super::harness::*;
use crate::runner::harness::{TOPIC, World, partition};
use foldstream::runner::{ModelId, ProcessorState};

#[tokio::test(start_paused = true)]
async fn events_of_the_catch_up_are_in_both_models_and_the_old_one_serves_until_the_switch() {
    let world = World::new(2);
    let books = Books::<1>::default();
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let handle = start(&world, &books);
    pass(20).await;
    let replay = Replay::begin(&world).await;
    // It was published before the scan ended, and is consumed by the new generation.
    world.deposit("a").await;
    books.scan(2, "a", 1..=3);
    pass(20).await;
    assert!(handle.health().processor("books").unwrap().next.is_none());
    let mut ends = world.end_offsets().await;
    // The topic ends there only later, so that the switch has to wait.
    ends.iter_mut().for_each(|end| *end += 2);
    replay.catch_up_to(&ends).await;
    pass(30).await;
    let health = handle.health();
    let next = health.processor("books").unwrap().next.clone().unwrap();
    assert_eq!((next.generation, next.state), (2, ProcessorState::Running));
    assert_eq!(next.lag.records, Some(0));
    assert_eq!(health.processor("books").unwrap().generation, Some(1));
    let proc = world.proc().await;
    assert!(
        proc.contains("catch_up"),
        "the ends are not reached: {proc}"
    );
    for id in ["a", "b", "g", "i", "j"] {
        world.deposit(id).await;
        world.deposit(id).await;
    }
    pass(40).await;
    assert_eq!(books.versions(1, "a"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(books.versions(2, "a"), [1, 2, 3, 4, 5, 6]);
    let proc = world.proc().await;
    assert!(serves(&proc, 2), "{proc}");
    assert!(replay.is_done().await);
    let health = handle.health();
    let health = health.processor("books").unwrap();
    assert_eq!(
        (health.generation, health.state),
        (Some(2), ProcessorState::Running)
    );
    assert!(health.next.is_none());
    // The old one has stopped.
    world.deposit("a").await;
    pass(10).await;
    assert_eq!(books.versions(1, "a"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(books.versions(2, "a"), [1, 2, 3, 4, 5, 6, 7]);
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn the_switch_waits_until_the_new_generation_is_where_the_old_one_is() {
    let world = World::new(1);
    let books = Books::<1>::default();
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let handle = start(&world, &books);
    pass(20).await;
    let mut replay = Replay::begin(&world).await;
    // The hand-over is at 1, and the scan ended at 2. The old generation is at 3.
    replay.hand_over = vec![1];
    books.scan(2, "a", 1..=1);
    *books.blocked.lock().unwrap() = Some((2, 3));
    replay.catch_up_to(&[2]).await;
    pass(60).await;
    assert_eq!(
        (world.committed(OLD).await, world.committed(NEW).await),
        (3, 2)
    );
    let proc = world.proc().await;
    assert!(proc.contains("catch_up"), "{proc}");
    *books.blocked.lock().unwrap() = None;
    pass(60).await;
    assert!(serves(&world.proc().await, 2));
    assert_eq!(books.versions(2, "a"), [1, 2, 3]);
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_rebalance_during_the_hand_over_loses_and_repeats_nothing() {
    let world = World::new(4);
    let books = Books::<1>::default();
    let ids: Vec<_> = (0..12).map(|n| n.to_string()).collect();
    for id in &ids {
        world.deposit(id).await;
    }
    let first = start(&world, &books);
    pass(20).await;
    let replay = Replay::begin(&world).await;
    for id in &ids {
        books.scan(2, id, 1..=1);
        world.deposit(id).await;
    }
    replay.catch_up().await;
    let mut others = Vec::new();
    for round in 0..12 {
        for id in &ids {
            world.deposit(id).await;
        }
        match round {
            1 | 3 => others.push(start(&world, &books)),
            4 | 6 => {
                for group in [OLD, NEW] {
                    world.bus.expel_owner(group, &partition(round % 4));
                }
            }
            7 => drop(others.pop()),
            _ => {}
        }
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    }
    pass(120).await;
    assert!(serves(&world.proc().await, 2));
    assert!(replay.is_done().await);
    for id in &ids {
        let all: Vec<u64> = (1..=14).collect();
        assert_eq!(books.versions(2, id), all, "{id}");
    }
    for handle in others {
        stop(handle).await;
    }
    stop(first).await;
}

#[tokio::test(start_paused = true)]
async fn a_transaction_marker_at_the_end_of_a_partition_does_not_block_the_switch() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let handle = start(&world, &books);
    pass(20).await;
    let replay = Replay::begin(&world).await;
    books.scan(2, "a", 1..=1);
    world.bus.skip_offsets(&partition(0), 1).unwrap();
    assert_eq!(world.end_offsets().await, [2]);
    replay.catch_up().await;
    pass(60).await;
    assert!(serves(&world.proc().await, 2), "{}", world.proc().await);
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_new_since_the_scan_is_read_from_its_first_record() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let handle = start(&world, &books);
    pass(20).await;
    let replay = Replay::begin(&world).await;
    books.scan(2, "a", 1..=1);
    let ends = world.end_offsets().await;
    world.bus.set_partitions(TOPIC, 3).unwrap();
    let ids: Vec<_> = (0..9).map(|n| format!("n{n}")).collect();
    for id in &ids {
        world.deposit(id).await;
    }
    replay.catch_up_to(&ends).await;
    pass(120).await;
    assert!(serves(&world.proc().await, 2));
    for id in &ids {
        assert_eq!(books.versions(2, id), [1], "{id}");
    }
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_a_replay_has_built_never_starts_by_the_policy() {
    let world = World::new(1);
    let books = Books::<1>::default();
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let handle = start(&world, &books);
    pass(20).await;
    let mut replay = Replay::begin(&world).await;
    replay.hand_over = vec![2];
    books.scan(2, "a", 1..=2);
    replay.catch_up().await;
    // One of the rows is not there yet.
    world.remove("boot/books/2", TOPIC).await;
    pass(60).await;
    assert_eq!(world.committed(NEW).await, 0);
    let health = handle.health();
    let health = health.processor("books").unwrap();
    assert_eq!(health.state, ProcessorState::Running);
    let next = health.next.clone().unwrap();
    assert_eq!(next.state, ProcessorState::Starting);
    let trouble = next.trouble.unwrap();
    assert!(
        trouble.error.contains("where the generation starts"),
        "{trouble:?}"
    );
    world.put("boot/books/2", TOPIC, r#"{"p":1}"#.into()).await;
    pass(60).await;
    assert!(serves(&world.proc().await, 2));
    assert_eq!(books.versions(2, "a"), [1, 2, 3]);
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_generation_whose_position_is_lost_is_followed_by_the_one_that_a_replay_has_built() {
    let world = World::new(1);
    let books = Books::<1>::default();
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let handle = start(&world, &books);
    pass(20).await;
    stop(handle).await;
    world.bus.forget_committed(OLD);
    let handle = start(&world, &books);
    pass(20).await;
    assert_eq!(state(&handle), ProcessorState::Halted);
    let replay = Replay::begin(&world).await;
    books.scan(2, "a", 1..=3);
    replay.catch_up().await;
    pass(10).await;
    world.deposit("a").await;
    pass(60).await;
    assert!(serves(&world.proc().await, 2));
    assert_eq!(state(&handle), ProcessorState::Running);
    assert_eq!(books.versions(2, "a"), [1, 2, 3, 4]);
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn queries_are_told_the_model_that_serves() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let handle = start(&world, &books);
    pass(20).await;
    let models = handle.read_models();
    assert_eq!(
        models.active_model("books").await.unwrap(),
        ModelId::new("books", 1)
    );
    let replay = Replay::begin(&world).await;
    books.scan(2, "a", 1..=1);
    replay.catch_up().await;
    assert_eq!(
        models.active_model("books").await.unwrap(),
        ModelId::new("books", 1)
    );
    pass(60).await;
    assert_eq!(
        models.active_model("books").await.unwrap(),
        ModelId::new("books", 2)
    );
    stop(handle).await;
}
