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
};
use std::{collections::BTreeMap, error::Error, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
    attempts: Attempts,
}

/// What every attempt needs, before the generation is known.
struct Attempts {
    processor: Arc<dyn super::ErasedProcessor>,
    history: Option<Arc<dyn crate::ports::EventStore>>,
    upcasters: crate::Upcasters,
    codecs: crate::PayloadCodecs,
}

/// How long the backends may be away before a processor that starts gives up: about a minute.
pub(super) struct Patience {
    policy: RetryPolicy,
    started: Instant,
    failed: u32,
}

impl Patience {
    pub(super) fn new() -> Self {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        Self {
            policy: RetryPolicy::default()
                .with_attempts(1, 12)
                .with_backoff(backoff),
            started: Instant::now(),
            failed: 0,
        }
    }

    /// Waits before the next try; false if there shall be none: it was told to stop, or it has waited long enough, or
    /// waiting does not help.
    pub(super) async fn wait(
        &mut self,
        stop: &CancellationToken,
        error: &(impl Error + 'static),
        is_transient: bool,
    ) -> bool {
        self.failed += 1;
        let wait = self.policy.next_delay(self.failed, self.started.elapsed());
        let Some(wait) = wait.filter(|_| is_transient) else {
            return false;
        };
        tracing::warn!(
            error = crate::chain(error),
            ?wait,
            "waiting for the backend"
        );
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = tokio::time::sleep(wait) => true,
        }
    }
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
            attempts: Attempts {
                processor: entry.processor.clone(),
                history: shared.history.clone(),
                upcasters: shared.upcasters.clone(),
                codecs: shared.codecs.clone(),
            },
        }
    }

    /// Where the topics end now; less if it is told to stop first.
    pub(super) async fn ends(&self, stop: &CancellationToken) -> Result<Ends, RunnerError> {
        let mut ends = Ends::new();
        for topic in &self.topics {
            let ask = || self.bus.offsets(topic);
            let offsets = patiently(stop, ask, MessageBusError::is_transient).await;
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
            processor: self.attempts.processor.clone(),
            model: ModelId::new(self.name.clone(), generation),
            history: self.attempts.history.clone(),
            upcasters: self.attempts.upcasters.clone(),
            codecs: self.attempts.codecs.clone(),
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
            if !self.resolve(&mut boot, stop).await? {
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
        let joined = patiently(stop, ask, ControlStoreError::is_transient).await;
        let Some(live) = joined.transpose().map_err(|e| self.control_error(e))? else {
            return Ok(None);
        };
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
        stop: &CancellationToken,
    ) -> Result<bool, RunnerError> {
        let mut patience = Patience::new();
        loop {
            let resolved = boot
                .resolve(&*self.bus, &self.topics, self.policy.start)
                .await;
            let error = match resolved {
                Ok(()) => return Ok(true),
                Err(error) => error,
            };
            let is_transient = match &error {
                BootError::Bus(e) => e.is_transient(),
                BootError::Control(e) => e.is_transient(),
            };
            if !patience.wait(stop, &error, is_transient).await {
                return match error {
                    _ if stop.is_cancelled() && is_transient => Ok(false),
                    BootError::Bus(e) => Err(self.bus_error(e)),
                    BootError::Control(e) => Err(self.control_error(e)),
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
        let consumer = patiently(stop, ask, MessageBusError::is_transient).await;
        consumer.transpose().map_err(|e| self.bus_error(e))
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

/// Repeats a call while it fails transiently, within bounds; none if it was told to stop.
pub(super) async fn patiently<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
    stop: &CancellationToken,
    mut call: impl FnMut() -> F,
    is_transient: impl Fn(&E) -> bool,
) -> Option<Result<T, E>> {
    let mut patience = Patience::new();
    loop {
        let error = match call().await {
            Ok(value) => return Some(Ok(value)),
            Err(error) => error,
        };
        if !patience.wait(stop, &error, is_transient(&error)).await {
            let was_stopped = stop.is_cancelled() && is_transient(&error);
            return (!was_stopped).then_some(Err(error));
        }
    }
}
