//! The results of publishing.
use super::PublishError;
use crate::{StreamId, Version};
use std::collections::BTreeMap;

/// The result of one call, from which its trigger decides what to forget: every notice, save those at and after the
/// named one of each failed stream.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct PublishReport {
    /// The streams whose notices are all covered, and the version that the bus has acknowledged of each.
    pub published: BTreeMap<StreamId, Version>,
    /// Records that the bus acknowledged, also those of failed streams.
    pub messages: u64,
    /// The streams that are not up to date.
    pub failed: Vec<StreamFailure>,
}

/// A stream that could not be brought up to date.
#[derive(Debug)]
#[non_exhaustive]
pub struct StreamFailure {
    /// The stream.
    pub stream: StreamId,
    /// Place, among the notices of the call, of the first one that is not covered by the watermark. `None` where the
    /// publisher found the stream by itself, or where all are covered and only their markers are left.
    pub notice: Option<usize>,
    /// The error.
    pub error: PublishError,
}

/// The result of a poller, once it was shut down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollReport {
    /// Records that the bus acknowledged.
    pub messages: u64,
    /// Times that a stream was brought up to date.
    pub brought_up: u64,
    /// Times that the shutdown cut a stream short. Such a stream is not up to date; its markers stay, so the next poller
    /// finds it.
    pub interrupted: u64,
    /// Times that a stream failed.
    pub failures: u64,
    /// The streams that still fail, and how often each has failed in a row. Their markers stay: the next poller finds them.
    pub stuck: BTreeMap<StreamId, u32>,
}

/// What became of one ring of one stream.
#[derive(Debug)]
pub(super) struct Rung {
    pub(super) stream: StreamId,
    /// The watermark.
    pub(super) version: Version,
    pub(super) messages: u64,
    /// The first notice above the watermark.
    pub(super) uncovered: Option<usize>,
    pub(super) result: Result<(), PublishError>,
}

impl PublishReport {
    pub(super) fn add(&mut self, rung: Rung) {
        self.messages += rung.messages;
        match rung.result {
            Ok(()) => {
                self.published.insert(rung.stream, rung.version);
            }
            Err(error) => {
                self.published.remove(&rung.stream);
                self.failed.push(StreamFailure {
                    stream: rung.stream,
                    notice: rung.uncovered,
                    error,
                });
            }
        }
    }
}
