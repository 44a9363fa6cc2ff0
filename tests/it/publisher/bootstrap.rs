//! The publishing of data that was stored before the first publisher.
use super::{
    v,
    world::{World, stream},
};
use foldstream::{
    ports::{Capabilities, ControlStore, RowKey},
    publisher::{BootstrapError, BootstrapMode, PollConfig, PollError, PublishError},
};
use foldstream_testkit::{
    InMemoryEventStore,
    faults::{Call, Fault, Op},
};

async fn with_data() -> World {
    let mut world = World::new();
    world.store = InMemoryEventStore::with_capabilities(Capabilities::new(1_000_000));
    for n in 0..30 {
        world
            .append(&stream(&(n % 10).to_string()), 1 + n % 3)
            .await;
    }
    world
}

#[tokio::test]
async fn after_a_bootstrap_at_the_tail_only_new_events_are_published() {
    let world = with_data().await;
    let report = world
        .publisher()
        .bootstrap(BootstrapMode::Tail)
        .await
        .unwrap();
    assert_eq!((report.streams, report.was_done), (10, false));
    let publisher = world.publisher();
    let budget = Default::default();
    assert_eq!(
        publisher.reconcile(None, &budget).await.unwrap().messages,
        0
    );
    let old = stream("3");
    let tail = world.tail(&old);
    let commit = world.append(&old, 2).await;
    let new = world.append(&stream("new"), 2).await;
    assert_eq!(publisher.publish([commit, new]).await.messages, 4);
    // A reader need not look for what was before.
    let first = tail.get() + 1;
    assert_eq!(world.explained(&old), [(first, Some(0)), (first + 1, None)]);
    assert_eq!(world.explained(&stream("new")), [(1, None), (2, None)]);
    let again = publisher.bootstrap(BootstrapMode::Tail).await.unwrap();
    assert!(again.was_done);
}

#[tokio::test(start_paused = true)]
async fn after_a_bootstrap_at_the_beginning_a_sweep_publishes_everything() {
    let world = with_data().await;
    let published = stream("4");
    let publisher = world.publisher();
    publisher.publish_stream(&published).await;
    let report = publisher.bootstrap(BootstrapMode::Beginning).await.unwrap();
    // A stream that has a watermark is left alone.
    assert_eq!(report.streams, 9);
    let swept = publisher.sweep(&Default::default()).await.unwrap();
    assert_eq!((swept.published, swept.still_dirty), (9, 0));
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn publishers_refuse_to_start_while_a_bootstrap_is_not_done() {
    let world = with_data().await;
    let notice = world.append(&stream("3"), 1).await;
    // It dies before it is done.
    world.set_fates(|call| match call {
        Call::Put { row, .. } if row.key.sort == "cart#5" => Some(Fault::Unavailable),
        _ => None,
    });
    let died = world.publisher().bootstrap(BootstrapMode::Tail).await;
    assert!(matches!(died, Err(BootstrapError::Control(_))), "{died:?}");
    world.heal();
    let key = RowKey::new("pub", "bootstrap");
    let row = world.control.get(&key).await.unwrap().unwrap();
    assert_eq!(&row.value[..], br#"{"m":"tail","d":false}"#);

    let publisher = world.publisher();
    let report = publisher.publish([notice.clone()]).await;
    let failure = &report.failed[0];
    assert!(matches!(
        failure.error,
        PublishError::NotBootstrapped { .. }
    ));
    assert!(failure.error.is_set_up_wrong() && !failure.is_dirty);
    assert_eq!(
        (report.first_to_keep(), world.records().await),
        (Some(0), 0)
    );
    let other = publisher.bootstrap(BootstrapMode::Beginning).await;
    assert!(matches!(other, Err(BootstrapError::AnotherMode { .. })));

    let report = world
        .publisher()
        .bootstrap(BootstrapMode::Tail)
        .await
        .unwrap();
    assert!(!report.was_done);
    // No restart is needed. The commit was appended before the bootstrap reached its stream.
    assert_eq!(publisher.publish([notice]).await.messages, 0);
    let next = world.append(&stream("3"), 1).await;
    assert_eq!(publisher.publish([next]).await.messages, 1);
}

#[tokio::test(start_paused = true)]
async fn a_poller_ends_while_a_bootstrap_is_not_done() {
    let world = World::new();
    world.append(&stream("a"), 1).await;
    world.faults.set([Fault::Unavailable.on(Op::Scan)]);
    assert!(
        world
            .publisher()
            .bootstrap(BootstrapMode::Tail)
            .await
            .is_err()
    );
    world.heal();
    let ended = world
        .publisher()
        .poll(PollConfig::default(), std::future::pending())
        .await;
    assert!(matches!(
        ended,
        Err(PollError::Refused {
            source: PublishError::NotBootstrapped { .. }
        })
    ));
    // Markers of what the bootstrap has passed over go.
    world
        .publisher()
        .bootstrap(BootstrapMode::Tail)
        .await
        .unwrap();
    let shutdown = tokio::time::sleep(std::time::Duration::from_secs(5));
    let report = world
        .publisher()
        .poll(PollConfig::default(), shutdown)
        .await
        .unwrap();
    assert_eq!((report.messages, world.unpublished().await), (0, vec![]));
    assert_eq!(
        world
            .watermark(&stream("a"))
            .await
            .unwrap()
            .value
            .last_record(),
        v(0)
    );
}
