//! The one thread of a member: it serves the group, pulls records while there is room, and leaves in the end.
//!
//! # Why a queue per partition
//! Each partition's records are split off the client's common queue, so that back-pressure and pauses are simply not
//! pulling: the client stops fetching when its small queue is full, while the common queue, which carries the group's
//! decisions, is polled on. Pausing inside the client would throw away what it has fetched at every turn. And an error
//! of the fetch position says only in the partition's own queue which partition it is of.
//!
//! # Why a revocation is no callback that waits
//! The group waits for the *answer* to its decision, not for the callback. So a revocation is a state of this loop, and
//! the partitions that stay go on delivering while the ones that go are drained.
use super::{
    assign::Assigning,
    context::{Client, Rebalance},
    convert::Names,
    pull::Queue,
    revoke::Revoking,
    state::Shared,
};
use crate::{
    client::Reader,
    error::{Class, class, code},
    worked_before::{Access, Uses},
};
use foldstream::ports::{MessageBusError, Offset, PartitionId, RefusedKind};
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

/// The longest sleep: librdkafka rings for everything that matters, so this only bounds what it might miss.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// How soon a question that failed is asked again.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The most events of the client that are served in a row.
const MOST_EVENTS: usize = 100_000;

/// What one member needs to know.
pub(super) struct Settings {
    pub(super) group: String,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) start: HashMap<PartitionId, Offset>,
    pub(super) request_timeout: Duration,
    pub(super) grace: Duration,
}

/// A refusal that the client has told once and does not repeat while it lasts.
struct Doubt {
    error: KafkaError,
    /// The time at which it is checked again.
    due: Instant,
}

pub(super) struct PollLoop {
    pub(super) client: Arc<Client>,
    pub(super) shared: Arc<Shared>,
    pub(super) reader: Arc<Reader>,
    pub(super) settings: Settings,
    pub(super) queues: Vec<Queue>,
    pub(super) assigning: Option<Assigning>,
    pub(super) revoking: Option<Revoking>,
    /// Stopped partitions whose range could not be asked yet.
    pub(super) unexplained: Vec<PartitionId>,
    pub(super) explain_at: Instant,
    /// The time from which positions may be compared again.
    pub(super) holes_at: Instant,
    pub(super) names: Names,
    doubt: Option<Doubt>,
}

/// Marks the end of the thread, also when it panics.
struct Gone(Arc<Shared>);
impl Drop for Gone {
    fn drop(&mut self) {
        self.0.set_gone();
    }
}

impl PollLoop {
    pub(super) fn new(
        client: Arc<Client>,
        shared: Arc<Shared>,
        reader: Arc<Reader>,
        settings: Settings,
    ) -> Self {
        Self {
            client,
            shared,
            reader,
            settings,
            queues: Vec::new(),
            assigning: None,
            revoking: None,
            unexplained: Vec::new(),
            explain_at: Instant::now(),
            holes_at: Instant::now(),
            names: Names::default(),
            doubt: None,
        }
    }

    /// Works until the consumer leaves.
    pub(super) fn run(mut self) {
        let _gone = Gone(Arc::clone(&self.shared));
        while !self.shared.is_leaving() {
            let served = self.serve_group();
            self.assign_when_due();
            self.revoke_when_drained();
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

    /// Serves the client's events; says whether the group decided something.
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

    /// Serves the client's events until there are none, and stops the partitions of topics that the log calls recreated.
    pub(super) fn drain_events(&mut self) {
        let client = Arc::clone(&self.client);
        // A poll serves one event and returns nothing for most of them, as it does where there is none. One kind of event
        // is not counted, so only the second poll that finds nothing says that there is none.
        let mut found_nothing = 0;
        for _ in 0..MOST_EVENTS {
            let before = client.context().events();
            match client.poll(Duration::ZERO) {
                None if client.context().events() == before => found_nothing += 1,
                None => found_nothing = 0,
                // Only what the client had queued before the partition got its own queue; it comes again.
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
            // One broker of several, and the client reconnects by itself; when the last is gone it says so.
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => return,
            Some(RDKafkaErrorCode::PartitionEOF) => return,
            // The group takes the partitions back with the next decision, which is told as lost.
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

    /// Repeats a refusal of the group or of a topic while it lasts: the client tells it only once, so that an outage would
    /// never become a refusal.
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
            // A caller that asks again after a refusal hears it again.
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
