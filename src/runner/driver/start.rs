//! The steps that come before the first record: the read model, the start
//! positions, the membership, and the start of each partition.
//!
//! Each step is tried once. A backend that is away is a [`Setback::Wait`], and the machine decides
//! when the step is tried again.
use super::{
    Settings,
    next::Membership,
    perform::{in_time, returning},
};
use crate::{
    control::{BootError, BootRows, ProcessorRows, StreamPositions},
    ports::{
        AssignedPartition, Consumer, ControlStoreError, MessageBusError, OffsetCommit, StartedFrom,
        Subscription,
    },
    resilience::{Failure, FailureClass},
    runner::{
        DeliveryLevel, ModelId, RunnerError,
        attempt::{AttemptRules, Shared},
        group_name,
        machine::{Ends, Setback},
        spans::Spans,
    },
};
use futures::TryFutureExt;
use std::{error::Error, sync::Arc, time::Duration};

/// The time that a step of a start may take. The rows of many partitions are read one by one.
const STEP: Duration = Duration::from_secs(300);

impl Settings {
    /// Joins the group of the generation.
    pub(super) async fn join(&self) -> Result<Membership, Setback> {
        let generation = self.generation;
        let group = group_name(&self.group_prefix, &self.rules.name, generation);
        let model = ModelId::new(self.rules.name.clone(), generation);
        self.prepare(&model).await?;
        let (control, ids) = (self.ports.control.clone(), self.ports.ids.clone());
        let mut boot = BootRows::new(control, ids, &self.rules.name, generation);
        let resolved = self.resolve(&mut boot);
        let resolved = resolved.map_err(|e| self.not_resolved(&group, e));
        if !returning(STEP, resolved).await? {
            let missing = "the replay has not written where the generation starts";
            return Err(Setback::Wait(missing.into()));
        }
        let mut subscription =
            Subscription::new(group.clone(), self.topics.clone()).with_start(boot.start_offsets());
        if let Some(id) = &self.rules.policy.instance_id {
            subscription = subscription.with_instance_id(id.to_string());
        }
        let consumer = self.ports.bus.subscribe(subscription);
        let consumer = consumer.map_err(|e| self.bus_setback(e));
        let consumer = returning(STEP, consumer).await?;
        let shared = Arc::new(self.shared(model, &group));
        Ok(Membership {
            group: group.into(),
            consumer,
            boot,
            shared,
        })
    }

    /// Resolves the start positions. Those of a generation that a replay has built come from its
    /// hand-over only: any other start would skip events. Returns false if they are not there.
    async fn resolve(&self, boot: &mut BootRows) -> Result<bool, BootError> {
        let (bus, topics) = (&*self.ports.bus, &self.topics);
        if self.generation > 1 {
            return boot.resolve_built(bus, topics).await;
        }
        boot.resolve(bus, topics, self.rules.policy.start).await?;
        Ok(true)
    }

    fn shared(&self, model: ModelId, group: &str) -> Shared {
        let policy = &self.rules.policy;
        let positions = (policy.level == DeliveryLevel::Deduplicated).then(|| {
            let (control, ids) = (self.ports.control.clone(), self.ports.ids.clone());
            StreamPositions::new(control, ids, &self.rules.name, model.generation())
        });
        let (control, ids) = (self.ports.control.clone(), self.ports.ids.clone());
        let (name, generation) = (self.rules.name.clone(), model.generation());
        let clock = self.clock.clone();
        let rows = ProcessorRows::over(control, ids, clock, name, generation);
        Shared {
            rows,
            processor: self.handling.processor.clone(),
            model,
            history: self.ports.history.clone(),
            public: self.ports.public.clone(),
            positions,
            upcasters: self.handling.upcasters.clone(),
            codecs: self.handling.codecs.clone(),
            spans: Spans {
                group: group.into(),
                context: self.handling.trace.clone(),
            },
            rules: AttemptRules {
                unknown_events: policy.unknown_events,
                start: policy.start,
                timeout: policy.attempt_timeout,
                max_batch: policy.max_batch,
                counts_calls: self.rules.breaker.is_some(),
                needs_position: policy.level == DeliveryLevel::ExactlyOnceEffect,
            },
            only: None,
        }
    }

    async fn prepare(&self, model: &ModelId) -> Result<(), Setback> {
        let prepare = self.handling.processor.prepare(model);
        let timeout = self.rules.policy.attempt_timeout;
        let Err(error) = in_time("prepare", prepare, timeout).await else {
            return Ok(());
        };
        Err(match FailureClass::from(error.class()) {
            FailureClass::Permanent => Setback::Halt(RunnerError::Prepare {
                processor: self.rules.name.clone(),
                class: error.class(),
                source: error.into_source(),
            }),
            FailureClass::Transient | FailureClass::Throttled { .. } => {
                Setback::Wait(error.into_source())
            }
        })
    }

    /// Returns where the topics end now.
    pub(super) async fn ends(&self) -> Result<Ends, Setback> {
        let ends = self.ends_of_topics().map_err(|e| self.bus_setback(e));
        returning(STEP, ends).await
    }

    pub(super) async fn ends_of_topics(&self) -> Result<Ends, MessageBusError> {
        let mut ends = Ends::new();
        for topic in &self.topics {
            let offsets = self.ports.bus.offsets(topic).await?;
            ends.extend(offsets.into_iter().map(|o| (o.partition, o.end)));
        }
        Ok(ends)
    }

    fn not_resolved(&self, group: &str, error: BootError) -> Setback {
        match error {
            BootError::Bus(e) => self.bus_setback(e),
            BootError::Control(e) => self.control_setback(e),
            BootError::Trimmed { ref partition, .. } => Setback::Halt(RunnerError::PositionLost {
                processor: self.rules.name.clone(),
                group: group.into(),
                partition: partition.clone(),
                reason: error.to_string(),
            }),
        }
    }

    pub(super) fn bus_setback(&self, error: MessageBusError) -> Setback {
        self.setback(error, |processor, source| RunnerError::Bus {
            processor,
            source,
        })
    }

    pub(super) fn control_setback(&self, error: ControlStoreError) -> Setback {
        let halt = |processor, source| RunnerError::Control { processor, source };
        self.setback(error, halt)
    }

    fn setback<E: Failure + Error + Send + Sync + 'static>(
        &self,
        error: E,
        halt: impl FnOnce(Arc<str>, E) -> RunnerError,
    ) -> Setback {
        match error.failure_class() {
            FailureClass::Permanent => Setback::Halt(halt(self.rules.name.clone(), error)),
            FailureClass::Transient | FailureClass::Throttled { .. } => {
                Setback::Wait(Box::new(error))
            }
        }
    }

    /// Starts a partition. Where nothing was committed, the start is committed, then noted, before
    /// anything is handled. Returns false if the partition was taken away meanwhile.
    pub(super) async fn begin(
        &self,
        consumer: &dyn Consumer,
        group: &str,
        mut boot: BootRows,
        assigned: &AssignedPartition,
    ) -> Result<bool, Setback> {
        let partition = &assigned.partition;
        if assigned.from == StartedFrom::Configured {
            let read = boot.read_again(partition).await;
            read.map_err(|e| self.control_setback(e))?;
            if boot.get(partition).is_some_and(|boot| boot.started) {
                return self.check_not_lost(consumer, group, assigned).await;
            }
            let start = OffsetCommit::new(partition.clone(), assigned.epoch, assigned.next);
            if !self.commit_start(consumer, &start).await? {
                return Ok(false);
            }
        }
        let noted = boot.set_started(partition).await;
        noted.map_err(|e| self.control_setback(e))?;
        Ok(true)
    }

    /// The partition had started, and nothing was committed when this assignment was made. Either
    /// the commit was lost since; or it was made under this assignment, and only the answers about
    /// it were lost; or another instance has taken over and started the partition: then this
    /// assignment has ended, and the consumer will say so. The bus knows whether it has: it takes
    /// the same offset once more only from the owner.
    async fn check_not_lost(
        &self,
        consumer: &dyn Consumer,
        group: &str,
        assigned: &AssignedPartition,
    ) -> Result<bool, Setback> {
        let partition = &assigned.partition;
        let committed = self.ports.bus.committed(group, &partition.topic).await;
        let committed = committed.map_err(|e| self.bus_setback(e))?;
        let mut committed = committed.into_iter();
        let found = committed.find_map(|(of, next)| next.filter(|_| of == *partition));
        let Some(next) = found else {
            let name = self.rules.name.clone();
            let found = "its committed offset is gone";
            let error = RunnerError::position_lost(name, group, partition.clone(), found);
            return Err(Setback::Halt(error));
        };
        let again = OffsetCommit::new(partition.clone(), assigned.epoch, next);
        self.commit_start(consumer, &again).await
    }

    /// Commits an offset before anything is handled. Returns false if the assignment has ended.
    async fn commit_start(
        &self,
        consumer: &dyn Consumer,
        start: &OffsetCommit,
    ) -> Result<bool, Setback> {
        match consumer.commit(std::slice::from_ref(start)).await {
            Ok(()) => Ok(true),
            Err(MessageBusError::StaleAssignment { .. }) => Ok(false),
            Err(error) => Err(self.bus_setback(error)),
        }
    }
}
