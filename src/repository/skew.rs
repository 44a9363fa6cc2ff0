//! Warnings about clocks that are far apart.
use crate::{StreamHead, StreamId, Timestamp};
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Warns of streams whose newest commit was recorded long after the present, once per stream.
///
/// The times of a stream never decrease. Its next commits therefore get the time of such a head
/// until the clock passes it. Nothing is lost and nothing is refused, but a reader who asks when
/// something happened gets a wrong answer.
#[derive(Debug, Default)]
pub(super) struct SkewWarnings(Mutex<BTreeSet<StreamId>>);

impl SkewWarnings {
    /// The smallest difference that is worth a warning: more than ordinary clock skew or a wrong
    /// time zone can cause.
    const LIMIT: Duration = Duration::from_secs(24 * 3600);
    /// The largest number of streams that are remembered. With more, the clock is wrong, and the
    /// log has said so often enough.
    const MAX_STREAMS: usize = 1_000;

    pub(super) fn check(&self, head: &StreamHead, now: Timestamp) {
        let Some(commit_id) = head.commit_id() else {
            return;
        };
        let recorded_at = head.recorded_at();
        let ahead = recorded_at.since(now);
        if ahead <= Self::LIMIT || !self.is_first(head.stream()) {
            return;
        }
        tracing::warn!(
            stream = %head.stream(), version = %head.version(), %commit_id, %recorded_at, %now, ?ahead,
            "the stream's newest commit was recorded more than a day after the present, and its next commits get that time: set the clock of this host or of the one that wrote the commit"
        );
    }

    fn is_first(&self, stream: &StreamId) -> bool {
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        warned.len() < Self::MAX_STREAMS && warned.insert(stream.clone())
    }
}
