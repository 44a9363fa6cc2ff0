//! One processor from start to end: its generation, its start positions, its sessions in the consumer group.
use super::{
    Entry, ProcessorPolicy, ProcessorReport, RunnerBuilder, RunnerError,
    attempt::Shared,
    handler::ModelId,
    session::{End, Session},
};
use crate::{
    Backoff, IdSource, RetryPolicy,
    control::{BootError, BootRows, join_generation},
    ports::{
        ControlStore, ControlStoreError, MessageBus, MessageBusError, Offset, PartitionId,
        Subscription,
    },
    resilience::{Attempts, Failure, FailureClass},
};
use std::{collections::BTreeMap, error::Error, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time that a backend may be away before a processor that needs it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pauses between attempts until then.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

/// Up to where a run shall go.
pub(super) type Ends = BTreeMap<PartitionId, Offset>;

pub(super) struct Processor {
    pub(super) name: Arc<str>,
    pub(super) policy: ProcessorPolicy,
    pub(super) bus: Arc<dyn MessageBus>,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) report: ProcessorReport,
    control: Arc<dyn ControlStore>,
    ids: Arc<dyn IdSource>,
    group_prefix: Arc<str>,
    model: u32,
    handling: Handling,
}

/// What every attempt needs, before the generation is known.
struct Handling {
    processor: Arc<dyn super::ErasedProcessor>,
    history: Option<Arc<dyn crate::ports::EventStore>>,
    upcasters: crate::Upcasters,
    codecs: crate::PayloadCodecs,
}

/// After this time; a time without an end is a far one.
pub(super) fn after(time: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + time.min(FAR)
}

impl Processor {
    pub(super) fn new(entry: &Entry, shared: &RunnerBuilder) -> Self {
        Self {
            name: entry.name.clone(),
            policy: entry.policy.clone(),
            bus: shared.bus.clone(),
            topics: shared.topics.clone(),
            report: ProcessorReport::new(entry.name.clone()),
            control: shared.control.clone(),
            ids: shared.ids.clone(),
            group_prefix: shared.group_prefix.clone(),
            model: entry.model,
            handling: Handling {
                processor: entry.processor.clone(),
                history: shared.history.clone(),
                upcasters: entry.upcasters.clone(),
                codecs: shared.codecs.clone(),
            },
        }
    }

    /// Where the topics end now; less if it is told to stop first.
    pub(super) async fn ends(&self, stop: &CancellationToken) -> Result<Ends, RunnerError> {
        let mut ends = Ends::new();
        for topic in &self.topics {
            let offsets = self.patiently(stop, || self.bus.offsets(topic)).await;
            let offsets = offsets.transpose().map_err(|e| self.bus_error(e))?;
            let offsets = offsets.unwrap_or_default();
            ends.extend(offsets.into_iter().map(|o| (o.partition, o.end)));
        }
        Ok(ends)
    }

    /// Runs until `stop`, or until the ends are reached, or until it halts.
    pub(super) async fn run(
        mut self,
        stop: CancellationToken,
        ends: Option<Ends>,
    ) -> ProcessorReport {
        match self.drive(&stop, ends.as_ref()).await {
            Ok(()) => self.report,
            Err(error) => self.failed(error),
        }
    }

    pub(super) fn failed(mut self, error: RunnerError) -> ProcessorReport {
        tracing::error!(processor = %self.name, error = crate::chain(&error), "the processor has halted");
        self.report.error = Some(error);
        self.report
    }

    async fn drive(
        &mut self,
        stop: &CancellationToken,
        ends: Option<&Ends>,
    ) -> Result<(), RunnerError> {
        let Some(generation) = self.join(stop).await? else {
            return Ok(());
        };
        let group = format!("{}.{}.g{generation}", self.group_prefix, self.name);
        let shared = Arc::new(Shared {
            processor: self.handling.processor.clone(),
            model: ModelId::new(self.name.clone(), generation),
            history: self.handling.history.clone(),
            upcasters: self.handling.upcasters.clone(),
            codecs: self.handling.codecs.clone(),
            unknown_events: self.policy.unknown_events,
            start: self.policy.start,
            timeout: self.policy.attempt_timeout,
        });
        let mut boot = BootRows::new(
            self.control.clone(),
            self.ids.clone(),
            &self.name,
            generation,
        );
        loop {
            if !self.resolve(&mut boot, &group, stop).await? {
                return Ok(());
            }
            let subscription =
                Subscription::new(group.clone(), self.topics.clone()).with_start(boot.marks());
            let Some(consumer) = self.subscribe(subscription, stop).await? else {
                return Ok(());
            };
            let session = Session::new(self, &mut boot, shared.clone(), consumer, &group, ends);
            match session.run(stop).await? {
                End::Stopped => return Ok(()),
                End::Resubscribe => {}
            }
        }
    }

    /// The live generation; none if it was told to stop first.
    async fn join(&self, stop: &CancellationToken) -> Result<Option<u32>, RunnerError> {
        let ask = || {
            join_generation(
                self.control.clone(),
                self.ids.clone(),
                &self.name,
                self.model,
            )
        };
        let joined = self.patiently(stop, ask).await;
        let Some(live) = joined.transpose().map_err(|e| self.control_error(e))? else {
            return Ok(None);
        };
        if !live.may_start() {
            return Err(RunnerError::UnknownState {
                processor: self.name.clone(),
                state: live.state.as_str().into(),
            });
        }
        if live.model != self.model {
            return Err(RunnerError::WrongModel {
                processor: self.name.clone(),
                expected: self.model,
                found: live.model,
            });
        }
        Ok(Some(live.active))
    }

    /// Resolves start positions; false if it was told to stop first.
    async fn resolve(
        &self,
        boot: &mut BootRows,
        group: &str,
        stop: &CancellationToken,
    ) -> Result<bool, RunnerError> {
        let mut attempts = self.patience(stop);
        loop {
            let resolved = boot
                .resolve(&*self.bus, &self.topics, self.policy.start)
                .await;
            let Err(error) = resolved else {
                return Ok(true);
            };
            if !self.is_waited_for(&mut attempts, &error).await {
                return match error {
                    error if was_stopped(stop, &error) => Ok(false),
                    BootError::Bus(e) => Err(self.bus_error(e)),
                    BootError::Control(e) => Err(self.control_error(e)),
                    BootError::Trimmed { ref partition, .. } => Err(RunnerError::PositionLost {
                        processor: self.name.clone(),
                        group: group.into(),
                        partition: partition.clone(),
                        reason: error.to_string(),
                    }),
                };
            }
        }
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
        stop: &CancellationToken,
    ) -> Result<Option<Arc<dyn crate::ports::Consumer>>, RunnerError> {
        let ask = || self.bus.subscribe(subscription.clone());
        let consumer = self.patiently(stop, ask).await;
        consumer.transpose().map_err(|e| self.bus_error(e))
    }

    /// The attempts of a call to a backend that may be away for a while.
    pub(super) fn patience<'s>(&self, stop: &'s CancellationToken) -> Attempts<'s> {
        let seed = self.policy.retry.backoff.seed;
        let backoff = Backoff { seed, ..PAUSES };
        Attempts::new(RetryPolicy::new(backoff, PATIENCE).with_immediate(1)).until(stop)
    }

    /// Waits before the next attempt; false if there shall be none.
    pub(super) async fn is_waited_for<E: Failure + Error + 'static>(
        &self,
        attempts: &mut Attempts<'_>,
        error: &E,
    ) -> bool {
        let Some(pause) = attempts.next(error.failure_class()) else {
            return false;
        };
        tracing::warn!(processor = %self.name, error = crate::chain(error), ?pause, "waiting for the backend");
        attempts.rest(pause).await
    }

    /// Repeats a call while the backend is away, within bounds; none if the processor was told to stop.
    pub(super) async fn patiently<T, E, F>(
        &self,
        stop: &CancellationToken,
        mut call: impl FnMut() -> F,
    ) -> Option<Result<T, E>>
    where
        E: Failure + Error + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let mut attempts = self.patience(stop);
        loop {
            let error = match call().await {
                Ok(value) => return Some(Ok(value)),
                Err(error) => error,
            };
            if !self.is_waited_for(&mut attempts, &error).await {
                return (!was_stopped(stop, &error)).then_some(Err(error));
            }
        }
    }

    pub(super) fn bus_error(&self, source: MessageBusError) -> RunnerError {
        RunnerError::Bus {
            processor: self.name.clone(),
            source,
        }
    }

    pub(super) fn control_error(&self, source: ControlStoreError) -> RunnerError {
        RunnerError::Control {
            processor: self.name.clone(),
            source,
        }
    }
}

/// Returns true if a call ended because the processor was told to stop, and not by its error.
pub(super) fn was_stopped(stop: &CancellationToken, error: &impl Failure) -> bool {
    stop.is_cancelled() && error.failure_class() != FailureClass::Permanent
}
