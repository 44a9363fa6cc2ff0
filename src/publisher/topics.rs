//! Whether a topic may carry events.
use super::{Publisher, TopicError, TopicRoute};
use crate::resilience::{Failure, Retryable};
use std::{collections::BTreeSet, sync::Arc};

/// The least `max.message.bytes` of a topic for events: 1 MB. Kafka's default is 1,048,588.
const MIN_RECORD_BYTES: u64 = 1_000_000;

impl Publisher {
    /// Checks, before anything is published, the topics of these aggregate types (of all, where all go to one): each
    /// exists, is not compacted, takes records of 1 MB where the bus says so, and has the partitions that it had when
    /// its first event was published. The first publisher pins that number in the row `topic/<name>`.
    ///
    /// Call it at start, for a clear error at once. What was not checked here is checked before a topic's first event,
    /// so nothing is ever published to a topic that fails. Each topic is asked about once.
    ///
    /// # Errors
    /// [`TopicError`] says what to change; transient ones were retried.
    pub async fn check_topics<'a>(
        &self,
        aggregates: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), TopicError> {
        let topics: BTreeSet<Arc<str>> = match &self.route {
            TopicRoute::One(topic) => [topic.clone()].into(),
            route => aggregates.into_iter().map(|a| route.topic_of(a)).collect(),
        };
        for topic in topics {
            let check = || self.checked_topic(&topic);
            let checked = check.retry(self.retry).when(Failure::failure_class);
            checked.run().await?;
        }
        Ok(())
    }

    /// Accepts that a topic now has this many partitions: pins the number anew.
    ///
    /// Streams then move to other partitions, where new events may overtake older ones that are still unread. That is
    /// safe for consumers that have a history source and repair the order from it; all others must have read everything
    /// first, while nothing is published.
    ///
    /// # Errors
    /// [`TopicError::NotThatMany`] if the topic has another number, then nothing is pinned; else why it cannot be asked
    /// or pinned.
    pub async fn accept_partitions(&self, topic: &str, partitions: u32) -> Result<(), TopicError> {
        let name: Arc<str> = topic.into();
        let described = self.bus.describe_topic(topic).await;
        let described = described.map_err(|source| TopicError::Bus {
            topic: name.clone(),
            source,
        })?;
        if described.partitions != partitions {
            return Err(TopicError::NotThatMany {
                topic: name,
                accepted: partitions,
                found: described.partitions,
            });
        }
        let pinned = self.pins.pin(topic, partitions).await;
        self.state.topics.forget(topic);
        pinned.map_err(|source| TopicError::Control {
            topic: name,
            source,
        })
    }

    /// The most bytes that the topic takes, if the bus says so; checks the topic if this process has not yet. Those who
    /// ask meanwhile wait for the one check.
    pub(super) async fn checked_topic(&self, topic: &Arc<str>) -> Result<Option<u64>, TopicError> {
        let cell = self.state.topics.cell(topic);
        cell.get_or_try_init(|| self.check_topic(topic))
            .await
            .copied()
    }

    async fn check_topic(&self, topic: &Arc<str>) -> Result<Option<u64>, TopicError> {
        let name = || topic.clone();
        let described = self.bus.describe_topic(topic).await;
        let described = described.map_err(|source| TopicError::Bus {
            topic: name(),
            source,
        })?;
        if described.compacted == Some(true) {
            return Err(TopicError::Compacted { topic: name() });
        }
        if let Some(bytes) = described.max_message_bytes
            && bytes < MIN_RECORD_BYTES
        {
            return Err(TopicError::SmallRecords {
                topic: name(),
                bytes,
                needed: MIN_RECORD_BYTES,
            });
        }
        let found = described.partitions;
        let pinned = self.pins.pinned_or(topic, found).await;
        let pinned = pinned.map_err(|source| TopicError::Control {
            topic: name(),
            source,
        })?;
        if pinned != found {
            return Err(TopicError::PartitionsChanged {
                topic: name(),
                pinned,
                found,
            });
        }
        Ok(described.message_limit())
    }
}
