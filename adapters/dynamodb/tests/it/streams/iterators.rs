//! Iterators, pages, pauses and throttling.
use super::{
    script::{Call, ITERATOR, Script},
    world::{MIN, S, World, pass},
};
use foldstream::publisher::Notice;
use foldstream_dynamodb::streams::{ReaderState, SequenceNumber, ShardStart, StreamServiceError};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn the_iterator_moves_on_over_empty_pages() {
    let world = World::new(Script::new(&["a"]));
    world.script.set_empty_pages("a", 3);
    let _running = world.start("one");
    for _ in 0..5 {
        world.write("a", "1").await;
    }
    pass(MIN).await;
    assert_eq!(world.sent("1"), [1, 2, 3, 4, 5]);
    let calls = world.script.calls();
    let iterators = calls
        .iter()
        .filter(|call| matches!(call, Call::Iterator(..)));
    assert_eq!(iterators.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_expired_iterator_is_made_again_after_the_last_record_that_was_read() {
    let mut world = World::new(Script::new(&["a"]));
    world.config = world.config.with_max_pages_per_shard(1);
    world.take_down("");
    let last = {
        world.write("a", "1").await;
        let commit = world.append("1").await;
        world.script.write("a", Some(Notice::Commit(commit)))
    };
    let running = world.start("one");
    // The page cannot be published, so that the next one is not requested.
    pass(ITERATOR + MIN).await;
    world.write("a", "2").await;
    world.script.forget_calls();
    world.bring_up();
    pass(MIN).await;
    assert_eq!([world.sent("1"), world.sent("2")], [vec![1, 2], vec![1]]);
    let start = ShardStart::After(SequenceNumber::new(last.to_string()));
    assert!(
        world
            .script
            .calls()
            .contains(&Call::Iterator("a".into(), start))
    );
    assert_eq!(running.status().reconcile, None);
}

#[tokio::test(start_paused = true)]
async fn a_trimmed_shard_starts_at_the_horizon_and_needs_a_reconcile() {
    let world = World::new(Script::new(&["a"]));
    for id in ["1", "2", "3"] {
        world.write("a", id).await;
    }
    let one = world.start("one");
    pass(10 * S).await;
    one.stop().await.unwrap();
    for id in ["4", "5", "6"] {
        world.write("a", id).await;
    }
    world.script.trim("a", 5);
    let two = world.start("two");
    pass(MIN).await;
    assert_eq!(
        [world.sent("4"), world.sent("5"), world.sent("6")],
        [vec![], vec![], vec![1]]
    );
    let note = two.status().reconcile.expect("a note");
    assert!(note.why.contains("deleted"), "{note:?}");
}

#[tokio::test(start_paused = true)]
async fn records_that_are_trimmed_under_an_iterator_need_a_reconcile() {
    let mut world = World::new(Script::new(&["a"]));
    world.config = world.config.with_max_pages_per_shard(1);
    world.take_down("");
    for id in ["1", "2", "3", "4"] {
        world.write("a", id).await;
    }
    let running = world.start("one");
    pass(MIN).await;
    world.script.trim("a", 3);
    world.bring_up();
    pass(MIN).await;
    assert_eq!(
        [world.sent("1"), world.sent("3"), world.sent("4")],
        [vec![1], vec![], vec![1]]
    );
    assert!(running.status().reconcile.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_throttled_shard_is_asked_less_often() {
    let world = World::new(Script::new(&["a"]));
    world.write("a", "1").await;
    world.script.set_fate(|call| {
        matches!(call, Call::Records(_)).then(|| StreamServiceError::Throttled {
            retry_after: None,
            source: "slow down".into(),
        })
    });
    let running = world.start("one");
    pass(2 * MIN).await;
    // With pauses of 1 s, which grow from 100 ms and are cut at random, there are at least 120.
    let throttled = world.script.reads("a").len();
    assert!((60..=600).contains(&throttled), "{throttled}");
    let state = running.status().state;
    assert!(
        matches!(state, ReaderState::Unreachable { .. }),
        "{state:?}"
    );
    world.script.heal();
    pass(10 * S).await;
    assert_eq!(
        (running.status().state, world.sent("1")),
        (ReaderState::Reading, vec![1])
    );
}

#[tokio::test(start_paused = true)]
async fn a_shard_is_asked_at_most_five_times_per_second() {
    let world = World::new(Script::new(&["a"]));
    for _ in 0..100 {
        world.write("a", "1").await;
    }
    let _running = world.start("one");
    pass(MIN).await;
    assert_eq!(world.sent("1").len(), 100);
    let reads = world.script.reads("a");
    assert!(reads.len() > 50);
    for six in reads.windows(6) {
        let took = six[5] - six[0];
        assert!(took >= S, "six reads in {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_shard_is_asked_once_per_second() {
    let world = World::new(Script::new(&["a"]));
    let _running = world.start("one");
    pass(10 * S).await;
    world.script.forget_calls();
    pass(MIN).await;
    let reads = world.script.reads("a").len();
    assert!((55..=61).contains(&reads), "{reads}");
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_down_stops_the_reading_and_not_the_lease() {
    let mut world = World::new(Script::new(&["a"]));
    world.config = world.config.with_max_pages_per_shard(3);
    world.take_down("");
    for n in 0..40 {
        world.write("a", &n.to_string()).await;
    }
    let running = world.start("one");
    pass(3 * MIN).await;
    let shard = &running.status().shards[0];
    assert_eq!((shard.pages, shard.epoch), (3, 1));
    // Three pages were read, and none after them.
    assert_eq!(world.script.reads("a").len(), 3);
    assert!(running.status().behind_since.is_some());
    world.bring_up();
    pass(MIN).await;
    world.assert_at_rest().await;
    assert_eq!(running.status().behind_since, None);
    assert_eq!(world.dirty().await, []);
}

#[tokio::test(start_paused = true)]
async fn the_pages_of_all_shards_together_are_bounded() {
    let mut world = World::new(Script::new(&["a", "b", "c", "d"]));
    world.config = world.config.with_max_pages(2);
    world.take_down("");
    for n in 0..40 {
        let shard = ["a", "b", "c", "d"][n % 4];
        world.write(shard, &n.to_string()).await;
    }
    let running = world.start("one");
    pass(MIN).await;
    let pages: usize = running
        .status()
        .shards
        .iter()
        .map(|shard| shard.pages)
        .sum();
    assert_eq!(pages, 2);
    world.bring_up();
    pass(MIN).await;
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_streams_api_passes() {
    let world = World::new(Script::new(&["a"]));
    let running = world.start("one");
    pass(10 * S).await;
    world.script.set_fate(|_| {
        Some(StreamServiceError::Refused {
            source: "denied".into(),
        })
    });
    world.write("a", "1").await;
    pass(10 * MIN).await;
    assert!(running.status().state.is_error());
    world.script.heal();
    pass(Duration::from_secs(30)).await;
    assert_eq!(
        (running.status().state, world.sent("1")),
        (ReaderState::Reading, vec![1])
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_first_request_ends_the_reader() {
    let world = World::new(Script::new(&["a"]));
    world.script.set_fate(|_| {
        Some(StreamServiceError::Refused {
            source: "denied".into(),
        })
    });
    let running = world.start("one");
    pass(10 * S).await;
    let error = running.stop().await.unwrap_err();
    assert!(foldstream::chain(&error).contains("denied"), "{error:?}");
}
