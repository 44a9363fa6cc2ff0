//! Rules of the rows that processes share, seen from the control store.
use crate::support::{Account, AccountCommand::Deposit, AccountId, stream};
use foldstream::{
    CommitId, Metadata, Repository, Version,
    control::{Watermark, Watermarks},
    ports::{ControlStore, DeleteExpect, Expect, PutOutcome, Revision, Row, RowKey},
    publisher::Publisher,
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds,
    faults::{Call, Fault, Faults, Moment, Op, Rule},
    length,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

fn watermark(version: u64) -> Watermark {
    Watermark::new(Version::new(version), CommitId::from_u128(version.into()))
}

/// Creates watermarks over a store with these rules, and records every row that reaches the store.
fn watermarks(rules: impl IntoIterator<Item = Rule>) -> (Watermarks, Faults, Arc<Mutex<Vec<Row>>>) {
    let (faults, puts) = probed(Faults::script(rules));
    let rows = faults.control_store(InMemoryControlStore::new());
    (Watermarks::new(rows, SeededIds::new(1)), faults, puts)
}
fn probed(faults: Faults) -> (Faults, Arc<Mutex<Vec<Row>>>) {
    let puts = Arc::<Mutex<Vec<Row>>>::default();
    let seen = puts.clone();
    let faults = faults.with_probe(move |moment, call| {
        if let (Moment::Reaches, Call::Put { row, .. }) = (moment, call) {
            seen.lock().unwrap().push((*row).clone());
        }
    });
    (faults, puts)
}
fn revisions(puts: &Mutex<Vec<Row>>) -> Vec<Revision> {
    puts.lock()
        .unwrap()
        .iter()
        .map(|row| row.revision)
        .collect()
}

#[tokio::test]
async fn every_write_is_under_a_revision_that_nobody_has_used() {
    let (watermarks, _, puts) = watermarks([]);
    let mut seen = None;
    for version in 1..=100 {
        let moved = watermarks
            .advance(&stream("a"), seen, watermark(version))
            .await;
        seen = Some(moved.unwrap());
    }
    let revisions = revisions(&puts);
    let distinct: BTreeSet<u128> = revisions.iter().map(|r| r.as_u128()).collect();
    assert_eq!((revisions.len(), distinct.len()), (100, 100));
    // 128 random bits are not in the order of a counter.
    assert!(!revisions.is_sorted_by_key(|r| r.as_u128()));
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_sent_again_under_its_revision_and_is_mine() {
    for fault in [Fault::LoseReply, Fault::LoseRequest] {
        let (watermarks, _, puts) = watermarks([fault.on(Op::Put).at(1)]);
        let moved = watermarks
            .advance(&stream("a"), None, watermark(1))
            .await
            .unwrap();
        assert_eq!(moved.value, watermark(1));
        let sent = revisions(&puts);
        assert!(sent.iter().all(|r| *r == moved.revision), "{sent:?}");
        assert_eq!(watermarks.get(&stream("a")).await.unwrap(), Some(moved));
    }
}

#[tokio::test]
async fn a_row_that_another_process_has_moved_further_is_adopted_and_never_moves_back() {
    let (watermarks, faults, _) = watermarks([]);
    let first = watermarks
        .advance(&stream("a"), None, watermark(1))
        .await
        .unwrap();
    let faults = faults.with_concurrent_writer(|row| {
        let mut theirs = row.clone();
        theirs.value = serde_json::to_vec(&watermark(5)).unwrap().into();
        theirs
    });
    faults.set([Fault::ConcurrentWrite.on(Op::Put).at(1)]);
    let moved = watermarks
        .advance(&stream("a"), Some(first), watermark(3))
        .await;
    assert_eq!(moved.unwrap().value, watermark(5));
    let found = watermarks.get(&stream("a")).await.unwrap().unwrap();
    assert_eq!(found.value, watermark(5));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_others_overwrite_again_and_again_is_given_up_after_a_bounded_time() {
    // The concurrent writer writes the same value again, so the watermark never advances and the
    // row is never this process's own.
    let (watermarks, faults, _) = watermarks([]);
    let first = watermarks
        .advance(&stream("a"), None, watermark(1))
        .await
        .unwrap();
    faults.set([Fault::ConcurrentWrite.on(Op::Put)]);
    let started = tokio::time::Instant::now();
    let contended = watermarks
        .advance(&stream("a"), Some(first), watermark(2))
        .await;
    assert!(contended.unwrap_err().is_transient());
    let took = started.elapsed().as_millis();
    assert!((2000..2010).contains(&took), "{took} ms");
    // The pauses grow with each retry.
    let tries = faults.calls(Op::Put);
    assert!((10..200).contains(&tries), "{tries}");
}

#[tokio::test]
async fn a_row_that_was_deleted_and_made_again_is_not_mine_though_it_says_the_same() {
    let rows = InMemoryControlStore::new();
    let watermarks = Watermarks::new(rows.clone(), SeededIds::new(1));
    let seen = watermarks
        .advance(&stream("a"), None, watermark(1))
        .await
        .unwrap();
    let key = Watermarks::key(&stream("a"));
    let row = rows.get(&key).await.unwrap().unwrap();
    let _ = rows.delete(&key, DeleteExpect::Any).await.unwrap();
    let again = Row::new(key, row.value, Revision::from_u128(9));
    assert_eq!(
        rows.put(&again, Expect::Absent).await.unwrap(),
        PutOutcome::Written
    );

    let (faults, puts) = probed(Faults::none());
    let watermarks = Watermarks::new(faults.control_store(rows), SeededIds::new(2));
    watermarks
        .advance(&stream("a"), Some(seen), watermark(2))
        .await
        .unwrap();
    assert_eq!(puts.lock().unwrap().len(), 2, "a conflict first");
}

#[tokio::test(start_paused = true)]
async fn only_marks_of_commands_end_by_themselves() {
    let (faults, puts) = probed(Faults::none());
    let (store, bus) = (InMemoryEventStore::new(), InMemoryMessageBus::new());
    bus.create_topic("GlobalEvents", 1);
    let rows = faults.control_store(InMemoryControlStore::new());
    let day = Duration::from_secs(86_400);
    let accounts = Repository::<Account>::new(store.clone()).with_idempotency(rows.clone(), day);
    for n in 0..5 {
        let id = AccountId::from(format!("{n}"));
        let metadata = Metadata::new().with_command_id(format!("c{n}"));
        accounts
            .execute_with(&id, Deposit { amount: 1 }, metadata)
            .await
            .unwrap();
    }
    Publisher::new(store, bus, rows)
        .publish_pending()
        .await
        .unwrap();
    let puts = puts.lock().unwrap();
    let kinds: BTreeSet<_> = puts
        .iter()
        .map(|row| {
            let kind = row.key.partition.split('/').next().unwrap_or_default();
            (kind, row.expires_at.is_some())
        })
        .collect();
    assert_eq!(
        kinds,
        BTreeSet::from([("cmd", true), ("topic", false), ("wm", false)])
    );
}

#[test]
fn rows_of_streams_are_spread_over_64_partitions_by_the_streams_hash() {
    let keys: Vec<RowKey> = (0..2_000)
        .map(|n| Watermarks::key(&stream(&n.to_string())))
        .collect();
    let partitions: BTreeSet<_> = keys.iter().map(|key| key.partition.as_str()).collect();
    assert_eq!(partitions.len(), 64);
    for (n, key) in keys.iter().enumerate() {
        let shard = stream(&n.to_string()).shard(64);
        assert_eq!(key.partition, format!("wm/{shard}"));
    }
}

/// Returns the version of the watermark, read past all faults.
async fn read(watermarks: &Watermarks) -> u64 {
    let found = watermarks.get(&stream("a")).await.unwrap();
    found.map_or(0, |watermark| watermark.value.version.get())
}

/// Several processes move one watermark through a store that loses and repeats calls, and has
/// concurrent writers.
#[tokio::test(start_paused = true)]
async fn a_watermark_only_moves_forward_whatever_is_lost() {
    for seed in length::seeds(300, 5_000) {
        let rows = InMemoryControlStore::new();
        let faults = Faults::seeded(seed)
            .with(Fault::LoseReply.anywhere().one_in(6))
            .with(Fault::Duplicate.on(Op::Put).one_in(6))
            .with(Fault::ConcurrentWrite.on(Op::Put).one_in(10))
            .with(
                Fault::Freeze(Duration::from_millis(30))
                    .anywhere()
                    .one_in(20),
            )
            .with(Fault::Delay(Duration::from_millis(5)).anywhere().jittered());
        let processes = (0..3).map(|n| {
            let faults = faults.restart();
            let watermarks = Watermarks::new(faults.control_store(rows.clone()), SeededIds::new(n));
            let plain = Watermarks::new(rows.clone(), SeededIds::new(9));
            async move {
                let mut seen = None;
                for version in 1..=15 {
                    let before = read(&plain).await;
                    loop {
                        match watermarks
                            .advance(&stream("a"), seen, watermark(version))
                            .await
                        {
                            Ok(now) => {
                                assert!(now.value.version.get() >= version);
                                assert!(read(&plain).await >= before.max(version));
                                seen = Some(now);
                                break;
                            }
                            Err(error) => assert!(error.is_transient()),
                        }
                    }
                }
            }
        });
        futures::future::join_all(processes).await;
        let plain = Watermarks::new(rows.clone(), SeededIds::new(9));
        assert_eq!(read(&plain).await, 15);
    }
}
