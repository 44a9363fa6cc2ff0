//! What librdkafka calls: rebalances are noted here and served by the poll loop, so that no callback ever waits.
use crate::{client::log, error::Errors};
use foldstream::ports::PartitionId;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

pub(super) type Client = BaseConsumer<GroupContext>;

/// What the group decided for this member.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rebalance {
    Assign(Vec<PartitionId>),
    Revoke(Vec<PartitionId>),
}

/// The context of one member.
#[derive(Debug)]
pub(super) struct GroupContext {
    pub(super) errors: Arc<Errors>,
    noted: Mutex<VecDeque<Rebalance>>,
    closing: AtomicBool,
}

impl GroupContext {
    pub(super) fn new(errors: Arc<Errors>) -> Self {
        Self {
            errors,
            noted: Mutex::new(VecDeque::new()),
            closing: AtomicBool::new(false),
        }
    }

    /// The next decision that is not served yet.
    pub(super) fn take(&self) -> Option<Rebalance> {
        self.noted().pop_front()
    }

    /// From now on decisions are served at once: the poll loop has ended, and the client is being dropped.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, VecDeque<Rebalance>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }
    fn stats(&self, _: Statistics) {}
    fn stats_raw(&self, json: &[u8]) {
        let json = String::from_utf8_lossy(json);
        tracing::trace!(target: "librdkafka", %json, "statistics");
    }
    fn error(&self, error: KafkaError, text: &str) {
        tracing::debug!(target: "librdkafka", error = foldstream::chain(&error), text);
        self.errors.heard(&error, text);
    }
}

impl ConsumerContext for GroupContext {
    /// Runs inside of a poll. The group waits for the answer ((un)assign) and goes on with its heartbeats meanwhile.
    fn rebalance(
        &self,
        client: &BaseConsumer<Self>,
        decision: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
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
}

fn partitions(list: &TopicPartitionList) -> Vec<PartitionId> {
    let elements = list.elements();
    elements
        .iter()
        .map(|e| PartitionId::new(e.topic(), e.partition().unsigned_abs()))
        .collect()
}

/// Tells the client to read these partitions too.
pub(super) fn add(client: &Client, list: &TopicPartitionList) -> KafkaResult<()> {
    match client.rebalance_protocol() {
        RebalanceProtocol::Cooperative => client.incremental_assign(list),
        _ => client.assign(list),
    }
}

/// Tells the client to read these partitions no more; an eager protocol always takes all of them.
pub(super) fn remove(client: &Client, list: &TopicPartitionList) -> KafkaResult<()> {
    match client.rebalance_protocol() {
        RebalanceProtocol::Cooperative => client.incremental_unassign(list),
        _ => client.unassign(),
    }
}
