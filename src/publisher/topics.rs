//! The check that a topic may carry events.
use super::{Publisher, TopicError, TopicRoute, checked_topics::CheckedTopic};
use crate::resilience::{Failure, Retryable};
use std::{collections::BTreeSet, sync::Arc};

/// The least `max.message.bytes` of a topic for events: 1 MB. Kafka's default is 1,048,588.
const MIN_RECORD_BYTES: u64 = 1_000_000;

impl Publisher {
    /// Checks the topics of these aggregate types before anything is published; if all events go to
    /// one topic, that topic. Each topic exists, is not compacted, takes records of 1 MB if the bus
    /// tells its limit, and has the partitions that it had when its first event was published. The
    /// first publisher pins that number in the row `topic/<name>`.
    ///
    /// Call this function at start, for a clear error at once. A topic that was not checked here is
    /// checked before its first event, so nothing is ever published to a topic that fails. Every
    /// topic in use is checked again each minute: one that has another number of partitions than
    /// the pinned one is stopped until [`accept_partitions`](Self::accept_partitions).
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

    /// Accepts that a topic now has this many partitions, and pins the number.
    ///
    /// The partition of a stream follows from the pinned number, so streams move to other
    /// partitions, where new events may be read before older ones that are still unread in the old
    /// partition. Before you call this,
    /// 1. stop every publisher of the topic, in all processes,
    /// 2. wait until every consumer group has read the topic to its end (lag 0),
    /// 3. redrive or discard every parked stream of the topic: rows of parked streams are kept by
    ///    partition.
    ///
    /// This publisher checks what it can: the topic has this number of partitions, and this
    /// publisher and its clones are publishing nothing to the topic now.
    ///
    /// # Errors
    /// - [`TopicError::NotThatMany`] if the topic has another number,
    /// - [`TopicError::StillPublishing`] if this publisher is publishing streams to the topic,
    /// - [`TopicError::Bus`] or [`TopicError::Control`] if the topic cannot be described, or the
    ///   number cannot be pinned.
    ///
    /// Nothing is pinned then, except that a number may be pinned although the control store's
    /// answer was lost.
    pub async fn accept_partitions(&self, topic: &str, partitions: u32) -> Result<(), TopicError> {
        let name: Arc<str> = topic.into();
        let accept = async || {
            let described = self.bus.describe_topic(topic).await;
            let described = described.map_err(|source| TopicError::Bus {
                topic: name.clone(),
                source,
            })?;
            if described.partitions != partitions {
                return Err(TopicError::NotThatMany {
                    topic: name.clone(),
                    accepted: partitions,
                    found: described.partitions,
                });
            }
            let pinned = self.pins.pin(topic, partitions).await;
            pinned.map_err(|source| TopicError::Control {
                topic: name.clone(),
                source,
            })
        };
        self.state.topics.get(&name).while_idle(&name, accept).await
    }

    /// Returns what is known about the topic. It is checked first if this process has not checked
    /// it within the last minute.
    pub(super) async fn checked_topic(&self, topic: &Arc<str>) -> Result<CheckedTopic, TopicError> {
        let known = self.state.topics.get(topic);
        known.checked(async || self.check_topic(topic).await).await
    }

    async fn check_topic(&self, topic: &Arc<str>) -> Result<CheckedTopic, TopicError> {
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
        Ok(CheckedTopic::new(pinned, described.message_limit()))
    }
}
