//! Publishers as an operator sees them from another process.
use super::{
    poller::Polling,
    v,
    world::{TOPIC, World, stream},
};
use foldstream::{
    IdSource, StreamId,
    control::PublisherName,
    operate::{OperateError, Operator, Reason},
    ports::{ControlStore, Expect, MessageBus, Row, RowKey, TopicDescription},
    publisher::{DirtyReason, PollConfig, ReconcileBudget, SkipError, SweepConfig},
};
use foldstream_testkit::{
    InMemoryEventStore,
    faults::{Call, Fault, Op},
};
use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;

const S: Duration = Duration::from_secs(1);

fn operator(world: &World) -> Operator {
    Operator::new(world.control.clone())
        .with_bus(world.bus.clone(), "shop")
        .with_ids(world.ids.clone())
        .with_clock(world.clock.clone())
}
fn reason() -> Reason {
    Reason::new("ann", "ticket 17").unwrap()
}
fn page(rows: u32) -> NonZeroU32 {
    NonZeroU32::new(rows).unwrap()
}
async fn put(world: &World, partition: &str, sort: &str, value: &str) {
    let key = RowKey::new(partition, sort);
    let row = Row::new(key, value.to_owned(), world.ids.revision());
    let _ = world.control.put(&row, Expect::Any).await.unwrap();
}
/// Returns the entries of the audit of today: action, target and how many were affected.
async fn audit(world: &World) -> Vec<(String, String, Option<u64>)> {
    let page = operator(world)
        .audit(world.clock.now(), None)
        .await
        .unwrap();
    let entries = page.entries.into_iter();
    entries.map(|e| (e.action, e.target, e.affected)).collect()
}
/// Gives a topic a limit, and appends an event to `a` that exceeds it between two that do not.
async fn with_a_large_event(world: &mut World) -> StreamId {
    let capabilities = foldstream::ports::Capabilities::new(3_900_000).with_unpublished_list(true);
    world.store = InMemoryEventStore::with_capabilities(capabilities);
    world.bus.delete_topic(TOPIC);
    let limited = TopicDescription::new(3).with_max_message_bytes(Some(1_000_000));
    world.bus.create_topic_as(TOPIC, limited);
    let a = stream("a");
    world.append(&a, 2).await;
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    world.append_payloads(&a, &[large]).await;
    world.append(&a, 1).await;
    a
}

#[tokio::test(start_paused = true)]
async fn running_publishers_show_their_status_to_every_process() {
    let world = World::new();
    let writes = Arc::new(AtomicUsize::new(0));
    let seen = writes.clone();
    world.set_fates(move |call| {
        if matches!(call, Call::Put { row, .. } if row.key.sort.starts_with("inst/")) {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        None
    });
    assert!(
        operator(&world)
            .publisher(None)
            .await
            .unwrap()
            .instances
            .is_empty()
    );
    let polling: Vec<_> = (0..2)
        .map(|_| Polling::start(&world, PollConfig::default()))
        .collect();
    tokio::time::sleep(30 * S).await;
    for n in 0..40 {
        world.append(&stream(&n.to_string()), 2).await;
    }
    tokio::time::sleep(70 * S).await;
    let overview = operator(&world).publisher(None).await.unwrap();
    assert_eq!((overview.instances.len(), overview.lag()), (2, 0));
    let mut published = 0;
    for instance in &overview.instances {
        let status = &instance.status;
        assert!(!instance.label.is_empty() && instance.updated > instance.since);
        assert_eq!(status.topics[TOPIC].published, status.published);
        assert!(status.topics[TOPIC].last_acknowledged.is_some());
        assert!(world.clock.now().since(instance.updated) <= 10 * S);
        published += status.published;
    }
    assert_eq!(published, 80);
    // Each of the two writes its row every ten seconds, and not more often.
    let writes = writes.load(Ordering::SeqCst);
    assert!((20..=22).contains(&writes), "{writes}");
    for polling in polling {
        polling.stop().await;
    }
    let gone = operator(&world).publisher(None).await.unwrap();
    assert!(gone.instances.is_empty(), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn a_status_shows_what_waits_and_since_when() {
    let world = World::new();
    let name: PublisherName = "private".parse().unwrap();
    let publisher = world
        .publisher()
        .with_name(name.clone())
        .with_instance("node-1");
    let (shutdown, asked) = oneshot::channel::<()>();
    let shows = tokio::spawn({
        let publisher = publisher.clone();
        async move {
            let asked = async {
                let _ = asked.await;
            };
            publisher.show_status(asked).await;
        }
    });
    let commit = world.append(&stream("a"), 5).await;
    world.faults.set([Fault::Hang.on(Op::Publish)]);
    let hangs = tokio::spawn(async move { publisher.publish([commit]).await });
    tokio::time::sleep(25 * S).await;
    let overview = operator(&world).publisher(Some(&name)).await.unwrap();
    let instance = &overview.instances[0];
    assert_eq!((&*instance.label, instance.status.working), ("node-1", 1));
    assert_eq!((overview.lag(), instance.status.topics[TOPIC].lag), (5, 5));
    assert!(overview.oldest_unpublished().unwrap() >= 10 * S);
    // The publisher without a name has rows of its own.
    let other = operator(&world).publisher(None).await.unwrap();
    assert!(other.instances.is_empty());
    hangs.abort();
    drop(shutdown);
    shows.await.unwrap();
    let overview = operator(&world).publisher(Some(&name)).await.unwrap();
    assert!(overview.instances.is_empty());
}

#[tokio::test]
async fn what_is_published_is_listed_in_pages() {
    let world = World::new();
    let name: PublisherName = "private".parse().unwrap();
    for n in 0..60 {
        world.append(&stream(&n.to_string()), 2).await;
    }
    world.publisher().publish_pending().await.unwrap();
    let operator = operator(&world);
    for limit in [1, 7, 1000] {
        let (mut found, mut after) = (BTreeSet::new(), None);
        loop {
            let list = operator
                .published_streams(None, after.as_ref(), page(limit))
                .await;
            let list = list.unwrap();
            assert!(list.items.len() <= limit as usize);
            for item in list.items {
                assert_eq!((item.version, item.last_record), (v(2), v(2)));
                assert!(found.insert(item.stream), "listed twice");
            }
            // A cursor comes from another process as text.
            after = list.next.map(|cursor| cursor.to_string().parse().unwrap());
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found.len(), 60, "limit {limit}");
    }
    let one = operator
        .published(None, &stream("7"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(one.version, v(2));
    assert_eq!(
        operator.published(Some(&name), &stream("7")).await.unwrap(),
        None
    );
    let none = operator
        .published_streams(Some(&name), None, page(1000))
        .await
        .unwrap();
    assert!(none.items.is_empty());
}

#[tokio::test]
async fn dirty_streams_are_listed_in_pages_and_swept_on_request() {
    let world = World::new();
    for n in 0..30 {
        world.append(&stream(&n.to_string()), 1).await;
    }
    // The bus refuses one event of each stream for good.
    let refused = foldstream::ports::RefusedKind::Validation;
    world.faults.set([Fault::Refused(refused).on(Op::Publish)]);
    let publisher = world.publisher();
    publisher.publish_pending().await.unwrap();
    let operator = operator(&world);
    let (mut found, mut after) = (BTreeSet::new(), None);
    loop {
        let list = operator
            .dirty_streams(None, after.as_ref(), page(4))
            .await
            .unwrap();
        for dirty in list.items {
            assert_eq!((dirty.why, dirty.known), (DirtyReason::Stuck, v(1)));
            assert!(dirty.attempts >= 1 && dirty.error.is_some(), "{dirty:?}");
            assert!(dirty.since <= dirty.last_attempt);
            assert!(found.insert(dirty.stream), "listed twice");
        }
        after = list.next.map(|cursor| cursor.to_string().parse().unwrap());
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found.len(), 30);
    world.heal();
    // Their next attempt would be in a minute. The operator does not wait for it.
    let waits = publisher.sweep(&SweepConfig::default()).await.unwrap();
    assert_eq!((waits.not_due, waits.published), (30, 0));
    let config = SweepConfig::default();
    let report = operator.sweep(&world.publisher(), &config, &reason()).await;
    assert_eq!(report.unwrap().published, 30);
    world.assert_at_rest().await;
    let none = operator
        .dirty_streams(None, None, page(1000))
        .await
        .unwrap();
    assert!(none.items.is_empty());
    assert_eq!(
        audit(&world).await,
        [("sweep".into(), "publisher".into(), Some(30))]
    );
}

#[tokio::test]
async fn an_operator_skips_an_event_that_cannot_be_published() {
    let mut world = World::new();
    let a = with_a_large_event(&mut world).await;
    let (operator, publisher) = (operator(&world), world.publisher());
    publisher.publish_pending().await.unwrap();
    let wrong = operator
        .skip_publishing(&publisher, &a, v(4), &reason())
        .await;
    let wrong = wrong.unwrap_err();
    let source = std::error::Error::source(&wrong).expect("keeps why");
    assert!(
        source.to_string().contains("skip the event that is named"),
        "{source}"
    );
    assert!(matches!(
        &wrong,
        OperateError::SkipPublishing(why) if matches!(**why, SkipError::NotRefused { .. })
    ));
    assert_eq!(audit(&world).await, [], "nothing was done");
    let skipped = operator
        .skip_publishing(&publisher, &a, v(3), &reason())
        .await
        .unwrap();
    assert!(skipped.report.failed.is_empty());
    let at = operator.published(None, &a).await.unwrap().unwrap();
    assert_eq!((at.version, at.last_record), (v(4), v(4)));
    let entry = ("skip publishing".into(), format!("{a} 3"), Some(1));
    assert_eq!(audit(&world).await, [entry]);
}

#[tokio::test]
async fn a_reconciliation_continues_in_another_process_and_its_numbers_stay() {
    let world = World::new();
    for n in 0..20 {
        world.append(&stream(&n.to_string()), 3).await;
    }
    let operator = operator(&world);
    let budget = ReconcileBudget::default()
        .with_page(page(5))
        .with_max_heads(5);
    let mut calls = 0;
    loop {
        // Each call is made by a process that knows nothing of the others.
        let report = operator
            .reconcile(&world.publisher(), &budget, &reason())
            .await
            .unwrap();
        calls += 1;
        let overview = operator.publisher(None).await.unwrap();
        if report.next.is_none() {
            break;
        }
        let now = overview.reconciling.unwrap();
        assert_eq!(
            (now.heads, now.behind, overview.reconciled),
            (5 * calls, 5 * calls, None)
        );
    }
    assert!(calls >= 4, "{calls}");
    let overview = operator.publisher(None).await.unwrap();
    let last = overview.reconciled.unwrap();
    assert_eq!(
        (last.heads, last.behind, last.events, last.failed),
        (20, 20, 60, 0)
    );
    assert_eq!(overview.reconciling, None);
    assert_eq!(audit(&world).await.len() as u64, calls);
    // The next one begins again, and finds nothing.
    let all = ReconcileBudget::default();
    operator
        .reconcile(&world.publisher(), &all, &reason())
        .await
        .unwrap();
    let last = operator.publisher(None).await.unwrap().reconciled.unwrap();
    assert_eq!((last.heads, last.behind, last.events), (20, 0, 0));
}

#[tokio::test]
async fn a_cursor_of_another_store_begins_the_reconciliation_again() {
    let world = World::new();
    world.append(&stream("a"), 1).await;
    let row = r#"{"r":{"t":1,"u":1,"h":70,"n":0,"e":0,"f":0,"c":"00ff"}}"#;
    put(&world, "pub", "reconcile", row).await;
    let budget = ReconcileBudget::default();
    let report = operator(&world)
        .reconcile(&world.publisher(), &budget, &reason())
        .await;
    assert_eq!(
        (report.as_ref().unwrap().heads, report.unwrap().behind),
        (1, 1)
    );
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_number_of_partitions_is_accepted_once_nothing_can_get_out_of_order() {
    let world = World::new();
    for n in 0..9 {
        world.append(&stream(&n.to_string()), 1).await;
    }
    let polling = Polling::start(&world, PollConfig::default());
    tokio::time::sleep(20 * S).await;
    world.bus.set_partitions(TOPIC, 6).unwrap();
    let operator = operator(&world);
    let accept = async |partitions| {
        operator
            .accept_partitions(TOPIC, partitions, &reason())
            .await
    };
    let pinned = async || {
        let topics = operator.topics().await.unwrap();
        (topics[0].topic.clone(), topics[0].pinned, topics[0].found)
    };
    assert_eq!(pinned().await, (TOPIC.into(), 3, Some(6)));
    let without = Operator::new(world.control.clone());
    let refused = without.accept_partitions(TOPIC, 6, &reason()).await;
    assert!(matches!(refused, Err(OperateError::NoBus)), "{refused:?}");
    let other = accept(7).await;
    assert!(
        matches!(other, Err(OperateError::NotThatMany { found: 6, .. })),
        "{other:?}"
    );
    let busy = accept(6).await;
    assert!(
        matches!(busy, Err(OperateError::StillPublishing { .. })),
        "{busy:?}"
    );
    polling.stop().await;
    // A processor has read nothing of its partition yet.
    put(
        &world,
        "proc",
        "sales",
        r#"{"a":1,"st":"live","e":0,"m":3}"#,
    )
    .await;
    put(
        &world,
        "boot/sales/1",
        &format!("{TOPIC}/{:020}", 0),
        r#"{"o":0,"s":true}"#,
    )
    .await;
    let unread = accept(6).await;
    assert!(
        matches!(unread, Err(OperateError::Unhandled { records: 1.., .. })),
        "{unread:?}"
    );
    for offsets in world.bus.offsets(TOPIC).await.unwrap() {
        let sort = format!("{TOPIC}/{:020}", offsets.partition.partition);
        let row = format!(r#"{{"o":{},"s":true}}"#, offsets.end.get());
        put(&world, "boot/sales/1", &sort, &row).await;
    }
    let parked = r#"{"i":"00000000000000000000000000000001","f":1,"h":1,"s":"parked","p":"00000000000000000000000000000002","n":3,"t":7}"#;
    let partition = format!("park/sales/1/{TOPIC}/0");
    put(&world, &partition, stream("0").as_str(), parked).await;
    let parked = accept(6).await;
    assert!(
        matches!(parked, Err(OperateError::StillParked { .. })),
        "{parked:?}"
    );
    assert_eq!(pinned().await.1, 3, "nothing was pinned");
    let key = RowKey::new(partition, stream("0").as_str());
    let _ = world
        .control
        .delete(&key, foldstream::ports::DeleteExpect::Any)
        .await
        .unwrap();
    assert_eq!(accept(6).await.unwrap(), 1);
    assert_eq!(pinned().await, (TOPIC.into(), 6, Some(6)));
    assert_eq!(accept(6).await.unwrap(), 0, "it is pinned already");
    let mut done: Vec<_> = audit(&world)
        .await
        .into_iter()
        .filter_map(|entry| entry.2)
        .collect();
    done.sort_unstable();
    assert_eq!(done, [0, 1], "what was refused has no number");
}
