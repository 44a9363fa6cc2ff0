//! The ports that the shop runs on, apart from the adapters that implement them.
use crate::{
    cart::Cart,
    hot_products::{HotProducts, InMemoryProducts},
    memory_rows::InMemoryRows,
    payment::Payment,
    read_model::SalesModel,
};
use foldstream::{
    Repository, SourceUri,
    operate::Operator,
    ports::{ControlStore, EventStore, MessageBus},
    publisher::{Publisher, TopicRoute},
    runner::{Runner, RunnerBuilder},
};
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
use std::{sync::Arc, time::Duration};

/// The ports and settings of a shop.
///
/// The rest of this crate does not know whether they are in memory or on servers.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The store with the events of every cart, from which everything else is derived.
    pub store: Arc<dyn EventStore>,
    /// The bus that carries the events to the processors.
    pub bus: Arc<dyn MessageBus>,
    /// The store for the small rows of the publisher and the runner.
    pub control: Arc<dyn ControlStore>,
    /// The read model from which the report is summed.
    pub read_model: SalesModel,
    /// The read model of the products that customers want most.
    pub hot_products: HotProducts,
    /// The topic to which the events are published.
    pub topic: Arc<str>,
    /// The CloudEvents source of the shop's events.
    pub source: SourceUri,
    /// The first part of the consumer groups' names.
    pub group_prefix: Arc<str>,
    /// The prefix of the ids of generated carts. It must be new on a store that may hold carts
    /// already.
    pub cart_prefix: String,
    /// The time for which a commit may be missing from the list of unpublished commits.
    pub listing_delay: Duration,
}

/// The parts of a backend that a process uses. On real servers, the others need not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// The event store alone: an import needs no bus.
    EventStore,
    /// The event store, the bus and the read model.
    Everything,
}

/// The partitions of the topic. All events of a cart go to the same partition, which keeps their
/// order.
pub const PARTITIONS: u32 = 4;

/// The time for which the mark of a command is kept.
const MARK_RETENTION: Duration = Duration::from_secs(60 * 24 * 3600);

impl Backend {
    /// Creates a backend whose parts are all in memory and live as long as the process.
    pub fn embedded() -> Self {
        let topic = "GlobalEvents";
        let bus = InMemoryMessageBus::new();
        bus.create_topic(topic, PARTITIONS);
        Self {
            store: InMemoryEventStore::new(),
            bus,
            control: InMemoryControlStore::new(),
            read_model: SalesModel::InMemory(InMemoryRows::default()),
            hot_products: HotProducts::InMemory(InMemoryProducts::default()),
            topic: topic.into(),
            source: SourceUri::default(),
            group_prefix: "shop".into(),
            cart_prefix: "c".into(),
            listing_delay: Duration::ZERO,
        }
    }

    /// Returns the repository that loads carts, decides commands and stores the resulting events.
    ///
    /// It caches the state of the last 1,000 carts. A command on one of them takes one round trip.
    pub fn carts(&self) -> Repository<Cart> {
        Repository::new(self.store.clone()).with_cache(1000)
    }

    /// Returns the repository of payments, in which a command with a command id takes effect once.
    ///
    /// The saga derives its command ids from events. A mark is kept for longer than an event may
    /// come again: the retention of the topic, and the time until a dead letter is redriven.
    pub fn payments(&self) -> Repository<Payment> {
        Repository::new(self.store.clone()).with_idempotency(self.control.clone(), MARK_RETENTION)
    }

    /// Returns the operator of the shop's processors.
    pub fn operator(&self) -> Operator {
        Operator::new(self.control.clone())
            .with_bus(self.bus.clone(), self.group_prefix.clone())
            .with_store(self.store.clone())
    }

    /// Returns a publisher that sends the stored events which are not on the bus yet.
    pub fn publisher(&self) -> Publisher {
        Publisher::new(self.store.clone(), self.bus.clone(), self.control.clone())
            .with_route(TopicRoute::One(self.topic.clone()))
            .with_source(self.source.clone())
    }

    /// Returns a runner to which listeners and projectors are added.
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
