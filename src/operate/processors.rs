//! The processors: generations, instances, lag.
use super::{InstanceId, InstanceState, LetterClass, OperateError, Operator, PauseStatus};
use crate::{
    Timestamp,
    control::{Generations, InstanceRow},
    ports::{Offset, PartitionId, RangeQuery},
    runner::group_name,
};
use std::collections::{BTreeMap, BTreeSet};

/// The state of a processor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessorStatus {
    /// The name of the processor.
    pub name: String,
    /// The generation that serves, from 1.
    pub generation: u32,
    /// The generation that a replay has built and that catches up beside the one that serves;
    /// `None` if there is none.
    pub next: Option<NextGenerationStatus>,
    /// The id of the replay that works on the processor; `None` if there is none.
    pub run: Option<String>,
    /// The state of the generations: `live`, or a phase of a replay.
    pub state: String,
    /// The `Projector::MODEL` of the generation that serves; 0 for a listener.
    pub model: u32,
    /// The last decision of an operator to pause or resume; `None` if there was none.
    pub pause: Option<PauseStatus>,
    /// The running instances, by their ids. An instance that has died is listed for up to ten
    /// minutes.
    pub instances: Vec<InstanceStatus>,
    /// The number of offsets between what the generation that serves has committed and the ends of
    /// its partitions. `None` without a [bus](Operator::with_bus), and before its first start.
    pub lag: Option<u64>,
}

/// The state of a generation that catches up beside the one that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NextGenerationStatus {
    /// The number of the generation.
    pub generation: u32,
    /// The `Projector::MODEL` of the generation.
    pub model: u32,
    /// The number of offsets between what the generation has committed and the ends of its
    /// partitions. `None` without a [bus](Operator::with_bus).
    pub lag: Option<u64>,
}

impl ProcessorStatus {
    /// Returns true if an operator has paused the processor.
    pub fn is_paused(&self) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.is_paused)
    }
}

/// The state of one instance of a processor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceStatus {
    /// The id of the start of its process.
    pub id: InstanceId,
    /// The stable name of the instance, by default that of its host.
    pub label: String,
    /// The generation that the instance serves.
    pub generation: u32,
    /// The state of the instance.
    pub state: InstanceState,
    /// The time since which the instance is in this state.
    pub since: Timestamp,
    /// The class of the failure that explains the state; `None` if there is none.
    pub class: Option<LetterClass>,
    /// The failure that explains the state, as one line; `None` if there is none.
    pub error: Option<String>,
    /// The number of records of its partitions that the instance has not handled, if known.
    pub lag: Option<u64>,
    /// The number of partitions that the instance owns.
    pub partitions: u32,
    /// The generation that catches up in the instance beside the one that it serves; `None` if
    /// there is none.
    pub next_generation: Option<u32>,
    /// The number of records of its partitions that the next generation has not handled, if known.
    pub next_lag: Option<u64>,
    /// The failure of the next generation, as one line; `None` if there is none.
    pub next_error: Option<String>,
}

impl InstanceStatus {
    fn new(id: InstanceId, row: InstanceRow) -> Self {
        Self {
            id,
            label: row.label,
            generation: row.generation,
            state: row.state,
            since: row.since,
            class: row.class,
            error: row.error,
            lag: row.lag,
            partitions: row.partitions,
            next_generation: row.next_generation,
            next_lag: row.next_lag,
            next_error: row.next_error,
        }
    }
}

impl Operator {
    /// Returns the state of every processor that has ever started on this control store.
    ///
    /// # Errors
    /// - [`OperateError::Control`] if the control store refuses or fails.
    /// - [`OperateError::Bus`] if there is a bus, and it refuses or fails.
    pub async fn processors(&self) -> Result<Vec<ProcessorStatus>, OperateError> {
        let mut all = Vec::new();
        for name in self.all_names().await? {
            all.push(self.processor(&name).await?);
        }
        Ok(all)
    }

    /// Returns the state of one processor.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    /// - [`OperateError::Bus`] if there is a bus, and it refuses or fails.
    pub async fn processor(&self, name: &str) -> Result<ProcessorStatus, OperateError> {
        let generations = self.generations(name).await?;
        let pause = self.rows.pause_get(name).await?;
        let next = match generations.next {
            Some(generation) => Some(NextGenerationStatus {
                generation,
                model: generations.next_model.unwrap_or(generations.model),
                lag: self.lag(name, generation).await?,
            }),
            None => None,
        };
        Ok(ProcessorStatus {
            name: name.into(),
            generation: generations.active,
            next,
            run: generations.run,
            state: generations.state.as_str().to_owned(),
            model: generations.model,
            pause: pause.map(|row| row.value.into()),
            instances: self.instances(name).await?,
            lag: self.lag(name, generations.active).await?,
        })
    }

    /// Returns the names of all processors. There are as many as a deployment has registered.
    pub(super) async fn all_names(&self) -> Result<Vec<String>, OperateError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (names, next) = self.processor_names(after).await?;
            all.extend(names);
            after = next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Returns one page of the names of processors, and the start of the next page.
    pub(super) async fn processor_names(
        &self,
        after: Option<String>,
    ) -> Result<(Vec<String>, Option<String>), OperateError> {
        let query = RangeQuery::new("proc").with_after(after);
        let name_of = |sort: &str| Some(sort.to_owned());
        let page = self.rows.page::<_, Generations>(&query, name_of).await?;
        let names = page.rows.into_iter().map(|(name, _)| name);
        Ok((names.collect(), page.next))
    }

    async fn instances(&self, name: &str) -> Result<Vec<InstanceStatus>, OperateError> {
        let rows = self.rows.instances(name).await?.into_iter();
        Ok(rows.map(|(id, row)| InstanceStatus::new(id, row)).collect())
    }

    /// Returns the sum over the partitions of the topics that the generation has begun to read.
    async fn lag(&self, name: &str, generation: u32) -> Result<Option<u64>, OperateError> {
        self.lag_of(name, generation, None).await
    }

    /// Returns the lag in one topic, or in all that the generation has begun to read.
    pub(super) async fn lag_of(
        &self,
        name: &str,
        generation: u32,
        only: Option<&str>,
    ) -> Result<Option<u64>, OperateError> {
        let Some((bus, prefix)) = &self.bus else {
            return Ok(None);
        };
        let starts = self.rows.boot_offsets(name, generation).await?;
        if starts.is_empty() {
            return Ok(None);
        }
        let group = group_name(prefix, name, generation);
        let topics: BTreeSet<_> = starts.keys().map(|p| p.topic.clone()).collect();
        let mut lag: u64 = 0;
        let topics = topics.into_iter();
        for topic in topics.filter(|topic| only.is_none_or(|only| &**topic == only)) {
            let committed: BTreeMap<PartitionId, Option<Offset>> =
                bus.committed(&group, &topic).await?.into_iter().collect();
            for offsets in bus.offsets(&topic).await? {
                let committed = committed.get(&offsets.partition).copied().flatten();
                let start = starts.get(&offsets.partition).copied();
                // A partition that is new to the processor is read from its first record.
                let next = committed.or(start).unwrap_or(offsets.begin);
                lag = lag.saturating_add(offsets.end.get().saturating_sub(next.get()));
            }
        }
        Ok(Some(lag))
    }
}
