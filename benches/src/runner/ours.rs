//! Our side: a runner with one processor.
use super::meter::{Meter, Stopwatch};
use crate::{BenchError, account::AccountEvent};
use foldstream::{
    StreamId, Version,
    runner::{
        BatchResult, DeliveryLevel, EventContext, HandlerError, HandlerResult, Listener, ModelId,
        Position, ProcessorPolicy, Projector, Runner, RunnerBuilder, Start,
    },
};
use foldstream_kafka::KafkaMessageBus;
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The time for which one run is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// The way in which our side works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    Projector(DeliveryLevel),
    /// A projector that gets up to 100 events with one call.
    Batches,
    /// A listener, with a circuit breaker around its calls.
    Listener,
    /// A projector with an event store, from which gaps would be filled.
    WithStore,
}

/// A handler that counts.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    pub(super) meter: Arc<Meter>,
    /// The time that one event takes.
    pub(super) pause: Option<Duration>,
    /// True if a sabotaged handler works for 50 microseconds per event.
    pub(super) is_slowed: bool,
}

impl Counts {
    async fn count(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        if self.is_slowed {
            let began = std::time::Instant::now();
            while began.elapsed() < Duration::from_micros(50) {
                std::hint::spin_loop();
            }
        }
        if let Some(pause) = self.pause {
            tokio::time::sleep(pause).await;
        }
        self.meter.handled(ctx.header(), event);
        Ok(())
    }
}

impl Listener for Counts {
    const NAME: &'static str = "counts";
    type Events = AccountEvent;
    async fn handle(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.count(event, ctx).await
    }
}

/// A projector that counts, of single events or of batches.
#[derive(Debug)]
pub(super) struct Projects(pub(super) Counts);

impl Projector for Projects {
    const NAME: &'static str = "projects";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.0.count(event, ctx).await
    }
    async fn project_batch(&self, events: &[(AccountEvent, EventContext)]) -> BatchResult {
        for (done, (event, ctx)) in events.iter().enumerate() {
            if let Err(error) = self.0.count(event, ctx).await {
                return BatchResult::failed(done, error);
            }
        }
        BatchResult::done(events.len())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

/// A projector that keeps its positions with its rows, in memory.
#[derive(Debug)]
struct Positions {
    counts: Counts,
    stored: Mutex<HashMap<StreamId, Version>>,
}

impl Projector for Positions {
    const NAME: &'static str = "positions";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.counts.count(event, ctx).await?;
        let header = ctx.header();
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.insert(header.stream.clone(), header.version);
        Ok(())
    }
    async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let version = stored.get(stream).copied().unwrap_or(Version::NONE);
        Ok(Position::stored(version))
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

/// Adds the processor of a way.
fn with(builder: RunnerBuilder, way: Way, counts: Counts) -> RunnerBuilder {
    let policy = ProcessorPolicy::projector();
    match way {
        Way::Projector(DeliveryLevel::ExactlyOnceEffect) => {
            let stored = Mutex::default();
            let policy = policy.with_level(DeliveryLevel::ExactlyOnceEffect);
            builder.projector_with(Positions { counts, stored }, policy)
        }
        Way::Projector(level) => builder.projector_with(Projects(counts), policy.with_level(level)),
        Way::Batches => builder.projector_with(Projects(counts), policy.with_max_batch(100)),
        Way::Listener => {
            let policy = ProcessorPolicy::listener().with_start(Start::Beginning);
            builder.listener_with(counts, policy)
        }
        Way::WithStore => {
            let builder = builder.with_event_store(InMemoryEventStore::new());
            builder.projector_with(Projects(counts), policy)
        }
    }
}

/// Reads a topic from its beginning until all `events` were handled.
pub(super) async fn run(
    bus: KafkaMessageBus,
    group: &str,
    topic: &Arc<str>,
    way: Way,
    counts: Counts,
) -> Result<Stopwatch, BenchError> {
    let meter = counts.meter.clone();
    let builder = Runner::builder(bus, InMemoryControlStore::new(), group);
    let builder = with(builder.with_topics([topic.clone()]), way, counts);
    let runner = builder.build().map_err(BenchError::other)?;
    let handle = runner.start();
    let over = tokio::time::timeout(PATIENCE, meter.over()).await;
    handle.stop();
    let report = handle.wait().await;
    report.into_result().map_err(BenchError::other)?;
    over.map_err(BenchError::other)?;
    meter.stopped()
}
