//! Stores that break a rule of conditional writes.
use super::{Deleted, Put, Store, Suspects, all, broken};
use async_trait::async_trait;
use foldstream::{
    Timestamp,
    ports::{
        ControlStore, DeleteExpect, DeleteOutcome, Expect, PutOutcome, RangeQuery, Revision, Row,
        RowKey,
    },
};
use foldstream_testkit::intercept::ControlStoreLayer;
use std::{collections::HashMap, sync::Mutex};
use tokio::task::yield_now;

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<OverwritesWhatIsThere>(&["put_absent_writes_only_where_there_is_no_row"]).and_by(
            &[
                "a_failed_condition_changes_nothing",
                "a_repeated_put_is_written",
                "of_several_writers_that_expect_no_row_exactly_one_wins",
                "a_row_ends_by_a_write_with_a_past_expiry",
            ],
        ),
        broken::<IgnoresRevisions>(&[
            "put_with_a_revision_writes_only_over_exactly_that_write",
            "a_row_made_again_does_not_match_its_old_revision",
        ])
        .and_by(&[
            "a_failed_condition_changes_nothing",
            "a_repeated_put_is_written",
            "of_several_writers_that_expect_the_same_revision_exactly_one_wins",
        ]),
        broken::<MakesRowsOutOfNothing>(&["put_with_a_revision_does_not_make_a_row"]).and_by(&[
            "of_a_delete_and_puts_with_the_same_revision_exactly_one_wins",
            "an_expired_row_is_not_matched_by_its_revision",
        ]),
        broken::<TakesAnyForAbsent>(&["put_any_always_writes"]).and_by(&[
            "a_later_write_replaces_all_of_an_earlier_one",
            "every_later_read_sees_a_write",
            "delete_with_a_revision_deletes_only_exactly_that_write",
        ]),
        broken::<DeletesOnConflict>(&["a_failed_condition_changes_nothing"]).and_by(&[
            "a_row_made_again_does_not_match_its_old_revision",
            "delete_with_a_revision_deletes_only_exactly_that_write",
        ]),
        broken::<HidesTheRowInConflict>(&["a_failed_condition_changes_nothing"]).and_by(&[
            "put_absent_writes_only_where_there_is_no_row",
            "put_with_a_revision_writes_only_over_exactly_that_write",
            "a_repeated_put_is_written",
            "a_row_made_again_does_not_match_its_old_revision",
            "of_several_writers_that_expect_no_row_exactly_one_wins",
            "of_several_writers_that_expect_the_same_revision_exactly_one_wins",
            "a_row_ends_by_a_write_with_a_past_expiry",
        ]),
        broken::<ConflictsWithItself>(&["a_repeated_put_is_written"])
            .and_by(&["a_dropped_put_is_settled_by_repeating_it"]),
        broken::<RemembersAllWrites>(&["a_repeated_put_is_written"]),
        broken::<ComparesValues>(&["a_row_made_again_does_not_match_its_old_revision"])
            .and_by(&["of_several_writers_that_expect_the_same_revision_exactly_one_wins"]),
        broken::<DeletesAnyRevision>(&["delete_with_a_revision_deletes_only_exactly_that_write"])
            .and_by(&[
                "a_failed_condition_changes_nothing",
                "a_row_made_again_does_not_match_its_old_revision",
            ]),
        broken::<DeletesNothingGladly>(&[
            "delete_with_a_revision_of_nothing_is_a_conflict_with_nothing",
        ])
        .and_by(&[
            "of_a_delete_and_puts_with_the_same_revision_exactly_one_wins",
            "an_expired_row_is_not_matched_by_its_revision",
        ]),
        broken::<ConflictsOverNothing>(&["delete_any_is_always_deleted"])
            .and_by(&["an_expired_row_is_overwritten_by_absent"]),
        broken::<DeletesThePartition>(&["delete_any_is_always_deleted"])
            .and_by(&["a_walk_continues_after_a_deleted_row"]),
        broken::<ChecksThenActs>(&[
            "of_several_writers_that_expect_no_row_exactly_one_wins",
            "of_several_writers_that_expect_the_same_revision_exactly_one_wins",
            "a_counter_by_compare_and_set_loses_nothing",
        ]),
        broken::<ChecksThenDeletes>(&[
            "of_a_delete_and_puts_with_the_same_revision_exactly_one_wins",
        ]),
        broken::<DeletesBeforeItWrites>(&["a_dropped_put_is_settled_by_repeating_it"]).and_by(&[
            "of_several_writers_that_expect_the_same_revision_exactly_one_wins",
            "a_counter_by_compare_and_set_loses_nothing",
        ]),
        broken::<MatchesExpiredRevisions>(&["an_expired_row_is_not_matched_by_its_revision"]),
        broken::<KeepsExpiredRows>(&["an_expired_row_is_overwritten_by_absent"])
            .and_by(&["a_row_ends_by_a_write_with_a_past_expiry"]),
        broken::<IgnoresPastExpiries>(&["a_row_ends_by_a_write_with_a_past_expiry"]),
    ]
}

#[derive(Debug, Default)]
struct OverwritesWhatIsThere;
#[async_trait]
impl ControlStoreLayer for OverwritesWhatIsThere {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        match expect {
            Expect::Absent => store.put(row, Expect::Any).await,
            other => store.put(row, other).await,
        }
    }
}

#[derive(Debug, Default)]
struct IgnoresRevisions;
#[async_trait]
impl ControlStoreLayer for IgnoresRevisions {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        match store.put(row, expect).await? {
            PutOutcome::Conflict(Some(_)) if matches!(expect, Expect::Revision(_)) => {
                store.put(row, Expect::Any).await
            }
            other => Ok(other),
        }
    }
}

#[derive(Debug, Default)]
struct MakesRowsOutOfNothing;
#[async_trait]
impl ControlStoreLayer for MakesRowsOutOfNothing {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        match store.put(row, expect).await? {
            PutOutcome::Conflict(None) => store.put(row, Expect::Any).await,
            other => Ok(other),
        }
    }
}

#[derive(Debug, Default)]
struct TakesAnyForAbsent;
#[async_trait]
impl ControlStoreLayer for TakesAnyForAbsent {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let expect = match expect {
            Expect::Any => Expect::Absent,
            other => other,
        };
        store.put(row, expect).await
    }
}

#[derive(Debug, Default)]
struct DeletesOnConflict;
#[async_trait]
impl ControlStoreLayer for DeletesOnConflict {
    async fn delete(&self, store: &Store, key: &RowKey, expect: DeleteExpect) -> Deleted {
        let outcome = store.delete(key, expect).await?;
        if let DeleteOutcome::Conflict(Some(_)) = outcome {
            let _ = store.delete(key, DeleteExpect::Any).await?;
        }
        Ok(outcome)
    }
}

#[derive(Debug, Default)]
struct HidesTheRowInConflict;
#[async_trait]
impl ControlStoreLayer for HidesTheRowInConflict {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        Ok(match store.put(row, expect).await? {
            PutOutcome::Conflict(_) => PutOutcome::Conflict(None),
            other => other,
        })
    }
}

#[derive(Debug, Default)]
struct ConflictsWithItself;
#[async_trait]
impl ControlStoreLayer for ConflictsWithItself {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        row.validate()?;
        let found = store.get(&row.key).await?;
        if expect != Expect::Any && found.as_ref().map(|r| r.revision) == Some(row.revision) {
            return Ok(PutOutcome::Conflict(found));
        }
        store.put(row, expect).await
    }
}

/// Answers that a put is a repeat if it was ever written.
#[derive(Debug, Default)]
struct RemembersAllWrites {
    revisions: Mutex<Vec<Revision>>,
}
#[async_trait]
impl ControlStoreLayer for RemembersAllWrites {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        if self.revisions.lock().unwrap().contains(&row.revision) {
            return Ok(PutOutcome::Written);
        }
        let outcome = store.put(row, expect).await?;
        if outcome == PutOutcome::Written {
            self.revisions.lock().unwrap().push(row.revision);
        }
        Ok(outcome)
    }
}

/// Takes a row for unchanged if its value is the same.
#[derive(Debug, Default)]
struct ComparesValues {
    values: Mutex<HashMap<u128, bytes::Bytes>>,
}
#[async_trait]
impl ControlStoreLayer for ComparesValues {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let (revision, value) = (row.revision.as_u128(), row.value.clone());
        self.values.lock().unwrap().insert(revision, value);
        let outcome = store.put(row, expect).await?;
        if let (PutOutcome::Conflict(Some(found)), Expect::Revision(wanted)) = (&outcome, expect) {
            let meant = self.values.lock().unwrap().get(&wanted.as_u128()).cloned();
            if meant.as_ref() == Some(&found.value) {
                return store.put(row, Expect::Any).await;
            }
        }
        Ok(outcome)
    }
}

#[derive(Debug, Default)]
struct DeletesAnyRevision;
#[async_trait]
impl ControlStoreLayer for DeletesAnyRevision {
    async fn delete(&self, store: &Store, key: &RowKey, expect: DeleteExpect) -> Deleted {
        match store.delete(key, expect).await? {
            DeleteOutcome::Conflict(Some(_)) => store.delete(key, DeleteExpect::Any).await,
            other => Ok(other),
        }
    }
}

#[derive(Debug, Default)]
struct DeletesNothingGladly;
#[async_trait]
impl ControlStoreLayer for DeletesNothingGladly {
    async fn delete(&self, store: &Store, key: &RowKey, expect: DeleteExpect) -> Deleted {
        Ok(match store.delete(key, expect).await? {
            DeleteOutcome::Conflict(None) => DeleteOutcome::Deleted,
            other => other,
        })
    }
}

#[derive(Debug, Default)]
struct ConflictsOverNothing;
#[async_trait]
impl ControlStoreLayer for ConflictsOverNothing {
    async fn delete(&self, store: &Store, key: &RowKey, expect: DeleteExpect) -> Deleted {
        key.validate()?;
        if store.get(key).await?.is_none() {
            return Ok(DeleteOutcome::Conflict(None));
        }
        store.delete(key, expect).await
    }
}

#[derive(Debug, Default)]
struct DeletesThePartition;
#[async_trait]
impl ControlStoreLayer for DeletesThePartition {
    async fn delete(&self, store: &Store, key: &RowKey, expect: DeleteExpect) -> Deleted {
        let outcome = store.delete(key, expect).await?;
        if expect == DeleteExpect::Any {
            for row in all(store, &RangeQuery::new(&key.partition)).await {
                let _ = store.delete(&row.key, DeleteExpect::Any).await?;
            }
        }
        Ok(outcome)
    }
}

/// Checks the row, and writes a moment later without another check.
#[derive(Debug, Default)]
struct ChecksThenActs;
#[async_trait]
impl ControlStoreLayer for ChecksThenActs {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        row.validate()?;
        let found = store.get(&row.key).await?;
        let is_met = match expect {
            Expect::Any => true,
            Expect::Absent => found.is_none(),
            Expect::Revision(revision) => found.map(|r| r.revision) == Some(revision),
        };
        if !is_met {
            return store.put(row, expect).await;
        }
        yield_now().await;
        store.put(row, Expect::Any).await
    }
}

#[derive(Debug, Default)]
struct ChecksThenDeletes;
#[async_trait]
impl ControlStoreLayer for ChecksThenDeletes {
    async fn delete(&self, store: &Store, key: &RowKey, expect: DeleteExpect) -> Deleted {
        key.validate()?;
        let found = store.get(key).await?;
        let is_met = match expect {
            DeleteExpect::Any => true,
            DeleteExpect::Revision(revision) => found.map(|r| r.revision) == Some(revision),
        };
        if !is_met {
            return store.delete(key, expect).await;
        }
        yield_now().await;
        store.delete(key, DeleteExpect::Any).await
    }
}

/// Replaces a row in two steps.
#[derive(Debug, Default)]
struct DeletesBeforeItWrites;
#[async_trait]
impl ControlStoreLayer for DeletesBeforeItWrites {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        row.validate()?;
        let Expect::Revision(revision) = expect else {
            return store.put(row, expect).await;
        };
        match store
            .delete(&row.key, DeleteExpect::Revision(revision))
            .await?
        {
            DeleteOutcome::Deleted => {
                yield_now().await;
                store.put(row, Expect::Absent).await
            }
            DeleteOutcome::Conflict(_) => store.put(row, expect).await,
        }
    }
}

/// Rows that were written with a past expiry, as a store that deletes late still has them.
#[derive(Debug, Default)]
struct Expired(Mutex<HashMap<RowKey, Row>>);

impl Expired {
    fn note(&self, row: &Row) {
        let mut rows = self.0.lock().unwrap();
        rows.remove(&row.key);
        if row.expires_at.is_some_and(|at| at < Timestamp::now()) {
            rows.insert(row.key.clone(), row.clone());
        }
    }
    fn get(&self, key: &RowKey) -> Option<Row> {
        self.0.lock().unwrap().get(key).cloned()
    }
}

#[derive(Debug, Default)]
struct MatchesExpiredRevisions(Expired);
#[async_trait]
impl ControlStoreLayer for MatchesExpiredRevisions {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let expired = self.0.get(&row.key).map(|r| r.revision);
        let expect = match expect {
            Expect::Revision(revision) if expired == Some(revision) => Expect::Absent,
            other => other,
        };
        let outcome = store.put(row, expect).await?;
        if outcome == PutOutcome::Written {
            self.0.note(row);
        }
        Ok(outcome)
    }
}

/// Checks `Absent` against the stored row and not against what a reader sees.
#[derive(Debug, Default)]
struct KeepsExpiredRows(Expired);
#[async_trait]
impl ControlStoreLayer for KeepsExpiredRows {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        if expect == Expect::Absent && self.0.get(&row.key).is_some() {
            return Ok(PutOutcome::Conflict(None));
        }
        let outcome = store.put(row, expect).await?;
        if outcome == PutOutcome::Written {
            self.0.note(row);
        }
        Ok(outcome)
    }
}

/// Treats a past expiry on a live row as a mistake, and ignores it.
#[derive(Debug, Default)]
struct IgnoresPastExpiries;
#[async_trait]
impl ControlStoreLayer for IgnoresPastExpiries {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let is_past = row.expires_at.is_some_and(|at| at < Timestamp::now());
        if is_past && matches!(expect, Expect::Revision(_)) {
            return store.put(&row.clone().with_expiry(None), expect).await;
        }
        store.put(row, expect).await
    }
}
