//! The results of publishing.
use super::{PublishError, notice::Notices};
use crate::{StreamId, Version};
use std::collections::BTreeMap;

/// The result of one call, from which its trigger decides which notices to forget.
///
/// A trigger may forget all notices, except those at and after the
/// [`notice`](StreamFailure::notice) of each failed stream that is not
/// [dirty](StreamFailure::is_dirty). A trigger that can only repeat everything from one place on
/// uses [`first_to_keep`](Self::first_to_keep).
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct PublishReport {
    /// The streams whose notices are all covered, and the version up to which the bus has
    /// acknowledged each.
    pub published: BTreeMap<StreamId, Version>,
    /// The number of records that the bus has acknowledged, those of failed streams included.
    pub messages: u64,
    /// The streams that are not up to date, ordered by their ids.
    pub failed: Vec<StreamFailure>,
}

impl PublishReport {
    /// Returns the place, among the notices of the call, of the first notice that the trigger must
    /// keep; `None` if it may forget all of them.
    pub fn first_to_keep(&self) -> Option<usize> {
        let kept = self.failed.iter().filter(|failure| !failure.is_dirty);
        kept.filter_map(|failure| failure.notice).min()
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        self.messages += outcome.messages;
        match outcome.result {
            Ok(()) => {
                self.published.insert(outcome.stream, outcome.version);
            }
            Err(error) => {
                self.published.remove(&outcome.stream);
                self.failed.push(StreamFailure {
                    stream: outcome.stream,
                    notice: outcome.uncovered,
                    is_dirty: outcome.is_dirty,
                    error,
                });
            }
        }
    }
}

/// A stream that could not be brought up to date.
#[derive(Debug)]
#[non_exhaustive]
pub struct StreamFailure {
    /// The stream that is not up to date.
    pub stream: StreamId,
    /// The place, among the notices of the call, of the first one that the watermark does not
    /// cover. `None` if the publisher has found the stream by itself, or if all notices are covered
    /// and only markers are left.
    pub notice: Option<usize>,
    /// True if the stream is durably noted as dirty. A sweep tries it again, so that its notices
    /// may be forgotten.
    pub is_dirty: bool,
    /// The reason why the stream is not up to date.
    pub error: PublishError,
}

/// The result of a poller, once it was shut down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollReport {
    /// The number of records that the bus has acknowledged.
    pub messages: u64,
    /// The number of times that a stream was brought up to date.
    pub brought_up: u64,
    /// The number of times that a stream was cut short, by the shutdown or because its segment went
    /// to another poller. Such a stream is not up to date. Its markers stay, so that the next
    /// poller finds it.
    pub interrupted: u64,
    /// The number of segments that another poller has taken over, since this one had not renewed
    /// its lease in time. Events of such a segment may have been sent by both.
    pub leases_lost: u64,
    /// The number of times that a stream failed.
    pub failures: u64,
    /// The streams that still fail, and how often each has failed in a row. Their markers stay, so
    /// that the next poller finds them.
    pub stuck: BTreeMap<StreamId, u32>,
}

/// The result of the work on one stream.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) stream: StreamId,
    /// The version of the watermark.
    pub(super) version: Version,
    pub(super) messages: u64,
    /// The place of the first notice that the watermark does not cover.
    pub(super) uncovered: Option<usize>,
    pub(super) is_dirty: bool,
    pub(super) result: Result<(), PublishError>,
}

impl Outcome {
    /// Returns the outcome of a stream for which there was no time.
    pub(super) fn not_begun(notices: &Notices) -> Self {
        let stream = notices.stream.clone();
        let version = Version::NONE;
        Self {
            result: Err(PublishError::Interrupted {
                stream: stream.clone(),
                version,
            }),
            stream,
            version,
            messages: 0,
            uncovered: notices.first_uncovered(version),
            is_dirty: false,
        }
    }
}
