//! The row of the reconciliation: how far the present one is, and what the last one has found.
use super::PublisherRows;
use crate::{
    Timestamp,
    control::{PutIf, Stored},
    ports::{ControlStoreError, Expect},
};
use serde::{Deserialize, Serialize};

/// The value of the row `reconcile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReconcileRow {
    /// The reconciliation that has begun and not ended.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub(crate) running: Option<ReconcileRun>,
    /// The last one that has compared all streams.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<ReconcileRun>,
}

/// The numbers of one reconciliation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReconcileRun {
    /// The time at which it began.
    #[serde(rename = "t")]
    pub(crate) since: Timestamp,
    /// The time of this write.
    #[serde(rename = "u")]
    pub(crate) updated: Timestamp,
    /// The number of heads of commits that were read.
    #[serde(rename = "h")]
    pub(crate) heads: u64,
    /// The number of times that a stream was found behind its tail.
    #[serde(rename = "n")]
    pub(crate) behind: u64,
    /// The number of events that those streams lacked.
    #[serde(rename = "e")]
    pub(crate) events: u64,
    /// The number of streams that could not be published.
    #[serde(rename = "f")]
    pub(crate) failed: u64,
    /// The position at which it continues, in hexadecimal digits. `None` once it has ended.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub(crate) cursor: Option<String>,
}

impl PublisherRows {
    /// Returns the row of the reconciliation; `None` if none has begun.
    pub(crate) async fn reconcile_get(
        &self,
    ) -> Result<Option<Stored<ReconcileRow>>, ControlStoreError> {
        self.rows.get(&self.single_key("reconcile")).await
    }

    /// Writes the row of the reconciliation over the write that was `seen`.
    pub(crate) async fn reconcile_put(
        &self,
        row: ReconcileRow,
        seen: Option<&Stored<ReconcileRow>>,
    ) -> Result<PutIf<ReconcileRow>, ControlStoreError> {
        let expect = seen.map_or(Expect::Absent, |seen| Expect::Revision(seen.revision));
        let key = self.single_key("reconcile");
        self.rows.put(&key, row, expect).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_reconciliation_is_fixed() {
        let mut run = ReconcileRun {
            since: Timestamp::from_micros(3),
            updated: Timestamp::from_micros(4),
            heads: 100,
            behind: 2,
            events: 5,
            failed: 1,
            cursor: Some("a0".into()),
        };
        let mut row = ReconcileRow {
            running: Some(run.clone()),
            last: None,
        };
        let text = r#"{"r":{"t":3,"u":4,"h":100,"n":2,"e":5,"f":1,"c":"a0"}}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        run.cursor = None;
        row = ReconcileRow {
            running: None,
            last: Some(run),
        };
        let text = r#"{"l":{"t":3,"u":4,"h":100,"n":2,"e":5,"f":1}}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        assert_eq!(serde_json::from_str::<ReconcileRow>(text).unwrap(), row);
    }
}
