//! Where events go, and how the poller looks for them.
use crate::{Backoff, StreamId};
use std::{num::NonZeroU32, sync::Arc, time::Duration};

/// The rule that gives a stream its topic. It goes by the aggregate type, so that a stream never changes its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicRoute {
    /// All to one. The default, to `GlobalEvents`.
    One(Arc<str>),
    /// Each aggregate type to its own: `<prefix><aggregate type>`.
    ByAggregate {
        /// The beginning of the topics' names; may be empty.
        prefix: String,
    },
}
impl Default for TopicRoute {
    fn default() -> Self {
        Self::One("GlobalEvents".into())
    }
}
impl TopicRoute {
    /// The topic of a stream.
    pub fn topic(&self, stream: &StreamId) -> Arc<str> {
        self.topic_of(stream.aggregate())
    }
    /// The topic of an aggregate type.
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
    /// Commits listed at once. Default 100.
    pub batch: NonZeroU32,
    /// Parts that the list is walked in, a page of each in turn, so that a long backlog in one does not hold up the
    /// others. Default 8; 0 counts as 1. Each costs a request at every look.
    pub segments: u32,
    /// The pause after a walk that found something. Default 20 ms, at least 1 ms.
    pub min_pause: Duration,
    /// The longest pause: it doubles with each walk that found nothing. Default 1 s. It bounds how late an event is sent;
    /// a longer one costs fewer requests while nothing happens.
    pub max_pause: Duration,
    /// The pause before a stream that failed, or a store that does not answer, is tried again. Default: up to 1 s, growing
    /// to 60 s.
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
    /// Sets in how many parts the list is walked.
    #[must_use]
    pub const fn with_segments(mut self, segments: u32) -> Self {
        self.segments = segments;
        self
    }
    /// Sets the shortest and the longest pause between walks; a longest below the shortest counts as the shortest.
    #[must_use]
    pub const fn with_pauses(mut self, shortest: Duration, longest: Duration) -> Self {
        (self.min_pause, self.max_pause) = (shortest, longest);
        self
    }
    /// Sets how long what failed is left alone.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
}
