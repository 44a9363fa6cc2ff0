//! What the shop runs on: the ports, and nothing about who implements them.
use crate::{
    cart::Cart,
    read_model::{InMemoryReadModel, ReadModel},
};
use foldstream::{
    Repository, SourceUri,
    ports::{ControlStore, EventStore, MessageBus},
    publisher::{Publisher, TopicRoute},
    runner::{Runner, RunnerBuilder},
};
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
use std::{sync::Arc, time::Duration};

/// The parts of a shop. The rest of this crate neither knows nor cares whether they are in memory or in a data centre.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The events of every cart: the one truth.
    pub store: Arc<dyn EventStore>,
    /// Carries the events to whoever cares.
    pub bus: Arc<dyn MessageBus>,
    /// The small rows of publisher and runner.
    pub control: Arc<dyn ControlStore>,
    /// What the report is summed from.
    pub read_model: Arc<dyn ReadModel>,
    /// Where the events go.
    pub topic: Arc<str>,
    /// The CloudEvents source of its events.
    pub source: SourceUri,
    /// First part of the consumer groups' names.
    pub group_prefix: Arc<str>,
    /// What the ids of generated carts begin with; on a store that may hold carts already, something new.
    pub cart_prefix: String,
    /// How late the list of unpublished commits may be.
    pub settling: Duration,
}

/// Which parts of a backend a process uses; on real servers the others need not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// The event store: an import needs no bus.
    EventStore,
    /// The event store, the bus and the read model.
    Everything,
}

/// Partitions of the topic. Events of one cart always go to one of them, so their order is kept.
pub const PARTITIONS: u32 = 4;

impl Backend {
    /// Everything in memory, for as long as the process lives.
    pub fn embedded() -> Self {
        let topic = "GlobalEvents";
        let bus = InMemoryMessageBus::new();
        bus.create_topic(topic, PARTITIONS);
        Self {
            store: InMemoryEventStore::new(),
            bus,
            control: InMemoryControlStore::new(),
            read_model: Arc::new(InMemoryReadModel::default()),
            topic: topic.into(),
            source: SourceUri::default(),
            group_prefix: "shop".into(),
            cart_prefix: "c".into(),
            settling: Duration::ZERO,
        }
    }

    /// The carts: loads them, decides commands on them, stores what follows. The states of those used last are kept, so
    /// a command on one of them is one round trip.
    pub fn carts(&self) -> Repository<Cart> {
        Repository::new(self.store.clone()).with_cache(1000)
    }

    /// Sends what is stored and not yet on the bus.
    pub fn publisher(&self) -> Publisher {
        Publisher::new(self.store.clone(), self.bus.clone(), self.control.clone())
            .with_route(TopicRoute::One(self.topic.clone()))
            .with_source(self.source.clone())
    }

    /// A runner to which listeners and projectors are added.
    pub fn runner(&self) -> RunnerBuilder {
        Runner::builder(
            self.bus.clone(),
            self.control.clone(),
            self.group_prefix.clone(),
        )
        .with_event_store(self.store.clone())
        .with_topics([self.topic.clone()])
    }
}
