//! The publisher's rules.
mod backlog;
mod bootstrap;
mod deadline;
mod dirty;
mod fork;
mod memory;
mod operator;
mod outbox;
mod partitions;
mod poller;
mod reconcile;
mod runs;
mod sharing;
mod simulation;
mod telemetry;
mod topics;
mod world;

use foldstream::{
    Version,
    adapter::from_message,
    control::Watermark,
    ports::{
        Capabilities, CommitKey, ConsumerEvent, EventStore, MessageBus, ReadFrom, StartOffset,
        Subscription, TopicDescription,
    },
    publisher::{Notice, PublishError},
};
use foldstream_testkit::{
    InMemoryEventStore,
    faults::{Call, Fault, Op},
};
use futures::{StreamExt, TryStreamExt};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use world::{Done, TOPIC, World, is_send_of, stream};

fn v(number: u64) -> Version {
    Version::new(number)
}

#[tokio::test]
async fn events_reach_the_bus_in_version_order() {
    let world = World::new();
    let mut bells = Vec::new();
    for round in 0..10 {
        for id in ["a", "b", "c", "d"] {
            let commit = world.append(&stream(id), 1 + round % 3).await;
            bells.push(if round % 2 == 0 {
                Notice::Commit(commit)
            } else {
                Notice::Key(commit.key())
            });
        }
    }
    bells.reverse();
    let report = world.publisher().publish(bells).await;
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(report.messages, 4 * 19);
    assert_eq!(report.published.len(), 4);
    world.assert_at_rest().await;

    // A consumer sees each event once, with its own header, in order.
    let offsets = world.bus.offsets(TOPIC).await.unwrap();
    let start = offsets
        .iter()
        .map(|p| StartOffset::new(p.partition.clone(), p.begin));
    let wish = Subscription::new("g", [TOPIC]).with_start(start.collect());
    let consumer = world.bus.subscribe(wish).await.unwrap();
    let mut next: BTreeMap<_, u64> = BTreeMap::new();
    let mut received = 0;
    while received < 4 * 19 {
        let ConsumerEvent::Delivery(delivery) = consumer.next().await.unwrap() else {
            continue;
        };
        let event = from_message(&delivery.message).unwrap();
        let next = next.entry(event.header.stream.clone()).or_insert(1);
        assert_eq!(event.header.version, v(*next));
        let read = world
            .store
            .read(&event.header.stream, ReadFrom::Event(v(*next)), None);
        let commit = read
            .take(1)
            .try_collect::<Vec<_>>()
            .await
            .unwrap()
            .remove(0);
        assert!(commit.recorded().any(|stored| stored == event));
        (*next, received) = (*next + 1, received + 1);
    }
}

#[tokio::test]
async fn marker_is_cleared_only_after_the_acknowledgement() {
    let world = World::new();
    let a = stream("a");
    let commit = world.append(&a, 2).await;
    world.set_fates(|call| match call {
        Call::Publish(_) => Some(Fault::Unavailable),
        _ => None,
    });
    let publisher = world.publisher();
    let report = publisher.publish([commit.key()]).await;
    assert!(
        matches!(report.failed[0].error, PublishError::Bus { .. }),
        "{report:?}"
    );
    assert_eq!(report.failed[0].notice, Some(0));
    assert!(report.published.is_empty());
    assert_eq!(world.unpublished().await, [commit.key()]);
    assert_eq!(world.watermark(&a).await, None);

    world.heal();
    world.network.forget();
    assert!(publisher.publish([commit.key()]).await.failed.is_empty());
    let ids: Vec<_> = commit.recorded().map(|e| e.header.event_id).collect();
    let steps: Vec<_> = world.network.done();
    let steps: Vec<_> = steps
        .into_iter()
        .filter(|d| !matches!(d, Done::Read(_)))
        .collect();
    assert_eq!(
        steps,
        [
            Done::Sent(a.clone(), v(1), ids[0]),
            Done::Sent(a.clone(), v(2), ids[1]),
            Done::Marked(a.clone(), v(2)),
            Done::Cleared(a, v(1)),
        ]
    );
}

#[tokio::test]
async fn events_are_never_marked_as_published_before_or_while_they_are_sent() {
    // While a send is pending it does not count as done, and after it is given up it never does.
    let world = World::new();
    let commit = world.append(&stream("a"), 1).await;
    world.set_fates(|call| match call {
        Call::Publish(_) => Some(Fault::Hang),
        _ => None,
    });
    let publisher = world.publisher();
    {
        let mut publishing = std::pin::pin!(publisher.publish([commit.clone()]));
        for _ in 0..100 {
            assert!(futures::poll!(&mut publishing).is_pending());
            tokio::task::yield_now().await;
            assert_eq!(world.watermark(&stream("a")).await, None);
            assert_eq!(world.unpublished().await, [commit.key()]);
        }
    }
    world.heal();
    assert_eq!(publisher.publish_pending().await.unwrap().messages, 1);
    world.assert_at_rest().await;
}

#[tokio::test]
async fn publishing_changes_nothing_of_what_is_stored() {
    let world = World::new();
    let a = stream("a");
    for _ in 0..3 {
        world.append(&a, 2).await;
    }
    let stored = || async {
        let all = world.store.read(&a, ReadFrom::Event(v(1)), None);
        all.try_collect::<Vec<_>>().await.unwrap()
    };
    let before = stored().await;
    world.publisher().publish_pending().await.unwrap();
    assert_eq!(stored().await, before);
    world.assert_at_rest().await;
}

#[tokio::test]
async fn a_failed_send_loses_nothing() {
    let world = World::new();
    let (a, b) = (stream("a"), stream("b"));
    let mut bells = Vec::new();
    for _ in 0..4 {
        bells.push(world.append(&a, 2).await.key());
        bells.push(world.append(&b, 1).await.key());
    }
    let broken = a.clone();
    world.set_fates(move |call| match call {
        Call::Publish(message) if call.is_about(&broken) => {
            let is_sixth = message.header("ce_fsversion") == Some("6");
            is_sixth.then_some(Fault::Unavailable)
        }
        _ => None,
    });
    let publisher = world.publisher();
    let report = publisher.publish(bells.clone()).await;
    // The third commit of `a` is the first that is not covered: the fifth notice.
    let failure = &report.failed[0];
    assert_eq!((&failure.stream, failure.notice), (&a, Some(4)));
    assert!(matches!(&failure.error, PublishError::Bus { version, .. } if *version == v(6)));
    assert!(failure.error.is_transient());
    assert_eq!(report.published, BTreeMap::from([(b, v(4))]));
    assert_eq!(world.watermark(&a).await.unwrap().value.version, v(4));
    let left: Vec<CommitKey> = vec![bells[4].clone(), bells[6].clone()];
    assert_eq!(world.unpublished().await, left);

    world.heal();
    let report = publisher.publish(left).await;
    // Only the commit that was sent in part is repeated, and only its first event.
    assert_eq!((report.messages, report.failed.len()), (4, 0));
    world.assert_at_rest().await;
}

#[tokio::test]
async fn a_send_that_times_out_but_happens_duplicates_with_the_same_event_id() {
    let world = World::new();
    let a = stream("a");
    let commit = world.append(&a, 2).await;
    world.faults.set([Fault::LoseReply.on(Op::Publish).at(1)]);
    let report = world.publisher().publish([commit.clone()]).await;
    assert!(report.failed.is_empty());
    let ids: Vec<_> = commit.recorded().map(|e| e.header.event_id).collect();
    let sent = world.network.sent(&a);
    assert_eq!(sent, [(v(1), ids[0]), (v(1), ids[0]), (v(2), ids[1])]);
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn two_publishers_at_once_keep_first_occurrences_in_order() {
    let world = World::new();
    let mut bells = Vec::new();
    for _ in 0..30 {
        for id in ["a", "b"] {
            bells.push(world.append(&stream(id), 2).await.key());
        }
    }
    // Both publishers send everything, at different and changing speeds.
    let calls = AtomicUsize::new(0);
    world.set_fates(move |_| {
        let n = calls.fetch_add(1, Ordering::SeqCst) as u64;
        Some(Fault::Delay(Duration::from_millis(n * 7 % 11)))
    });
    let (one, two) = (world.publisher(), world.publisher());
    let reports = tokio::join!(one.publish(bells.clone()), two.publish(bells));
    assert!(reports.0.failed.is_empty() && reports.1.failed.is_empty());
    assert!(reports.0.messages > 0 && reports.1.messages > 0);
    world.assert_at_rest().await;
}

#[tokio::test]
async fn watermark_never_moves_back() {
    let world = World::new();
    let (a, marks) = (stream("a"), world.watermarks());
    let one = world.append(&a, 1).await;
    let two = world.append(&a, 1).await;
    let low = Watermark::new(v(1), one.id);
    let high = Watermark::new(v(2), two.id);
    let first = marks.advance(&a, None, low).await.unwrap();
    assert_eq!(first.value, low);
    let moved = marks.advance(&a, Some(first), high).await.unwrap();
    assert_eq!(moved.value, high);
    // A late write is answered with the present version.
    for (seen, to) in [
        (None, low),
        (None, high),
        (Some(first), high),
        (Some(moved), low),
        (Some(moved), high),
    ] {
        assert_eq!(marks.advance(&a, seen, to).await.unwrap(), moved);
    }
    assert_eq!(world.watermark(&a).await, Some(moved));
    // The watermark seen is behind the row, but the new value is ahead of it, so the row moves.
    let three = Watermark::new(v(3), world.append(&a, 1).await.id);
    assert_eq!(
        marks.advance(&a, Some(first), three).await.unwrap().value,
        three
    );
    assert_eq!(world.watermark(&a).await.unwrap().value, three);
}

#[tokio::test]
async fn a_publisher_behind_another_one_adopts_its_watermark() {
    let world = World::new();
    let a = stream("a");
    let (one, two) = (world.publisher(), world.publisher());
    let first = world.append(&a, 1).await;
    one.publish([first]).await;
    let second = world.append(&a, 1).await;
    two.publish([second]).await;
    let third = world.append(&a, 1).await;
    // `one` still remembers version 1, and finds by the notice that it has missed a commit.
    assert_eq!(one.publish([third]).await.messages, 1);
    assert_eq!(world.records().await, 3);
    world.assert_at_rest().await;
}

#[tokio::test]
async fn the_next_commit_in_a_notice_saves_the_read() {
    let world = World::new();
    let mut bells = Vec::new();
    for _ in 0..3 {
        bells.push(world.append(&stream("a"), 2).await);
    }
    bells.reverse();
    assert_eq!(world.publisher().publish(bells).await.messages, 6);
    assert_eq!(world.network.reads(), 0);
    world.assert_at_rest().await;
}

#[tokio::test]
async fn one_bell_brings_the_stream_to_its_tail() {
    let world = World::new();
    let first = world.append(&stream("a"), 1).await;
    for _ in 0..250 {
        world.append(&stream("a"), 1).await;
    }
    assert_eq!(world.publisher().publish([first.key()]).await.messages, 251);
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn the_watermark_moves_after_each_run_and_at_least_about_every_second() {
    for (takes, marks) in [(Duration::ZERO, 4), (Duration::from_millis(100), 26)] {
        let world = World::new();
        let mut bells = Vec::new();
        for _ in 0..250 {
            bells.push(world.append(&stream("a"), 1).await);
        }
        world.faults.set([Fault::Delay(takes).on(Op::Publish)]);
        world.publisher().publish(bells).await;
        assert_eq!(world.network.marks(), marks, "{takes:?}");
        world.assert_at_rest().await;
    }
}

#[tokio::test]
async fn bells_at_or_below_the_watermark_clear_their_markers() {
    let world = World::new();
    let first = world.append(&stream("a"), 1).await;
    let second = world.append(&stream("a"), 1).await;
    world
        .faults
        .set([Fault::Unavailable.on(Op::ClearUnpublished)]);
    // The publisher dies between its watermark and its markers.
    let report = world.publisher().publish([first.key(), second.key()]).await;
    let failure = &report.failed[0];
    assert!(matches!(failure.error, PublishError::Clear { .. }));
    assert_eq!(failure.notice, None, "all notices are covered");
    assert_eq!(world.unpublished().await, [first.key(), second.key()]);
    world.heal();
    let report = world.publisher().publish([first.key(), second.key()]).await;
    assert_eq!((report.messages, report.failed.len()), (0, 0));
    assert_eq!(world.records().await, 2);
    world.assert_at_rest().await;
}

#[tokio::test]
async fn an_event_that_is_too_large_stops_its_stream_before_any_of_its_commit_is_sent() {
    // The store accepts larger events than the topic does.
    let capabilities = Capabilities::new(3_900_000).with_unpublished_list(true);
    let mut world = World::new();
    world.store = InMemoryEventStore::with_capabilities(capabilities);
    world.bus.delete_topic(TOPIC);
    let description = TopicDescription::new(3).with_max_message_bytes(Some(1_000_000));
    world.bus.create_topic_as(TOPIC, description);
    let (a, b) = (stream("a"), stream("b"));
    let fine = world.append(&a, 1).await;
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    let bad = world.append_payloads(&a, &["{}".into(), large]).await;
    let behind = world.append(&a, 1).await;
    let other = world.append(&b, 1).await;
    let report = world.publisher().publish_pending().await.unwrap();
    assert_eq!(report.published, BTreeMap::from([(b.clone(), v(1))]));
    let error = &report.failed[0].error;
    assert!(!error.is_transient());
    assert!(
        matches!(error, PublishError::TooLarge { version, limit: 1_000_000, .. } if *version == v(3)),
        "{error}"
    );
    assert_eq!(world.network.sent(&a).len(), 1);
    assert_eq!(world.watermark(&a).await.unwrap().value.commit_id, fine.id);
    assert_eq!(world.unpublished().await, [bad.key(), behind.key()]);
    assert_eq!(world.network.sent(&b)[0].1, other.id.event_id(0));
}

#[tokio::test]
async fn no_notice_does_nothing() {
    let world = World::new();
    world.set_fates(|call| panic!("{call:?}"));
    let report = world.publisher().publish(Vec::<Notice>::new()).await;
    assert_eq!(
        (report.messages, report.published.len(), report.failed.len()),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn a_notice_of_what_the_store_does_not_show_is_reported() {
    let world = World::new();
    let commit = world.append(&stream("a"), 1).await;
    let ahead = CommitKey::new(stream("a"), v(5));
    let report = world.publisher().publish([commit.key(), ahead]).await;
    let failure = &report.failed[0];
    assert!(
        matches!(failure.error, PublishError::NotVisible { named, tail, .. } if named == v(5) && tail == v(1))
    );
    assert_eq!(failure.notice, Some(1));
    world.assert_at_rest().await;
}

#[tokio::test]
async fn calls_for_the_same_stream_take_turns_in_one_process() {
    let world = World::new();
    let mut bells = Vec::new();
    for _ in 0..5 {
        bells.push(world.append(&stream("a"), 1).await);
    }
    let publisher = world.publisher();
    let clone = publisher.clone();
    let reports = tokio::join!(publisher.publish(bells.clone()), clone.publish(bells));
    assert_eq!(reports.0.messages + reports.1.messages, 5);
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn pending_publishes_until_nothing_is_left_and_tries_failing_streams_once() {
    let world = World::new();
    for n in 0..20 {
        world.append(&stream(&n.to_string()), 1).await;
    }
    let broken = stream("7");
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    let is_broken = broken.clone();
    world.set_fates(move |call| {
        if !is_send_of(call, &is_broken) {
            return None;
        }
        seen.fetch_add(1, Ordering::SeqCst);
        Some(Fault::Unavailable)
    });
    let report = world.publisher().publish_pending().await.unwrap();
    assert_eq!((report.messages, report.published.len()), (19, 19));
    assert_eq!(report.failed.len(), 1);
    assert_eq!(
        (&report.failed[0].stream, report.failed[0].notice),
        (&broken, None)
    );
    // The first attempt and two repeats, once.
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    world.heal();
    world.publisher().publish_pending().await.unwrap();
    world.assert_at_rest().await;
}
