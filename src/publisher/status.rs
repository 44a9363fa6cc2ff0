//! The status of a publisher, as values.
use super::PublishError;
use crate::{StreamId, Timestamp, Version};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The state of a publisher and its clones at one moment. It is about this process only, and asking
/// for it reads nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherStatus {
    /// The number of records that the bus has acknowledged since the process started, duplicates
    /// included.
    pub published: u64,
    /// The number of notices whose commits were published already, so that nothing was sent.
    pub duplicates_suppressed: u64,
    /// The number of streams that are being published now.
    pub working: usize,
    /// The number of events that are known to wait: those between the watermark and the highest
    /// version that a notice names or that was read, of the streams that are being published now.
    pub lag: u64,
    /// The age of the oldest commit that was read and is not acknowledged; `None` if there is none.
    pub oldest_unpublished: Option<Duration>,
    /// The number of streams that this process has set aside as dirty and has not published since.
    pub dirty: usize,
    /// The topics that this process has published to.
    pub topics: BTreeMap<Arc<str>, TopicStatus>,
}

/// The part of a publisher's status that concerns one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicStatus {
    /// The number of acknowledged records.
    pub published: u64,
    /// The size of the acknowledged records in bytes.
    pub bytes: u64,
    /// The number of notices whose commits were published already.
    pub duplicates_suppressed: u64,
    /// The number of times that a stream could not be brought up to date.
    pub failures: u64,
    /// The number of events that are known to wait.
    pub lag: u64,
    /// The time of the last acknowledgement; `None` if there was none.
    pub last_acknowledged: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Inner {
    topics: BTreeMap<Arc<str>, TopicStatus>,
    working: HashMap<StreamId, AtWork>,
}

#[derive(Debug)]
struct AtWork {
    topic: Arc<str>,
    named: Version,
    acknowledged: Version,
    oldest: Option<Timestamp>,
}
impl AtWork {
    fn lag(&self) -> u64 {
        self.named.get().saturating_sub(self.acknowledged.get())
    }
}

/// The counters behind [`PublisherStatus`].
#[derive(Debug, Default)]
pub(super) struct Statuses(Mutex<Inner>);

impl Statuses {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the counters whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn topic(&self, topic: &Arc<str>, change: impl FnOnce(&mut TopicStatus)) {
        change(self.lock().topics.entry(topic.clone()).or_default());
    }

    /// Notes that a stream is being published.
    pub(super) fn begin(
        self: &Arc<Self>,
        stream: &StreamId,
        topic: &Arc<str>,
        named: Version,
    ) -> Working {
        let at_work = AtWork {
            topic: topic.clone(),
            named,
            // Until the watermark is known, nothing is said about the lag.
            acknowledged: named,
            oldest: None,
        };
        self.lock().working.insert(stream.clone(), at_work);
        Working {
            statuses: self.clone(),
            stream: stream.clone(),
        }
    }
    pub(super) fn suppressed(&self, topic: &Arc<str>, notices: u64) {
        if notices > 0 {
            self.topic(topic, |status| status.duplicates_suppressed += notices);
        }
    }
    pub(super) fn acknowledged(&self, topic: &Arc<str>, records: u64, bytes: u64, at: Timestamp) {
        if records > 0 {
            self.topic(topic, |status| {
                status.published += records;
                status.bytes += bytes;
                status.last_acknowledged = Some(at);
            });
        }
    }
    pub(super) fn failed(&self, topic: &Arc<str>, error: &PublishError) {
        if !matches!(error, PublishError::Interrupted { .. }) {
            self.topic(topic, |status| status.failures += 1);
        }
    }

    pub(super) fn read(&self, dirty: usize, now: Timestamp) -> PublisherStatus {
        let inner = self.lock();
        let mut topics = inner.topics.clone();
        for at_work in inner.working.values() {
            topics.entry(at_work.topic.clone()).or_default().lag += at_work.lag();
        }
        let oldest = inner.working.values().filter_map(|at| at.oldest).min();
        let age = oldest.map(|at| now.since(at));
        total(topics, inner.working.len(), age, dirty)
    }
}

/// Returns the status that follows from the numbers of the topics.
pub(super) fn total(
    topics: BTreeMap<Arc<str>, TopicStatus>,
    working: usize,
    oldest_unpublished: Option<Duration>,
    dirty: usize,
) -> PublisherStatus {
    let sum = |of: fn(&TopicStatus) -> u64| topics.values().map(of).sum();
    PublisherStatus {
        published: sum(|topic| topic.published),
        duplicates_suppressed: sum(|topic| topic.duplicates_suppressed),
        working,
        lag: sum(|topic| topic.lag),
        oldest_unpublished,
        dirty,
        topics,
    }
}

/// The note that a stream is being published, until it is dropped.
#[derive(Debug)]
pub(super) struct Working {
    statuses: Arc<Statuses>,
    stream: StreamId,
}
impl Working {
    /// Notes how far the stream is, the version up to which it was read, and the time of its
    /// oldest commit that waits.
    pub(super) fn at(&self, acknowledged: Version, read: Version, oldest: Option<Timestamp>) {
        if let Some(at_work) = self.statuses.lock().working.get_mut(&self.stream) {
            at_work.named = at_work.named.max(read);
            (at_work.acknowledged, at_work.oldest) = (acknowledged, oldest);
        }
    }
}
impl Drop for Working {
    fn drop(&mut self) {
        self.statuses.lock().working.remove(&self.stream);
    }
}
