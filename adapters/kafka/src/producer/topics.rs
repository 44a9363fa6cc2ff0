//! Facts about topics: the number of their partitions, and the size of the
//! largest record that they take. Both are requested again after a minute.
use super::{lock, session::Session};
use crate::{
    client::{blocking, partition_count, until_shown},
    error::Errors,
    topic_admin::{Admin, RECORD_OVERHEAD},
    worked_before::{Access, Uses},
};
use foldstream::ports::MessageBusError;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// The time after which a topic is described again.
const DESCRIBED_FOR: Duration = Duration::from_secs(60);
/// The time for which an old description is used after the brokers did not answer.
const USED_ANYWAY_FOR: Duration = Duration::from_secs(5);

/// The partitions and the limit of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) partitions: u32,
    /// The topic's `max.message.bytes`, if the brokers reveal it.
    pub(super) max_message_bytes: Option<usize>,
}

/// The topics to which this bus has published.
#[derive(Debug)]
pub(super) struct KnownTopics {
    admin: Admin,
    errors: Arc<Errors>,
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
}

#[derive(Debug, Default)]
struct Topic {
    /// The description, and the time until which it is used.
    known: Mutex<Option<(Known, Instant)>>,
    /// Held by the caller that asks while others wait for its answer. It guards no data.
    asking: tokio::sync::Mutex<()>,
}

impl Topic {
    fn recent(&self) -> Option<Known> {
        let (known, until) = (*lock(&self.known))?;
        (Instant::now() < until).then_some(known)
    }
    fn old(&self) -> Option<Known> {
        (*lock(&self.known)).map(|(known, _)| known)
    }
    fn use_for(&self, known: Known, how_long: Duration) -> Known {
        *lock(&self.known) = Some((known, Instant::now() + how_long));
        known
    }
}

impl KnownTopics {
    pub(super) fn new(admin: Admin, errors: Arc<Errors>) -> Self {
        Self {
            admin,
            errors,
            topics: Mutex::default(),
        }
    }

    /// Forgets a topic, so that it is described again before the next publish.
    ///
    /// The client also remembers refusals of a topic. Another request for the topic clears them.
    pub(super) fn forget(&self, topic: &str) {
        lock(&self.topics).remove(topic);
    }

    /// Returns a description that is less than a minute old, if there is one.
    pub(super) fn recent(&self, name: &Arc<str>) -> Option<Known> {
        lock(&self.topics).get(name)?.recent()
    }

    /// Describes a topic, unless that was done less than a minute ago.
    pub(super) async fn describe(
        &self,
        name: &Arc<str>,
        session: Arc<Session>,
    ) -> Result<Known, MessageBusError> {
        let topic = Arc::clone(lock(&self.topics).entry(Arc::clone(name)).or_default());
        let _one = topic.asking.lock().await;
        if let Some(known) = topic.recent() {
            return Ok(known);
        }
        let old = topic.old();
        let (partitions, broker) = match self.count_partitions(name, session).await {
            Ok(counted) => counted,
            // The old count is right unless the topic has grown. If the brokers are away, the
            // publish itself fails.
            Err(error) if error.is_transient() => {
                let old = old.ok_or(error)?;
                return Ok(topic.use_for(old, USED_ANYWAY_FOR));
            }
            Err(error) => {
                self.forget(name);
                return Err(error);
            }
        };
        let limit = self.admin.max_message_bytes(name, broker).await;
        // Without an answer the old limit is the best guess. If it is too high, the broker refuses
        // what is too large.
        let (max_message_bytes, how_long) = match limit {
            Ok(limit) => (limit, DESCRIBED_FOR),
            Err(_) => (old.and_then(|old| old.max_message_bytes), USED_ANYWAY_FOR),
        };
        let known = Known {
            partitions,
            max_message_bytes,
        };
        Ok(topic.use_for(known, how_long))
    }

    /// Counts the partitions by the producer itself, so that the producer knows them too. Returns
    /// the id of an available broker with them.
    async fn count_partitions(
        &self,
        topic: &Arc<str>,
        session: Arc<Session>,
    ) -> Result<(u32, Option<i32>), MessageBusError> {
        let (topic, errors) = (Arc::clone(topic), Arc::clone(&self.errors));
        let timeout = self.admin.config.request_timeout;
        blocking(move || {
            let uses = Uses::topic(Access::Describe, &topic);
            let look = || {
                let client = rdkafka::producer::Producer::client(session.client()?);
                let metadata = client.fetch_metadata(Some(&topic), timeout)?;
                let broker = metadata.brokers().first().map(|broker| broker.id());
                Ok((partition_count(&metadata, &topic)?, broker))
            };
            until_shown(&errors, &topic, || match look() {
                Ok(counted) => {
                    errors.succeeded(uses);
                    Ok(counted)
                }
                Err(error) => {
                    let doing = format_args!("looking for the topic {topic}");
                    Err(errors.failed(doing, uses, error))
                }
            })
        })
        .await
    }
}

impl Known {
    /// Returns the size of the largest message that a producer with this limit may send to the
    /// topic.
    pub(super) fn message_limit(self, max_producer_bytes: usize) -> usize {
        let topic = self.max_message_bytes.unwrap_or(usize::MAX);
        topic
            .min(max_producer_bytes)
            .saturating_sub(RECORD_OVERHEAD)
    }
}
