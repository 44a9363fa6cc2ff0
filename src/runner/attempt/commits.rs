//! The commits that a replay has read from the event store.
use super::{Attempt, Gap, HandlerError, HistoryForked, Outcome, Progress, failed};
use crate::{
    EventHeader, RecordedEvent, StreamId, Timestamp, Version,
    ports::Commit,
    runner::{
        machine::FailureOf,
        step::{Arrived, Step, next_step},
    },
};
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

/// The part of the history that a filtered replay repeats. Each `None` stands for everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Only {
    /// The names of event types, as the processor knows them.
    pub(crate) events: Option<Arc<HashSet<String>>>,
    /// The streams.
    pub(crate) streams: Option<Arc<HashSet<StreamId>>>,
    /// The aggregate types.
    pub(crate) aggregates: Option<Arc<HashSet<String>>>,
    /// The first time of events that are repeated.
    pub(crate) from: Option<Timestamp>,
    /// The first time after those of events that are repeated.
    pub(crate) until: Option<Timestamp>,
}

impl Only {
    /// Returns true if events of this stream may be repeated.
    pub(crate) fn has_stream(&self, stream: &StreamId) -> bool {
        let is_stream = self.streams.as_ref().is_none_or(|of| of.contains(stream));
        let aggregates = self.aggregates.as_ref();
        is_stream && aggregates.is_none_or(|of| of.contains(stream.aggregate()))
    }
    /// Returns true if an event with this header may be repeated, whatever its type.
    pub(super) fn has_time(&self, header: &EventHeader) -> bool {
        let at = header.recorded_at;
        self.from.is_none_or(|from| from <= at) && self.until.is_none_or(|until| at < until)
    }
    /// Returns true if events of this type are repeated. The name is that of the present build.
    pub(super) fn has_event(&self, name: &str) -> bool {
        self.events.as_ref().is_none_or(|of| of.contains(name))
    }
}

impl Attempt {
    /// Handles the events of commits that are not in the read model yet. What is missing before a
    /// commit is read from the event store first.
    pub(super) async fn take_commits(&mut self, commits: &[Arc<Commit>]) -> (usize, Outcome) {
        if let Err(failed) = self.begin_commits(commits).await {
            return failed;
        }
        for (at, commit) in commits.iter().enumerate() {
            if at > 0 && self.signals.is_to_finish() {
                break;
            }
            if let Err(failed) = self.take_commit(at, commit).await {
                // What comes before it counts as done, and still waits for a call of the handler.
                return self.handle_pending().await.err().unwrap_or(failed);
            }
        }
        match self.handle_pending().await {
            Ok(()) => (commits.len(), Outcome::Done),
            Err(failed) => failed,
        }
    }

    async fn begin_commits(&mut self, commits: &[Arc<Commit>]) -> Result<(), (usize, Outcome)> {
        let Some(first) = commits.first() else {
            return Ok(());
        };
        // A filtered replay repeats events whatever the position is.
        let asks = self.shared.only.is_none();
        if asks && (self.progress == Progress::Unknown || self.work.is_repeat) {
            let progress = self.look_up(&first.stream).await;
            self.progress = progress
                .map_err(|error| failed(0, first.first_version, error, FailureOf::Store))?;
        }
        if matches!(self.progress, Progress::Unknown | Progress::NoBase) {
            // The generation began with an empty model, so the stream begins with its first event.
            // A scan may meet later events first: what comes before them may be in another
            // segment, which is not that far yet.
            self.progress = Progress::at(Version::NONE, None);
        }
        self.certain = self.progress.clone();
        Ok(())
    }

    async fn take_commit(&mut self, at: usize, commit: &Commit) -> Result<(), (usize, Outcome)> {
        let (partition, stream) = (self.work.partition.clone(), &commit.stream);
        let versions = (commit.first_version, commit.last_version());
        let skips = self.skips_of(stream, versions).await;
        let skips = skips.map_err(|e| failed(at, commit.first_version, e, FailureOf::Store))?;
        for event in commit.recorded() {
            let version = event.header.version;
            let arrived = Arrived {
                version,
                commit_id: commit.id,
                previous: None,
                partition: &partition,
            };
            match next_step(&self.progress, arrived) {
                Step::Duplicate => self.counts.duplicates += 1,
                Step::Handle | Step::Late => {
                    self.handle_stored(at, event, &skips, &partition).await?;
                    self.signals.advance();
                }
                Step::Fill(first, last) => {
                    let gap = Gap {
                        stream,
                        version,
                        partition: &partition,
                    };
                    Box::pin(self.fill(at, gap, first, last)).await?;
                    self.counts.filled += last.get() - first.get() + 1;
                    self.handle_stored(at, event, &skips, &partition).await?;
                    self.signals.advance();
                }
                Step::Fork { followed } => {
                    let error = HistoryForked {
                        stream: stream.clone(),
                        version,
                        followed,
                        found: commit.id,
                    };
                    let of = FailureOf::Event(Box::new(event));
                    return Err(failed(at, version, HandlerError::fatal(error), of));
                }
            }
        }
        Ok(())
    }

    /// Returns true if a filtered replay leaves the event out, by what its header tells.
    pub(super) fn is_left_out(&self, event: &RecordedEvent) -> bool {
        let header = &event.header;
        let only = self.shared.only.as_ref();
        only.is_some_and(|only| !only.has_stream(&header.stream) || !only.has_time(header))
    }
}

/// The versions of streams that operators keep out of the topic, as they are at the start of a
/// replay.
pub(crate) type KnownSkips = Arc<std::collections::HashMap<StreamId, BTreeSet<Version>>>;
