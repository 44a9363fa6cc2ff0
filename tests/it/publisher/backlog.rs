//! Streams that a call with a deadline does not take on, and sweeps with a deadline.
use super::{
    v,
    world::{World, stream},
};
use foldstream::publisher::{DirtyReason, PublishError, SweepConfig};
use foldstream_testkit::faults::{Fault, Op};
use std::{num::NonZeroU32, time::Duration};
use tokio::time::Instant;

const S: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_longer_backlog_than_a_deadline_allows_is_dirty_and_a_sweep_publishes_it() {
    let world = World::new();
    for _ in 0..2 {
        world.append(&stream("a"), 10).await;
        world.append(&stream("b"), 10).await;
    }
    let (a, b) = (
        world.append(&stream("a"), 1).await,
        world.append(&stream("b"), 1).await,
    );
    let publisher = world.publisher().with_max_behind(19);
    let report = publisher
        .publish_until([a.clone()], Instant::now() + 30 * S)
        .await;
    let failure = &report.failed[0];
    assert!(
        matches!(&failure.error, PublishError::FarBehind { events: 20, limit: 19, stream: s } if *s == stream("a")),
        "{}",
        failure.error
    );
    assert!(failure.is_dirty && failure.error.is_transient());
    assert_eq!((report.messages, report.first_to_keep()), (0, None));
    let page = NonZeroU32::new(10).unwrap();
    let mut after = None;
    let row = loop {
        let dirty = publisher.dirty_streams(after, page).await.unwrap();
        if let Some(row) = dirty.streams.into_iter().next() {
            break row;
        }
        after = dirty.next;
    };
    assert_eq!(
        (row.stream, row.known, row.why, row.attempts),
        (stream("a"), v(21), DirtyReason::Backlog, 0)
    );

    // One event fewer is taken on, and so is any backlog without a deadline.
    let publisher = publisher.with_max_behind(20);
    let report = publisher.publish_until([b], Instant::now() + 30 * S).await;
    assert_eq!((report.messages, report.failed.len()), (21, 0));
    let swept = publisher.with_max_behind(1);
    let swept = swept.sweep(&SweepConfig::default()).await.unwrap();
    assert_eq!((swept.published, swept.messages), (1, 21));
    world.publisher().publish_pending().await.unwrap();
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn many_notices_of_one_stream_are_no_backlog() {
    let world = World::new();
    let mut notices = Vec::new();
    for _ in 0..30 {
        notices.push(world.append(&stream("a"), 1).await);
    }
    let publisher = world.publisher().with_max_behind(0);
    let report = publisher
        .publish_until(notices, Instant::now() + 30 * S)
        .await;
    assert_eq!((report.messages, report.failed.len()), (30, 0));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_ends_at_its_deadline_and_the_next_one_continues() {
    let world = World::new();
    let publisher = world.publisher();
    for name in ["a", "b"] {
        for _ in 0..100 {
            world.append(&stream(name), 1).await;
        }
        let (id, why) = (stream(name), DirtyReason::Backlog);
        publisher.set_aside(&id, v(100), why).await.unwrap();
    }
    tokio::time::sleep(61 * S).await;
    world.faults.set([Fault::Delay(S / 5).on(Op::Publish)]);
    let config = SweepConfig::default();
    let mut sent = 0;
    for sweep in 0.. {
        let began = Instant::now();
        let swept = publisher
            .sweep_until(&config, began + 10 * S)
            .await
            .unwrap();
        assert!(began.elapsed() <= 10 * S, "{swept:?}");
        // The lease is free again, and no attempt has failed.
        assert!(!swept.is_elsewhere && swept.not_due == 0, "{swept:?}");
        assert!(swept.is_cut_short || swept.still_dirty == 0, "{swept:?}");
        sent += swept.messages;
        if !swept.is_cut_short {
            break;
        }
        assert!(swept.messages > 0, "sweep {sweep}: {swept:?}");
    }
    assert_eq!(sent, 200);
    publisher.publish_pending().await.unwrap();
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_sweep_whose_rows_do_not_answer_ends_at_its_deadline() {
    let world = World::new();
    for op in [Op::Get, Op::Put, Op::Range] {
        world.faults.set([Fault::Hang.on(op)]);
        let began = Instant::now();
        let publisher = world.publisher_of_runs(&world.faults);
        let config = SweepConfig::default();
        let swept = publisher
            .sweep_until(&config, began + 10 * S)
            .await
            .unwrap();
        assert!(began.elapsed() <= 10 * S, "{op:?}");
        assert!(swept.is_cut_short, "{op:?}: {swept:?}");
        world.heal();
        tokio::time::sleep(40 * S).await;
    }
}
