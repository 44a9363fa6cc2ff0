//! The rows that the processes of a distributed breaker share, in the partition `breaker/<name>`,
//! and the row by which operators find the breaker, in the partition `breaker`.
//!
//! ```text
//! <name>         { "q": quorum, "r": renew period in ms }   in `breaker`; never deleted
//! !epoch         { "e": epoch }                       absent: epoch 0
//! probe          { "e", "o", "t": as a lease's, "w": open time in ms }     never deleted
//! vote/<label>   { "e": epoch in which the circuit of this process opened }
//! ```
//! A vote has no token of its own: every write of a row has a fresh revision, and a vote is renewed
//! by writing it again.
//!
//! Fields that a newer build adds to `!epoch` and `probe` survive a write of this build, because
//! every process writes these rows. A vote is written by its own process only, as that process's
//! build has it.
use crate::ports::{ControlStore, ControlStoreError, RangeQuery, Revision, Row, RowKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

pub(super) const EPOCH: &str = "!epoch";
pub(super) const PROBE: &str = "probe";
pub(super) const VOTE: &str = "vote/";

/// The partition that lists the breakers.
pub(crate) const NAMES: &str = "breaker";

/// Returns the key of the row that lists a breaker.
pub(crate) fn name_key(name: &str) -> RowKey {
    RowKey::new(NAMES, name)
}
/// Returns the partition of a breaker.
pub(super) fn partition(name: &str) -> String {
    format!("breaker/{name}")
}
pub(super) fn epoch_key(name: &str) -> RowKey {
    RowKey::new(partition(name), EPOCH)
}
pub(super) fn probe_key(name: &str) -> RowKey {
    RowKey::new(partition(name), PROBE)
}
pub(super) fn vote_key(name: &str, label: &str) -> RowKey {
    RowKey::new(partition(name), format!("{VOTE}{label}"))
}

/// The settings of a breaker, as the process that started last has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameRow {
    #[serde(rename = "q")]
    pub(crate) quorum: u64,
    /// The time between two renewals of a vote, in milliseconds.
    #[serde(rename = "r")]
    pub(crate) renew_millis: u64,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// The epoch of the votes: the number of times that the service was found to be reachable again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochRow {
    #[serde(rename = "e")]
    pub(crate) epoch: u64,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// The vote of a process whose circuit has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteRow {
    #[serde(rename = "e")]
    pub(crate) epoch: u64,
}

/// The lease for the probe, which also keeps the open time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProbeRow {
    /// The epoch of the lease, which grows with every take-over.
    #[serde(rename = "e")]
    pub(crate) epoch: u64,
    /// The process that holds the lease; absent if it was released.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    /// The lease time in milliseconds.
    #[serde(rename = "t", default)]
    pub(crate) lease_millis: u64,
    /// The time between two probes in milliseconds.
    #[serde(rename = "w", default)]
    pub(crate) open_millis: u64,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// The rows of a breaker as one read found them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowsRead {
    pub(crate) epoch: Option<(EpochRow, Revision)>,
    pub(crate) probe: Option<(ProbeRow, Revision)>,
    pub(crate) votes: Vec<(String, VoteRow, Revision)>,
}

/// Reads all rows of a breaker. There is one vote per process that has voted within the last hour.
///
/// # Errors
/// The error of the control store, or [`ControlStoreError::Corrupt`] if the epoch or the lease is
/// unreadable.
pub(crate) async fn read(
    store: &dyn ControlStore,
    name: &str,
) -> Result<RowsRead, ControlStoreError> {
    let mut found = RowsRead::default();
    let mut query = RangeQuery::new(partition(name));
    loop {
        let page = store.range(&query).await?;
        for row in page.rows {
            sort(name, row, &mut found)?;
        }
        if page.next.is_none() {
            return Ok(found);
        }
        query = query.with_after(page.next);
    }
}

/// Adds a row to those that were found. Rows of newer builds under other names are left alone.
fn sort(name: &str, row: Row, found: &mut RowsRead) -> Result<(), ControlStoreError> {
    let sort = row.key.sort.as_str();
    if let Some(label) = sort.strip_prefix(VOTE) {
        let label = label.to_owned();
        match decode(row) {
            Ok((vote, revision)) => found.votes.push((label, vote, revision)),
            // The vote of one process must not keep the others from reading theirs.
            Err(error) => {
                let error = crate::chain(&error);
                tracing::warn!(name, label, %error, "a vote of a circuit breaker is unreadable");
            }
        }
    } else if sort == EPOCH {
        found.epoch = Some(decode(row)?);
    } else if sort == PROBE {
        found.probe = Some(decode(row)?);
    }
    Ok(())
}

fn decode<T: DeserializeOwned>(row: Row) -> Result<(T, Revision), ControlStoreError> {
    match serde_json::from_slice(&row.value) {
        Ok(value) => Ok((value, row.revision)),
        Err(e) => Err(ControlStoreError::Corrupt {
            key: row.key,
            reason: e.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(row: &impl Serialize) -> String {
        serde_json::to_string(row).unwrap()
    }

    #[test]
    fn the_stored_forms_are_fixed() {
        let epoch = EpochRow {
            epoch: 3,
            ..EpochRow::default()
        };
        assert_eq!(text(&epoch), r#"{"e":3}"#);
        assert_eq!(text(&VoteRow { epoch: 3 }), r#"{"e":3}"#);
        let mut probe = ProbeRow {
            epoch: 4,
            owner: Some("node-1#7".into()),
            lease_millis: 15_000,
            open_millis: 2000,
            rest: Map::new(),
        };
        let held = r#"{"e":4,"o":"node-1#7","t":15000,"w":2000}"#;
        assert_eq!(text(&probe), held);
        assert_eq!(serde_json::from_str::<ProbeRow>(held).unwrap(), probe);
        probe.owner = None;
        assert_eq!(text(&probe), r#"{"e":4,"t":15000,"w":2000}"#);
        let name = NameRow {
            quorum: 2,
            renew_millis: 5000,
            ..NameRow::default()
        };
        assert_eq!(text(&name), r#"{"q":2,"r":5000}"#);
        assert_eq!(name_key("pay").to_string(), "breaker/pay");
        assert_eq!(epoch_key("pay").to_string(), "breaker/pay/!epoch");
        assert_eq!(probe_key("pay").to_string(), "breaker/pay/probe");
        assert_eq!(vote_key("pay", "a").to_string(), "breaker/pay/vote/a");
    }

    #[test]
    fn fields_of_newer_builds_survive_in_rows_that_every_process_writes() {
        let newer = r#"{"e":3,"new":[1]}"#;
        let row: EpochRow = serde_json::from_str(newer).unwrap();
        assert_eq!(text(&row), newer);
        let newer = r#"{"e":4,"t":1,"w":2,"new":{"a":true}}"#;
        let row: ProbeRow = serde_json::from_str(newer).unwrap();
        assert_eq!(text(&row), newer);
        let newer = r#"{"q":2,"r":1,"new":0}"#;
        let row: NameRow = serde_json::from_str(newer).unwrap();
        assert_eq!(text(&row), newer);
        let vote: VoteRow = serde_json::from_str(r#"{"e":3,"new":1}"#).unwrap();
        assert_eq!(vote.epoch, 3);
    }
}
