//! Cases of expired rows, which are absent.
use super::given::{
    Store, assert_delete_conflict, assert_put_conflict, assert_row, expired, fresh_key,
    fresh_partition, in_an_hour, must_put, range, row,
};
use foldstream::ports::{DeleteExpect, DeleteOutcome, Direction, Expect, RangeQuery, Row, RowKey};
use std::num::NonZeroU32;

async fn given_expired(store: &Store) -> Row {
    let row = expired(&fresh_key());
    must_put(store, &row, Expect::Any).await;
    row
}

/// A row past its expiry is not returned by `get`.
pub async fn an_expired_row_is_not_returned_by_get(store: Store) {
    let row = given_expired(&store).await;
    assert_eq!(store.get(&row.key).await.unwrap(), None);
}

/// A row past its expiry is `None` in `get_many`.
pub async fn an_expired_row_is_none_in_get_many(store: Store) {
    let gone = given_expired(&store).await;
    let live = row(&fresh_key(), "live").with_expiry(Some(in_an_hour()));
    must_put(&store, &live, Expect::Absent).await;
    let keys = [gone.key.clone(), live.key.clone(), gone.key];
    assert_eq!(
        store.get_many(&keys).await.unwrap(),
        [None, Some(live), None]
    );
}

/// Rows past their expiry are not in a range, and a page without live rows is not the end.
pub async fn expired_rows_are_not_in_a_range(store: Store) {
    let partition = fresh_partition();
    let mut live = Vec::new();
    for n in 0..12 {
        let key = RowKey::new(&partition, format!("{n:02}"));
        if n == 5 || n == 11 {
            let row = row(&key, "live");
            must_put(&store, &row, Expect::Absent).await;
            live.push(row);
        } else {
            must_put(&store, &expired(&key), Expect::Any).await;
        }
    }
    for limit in [1, 2, 3, 100] {
        let query = RangeQuery::new(&partition).with_limit(NonZeroU32::new(limit).unwrap());
        assert_eq!(range(&store, query.clone()).await, live, "pages of {limit}");
        let mut backwards = range(&store, query.with_direction(Direction::Descending)).await;
        backwards.reverse();
        assert_eq!(backwards, live, "pages of {limit}, descending");
    }
}

/// A row past its expiry is not matched by its revision, neither in a put nor in a delete.
pub async fn an_expired_row_is_not_matched_by_its_revision(store: Store) {
    let gone = given_expired(&store).await;
    let next = row(&gone.key, "next");
    let outcome = store.put(&next, Expect::Revision(gone.revision)).await;
    assert_put_conflict(&outcome.unwrap(), None);
    let outcome = store
        .delete(&gone.key, DeleteExpect::Revision(gone.revision))
        .await;
    assert_delete_conflict(&outcome.unwrap(), None);
    assert_row(&store, &gone.key, None).await;
}

/// A row past its expiry is overwritten by `Absent` and by `Any`, and deleted by `Any`.
pub async fn an_expired_row_is_overwritten_by_absent(store: Store) {
    let gone = given_expired(&store).await;
    let next = row(&gone.key, "next");
    must_put(&store, &next, Expect::Absent).await;
    assert_row(&store, &gone.key, Some(&next)).await;

    let gone = given_expired(&store).await;
    let next = row(&gone.key, "next");
    must_put(&store, &next, Expect::Any).await;
    assert_row(&store, &gone.key, Some(&next)).await;

    let gone = given_expired(&store).await;
    let outcome = store.delete(&gone.key, DeleteExpect::Any).await.unwrap();
    assert_eq!(outcome, DeleteOutcome::Deleted);
    assert_row(&store, &gone.key, None).await;
}

/// A live row that is written with a past expiry ends with that write. A row before its expiry is
/// like any other.
pub async fn a_row_ends_by_a_write_with_a_past_expiry(store: Store) {
    let live = row(&fresh_key(), "live").with_expiry(Some(in_an_hour()));
    must_put(&store, &live, Expect::Absent).await;
    let other = row(&live.key, "other");
    let outcome = store.put(&other, Expect::Absent).await.unwrap();
    assert_put_conflict(&outcome, Some(&live));
    assert_row(&store, &live.key, Some(&live)).await;
    let end = expired(&live.key);
    must_put(&store, &end, Expect::Revision(live.revision)).await;
    assert_row(&store, &live.key, None).await;
    must_put(&store, &other, Expect::Absent).await;
    assert_row(&store, &live.key, Some(&other)).await;
}
