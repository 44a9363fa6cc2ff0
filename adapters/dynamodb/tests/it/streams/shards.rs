//! Shards that begin, end, split, vanish, and streams that are replaced.
use super::{
    script::{Call, Script},
    world::{MIN, S, World, pass},
};
use foldstream_dynamodb::streams::{ReaderState, ShardStart, StreamServiceError};

const LABEL: &str = "2026-01-01";

#[tokio::test(start_paused = true)]
async fn a_commit_is_published_from_every_root_shard() {
    let world = World::new(Script::new(&["a", "b", "c"]));
    let running = world.start("one");
    for (shard, id) in [("a", "1"), ("b", "2"), ("c", "3"), ("a", "1")] {
        world.write(shard, id).await;
    }
    pass(10 * S).await;
    assert_eq!(
        [world.sent("1"), world.sent("2"), world.sent("3")],
        [vec![1, 2], vec![1], vec![1]]
    );
    assert_eq!(running.status().state, ReaderState::Reading);
    assert_eq!(running.status().shards.len(), 3);
    assert_eq!(running.stop().await.unwrap().messages, 4);
}

#[tokio::test(start_paused = true)]
async fn children_are_found_by_a_sync_of_their_own_also_when_no_leased_shard_is_left() {
    let world = World::new(Script::new(&["a"]));
    let running = world.start("one");
    pass(10 * S).await;
    world.script.close("a");
    pass(20 * S).await;
    assert_eq!(running.shards(), [""; 0]);
    // The service lists the children late.
    world.script.split("a", &["b", "c"]);
    world.write("b", "1").await;
    pass(12 * S).await;
    assert_eq!(running.shards(), ["b", "c"]);
    assert_eq!(world.sent("1"), [1]);
}

#[tokio::test(start_paused = true)]
async fn idle_for_a_minute_with_a_live_stream_is_an_error_state() {
    let world = World::new(Script::new(&["a"]));
    let running = world.start("one");
    pass(10 * S).await;
    world.script.close("a");
    pass(50 * S).await;
    assert!(!running.status().state.is_error(), "{:?}", running.status());
    pass(30 * S).await;
    assert!(matches!(running.status().state, ReaderState::Idle { .. }));
    world.script.split("a", &["b"]);
    pass(20 * S).await;
    assert_eq!(running.status().state, ReaderState::Reading);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_has_no_share_is_a_standby_and_not_idle() {
    let world = World::new(Script::new(&["a"]));
    let (one, two) = (world.start("one"), world.start("two"));
    pass(3 * MIN).await;
    let mut states = [one.status().state, two.status().state];
    states.sort_by_key(|state| *state == ReaderState::Standby);
    assert_eq!(states, [ReaderState::Reading, ReaderState::Standby]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_shard_without_listed_children_is_waited_for() {
    let world = World::new(Script::new(&["a"]));
    world.write("a", "1").await;
    world.script.close("a");
    let running = world.start("one");
    pass(5 * MIN).await;
    assert_eq!(world.sent("1"), [1]);
    assert_eq!(running.status().done, 1);
    world.script.split("a", &["b"]);
    world.write("b", "1").await;
    pass(10 * S).await;
    assert_eq!(world.sent("1"), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_child_is_read_only_after_its_parent_is_done() {
    let world = World::new(Script::new(&["a"]));
    world.take_down("1");
    world.write("a", "1").await;
    world.script.split("a", &["b"]);
    world.write("b", "2").await;
    let running = world.start("one");
    pass(20 * S).await;
    assert_eq!(
        (running.shards(), running.status().waiting),
        (vec!["a".to_owned()], 1)
    );
    assert_eq!(world.sent("2"), [0; 0]);
    world.bring_up();
    pass(20 * S).await;
    assert_eq!(
        (running.shards(), running.status().waiting),
        (vec!["b".to_owned()], 0)
    );
    assert_eq!([world.sent("1"), world.sent("2")], [[1], [1]]);
}

#[tokio::test(start_paused = true)]
async fn a_child_waits_for_a_parent_that_another_instance_reads() {
    let world = World::new(Script::new(&["a"]));
    world.take_down("1");
    world.write("a", "1").await;
    let one = world.start("one");
    pass(10 * S).await;
    world.script.split("a", &["b"]);
    world.write("b", "2").await;
    let two = world.start("two");
    pass(MIN).await;
    assert_eq!((one.shards(), two.shards()), (vec!["a".to_owned()], vec![]));
    assert_eq!(two.status().state, ReaderState::Standby);
    world.bring_up();
    pass(20 * S).await;
    assert_eq!([world.sent("1"), world.sent("2")], [[1], [1]]);
}

#[tokio::test(start_paused = true)]
async fn a_parent_whose_rows_are_gone_is_a_legal_end() {
    let world = World::new(Script::new(&["a"]));
    let one = world.start("one");
    world.write("a", "1").await;
    pass(10 * S).await;
    world.script.split("a", &["b"]);
    pass(20 * S).await;
    assert_eq!(one.shards(), ["b"]);
    // A day later the parent is no longer described, and its rows are swept.
    world.script.delete("a");
    pass(2 * MIN).await;
    let rows = world.rows(LABEL).await;
    let about_a = rows.keys().filter(|key| key.ends_with("/a"));
    assert_eq!(about_a.count(), 0, "{rows:?}");
    one.kill().await;
    world.write("b", "2").await;
    let two = world.start("two");
    pass(2 * MIN).await;
    assert_eq!(
        (two.shards(), world.sent("2")),
        (vec!["b".to_owned()], vec![1])
    );
    assert_eq!(two.status().reconcile, None);
}

#[tokio::test(start_paused = true)]
async fn rows_of_a_shard_stay_while_a_child_has_not_begun() {
    let world = World::new(Script::new(&["a"]));
    world.script.split("a", &["b"]);
    // The child cannot begin: nobody gets an iterator for it.
    let one = world.start("one");
    world.script.set_fate(|call| match call {
        Call::Shards => None,
        Call::Iterator(shard, _) if shard == "b" => Some(StreamServiceError::Unavailable {
            source: "down".into(),
        }),
        _ => None,
    });
    pass(20 * S).await;
    assert!(world.rows(LABEL).await.contains_key("shard/a"));
    one.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_child_whose_parent_was_never_read_notes_the_loss_and_starts_at_the_horizon() {
    let world = World::new(Script::new(&[]));
    world.script.add("b", Some("a"));
    world.write("b", "1").await;
    let running = world.start("one");
    pass(20 * S).await;
    assert_eq!(world.sent("1"), [1]);
    assert!(
        world
            .script
            .calls()
            .contains(&Call::Iterator("b".into(), ShardStart::Horizon))
    );
    let note = running.status().reconcile.expect("a note");
    assert!(note.why.contains("shard b"), "{note:?}");
    // The note is durable until the operator has reconciled.
    running.stop().await.unwrap();
    let again = world.start("two");
    pass(20 * S).await;
    assert_eq!(again.status().reconcile.as_ref(), Some(&note));
    assert!(again.reader.reconciled(&note).await.unwrap());
    pass(20 * S).await;
    assert_eq!(again.status().reconcile, None);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_vanished_before_its_end_is_a_loss_and_not_a_loop() {
    let world = World::new(Script::new(&["a"]));
    world.write("a", "1").await;
    let one = world.start("one");
    pass(20 * S).await;
    one.stop().await.unwrap();
    world.script.split("a", &["b"]);
    world.script.delete("a");
    world.write("b", "2").await;
    world.script.forget_calls();
    let two = world.start("two");
    pass(MIN).await;
    assert_eq!(world.sent("2"), [1]);
    assert!(two.status().reconcile.is_some());
    let calls = world.script.calls();
    let about_a = calls
        .iter()
        .filter(|call| matches!(call, Call::Iterator(id, _) if id == "a"));
    assert_eq!(about_a.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_listed_shard_that_the_service_does_not_know_for_a_moment_is_not_given_up() {
    let world = World::new(Script::new(&["a"]));
    world.write("a", "1").await;
    world
        .script
        .set_fate(|call| matches!(call, Call::Iterator(..)).then_some(StreamServiceError::Gone));
    let running = world.start("one");
    pass(MIN).await;
    assert_eq!(
        (running.shards(), running.status().reconcile),
        (vec!["a".to_owned()], None)
    );
    world.script.heal();
    pass(20 * S).await;
    assert_eq!(world.sent("1"), [1]);
}

#[tokio::test(start_paused = true)]
async fn two_parents_that_merge_are_both_read_before_their_child_ends() {
    let world = World::new(Script::new(&["a", "b"]));
    world.write("a", "1").await;
    world.write("b", "1").await;
    world.script.split("a", &["c"]);
    world.script.close("b");
    world.write("c", "1").await;
    let running = world.start("one");
    pass(MIN).await;
    assert_eq!(
        (running.shards(), running.status().done),
        (vec!["c".to_owned()], 2)
    );
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_disabled_stream_is_an_error_state_that_ends_when_it_is_enabled() {
    let world = World::new(Script::new(&["a"]));
    world.script.disable();
    let running = world.start("one");
    pass(10 * S).await;
    assert_eq!(running.status().state, ReaderState::Disabled);
    world.script.replace(LABEL, &["a"]);
    world.write("a", "1").await;
    pass(20 * S).await;
    assert_eq!(
        (running.status().state, world.sent("1")),
        (ReaderState::Reading, vec![1])
    );
    assert_eq!(running.status().reconcile, None);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_stream_needs_a_reconcile_also_after_a_restart() {
    for is_restarted in [false, true] {
        let world = World::new(Script::new(&["a"]));
        let mut running = world.start("one");
        pass(10 * S).await;
        if is_restarted {
            running.stop().await.unwrap();
            running = world.start("two");
        }
        world.script.replace("2026-01-02", &["x"]);
        world.write("x", "1").await;
        pass(MIN).await;
        let status = running.status();
        assert_eq!(
            (status.stream.as_deref(), world.sent("1")),
            (Some("2026-01-02"), vec![1])
        );
        // A reader that runs may find first that its shard is gone.
        let note = status.reconcile.expect("a note");
        assert!(!is_restarted || note.why.contains("2026-01-02"), "{note:?}");
        running.stop().await.unwrap();
    }
}
