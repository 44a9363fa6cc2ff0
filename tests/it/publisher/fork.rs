//! Two histories under the same version numbers: a backup was restored while the publisher kept its
//! rows.
use super::{
    v,
    world::{World, stream},
};
use foldstream::{
    CommitId, StreamId,
    control::Watermark,
    ports::CommitKey,
    publisher::{Notice, PublishError, PublishReport},
};

fn a() -> StreamId {
    stream("a")
}

/// Publishes three commits of two events each, then replaces the store by one with these commits.
async fn restored(commits: &[usize]) -> (World, Vec<CommitKey>) {
    let world = World::new();
    for _ in 0..3 {
        world.append(&a(), 2).await;
    }
    world.publisher().publish_pending().await.unwrap();
    world.assert_at_rest().await;
    world.network.forget();
    let world = world.with_restored_store();
    let mut keys = Vec::new();
    for events in commits {
        keys.push(world.append(&a(), *events).await.key());
    }
    (world, keys)
}

async fn assert_stopped(world: &World, report: &PublishReport) {
    let forked = |f: &foldstream::publisher::StreamFailure| {
        f.stream == a() && matches!(f.error, PublishError::HistoryForked { .. })
    };
    assert!(report.failed.iter().any(forked), "{report:?}");
    assert_eq!(
        world.network.sent(&a()),
        [],
        "nothing of the other history is sent"
    );
    let mark = world.watermark(&a()).await.unwrap().value;
    assert_eq!(mark.version, v(6), "the watermark stays");
    assert!(!world.unpublished().await.is_empty(), "the markers stay");
}

#[tokio::test]
async fn history_forked_stops_the_stream() {
    // Other commits at the same versions; fewer; commits that end elsewhere; more than before.
    for commits in [&[2, 2, 2][..], &[2, 2], &[2], &[1, 4, 2], &[2, 2, 2, 2]] {
        let (world, keys) = restored(commits).await;
        let publisher = world.publisher();
        let other = world.append(&stream("b"), 1).await;
        let report = publisher.publish_pending().await.unwrap();
        assert_stopped(&world, &report).await;
        assert_eq!(report.published.len(), 1, "others go on: {other:?}");
        // A notice above the watermark does not start the stream again.
        let report = publisher.publish([keys[keys.len() - 1].clone()]).await;
        assert_stopped(&world, &report).await;
        let error = report.failed[0].error.to_string();
        assert!(error.contains("restored"), "{error}");
    }
}

#[tokio::test]
async fn a_commit_in_the_place_of_the_published_one_shows_the_fork() {
    let (world, _) = restored(&[2, 2]).await;
    let there = world.append(&a(), 2).await;
    let report = world.publisher().publish([Notice::Commit(there)]).await;
    assert_stopped(&world, &report).await;
    assert_eq!(world.network.reads(), 0, "the notice alone says so");
}

#[tokio::test]
async fn a_read_that_goes_on_inside_a_commit_shows_the_fork() {
    let (world, _) = restored(&[2, 2]).await;
    let spanning = world.append(&a(), 3).await;
    let behind = world.append(&a(), 1).await;
    assert_eq!(
        (spanning.last_version(), behind.first_version),
        (v(7), v(8))
    );
    let report = world.publisher().publish([behind.key()]).await;
    assert_stopped(&world, &report).await;
}

#[tokio::test]
async fn a_bell_ahead_of_a_tail_below_the_watermark_shows_the_fork() {
    let (world, _) = restored(&[2]).await;
    let report = world.publisher().publish([CommitKey::new(a(), v(9))]).await;
    assert_stopped(&world, &report).await;
}

#[tokio::test]
async fn a_stream_goes_on_once_its_watermark_fits_its_history_again() {
    let (world, keys) = restored(&[2, 2]).await;
    let publisher = world.publisher();
    let report = publisher.publish(keys.clone()).await;
    assert_stopped(&world, &report).await;
    // The operator removes the watermark, here by deleting its row.
    use foldstream::{
        control::Watermarks,
        ports::{ControlStore, DeleteExpect},
    };
    let key = Watermarks::key(&a());
    let _ = world.control.delete(&key, DeleteExpect::Any).await.unwrap();
    assert!(publisher.publish(keys).await.failed.is_empty());
    world.assert_at_rest().await;
}

#[tokio::test]
async fn an_old_bell_of_the_same_history_is_no_fork() {
    let world = World::new();
    let mut commits = Vec::new();
    for _ in 0..3 {
        commits.push(world.append(&a(), 2).await);
    }
    world.publisher().publish_pending().await.unwrap();
    for bell in commits {
        // Each publisher is new: it knows only the row.
        let report = world
            .publisher()
            .publish([Notice::Commit(bell.clone())])
            .await;
        assert!(report.failed.is_empty(), "{report:?}");
        let report = world.publisher().publish([bell.key()]).await;
        assert!(report.failed.is_empty(), "{report:?}");
    }
    assert_eq!(world.records().await, 6);
}

#[tokio::test]
async fn a_watermark_of_another_commit_at_the_same_version_shows_the_fork() {
    let world = World::new();
    let ours = world.append(&a(), 2).await;
    let publisher = world.publisher();
    let mut publishing = std::pin::pin!(publisher.publish([ours.clone()]));
    // The events are being sent when a process that reads another history marks its commit.
    while world.network.sent(&a()).is_empty() {
        assert!(futures::poll!(&mut publishing).is_pending());
        tokio::task::yield_now().await;
    }
    let theirs = Watermark::new(v(2), CommitId::from_u128(7));
    let marked = world.watermarks().advance(&a(), None, theirs).await;
    let report = publishing.await;
    let PublishError::HistoryForked {
        watermark, found, ..
    } = &report.failed[0].error
    else {
        panic!("{report:?}");
    };
    assert_eq!((*watermark, *found), (theirs, Some((v(2), ours.id))));
    assert_eq!(world.watermark(&a()).await, marked.ok());
    assert_eq!(world.unpublished().await, [ours.key()]);
}
