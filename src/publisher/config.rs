//! The topics of streams, and the settings of a poller.
use crate::{Backoff, StreamId};
use std::{num::NonZeroU32, sync::Arc, time::Duration};

/// The rule that gives a stream its topic. It goes by the aggregate type, so that a stream never
/// changes its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicRoute {
    /// All streams have this topic. The default is `GlobalEvents`.
    One(Arc<str>),
    /// Each aggregate type has a topic of its own: `<prefix><aggregate type>`.
    ByAggregate {
        /// The beginning of the topics' names, which may be empty.
        prefix: String,
    },
}
impl Default for TopicRoute {
    fn default() -> Self {
        Self::One("GlobalEvents".into())
    }
}
impl TopicRoute {
    /// Returns the topic of a stream.
    pub fn topic(&self, stream: &StreamId) -> Arc<str> {
        self.topic_of(stream.aggregate())
    }
    /// Returns the topic of an aggregate type.
    pub fn topic_of(&self, aggregate: &str) -> Arc<str> {
        match self {
            Self::One(topic) => topic.clone(),
            Self::ByAggregate { prefix } => format!("{prefix}{aggregate}").into(),
        }
    }
}

/// The configuration of a poller, which looks for unpublished commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollConfig {
    /// The number of commits that are listed at once. Default 100.
    pub batch: NonZeroU32,
    /// The number of segments of the list. A page of each is read in turn, so that a long backlog
    /// in one does not hold up the others. Pollers of one store share the segments, so they must
    /// have the same number. Default 8; 0 counts as 1, and more than 1,000 as 1,000. Each costs a
    /// request at every look, and a write at every renewal of its lease. More pollers than
    /// segments are of no use but as a reserve.
    pub segments: u32,
    /// The pause after a walk through a segment that found something. Default 20 ms, at least 1 ms.
    /// Each pause is between half of this time and all of it, so that processes do not look in
    /// step.
    pub min_pause: Duration,
    /// The longest pause: it doubles with each walk that found nothing. Default 1 s. It bounds the
    /// delay of an event. A longer one costs fewer requests while nothing happens.
    pub max_pause: Duration,
    /// The time after which other pollers take over the segments of one that has died. Default
    /// 15 s, at least 30 ms. A poller renews its leases three times in it: with a longer one fewer
    /// writes are needed, and the streams of a dead poller wait longer.
    pub lease: Duration,
    /// The pause before a stream that failed, or a store that does not answer, is tried again.
    /// Default: up to 1 s, growing to 60 s.
    pub backoff: Backoff,
}
impl Default for PollConfig {
    fn default() -> Self {
        const BATCH: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
        Self {
            batch: BATCH,
            segments: 8,
            min_pause: Duration::from_millis(20),
            max_pause: Duration::from_secs(1),
            lease: Duration::from_secs(15),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}
impl PollConfig {
    const MAX_SEGMENTS: u32 = 1000;

    /// Sets how many commits are listed at once.
    #[must_use]
    pub const fn with_batch(mut self, commits: NonZeroU32) -> Self {
        self.batch = commits;
        self
    }
    /// Sets the number of segments of the list.
    #[must_use]
    pub const fn with_segments(mut self, segments: u32) -> Self {
        self.segments = segments;
        self
    }
    /// Sets the shortest and the longest pause between walks. A longest pause below the shortest
    /// counts as the shortest.
    #[must_use]
    pub const fn with_pauses(mut self, shortest: Duration, longest: Duration) -> Self {
        (self.min_pause, self.max_pause) = (shortest, longest);
        self
    }
    /// Sets the time after which the segments of a dead poller are taken over.
    #[must_use]
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }
    /// Returns these settings, each within its limits.
    pub(super) fn within_limits(mut self) -> Self {
        self.segments = self.segments.clamp(1, Self::MAX_SEGMENTS);
        self.min_pause = self.min_pause.max(Duration::from_millis(1));
        self.max_pause = self.max_pause.max(self.min_pause);
        self.lease = self.lease.max(Duration::from_millis(30));
        self
    }
    /// Sets the pauses before what failed is tried again.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
}
