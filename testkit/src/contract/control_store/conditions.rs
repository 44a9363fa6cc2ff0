//! Cases of put and delete: conditions, repeats and races.
use super::given::{
    Store, assert_delete_conflict, assert_put_conflict, assert_row, fresh_key, given_row, must_put,
    row,
};
use crate::contract::support::{PATIENCE, at_once, drop_midway};
use foldstream::{
    IdSource, SystemIds,
    ports::{DeleteExpect, DeleteOutcome, Expect, PutOutcome, Row, RowKey},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// `Absent` writes only where there is no row.
pub async fn put_absent_writes_only_where_there_is_no_row(store: Store) {
    let first = row(&fresh_key(), "first");
    must_put(&store, &first, Expect::Absent).await;
    let second = row(&first.key, "second");
    let outcome = store.put(&second, Expect::Absent).await.unwrap();
    assert_put_conflict(&outcome, Some(&first));
    assert_row(&store, &first.key, Some(&first)).await;
}

/// `Revision` writes only over exactly that write.
pub async fn put_with_a_revision_writes_only_over_exactly_that_write(store: Store) {
    let first = given_row(&store, "first").await;
    let second = row(&first.key, "second");
    must_put(&store, &second, Expect::Revision(first.revision)).await;
    let third = row(&first.key, "third");
    for wrong in [first.revision, SystemIds.revision()] {
        let outcome = store.put(&third, Expect::Revision(wrong)).await.unwrap();
        assert_put_conflict(&outcome, Some(&second));
    }
    assert_row(&store, &first.key, Some(&second)).await;
}

/// `Revision` does not write where there is no row, and the conflict names no row.
pub async fn put_with_a_revision_does_not_make_a_row(store: Store) {
    let row = row(&fresh_key(), "v");
    let expect = Expect::Revision(SystemIds.revision());
    assert_put_conflict(&store.put(&row, expect).await.unwrap(), None);
    assert_row(&store, &row.key, None).await;
}

/// `Any` always writes, with or without a row.
pub async fn put_any_always_writes(store: Store) {
    let key = fresh_key();
    for value in ["first", "second", "third"] {
        let row = row(&key, value);
        must_put(&store, &row, Expect::Any).await;
        assert_row(&store, &key, Some(&row)).await;
    }
}

/// A failed condition changes nothing, neither the row nor its neighbours, and the answer contains
/// the row as it is.
pub async fn a_failed_condition_changes_nothing(store: Store) {
    let kept = given_row(&store, "kept").await;
    let neighbour = row(&RowKey::new(&kept.key.partition, "row2"), "neighbour");
    must_put(&store, &neighbour, Expect::Absent).await;
    let other = row(&kept.key, "other");
    let wrong = SystemIds.revision();
    for expect in [Expect::Absent, Expect::Revision(wrong)] {
        assert_put_conflict(&store.put(&other, expect).await.unwrap(), Some(&kept));
        assert_row(&store, &kept.key, Some(&kept)).await;
    }
    let delete = DeleteExpect::Revision(wrong);
    let outcome = store.delete(&kept.key, delete).await.unwrap();
    assert_delete_conflict(&outcome, Some(&kept));
    assert_row(&store, &kept.key, Some(&kept)).await;
    assert_row(&store, &neighbour.key, Some(&neighbour)).await;
}

/// A put whose revision is already the row's is `Written`, whatever it expects, so that a lost
/// write may be repeated.
pub async fn a_repeated_put_is_written(store: Store) {
    let first = given_row(&store, "first").await;
    must_put(&store, &first, Expect::Absent).await;
    let second = row(&first.key, "second");
    let expect = Expect::Revision(first.revision);
    for _ in 0..2 {
        must_put(&store, &second, expect).await;
        assert_row(&store, &first.key, Some(&second)).await;
    }
    must_put(&store, &second, Expect::Any).await;
    assert_row(&store, &first.key, Some(&second)).await;
    // After another write, the first put is not a repeat any more.
    let third = row(&first.key, "third");
    must_put(&store, &third, Expect::Revision(second.revision)).await;
    assert_put_conflict(&store.put(&second, expect).await.unwrap(), Some(&third));
    assert_put_conflict(
        &store.put(&first, Expect::Absent).await.unwrap(),
        Some(&third),
    );
    assert_row(&store, &first.key, Some(&third)).await;
}

/// A row that was deleted and created again does not match its old revision.
pub async fn a_row_made_again_does_not_match_its_old_revision(store: Store) {
    let old = given_row(&store, "same value").await;
    let delete = DeleteExpect::Revision(old.revision);
    let deleted = store.delete(&old.key, delete).await.unwrap();
    assert_eq!(deleted, DeleteOutcome::Deleted);
    let new = row(&old.key, "same value");
    must_put(&store, &new, Expect::Absent).await;
    let late = row(&old.key, "late");
    let outcome = store.put(&late, Expect::Revision(old.revision)).await;
    assert_put_conflict(&outcome.unwrap(), Some(&new));
    let outcome = store.delete(&old.key, delete).await.unwrap();
    assert_delete_conflict(&outcome, Some(&new));
    assert_row(&store, &old.key, Some(&new)).await;
}

/// `delete` with a revision deletes only the row of exactly that write.
pub async fn delete_with_a_revision_deletes_only_exactly_that_write(store: Store) {
    let first = given_row(&store, "first").await;
    let second = row(&first.key, "second");
    must_put(&store, &second, Expect::Any).await;
    let outcome = store
        .delete(&first.key, DeleteExpect::Revision(first.revision))
        .await;
    assert_delete_conflict(&outcome.unwrap(), Some(&second));
    assert_row(&store, &first.key, Some(&second)).await;
    let outcome = store
        .delete(&first.key, DeleteExpect::Revision(second.revision))
        .await;
    assert_eq!(outcome.unwrap(), DeleteOutcome::Deleted);
    assert_row(&store, &first.key, None).await;
}

/// `delete` with a revision is `Conflict(None)` where no row exists, or where it exists no more.
pub async fn delete_with_a_revision_of_nothing_is_a_conflict_with_nothing(store: Store) {
    let row = given_row(&store, "v").await;
    let expect = DeleteExpect::Revision(row.revision);
    assert_delete_conflict(&store.delete(&fresh_key(), expect).await.unwrap(), None);
    let deleted = store.delete(&row.key, expect).await.unwrap();
    assert_eq!(deleted, DeleteOutcome::Deleted);
    assert_delete_conflict(&store.delete(&row.key, expect).await.unwrap(), None);
    assert_row(&store, &row.key, None).await;
}

/// `delete` with `Any` is always `Deleted`, and touches no other row.
pub async fn delete_any_is_always_deleted(store: Store) {
    let gone = given_row(&store, "gone").await;
    let kept = row(&RowKey::new(&gone.key.partition, "row2"), "kept");
    must_put(&store, &kept, Expect::Absent).await;
    for _ in 0..2 {
        let outcome = store.delete(&gone.key, DeleteExpect::Any).await.unwrap();
        assert_eq!(outcome, DeleteOutcome::Deleted);
        assert_row(&store, &gone.key, None).await;
    }
    assert_row(&store, &kept.key, Some(&kept)).await;
}

/// Puts a row under contention. If the backend is busy, the put is repeated with the same revision,
/// as a caller does.
async fn put_settled(store: &Store, row: &Row, expect: Expect) -> PutOutcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match store.put(row, expect).await {
            Err(error) if error.is_transient() && Instant::now() < deadline => {
                sleep(Duration::from_millis(20)).await;
            }
            answer => return answer.unwrap(),
        }
    }
}

/// Runs eight puts at once with the same expectation, and returns the only row that wins.
async fn one_winner(store: &Store, key: &RowKey, expect: Expect) -> Row {
    let answers = at_once(8, |writer| {
        let (store, row) = (store.clone(), row(key, format!("writer {writer}")));
        async move { (put_settled(&store, &row, expect).await, row) }
    })
    .await;
    let (won, lost): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|(outcome, _)| *outcome == PutOutcome::Written);
    assert_eq!(won.len(), 1, "writers that won with {expect:?}");
    let winner = won[0].1.clone();
    for (outcome, _) in lost {
        assert_put_conflict(&outcome, Some(&winner));
    }
    assert_row(store, key, Some(&winner)).await;
    winner
}

/// Of several writers that expect no row, exactly one wins, and the others are told the winner's
/// row.
pub async fn of_several_writers_that_expect_no_row_exactly_one_wins(store: Store) {
    for _ in 0..5 {
        one_winner(&store, &fresh_key(), Expect::Absent).await;
    }
}

/// Of several writers that expect the same revision, exactly one wins, and the others are told the
/// winner's row.
pub async fn of_several_writers_that_expect_the_same_revision_exactly_one_wins(store: Store) {
    let mut current = given_row(&store, "first").await;
    for _ in 0..5 {
        current = one_winner(&store, &current.key, Expect::Revision(current.revision)).await;
    }
}

/// A counter by compare-and-set loses no increment: five workers that each add one ten times end at
/// fifty.
pub async fn a_counter_by_compare_and_set_loses_nothing(store: Store) {
    let key = fresh_key();
    must_put(&store, &row(&key, "0"), Expect::Absent).await;
    at_once(5, |_| {
        let (store, key) = (store.clone(), key.clone());
        async move {
            for _ in 0..10 {
                let mut current = store.get(&key).await.unwrap().unwrap();
                for attempt in 0.. {
                    // Each conflict is another worker's success, so the number of conflicts is
                    // small.
                    assert!(attempt < 1000, "a worker only meets conflicts");
                    let count: u32 = std::str::from_utf8(&current.value)
                        .unwrap()
                        .parse()
                        .unwrap();
                    let next = row(&key, (count + 1).to_string());
                    match put_settled(&store, &next, Expect::Revision(current.revision)).await {
                        PutOutcome::Written => break,
                        PutOutcome::Conflict(other) => current = other.expect("the row is there"),
                    }
                }
            }
        }
    })
    .await;
    let end = store.get(&key).await.unwrap().unwrap();
    assert_eq!(end.value, "50");
}

/// Of a delete and several puts that expect the same revision, exactly one wins.
pub async fn of_a_delete_and_puts_with_the_same_revision_exactly_one_wins(store: Store) {
    for _ in 0..5 {
        let first = given_row(&store, "first").await;
        let revision = first.revision;
        let won = at_once(6, |n| {
            let (store, row) = (store.clone(), row(&first.key, format!("writer {n}")));
            async move {
                if n % 2 == 0 {
                    put_settled(&store, &row, Expect::Revision(revision)).await
                        == PutOutcome::Written
                } else {
                    let expect = DeleteExpect::Revision(revision);
                    store.delete(&row.key, expect).await.unwrap() == DeleteOutcome::Deleted
                }
            }
        })
        .await;
        assert_eq!(won.into_iter().filter(|won| *won).count(), 1, "that won");
    }
}

/// A dropped put is written whole or not at all, and repeating it settles which.
pub async fn a_dropped_put_is_settled_by_repeating_it(store: Store) {
    for attempt in 0..12 {
        let before = given_row(&store, "before").await;
        let after = row(&before.key, vec![b'a'; 10_000]);
        let expect = Expect::Revision(before.revision);
        drop_midway(attempt, store.put(&after, expect)).await;
        let found = store.get(&before.key).await.unwrap().unwrap();
        assert!(
            found == before || found == after,
            "attempt {attempt}: a torn row"
        );
        let outcome = put_settled(&store, &after, expect).await;
        assert_eq!(outcome, PutOutcome::Written, "attempt {attempt}");
        assert_row(&store, &before.key, Some(&after)).await;
    }
}
