//! Rows and checks that the cases share.
use crate::contract::support::{ENDLESS, unique};
use bytes::Bytes;
use foldstream::{
    IdSource, SystemIds, Timestamp,
    ports::{
        ControlStore, ControlStoreError, DeleteOutcome, Expect, PutOutcome, RangeQuery, Row, RowKey,
    },
};
use std::{fmt::Debug, sync::Arc, time::Duration};

/// The port that every case takes.
pub(super) type Store = Arc<dyn ControlStore>;

/// Returns a partition that no other test uses.
pub(super) fn fresh_partition() -> String {
    format!("contract/{}", unique())
}

/// Returns a key that no other test uses.
pub(super) fn fresh_key() -> RowKey {
    RowKey::new(fresh_partition(), "row")
}

/// Returns a row with a fresh revision and without expiry.
pub(super) fn row(key: &RowKey, value: impl Into<Bytes>) -> Row {
    Row::new(key.clone(), value, SystemIds.revision())
}

/// Returns a row with a fresh revision, past its expiry.
pub(super) fn expired(key: &RowKey) -> Row {
    let hour_ago = Timestamp::now().as_micros() - 3_600_000_000;
    row(key, "expired").with_expiry(Some(Timestamp::from_micros(hour_ago)))
}

/// Returns the time an hour from now, on a whole second, which every backend can store.
pub(super) fn in_an_hour() -> Timestamp {
    let later = Timestamp::now().plus(Duration::from_secs(3600));
    Timestamp::from_micros(later.as_micros() / 1_000_000 * 1_000_000)
}

/// Writes a row, and panics if it is not written.
pub(super) async fn must_put(store: &Store, row: &Row, expect: Expect) {
    let outcome = store.put(row, expect).await.unwrap();
    assert_eq!(
        outcome,
        PutOutcome::Written,
        "put {} with {expect:?}",
        row.key
    );
}

/// Stores a row under a fresh key, and returns it.
pub(super) async fn given_row(store: &Store, value: &'static str) -> Row {
    let row = row(&fresh_key(), value);
    must_put(store, &row, Expect::Absent).await;
    row
}

/// Stores rows of these sort keys in a fresh partition, each with its sort key as value.
pub(super) async fn given_rows(store: &Store, sorts: &[&str]) -> String {
    let partition = fresh_partition();
    for sort in sorts {
        let row = row(&RowKey::new(&partition, *sort), sort.to_string());
        must_put(store, &row, Expect::Absent).await;
    }
    partition
}

/// Asserts that the key holds exactly this row, by every way to read it.
pub(super) async fn assert_row(store: &Store, key: &RowKey, expected: Option<&Row>) {
    let found = store.get(key).await.unwrap();
    assert_eq!(found.as_ref(), expected, "get {key}");
    let found = store.get_many(std::slice::from_ref(key)).await.unwrap();
    assert_eq!(found, [expected.cloned()], "get_many of {key}");
    let mut found = range(store, RangeQuery::new(&key.partition)).await;
    found.retain(|row| row.key.sort == key.sort);
    let expected: Vec<_> = expected.into_iter().cloned().collect();
    assert_eq!(found, expected, "range over {key}");
}

/// Returns all rows of a range, page by page, and checks that every page keeps its limit.
pub(super) async fn range(store: &Store, mut query: RangeQuery) -> Vec<Row> {
    let mut rows = Vec::new();
    for walked in 0.. {
        assert!(walked < ENDLESS, "the range does not end");
        let page = store.range(&query).await.unwrap();
        let (found, limit) = (page.rows.len(), query.limit.get() as usize);
        assert!(found <= limit, "{found} rows in a page of {limit}");
        rows.extend(page.rows);
        if page.next.is_none() {
            break;
        }
        assert_ne!(page.next, query.after, "the range does not go on");
        query = query.with_after(page.next);
    }
    rows
}

/// Returns the sort keys of a range.
pub(super) async fn sorts(store: &Store, query: RangeQuery) -> Vec<String> {
    let rows = range(store, query).await;
    rows.into_iter().map(|row| row.key.sort).collect()
}

/// Asserts that a put was refused, and the row that it found.
pub(super) fn assert_put_conflict(outcome: &PutOutcome, current: Option<&Row>) {
    assert_eq!(outcome, &PutOutcome::Conflict(current.cloned()));
}

/// Asserts that a delete was refused, and the row that it found.
pub(super) fn assert_delete_conflict(outcome: &DeleteOutcome, current: Option<&Row>) {
    assert_eq!(outcome, &DeleteOutcome::Conflict(current.cloned()));
}

/// Asserts that a request was refused as malformed.
pub(super) fn assert_invalid<T: Debug>(answer: &Result<T, ControlStoreError>) {
    assert!(
        matches!(answer, Err(ControlStoreError::Invalid { .. })),
        "expected Invalid, found {answer:.300?}"
    );
}
