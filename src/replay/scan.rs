//! The scan of a run: all segments at once feed lanes by stream, with bounded memory.
//!
//! ```text
//! segment -> pages -> lanes by stream -> projectors
//!         checkpoint: flush, positions and parked streams, then the cursors of the segments
//! ```
//! # Why are cursors written last?
//! A cursor says that everything before it is in the new model, durably. Whatever is flushed and
//! not yet covered by a cursor is read again after a crash, and its events are duplicates or are
//! applied once more in order. The opposite order would leave events out for good.
use super::{
    ReplayError, ReplayProgress, ReplaySettings, RunId,
    budget::Budget,
    lanes::{Applied, Lanes},
    pages::{Mark, Pages},
    progress::Meter,
};
use crate::{
    control::{PutIf, Rows, RunRow, SegmentCounts, SegmentRow, Stored},
    hex::{from_hex, to_hex},
    ports::{
        Commit, ControlStoreError, EventStore, EventStoreError, ScanCursor, ScanItems, ScanPage,
        ScanScope, Segment,
    },
    runner::rebuild::{Only, Rebuild},
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

/// The most news that are taken in before the coordinator looks at the whole.
const NEWS_AT_ONCE: usize = 256;

/// The end of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanEnd {
    /// Every segment is scanned and applied, and that is durable.
    Whole,
    /// Another process has changed the row of the run.
    Moved,
}

/// The parts of a scan.
pub(super) struct Scan {
    pub(super) store: Arc<dyn EventStore>,
    pub(super) rows: Rows,
    pub(super) settings: ReplaySettings,
    pub(super) run: RunId,
    pub(super) epoch: u64,
    pub(super) rebuilds: Vec<Arc<Rebuild>>,
    pub(super) only: Option<Only>,
    pub(super) progress: watch::Sender<ReplayProgress>,
}

/// News for the coordinator of a scan.
pub(super) enum News {
    /// A page of a segment was read, and its items are on their way.
    Read(u32, ScanPageRead),
    /// Items were applied.
    Applied(Applied),
}

/// A page that was read.
pub(super) struct ScanPageRead {
    next: Option<ScanCursor>,
    counts: SegmentCounts,
    items: usize,
}

/// A segment, as its row says and as this process has scanned it.
struct Part {
    row: Stored<SegmentRow>,
    pages: Pages,
}

impl Scan {
    /// Scans all segments from their cursors to their ends.
    pub(super) async fn run(&self, run: &RunRow) -> Result<ScanEnd, ReplayError> {
        let Some(mut parts) = self.claim(run).await? else {
            return Ok(ScanEnd::Moved);
        };
        let began = Instant::now();
        let before = parts.iter().map(|part| part.row.value.counts.events).sum();
        let estimate = self.settings.expected_events;
        let meter = Meter { estimate, before };
        let (tell, mut news) = mpsc::unbounded_channel();
        let lanes = Lanes::of(&self.rebuilds, self.settings.memory, &tell);
        let (lanes, mut workers) = lanes.start();
        let mut readers = self.read(&parts, &lanes, &tell);
        drop((tell, lanes));
        let mut checkpoint_at = Instant::now() + self.settings.checkpoint;
        let mut told = Vec::with_capacity(NEWS_AT_ONCE);
        loop {
            if parts.iter().all(|part| part.pages.is_done()) {
                return Ok(ScanEnd::Whole);
            }
            let is_all_applied = parts.iter().all(|part| part.pages.is_idle());
            let is_due = Instant::now() >= checkpoint_at || self.needs_checkpoint();
            if is_all_applied || is_due {
                if !self.checkpoint(run, &mut parts).await? {
                    return Ok(ScanEnd::Moved);
                }
                self.show(run, &parts, &meter, began);
                checkpoint_at = Instant::now() + self.settings.checkpoint;
                continue;
            }
            tokio::select! {
                biased;
                Some(ended) = workers.join_next() => self.worker_ended(ended)?,
                Some(ended) = readers.join_next() => reader_ended(ended)?,
                1.. = news.recv_many(&mut told, NEWS_AT_ONCE) => {
                    for news in told.drain(..) {
                        note(&mut parts, news);
                    }
                }
                () = tokio::time::sleep_until(checkpoint_at) => {}
            }
        }
    }

    /// Writes the epoch of the lease into the rows of all segments, so that no former holder can
    /// write them. `None` if a later holder has.
    async fn claim(&self, run: &RunRow) -> Result<Option<Vec<Part>>, ReplayError> {
        let mut found = std::collections::BTreeMap::new();
        let mut after = None;
        loop {
            let read = || self.rows.segment_page(self.run, after.clone());
            let page = self.settings.repeated(read).await?;
            found.extend(page.rows);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let mut parts = Vec::new();
        for index in 0..run.segments {
            let Some(row) = self.claim_one(run, index, found.remove(&index)).await? else {
                return Ok(None);
            };
            let pages = match row.value.is_done {
                true => Pages::finished(),
                false => Pages::default(),
            };
            parts.push(Part { row, pages });
        }
        Ok(Some(parts))
    }

    async fn claim_one(
        &self,
        run: &RunRow,
        index: u32,
        mut found: Option<Stored<SegmentRow>>,
    ) -> Result<Option<Stored<SegmentRow>>, ReplayError> {
        // A former holder may still write its row: at most once, since it then reads the row of the
        // run before it goes on.
        for _ in 0..10 {
            let (value, seen) = found.as_ref().map_or_else(
                || (SegmentRow::default(), None),
                |found| (found.value.clone(), Some(found.revision)),
            );
            let Some(claimed) = value.claimed(self.epoch) else {
                return Ok(None);
            };
            let put = || {
                let of = (self.run, run);
                self.rows.segment_put(of, index, claimed.clone(), seen)
            };
            match self.settings.repeated(put).await? {
                PutIf::Written(row) => return Ok(Some(row)),
                PutIf::Conflict(row) => found = row,
            }
        }
        let source = format!("segment {index} was changed by others meanwhile").into();
        Err(ControlStoreError::Unavailable { source }.into())
    }

    /// Starts a reader for each segment that is not done.
    fn read(
        &self,
        parts: &[Part],
        lanes: &Arc<Lanes>,
        tell: &mpsc::UnboundedSender<News>,
    ) -> JoinSet<Result<(), ReplayError>> {
        let now = Instant::now();
        let budget = self.settings.read_units_per_second;
        let budget = budget.map(|units| Arc::new(Mutex::new(Budget::new(units, now))));
        let mut readers = JoinSet::new();
        for (segment, part) in Segment::split(u32::try_from(parts.len()).unwrap_or(1)).zip(parts) {
            if part.row.value.is_done {
                continue;
            }
            let cursor = part.row.value.cursor.as_deref();
            let cursor = cursor.and_then(from_hex).map(ScanCursor::from_bytes);
            let reader = Reader {
                store: self.store.clone(),
                settings: self.settings.clone(),
                segment,
                only: self.only.clone(),
                lanes: lanes.clone(),
                tell: tell.clone(),
                budget: budget.clone(),
            };
            readers.spawn(reader.run(cursor));
        }
        readers
    }

    fn worker_ended(
        &self,
        ended: Result<
            Result<(), (usize, crate::runner::rebuild::RebuildError)>,
            tokio::task::JoinError,
        >,
    ) -> Result<(), ReplayError> {
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err((of, error))) => {
                let name = self.rebuilds.get(of).map_or("?", |of| of.of.name());
                Err(ReplayError::projector(self.run, name, error))
            }
            Err(error) => Err(broken(&error)),
        }
    }

    fn needs_checkpoint(&self) -> bool {
        self.rebuilds.iter().any(|of| of.needs_checkpoint())
    }

    /// Makes durable what is applied, and then moves the cursors. Returns false if another process
    /// has changed the row of the run.
    async fn checkpoint(&self, run: &RunRow, parts: &mut [Part]) -> Result<bool, ReplayError> {
        let marks: Vec<Option<Mark>> = parts.iter().map(|part| part.pages.mark()).collect();
        let failed = |of: &Rebuild| {
            let name = of.of.name().clone();
            move |error| ReplayError::projector(self.run, &name, error)
        };
        for rebuild in &self.rebuilds {
            let touched = rebuild.take_touched();
            rebuild.flush().await.map_err(failed(rebuild))?;
            let stored = rebuild.store_positions(touched).await;
            stored.map_err(failed(rebuild))?;
        }
        let found = self.settings.repeated(|| self.rows.run(self.run)).await?;
        if !found.is_some_and(|found| found.value.is_held(self.epoch)) {
            return Ok(false);
        }
        for ((index, part), mark) in (0u32..).zip(parts.iter_mut()).zip(marks) {
            let Some(mark) = mark else {
                continue;
            };
            let mut row = part.row.value.clone();
            row.counts.add(&mark.counts);
            row.cursor = mark.next.as_ref().map(|next| to_hex(next.as_bytes()));
            row.is_done = mark.next.is_none();
            let seen = Some(part.row.revision);
            let put = || {
                self.rows
                    .segment_put((self.run, run), index, row.clone(), seen)
            };
            match self.settings.repeated(put).await? {
                PutIf::Written(row) => part.row = row,
                // The answer to this very write was lost.
                PutIf::Conflict(Some(found)) if found.value == row => part.row = found,
                PutIf::Conflict(_) => return Ok(false),
            }
            part.pages.stored(&mark);
        }
        Ok(true)
    }

    fn show(&self, run: &RunRow, parts: &[Part], meter: &Meter, began: Instant) {
        let segments: Vec<_> = parts
            .iter()
            .map(|part| (part.row.value.counts, part.pages.is_done()))
            .collect();
        let of = (self.run, run.state);
        let progress = meter.progress(of, &segments, began.elapsed());
        self.progress.send_if_modified(|shown| {
            let is_new = (shown.events, shown.segments_done, shown.state)
                != (progress.events, progress.segments_done, progress.state);
            if is_new {
                *shown = progress;
            }
            is_new
        });
    }
}

fn note(parts: &mut [Part], news: News) {
    match news {
        News::Read(segment, page) => {
            if let Some(part) = parts.get_mut(segment as usize) {
                part.pages.read(page.next, page.counts, page.items);
            }
        }
        News::Applied(applied) => {
            if let Some(part) = parts.get_mut(applied.segment as usize) {
                part.pages
                    .applied(applied.page, applied.items, applied.handled);
            }
        }
    }
}

fn broken(error: &tokio::task::JoinError) -> ReplayError {
    ReplayError::Broken {
        reason: error.to_string(),
    }
}

fn reader_ended(
    ended: Result<Result<(), ReplayError>, tokio::task::JoinError>,
) -> Result<(), ReplayError> {
    ended.unwrap_or_else(|error| Err(broken(&error)))
}

/// The task that reads one segment.
struct Reader {
    store: Arc<dyn EventStore>,
    settings: ReplaySettings,
    segment: Segment,
    only: Option<Only>,
    lanes: Arc<Lanes>,
    tell: mpsc::UnboundedSender<News>,
    budget: Option<Arc<Mutex<Budget>>>,
}

impl Reader {
    async fn run(self, mut cursor: Option<ScanCursor>) -> Result<(), ReplayError> {
        for page in 0u64.. {
            self.wait_for_budget().await;
            let read = read_page(&*self.store, &self.settings, self.segment, &cursor).await?;
            self.pay(&read);
            cursor = read.next;
            let commits = match read.items {
                ScanItems::Commits(commits) => commits,
                ScanItems::Tails(_) => Vec::new(),
            };
            let mut counts = counts_of(&commits);
            counts.read_units = read.read_units.unwrap_or(0.0);
            let commits = commits.into_iter();
            let wanted: Vec<_> = commits.filter(|commit| self.wants(commit)).collect();
            let items = wanted.iter().map(|commit| self.lanes.targets(commit)).sum();
            let news = ScanPageRead {
                next: cursor.clone(),
                counts,
                items,
            };
            if self
                .tell
                .send(News::Read(self.segment.index(), news))
                .is_err()
            {
                return Ok(());
            }
            for commit in wanted {
                self.lanes.push(commit, (self.segment.index(), page)).await;
            }
            if cursor.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn wants(&self, commit: &Commit) -> bool {
        let only = self.only.as_ref();
        only.is_none_or(|only| only.has_stream(&commit.stream))
    }

    async fn wait_for_budget(&self) {
        let Some(budget) = &self.budget else {
            return;
        };
        loop {
            let at = budget
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next_at();
            if at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(at).await;
        }
    }

    fn pay(&self, page: &ScanPage) {
        let Some(budget) = &self.budget else {
            return;
        };
        // A backend that reports no cost is taken for one whose unit reads 4 KiB.
        let units = page.read_units.unwrap_or_else(|| match &page.items {
            ScanItems::Commits(commits) => {
                let bytes: usize = commits.iter().map(bytes_of).sum();
                (bytes as f64 / 4096.0).ceil()
            }
            ScanItems::Tails(heads) => heads.len() as f64,
        });
        let mut budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.spent(units, Instant::now());
    }
}

/// Reads a page of a segment.
pub(super) async fn read_page(
    store: &dyn EventStore,
    settings: &ReplaySettings,
    segment: Segment,
    cursor: &Option<ScanCursor>,
) -> Result<ScanPage, EventStoreError> {
    let scan = || store.scan(segment, cursor.clone(), ScanScope::Commits, settings.page);
    settings.repeated(scan).await
}

/// Returns about the bytes that a commit takes in memory.
pub(super) fn bytes_of(commit: &Commit) -> usize {
    let events: usize = commit
        .events
        .iter()
        .map(crate::ports::EventData::bytes)
        .sum();
    events + 256
}

/// Returns the numbers of what was read.
pub(super) fn counts_of(commits: &[Commit]) -> SegmentCounts {
    let mut counts = SegmentCounts::default();
    for commit in commits {
        counts.commits += 1;
        counts.events += commit.events.len() as u64;
        counts.streams += u64::from(commit.first_version == crate::Version::NONE.next());
    }
    counts
}
