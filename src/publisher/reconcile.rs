//! The reconciliation: the tails of all streams against their watermarks.
use super::{DirtyReason, Publisher, StreamFailure, budget::Budget, notice::Notices};
use crate::{
    StreamHead, StreamId, Timestamp, Version,
    control::{ReconcileRow, ReconcileRun},
    hex::{from_hex, to_hex},
    ports::{ControlStoreError, EventStoreError, ScanCursor, ScanItems, ScanScope, Segment},
    resilience::{Failure, Retryable},
};
use std::{collections::BTreeMap, fmt, num::NonZeroU32, str::FromStr};

/// The most that one call of [`Publisher::reconcile`] reads. It ends after the first page that
/// passes one of the limits.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReconcileBudget {
    /// The most heads of commits. Default: no limit.
    pub max_heads: Option<u64>,
    /// The most read units of the backend, if it reports them. Default: no limit.
    pub max_read_units: Option<f64>,
    /// The number of heads that are read at once. Default 1,000.
    pub page: NonZeroU32,
}
impl Default for ReconcileBudget {
    fn default() -> Self {
        const PAGE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
        Self {
            max_heads: None,
            max_read_units: None,
            page: PAGE,
        }
    }
}
impl ReconcileBudget {
    /// Sets the most heads of commits.
    #[must_use]
    pub const fn with_max_heads(mut self, heads: u64) -> Self {
        self.max_heads = Some(heads);
        self
    }
    /// Sets the most read units of the backend.
    #[must_use]
    pub const fn with_max_read_units(mut self, units: f64) -> Self {
        self.max_read_units = Some(units);
        self
    }
    /// Sets the number of heads that are read at once.
    #[must_use]
    pub const fn with_page(mut self, heads: NonZeroU32) -> Self {
        self.page = heads;
        self
    }
    fn is_used_up(&self, heads: u64, units: f64) -> bool {
        self.max_heads.is_some_and(|most| heads >= most)
            || self.max_read_units.is_some_and(|most| units >= most)
    }
}

/// The place at which a reconciliation continues, as text that can be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReconcileCursor(ScanCursor);
impl fmt::Display for ReconcileCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(self.0.as_bytes()))
    }
}
impl FromStr for ReconcileCursor {
    type Err = InvalidReconcileCursor;

    fn from_str(text: &str) -> Result<Self, InvalidReconcileCursor> {
        let bytes = from_hex(text).ok_or_else(|| InvalidReconcileCursor { text: text.into() })?;
        Ok(Self(ScanCursor::from_bytes(bytes)))
    }
}

/// The error returned for a text that is not a [`ReconcileCursor`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no cursor of a reconciliation: pass on the cursor of the last report")]
pub struct InvalidReconcileCursor {
    text: String,
}

/// The result of one call of [`Publisher::reconcile`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ReconcileReport {
    /// The number of heads of commits that were read.
    pub heads: u64,
    /// The number of times that a stream was found behind its tail.
    pub behind: u64,
    /// The number of events that those streams lacked.
    pub events_behind: u64,
    /// The number of records that the bus has acknowledged.
    pub messages: u64,
    /// The streams that could not be published. All of them are noted as dirty.
    pub failed: Vec<StreamFailure>,
    /// The read units of the scan, as far as the backend reports them.
    pub read_units: f64,
    /// The place at which the next call continues; `None` once all streams were compared.
    pub next: Option<ReconcileCursor>,
}

impl ReconcileReport {
    /// Returns the numbers of the whole reconciliation of which this call is a part.
    fn run(&self, before: Option<ReconcileRun>, since: Timestamp, now: Timestamp) -> ReconcileRun {
        let (since, heads, behind, events, failed) = before.map_or((since, 0, 0, 0, 0), |run| {
            (run.since, run.heads, run.behind, run.events, run.failed)
        });
        ReconcileRun {
            since,
            updated: now,
            heads: heads + self.heads,
            behind: behind + self.behind,
            events: events + self.events_behind,
            failed: failed + self.failed.len() as u64,
            cursor: self.next.as_ref().map(ToString::to_string),
        }
    }
}

/// The error returned by a reconciliation that could not be continued. What was published stays
/// published, and the call may be repeated from the last cursor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReconcileError {
    /// The tails of the streams cannot be read.
    #[error("the tails of the streams cannot be read")]
    Store(#[from] EventStoreError),
    /// The watermarks cannot be read, or a stream cannot be noted as dirty.
    #[error("the rows of the publisher cannot be read or written")]
    Control(#[from] ControlStoreError),
}

impl Publisher {
    /// Compares the tails of the streams with their watermarks, and publishes the streams that are
    /// behind. It makes up for every notice that was lost, and finds histories that have forked.
    ///
    /// It scans the events, so call it daily, or when a trigger may have lost notices. One call
    /// reads up to the budget, and the next one continues after
    /// [`ReconcileReport::next`].
    ///
    /// # Errors
    /// - [`ReconcileError::Store`] if the scan fails, or if the cursor is of another store.
    /// - [`ReconcileError::Control`] if rows cannot be read or written.
    pub async fn reconcile(
        &self,
        after: Option<ReconcileCursor>,
        budget: &ReconcileBudget,
    ) -> Result<ReconcileReport, ReconcileError> {
        let mut report = ReconcileReport::default();
        let mut after = after.map(|cursor| cursor.0);
        loop {
            let scan = || {
                let (scope, page) = (ScanScope::Tails, budget.page);
                self.store.scan(Segment::ALL, after.clone(), scope, page)
            };
            let page = scan
                .retry(self.retry)
                .when(Failure::failure_class)
                .run()
                .await?;
            report.read_units += page.read_units.unwrap_or(0.0);
            let heads = heads_of(page.items);
            report.heads += heads.len() as u64;
            self.reconcile_heads(tails(heads), &mut report).await?;
            after = page.next;
            report.next = after.clone().map(ReconcileCursor);
            if after.is_none() || budget.is_used_up(report.heads, report.read_units) {
                return Ok(report);
            }
        }
    }

    /// Continues the reconciliation where the last call of any process has ended, as
    /// [`reconcile`](Self::reconcile) does, and stores how far it is. Once all streams were
    /// compared, the next call begins again. An [`Operator`](crate::operate::Operator) shows what
    /// was found.
    ///
    /// Two processes at once do the same work, and lose nothing by it.
    ///
    /// # Errors
    /// - [`ReconcileError::Store`] if the scan fails.
    /// - [`ReconcileError::Control`] if rows cannot be read or written.
    pub async fn reconcile_next(
        &self,
        budget: &ReconcileBudget,
    ) -> Result<ReconcileReport, ReconcileError> {
        let read = || self.rows.reconcile_get();
        let seen = read
            .retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await?;
        let known = seen.as_ref().map(|row| row.value.clone());
        let known = known.unwrap_or_default();
        let cursor = known.running.as_ref().and_then(|run| run.cursor.clone());
        let cursor = cursor.and_then(|text| text.parse().ok());
        let continues = cursor.is_some();
        let since = self.clock.now();
        let report = match self.reconcile(cursor, budget).await {
            // The cursor is of another store: a backup was restored meanwhile.
            Err(ReconcileError::Store(EventStoreError::Invalid { .. })) if continues => {
                self.reconcile(None, budget).await?
            }
            report => report?,
        };
        let before = known.running.filter(|_| continues);
        let run = report.run(before, since, self.clock.now());
        let row = match report.next {
            Some(_) => ReconcileRow {
                running: Some(run),
                last: known.last,
            },
            None => ReconcileRow {
                running: None,
                last: Some(run),
            },
        };
        // Another process has written meanwhile: what it has stored is as good.
        let _ = self.rows.reconcile_put(row, seen.as_ref()).await?;
        Ok(report)
    }

    async fn reconcile_heads(
        &self,
        tails: BTreeMap<StreamId, StreamHead>,
        report: &mut ReconcileReport,
    ) -> Result<(), ReconcileError> {
        let read = || self.watermarks.get_many(tails.keys());
        let marks = read
            .retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await?;
        let mut streams = BTreeMap::new();
        for ((stream, head), mark) in tails.iter().zip(marks) {
            let mark = mark.map(|mark| mark.value);
            let version = mark.map_or(Version::NONE, |mark| mark.version);
            let fits = mark.is_some_and(|mark| Some(mark.commit_id) == head.commit_id());
            if version == head.version() && fits {
                continue;
            }
            report.behind += u64::from(version < head.version());
            let lacks = head.version().get().saturating_sub(version.get());
            report.events_behind += lacks;
            // A watermark at or above the head of another commit is a fork, or the stream goes on
            // in another page of the scan. The comparison with its history tells.
            let mut notices = Notices::of_version(stream.clone(), head.version());
            notices.is_to_tail = version >= head.version();
            streams.insert(stream.clone(), notices);
        }
        let known: BTreeMap<_, _> = streams
            .iter()
            .map(|(s, n)| (s.clone(), n.highest()))
            .collect();
        let done = self.publish_all(streams, &Budget::default()).await;
        report.messages += done.messages;
        for failure in &done.failed {
            if failure.is_dirty {
                continue;
            }
            // Nothing else remembers the stream once the scan has passed it.
            let version = known.get(&failure.stream).copied().unwrap_or(Version::NONE);
            self.set_aside(&failure.stream, version, DirtyReason::Backlog)
                .await?;
        }
        report.failed.extend(done.failed);
        Ok(())
    }
}

pub(super) fn heads_of(items: ScanItems) -> Vec<StreamHead> {
    match items {
        ScanItems::Tails(heads) => heads,
        ScanItems::Commits(commits) => commits.iter().map(|commit| commit.head()).collect(),
    }
}

/// Returns the highest head of each stream.
pub(super) fn tails(heads: Vec<StreamHead>) -> BTreeMap<StreamId, StreamHead> {
    let mut tails: BTreeMap<StreamId, StreamHead> = BTreeMap::new();
    for head in heads {
        let known = tails.get(head.stream());
        if known.is_none_or(|known| known.version() < head.version()) {
            tails.insert(head.stream().clone(), head);
        }
    }
    tails
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_from_its_text() {
        let cursor = ReconcileCursor(ScanCursor::from_bytes(vec![0, 7, 0xab, 0xff]));
        assert_eq!(cursor.to_string(), "0007abff");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["0", "zz", "0007ä"] {
            let error = text.parse::<ReconcileCursor>().unwrap_err();
            assert!(error.to_string().contains("last report"), "{error}");
        }
    }
}
