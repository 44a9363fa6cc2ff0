//! The deletion of generations that do not serve any more.
use super::supervisor::Base;
use crate::{
    control::{
        Generations, InstanceId, InstanceRow, KeyedPage, Lasting, ProcessorRows, RetiredRow, Stored,
    },
    ports::{ControlStoreError, MessageBusError},
    runner::{HandlerError, ModelId, driver::in_time},
};
use std::time::Duration;
use tokio::time::Instant;

/// The time for which a generation is kept at least after it was left, and the time after which
/// another process continues a deletion.
pub(super) const KEPT: Duration = Duration::from_secs(600);

/// The error returned when a generation cannot be deleted yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum RetireError {
    #[error(transparent)]
    Control(#[from] ControlStoreError),
    #[error("its consumer group cannot be deleted")]
    Bus(#[from] MessageBusError),
    #[error("its read model cannot be deleted: {0}")]
    Model(HandlerError),
}

/// Returns true if nothing needs a generation any more.
fn may_delete(
    generation: u32,
    proc: &Generations,
    instances: &[(InstanceId, InstanceRow)],
    lasting: Duration,
) -> bool {
    let runs =
        |row: &InstanceRow| row.generation == generation || row.next_generation == Some(generation);
    // A row that was written before a switch that then failed names a generation that serves.
    !proc.all().any(|used| used == generation)
        && lasting >= KEPT
        && !instances.iter().any(|(_, row)| runs(row))
}

impl Base {
    /// Deletes the generations that nobody needs any more.
    pub(super) async fn retire(&self, seen: &mut Lasting<u32>) -> Result<(), RetireError> {
        let name = &self.entry.name;
        let mut after = None;
        loop {
            let KeyedPage { rows, next } = self.rows.retired_page(name, after).await?;
            for (generation, row) in rows {
                self.retire_one(generation, row, seen).await?;
            }
            after = next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn retire_one(
        &self,
        generation: u32,
        row: Stored<RetiredRow>,
        seen: &mut Lasting<u32>,
    ) -> Result<(), RetireError> {
        let (name, owner) = (&self.entry.name, self.instance.to_string());
        let is_mine = row.value.owner.as_ref() == Some(&owner);
        let lasting = seen.of(generation, row.revision, Instant::now());
        let lasting = if is_mine { KEPT } else { lasting };
        if lasting < KEPT {
            return Ok(());
        }
        let Some(proc) = self.rows.generations(name).await? else {
            return Ok(());
        };
        let instances = self.rows.instances(name).await?;
        if !may_delete(generation, &proc.value, &instances, lasting) {
            return Ok(());
        }
        let claimed = self.rows.retired_claim(name, generation, &row, owner);
        let Some(claimed) = claimed.await? else {
            return Ok(());
        };
        self.delete(generation, claimed.value.in_place).await?;
        let noted = self.rows.retired_delete(name, generation, claimed.revision);
        noted.await?;
        tracing::info!(processor = %name, generation, "a generation that does not serve any more is deleted");
        Ok(())
    }

    /// Deletes the model, the group and the rows of a generation, each of which may be gone.
    async fn delete(&self, generation: u32, in_place: bool) -> Result<(), RetireError> {
        let name = &self.entry.name;
        if !in_place {
            let model = ModelId::new(name.clone(), generation);
            let deleted = self.entry.processor.delete_model(&model);
            let timeout = self.entry.policy.attempt_timeout;
            let deleted = in_time("delete_model", deleted, timeout).await;
            deleted.map_err(RetireError::Model)?;
        }
        self.shared
            .bus
            .delete_group(&self.group(generation))
            .await?;
        let (control, ids) = (self.shared.control.clone(), self.shared.ids.clone());
        let clock = self.shared.clock.clone();
        let rows = ProcessorRows::over(control, ids, clock, name.clone(), generation);
        rows.delete_all().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_deleted_only_after_a_while_and_when_nobody_names_it() {
        let proc = |text: &str| serde_json::from_str::<Generations>(text).unwrap();
        let instance = |generation: u32, next: Option<u32>| {
            let row = InstanceRow {
                next_generation: next,
                ..InstanceRow::testing(generation)
            };
            (InstanceId::from_u128(1), row)
        };
        let live = proc(r#"{"a":2,"st":"live","e":3,"m":1,"t":2}"#);
        let others = [instance(2, None), instance(0, None)];
        assert!(may_delete(1, &live, &others, KEPT));
        assert!(!may_delete(
            1,
            &live,
            &others,
            KEPT - Duration::from_secs(1)
        ));
        assert!(!may_delete(2, &live, &[], KEPT));
        for runs in [instance(1, None), instance(2, Some(1))] {
            assert!(!may_delete(1, &live, &[runs], KEPT));
        }
        let catch_up = r#"{"a":2,"n":3,"st":"catch_up","s":false,"e":3,"m":1,"t":3}"#;
        assert!(!may_delete(3, &proc(catch_up), &[], KEPT));
    }
}
