//! The effects of faults on control stores and snapshot stores.
use super::{row, stream};
use foldstream::{
    CommitId, Version,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome,
        RangeQuery, Revision, Row, RowKey, SnapshotStore, SnapshotStoreError, StoredSnapshot,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemorySnapshotStore,
    faults::{Fault, Faults, Op},
};
use std::time::Duration;
use tokio::time::sleep;

#[tokio::test]
async fn a_concurrent_write_is_a_conflict_with_the_other_writers_row() {
    let faults = Faults::none().with_concurrent_writer(|row| {
        let mut theirs = row.clone();
        theirs.value = "theirs".into();
        theirs
    });
    let rows = faults.control_store(InMemoryControlStore::new());
    let mine = row("mine", 1);
    assert_eq!(
        rows.put(&mine, Expect::Absent).await.unwrap(),
        PutOutcome::Written
    );
    faults.set([Fault::ConcurrentWrite.on([Op::Put, Op::Delete]).every(2)]);
    let renewed = rows
        .put(&row("mine", 2), Expect::Revision(mine.revision))
        .await;
    assert_eq!(renewed.unwrap(), PutOutcome::Written);
    let renewed = rows
        .put(&row("mine", 3), Expect::Revision(Revision::from_u128(2)))
        .await;
    let PutOutcome::Conflict(Some(theirs)) = renewed.unwrap() else {
        panic!("it was stolen")
    };
    assert_eq!(theirs.value, "theirs");
    assert_eq!(rows.get(&mine.key).await.unwrap(), Some(theirs.clone()));
    // The third call meets no other writer. At the fourth, a delete finds another revision.
    let again = rows
        .put(&row("mine", 4), Expect::Revision(theirs.revision))
        .await;
    assert_eq!(again.unwrap(), PutOutcome::Written);
    let expect = DeleteExpect::Revision(Revision::from_u128(4));
    let deleted = rows.delete(&mine.key, expect).await.unwrap();
    assert!(matches!(deleted, DeleteOutcome::Conflict(Some(row)) if row.value == "theirs"));
}

#[tokio::test]
async fn where_there_is_no_row_the_concurrent_writer_is_the_first() {
    let faults = Faults::script([Fault::ConcurrentWrite.on(Op::Put)]);
    let rows = faults.control_store(InMemoryControlStore::new());
    let outcome = rows.put(&row("claim", 1), Expect::Absent).await.unwrap();
    let PutOutcome::Conflict(Some(theirs)) = outcome else {
        panic!("it was stolen")
    };
    assert_eq!(theirs.value, "claim");
    assert_ne!(theirs.revision, Revision::from_u128(1));
}

#[tokio::test(start_paused = true)]
async fn a_put_that_was_lost_or_late_is_settled_by_its_revision() {
    let inner = InMemoryControlStore::new();
    let faults = Faults::script([
        Fault::LoseReply.on(Op::Put).at(1),
        Fault::ApplyLate(Duration::from_secs(1))
            .on(Op::Delete)
            .at(1),
    ]);
    let rows = faults.control_store(inner.clone());
    let lost = rows.put(&row("1", 1), Expect::Absent).await;
    assert!(matches!(lost, Err(ControlStoreError::Unavailable { .. })));
    let again = rows.put(&row("1", 1), Expect::Absent).await.unwrap();
    assert_eq!(again, PutOutcome::Written);
    assert!(
        rows.delete(&row("", 0).key, DeleteExpect::Any)
            .await
            .is_err()
    );
    assert!(inner.get(&row("", 0).key).await.unwrap().is_some());
    sleep(Duration::from_secs(2)).await;
    assert!(inner.get(&row("", 0).key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_delete_that_is_sent_twice_finds_nothing_the_second_time() {
    let faults = Faults::script([Fault::Duplicate.on([Op::Put, Op::Delete])]);
    let rows = faults.control_store(InMemoryControlStore::new());
    let put = rows.put(&row("1", 1), Expect::Absent).await.unwrap();
    assert_eq!(put, PutOutcome::Written);
    let expect = DeleteExpect::Revision(Revision::from_u128(1));
    let deleted = rows.delete(&row("", 0).key, expect).await.unwrap();
    assert_eq!(deleted, DeleteOutcome::Conflict(None));
}

#[tokio::test]
async fn a_range_comes_with_empty_pages_in_both_directions() {
    use foldstream::ports::Direction::{Ascending, Descending};
    let faults = Faults::script([Fault::EmptyPage.on(Op::Range).every(2)]);
    let inner = InMemoryControlStore::new();
    for n in 0..4u128 {
        let row = Row::new(RowKey::new("p", format!("{n}")), "", Revision::from_u128(n));
        let _ = inner.put(&row, Expect::Absent).await.unwrap();
    }
    let rows = faults.control_store(inner);
    for (direction, expected) in [(Ascending, "0123"), (Descending, "3210")] {
        let (mut found, mut after, mut pages) = (String::new(), None, 0);
        loop {
            let query = RangeQuery::new("p")
                .with_limit(std::num::NonZeroU32::MIN)
                .with_direction(direction)
                .with_after(after);
            let page = rows.range(&query).await.unwrap();
            pages += 1;
            found.extend(page.rows.iter().map(|row| row.key.sort.as_str()));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, expected);
        assert!(pages > 6, "{pages} pages");
    }
    faults.set([Fault::EmptyPage.on(Op::Range).first(1)]);
    let first = rows.range(&RangeQuery::new("p")).await.unwrap();
    assert!(first.rows.is_empty());
    let all = rows
        .range(&RangeQuery::new("p").with_after(first.next))
        .await;
    assert_eq!(all.unwrap().rows.len(), 4);
}

#[tokio::test]
async fn snapshots_are_lost_like_everything_else() {
    let inner = InMemorySnapshotStore::new();
    let faults = Faults::script([
        Fault::LoseReply.on(Op::SaveSnapshot).at(1),
        Fault::Throttled(None).on(Op::LoadSnapshot).at(1),
        Fault::LoseRequest.on(Op::DeleteSnapshot).at(1),
    ]);
    let store = faults.snapshot_store(inner.clone());
    let snapshot = StoredSnapshot::new(
        stream("a"),
        Version::new(1),
        CommitId::random(),
        1,
        "{}".into(),
    );
    let lost = store.save(&snapshot).await;
    assert!(matches!(lost, Err(SnapshotStoreError::Unavailable { .. })));
    let throttled = store.load(&stream("a")).await;
    assert!(matches!(
        throttled,
        Err(SnapshotStoreError::Throttled { .. })
    ));
    assert!(store.delete(&stream("a")).await.is_err());
    assert_eq!(store.load(&stream("a")).await.unwrap(), Some(snapshot));
    store.delete(&stream("a")).await.unwrap();
    assert_eq!(inner.load(&stream("a")).await.unwrap(), None);
}
