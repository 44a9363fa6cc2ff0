//! The only thread of a member: it serves the group, pulls records while there is room, and leaves
//! the group at the end.
//!
//! # Why does each partition have a queue?
//! The records of a partition are split off the client's common queue. Backpressure and pauses then
//! only mean that the thread does not pull from a queue. The client stops fetching once its small
//! queue is full, and the common queue, which carries the group's decisions, is still polled. A
//! pause inside the client would discard the fetched records each time. Also, only the partition's
//! own queue says to which partition an error of the fetch position belongs.
//!
//! # Why does no callback wait for a revocation?
//! The group waits for the *answer* to its decision, not for the end of the callback. A revocation
//! is therefore a state of this loop. The partitions that stay are still delivered while the
//! revoked ones are drained.
use super::{
    assign::Assigning,
    context::{Client, Rebalance},
    member::Member,
    pull::Queue,
    revoke::Revoking,
    shared::Shared,
};
use crate::{
    client::Reader,
    error::{Class, class, code},
    worked_before::{Access, Uses},
};
use foldstream::{
    adapter::MessageCopier,
    ports::{MessageBusError, Offset, PartitionId, RefusedKind},
};
use rdkafka::{
    Message as _,
    consumer::Consumer as _,
    error::{KafkaError, RDKafkaErrorCode},
};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// The longest sleep. librdkafka wakes the thread for everything that matters, so this only bounds
/// the effect of a missed wake-up.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// The pause before a failed request is repeated.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The most events of the client that are served in a row.
const MOST_EVENTS: usize = 100_000;

/// The settings of one member.
pub(super) struct Settings {
    pub(super) group: String,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) start: HashMap<PartitionId, Offset>,
    pub(super) request_timeout: Duration,
    pub(super) grace: Duration,
}

/// A refusal that the client has reported once and does not repeat while it lasts.
struct Doubt {
    error: KafkaError,
    /// The time at which the refusal is checked again.
    due: Instant,
}

pub(super) struct PollLoop {
    pub(super) member: Member,
    pub(super) client: Arc<Client>,
    pub(super) shared: Arc<Shared>,
    pub(super) reader: Arc<Reader>,
    pub(super) settings: Settings,
    pub(super) queues: Vec<Queue>,
    pub(super) assigning: Option<Assigning>,
    pub(super) revoking: Option<Revoking>,
    /// The time of the next attempt to replace the client of a member that was expelled.
    pub(super) start_over_at: Option<Instant>,
    /// The stopped partitions whose range could not be requested yet.
    pub(super) unexplained: Vec<PartitionId>,
    pub(super) explain_at: Instant,
    /// The time from which positions may be compared again.
    pub(super) holes_at: Instant,
    pub(super) copier: MessageCopier,
    doubt: Option<Doubt>,
}

/// A guard that marks the end of the thread, also if the thread panics.
struct Gone(Arc<Shared>);
impl Drop for Gone {
    fn drop(&mut self) {
        self.0.set_gone();
    }
}

impl PollLoop {
    pub(super) fn new(
        member: Member,
        client: Arc<Client>,
        shared: Arc<Shared>,
        reader: Arc<Reader>,
        settings: Settings,
    ) -> Self {
        Self {
            member,
            client,
            shared,
            reader,
            settings,
            queues: Vec::new(),
            assigning: None,
            revoking: None,
            start_over_at: None,
            unexplained: Vec::new(),
            explain_at: Instant::now(),
            holes_at: Instant::now(),
            copier: MessageCopier::new(),
            doubt: None,
        }
    }

    /// Serves the group and its partitions until the consumer leaves.
    pub(super) fn run(mut self) {
        let _gone = Gone(Arc::clone(&self.shared));
        while !self.shared.is_leaving() {
            let served = self.serve_group();
            self.start_over_when_expelled();
            if self.start_over_at.is_none() {
                self.assign_when_due();
                self.revoke_when_drained();
            }
            self.explain_when_due();
            self.look_into_doubt();
            self.fetch_again_when_due();
            let pulled = self.pull();
            self.tell_holes();
            if !served && !pulled {
                self.shared.wake.wait(LONGEST_WAIT);
            }
        }
        self.leave();
    }

    pub(super) fn tell(&self, doing: impl std::fmt::Display, uses: Uses<'_>, error: KafkaError) {
        let errors = &self.client.context().errors;
        self.shared.tell(errors.failed(doing, uses, error));
    }

    /// Serves the client's events. Returns true if the group decided something.
    fn serve_group(&mut self) -> bool {
        self.drain_events();
        let mut served = false;
        while let Some(decision) = self.client.context().take() {
            served = true;
            match decision {
                Rebalance::Assign(partitions) => {
                    self.assigning = Some(Assigning {
                        partitions,
                        due: Instant::now(),
                    });
                }
                Rebalance::Revoke(partitions) => self.start_revoking(partitions),
            }
        }
        served
    }

    /// Serves the client's events until there are none, and stops the partitions of topics that the
    /// log reports as recreated.
    pub(super) fn drain_events(&mut self) {
        let client = Arc::clone(&self.client);
        // A poll serves one event and returns nothing for most of them, just as it does if there is
        // none. One kind of event is not counted, so only the second poll in a row that finds
        // nothing shows that there is none.
        let mut found_nothing = 0;
        for _ in 0..MOST_EVENTS {
            let before = client.context().events();
            match client.poll(Duration::ZERO) {
                None if client.context().events() == before => found_nothing += 1,
                None => found_nothing = 0,
                // The client queued this record before the partition got its own queue. It comes
                // again.
                Some(Ok(record)) => tracing::debug!(
                    topic = record.topic(),
                    partition = record.partition(),
                    "a record outside of its partition's queue"
                ),
                Some(Err(error)) => self.problem(error),
            }
            if found_nothing == 2 {
                break;
            }
        }
        self.stop_recreated();
    }

    fn problem(&mut self, error: KafkaError) {
        match code(&error) {
            // One of several brokers is away, and the client reconnects by itself. It reports if
            // the last one is away.
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => return,
            Some(RDKafkaErrorCode::PartitionEOF) => return,
            // The next decision of the group takes the partitions away, and reports them as lost.
            Some(RDKafkaErrorCode::PollExceeded) => {
                tracing::warn!(group = self.settings.group, "the poll thread was held up");
                return;
            }
            _ => {}
        }
        if let KafkaError::MessageConsumptionFatal(_) = error {
            // The member is no longer in its group, and its client does nothing more.
            self.queues.clear();
            self.shared.end(&self.shared.assigned(), true);
        } else if is_doubtful(&error) {
            self.doubt = Some(Doubt {
                error: error.clone(),
                due: Instant::now() + RETRY_PAUSE,
            });
        }
        self.tell_reading(error);
    }

    fn tell_reading(&self, error: KafkaError) {
        let Settings { group, topics, .. } = &self.settings;
        let uses = Uses::topics(Access::Describe, topics).with_group(group);
        self.tell(format_args!("reading as group {group}"), uses, error);
    }

    /// Repeats a refusal of the group or of a topic while it lasts.
    ///
    /// The client reports a refusal only once. Without the repetition, an outage would never become
    /// a refusal.
    fn look_into_doubt(&mut self) {
        let Some(doubt) = self.doubt.take_if(|doubt| doubt.due <= Instant::now()) else {
            return;
        };
        let topics = &self.settings.topics;
        let answer = if code(&doubt.error) == Some(RDKafkaErrorCode::GroupAuthorizationFailed) {
            let first: Vec<_> = topics
                .iter()
                .map(|t| PartitionId::new(Arc::clone(t), 0))
                .collect();
            self.committed(&first).map(drop)
        } else {
            topics
                .iter()
                .try_for_each(|topic| self.reader.partitions(topic).map(drop))
        };
        if let Err(problem) = answer {
            let is_refused = matches!(problem, MessageBusError::Refused { .. });
            self.shared.tell(problem);
            // A caller who asks again after a refusal receives it again.
            let pause = if is_refused {
                10 * RETRY_PAUSE
            } else {
                RETRY_PAUSE
            };
            self.doubt = Some(Doubt {
                due: Instant::now() + pause,
                ..doubt
            });
        }
    }
}

fn is_doubtful(error: &KafkaError) -> bool {
    matches!(
        code(error).map(class),
        Some(Class::Refused(
            RefusedKind::MissingTopic | RefusedKind::Permission
        ))
    )
}
