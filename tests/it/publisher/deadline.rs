//! Calls with a deadline.
use super::{
    v,
    world::{World, stream},
};
use foldstream::{
    StreamId,
    publisher::{Notice, PublishError},
};
use foldstream_testkit::faults::{Fault, Op};
use std::time::Duration;
use tokio::time::Instant;

const S: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn nothing_is_in_flight_once_a_call_has_returned_at_its_deadline() {
    for op in [Op::PublishRun, Op::Get, Op::Put] {
        let world = World::new();
        let commit = world.append(&stream("a"), 2).await;
        world.faults.set([Fault::Hang.on(op)]);
        let publisher = world.publisher_of_runs(&world.faults);
        let began = Instant::now();
        let report = publisher.publish_until([commit], began + 10 * S).await;
        assert_eq!(began.elapsed(), 10 * S, "{op:?}");
        let error = &report.failed[0].error;
        assert!(matches!(error, PublishError::Interrupted { .. }), "{error}");
        assert_eq!(
            (report.first_to_keep(), report.published.len()),
            (Some(0), 0)
        );
        // The stream is free for the next call.
        world.heal();
        assert!(
            publisher
                .publish_stream(&stream("a"))
                .await
                .failed
                .is_empty()
        );
        publisher.publish_pending().await.unwrap();
        world.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_stream_begins_in_the_last_three_seconds() {
    let world = World::new();
    let mut notices: Vec<Notice> = Vec::new();
    for n in 0..5 {
        notices.push(world.append(&stream(&n.to_string()), 1).await.into());
    }
    world.faults.set([Fault::Delay(4 * S).on(Op::PublishRun)]);
    let publisher = world.publisher_of_runs(&world.faults).with_concurrency(1);
    let began = Instant::now();
    let report = publisher.publish_until(notices, began + 25 * S / 2).await;
    // They begin at 0, 4 and 8 s, but not at 12 s.
    assert_eq!(report.published.len(), 3, "{report:?}");
    assert!(began.elapsed() < 25 * S / 2);
    assert_eq!(report.first_to_keep(), Some(3));
    let interrupted = report.failed.iter();
    assert!(
        interrupted
            .clone()
            .all(|f| matches!(f.error, PublishError::Interrupted { .. }))
    );
    let left: Vec<&StreamId> = interrupted.map(|f| &f.stream).collect();
    assert_eq!(left, [&stream("3"), &stream("4")]);
}

#[tokio::test(start_paused = true)]
async fn a_long_stream_is_cut_short_and_marked_before_the_deadline() {
    let world = World::new();
    let a = stream("a");
    let first = world.append(&a, 3).await;
    for _ in 0..99 {
        world.append(&a, 3).await;
    }
    world.faults.set([Fault::Delay(S / 4).on(Op::Publish)]);
    let began = Instant::now();
    let report = world
        .publisher()
        .publish_until([first.key()], began + 10 * S)
        .await;
    assert!(began.elapsed() <= 10 * S);
    let error = &report.failed[0].error;
    let PublishError::Interrupted { version, .. } = error else {
        panic!("{error}");
    };
    // Its notice is covered, but the stream is not at its tail.
    assert_eq!(report.failed[0].notice, None);
    let mark = world.watermark(&a).await.unwrap().value.version;
    assert_eq!((mark, mark.get() % 3), (*version, 0));
    assert!(mark > v(10) && report.published.is_empty());
    // What was sent is marked: the next call repeats nothing.
    world.heal();
    let rest = world.publisher().publish_pending().await.unwrap();
    assert_eq!(report.messages + rest.messages, 300);
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_short_time_is_used() {
    let world = World::new();
    let commit = world.append(&stream("a"), 2).await;
    let deadline = Instant::now() + S;
    let report = world.publisher().publish_until([commit], deadline).await;
    assert_eq!((report.messages, report.failed.len()), (2, 0));
}
