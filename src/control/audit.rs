//! The audit: who did what to which processor, when and why, and how many rows it affected.
//!
//! ```text
//! audit/<yyyy-mm-dd>   <time>/<id> -> AuditRow, kept for 400 days
//! ```
//! The row is written before the action, without a number, and again after it, with the number. An
//! action therefore never happens without its row, also if the process dies in between.
use super::{KeyedPage, PutIf, Rows, Stored, hex_id::hex_id};
use crate::{
    Timestamp,
    ports::{ControlStoreError, Direction, Expect, RangeQuery, Revision, RowKey},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

hex_id! {
    /// The id of an entry in the audit.
    pub(crate) AuditId, "the id of an audit entry"
}

/// The time for which an entry is kept: 400 days.
pub(super) const KEPT: Duration = Duration::from_secs(400 * 24 * 3600);

/// The value of an entry's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AuditRow {
    /// The name of the operator.
    #[serde(rename = "w")]
    pub(crate) who: String,
    #[serde(rename = "t")]
    pub(crate) at: Timestamp,
    /// The name of the action, such as `redrive`.
    #[serde(rename = "a")]
    pub(crate) action: String,
    /// The target of the action: a processor, and what of it.
    #[serde(rename = "o")]
    pub(crate) target: String,
    #[serde(rename = "y")]
    pub(crate) why: String,
    /// The number of streams, letters or processors that the action affected. `None` while it goes
    /// on, and if nobody was left to note it.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub(crate) affected: Option<u64>,
}

/// Returns the date of a time, `yyyy-mm-dd`.
pub(crate) fn date(at: Timestamp) -> String {
    let text = at.to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

impl Rows {
    /// Writes an entry before its action.
    pub(crate) async fn audit_put(
        &self,
        row: AuditRow,
    ) -> Result<(RowKey, Stored<AuditRow>), ControlStoreError> {
        let revision = self.fresh_revision();
        let id = AuditId::from_u128(revision.as_u128());
        let sort = format!("{}/{id}", row.at);
        let key = RowKey::new(format!("audit/{}", date(row.at)), sort);
        let expires_at = Some(row.at.plus(KEPT));
        let put = self.put_as(&key, row.clone(), revision, Expect::Absent, expires_at);
        match put.await? {
            PutIf::Written(stored) => Ok((key, stored)),
            // Its id is new, so the row is this very entry.
            PutIf::Conflict(_) => Ok((
                key,
                Stored {
                    value: row,
                    revision,
                },
            )),
        }
    }

    /// Notes in an entry how many the action affected.
    pub(crate) async fn audit_complete(
        &self,
        key: &RowKey,
        row: AuditRow,
        seen: Revision,
    ) -> Result<PutIf<AuditRow>, ControlStoreError> {
        let expires_at = Some(row.at.plus(KEPT));
        self.put_until(key, row, Expect::Revision(seen), expires_at)
            .await
    }

    /// Returns one page of the entries of a day, the newest first.
    pub(crate) async fn audit_page(
        &self,
        date: &str,
        after: Option<String>,
    ) -> Result<KeyedPage<AuditId, AuditRow>, ControlStoreError> {
        let query = RangeQuery::new(format!("audit/{date}"))
            .with_direction(Direction::Descending)
            .with_after(after);
        let id_of = |sort: &str| sort.rsplit_once('/')?.1.parse().ok();
        self.page(&query, id_of).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_an_audit_entry_is_fixed() {
        let mut row = AuditRow {
            who: "ann".into(),
            at: Timestamp::from_micros(1_767_225_600_000_001),
            action: "pause".into(),
            target: "billing".into(),
            why: "the database moves".into(),
            affected: None,
        };
        let text = r#"{"w":"ann","t":1767225600000001,"a":"pause","o":"billing","y":"the database moves"}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        row.affected = Some(0);
        let text = text.replace('}', r#","n":0}"#);
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        assert_eq!(date(row.at), "2026-01-01");
    }
}
