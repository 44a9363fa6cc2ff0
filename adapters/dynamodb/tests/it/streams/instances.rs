//! Several instances: fair shares, take-over, lost leases, and a graceful stop.
use super::{
    script::Script,
    world::{MIN, S, World, pass},
};
use foldstream::operate::Operator;
use foldstream_testkit::faults::Faults;

const SHARDS: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

#[tokio::test(start_paused = true)]
async fn instances_share_the_shards_fairly_and_no_shard_is_read_twice() {
    let world = World::new(Script::new(&SHARDS));
    let one = world.start("one");
    pass(20 * S).await;
    assert_eq!(one.shards().len(), 7);
    let (two, three) = (world.start("two"), world.start("three"));
    pass(MIN).await;
    let mut counts = [one.shards().len(), two.shards().len(), three.shards().len()];
    counts.sort_unstable();
    assert_eq!(counts, [2, 2, 3]);
    let mut all = [one.shards(), two.shards(), three.shards()].concat();
    all.sort();
    assert_eq!(all, SHARDS);
    assert_eq!(one.status().instances, 3);
    // A share that moves loses nothing and sends nothing twice.
    for n in 0..30 {
        world.write(SHARDS[n % 7], &n.to_string()).await;
    }
    two.stop().await.unwrap();
    pass(MIN).await;
    world.assert_at_rest().await;
    assert!((0..30).all(|n| world.sent(&n.to_string()) == [1]));
}

#[tokio::test(start_paused = true)]
async fn the_shards_of_an_instance_that_died_are_taken_over_from_their_checkpoints() {
    let world = World::new(Script::new(&["a"]));
    let one = world.start("one");
    for _ in 0..6 {
        world.write("a", "1").await;
    }
    pass(20 * S).await;
    one.kill().await;
    for _ in 0..3 {
        world.write("a", "1").await;
    }
    world.script.forget_calls();
    let two = world.start("two");
    pass(20 * S).await;
    assert_eq!(two.shards(), [""; 0], "the lease time of 30 s is not over");
    pass(30 * S).await;
    assert_eq!(two.status().shards[0].epoch, 2);
    assert_eq!(world.sent("1"), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    // Three records are two pages; the first six were not read again.
    let calls = world.script.calls();
    assert!(format!("{calls:?}").contains("After(6)"), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_finishes_writes_the_checkpoint_and_releases_the_leases() {
    let world = World::new(Script::new(&["a"]));
    let one = world.start("one");
    pass(10 * S).await;
    for _ in 0..4 {
        world.write("a", "1").await;
    }
    pass(S).await;
    assert_eq!(one.stop().await.unwrap().messages, 4);
    let rows = world.rows("2026-01-01").await;
    assert!(rows["shard/a"].contains(r#""q":"4""#), "{rows:?}");
    assert!(!rows["lease/a"].contains("one"), "{rows:?}");
    assert!(
        !rows.keys().any(|key| key.starts_with("member/")),
        "{rows:?}"
    );
    // The next instance need not wait for the lease time.
    let two = world.start("two");
    pass(6 * S).await;
    assert_eq!(two.shards(), ["a"]);
    assert_eq!(world.sent("1"), [1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn operators_see_what_the_publisher_of_a_running_instance_has_done() {
    let world = World::new(Script::new(&["a"]));
    let one = world.start("one");
    for _ in 0..4 {
        world.write("a", "1").await;
    }
    pass(20 * S).await;
    let operator = Operator::new(world.control.clone());
    let overview = operator.publisher(None).await.unwrap();
    let published = overview.instances.iter().map(|of| of.status.published);
    assert_eq!(published.collect::<Vec<_>>(), [4]);
    one.stop().await.unwrap();
    let overview = operator.publisher(None).await.unwrap();
    assert_eq!(overview.instances, []);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_longer_than_the_grace_for_a_record_that_hangs() {
    let world = World::new(Script::new(&["a"]));
    world.hang("2");
    world.write("a", "1").await;
    world.write("a", "2").await;
    let one = world.start("one");
    pass(20 * S).await;
    let stopping = tokio::time::timeout(11 * S, one.stop());
    stopping.await.expect("within the grace").unwrap();
    let rows = world.rows("2026-01-01").await;
    assert!(!rows["shard/a"].contains("\"q\":\"2\""), "{rows:?}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_frozen_stops_reading_what_others_have_taken() {
    let world = World::new(Script::new(&["a"]));
    let one = world.start_with("one", Faults::none());
    pass(10 * S).await;
    assert_eq!(one.shards(), ["a"]);
    // It reaches neither the control store nor the bus.
    one.faults.freeze();
    let two = world.start("two");
    world.write("a", "1").await;
    pass(MIN).await;
    assert_eq!((one.shards(), two.shards()), (vec![], vec!["a".to_owned()]));
    one.faults.thaw();
    pass(MIN).await;
    let mut all = [one.shards(), two.shards()].concat();
    all.sort();
    assert_eq!(all, ["a"]);
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_comes_again_after_a_lost_lease_is_not_taken_for_published() {
    let world = World::new(Script::new(&["a"]));
    world.take_down("1");
    world.write("a", "1").await;
    let one = world.start_with("one", Faults::none());
    pass(10 * S).await;
    assert_eq!(
        (one.shards(), world.sent("1")),
        (vec!["a".to_owned()], vec![])
    );
    // It loses the lease while the record waits, and drops the page.
    one.faults.freeze();
    pass(MIN).await;
    assert_eq!(one.shards(), [""; 0]);
    one.faults.thaw();
    world.bring_up();
    // The same process takes the shard again, and meets the record again.
    pass(2 * MIN).await;
    assert_eq!(
        (one.shards(), world.sent("1")),
        (vec!["a".to_owned()], vec![1])
    );
    world.assert_at_rest().await;
}
