//! The decisions about one batch of records, without any I/O.
//!
//! # Why is a failure not always reported?
//! Lambda repeats everything from the lowest reported record on, until it succeeds. A stream that
//! cannot be published would hold up all other streams of its shard, until their records expire. If
//! at least one record reached the bus, the bus works, and the failing streams are set aside in
//! durable rows for the sweep. If nothing did, the bus or the table is away, and the batch is to
//! come again.
use crate::event::{SequenceNumber, StreamRecord};
use foldstream::{
    StreamId, Timestamp, Version,
    publisher::{DirtyReason, Notice, PublishReport},
};
use std::{collections::BTreeMap, time::Duration};

/// A batch that was read and judged.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The number of records, those that concern no publisher included.
    pub(crate) records: usize,
    /// The streams with records that are too old, which are set aside.
    old: BTreeMap<StreamId, Pending>,
    /// The notices of the other streams, in the order of their sequence numbers.
    notices: Vec<(SequenceNumber, Notice)>,
}

/// A stream with records that are not covered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// The lowest sequence number of such a record.
    pub(crate) first: SequenceNumber,
    /// The highest version that a record names.
    pub(crate) known: Version,
    /// The reason with which the stream is set aside.
    pub(crate) why: DirtyReason,
}

impl Batch {
    /// Judges records, which are ordered by sequence number, by their age.
    pub(crate) fn new(records: Vec<StreamRecord>, now: Timestamp, max_age: Duration) -> Self {
        let is_old = |record: &StreamRecord| {
            let written = record.written;
            written.is_some_and(|written| now.since(written) > max_age)
        };
        let mut batch = Self {
            records: records.len(),
            ..Self::default()
        };
        for record in &records {
            if let Some(notice) = record.notice.as_ref().filter(|_| is_old(record)) {
                let pending = Pending {
                    first: record.sequence.clone(),
                    known: Version::NONE,
                    why: DirtyReason::Old,
                };
                let old = batch.old.entry(notice.stream().clone());
                let _ = old.or_insert(pending);
            }
        }
        for record in records {
            let Some(notice) = record.notice else {
                continue;
            };
            match batch.old.get_mut(notice.stream()) {
                Some(pending) => {
                    // Younger records of such a stream are set aside with it.
                    pending.first = pending.first.clone().min(record.sequence);
                    pending.known = pending.known.max(last_version(&notice));
                }
                None => batch.notices.push((record.sequence, notice)),
            }
        }
        batch
    }

    /// Returns the streams that are set aside without an attempt.
    pub(crate) const fn old(&self) -> &BTreeMap<StreamId, Pending> {
        &self.old
    }
    /// Returns the notices that are to be published.
    pub(crate) fn notices(&self) -> impl Iterator<Item = Notice> + '_ {
        self.notices.iter().map(|(_, notice)| notice.clone())
    }

    /// Returns the streams that a publisher could not bring up to date and has not noted as dirty,
    /// with what is to happen to them.
    pub(crate) fn after(&self, report: &PublishReport) -> Failures {
        let mut failures = Failures {
            has_succeeded: report.messages > 0,
            ..Failures::default()
        };
        let mut known: BTreeMap<&StreamId, Version> = BTreeMap::new();
        for (_, notice) in &self.notices {
            let highest = known.entry(notice.stream()).or_default();
            *highest = last_version(notice).max(*highest);
        }
        for failure in report.failed.iter().filter(|failure| !failure.is_dirty) {
            // Without a place, all notices are covered.
            let first = failure.notice.and_then(|place| self.notices.get(place));
            let Some((first, _)) = first else {
                continue;
            };
            let pending = Pending {
                first: first.clone(),
                known: known.get(&failure.stream).copied().unwrap_or_default(),
                why: DirtyReason::Backlog,
            };
            failures.streams.insert(failure.stream.clone(), pending);
        }
        failures
    }
}

/// The streams of a batch that are neither up to date nor dirty.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// True if at least one record was acknowledged in this invocation.
    pub(crate) has_succeeded: bool,
    pub(crate) streams: BTreeMap<StreamId, Pending>,
}

/// Returns the last version of a notice, as far as the notice tells.
fn last_version(notice: &Notice) -> Version {
    match notice {
        Notice::Commit(commit) => commit.last_version(),
        Notice::Key(key) => key.first_version,
        // A notice of a later build names a stream, at least.
        _ => Version::NONE,
    }
}
