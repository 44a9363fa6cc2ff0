//! The boot rows: the offsets at which the generation of a processor began in each partition.
use super::{PutIf, Rows, Stored, rows::Races};
use crate::{
    ports::{
        ControlStore, ControlStoreError, Expect, MessageBus, MessageBusError, Offset, PartitionId,
        PartitionOffsets, RangeQuery, RowKey, StartOffset,
    },
    resilience::{Failure, FailureClass},
    runner::Start,
};
use std::{collections::BTreeMap, sync::Arc};

/// The value of the row `boot/<name>/<generation>`, `<topic>/<partition:020>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Boot {
    /// The offset at which the generation begins in this partition.
    #[serde(rename = "o")]
    pub(crate) offset: Offset,
    /// True if the group has committed an offset since. If it has none now, the offset was lost.
    #[serde(rename = "s")]
    pub(crate) started: bool,
}

/// The value of the row `boot/<name>/<generation>`, `<topic>`, which is written when all partitions
/// that the topic had then have their rows. A partition without a row is new from then on, and is
/// read from its first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Booted {
    #[serde(rename = "p")]
    partitions: u32,
}

/// The error returned when the start positions cannot be determined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Control(#[from] ControlStoreError),
    #[error(transparent)]
    Bus(#[from] MessageBusError),
    /// The first records of a partition that is to be read from the beginning are gone.
    #[error(
        "the log of {partition} starts at offset {begin} and not at 0, so its first events are gone: use a replay, or Start::Oldest"
    )]
    Trimmed {
        partition: PartitionId,
        begin: Offset,
    },
}

/// The boot rows that one topic lacks.
struct Missing {
    name: Arc<str>,
    /// The partitions without a row, and the offsets at which they start.
    starts: Vec<(PartitionId, Offset)>,
    /// The number of partitions to store in the topic's row; `None` if the topic has a row already.
    to_note: Option<u32>,
}

impl Failure for BootError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Control(error) => error.failure_class(),
            Self::Bus(error) => error.failure_class(),
            Self::Trimmed { .. } => FailureClass::Permanent,
        }
    }
}

/// The boot rows of one generation of a processor.
#[derive(Clone, Debug)]
pub(crate) struct BootRows {
    rows: Rows,
    partition: String,
    known: BTreeMap<PartitionId, Stored<Boot>>,
}

impl BootRows {
    pub(crate) fn new(
        control: Arc<dyn ControlStore>,
        ids: Arc<dyn crate::IdSource>,
        processor: &str,
        generation: u32,
    ) -> Self {
        Self {
            rows: Rows::new(control, ids),
            partition: format!("boot/{processor}/{generation}"),
            known: BTreeMap::new(),
        }
    }

    fn key(&self, partition: &PartitionId) -> RowKey {
        let sort = format!("{}/{:020}", partition.topic, partition.partition);
        RowKey::new(self.partition.clone(), sort)
    }

    /// Gives every partition of the topics a row. The instance that writes a row first decides
    /// where the generation starts in that partition, once and for all.
    ///
    /// # Errors
    /// [`BootError::Trimmed`] if `start` is [`Start::Beginning`] and a partition without a row does
    /// not begin at offset 0. No row is written then, so that another start may be chosen.
    pub(crate) async fn resolve(
        &mut self,
        bus: &dyn MessageBus,
        topics: &[Arc<str>],
        start: Start,
    ) -> Result<(), BootError> {
        let mut missing = Vec::new();
        for topic in topics {
            missing.push(self.missing(bus, topic, start).await?);
        }
        for topic in missing {
            for (partition, offset) in topic.starts {
                self.resolve_partition(partition, offset).await?;
            }
            if let Some(partitions) = topic.to_note {
                let key = RowKey::new(self.partition.clone(), &*topic.name);
                let booted = Booted { partitions };
                // If another instance was faster, its row is as good.
                let _ = self.rows.put(&key, booted, Expect::Absent).await?;
            }
        }
        Ok(())
    }

    /// Gives every partition of a replay's hand-over a row, and then each topic. The rows are the
    /// same whoever writes them, so that a run that was broken off writes them again.
    pub(crate) async fn hand_over(
        &mut self,
        offsets: &BTreeMap<PartitionId, Offset>,
    ) -> Result<(), ControlStoreError> {
        let mut topics: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for (partition, offset) in offsets {
            *topics.entry(partition.topic.clone()).or_default() += 1;
            self.resolve_partition(partition.clone(), *offset).await?;
        }
        for (topic, partitions) in topics {
            let key = RowKey::new(self.partition.clone(), &*topic);
            // If the row is there already, it is as good.
            let _ = self
                .rows
                .put(&key, Booted { partitions }, Expect::Absent)
                .await?;
        }
        Ok(())
    }

    /// Reads the existing rows, and lists the start offsets of the partitions that have none.
    async fn missing(
        &mut self,
        bus: &dyn MessageBus,
        topic: &Arc<str>,
        start: Start,
    ) -> Result<Missing, BootError> {
        let offsets = bus.offsets(topic).await?;
        let key = RowKey::new(self.partition.clone(), &**topic);
        let is_booted = self.rows.get::<Booted>(&key).await?.is_some();
        let mut starts = Vec::new();
        for PartitionOffsets {
            partition,
            begin,
            end,
            ..
        } in &offsets
        {
            if let Some(row) = self.rows.get::<Boot>(&self.key(partition)).await? {
                self.known.insert(partition.clone(), row);
                continue;
            }
            let offset = match start {
                // The partition is new. It is read from its first record, even if that record is
                // gone already, so that the loss is noticed.
                _ if is_booted => Offset::new(0),
                Start::Beginning if *begin > Offset::new(0) => {
                    return Err(BootError::Trimmed {
                        partition: partition.clone(),
                        begin: *begin,
                    });
                }
                Start::Beginning | Start::Oldest => *begin,
                Start::Now => *end,
            };
            starts.push((partition.clone(), offset));
        }
        Ok(Missing {
            name: topic.clone(),
            starts,
            to_note: (!is_booted).then(|| u32::try_from(offsets.len()).unwrap_or(u32::MAX)),
        })
    }

    async fn resolve_partition(
        &mut self,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<(), ControlStoreError> {
        let key = self.key(&partition);
        let boot = Boot {
            offset,
            started: false,
        };
        let mut races = Races::default();
        loop {
            match self.rows.put(&key, boot, Expect::Absent).await? {
                PutIf::Written(row) | PutIf::Conflict(Some(row)) => {
                    self.known.insert(partition, row);
                    return Ok(());
                }
                // Another process deleted the row after this attempt to write it and before the
                // answer.
                PutIf::Conflict(None) => self.rows.lost(&mut races, &key).await?,
            }
        }
    }

    /// Reads the row of a partition again: another instance may have noted since that it has
    /// started.
    pub(crate) async fn read_again(
        &mut self,
        partition: &PartitionId,
    ) -> Result<(), ControlStoreError> {
        let key = self.key(partition);
        if let Some(row) = self.rows.get::<Boot>(&key).await? {
            self.known.insert(partition.clone(), row);
        }
        Ok(())
    }

    /// Notes that the group has committed an offset of this partition.
    pub(crate) async fn set_started(
        &mut self,
        partition: &PartitionId,
    ) -> Result<(), ControlStoreError> {
        let (key, mut races) = (self.key(partition), Races::default());
        while let Some(row) = self.known.get(partition).copied() {
            if row.value.started {
                return Ok(());
            }
            let boot = Boot {
                started: true,
                ..row.value
            };
            match self
                .rows
                .put(&key, boot, Expect::Revision(row.revision))
                .await?
            {
                PutIf::Written(row) => {
                    self.known.insert(partition.clone(), row);
                }
                PutIf::Conflict(Some(row)) => {
                    self.known.insert(partition.clone(), row);
                    if !row.value.started {
                        self.rows.lost(&mut races, &key).await?;
                    }
                }
                PutIf::Conflict(None) => {
                    self.known.remove(partition);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, partition: &PartitionId) -> Option<Boot> {
        self.known.get(partition).map(|row| row.value)
    }

    /// Returns the start offsets of partitions in which nothing is committed.
    pub(crate) fn start_offsets(&self) -> Vec<StartOffset> {
        let rows = self.known.iter();
        rows.map(|(partition, row)| StartOffset::new(partition.clone(), row.value.offset))
            .collect()
    }
}

impl BootRows {
    /// Reads the rows that a replay has written, and adds partitions that are new since. Returns
    /// false if the replay has not written them all.
    pub(crate) async fn resolve_built(
        &mut self,
        bus: &dyn MessageBus,
        topics: &[Arc<str>],
    ) -> Result<bool, BootError> {
        for topic in topics {
            let key = RowKey::new(self.partition.clone(), &**topic);
            if self.rows.get::<Booted>(&key).await?.is_none() {
                return Ok(false);
            }
        }
        // Only partitions that are new since have no row, and they begin at 0.
        self.resolve(bus, topics, Start::Oldest).await?;
        Ok(true)
    }
}

impl Rows {
    /// Returns the partitions that a generation of a processor has begun to read, and where.
    pub(crate) async fn boot_offsets(
        &self,
        processor: &str,
        generation: u32,
    ) -> Result<BTreeMap<PartitionId, Offset>, ControlStoreError> {
        /// A row of a partition, or that of a topic, which has no offset.
        #[derive(serde::Serialize, serde::Deserialize)]
        struct Begun {
            #[serde(rename = "o")]
            offset: Option<Offset>,
        }
        let (mut begun, mut after) = (BTreeMap::new(), None);
        loop {
            let query = RangeQuery::new(format!("boot/{processor}/{generation}")).with_after(after);
            let partition_of = |sort: &str| {
                let (topic, number) = sort.rsplit_once('/')?;
                Some(PartitionId::new(topic, number.parse().ok()?))
            };
            let page = self.page::<_, Begun>(&query, partition_of).await?;
            let rows = page.rows.into_iter();
            begun.extend(rows.filter_map(|(partition, row)| Some((partition, row.value.offset?))));
            after = page.next;
            if after.is_none() {
                return Ok(begun);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_fixed() {
        let boot = Boot {
            offset: Offset::new(7),
            started: true,
        };
        assert_eq!(serde_json::to_string(&boot).unwrap(), r#"{"o":7,"s":true}"#);
        let booted = Booted { partitions: 4 };
        assert_eq!(serde_json::to_string(&booted).unwrap(), r#"{"p":4}"#);
    }
}
