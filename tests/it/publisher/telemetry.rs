//! The numbers that a publisher tells: its status, and the metrics that follow from it.
use super::{
    poller::{Polling, until},
    v,
    world::{TOPIC, World, stream},
};
use crate::recorder::Recorder;
use foldstream::{
    control::PublisherName,
    operate::Operator,
    publisher::{DirtyReason, Notice, PollConfig, SweepConfig, TopicRoute, metrics as names},
};
use foldstream_testkit::faults::{Fault, Op};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::oneshot;

const S: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_notice_of_what_is_published_counts_as_a_suppressed_duplicate() {
    let world = World::new();
    let (a, b) = (stream("a"), stream("b"));
    let mut commits = Vec::new();
    for stream in [&a, &a, &b] {
        commits.push(world.append(stream, 2).await);
    }
    let notices = || commits.iter().cloned().map(Notice::Commit);
    let publisher = world.publisher();
    publisher.publish(notices()).await;
    let numbers = || {
        let status = publisher.status();
        (status.published, status.duplicates_suppressed)
    };
    assert_eq!(numbers(), (6, 0));
    // All notices once more, and the one of a stream that has grown twice.
    let newer = world.append(&b, 1).await;
    let again = notices().chain([Notice::Commit(newer.clone()), Notice::Commit(newer)]);
    let report = publisher.publish(again).await;
    assert_eq!((report.messages, report.published[&b]), (1, v(3)));
    assert_eq!(numbers(), (7, 3));
    assert_eq!(publisher.status().topics[TOPIC].duplicates_suppressed, 3);
    // Another process reads the watermarks.
    let other = world.publisher();
    other.publish(notices()).await;
    assert_eq!(
        (
            other.status().published,
            other.status().duplicates_suppressed
        ),
        (0, 3)
    );
    assert_eq!(world.records().await, 7);
}

#[tokio::test(start_paused = true)]
async fn the_row_of_a_killed_publisher_says_that_it_is_silent_until_it_expires() {
    let world = World::new();
    let operator = || Operator::new(world.control.clone()).with_clock(world.clock.clone());
    let polling = Polling::start(&world, PollConfig::default());
    world.append(&stream("a"), 2).await;
    until("published", || async {
        world.unpublished().await.is_empty()
    })
    .await;
    // The process dies while five events are on their way.
    world
        .faults
        .set([Fault::Hang.on(Op::Publish), Fault::Hang.on(Op::PublishRun)]);
    world.append(&stream("a"), 5).await;
    tokio::time::sleep(15 * S).await;
    polling.task.abort();
    assert!(polling.task.await.unwrap_err().is_cancelled());
    world.faults.set([]);

    let seen = operator().publisher(None).await.unwrap();
    let [instance] = &seen.instances[..] else {
        panic!("{seen:?}");
    };
    // The numbers are those of the last write: two are published, five wait.
    let numbers = |of: &foldstream::operate::PublisherInstance| {
        (of.status.published, of.status.working, of.status.lag)
    };
    assert_eq!(numbers(instance), (2, 1, 5));
    assert!(!instance.is_silent(world.clock.now()), "it has just died");
    tokio::time::sleep(60 * S).await;
    let later = operator().publisher(None).await.unwrap();
    assert_eq!(
        later.instances, seen.instances,
        "nobody has written the row"
    );
    assert!(later.instances[0].is_silent(world.clock.now()));

    // Another publisher sends what is left, and has a row of its own.
    let next = Polling::start(&world, PollConfig::default());
    until("published", || async {
        world.unpublished().await.is_empty()
    })
    .await;
    tokio::time::sleep(11 * S).await;
    let both = operator().publisher(None).await.unwrap().instances;
    let silent = both.iter().map(|of| of.is_silent(world.clock.now()));
    let mut silent: Vec<_> = silent.collect();
    silent.sort_unstable();
    assert_eq!(silent, [false, true]);
    tokio::time::sleep(600 * S).await;
    let left = operator().publisher(None).await.unwrap().instances;
    assert_eq!(left.len(), 1);
    assert!(!left[0].is_silent(world.clock.now()));
    next.stop().await;
}

/// The text that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);
impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Alerts on the log of a service look for the field, as the alarm of the Lambda function does.
#[tokio::test(start_paused = true)]
async fn a_sweeping_service_logs_how_many_streams_stay_dirty() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::new();
    let publisher = world.publisher();
    for id in ["a", "b"] {
        let (stream, why) = (stream(id), DirtyReason::Backlog);
        world.append(&stream, 1).await;
        publisher.set_aside(&stream, v(1), why).await.unwrap();
    }
    world.faults.set([Fault::Unavailable.on(Op::Publish)]);
    let sweeping = publisher.sweep_every(SweepConfig::default(), tokio::time::sleep(200 * S));
    sweeping.await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines = text
        .lines()
        .filter(|line| line.contains("streams stay unpublished"));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(
        lines[0].contains("WARN") && lines[0].ends_with("still_dirty=2"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_counts_and_lag_without_ids_of_streams_or_events() {
    let recorder = Recorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new();
    world.bus.create_topic("shop.cart", 3);
    let name: PublisherName = "private".parse().unwrap();
    let publisher = world
        .publisher()
        .with_route(TopicRoute::ByAggregate {
            prefix: "shop.".into(),
        })
        .with_name(name);
    let (shutdown, asked) = oneshot::channel::<()>();
    let showing = tokio::spawn({
        let publisher = publisher.clone();
        async move {
            let asked = async { drop(asked.await) };
            publisher.show_status(asked).await;
        }
    });
    let a = stream("stream-4711");
    let commit = world.append(&a, 3).await;
    publisher.publish([commit.clone()]).await;
    publisher.publish([commit.clone()]).await;
    tokio::time::sleep(2 * S).await;
    let of = |metric: &str| {
        let labels = [(names::PUBLISHER, "private"), (names::TOPIC, "shop.cart")];
        recorder.of(metric, &labels)
    };
    let gauge = |metric: &str| recorder.of(metric, &[(names::PUBLISHER, "private")]);
    assert_eq!(of(names::PUBLISHED), Some(3.0));
    assert_eq!(of(names::DUPLICATES_SUPPRESSED), Some(1.0));
    assert_eq!(of(names::FAILURES), None);
    let bytes = publisher.status().topics["shop.cart"].bytes;
    assert_eq!(of(names::BYTES), Some(bytes as f64));
    let nothing = [
        of(names::LAG),
        gauge(names::WORKING),
        gauge(names::LAG_TIME),
    ];
    assert_eq!(nothing, [Some(0.0); 3]);

    // Counters grow by what is new, also by what happens just before the end.
    world
        .faults
        .set([Fault::Hang.on(Op::Publish), Fault::Hang.on(Op::PublishRun)]);
    let next = world.append(&a, 4).await;
    let hangs = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish([next]).await }
    });
    tokio::time::sleep(10 * S).await;
    assert_eq!(
        (of(names::LAG), gauge(names::WORKING)),
        (Some(4.0), Some(1.0))
    );
    assert!(gauge(names::LAG_TIME).unwrap() >= 9.0);
    hangs.abort();
    world.faults.set([]);
    publisher.publish_stream(&a).await;
    drop(shutdown);
    showing.await.unwrap();
    assert_eq!(
        (of(names::PUBLISHED), of(names::LAG)),
        (Some(7.0), Some(0.0))
    );
    assert_eq!(gauge(names::DIRTY), Some(0.0));
    let keys = recorder.keys();
    assert!(keys.iter().all(|key| !key.contains("4711")), "{keys:?}");
}
