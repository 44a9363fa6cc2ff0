//! The topics that this process has checked, and the streams that are being published to them.
use super::{TopicError, pace::Pace};
use crate::kafka_partition;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A panic elsewhere leaves these values whole: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer of a check.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckedTopic {
    /// The pinned number of partitions.
    partitions: u32,
    /// The most bytes that a record may have, if the bus says so.
    pub(super) limit: Option<u64>,
    checked_at: Instant,
}
impl CheckedTopic {
    /// The time after which the pin is read again.
    const HOLDS: Duration = Duration::from_secs(60);

    pub(super) fn new(partitions: u32, limit: Option<u64>) -> Self {
        Self {
            partitions,
            limit,
            checked_at: Instant::now(),
        }
    }
    /// Returns the partition of a key. It follows from the pinned number, so a topic that grows
    /// moves no stream.
    pub(super) fn partition_of(&self, key: &[u8]) -> u32 {
        kafka_partition(key, self.partitions)
    }
    fn is_fresh(&self) -> bool {
        self.checked_at.elapsed() < Self::HOLDS
    }
}

/// The state of one topic in this process.
#[derive(Debug, Default)]
pub(super) struct Topic {
    known: Mutex<Known>,
    /// Held during a check, so that one at a time asks, and while a number of partitions is
    /// accepted.
    checking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    checked: Option<CheckedTopic>,
    /// Streams that are being published to the topic.
    publishing: usize,
    pace: Pace,
}

impl Topic {
    /// Returns the last answer of `check`, or asks again if that answer is older than a minute.
    ///
    /// Those who ask during the first check wait for it. Those who ask during a later one get the
    /// last answer: the number of partitions is pinned, so an answer that is a little old sends no
    /// record elsewhere.
    pub(super) async fn checked(
        &self,
        check: impl AsyncFnOnce() -> Result<CheckedTopic, TopicError>,
    ) -> Result<CheckedTopic, TopicError> {
        let last = lock(&self.known).checked;
        let _one = match last {
            Some(last) if last.is_fresh() => return Ok(last),
            Some(last) => match self.checking.try_lock() {
                Ok(one) => one,
                Err(_) => return Ok(last),
            },
            None => self.checking.lock().await,
        };
        if let Some(last) = lock(&self.known).checked.filter(CheckedTopic::is_fresh) {
            return Ok(last);
        }
        let answer = match (check().await, last) {
            (Err(error), Some(last)) if error.is_transient() => {
                tracing::warn!(
                    error = crate::chain(&error),
                    "the topic cannot be checked again; the last check counts for another minute"
                );
                Ok(CheckedTopic::new(last.partitions, last.limit))
            }
            (answer, _) => answer,
        };
        lock(&self.known).checked = answer.as_ref().ok().copied();
        answer
    }

    /// Returns the most messages of the next run to the topic.
    pub(super) fn run_limit(&self) -> usize {
        lock(&self.known).pace.limit()
    }
    /// Takes note of a run of this number of durable messages.
    pub(super) fn on_run(&self, durable: usize, took: Duration) {
        let mut known = lock(&self.known);
        known.pace = known.pace.after(durable, took);
    }

    /// Makes the next one who asks check the topic.
    pub(super) fn forget(&self) {
        lock(&self.known).checked = None;
    }

    pub(super) fn is_checked(&self) -> bool {
        lock(&self.known).checked.is_some()
    }

    /// Notes that a stream is being published, and returns what is known now: another number of
    /// partitions may have been accepted since the stream's worker asked.
    fn enter(topic: &Arc<Self>) -> Option<(Publishing, CheckedTopic)> {
        let mut known = lock(&topic.known);
        let checked = known.checked?;
        known.publishing += 1;
        drop(known);
        Some((Publishing(topic.clone()), checked))
    }

    /// Runs `accept` while nobody publishes to the topic or begins to.
    pub(super) async fn while_idle<T>(
        &self,
        name: &Arc<str>,
        accept: impl AsyncFnOnce() -> Result<T, TopicError>,
    ) -> Result<T, TopicError> {
        let _alone = self.checking.lock().await;
        {
            let mut known = lock(&self.known);
            if known.publishing > 0 {
                return Err(TopicError::StillPublishing {
                    topic: name.clone(),
                    streams: known.publishing,
                });
            }
            // From here on whoever wants to publish must check first, and waits until this is done.
            known.checked = None;
        }
        accept().await
    }
}

/// A stream that is being published to a topic, until it is dropped.
#[derive(Debug)]
pub(super) struct Publishing(Arc<Topic>);
impl Drop for Publishing {
    fn drop(&mut self) {
        lock(&self.0.known).publishing -= 1;
    }
}

/// The states of all topics, by name.
#[derive(Debug, Default)]
pub(super) struct Topics(Mutex<BTreeMap<Arc<str>, Arc<Topic>>>);

impl Topics {
    pub(super) fn get(&self, name: &Arc<str>) -> Arc<Topic> {
        lock(&self.0).entry(name.clone()).or_default().clone()
    }
    /// Returns true if the last check of the topic has succeeded.
    pub(super) fn is_checked(&self, name: &Arc<str>) -> bool {
        lock(&self.0)
            .get(name)
            .is_some_and(|topic| topic.is_checked())
    }
    /// Notes that a stream is being published to the topic; none if the topic must be checked
    /// first.
    pub(super) fn enter(&self, name: &Arc<str>) -> Option<(Publishing, CheckedTopic)> {
        Topic::enter(&self.get(name))
    }
}
