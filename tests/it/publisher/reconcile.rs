//! Tails against watermarks.
use super::{
    v,
    world::{World, stream},
};
use foldstream::{
    CommitId,
    control::Watermark,
    ports::Capabilities,
    publisher::{PublishError, ReconcileBudget, ReconcileCursor},
};
use foldstream_testkit::{
    InMemoryEventStore,
    faults::{Fault, Op},
};
use std::num::NonZeroU32;

/// Creates a world whose store keeps no list, so that a lost notice is lost for good.
fn without_list() -> World {
    let mut world = World::new();
    world.store = InMemoryEventStore::with_capabilities(Capabilities::new(1_000_000));
    world
}

#[tokio::test]
async fn lost_notices_are_made_up_for() {
    let world = without_list();
    for n in 0..30 {
        let id = stream(&(n % 10).to_string());
        let commit = world.append(&id, 1 + n % 3).await;
        // The notices of some streams are lost, and the last ones of others.
        if n % 10 < 5 && n < 20 {
            world.publisher().publish([commit]).await;
        }
    }
    let publisher = world.publisher();
    let report = publisher
        .reconcile(None, &ReconcileBudget::default())
        .await
        .unwrap();
    assert!(
        report.failed.is_empty() && report.next.is_none(),
        "{report:?}"
    );
    assert_eq!((report.heads, report.behind), (30, 10));
    world.assert_at_rest().await;
    // At rest there is nothing to do, and no stream is read.
    world.network.forget();
    let report = publisher
        .reconcile(None, &ReconcileBudget::default())
        .await
        .unwrap();
    assert_eq!(
        (report.behind, report.messages, world.network.reads()),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn a_reconciliation_stops_at_its_budget_and_goes_on_from_its_cursor() {
    let world = without_list();
    for n in 0..20 {
        world.append(&stream(&n.to_string()), 1).await;
        world.append(&stream(&n.to_string()), 1).await;
    }
    let budget = ReconcileBudget::default()
        .with_page(NonZeroU32::new(3).unwrap())
        .with_max_heads(7);
    let (mut cursor, mut calls): (Option<String>, _) = (None, 0);
    loop {
        let after = cursor.map(|text| text.parse::<ReconcileCursor>().unwrap());
        // Each call is made by another process.
        let report = world.publisher().reconcile(after, &budget).await.unwrap();
        assert!(report.heads <= 9, "{report:?}");
        calls += 1;
        cursor = report.next.map(|next| next.to_string());
        if cursor.is_none() {
            break;
        }
    }
    assert!(calls > 3, "{calls}");
    world.assert_at_rest().await;
}

#[tokio::test]
async fn a_fork_is_found_and_the_stream_stops() {
    let world = without_list();
    // The watermarks of another history: at the same version, and above the tail.
    let (a, b) = (stream("a"), stream("b"));
    for (id, version) in [(&a, 2), (&b, 5)] {
        world.append(id, 2).await;
        let mark = Watermark::new(v(version), CommitId::from_u128(7));
        world.watermarks().advance(id, None, mark).await.unwrap();
    }
    world.append(&stream("c"), 1).await;
    let report = world
        .publisher()
        .reconcile(None, &ReconcileBudget::default())
        .await
        .unwrap();
    let forked = |f: &foldstream::publisher::StreamFailure| {
        f.is_dirty && matches!(f.error, PublishError::HistoryForked { .. })
    };
    assert_eq!(report.failed.len(), 2, "{report:?}");
    assert!(report.failed.iter().all(forked), "{report:?}");
    assert_eq!(
        (
            report.messages,
            world.network.sent(&a),
            world.network.sent(&b)
        ),
        (1, vec![], vec![])
    );
}

#[tokio::test]
async fn a_stream_that_cannot_be_published_now_is_noted_as_dirty() {
    let world = without_list();
    world.append(&stream("a"), 2).await;
    world.faults.set([Fault::Unavailable.on(Op::Publish)]);
    let publisher = world.publisher();
    let report = publisher
        .reconcile(None, &ReconcileBudget::default())
        .await
        .unwrap();
    assert_eq!(report.failed.len(), 1);
    world.heal();
    // Nothing else remembers the stream.
    let swept = publisher.sweep(&Default::default()).await.unwrap();
    assert_eq!((swept.published, swept.messages), (1, 2));
    world.assert_at_rest().await;
}
