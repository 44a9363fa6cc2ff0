//! Records that count as covered: by watermarks, by rows of dirty streams, and by nothing else.
use super::{
    script::Script,
    world::{MIN, S, World, pass, stream},
};
use foldstream::publisher::{DirtyReason, Notice};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn the_checkpoint_stays_below_a_record_that_is_not_covered() {
    let world = World::new(Script::new(&["a"]));
    world.take_down("2");
    for id in ["1", "2", "3", "4", "5"] {
        world.write("a", id).await;
    }
    let one = world.start("one");
    pass(30 * S).await;
    assert_eq!(world.sent("5"), [1], "later pages are published meanwhile");
    one.kill().await;
    assert!(world.rows("2026-01-01").await["shard/a"].contains(r#""q":"1""#));
    world.bring_up();
    let _two = world.start("two");
    pass(2 * MIN).await;
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_record_does_not_block_its_shard_until_others_expire() {
    let world = World::new(Script::new(&["a"]));
    world.take_down("2");
    for id in ["1", "2", "3"] {
        world.write("a", id).await;
    }
    let running = world.start("one");
    pass(10 * S).await;
    // The bus works for others, so that the stream is set aside after a minute.
    for n in 10..20 {
        world.write("a", &n.to_string()).await;
        pass(10 * S).await;
    }
    let dirty = world.dirty().await;
    assert_eq!(dirty.len(), 1);
    assert_eq!(
        (&dirty[0].stream, dirty[0].why),
        (&stream("2"), DirtyReason::Backlog)
    );
    assert_eq!(running.status().set_aside, 1);
    assert!(running.status().shards[0].checkpoint.is_some());
    // The sweep of the reader publishes it.
    world.bring_up();
    pass(15 * MIN).await;
    world.assert_at_rest().await;
    assert_eq!(world.dirty().await, []);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_set_aside_while_nothing_can_be_published() {
    let world = World::new(Script::new(&["a"]));
    world.take_down("");
    for id in ["1", "2", "3"] {
        world.write("a", id).await;
    }
    let running = world.start("one");
    pass(5 * MIN).await;
    assert_eq!(
        (world.dirty().await.len(), running.status().set_aside),
        (0, 0)
    );
    assert!(running.status().state.is_error());
    world.bring_up();
    pass(MIN).await;
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn the_streams_of_records_older_than_six_hours_are_set_aside() {
    let world = World::new(Script::new(&["a"]));
    for (id, age) in [("old", 7 * HOUR), ("young", 5 * HOUR)] {
        let commit = world.append(id).await;
        world
            .script
            .write_old("a", Some(Notice::Commit(commit)), age);
    }
    let running = world.start("one");
    pass(30 * S).await;
    assert_eq!([world.sent("old"), world.sent("young")], [vec![], vec![1]]);
    let dirty = world.dirty().await;
    assert_eq!(
        (&dirty[0].stream, dirty[0].why),
        (&stream("old"), DirtyReason::Old)
    );
    assert!(world.rows("2026-01-01").await["shard/a"].contains(r#""q":"2""#));
    assert_eq!(running.status().set_aside, 1);
    pass(15 * MIN).await;
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_can_never_be_published_leaves_a_dirty_row_and_no_gap() {
    let world = World::new(Script::new(&["a"]));
    // The notice names a commit that the store does not have: a fork of the history.
    let commit = world.append("1").await;
    world.script.write("a", Some(Notice::Commit(commit)));
    let running = world.start("one");
    pass(20 * S).await;
    let other = World::new(Script::new(&["a"]));
    let forked = other.append("1").await;
    world.script.write("a", Some(Notice::Commit(forked)));
    world.write("a", "2").await;
    pass(20 * S).await;
    assert_eq!(world.sent("2"), [1]);
    assert_eq!(running.status().shards[0].pages, 0);
}

#[tokio::test(start_paused = true)]
async fn records_that_are_no_commits_count_as_covered() {
    let world = World::new(Script::new(&["a"]));
    world.write("a", "1").await;
    for _ in 0..5 {
        world.script.write("a", None);
    }
    let _running = world.start("one");
    pass(20 * S).await;
    assert!(world.rows("2026-01-01").await["shard/a"].contains(r#""q":"6""#));
}
