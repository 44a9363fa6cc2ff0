//! The rows of running instances of a processor.
//!
//! ```text
//! inst/<name>   <uuid of the process> -> InstanceRow
//! ```
//! An instance writes its row at every change, and otherwise at most every ten seconds. The row of
//! a process that has died expires after ten minutes.
use super::{DeleteIf, LetterClass, PutIf, Rows, Stored, hex_id::hex_id};
use crate::{
    Timestamp,
    ports::{ControlStoreError, RangeQuery, Revision, RowKey},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

hex_id! {
    /// The id of one start of a process.
    pub InstanceId, "the id of an instance"
}

/// The state of an instance of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InstanceState {
    /// The instance joins its group, or reads the rows of its partitions.
    Starting,
    /// The instance handles events.
    Running,
    /// An operator has paused the processor.
    Paused,
    /// Too much is parked or dead: nothing new is handled until an operator has made room.
    Held,
    /// The bus or the control store is not reachable. The instance keeps trying.
    Unreachable,
    /// A failure has ended the processor in this process.
    Halted,
    /// The instance waits for a generation of the read model that its build writes.
    Waiting,
    /// The read model of a newer build serves. This instance does nothing.
    Superseded,
    /// The instance finishes its work and leaves its group.
    Stopping,
    /// A state that a newer build has written.
    #[serde(other)]
    Unknown,
}

/// The value of an instance's row. Only the instance itself writes it, so that no field of another
/// build is lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct InstanceRow {
    /// The stable name of the instance: by default that of its host.
    #[serde(rename = "l")]
    pub(crate) label: String,
    /// The epoch of the row `proc` to which the instance keeps: what must stop by it has stopped.
    #[serde(rename = "e")]
    pub(crate) epoch: u64,
    /// The generation that the instance serves.
    #[serde(rename = "g")]
    pub(crate) generation: u32,
    #[serde(rename = "s")]
    pub(crate) state: InstanceState,
    /// The time since which the instance is in this state.
    #[serde(rename = "t")]
    pub(crate) since: Timestamp,
    /// The class of the failure that explains the state.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub(crate) class: Option<LetterClass>,
    /// The failure that explains the state, as one line.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The number of records of its partitions that the instance has not handled, if known.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub(crate) lag: Option<u64>,
    /// The number of partitions that the instance owns.
    #[serde(rename = "n", default)]
    pub(crate) partitions: u32,
    /// The time in milliseconds after which no attempt of the instance runs any more, if the row
    /// has not changed for so long. `None`: an older build, which may run on.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle_after: Option<u64>,
    /// The generation that catches up in the instance beside the one that serves.
    #[serde(rename = "ng", default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_generation: Option<u32>,
    /// The number of records that the next generation has not handled in its partitions, if known.
    #[serde(rename = "nr", default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_lag: Option<u64>,
    /// The failure of the next generation, as one line.
    #[serde(rename = "nm", default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_error: Option<String>,
}

#[cfg(test)]
impl InstanceRow {
    pub(crate) fn testing(generation: u32) -> Self {
        Self {
            label: "host-1".into(),
            epoch: 3,
            generation,
            state: InstanceState::Running,
            since: Timestamp::from_micros(7),
            class: None,
            error: None,
            lag: None,
            partitions: 4,
            idle_after: None,
            next_generation: None,
            next_lag: None,
            next_error: None,
        }
    }
}

fn partition(processor: &str) -> String {
    format!("inst/{processor}")
}

impl Rows {
    /// Writes the row of this instance.
    pub(crate) async fn instance_put(
        &self,
        processor: &str,
        instance: InstanceId,
        row: InstanceRow,
        now: Timestamp,
    ) -> Result<PutIf<InstanceRow>, ControlStoreError> {
        let key = RowKey::new(partition(processor), instance.to_string());
        self.put_alive(&key, row, now, Duration::ZERO).await
    }

    /// Deletes the row of this instance, which stops.
    pub(crate) async fn instance_delete(
        &self,
        processor: &str,
        instance: InstanceId,
        seen: Revision,
    ) -> Result<DeleteIf<InstanceRow>, ControlStoreError> {
        let key = RowKey::new(partition(processor), instance.to_string());
        self.delete(&key, seen).await
    }

    /// Returns the instances of a processor. There are as many as a deployment runs.
    pub(crate) async fn instances(
        &self,
        processor: &str,
    ) -> Result<Vec<(InstanceId, InstanceRow)>, ControlStoreError> {
        let stored = self.stored_instances(processor).await?.into_iter();
        Ok(stored.map(|(id, row)| (id, row.value)).collect())
    }

    /// Returns the rows of the instances of a processor, with their revisions.
    pub(crate) async fn stored_instances(
        &self,
        processor: &str,
    ) -> Result<Vec<(InstanceId, Stored<InstanceRow>)>, ControlStoreError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let query = RangeQuery::new(partition(processor)).with_after(after);
            let page = self.page(&query, |sort| sort.parse().ok()).await?;
            all.extend(page.rows);
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_an_instance_that_runs_two_generations_is_fixed() {
        let row = InstanceRow {
            idle_after: Some(95_000),
            next_generation: Some(2),
            next_lag: Some(5),
            next_error: Some("no".into()),
            ..InstanceRow::testing(1)
        };
        let text = concat!(
            r#"{"l":"host-1","e":3,"g":1,"s":"running","t":7,"n":4,"#,
            r#""d":95000,"ng":2,"nr":5,"nm":"no"}"#
        );
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        assert_eq!(serde_json::from_str::<InstanceRow>(text).unwrap(), row);
    }

    #[test]
    fn the_stored_form_of_an_instance_is_fixed_and_states_of_newer_builds_are_readable() {
        let mut row = InstanceRow::testing(1);
        let text = r#"{"l":"host-1","e":3,"g":1,"s":"running","t":7,"n":4}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        row.state = InstanceState::Halted;
        row.class = Some(LetterClass::Fatal);
        row.error = Some("no".into());
        row.lag = Some(9);
        let text =
            r#"{"l":"host-1","e":3,"g":1,"s":"halted","t":7,"c":"fatal","m":"no","r":9,"n":4}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), text);
        let newer = text.replace("halted", "dreaming").replace("fatal", "odd");
        let read: InstanceRow = serde_json::from_str(&newer).unwrap();
        assert_eq!(
            (read.state, read.class),
            (InstanceState::Unknown, Some(LetterClass::Unknown))
        );
    }
}
