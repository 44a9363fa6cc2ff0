//! Streams that are set aside, the sweep that tries them again, and the skip of an event.
use super::{
    v,
    world::{TOPIC, World, stream},
};
use foldstream::{
    operate::{Operator, Reason},
    ports::{Capabilities, ControlStore, RowKey, TopicDescription},
    publisher::{DirtyReason, DirtyStream, PublishError, Publisher, SkipError, SweepConfig},
};
use foldstream_testkit::{
    InMemoryEventStore,
    faults::{Fault, Op},
};
use std::{num::NonZeroU32, time::Duration};

const S: Duration = Duration::from_secs(1);

/// Creates a world without markers, whose topic takes small records only, and a stream of three
/// commits of which the second one is too large.
async fn stuck() -> World {
    let mut world = World::new();
    world.store = InMemoryEventStore::with_capabilities(Capabilities::new(3_900_000));
    limit(&world, 1_000_000);
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    world.append(&stream("a"), 1).await;
    world
        .append_payloads(&stream("a"), &["{}".into(), large, "{}".into()])
        .await;
    world.append(&stream("a"), 1).await;
    world
}
fn limit(world: &World, bytes: u64) {
    world.bus.delete_topic(TOPIC);
    let description = TopicDescription::new(3).with_max_message_bytes(Some(bytes));
    world.bus.create_topic_as(TOPIC, description);
}

async fn dirty(publisher: &Publisher) -> Vec<DirtyStream> {
    let (mut streams, mut after) = (Vec::new(), None);
    loop {
        let limit = NonZeroU32::new(10).unwrap();
        let page = publisher.dirty_streams(after, limit).await.unwrap();
        streams.extend(page.streams);
        after = page.next;
        if after.is_none() {
            return streams;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_cannot_be_published_is_dirty_and_its_notice_may_be_forgotten() {
    let world = stuck().await;
    let publisher = world.publisher();
    let notice = world.append(&stream("a"), 1).await.key();
    let report = publisher.publish([notice.clone()]).await;
    let failure = &report.failed[0];
    assert!(matches!(&failure.error, PublishError::TooLarge { version, .. } if *version == v(3)));
    assert!(failure.is_dirty);
    assert_eq!((failure.notice, report.first_to_keep()), (Some(0), None));
    let found = dirty(&publisher).await;
    assert_eq!(found.len(), 1);
    let DirtyStream {
        stream: id,
        known,
        why,
        attempts,
        ..
    } = &found[0];
    assert_eq!((id, *known, *why), (&stream("a"), v(6), DirtyReason::Stuck));
    assert_eq!(*attempts, 1);
    let error = found[0].error.as_deref().unwrap();
    assert!(error.contains("max.message.bytes"), "{error}");
    assert_eq!(publisher.status().dirty, 1);

    // The topic is mended, and the sweep finds the stream.
    limit(&world, 2_000_000);
    tokio::time::sleep(61 * S).await;
    let swept = publisher.sweep(&SweepConfig::default()).await.unwrap();
    assert_eq!((swept.found, swept.published, swept.still_dirty), (1, 1, 0));
    assert_eq!(dirty(&publisher).await, []);
    assert_eq!(publisher.status().dirty, 0);
    world.assert_order();
    assert_eq!(
        world.watermark(&stream("a")).await.unwrap().value.version,
        v(6)
    );
}

#[tokio::test(start_paused = true)]
async fn a_notice_is_kept_unless_the_dirty_row_is_durable() {
    let world = stuck().await;
    let publisher = world.publisher();
    let refused = Fault::Unavailable.on(Op::Put);
    let is_dirty_row = |call: &foldstream_testkit::faults::Call<'_>| matches!(call, foldstream_testkit::faults::Call::Put { row, .. } if row.key.partition.starts_with("dirty/"));
    world.faults.set([refused.matching(is_dirty_row)]);
    let notice = world.append(&stream("a"), 1).await.key();
    let report = publisher.publish([notice.clone()]).await;
    assert!(!report.failed[0].is_dirty);
    assert_eq!(report.first_to_keep(), Some(0));
    // An outage sets nothing aside: the trigger decides.
    world.faults.set([Fault::Unavailable.on(Op::Get)]);
    let report = world.publisher().publish([notice]).await;
    assert_eq!(
        (report.failed[0].is_dirty, report.first_to_keep()),
        (false, Some(0))
    );
}

#[tokio::test(start_paused = true)]
async fn a_sweep_tries_a_stream_again_after_growing_pauses() {
    let world = stuck().await;
    let publisher = world.publisher();
    publisher
        .set_aside(&stream("a"), v(5), DirtyReason::Old)
        .await
        .unwrap();
    let config = SweepConfig::default();
    let mut tried = Vec::new();
    for minute in 0..40 {
        let report = publisher.sweep(&config).await.unwrap();
        assert_eq!((report.found, report.still_dirty + report.not_due), (1, 1));
        if report.still_dirty > 0 {
            tried.push(minute);
        }
        tokio::time::sleep(60 * S).await;
    }
    assert_eq!(tried, [0, 1, 3, 7, 15, 31]);
    let found = &dirty(&publisher).await[0];
    assert_eq!((found.attempts, found.why), (6, DirtyReason::Stuck));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_published_meanwhile_is_not_dirty_any_more() {
    let world = World::new();
    let publisher = world.publisher();
    let commit = world.append(&stream("a"), 1).await;
    publisher
        .set_aside(&stream("a"), v(1), DirtyReason::Backlog)
        .await
        .unwrap();
    // This process knows that it is dirty, so that its row goes at once.
    publisher.publish([commit]).await;
    assert_eq!(dirty(&publisher).await, []);
    // Another process does not know, and its sweep finds out.
    publisher
        .set_aside(&stream("a"), v(1), DirtyReason::Backlog)
        .await
        .unwrap();
    let other = world.publisher();
    assert_eq!(other.publish_stream(&stream("a")).await.messages, 0);
    assert_eq!(dirty(&other).await.len(), 1);
    let swept = other.sweep(&SweepConfig::default()).await.unwrap();
    assert_eq!((swept.published, swept.messages), (1, 0));
    assert_eq!(dirty(&other).await, []);
}

#[tokio::test(start_paused = true)]
async fn one_process_sweeps_and_another_takes_over_when_it_dies() {
    let world = World::new();
    world.append(&stream("a"), 1).await;
    let (one, two) = (world.publisher(), world.publisher());
    one.set_aside(&stream("a"), v(1), DirtyReason::Backlog)
        .await
        .unwrap();
    world.faults.set([Fault::Delay(10 * S).on(Op::Publish)]);
    let config = SweepConfig::default();
    let sweeping = tokio::spawn(async move { one.sweep(&SweepConfig::default()).await });
    tokio::time::sleep(S).await;
    // The first one is alive, and its lease is free once it is done.
    let swept = two.sweep(&config).await.unwrap();
    assert!(!swept.is_elsewhere);
    assert_eq!(
        (swept.found, sweeping.await.unwrap().unwrap().published),
        (0, 1)
    );

    two.set_aside(&stream("b"), v(1), DirtyReason::Backlog)
        .await
        .unwrap();
    world.append(&stream("b"), 1).await;
    let dying = world.publisher();
    let sweeping = tokio::spawn(async move { dying.sweep(&SweepConfig::default()).await });
    tokio::time::sleep(S).await;
    sweeping.abort();
    let swept = two.sweep(&config).await.unwrap();
    assert_eq!((swept.is_elsewhere, swept.published), (false, 1));
    world.assert_order();
}

fn reason() -> Reason {
    Reason::new("ann", "the picture is too large").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_skipped_event_is_left_out_and_the_next_record_says_so() {
    let world = stuck().await;
    let (a, publisher) = (stream("a"), world.publisher());
    assert!(!publisher.publish_stream(&a).await.failed.is_empty());
    let skipped = publisher.skip(&a, v(3), &reason()).await.unwrap();
    assert!(skipped.report.failed.is_empty(), "{skipped:?}");
    assert_eq!(
        world.explained(&a),
        [(1, None), (2, None), (4, Some(2)), (5, None)]
    );
    assert_eq!(world.watermark(&a).await.unwrap().value.version, v(5));
    assert_eq!(dirty(&publisher).await, []);
    // It is audited, and the row stays.
    let operator = Operator::new(world.control.clone());
    let day = world.append(&stream("b"), 1).await.recorded_at;
    let entries = operator.audit(day, None).await.unwrap().entries;
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!((entry.who.as_str(), entry.affected), ("ann", Some(1)));
    assert_eq!(entry.target, "cart#a 3");
    let partition = format!("skip/{}", a.shard(64));
    let key = RowKey::new(partition, "cart#a\u{1f}00000000000000000003");
    assert!(world.control.get(&key).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn only_the_event_at_which_a_stream_stands_still_can_be_skipped() {
    let world = stuck().await;
    let (a, publisher) = (stream("a"), world.publisher());
    let error = publisher.skip(&a, v(1), &reason()).await.unwrap_err();
    assert!(matches!(&error, SkipError::Published { watermark, .. } if *watermark == v(1)));
    // An event that can be published is published, even if it waits.
    for version in [v(2), v(5)] {
        let error = publisher.skip(&a, version, &reason()).await.unwrap_err();
        assert!(matches!(&error, SkipError::NotRefused { .. }), "{error}");
    }
    publisher.skip(&a, v(3), &reason()).await.unwrap();
    assert_eq!(world.explained(&a).len(), 4, "{:?}", world.explained(&a));
    let error = publisher.skip(&a, v(3), &reason()).await.unwrap_err();
    assert!(matches!(error, SkipError::Published { .. }));
}
