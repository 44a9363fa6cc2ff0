//! The topics that have worked in a process, whose absence counts as an outage for a time.
use foldstream::ports::{MessageBusError, RefusedKind};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The time for which a topic that has worked before may be unknown, as in the Kafka adapter.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// What a message bus and its consumers share. Of each topic that has worked: the time since which it is unknown.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownTopics(Arc<Mutex<BTreeMap<Arc<str>, Option<Instant>>>>);

impl KnownTopics {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Option<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a call has used a topic.
    pub(super) fn worked(&self, topic: &str) {
        let mut topics = self.lock();
        match topics.get_mut(topic) {
            Some(unknown_since) => *unknown_since = None,
            None => drop(topics.insert(topic.into(), None)),
        }
    }

    /// The error of a call that meets brokers that do not know the topic.
    pub(super) fn unknown(&self, topic: &str) -> MessageBusError {
        let now = Instant::now();
        let is_outage = self.lock().get_mut(topic).is_some_and(|unknown_since| {
            let since = unknown_since.get_or_insert(now);
            now < *since + PATIENCE
        });
        let source =
            format!("injected by the test: the brokers do not know the topic {topic}").into();
        if is_outage {
            return MessageBusError::Unavailable { source };
        }
        MessageBusError::Refused {
            kind: RefusedKind::MissingTopic,
            reason: format!("topic {topic} does not exist: create it first"),
            source,
        }
    }
}
