//! Stores that do not return what was written.
use super::{Got, GotMany, Page, Put, Store, Suspects, broken};
use async_trait::async_trait;
use foldstream::{
    Timestamp,
    ports::{
        ControlStore, ControlStoreError, Expect, PutOutcome, RangeQuery, Revision, Row, RowKey,
    },
};
use foldstream_testkit::intercept::ControlStoreLayer;
use std::{collections::HashMap, sync::Mutex};

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<Misreads<KeepsText>>(&["a_value_comes_back_byte_for_byte"]).and_by(&[
            "a_value_of_exactly_the_limit_is_taken",
            "a_range_returns_the_rows_of_its_partition_only",
        ]),
        broken::<DropsEmptyValues>(&["a_value_comes_back_byte_for_byte"])
            .and_by(&["a_later_write_replaces_all_of_an_earlier_one"]),
        broken::<Misreads<CutsRevisions>>(&["a_revision_comes_back_whatever_its_bits"]),
        broken::<CutsExpiries>(&["an_expiry_comes_back"]),
        broken::<DropsExpiries>(&[
            "an_expiry_comes_back",
            "an_expired_row_is_not_returned_by_get",
        ])
        .and_by(&[
            "a_later_write_replaces_all_of_an_earlier_one",
            "a_value_of_exactly_the_limit_is_taken",
            "an_expired_row_is_none_in_get_many",
            "expired_rows_are_not_in_a_range",
            "an_expired_row_is_not_matched_by_its_revision",
            "an_expired_row_is_overwritten_by_absent",
            "a_row_ends_by_a_write_with_a_past_expiry",
        ]),
        broken::<KeepsOldExpiries>(&["a_later_write_replaces_all_of_an_earlier_one"]),
        broken::<ReadsStale>(&["every_later_read_sees_a_write"]).and_by(&[
            "a_later_write_replaces_all_of_an_earlier_one",
            "put_any_always_writes",
            "a_repeated_put_is_written",
            "delete_with_a_revision_deletes_only_exactly_that_write",
            "of_several_writers_that_expect_the_same_revision_exactly_one_wins",
            "a_dropped_put_is_settled_by_repeating_it",
            "a_row_ends_by_a_write_with_a_past_expiry",
        ]),
        broken::<JoinsKeys>(&["keys_are_any_text_and_are_not_mixed_up"]),
        broken::<Misreads<LowersKeys>>(&["keys_are_any_text_and_are_not_mixed_up"]).and_by(&[
            "a_range_is_ordered_bytewise",
            "a_prefix_takes_the_rows_that_begin_so",
        ]),
        broken::<TakesAnyKey>(&["keys_over_their_limits_are_invalid"]),
        broken::<CountsKeysToValues>(&["a_value_of_exactly_the_limit_is_taken"]),
        broken::<CutsLargeValues>(&["a_value_over_the_limit_is_too_large"]),
        broken::<SortsKeys>(&["get_many_answers_in_the_order_of_the_keys"]).and_by(&[
            "get_many_takes_any_number_of_keys",
            "an_expired_row_is_none_in_get_many",
        ]),
        broken::<AnswersKeysOnce>(&["get_many_answers_in_the_order_of_the_keys"]),
        broken::<GetsOneBatch>(&["get_many_takes_any_number_of_keys"]),
        broken::<GetsOneMegabyte>(&["large_rows_come_back_together"]),
        broken::<ShowsExpiredToGet>(&["an_expired_row_is_not_returned_by_get"]).and_by(&[
            "an_expired_row_is_not_matched_by_its_revision",
            "an_expired_row_is_overwritten_by_absent",
            "a_row_ends_by_a_write_with_a_past_expiry",
        ]),
        broken::<ShowsExpiredToGetMany>(&["an_expired_row_is_none_in_get_many"]).and_by(&[
            "an_expired_row_is_not_matched_by_its_revision",
            "an_expired_row_is_overwritten_by_absent",
            "a_row_ends_by_a_write_with_a_past_expiry",
        ]),
        broken::<ShowsExpiredInRanges>(&["expired_rows_are_not_in_a_range"]).and_by(&[
            "an_expired_row_is_not_matched_by_its_revision",
            "an_expired_row_is_overwritten_by_absent",
            "a_row_ends_by_a_write_with_a_past_expiry",
        ]),
    ]
}

/// A layer that changes every row that is found.
trait Misreading: Default + Send + Sync + 'static {
    fn found(&self, row: Row) -> Row;
}
#[derive(Default)]
struct Misreads<M>(M);
#[async_trait]
impl<M: Misreading> ControlStoreLayer for Misreads<M> {
    async fn get(&self, store: &Store, key: &RowKey) -> Got {
        Ok(store.get(key).await?.map(|row| self.0.found(row)))
    }
    async fn get_many(&self, store: &Store, keys: &[RowKey]) -> GotMany {
        let found = store.get_many(keys).await?.into_iter();
        Ok(found.map(|row| row.map(|row| self.0.found(row))).collect())
    }
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let mut page = store.range(query).await?;
        let rows = page.rows.into_iter();
        page.rows = rows.map(|row| self.0.found(row)).collect();
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct KeepsText;
impl Misreading for KeepsText {
    fn found(&self, mut row: Row) -> Row {
        row.value = String::from_utf8_lossy(&row.value).into_owned().into();
        row
    }
}

#[derive(Debug, Default)]
struct DropsEmptyValues;
#[async_trait]
impl ControlStoreLayer for DropsEmptyValues {
    async fn get(&self, store: &Store, key: &RowKey) -> Got {
        let found = store.get(key).await?;
        Ok(found.filter(|row| !row.value.is_empty()))
    }
}

/// Keeps only 64 of 128 bits.
#[derive(Debug, Default)]
struct CutsRevisions;
impl Misreading for CutsRevisions {
    fn found(&self, mut row: Row) -> Row {
        // Revisions made by code are left alone, so that only the case about the bits fails.
        if row.revision.as_u128().count_ones().abs_diff(64) > 60 {
            row.revision = Revision::from_u128(u128::from(row.revision.as_u128() as u64));
        }
        row
    }
}

/// Rounds expiry times down.
#[derive(Debug, Default)]
struct CutsExpiries;
#[async_trait]
impl ControlStoreLayer for CutsExpiries {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let cut = |at: Timestamp| Timestamp::from_micros(at.as_micros() / 1_000_000 * 1_000_000);
        let at = row.expires_at.map(cut);
        store.put(&row.clone().with_expiry(at), expect).await
    }
}

#[derive(Debug, Default)]
struct DropsExpiries;
#[async_trait]
impl ControlStoreLayer for DropsExpiries {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        store.put(&row.clone().with_expiry(None), expect).await
    }
}

#[derive(Debug, Default)]
struct KeepsOldExpiries;
#[async_trait]
impl ControlStoreLayer for KeepsOldExpiries {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let old = match row.key.validate() {
            Ok(()) => store.get(&row.key).await?.and_then(|old| old.expires_at),
            Err(_) => None,
        };
        store
            .put(&row.clone().with_expiry(row.expires_at.or(old)), expect)
            .await
    }
}

/// Answers with the previous answer about the same key, once.
#[derive(Debug, Default)]
struct ReadsStale {
    answers: Mutex<HashMap<RowKey, Option<Row>>>,
}
#[async_trait]
impl ControlStoreLayer for ReadsStale {
    async fn get(&self, store: &Store, key: &RowKey) -> Got {
        if let Some(answer) = self.answers.lock().unwrap().remove(key) {
            return Ok(answer);
        }
        let answer = store.get(key).await?;
        self.answers
            .lock()
            .unwrap()
            .insert(key.clone(), answer.clone());
        Ok(answer)
    }
}

/// Has one namespace for partition and sort key together.
#[derive(Debug, Default)]
struct JoinsKeys {
    rows: Mutex<HashMap<String, Row>>,
}
#[async_trait]
impl ControlStoreLayer for JoinsKeys {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let outcome = store.put(row, expect).await?;
        if outcome == PutOutcome::Written {
            self.rows
                .lock()
                .unwrap()
                .insert(row.key.to_string(), row.clone());
        }
        Ok(outcome)
    }
    async fn get(&self, store: &Store, key: &RowKey) -> Got {
        let found = store.get(key).await?;
        let other = self.rows.lock().unwrap().get(&key.to_string()).cloned();
        Ok(found.and(other))
    }
}

#[derive(Debug, Default)]
struct LowersKeys;
impl Misreading for LowersKeys {
    fn found(&self, mut row: Row) -> Row {
        // A collation that folds characters outside of ASCII.
        if !row.key.sort.is_ascii() {
            row.key.sort = row.key.sort.replace('\u{e9}', "e\u{301}");
        }
        row
    }
}

/// Cuts keys to their maximum length.
#[derive(Debug, Default)]
struct TakesAnyKey;
#[async_trait]
impl ControlStoreLayer for TakesAnyKey {
    async fn get(&self, store: &Store, key: &RowKey) -> Got {
        match store.get(key).await {
            Err(ControlStoreError::Invalid { .. }) => Ok(None),
            answer => answer,
        }
    }
}

#[derive(Debug, Default)]
struct CountsKeysToValues;
#[async_trait]
impl ControlStoreLayer for CountsKeysToValues {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let bytes = row.key.partition.len() + row.key.sort.len() + row.value.len();
        if bytes > Row::MAX_VALUE {
            return Err(ControlStoreError::TooLarge {
                key: row.key.clone(),
                bytes: row.value.len(),
                limit: Row::MAX_VALUE,
            });
        }
        store.put(row, expect).await
    }
}

#[derive(Debug, Default)]
struct CutsLargeValues;
#[async_trait]
impl ControlStoreLayer for CutsLargeValues {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let mut row = row.clone();
        row.value.truncate(Row::MAX_VALUE);
        store.put(&row, expect).await
    }
}

#[derive(Debug, Default)]
struct SortsKeys;
#[async_trait]
impl ControlStoreLayer for SortsKeys {
    async fn get_many(&self, store: &Store, keys: &[RowKey]) -> GotMany {
        let mut keys = keys.to_vec();
        keys.sort();
        store.get_many(&keys).await
    }
}

#[derive(Debug, Default)]
struct AnswersKeysOnce;
#[async_trait]
impl ControlStoreLayer for AnswersKeysOnce {
    async fn get_many(&self, store: &Store, keys: &[RowKey]) -> GotMany {
        let mut seen = Vec::new();
        let mut found = store.get_many(keys).await?;
        for (key, row) in keys.iter().zip(&mut found) {
            if seen.contains(&key) {
                *row = None;
            }
            seen.push(key);
        }
        Ok(found)
    }
}

/// The number of keys that DynamoDB reads in one batch.
#[derive(Debug, Default)]
struct GetsOneBatch;
#[async_trait]
impl ControlStoreLayer for GetsOneBatch {
    async fn get_many(&self, store: &Store, keys: &[RowKey]) -> GotMany {
        let mut found = store.get_many(keys).await?;
        found.iter_mut().skip(100).for_each(|row| *row = None);
        Ok(found)
    }
}

/// Does not request unprocessed keys again.
#[derive(Debug, Default)]
struct GetsOneMegabyte;
#[async_trait]
impl ControlStoreLayer for GetsOneMegabyte {
    async fn get_many(&self, store: &Store, keys: &[RowKey]) -> GotMany {
        let mut bytes = 0;
        let mut found = store.get_many(keys).await?;
        for slot in &mut found {
            bytes += slot.as_ref().map_or(0, |row| row.value.len());
            if bytes > 1 << 20 {
                *slot = None;
            }
        }
        Ok(found)
    }
}

/// Rows that were written with a past expiry, as a store that deletes late still has them.
#[derive(Debug, Default)]
struct Expired(Mutex<Vec<Row>>);

impl Expired {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let outcome = store.put(row, expect).await?;
        if outcome == PutOutcome::Written {
            let mut rows = self.0.lock().unwrap();
            rows.retain(|other| other.key != row.key);
            if row.expires_at.is_some_and(|at| at < Timestamp::now()) {
                rows.push(row.clone());
            }
        }
        Ok(outcome)
    }
    fn get(&self, key: &RowKey) -> Option<Row> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .find(|row| row.key == *key)
            .cloned()
    }
}

#[derive(Debug, Default)]
struct ShowsExpiredToGet(Expired);
#[async_trait]
impl ControlStoreLayer for ShowsExpiredToGet {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        self.0.put(store, row, expect).await
    }
    async fn get(&self, store: &Store, key: &RowKey) -> Got {
        Ok(store.get(key).await?.or_else(|| self.0.get(key)))
    }
}

#[derive(Debug, Default)]
struct ShowsExpiredToGetMany(Expired);
#[async_trait]
impl ControlStoreLayer for ShowsExpiredToGetMany {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        self.0.put(store, row, expect).await
    }
    async fn get_many(&self, store: &Store, keys: &[RowKey]) -> GotMany {
        let found = store.get_many(keys).await?.into_iter().zip(keys);
        Ok(found
            .map(|(row, key)| row.or_else(|| self.0.get(key)))
            .collect())
    }
}

#[derive(Debug, Default)]
struct ShowsExpiredInRanges(Expired);
#[async_trait]
impl ControlStoreLayer for ShowsExpiredInRanges {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        self.0.put(store, row, expect).await
    }
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let mut page = store.range(query).await?;
        if page.next.is_none() {
            let expired = self.0.0.lock().unwrap().clone().into_iter();
            let here = expired.filter(|row| row.key.partition == query.partition);
            page.rows
                .extend(here.take(query.limit.get() as usize - page.rows.len()));
        }
        Ok(page)
    }
}
