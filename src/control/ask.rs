//! Requests for dead letters of streams that are not parked.
//!
//! ```text
//! ask/<name>/<N>/<topic>/<partition>   the sort key of the letter -> AskRow
//! ```
//! The owner of the partition executes a request and deletes its row last. The answer is the letter
//! itself: it is gone, or it tells of a later failure.
use super::{
    DeleteIf, KeyedPage, LetterId, ProcessorRows, PutIf, Stored, job::JobId,
    processor_rows::LetterKey,
};
use crate::{
    Timestamp,
    ports::{ControlStoreError, Expect, PartitionId, RangeQuery, Revision, RowKey},
};
use serde::{Deserialize, Serialize};

/// The action that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AskKind {
    /// Handle the event once more, and delete the letter if that succeeds.
    Redrive,
    /// Note in the discard's row that the event is passed over, and delete the letter.
    Discard,
}

/// The value of a request's row. It is written once and deleted as it is, so that fields of newer
/// builds need no copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AskRow {
    /// The letter that is meant. A letter with another id is about a later failure.
    #[serde(rename = "i")]
    pub(crate) letter: LetterId,
    #[serde(rename = "w")]
    pub(crate) what: AskKind,
    /// The name of the operator.
    #[serde(rename = "b")]
    pub(crate) by: String,
    /// The job on whose behalf the letter is redriven.
    #[serde(rename = "j", default, skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<JobId>,
    #[serde(rename = "t")]
    pub(crate) at: Timestamp,
}

impl ProcessorRows {
    fn ask_key(&self, partition: &PartitionId, letter: &LetterKey) -> RowKey {
        RowKey::new(self.partition("ask", partition), letter.sort())
    }

    /// Returns one page of the requests for letters of a partition.
    pub(crate) async fn ask_page(
        &self,
        partition: &PartitionId,
        after: Option<String>,
    ) -> Result<KeyedPage<LetterKey, AskRow>, ControlStoreError> {
        let query = RangeQuery::new(self.partition("ask", partition)).with_after(after);
        self.rows.page(&query, LetterKey::parse).await
    }

    /// Returns the request for a letter; `None` if there is none.
    pub(crate) async fn ask_get(
        &self,
        partition: &PartitionId,
        letter: &LetterKey,
    ) -> Result<Option<Stored<AskRow>>, ControlStoreError> {
        self.rows.get(&self.ask_key(partition, letter)).await
    }

    /// Asks for a letter, unless there is a request for it already.
    pub(crate) async fn ask_put(
        &self,
        partition: &PartitionId,
        letter: &LetterKey,
        row: AskRow,
    ) -> Result<PutIf<AskRow>, ControlStoreError> {
        let key = self.ask_key(partition, letter);
        self.rows.put(&key, row, Expect::Absent).await
    }

    /// Deletes the write of a request that was `seen`: the owner has executed it, or a job takes it
    /// back.
    pub(crate) async fn ask_delete(
        &self,
        partition: &PartitionId,
        letter: &LetterKey,
        seen: Revision,
    ) -> Result<DeleteIf<AskRow>, ControlStoreError> {
        self.rows
            .delete(&self.ask_key(partition, letter), seen)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_request_for_a_letter_is_fixed() {
        let row = AskRow {
            letter: LetterId::from_u128(1),
            what: AskKind::Redrive,
            by: "ann".into(),
            job: None,
            at: Timestamp::from_micros(7),
        };
        let id = format!("{:032x}", 1);
        let text = format!(r#"{{"i":"{id}","w":"redrive","b":"ann","t":7}}"#);
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        let job = JobId::from_u128(2);
        let text = text.replace(r#""t""#, &format!(r#""j":"{job}","t""#));
        let text = text.replace("redrive", "discard");
        let read: AskRow = serde_json::from_str(&text).unwrap();
        assert_eq!((read.job, read.what), (Some(job), AskKind::Discard));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}
