//! Requests of operators to a whole processor.
//!
//! ```text
//! op/<name>   pause -> PauseRow
//! ```
//! A request is the wanted state, so that an instance that starts later follows it, too. The answer
//! of an instance is the state in its own row.
use super::{PutIf, Rows, Stored};
use crate::{
    Timestamp,
    ports::{ControlStoreError, Expect, Revision, RowKey},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The value of the row `op/<name>`, `pause`. There is no row before the first pause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PauseRow {
    /// True if the processor must not begin to handle events.
    #[serde(rename = "p")]
    pub(crate) is_paused: bool,
    /// The name of the operator.
    #[serde(rename = "b")]
    pub(crate) by: String,
    #[serde(rename = "y")]
    pub(crate) why: String,
    #[serde(rename = "t")]
    pub(crate) at: Timestamp,
    /// The fields that a newer build has written. This build keeps them.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl PauseRow {
    pub(crate) fn new(is_paused: bool, by: &str, why: &str, at: Timestamp) -> Self {
        Self {
            is_paused,
            by: by.into(),
            why: why.into(),
            at,
            rest: Map::new(),
        }
    }
    /// Returns the row with the decision of `newer`, and the fields that this build does not know.
    pub(crate) fn with(&self, newer: Self) -> Self {
        let rest = self.rest.clone();
        Self { rest, ..newer }
    }
}

fn pause_key(processor: &str) -> RowKey {
    RowKey::new(format!("op/{processor}"), "pause")
}

impl Rows {
    /// Returns the last request to pause or resume a processor; `None` if there was none.
    pub(crate) async fn pause_get(
        &self,
        processor: &str,
    ) -> Result<Option<Stored<PauseRow>>, ControlStoreError> {
        self.get(&pause_key(processor)).await
    }

    /// Writes a request in place of the one that was `seen`.
    pub(crate) async fn pause_put(
        &self,
        processor: &str,
        row: PauseRow,
        seen: Option<Revision>,
    ) -> Result<PutIf<PauseRow>, ControlStoreError> {
        let expect = seen.map_or(Expect::Absent, Expect::Revision);
        self.put(&pause_key(processor), row, expect).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_pause_is_fixed_and_fields_of_newer_builds_are_kept() {
        let row = PauseRow::new(true, "ann", "the database moves", Timestamp::from_micros(7));
        let text = r#"{"p":true,"b":"ann","y":"the database moves","t":7}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        let newer = text.replace(r#""t":7"#, r#""t":7,"z":1"#);
        let read: PauseRow = serde_json::from_str(&newer).unwrap();
        let resume = PauseRow::new(false, "bob", "done", Timestamp::from_micros(8));
        let written = serde_json::to_string(&read.with(resume)).unwrap();
        assert_eq!(written, r#"{"p":false,"b":"bob","y":"done","t":8,"z":1}"#);
    }
}
