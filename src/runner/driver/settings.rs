//! The settings that never change while a processor runs.
use super::{
    super::{
        Entry, RunnerBuilder, attempt::PublicHistory, erased::ErasedProcessor, generations::Lease,
        machine::Rules,
    },
    letter_topic::LetterTopic,
};
use crate::{
    IdSource, PayloadCodecs, TraceContext, Upcasters,
    control::{Generations, Stored},
    ports::{ControlStore, EventStore, MessageBus},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// The ports, the handler and the rules of one generation of a processor.
pub(in crate::runner) struct Settings {
    pub(super) rules: Arc<Rules>,
    pub(super) ports: Ports,
    pub(super) handling: Handling,
    pub(super) clock: Arc<dyn crate::Clock>,
    pub(super) lag_interval: Duration,
    pub(super) letter_topic: Option<LetterTopic>,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) group_prefix: Arc<str>,
    pub(super) generation: u32,
    /// The time until which attempts may start.
    pub(super) lease: Arc<Lease>,
    /// The generations, for those who start and stop drivers.
    pub(super) found: Arc<watch::Sender<Option<Stored<Generations>>>>,
}

/// The ports that a processor uses.
pub(super) struct Ports {
    pub(super) bus: Arc<dyn MessageBus>,
    pub(super) control: Arc<dyn ControlStore>,
    pub(super) history: Option<Arc<dyn EventStore>>,
    pub(super) public: PublicHistory,
    pub(super) ids: Arc<dyn IdSource>,
}

/// The parts that turn a record into a call of a handler.
pub(super) struct Handling {
    pub(super) processor: Arc<dyn ErasedProcessor>,
    pub(super) upcasters: Upcasters,
    pub(super) codecs: PayloadCodecs,
    pub(super) trace: Option<Arc<dyn TraceContext>>,
}

impl Settings {
    pub(in crate::runner) fn new(
        entry: &Entry,
        shared: &RunnerBuilder,
        generation: u32,
        lease: Arc<Lease>,
        found: Arc<watch::Sender<Option<Stored<Generations>>>>,
    ) -> Self {
        // The only draw of randomness: everything else follows from it.
        let seed = entry.policy.retry.backoff.seed;
        let rules = Rules {
            name: entry.name.clone(),
            policy: entry.policy.clone(),
            is_projector: entry.processor.is_projector(),
            selectors: entry.processor.selectors(),
            breaker: entry.policy.breaker.clone(),
            has_event_store: shared.history.is_some(),
            instance: shared.ids.revision().as_u128().to_string().into(),
            started: (Instant::now(), shared.clock.now()),
            seed: seed.unwrap_or_else(|| fastrand::u64(..)),
        };
        let letter_topic = entry.policy.dead_letter_topic.clone().map(|topic| {
            let (bus, clock) = (shared.bus.clone(), shared.clock.clone());
            LetterTopic::new(topic, entry.name.clone(), bus, clock)
        });
        Self {
            rules: Arc::new(rules),
            letter_topic,
            ports: Ports {
                bus: shared.bus.clone(),
                control: shared.control.clone(),
                history: shared.history.clone(),
                public: shared.public_history(),
                ids: shared.ids.clone(),
            },
            handling: Handling {
                processor: entry.processor.clone(),
                upcasters: entry.upcasters.clone(),
                codecs: shared.codecs.clone(),
                trace: shared.trace.clone(),
            },
            clock: shared.clock.clone(),
            lag_interval: shared.lag_interval,
            topics: shared.topics.clone(),
            group_prefix: shared.group_prefix.clone(),
            generation,
            lease,
            found,
        }
    }
}
