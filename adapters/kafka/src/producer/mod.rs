//! The producer: idempotent publishes of runs, to the partition that each message names.
//!
//! # How do runs keep their order?
//! Several records of a run are in flight at the same time. The client's idempotence is not enough
//! to keep their order: `priming.rs` says why the first record of a partition is acknowledged
//! alone, `pipeline.rs` says which acknowledgements count, and `session.rs` says why the first
//! failure replaces the producer for all runs. `driver.rs` only does what these decide.
//!
//! # Why is the partition computed here?
//! librdkafka's `murmur2` partitioner returns the same number, but by its own view of the topic. It
//! waits for topics that it does not know, and asks the brokers to create them. Here one metadata
//! answer says if the topic exists and how many partitions it has, and
//! [`foldstream::adapter::kafka_partition`] decides.
mod driver;
mod patience;
mod pipeline;
mod priming;
mod record;
mod session;
#[cfg(test)]
mod simulation;
mod topics;

use self::{
    driver::Driver,
    patience::Patience,
    pipeline::Ending,
    session::Sessions,
    topics::{Known, KnownTopics},
};
use crate::{
    config::KafkaConfig,
    error::{Class, Errors, class, code, invalid},
    topic_admin::{Admin, RECORD_OVERHEAD},
    worked_before::{Access, Uses},
};
use foldstream::{
    adapter::{check_run, kafka_partition},
    ports::{Message, MessageBusError, Offset, PartitionId, RefusedKind, RunOutcome},
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The producer of a bus.
#[derive(Debug)]
pub(crate) struct Producer {
    config: KafkaConfig,
    errors: Arc<Errors>,
    sessions: Arc<Sessions>,
    topics: KnownTopics,
    patience: Mutex<HashMap<PartitionId, Patience>>,
}

/// The outcome of a run: its durable first messages, and the offset of the last of them.
#[derive(Debug)]
struct Sent {
    durable: usize,
    last: Option<Offset>,
    error: Option<MessageBusError>,
}

impl Producer {
    pub(crate) fn new(config: KafkaConfig, errors: Arc<Errors>, admin: Admin) -> Self {
        Self {
            sessions: Arc::new(Sessions::new(config.clone(), Arc::clone(&errors))),
            topics: KnownTopics::new(admin, Arc::clone(&errors)),
            config,
            errors,
            patience: Mutex::default(),
        }
    }

    /// Gives up what is queued or in flight, and closes the connections. Returns the number of
    /// records that were given up, once that is done.
    pub(crate) async fn reset(&self) -> usize {
        self.sessions.reset().await
    }

    /// Returns the number of records that are queued or in flight.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.sessions.unacknowledged()
    }

    /// Publishes one message, and returns its partition and offset once it is durable.
    pub(crate) async fn publish(
        &self,
        message: &Message,
    ) -> Result<(PartitionId, Offset), MessageBusError> {
        record::check(message)?;
        let (partition, known) = self.partition_of(message).await?;
        let sent = self.send(std::slice::from_ref(message), &partition, known);
        match sent.await {
            Sent {
                last: Some(offset),
                error: None,
                ..
            } => Ok((partition, offset)),
            Sent { error, .. } => Err(error.unwrap_or_else(|| {
                let lost = KafkaError::Canceled;
                self.errors.publish_failed(message, lost)
            })),
        }
    }

    /// Publishes the messages of one key in order.
    pub(crate) async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        let Some(first) = run.first() else {
            return RunOutcome::complete(0);
        };
        let checked = check_run(run).and_then(|()| run.iter().try_for_each(record::check));
        if let Err(error) = checked {
            return RunOutcome::broken_off(0, error);
        }
        let sent = match self.partition_of(first).await {
            Ok((partition, known)) => self.send(run, &partition, known).await,
            Err(error) => return RunOutcome::broken_off(0, error),
        };
        match sent.error {
            Some(error) => RunOutcome::broken_off(sent.durable, error),
            None => RunOutcome::complete(sent.durable),
        }
    }

    /// Returns the partition that a message names, or else the partition of its key.
    async fn partition_of(
        &self,
        message: &Message,
    ) -> Result<(PartitionId, Known), MessageBusError> {
        let topic = &message.topic;
        if message.partition.is_none() && message.key.is_none() {
            let reason = "a message has neither a key nor a partition: set one of them";
            return Err(invalid(reason));
        }
        let mut known = self.describe(topic).await?;
        if message.partition.is_some_and(|p| p >= known.partitions) {
            // The topic may have grown since its partitions were counted.
            self.topics.forget(topic);
            known = self.describe(topic).await?;
        }
        let partitions = known.partitions;
        let partition = match (message.partition, &message.key) {
            (Some(named), _) if named < partitions => named,
            (None, Some(key)) => kafka_partition(key, partitions),
            (named, _) => {
                let named = named.unwrap_or_default();
                return Err(MessageBusError::Refused {
                    kind: RefusedKind::UnknownPartition,
                    reason: format!(
                        "topic {topic} has {partitions} partitions and no partition {named}: name another, or add partitions"
                    ),
                    source: KafkaError::MessageProduction(RDKafkaErrorCode::UnknownPartition)
                        .into(),
                });
            }
        };
        Ok((PartitionId::new(Arc::clone(topic), partition), known))
    }

    /// Describes a topic, and makes batches small enough for it.
    async fn describe(&self, topic: &Arc<str>) -> Result<Known, MessageBusError> {
        if let Some(known) = self.topics.recent(topic) {
            return Ok(known);
        }
        let session = self.sessions.current().await?;
        let known = self.topics.describe(topic, session).await?;
        if let Some(limit) = known.max_message_bytes {
            let below = limit.saturating_sub(RECORD_OVERHEAD);
            self.sessions.fit_batches(below);
        }
        Ok(known)
    }

    /// Sends the messages of a run up to the first that is too large for its topic, on as many
    /// sessions as are retired meanwhile by other runs.
    async fn send(&self, run: &[Message], partition: &PartitionId, known: Known) -> Sent {
        let limit = known.message_limit(self.config.max_message_bytes);
        let too_large = run.iter().position(|message| message.size() > limit);
        let fitting = &run[..too_large.unwrap_or(run.len())];
        let (mut durable, mut last, mut error) = (0, None, None);
        let mut progress = Instant::now();
        while durable < fitting.len() && error.is_none() {
            let rest = &fitting[durable..];
            let session = match self.sessions.current().await {
                Ok(session) => session,
                Err(failed) => {
                    error = Some(failed);
                    break;
                }
            };
            let stay = Driver::new(self, &session, partition, rest).drive().await;
            durable += stay.durable;
            last = stay.last.or(last);
            if stay.durable > 0 {
                progress = Instant::now();
                let uses = Uses::topic(Access::Write, &partition.topic);
                self.errors.succeeded(uses);
            }
            let failed = match stay.ending {
                Ending::Complete => continue,
                Ending::Left if progress.elapsed() < self.config.publish_timeout => continue,
                Ending::Left => KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue),
                Ending::Refused(failed) | Ending::Failed(failed) => failed,
            };
            self.learn(&partition.topic, &failed);
            // At least one message of the rest is not durable.
            let message = &rest[stay.durable.min(rest.len() - 1)];
            error = Some(self.errors.publish_failed(message, failed));
        }
        if let (None, Some(index)) = (&error, too_large) {
            error = Some(MessageBusError::TooLarge {
                topic: Arc::clone(&partition.topic),
                bytes: run[index].size(),
                limit: Some(limit),
            });
        }
        Sent {
            durable,
            last,
            error,
        }
    }

    /// Reads or changes the patience with a partition.
    fn with_patience<T>(&self, partition: &PartitionId, f: impl FnOnce(&mut Patience) -> T) -> T {
        let mut all = lock(&self.patience);
        if let Some(patience) = all.get_mut(partition) {
            return f(patience);
        }
        let patience = Patience::capped(self.config.publish_timeout);
        f(all.entry(partition.clone()).or_insert(patience))
    }

    /// Forgets a topic if an error says that it may have changed.
    fn learn(&self, topic: &str, error: &KafkaError) {
        let code = code(error);
        let is_about_topic = matches!(code.map(class), Some(Class::Refused(_) | Class::TooLarge));
        if is_about_topic || code == Some(RDKafkaErrorCode::UnknownPartition) {
            self.topics.forget(topic);
        }
    }
}
