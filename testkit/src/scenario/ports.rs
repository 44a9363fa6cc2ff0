//! The adapters in memory, with the time, ids and settings that a scenario gives to everything that
//! works on them.
use super::feed::TOPIC;
use crate::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
    ManualClock, SeededIds,
};
use foldstream::{Aggregate, Metadata, PayloadCodecs, Repository, Upcasters};
use std::sync::Arc;

/// The adapters of a pipeline scenario, and the settings of the repositories on them.
///
/// [`PipelineScenario::perform`](crate::PipelineScenario::perform) gives them to the code under
/// test. Clones share the adapters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ports {
    /// The event store of the pipeline.
    pub event_store: Arc<InMemoryEventStore>,
    /// The message bus of the pipeline. All events are in its topic `GlobalEvents`.
    pub message_bus: Arc<InMemoryMessageBus>,
    /// The control store of the pipeline. It holds watermarks and start positions of the scenario,
    /// and the records of idempotent commands.
    pub control_store: Arc<InMemoryControlStore>,
    /// The snapshot store of the pipeline. Only repositories that are given this store use it.
    pub snapshot_store: Arc<InMemorySnapshotStore>,
    /// The clock of repositories and of rows that expire. The paused time of retries and timeouts
    /// is tokio's own.
    pub clock: Arc<ManualClock>,
    /// The source of commit ids, which draws them from a seed.
    pub ids: Arc<SeededIds>,
    /// The upcasters of the scenario.
    pub upcasters: Upcasters,
    /// The payload codecs of the scenario.
    pub payload_codecs: PayloadCodecs,
    /// The metadata of the scenario. Code under test has its own metadata, so nothing adds this to
    /// its commands.
    pub metadata: Metadata,
}

impl Ports {
    /// Creates empty stores, and a bus whose topic has this many partitions.
    pub(super) fn new(partitions: u32) -> Self {
        let clock = ManualClock::new();
        let message_bus = InMemoryMessageBus::new();
        message_bus.create_topic(TOPIC, partitions);
        Self {
            event_store: InMemoryEventStore::new(),
            message_bus,
            control_store: InMemoryControlStore::with_clock(clock.clone()),
            snapshot_store: InMemorySnapshotStore::new(),
            clock,
            ids: SeededIds::new(1),
            upcasters: Upcasters::new(),
            payload_codecs: PayloadCodecs::new(),
            metadata: Metadata::new(),
        }
    }

    /// Returns a repository on the event store, with the clock, ids, upcasters and payload codecs.
    #[must_use]
    pub fn repository<A: Aggregate>(&self) -> Repository<A> {
        Repository::new(self.event_store.clone())
            .with_clock(self.clock.clone())
            .with_ids(self.ids.clone())
            .with_upcasters(self.upcasters.clone())
            .with_payload_codecs(self.payload_codecs.clone())
    }
}
