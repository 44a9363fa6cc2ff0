//! The topics that have worked in a process and whose absence counts as an outage for some time.
use foldstream::ports::{MessageBusError, RefusedKind};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The time for which a topic that has worked before may be unknown, as in the Kafka adapter.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// The topics that have worked, shared by a message bus and its consumers.
///
/// The value is the time since which a topic is unknown, or `None` while the topic works.
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

    /// Returns the error of a call to brokers that do not know the topic.
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
