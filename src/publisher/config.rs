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
    /// have the same number. Default 8; 0 counts as 1. Each costs a request at every look.
    pub segments: u32,
    /// The pause after a walk through a segment that found something. Default 20 ms, at least 1 ms.
    pub min_pause: Duration,
    /// The longest pause: it doubles with each walk that found nothing. Default 1 s. It bounds the
    /// delay of an event. A longer one costs fewer requests while nothing happens.
    pub max_pause: Duration,
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
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}
impl PollConfig {
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
    /// Sets the pauses before what failed is tried again.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
}
