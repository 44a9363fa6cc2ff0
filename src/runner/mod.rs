//! [`Runner`]: feeds listeners and projectors from the bus, one consumer group each.
//!
//! ```text
//! consumer -> window of the partition -> lane of the stream -> attempt -> done
//!          -> checkpoint: flush, positions, offsets
//!
//! attempt fails -> retry, its stream waits -> parked, dead letter, discarded, or halt
//! ```
//! 1. The events of a stream are handled one after the other, in version order. Streams are handled
//!    side by side.
//! 2. An offset is committed only after everything before it is done and made durable. A crash
//!    repeats events, and never skips one.
//! 3. Start positions are explicit. They are resolved to offsets once and stored before anything is
//!    handled. A group whose committed offset is gone halts instead of starting anywhere.
//! 4. A projector that stores its position with its rows ([`Position::Stored`]) gets each event
//!    exactly once: duplicates are dropped, and gaps are filled from the event store.
//!    [`DeliveryLevel`] says what a crash repeats otherwise.
//! 5. An event that fails holds up only its own stream while it is retried.
//! 6. When its retries are spent, the policy decides ([`FailureAction`]). By default a projector
//!    parks the stream, and a listener stores a dead letter. What was set aside is a durable row
//!    before the offset passes it, and [`operate`](crate::operate) redrives or discards it.
//! 7. A processor that sets aside too much holds: it pauses its partitions, and what fails stays
//!    where it is ([`ProcessorPolicy::with_limits`]).
//! 8. A bus or store that is away is waited for, also at the start. While the circuit breaker of a
//!    listener is open, events wait with no attempt spent.
//! 9. A partition whose window is full is paused while the consumer is still polled, so the group
//!    never expels a slow handler.
//! 10. A generation that a replay has built catches up beside the one that serves, with a consumer
//!     group of its own, and takes its place once it has reached the ends of the topics.
//!     [`ReadModels`] tells queries which generation to read, and waits for a caller's own writes.
//!     A build whose [model](Projector::MODEL) is not there waits for a replay, and an older build
//!     is superseded. Neither halts.
//! 11. A processor halts if it cannot go on without skipping events, if an error is
//!     [`Fatal`](ErrorClass::Fatal), or if its policy says so. The others go on, and
//!     [`RunnerHandle::health`] shows the halt.
mod attempt;
mod driver;
mod erased;
mod error;
mod failed_event;
mod generations;
mod handle;
mod handler;
mod health;
mod machine;
#[cfg(feature = "metrics")]
pub mod metrics;
mod policy;
mod read_models;
pub(crate) mod rebuild;
mod report;
mod signals;
mod spans;
mod step;
mod streams;

pub use error::{ErrorClass, HandlerError, HandlerResult, ResultExt};
pub use failed_event::{FailedEvent, FailureAction};
pub use handle::{RestartError, RunnerHandle};
pub use handler::{
    BatchResult, EventContext, EventSource, Listener, ModelId, PartialReplay, Position, Projector,
    ReplayPart,
};
pub use health::{
    Lag, NextGeneration, Probe, Problem, ProblemKind, ProcessorHealth, ProcessorState,
    RunnerHealth, Trouble, TroubleSource,
};
pub use policy::{DeliveryLevel, OnHalt, ProcessorPolicy, Start, UnknownEvents};
pub use read_models::{ReadModelError, ReadModels};
pub use report::{BuildError, ProcessorReport, RunnerError, RunnerReport};

use crate::{
    Clock, IdSource, PayloadCodecs, SystemClock, SystemIds, TraceContext, Upcasters,
    control::{PublisherName, PublisherRows, Rows},
    ports::{ControlStore, EventStore, MessageBus, shared},
    publisher::Outbox,
    text::forbidden_char,
};
use attempt::PublicHistory;
use erased::{ErasedProcessor, ListenerCell, ProjectorCell};
use health::PATIENCE;
use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

/// One registered listener or projector.
#[derive(Clone)]
struct Entry {
    name: Arc<str>,
    processor: Arc<dyn ErasedProcessor>,
    /// `Projector::MODEL`; 0 for a listener.
    model: u32,
    policy: ProcessorPolicy,
    /// Those of the runner, from `build` on with those of the processor's event types.
    upcasters: Upcasters,
}

/// Collects processors and what they share.
pub struct RunnerBuilder {
    bus: Arc<dyn MessageBus>,
    control: Arc<dyn ControlStore>,
    history: Option<Arc<dyn EventStore>>,
    outbox: Option<Arc<dyn Outbox>>,
    publisher: Option<PublisherName>,
    upcasters: Upcasters,
    codecs: PayloadCodecs,
    ids: Arc<dyn IdSource>,
    clock: Arc<dyn Clock>,
    label: Arc<str>,
    lag_interval: Duration,
    on_halt: OnHalt,
    trace: Option<Arc<dyn TraceContext>>,
    topics: Vec<Arc<str>>,
    group_prefix: Arc<str>,
    shutdown_timeout: Duration,
    entries: Vec<Entry>,
}

/// Listeners and projectors over one bus. Clones are the same runner.
#[derive(Clone)]
pub struct Runner {
    shared: Arc<RunnerBuilder>,
}

impl fmt::Debug for RunnerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.entries.iter().map(|e| &e.name).collect();
        f.debug_struct("Runner")
            .field("group_prefix", &self.group_prefix)
            .field("topics", &self.topics)
            .field("processors", &names)
            .finish_non_exhaustive()
    }
}
impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl RunnerBuilder {
    /// Adds a listener under its name and the default policy of listeners.
    #[must_use]
    pub fn listener(self, listener: impl Listener) -> Self {
        self.listener_with(listener, ProcessorPolicy::listener())
    }
    /// Adds a listener under its own policy.
    #[must_use]
    pub fn listener_with<L: Listener>(self, listener: L, policy: ProcessorPolicy) -> Self {
        self.register(L::NAME, Arc::new(ListenerCell(listener)), 0, policy)
    }
    /// Adds a projector under its name and the default policy of projectors.
    #[must_use]
    pub fn projector(self, projector: impl Projector) -> Self {
        self.projector_with(projector, ProcessorPolicy::projector())
    }
    /// Adds a projector under its own policy.
    #[must_use]
    pub fn projector_with<P: Projector>(self, projector: P, policy: ProcessorPolicy) -> Self {
        self.register(
            P::NAME,
            Arc::new(ProjectorCell(projector)),
            P::MODEL,
            policy,
        )
    }
    fn register(
        mut self,
        name: &str,
        processor: Arc<dyn ErasedProcessor>,
        model: u32,
        policy: ProcessorPolicy,
    ) -> Self {
        self.entries.push(Entry {
            name: policy.name.clone().unwrap_or_else(|| name.into()),
            processor,
            model,
            policy,
            upcasters: Upcasters::new(),
        });
        self
    }
    /// Fills gaps from the event store, in the service that owns it. Without a store a gap is
    /// passed and counted.
    #[must_use]
    pub fn with_event_store(mut self, store: impl EventStore) -> Self {
        self.history = Some(shared::event_store(store));
        self
    }
    /// Sets the outbox of the publisher that fills the topics. What is read from the [event
    /// store](Self::with_event_store) passes through it, so that a handler sees there what the
    /// topic shows, and no private event. Default: every event is shown as it is stored.
    #[must_use]
    pub fn with_outbox(mut self, outbox: impl Outbox) -> Self {
        self.outbox = Some(Arc::new(outbox));
        self
    }
    /// Sets the name of the publisher that fills the topics, if it
    /// [has one](crate::publisher::Publisher::with_name): its skipped events are passed over.
    #[must_use]
    pub fn with_publisher(mut self, name: PublisherName) -> Self {
        self.publisher = Some(name);
        self
    }
    fn public_history(&self) -> PublicHistory {
        let rows = Rows::new(self.control.clone(), self.ids.clone());
        PublicHistory {
            outbox: self.outbox.clone(),
            rows: PublisherRows::over(rows, self.publisher.clone()),
            skips: None,
        }
    }
    /// Lifts older payloads of event types that bring no upcasters of their own
    /// ([`DomainEvent::upcasters`](crate::DomainEvent::upcasters)), since they are of another
    /// crate.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }
    /// Opens payloads that were stored in another form: encrypted, compressed. A shredded event is
    /// passed over as a retired one is.
    #[must_use]
    pub fn with_payload_codecs(mut self, codecs: PayloadCodecs) -> Self {
        self.codecs = codecs;
        self
    }
    /// Replaces the source of revisions.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = ids;
        self
    }
    /// Sets the clock that tells how old events are, and what rows say of times. Pauses and
    /// timeouts follow tokio's clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
    /// Sets the name by which operators know this process: each instance of a service needs its
    /// own, and keeps it over a restart. Default: the name of the host, which container platforms
    /// make unique, or `unknown` where it cannot be read.
    #[must_use]
    pub fn with_instance(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = label.into();
        self
    }
    /// Sets what happens to the other processors when one halts. Default
    /// [`OnHalt::KeepOthers`].
    #[must_use]
    pub const fn with_on_halt(mut self, then: OnHalt) -> Self {
        self.on_halt = then;
        self
    }
    /// Lets the span of each call of a handler continue the trace of its event, and gives the trace
    /// to what the handler [causes](EventContext::caused). Default: the spans belong to no trace of
    /// another process.
    #[must_use]
    pub fn with_trace_context(mut self, trace: impl TraceContext) -> Self {
        self.trace = Some(Arc::new(trace));
        self
    }
    /// Sets how often each processor asks the bus for the ends of its topics, from which the
    /// [`Lag`] follows. Each time costs one request for each topic. The answers also tell that the
    /// bus is there while there are no records. Default 10 s.
    #[must_use]
    pub const fn with_lag_interval(mut self, interval: Duration) -> Self {
        self.lag_interval = interval;
        self
    }
    /// Sets the topics to read; all must exist. Default: `GlobalEvents`.
    #[must_use]
    pub fn with_topics(mut self, topics: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }
    /// Sets the time that a shutdown may take for all processors together: to finish the running
    /// handlers, to make durable what they did, and to leave the groups. Default 25 s, which fits
    /// into the 30 s that container platforms wait before they kill a process.
    #[must_use]
    pub const fn with_shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }
    /// Checks the group prefix, names and policies.
    ///
    /// # Errors
    /// [`BuildError`] names the field.
    pub fn build(mut self) -> Result<Runner, BuildError> {
        if self.entries.is_empty() {
            return Err(BuildError::Empty);
        }
        if self.topics.is_empty() {
            return Err(BuildError::Invalid {
                field: "topics",
                reason: "at least one topic".into(),
            });
        }
        check_group_prefix(&self.group_prefix)?;
        if self.lag_interval.is_zero() {
            return Err(BuildError::Invalid {
                field: "lag_interval",
                reason: "longer than zero".into(),
            });
        }
        if self.label.trim().is_empty() || self.label.len() > 200 {
            return Err(BuildError::Invalid {
                field: "instance",
                reason: "1 to 200 bytes that name this process".into(),
            });
        }
        let mut names = BTreeSet::new();
        for entry in &mut self.entries {
            entry.upcasters = entry.processor.upcasters(&self.upcasters)?;
            check_name(&entry.name)?;
            entry.policy.validate()?;
            if let Some(topic) = &entry.policy.dead_letter_topic
                && self.topics.contains(topic)
            {
                return Err(BuildError::Invalid {
                    field: "dead_letter_topic",
                    reason: format!(
                        "{topic} is read by this runner: its dead letters would come back as records"
                    ),
                });
            }
            if !names.insert(entry.name.clone()) {
                return Err(BuildError::DuplicateName {
                    name: entry.name.clone(),
                });
            }
        }
        Ok(Runner {
            shared: Arc::new(self),
        })
    }
}

fn check_group_prefix(prefix: &str) -> Result<(), BuildError> {
    let reason = match forbidden_char(prefix) {
        _ if prefix.trim().is_empty() => {
            "name the service, so that no other joins its groups".into()
        }
        Some(found) => format!("it must not hold the character U+{:04X}", u32::from(found)),
        None => return Ok(()),
    };
    Err(BuildError::Invalid {
        field: "group_prefix",
        reason,
    })
}

/// Returns the name of the consumer group of a generation.
pub(crate) fn group_name(prefix: &str, processor: &str, generation: u32) -> String {
    format!("{prefix}.{processor}.g{generation}")
}

fn check_name(name: &str) -> Result<(), BuildError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if (1..=64).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(BuildError::Invalid {
        field: "name",
        reason: format!("1 to 64 characters of A-Z a-z 0-9 _ . -, not {name:?}"),
    })
}

impl Runner {
    /// Starts a builder.
    ///
    /// `group_prefix` is the first part of the consumer groups' names,
    /// `<prefix>.<processor>.g<generation>`. It has no default: two services with the same prefix
    /// and a processor of the same name would share a group, and each would miss the records that
    /// the other gets. Choose it once: with another prefix, each processor that has begun halts
    /// with [`RunnerError::PositionLost`], since its committed offsets belong to its former group.
    /// A processor that is to begin again gets another name.
    #[must_use]
    pub fn builder(
        bus: impl MessageBus,
        control: impl ControlStore,
        group_prefix: impl Into<Arc<str>>,
    ) -> RunnerBuilder {
        RunnerBuilder {
            bus: shared::message_bus(bus),
            control: shared::control_store(control),
            history: None,
            outbox: None,
            publisher: None,
            upcasters: Upcasters::new(),
            codecs: PayloadCodecs::new(),
            ids: Arc::new(SystemIds),
            clock: Arc::new(SystemClock),
            label: crate::host::name(),
            lag_interval: Duration::from_secs(10),
            on_halt: OnHalt::default(),
            trace: None,
            topics: vec!["GlobalEvents".into()],
            group_prefix: group_prefix.into(),
            shutdown_timeout: Duration::from_secs(25),
            entries: Vec::new(),
        }
    }

    /// Returns access to the read models of the projectors, for those who query them. The
    /// processors need not run in this process.
    #[must_use]
    pub fn read_models(&self) -> ReadModels {
        ReadModels::new(self.shared.clone())
    }

    /// Starts every processor on a task of its own, and returns a handle to them.
    ///
    /// Each call starts new members of the consumer groups, so it is called once in a process.
    ///
    /// # Panics
    /// If it is called outside a tokio runtime, or in one without time.
    #[must_use = "dropping the handle ends the processors at once"]
    pub fn start(&self) -> RunnerHandle {
        RunnerHandle::new(self.shared.clone(), false)
    }

    /// Runs every processor until `shutdown` is ready; then finishes what is in hand, commits and
    /// leaves, within [`RunnerBuilder::with_shutdown_timeout`]. It is [`start`](Self::start) and
    /// [`wait`](RunnerHandle::wait).
    ///
    /// Ends before that only when every processor has halted, or one of them under
    /// [`OnHalt::StopAll`]. Needs a tokio runtime with time. If the future is dropped, the
    /// processors end at once, as in a crash: nothing is lost, and what was not committed comes
    /// again.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) -> RunnerReport {
        let handle = self.start();
        tokio::select! {
            biased;
            report = handle.wait() => return report,
            () = shutdown => handle.stop(),
        }
        handle.wait().await
    }

    /// Runs until every processor has dealt with what the topics hold when this is called, or has
    /// halted.
    pub async fn run_until_caught_up(&self) -> RunnerReport {
        RunnerHandle::new(self.shared.clone(), true).wait().await
    }
}
