//! Generations that do not serve any more: what is left of them, and its deletion.
//!
//! ```text
//! old/<name>   <generation:010> -> RetiredRow
//! ```
//! The row is written *before* the row `proc` leaves the generation, so that a crash in between
//! leaves a row too many and never a model that nobody deletes. Whoever deletes therefore reads the
//! row `proc` first: a generation that it names is not deleted.
use super::{DeleteIf, KeyedPage, ProcessorRows, PutIf, Rows, Stored};
use crate::ports::{ControlStoreError, Expect, RangeQuery, Revision, RowKey};
use serde::{Deserialize, Serialize};

/// The kinds of rows that a generation has for each partition of the bus. What was discarded is
/// audit, and stays.
const OF_PARTITIONS: [&str; 5] = ["park", "dlq", "def", "order", "ask"];

/// The value of the row `old/<name>`, `<generation>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetiredRow {
    /// True if the generation that follows has the same read model: only the rows of this
    /// generation are deleted, and not the model.
    #[serde(rename = "i", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) in_place: bool,
    /// The process that deletes what is left, by its instance id.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
}

fn key(processor: &str, generation: u32) -> RowKey {
    RowKey::new(format!("old/{processor}"), format!("{generation:010}"))
}

impl Rows {
    /// Writes that a generation is about to be left. Each write has another revision, from which
    /// the time counts until it may be deleted.
    pub(crate) async fn retired_put(
        &self,
        processor: &str,
        generation: u32,
        in_place: bool,
    ) -> Result<(), ControlStoreError> {
        let row = RetiredRow {
            in_place,
            owner: None,
        };
        let key = key(processor, generation);
        // Without a condition there is no conflict.
        let (PutIf::Written(_) | PutIf::Conflict(_)) = self.put(&key, row, Expect::Any).await?;
        Ok(())
    }

    /// Returns one page of the generations of a processor that were left.
    pub(crate) async fn retired_page(
        &self,
        processor: &str,
        after: Option<String>,
    ) -> Result<KeyedPage<u32, RetiredRow>, ControlStoreError> {
        let query = RangeQuery::new(format!("old/{processor}")).with_after(after);
        self.page(&query, |sort| sort.parse().ok()).await
    }

    /// Takes the deletion of a generation upon this process. Returns `None` if another process has
    /// changed the row.
    pub(crate) async fn retired_claim(
        &self,
        processor: &str,
        generation: u32,
        seen: &Stored<RetiredRow>,
        owner: String,
    ) -> Result<Option<Stored<RetiredRow>>, ControlStoreError> {
        let row = RetiredRow {
            owner: Some(owner),
            ..seen.value.clone()
        };
        let (key, expect) = (key(processor, generation), Expect::Revision(seen.revision));
        Ok(match self.put(&key, row, expect).await? {
            PutIf::Written(row) => Some(row),
            PutIf::Conflict(_) => None,
        })
    }

    /// Notes that nothing is left of a generation.
    pub(crate) async fn retired_delete(
        &self,
        processor: &str,
        generation: u32,
        seen: Revision,
    ) -> Result<(), ControlStoreError> {
        let key = key(processor, generation);
        // After a conflict another process has begun to delete the same.
        let (DeleteIf::Deleted | DeleteIf::Conflict(_)) =
            self.delete::<RetiredRow>(&key, seen).await?;
        Ok(())
    }
}

impl ProcessorRows {
    /// Deletes the rows of this generation, but for what is audit. The boot rows are the last: they
    /// name the partitions whose rows are deleted if the process dies before the end.
    pub(crate) async fn delete_all(&self) -> Result<(), ControlStoreError> {
        let (rows, name, number) = (&self.rows, self.processor(), self.generation());
        let partitions = rows.boot_offsets(name, number).await?;
        for of in partitions.keys() {
            for kind in OF_PARTITIONS {
                let partition = self.partition(kind, of);
                rows.clear(&partition).await?;
                // Large values have their chunks there.
                rows.clear(&format!("chunk/{partition}")).await?;
            }
        }
        for shard in 0..super::StreamPositions::SHARDS {
            rows.clear(&format!("pos/{name}/{number}/{shard}")).await?;
        }
        rows.clear(&format!("park/{name}/{number}")).await?;
        rows.clear(&format!("boot/{name}/{number}")).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_fixed() {
        let mut row = RetiredRow::default();
        assert_eq!(serde_json::to_string(&row).unwrap(), "{}");
        row.in_place = true;
        row.owner = Some("0a".into());
        let text = r#"{"i":true,"o":"0a"}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        assert_eq!(serde_json::from_str::<RetiredRow>(text).unwrap(), row);
        assert_eq!(key("carts", 7).sort, "0000000007");
    }
}
