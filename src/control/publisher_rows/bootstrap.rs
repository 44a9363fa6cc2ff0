//! The bootstrap: where the publishing of data begins that was stored before the first publisher.
use super::PublisherRows;
use crate::{
    control::{PutIf, Stored},
    ports::{ControlStoreError, Expect},
};
use serde::{Deserialize, Serialize};

/// The events with which publishing begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BootstrapMode {
    /// All stored events are published.
    Beginning,
    /// Only events that are stored after the bootstrap are published.
    Tail,
}

/// The value of the bootstrap's row. While it says that the bootstrap is not done, publishers
/// refuse to start. Without the row they start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootstrapRow {
    #[serde(rename = "m")]
    pub(crate) mode: BootstrapMode,
    /// The position in the scan, in hexadecimal digits. `None` at the beginning and at the end.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub(crate) cursor: Option<String>,
    #[serde(rename = "d")]
    pub(crate) is_done: bool,
}

impl PublisherRows {
    /// Returns the row of the bootstrap; `None` if none has begun.
    pub(crate) async fn bootstrap_get(
        &self,
    ) -> Result<Option<Stored<BootstrapRow>>, ControlStoreError> {
        self.rows.get(&self.single_key("bootstrap")).await
    }

    /// Writes the row of the bootstrap over the write that was `seen`.
    pub(crate) async fn bootstrap_put(
        &self,
        row: BootstrapRow,
        seen: Option<&Stored<BootstrapRow>>,
    ) -> Result<PutIf<BootstrapRow>, ControlStoreError> {
        let expect = seen.map_or(Expect::Absent, |seen| Expect::Revision(seen.revision));
        let key = self.single_key("bootstrap");
        self.rows.put(&key, row, expect).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_the_bootstrap_is_fixed() {
        let mut row = BootstrapRow {
            mode: BootstrapMode::Tail,
            cursor: Some("a0".into()),
            is_done: false,
        };
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(text, r#"{"m":"tail","c":"a0","d":false}"#);
        (row.cursor, row.is_done) = (None, true);
        row.mode = BootstrapMode::Beginning;
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(text, r#"{"m":"beginning","d":true}"#);
        assert_eq!(serde_json::from_str::<BootstrapRow>(&text).unwrap(), row);
    }
}
