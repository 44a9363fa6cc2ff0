//! The poller: fair, patient, and stopped only for a reason.
use super::world::{World, stream};
use foldstream::{
    Backoff, Version,
    ports::{Capabilities, RefusedKind},
    publisher::{PollConfig, PollError, PollReport},
};
use foldstream_testkit::{
    InMemoryEventStore,
    faults::{Call, Fault, Op},
};
use std::{
    future::Future,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

const S: Duration = Duration::from_secs(1);

fn config() -> PollConfig {
    PollConfig::default().with_backoff(Backoff::new(S, 8 * S).with_seed(7))
}

pub(super) struct Polling {
    shutdown: oneshot::Sender<()>,
    pub(super) task: JoinHandle<Result<PollReport, PollError>>,
}
impl Polling {
    pub(super) fn start(world: &World, config: PollConfig) -> Self {
        let publisher = world.publisher().with_concurrency(4);
        let (shutdown, asked) = oneshot::channel();
        let task = tokio::spawn(async move {
            let asked = async { asked.await.unwrap() };
            publisher.poll(config, asked).await
        });
        Self { shutdown, task }
    }
    pub(super) async fn stop(self) -> PollReport {
        self.shutdown.send(()).unwrap();
        self.task.await.unwrap().unwrap()
    }
}

/// Waits until the condition holds, at most a minute of the paused clock.
pub(super) async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = Instant::now() + 60 * S;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_appended_is_published_within_the_longest_pause() {
    let world = World::new();
    let polling = Polling::start(&world, config());
    for n in 0..20 {
        // The poller is idle for long, so that its pauses have grown.
        tokio::time::sleep(30 * S).await;
        world.append(&stream(&n.to_string()), 2).await;
        let appended = Instant::now();
        until("published", || async {
            world.unpublished().await.is_empty()
        })
        .await;
        assert!(
            appended.elapsed() < S + Duration::from_millis(50),
            "{:?}",
            appended.elapsed()
        );
    }
    let report = polling.stop().await;
    assert_eq!((report.messages, report.failures), (40, 0));
    assert!(report.stuck.is_empty());
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_stream_does_not_starve_others() {
    // The topic fails forever, or never answers.
    for fault in [Fault::Unavailable, Fault::Hang] {
        let world = World::new();
        let stuck = stream("stuck");
        for _ in 0..1_000 {
            world.append(&stuck, 1).await;
        }
        let broken = stuck.clone();
        let hangs = matches!(fault, Fault::Hang);
        let rule = fault.on(Op::Publish);
        world
            .faults
            .set([rule.matching(move |call| call.is_about(&broken))]);
        let batch = NonZeroU32::new(10).unwrap();
        let polling = Polling::start(&world, config().with_batch(batch).with_segments(1));
        for n in 0..50 {
            let other = stream(&n.to_string());
            world.append(&other, 1).await;
            until("another stream is published", || async {
                !world.network.sent(&other).is_empty()
            })
            .await;
        }
        assert_eq!(
            world.unpublished().await.len(),
            1_000,
            "the stuck stream keeps its markers"
        );
        if hangs {
            polling.task.abort();
            assert!(polling.task.await.unwrap_err().is_cancelled());
        } else {
            let report = polling.stop().await;
            assert!(report.stuck[&stuck] > 0);
            assert_eq!(report.messages, 50);
        }
        // The stream is published as soon as that is possible.
        world.heal();
        let polling = Polling::start(&world, config());
        until("the stuck stream", || async {
            world.unpublished().await.is_empty()
        })
        .await;
        polling.stop().await;
        world.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_stream_is_tried_again_with_growing_pauses() {
    let world = World::new();
    world.append(&stream("a"), 1).await;
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    world.set_fates(move |call| match call {
        Call::Publish(_) => {
            seen.fetch_add(1, Ordering::SeqCst);
            Some(Fault::Unavailable)
        }
        _ => None,
    });
    let polling = Polling::start(&world, config());
    tokio::time::sleep(60 * S).await;
    // Three attempts per walk. The pauses are up to 1, 2, 4, 8, 8, ... s, so there are far fewer
    // attempts than walks, but some.
    let tries = tries.load(Ordering::SeqCst) / 3;
    assert!((7..40).contains(&tries), "{tries}");
    world.heal();
    until("published", || async {
        world.unpublished().await.is_empty()
    })
    .await;
    assert_eq!(polling.stop().await.stuck.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_a_bus_or_rows_that_do_not_answer_never_end_the_poller() {
    let world = World::new();
    world.append(&stream("a"), 1).await;
    world.faults.set([Fault::Unavailable.anywhere()]);
    let polling = Polling::start(&world, config());
    tokio::time::sleep(300 * S).await;
    assert!(!polling.task.is_finished());
    world.heal();
    until("published", || async {
        world.unpublished().await.is_empty()
    })
    .await;
    polling.stop().await;
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn what_must_be_changed_first_ends_the_poller_and_says_what() {
    use RefusedKind::{Credentials, MissingTable, MissingTopic};
    for (kind, op) in [
        (MissingTable, Op::Unpublished),
        (Credentials, Op::Publish),
        (MissingTable, Op::Get),
        (MissingTopic, Op::DescribeTopic),
    ] {
        let world = World::new();
        let commit = world.append(&stream("a"), 1).await;
        world.faults.set([Fault::Refused(kind).on(op)]);
        let polling = Polling::start(&world, config());
        let ended = tokio::time::timeout(60 * S, polling.task)
            .await
            .unwrap()
            .unwrap();
        let error = ended.unwrap_err();
        let source = std::error::Error::source(&error).expect("keeps why");
        assert!(!source.to_string().is_empty());
        assert_eq!(world.unpublished().await, [commit.key()]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_streams_malformed_request_does_not_end_the_poller() {
    let world = World::new();
    world.append(&stream("odd"), 1).await;
    let odd = Fault::Refused(RefusedKind::Validation).on(Op::Publish);
    world
        .faults
        .set([odd.matching(|call| call.is_about(&stream("odd")))]);
    let polling = Polling::start(&world, config());
    world.append(&stream("fine"), 1).await;
    until("the other", || async {
        world.unpublished().await.len() == 1
    })
    .await;
    assert!(polling.stop().await.stuck.contains_key(&stream("odd")));
}

#[tokio::test(start_paused = true)]
async fn shutdown_finishes_the_run_in_hand_and_moves_its_watermark() {
    let world = World::new();
    let a = stream("a");
    for _ in 0..50 {
        world.append(&a, 3).await;
    }
    let sending = Arc::new(AtomicBool::new(false));
    let seen = sending.clone();
    world.set_fates(move |call| match call {
        Call::Publish(message) => {
            seen.fetch_or(
                message.header("ce_fsversion") == Some("32"),
                Ordering::SeqCst,
            );
            Some(Fault::Delay(Duration::from_millis(10)))
        }
        _ => None,
    });
    let polling = Polling::start(&world, config());
    until("the eleventh commit", || async {
        sending.load(Ordering::SeqCst)
    })
    .await;
    let asked = Instant::now();
    let report = polling.stop().await;
    // The run in hand takes about a second.
    assert!(asked.elapsed() < 2 * S, "{:?}", asked.elapsed());
    let sent = report.messages;
    assert!((33..150).contains(&sent) && sent % 3 == 0, "{sent}");
    let mark = world.watermark(&a).await.unwrap().value.version;
    assert_eq!(mark, Version::new(sent));
    let left = world.unpublished().await.len() as u64;
    assert_eq!(left, 50 - sent / 3);
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_pause_or_a_retry() {
    let world = World::new();
    world.append(&stream("a"), 1).await;
    world.faults.set([Fault::Unavailable.on(Op::Publish)]);
    let publisher = world.publisher().with_retry(
        foldstream::RetryPolicy::default()
            .with_backoff(Backoff::new(3600 * S, 3600 * S).with_seed(1)),
    );
    let started = Instant::now();
    let asked = tokio::time::sleep(10 * S);
    publisher.poll(config(), asked).await.unwrap();
    assert!(started.elapsed() < 11 * S, "{:?}", started.elapsed());
    // A poller that is told to stop at once does nothing.
    publisher.poll(config(), async {}).await.unwrap();
}

#[tokio::test]
async fn a_store_without_a_list_has_no_poller() {
    let mut world = World::new();
    world.store = InMemoryEventStore::with_capabilities(Capabilities::new(1000));
    let ended = world.publisher().poll(config(), async {}).await;
    assert!(matches!(ended, Err(PollError::NoList)));
    // With a change stream nothing is listed, so nothing is cleared.
    let commit = world.append(&stream("a"), 1).await;
    world.set_fates(|call| match call {
        Call::ClearUnpublished(_) | Call::Unpublished { .. } => panic!("{call:?}"),
        _ => None,
    });
    assert_eq!(
        world.publisher().publish([commit.clone()]).await.messages,
        1
    );
    assert_eq!(world.publisher().publish([commit]).await.messages, 0);
}
