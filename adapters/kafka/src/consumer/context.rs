//! The callbacks of librdkafka. They only record a rebalance, and the poll loop serves it, so that
//! no callback ever waits.
use super::topic_ids::{Recreated, TopicId, TopicIds};
use crate::{client::log, error::Errors, security::Login};
use foldstream::ports::PartitionId;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use std::{
    collections::VecDeque,
    error::Error,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

pub(super) type Client = BaseConsumer<GroupContext>;

/// A decision of the group about this member.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rebalance {
    Assign(Vec<PartitionId>),
    Revoke(Vec<PartitionId>),
}

/// The context of one member's client.
#[derive(Debug)]
pub(super) struct GroupContext {
    pub(super) errors: Arc<Errors>,
    login: Login,
    noted: Mutex<VecDeque<Rebalance>>,
    closing: AtomicBool,
    ids: Mutex<TopicIds>,
    /// True if the configuration asks for debug lines. Otherwise they are read only for the ids of
    /// topics and for hidden losses.
    logs_debug: bool,
    /// The number of events that librdkafka has handed over.
    events: AtomicU64,
    /// True if the group has expelled this member and librdkafka has not reported it.
    hidden_loss: AtomicBool,
}

impl GroupContext {
    pub(super) fn new(errors: Arc<Errors>, login: Login, logs_debug: bool) -> Self {
        Self {
            errors,
            login,
            noted: Mutex::new(VecDeque::new()),
            closing: AtomicBool::new(false),
            ids: Mutex::default(),
            logs_debug,
            events: AtomicU64::new(0),
            hidden_loss: AtomicBool::new(false),
        }
    }

    /// Returns the number of events so far. A poll that returns nothing and does not change it has
    /// found no event.
    pub(super) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Returns true once for each loss of all partitions that only the log tells of.
    pub(super) fn take_hidden_loss(&self) -> bool {
        self.hidden_loss.swap(false, Ordering::SeqCst)
    }

    fn count_event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, TopicIds> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forwards to [`TopicIds::take_news`].
    pub(super) fn take_recreated(&self) -> Vec<Recreated> {
        self.ids().take_news()
    }

    /// Forwards to [`TopicIds::is_recreated`].
    pub(super) fn is_recreated(&self, topic: &str) -> bool {
        self.ids().is_recreated(topic)
    }

    /// Forwards to [`TopicIds::is_outdated`].
    pub(super) fn is_outdated(&self, id: &PartitionId, expected: TopicId) -> bool {
        self.ids().is_outdated(id, expected)
    }

    /// Forwards to [`TopicIds::forget`].
    pub(super) fn forget_ids(&self, partitions: &[PartitionId]) {
        self.ids().forget(partitions);
    }

    /// Returns the metadata of an offset commit for a topic.
    ///
    /// `None` if the topic was created again, so that an old position must not be committed for it.
    pub(super) fn commit_metadata(&self, topic: &str) -> Option<String> {
        let ids = self.ids();
        (!ids.is_recreated(topic)).then(|| ids.commit_metadata(topic))
    }

    /// Takes the next decision that is not served yet.
    pub(super) fn take(&self) -> Option<Rebalance> {
        self.noted().pop_front()
    }

    /// Makes later decisions be served at once, since the poll loop has ended and the client is
    /// being dropped.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, VecDeque<Rebalance>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for GroupContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.login.answer()
    }
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.count_event();
        if facility == "METADATA" {
            self.ids().hear(text);
        }
        if facility == "REBALANCE" && tells_of_a_hidden_loss(text) {
            self.hidden_loss.store(true, Ordering::SeqCst);
        }
        if !matches!(level, RDKafkaLogLevel::Debug) || self.logs_debug {
            log(level, facility, text);
        }
    }
    fn stats(&self, _: Statistics) {}
    fn stats_raw(&self, json: &[u8]) {
        self.count_event();
        let json = String::from_utf8_lossy(json);
        tracing::trace!(target: "librdkafka", %json, "statistics");
    }
    fn error(&self, error: KafkaError, text: &str) {
        self.count_event();
        tracing::debug!(target: "librdkafka", error = foldstream::chain(&error), text);
        self.errors.heard(&error, text);
    }
}

impl ConsumerContext for GroupContext {
    /// Records a decision, within a poll. The group waits for the answer (assign or unassign) while
    /// heartbeats continue.
    fn rebalance(
        &self,
        client: &BaseConsumer<Self>,
        decision: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        self.count_event();
        let assign = decision == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::SeqCst) {
            let answered = if assign {
                add(client, &TopicPartitionList::new())
            } else {
                remove(client, list)
            };
            if let Err(error) = answered {
                tracing::debug!(
                    error = foldstream::chain(&error),
                    "leaving a group in the middle of a rebalance"
                );
            }
            return;
        }
        let partitions = partitions(list);
        self.noted().push_back(if assign {
            Rebalance::Assign(partitions)
        } else {
            Rebalance::Revoke(partitions)
        });
    }

    fn commit_callback(&self, _: KafkaResult<()>, _: &TopicPartitionList) {
        self.count_event();
    }
}

/// Returns true for the line with which librdkafka gives up reporting a loss, since a rebalance is
/// under way: see `member.rs`.
fn tells_of_a_hidden_loss(line: &str) -> bool {
    line.contains("already in progress, skipping") && line.contains("assigned partition(s) (lost)")
}

/// Returns the ids of partitions. Those of one topic share its text.
fn partitions(list: &TopicPartitionList) -> Vec<PartitionId> {
    let elements = list.elements();
    let mut topic: Arc<str> = Arc::default();
    let ids = elements.iter().map(|e| {
        if *topic != *e.topic() {
            topic = e.topic().into();
        }
        PartitionId::new(Arc::clone(&topic), e.partition().unsigned_abs())
    });
    ids.collect()
}

/// Tells the client to read these partitions too.
pub(super) fn add(client: &Client, list: &TopicPartitionList) -> KafkaResult<()> {
    match client.rebalance_protocol() {
        RebalanceProtocol::Cooperative => client.incremental_assign(list),
        _ => client.assign(list),
    }
}

/// Tells the client to stop reading these partitions. An eager protocol always takes all of them.
pub(super) fn remove(client: &Client, list: &TopicPartitionList) -> KafkaResult<()> {
    match client.rebalance_protocol() {
        RebalanceProtocol::Cooperative => client.incremental_unassign(list),
        _ => client.unassign(),
    }
}
