//! The rows of the readers of one table's change streams.
//!
//! ```text
//! streams          stream -> { "l": label of the stream that is read }
//!                  reconcile -> { "w": why, "t": since, in microseconds }, until an operator has
//!                  reconciled
//! streams/<label>  shard/<shard id> -> { "p": parent, "q": checkpoint, "d": true if done }
//!                  lease/<shard id> -> a lease
//!                  member/<instance> -> one of the `Members`, written again at each look; expires
//! ```
//! A checkpoint is always true, whoever writes it: everything up to it is covered. Writes are
//! compare-and-set, and of two checkpoints the higher one wins.
use super::service::SequenceNumber;
use foldstream::{
    Clock, IdSource, RetryPolicy,
    control::{Contender, Leases, Members},
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, Expect, PutOutcome, RangeQuery, Revision,
        Row, RowKey,
    },
    resilience::{Failure, Retryable},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// The progress in a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardRow {
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<String>,
    /// The last sequence number up to which everything is covered; `None` if nothing is.
    #[serde(rename = "q", default, skip_serializing_if = "Option::is_none")]
    pub(super) checkpoint: Option<SequenceNumber>,
    /// True if the shard is closed and everything in it is covered.
    #[serde(rename = "d", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_done: bool,
}

impl ShardRow {
    /// Returns the row that knows what both rows know.
    fn merge(self, other: Self) -> Self {
        Self {
            parent: self.parent.or(other.parent),
            checkpoint: self.checkpoint.max(other.checkpoint),
            is_done: self.is_done || other.is_done,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct StreamRow {
    #[serde(rename = "l")]
    label: String,
}

/// The row that says that a reconcile is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReconcileRow {
    #[serde(rename = "w")]
    pub(super) why: String,
    #[serde(rename = "t")]
    pub(super) micros: i64,
}

/// The rows of a stream.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) shards: BTreeMap<String, ShardRow>,
    /// The rows of the instances.
    pub(super) members: BTreeMap<String, Row>,
    /// The last writes of the leases.
    pub(super) leases: BTreeMap<String, Revision>,
}

/// The rows over the control store, whose failing calls are repeated for a while.
#[derive(Clone, Debug)]
pub(super) struct ReaderRows {
    pub(super) store: Arc<dyn ControlStore>,
    pub(super) ids: Arc<dyn IdSource>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) retry: RetryPolicy,
}

const PARTITION: &str = "streams";

fn partition(label: &str) -> String {
    format!("{PARTITION}/{label}")
}
fn shard_key(label: &str, shard: &str) -> RowKey {
    RowKey::new(partition(label), format!("shard/{shard}"))
}
fn lease_key(label: &str, shard: &str) -> RowKey {
    RowKey::new(partition(label), format!("lease/{shard}"))
}
fn member_key(label: &str, instance: &str) -> RowKey {
    RowKey::new(partition(label), format!("member/{instance}"))
}

impl ReaderRows {
    /// The writes of others that one advance accepts. There is one holder, and at most a few that
    /// have lost the lease without knowing it.
    const RACES: usize = 16;

    pub(super) fn contender(
        &self,
        label: &str,
        shard: &str,
        instance: &str,
        time: Duration,
    ) -> Contender {
        let leases = self.leases(time);
        leases.contender(lease_key(label, shard), instance)
    }
    /// Returns the instances that share the shards of a stream, as one of them sees them.
    pub(super) fn members(&self, label: &str, instance: &str, time: Duration) -> Members {
        let leases = self.leases(time);
        leases.members(member_key(label, instance), instance)
    }
    fn leases(&self, time: Duration) -> Leases {
        Leases::new(self.store.clone(), self.ids.clone(), time)
    }

    /// Reads all rows of a stream.
    pub(super) async fn list(&self, label: &str) -> Result<Listing, ControlStoreError> {
        let mut listing = Listing::default();
        let mut query = RangeQuery::new(partition(label));
        loop {
            let range = || self.store.range(&query);
            let page = range
                .retry(self.retry)
                .when(Failure::failure_class)
                .run()
                .await?;
            for row in page.rows {
                if let Some(shard) = row.key.sort.strip_prefix("shard/") {
                    listing.shards.insert(shard.to_owned(), decode(&row)?);
                } else if let Some(member) = row.key.sort.strip_prefix("member/") {
                    listing.members.insert(member.to_owned(), row.clone());
                } else if let Some(shard) = row.key.sort.strip_prefix("lease/") {
                    listing.leases.insert(shard.to_owned(), row.revision);
                }
            }
            if page.next.is_none() {
                return Ok(listing);
            }
            query.after = page.next;
        }
    }

    pub(super) async fn shard(
        &self,
        label: &str,
        shard: &str,
    ) -> Result<Option<(ShardRow, Revision)>, ControlStoreError> {
        self.get(&shard_key(label, shard)).await
    }

    /// Writes the progress in a shard, together with what another instance has written meanwhile.
    /// Returns the row as it is now.
    pub(super) async fn advance(
        &self,
        label: &str,
        shard: &str,
        row: ShardRow,
    ) -> Result<ShardRow, ControlStoreError> {
        let key = shard_key(label, shard);
        let mut wanted = row;
        let mut found = self.get::<ShardRow>(&key).await?;
        for _ in 0..Self::RACES {
            let expect = match &found {
                None => Expect::Absent,
                Some((stored, revision)) => {
                    wanted = wanted.merge(stored.clone());
                    if wanted == *stored {
                        return Ok(wanted);
                    }
                    Expect::Revision(*revision)
                }
            };
            match self.put(&key, &wanted, expect).await? {
                None => return Ok(wanted),
                // Each conflict is a write of another instance, which has advanced the row.
                Some(conflict) => found = conflict,
            }
        }
        let source = format!("row {key} was changed by others meanwhile").into();
        Err(ControlStoreError::Unavailable { source })
    }

    /// Deletes the rows of a shard that nobody needs.
    pub(super) async fn sweep(&self, label: &str, shard: &str) -> Result<(), ControlStoreError> {
        self.delete(&lease_key(label, shard), DeleteExpect::Any)
            .await?;
        self.delete(&shard_key(label, shard), DeleteExpect::Any)
            .await
    }

    /// Returns the label of the stream that is read.
    pub(super) async fn stream(&self) -> Result<Option<String>, ControlStoreError> {
        let row = self
            .get::<StreamRow>(&RowKey::new(PARTITION, "stream"))
            .await?;
        Ok(row.map(|(row, _)| row.label))
    }
    pub(super) async fn set_stream(&self, label: &str) -> Result<(), ControlStoreError> {
        let row = StreamRow {
            label: label.into(),
        };
        let key = RowKey::new(PARTITION, "stream");
        self.put(&key, &row, Expect::Any).await.map(drop)
    }

    /// Notes that records were lost. An earlier note stays.
    pub(super) async fn need_reconcile(&self, why: &str) -> Result<(), ControlStoreError> {
        let row = ReconcileRow {
            why: why.into(),
            micros: self.clock.now().as_micros(),
        };
        let key = RowKey::new(PARTITION, "reconcile");
        let conflict = self.put(&key, &row, Expect::Absent).await?;
        if let Some(Some((stored, revision))) = conflict {
            // The same note under another revision, so that an operator who reconciles now does
            // not delete the note of a loss that the reconcile may not have seen.
            let again = Expect::Revision(revision);
            let _changed = self.put(&key, &stored, again).await?;
        }
        Ok(())
    }
    pub(super) async fn reconcile(
        &self,
    ) -> Result<Option<(ReconcileRow, Revision)>, ControlStoreError> {
        self.get(&RowKey::new(PARTITION, "reconcile")).await
    }
    /// Deletes exactly this note. Returns false if there is another one.
    pub(super) async fn reconciled(&self, revision: Revision) -> Result<bool, ControlStoreError> {
        let key = RowKey::new(PARTITION, "reconcile");
        let delete = || self.store.delete(&key, DeleteExpect::Revision(revision));
        let deleted = delete
            .retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await?;
        Ok(!matches!(
            deleted,
            foldstream::ports::DeleteOutcome::Conflict(Some(_))
        ))
    }

    async fn get<T: DeserializeOwned>(
        &self,
        key: &RowKey,
    ) -> Result<Option<(T, Revision)>, ControlStoreError> {
        let get = || self.store.get(key);
        let row = get
            .retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await?;
        row.map(|row| Ok((decode(&row)?, row.revision))).transpose()
    }

    /// Writes a row. Returns `None` if it is written, and otherwise the row that is there instead.
    async fn put<T: Serialize + DeserializeOwned>(
        &self,
        key: &RowKey,
        value: &T,
        expect: Expect,
    ) -> Result<Option<Option<(T, Revision)>>, ControlStoreError> {
        let value = serde_json::to_vec(value).map_err(|e| corrupt(key, &e))?;
        let row = Row::new(key.clone(), value, self.ids.revision());
        let put = || self.store.put(&row, expect);
        let outcome = put
            .retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await?;
        Ok(match outcome {
            PutOutcome::Written => None,
            // The answer to an earlier attempt of this very write was lost.
            PutOutcome::Conflict(Some(found)) if found.revision == row.revision => None,
            PutOutcome::Conflict(None) => Some(None),
            PutOutcome::Conflict(Some(found)) => Some(Some((decode(&found)?, found.revision))),
        })
    }

    async fn delete(&self, key: &RowKey, expect: DeleteExpect) -> Result<(), ControlStoreError> {
        let delete = || self.store.delete(key, expect);
        delete
            .retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await
            .map(drop)
    }
}

fn decode<T: DeserializeOwned>(row: &Row) -> Result<T, ControlStoreError> {
    serde_json::from_slice(&row.value).map_err(|e| corrupt(&row.key, &e))
}
fn corrupt(key: &RowKey, error: &serde_json::Error) -> ControlStoreError {
    ControlStoreError::Corrupt {
        key: key.clone(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_the_rows_of_a_reader_is_fixed() {
        let shard = ShardRow {
            parent: Some("shardId-1".into()),
            checkpoint: Some(SequenceNumber::new("100000000003498069978")),
            is_done: true,
        };
        let forms = [
            serde_json::to_string(&shard).unwrap(),
            serde_json::to_string(&ShardRow::default()).unwrap(),
            serde_json::to_string(&StreamRow {
                label: "2026".into(),
            })
            .unwrap(),
            serde_json::to_string(&ReconcileRow {
                why: "trimmed".into(),
                micros: 5,
            })
            .unwrap(),
        ];
        let expected = [
            r#"{"p":"shardId-1","q":"100000000003498069978","d":true}"#,
            "{}",
            r#"{"l":"2026"}"#,
            r#"{"w":"trimmed","t":5}"#,
        ];
        assert_eq!(forms, expected);
        assert_eq!(serde_json::from_str::<ShardRow>(&forms[0]).unwrap(), shard);
        let label = "2026-01-01T00:00:00.000";
        let keys = [
            shard_key(label, "s").to_string(),
            lease_key(label, "s").to_string(),
            member_key(label, "m").to_string(),
        ];
        let under = |sort: &str| {
            format!(
                "streams/{label}/{sort}/{}",
                if sort == "member" { "m" } else { "s" }
            )
        };
        assert_eq!(keys, ["shard", "lease", "member"].map(under));
    }

    #[test]
    fn of_two_checkpoints_the_higher_one_wins() {
        let at = |n: &str, is_done| ShardRow {
            parent: None,
            checkpoint: Some(SequenceNumber::new(n)),
            is_done,
        };
        assert_eq!(at("9", false).merge(at("10", true)), at("10", true));
        assert_eq!(at("10", true).merge(at("9", false)), at("10", true));
        assert_eq!(at("1", false).merge(ShardRow::default()), at("1", false));
    }
}
