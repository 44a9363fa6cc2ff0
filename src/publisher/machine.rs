//! The decisions of publishing one stream, without any I/O.
//!
//! ```text
//! watermark, from memory or its row
//!   -> is the stored history still the published one?
//!   -> commits after the watermark, from notices or the event store
//!   -> their messages, by the outbox, into a queue
//!   -> a run of messages, durable in order
//!   -> the watermark, to the last commit that is durable as a whole
//!   -> the markers of what the watermark covers
//! ```
//! [`Machine::next`] says what to do next, and the driver tells the result. The order of the steps
//! is the whole protection against loss: a commit is sent before the watermark covers it, and the
//! watermark covers it before its notice or marker is forgotten. A crash between any two steps
//! repeats events, and never skips or reorders their first occurrences.
use super::{
    PublishError,
    notice::Notices,
    queue::{CommitEnd, Prepared, Queue},
    step::{Check, Followed, Phase, Step, Then},
};
use crate::{
    CommitId, StreamHead, StreamId, Timestamp, Version,
    control::{Stored, Watermark},
    ports::{Commit, CommitKey, EventStoreError},
};
use std::collections::BTreeSet;

/// The commits of one read.
pub(super) const PAGE: u32 = 100;
/// The commits without records after which the watermark moves.
const CHECKPOINT_COMMITS: usize = 100;

/// The work on one stream in one call.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) notices: Notices,
    pub(super) queue: Queue,
    /// True if the store lists commits until their markers are removed.
    has_markers: bool,
    phase: Phase,
    is_suspect: bool,
    /// The watermark's row as last seen.
    row: Option<Stored<Watermark>>,
    /// The last commit of which everything is acknowledged.
    sent: Option<Watermark>,
    /// The last commit whose messages are in the queue, or were.
    filled: Option<Watermark>,
    /// First versions of commits at or below `sent` whose markers may still be there.
    uncleared: BTreeSet<Version>,
    unmarked: usize,
    is_checkpoint_due: bool,
    /// True once markers could not be removed. Then they are tried again at the end only, so that
    /// nothing that is to be sent waits for them.
    clears_at_end: bool,
    /// Versions that operators keep out of the topic.
    skips: BTreeSet<Version>,
    /// The event after the queue that cannot be published, and why.
    refused: Option<(Version, PublishError)>,
    /// True once a run of several messages was refused: one at a time shows which one it is.
    is_one_by_one: bool,
    /// True while commits are read to the tail.
    is_reading: bool,
    is_tail_seen: bool,
    /// True if the open read does not continue after `filled`.
    is_read_over: bool,
    is_flushing: bool,
    /// True once another history was found: markers stay, since they may be of that history.
    is_forked: bool,
    ending: Option<Result<(), PublishError>>,
    /// A watermark to remember for the next call, and true if the store was seen to fit it.
    known: Option<(Stored<Watermark>, bool)>,
    is_trusted: bool,
}

impl Machine {
    pub(super) fn new(notices: Notices, has_markers: bool) -> Self {
        Self {
            is_reading: notices.is_to_tail,
            notices,
            queue: Queue::default(),
            has_markers,
            phase: Phase::Row,
            is_suspect: false,
            row: None,
            sent: None,
            filled: None,
            uncleared: BTreeSet::new(),
            unmarked: 0,
            is_checkpoint_due: false,
            clears_at_end: false,
            skips: BTreeSet::new(),
            refused: None,
            is_one_by_one: false,
            is_tail_seen: false,
            is_read_over: false,
            is_flushing: false,
            is_forked: false,
            ending: None,
            known: None,
            is_trusted: false,
        }
    }

    pub(super) fn stream(&self) -> &StreamId {
        &self.notices.stream
    }
    /// Returns the version up to which the watermark's row is known to cover the stream.
    pub(super) fn covered(&self) -> Version {
        self.row.map_or(Version::NONE, |row| row.value.version)
    }
    /// Returns the version up to which the bus has acknowledged the stream.
    pub(super) fn acknowledged(&self) -> Version {
        version(self.sent)
    }
    /// Returns the version up to which the messages of the stream were made.
    pub(super) fn filled(&self) -> Version {
        version(self.filled)
    }
    pub(super) fn row(&self) -> Option<Stored<Watermark>> {
        self.row
    }
    pub(super) fn skips(&self) -> &BTreeSet<Version> {
        &self.skips
    }
    /// Returns the last version before the next commit that has a record.
    pub(super) fn last_record(&self) -> Version {
        let last = self.filled.map(|filled| filled.last_record());
        last.unwrap_or(Version::NONE)
    }
    /// Returns the head after which the stream is read.
    pub(super) fn read_from(&self) -> StreamHead {
        let stream = self.stream().clone();
        match self.filled {
            None => StreamHead::empty(stream),
            // The row does not keep the commit's time, and a read does not ask for it.
            Some(at) => {
                let unknown = Timestamp::from_micros(0);
                StreamHead::observed(stream, at.version, at.commit_id, unknown)
            }
        }
    }
    /// Returns true, once, if the open read must be dropped.
    pub(super) fn take_read_over(&mut self) -> bool {
        std::mem::take(&mut self.is_read_over)
    }
    pub(super) fn take_known(&mut self) -> Option<(Stored<Watermark>, bool)> {
        self.known.take()
    }
    /// Returns true, once, if a stream that was suspected of a fork was seen to fit again.
    pub(super) fn take_trusted(&mut self) -> bool {
        std::mem::take(&mut self.is_trusted)
    }

    /// Begins with a watermark from memory, if there is one that the notices fit. A stream under
    /// suspicion is compared with its row first. `is_checked` says that the watermark was compared
    /// lately.
    pub(super) fn begin(
        &mut self,
        known: Option<Stored<Watermark>>,
        is_checked: bool,
        is_suspect: bool,
    ) {
        self.is_suspect = is_suspect;
        // If the next event to send is none that a notice names, another process has published
        // meanwhile, and by the row fewer events are sent twice.
        let fits = |known: &Stored<Watermark>| {
            let above = self.notices.lowest_above(known.value.version);
            above.is_none_or(|named| named == known.value.version.next())
        };
        let Some(known) = known.filter(fits).filter(|_| !is_suspect) else {
            return;
        };
        self.adopt(Some(known));
        self.phase = match self.check(is_checked) {
            Check::Fits => Phase::Work,
            Check::Compare => Phase::Compare(Then::Work { from_memory: true }),
            // Perhaps only the memory is wrong: an operator may have brought the row down.
            Check::Forked(_) => Phase::Row,
        };
    }

    pub(super) fn on_watermark(&mut self, row: Option<Stored<Watermark>>) {
        self.adopt(row);
        self.phase = Phase::Work;
        if self.is_suspect {
            return self.compare(Then::Work { from_memory: false });
        }
        match self.check(false) {
            Check::Fits => {}
            Check::Compare => self.compare(Then::Work { from_memory: false }),
            Check::Forked(found) => self.fail(self.forked(Some(found))),
        }
    }

    fn adopt(&mut self, row: Option<Stored<Watermark>>) {
        self.row = row;
        self.sent = row.map(|row| row.value);
        self.restart();
    }
    /// Reads on after what is acknowledged.
    fn restart(&mut self) {
        self.queue.clear();
        self.filled = self.sent;
        self.is_one_by_one = false;
        self.is_read_over = true;
        self.is_tail_seen = false;
    }

    /// Judges by the notices whether the history is still the one that was published.
    ///
    /// A notice at or below the watermark is an old one, or one of another history with the same
    /// version numbers: a backup was restored while publishers kept their rows. Unless that was
    /// checked lately, the commit at the watermark decides.
    fn check(&mut self, is_checked: bool) -> Check {
        let Some(mark) = self.sent else {
            return Check::Fits;
        };
        let is_asked =
            self.notices.is_to_tail || self.notices.covered(mark.version).next().is_some();
        if !is_asked {
            return Check::Fits;
        }
        let newest = self.notices.commits_covered(mark.version).next();
        if let Some((last, id)) = newest.map(|commit| (commit.last_version(), commit.id)) {
            if (last, id) == (mark.version, mark.commit_id) {
                self.remember(true);
                return Check::Fits;
            }
            if last >= mark.version {
                return Check::Forked((last, id));
            }
        }
        if is_checked {
            Check::Fits
        } else {
            Check::Compare
        }
    }

    fn compare(&mut self, then: Then) {
        // Without a watermark nothing was published that could differ.
        if self.sent.is_some() {
            self.phase = Phase::Compare(then);
        } else {
            self.compared_well(then);
        }
    }

    /// Takes the newest commit at or below the watermark, which must be the watermark's.
    pub(super) fn on_compared(&mut self, found: Option<(Version, CommitId)>) {
        let Phase::Compare(then) = std::mem::replace(&mut self.phase, Phase::Work) else {
            return;
        };
        if found == self.sent.map(|mark| (mark.version, mark.commit_id)) {
            self.remember(true);
            self.compared_well(then);
        } else if matches!(then, Then::Work { from_memory: true }) {
            self.phase = Phase::Row;
        } else {
            self.fail(self.forked(found));
        }
    }

    fn compared_well(&mut self, then: Then) {
        match then {
            Then::Work { .. } => self.is_trusted |= self.is_suspect,
            Then::NotVisible => self.is_tail_seen = true,
            Then::Fail(error) => self.fail(error),
        }
    }

    fn remember(&mut self, is_checked: bool) {
        self.known = self.row.map(|row| (row, is_checked));
    }

    fn forked(&self, found: Option<(Version, CommitId)>) -> PublishError {
        let nothing = Watermark::new(Version::NONE, CommitId::from_u128(0));
        PublishError::HistoryForked {
            stream: self.stream().clone(),
            watermark: self.sent.unwrap_or(nothing),
            found,
        }
    }

    /// Returns what is to be done next. `limit` is the most messages of a run.
    pub(super) fn next(&mut self, is_stopped: bool, limit: usize) -> Step {
        match &self.phase {
            Phase::Row if is_stopped => {
                self.phase = Phase::Work;
                self.interrupt();
            }
            Phase::Row => return Step::ReadWatermark,
            Phase::Compare(_) => return Step::Compare(self.acknowledged()),
            Phase::Work => {}
        }
        if let Some(step) = self.checkpoint() {
            return step;
        }
        if let Some(result) = self.ending.take() {
            return Step::Done(result);
        }
        if let Some(step) = if is_stopped {
            self.stop(limit)
        } else {
            self.work(limit)
        } {
            return step;
        }
        // The work has ended. What is acknowledged is marked before the driver learns of it.
        self.checkpoint()
            .unwrap_or_else(|| Step::Done(self.ending.take().unwrap_or(Ok(()))))
    }

    /// Moves the watermark to what was acknowledged, and then removes the markers below it.
    fn checkpoint(&mut self) -> Option<Step> {
        if !self.is_checkpoint_due {
            return None;
        }
        if let Some(to) = self.sent.filter(|to| self.covered() < to.version) {
            return Some(Step::Advance(to));
        }
        let is_time = !self.clears_at_end || self.ending.is_some();
        if self.has_markers
            && is_time
            && !self.is_forked
            && let Some(row) = self.row
        {
            self.uncleared
                .extend(self.notices.covered(row.value.version));
            let stream = self.stream();
            let keys = self.uncleared.iter();
            let keys: Vec<_> = keys
                .map(|first| CommitKey::new(stream.clone(), *first))
                .collect();
            if !keys.is_empty() {
                return Some(Step::Clear(keys));
            }
        }
        self.is_checkpoint_due = false;
        None
    }

    fn stop(&mut self, limit: usize) -> Option<Step> {
        // A commit that was sent in part is completed, so that the watermark can cover it.
        let rest = self.queue.rest_of_commit();
        if rest > 0 && self.refused.is_none() {
            return Some(Step::Send(self.queue.next_run(rest.min(limit))));
        }
        let is_short = !self.queue.is_empty() || self.refused.is_some();
        if !is_short && self.is_reading && !self.is_tail_seen {
            return Some(Step::Peek);
        }
        if is_short || self.notices.lowest_above(self.acknowledged()).is_some() {
            self.interrupt();
        } else {
            self.end(Ok(()));
        }
        None
    }

    fn work(&mut self, limit: usize) -> Option<Step> {
        let limit = if self.is_one_by_one { 1 } else { limit };
        let send = Step::Send(self.queue.next_run(limit));
        let has_messages = !self.queue.is_empty();
        if self.refused.is_some() {
            return Some(if has_messages { send } else { Step::ReadSkips });
        }
        if has_messages && (self.is_one_by_one || self.is_flushing || self.queue.is_full(limit)) {
            return Some(send);
        }
        if let Some(commit) = self.notices.take_commit(version(self.filled).next()) {
            return Some(Step::Prepare(commit));
        }
        let named = self.notices.lowest_above(version(self.filled));
        if self.is_reading || named.is_some() && !self.is_tail_seen {
            self.is_reading = true;
            return Some(Step::Read);
        }
        if has_messages {
            return Some(send);
        }
        let Some(named) = named else {
            self.end(Ok(()));
            return None;
        };
        // A notice names what a consistent read does not show.
        self.is_tail_seen = false;
        Some(Step::Wait(PublishError::NotVisible {
            stream: self.stream().clone(),
            named,
            tail: self.acknowledged(),
        }))
    }

    /// Takes a commit that was read.
    pub(super) fn on_commit(&mut self, commit: &Commit) -> Followed {
        let at = version(self.filled);
        let last = commit.last_version();
        if commit.first_version == at.next() {
            return Followed::Next;
        }
        if commit.first_version > at.next() {
            let reason = format!("the next commit starts at version {}", commit.first_version);
            let corrupt = EventStoreError::Corrupt {
                stream: self.stream().clone(),
                after: at,
                reason,
            };
            self.on_unreadable(corrupt);
            return Followed::Known;
        }
        // The watermark was moved meanwhile, by another publisher that has sent this commit.
        let is_same = self.filled.is_some_and(|at| at.commit_id == commit.id);
        if last > at || last == at && !is_same {
            self.fail(self.forked(Some((last, commit.id))));
        }
        Followed::Known
    }

    /// Notes that a read has ended after this number of commits.
    pub(super) fn on_read_end(&mut self, commits: u32) {
        if commits >= PAGE {
            return;
        }
        self.is_reading = false;
        let is_behind = self.notices.lowest_above(version(self.filled)).is_some();
        if commits > 0 || !is_behind {
            // What was read may not be the tail any more.
            self.is_tail_seen = !is_behind;
        } else {
            // The notice is ahead of a consistent read: the history is shorter than it was.
            self.compare(Then::NotVisible);
        }
    }
    /// Notes whether the open read is at its end, after a request to stop.
    pub(super) fn on_peek(&mut self, is_end: bool) {
        self.is_reading = false;
        if !is_end {
            self.interrupt();
        }
    }
    /// Takes an error of a read that no repeat can help.
    pub(super) fn on_unreadable(&mut self, source: EventStoreError) {
        let stream = self.stream().clone();
        // What looks corrupt may be another history, whose commits end elsewhere.
        self.compare(Then::Fail(PublishError::Store { stream, source }));
    }
    /// Sends what is in the queue, although more may come.
    pub(super) fn flush(&mut self) {
        self.is_flushing = true;
    }

    /// Takes the messages of the commit after the queue.
    pub(super) fn on_prepared(&mut self, commit: Prepared) {
        self.filled = Some(commit.end.watermark);
        self.is_tail_seen = false;
        self.queue.push(commit);
        self.settle();
        if self.unmarked >= CHECKPOINT_COMMITS {
            self.is_checkpoint_due = true;
        }
    }
    /// Takes the refusal of the event after the queue.
    pub(super) fn on_refused(&mut self, version: Version, error: PublishError) {
        self.refused = Some((version, error));
    }
    /// Takes the versions that operators have skipped.
    pub(super) fn on_skips(&mut self, skips: &BTreeSet<Version>) {
        let Some((version, error)) = self.refused.take() else {
            return;
        };
        if !skips.contains(&version) {
            return self.fail(error);
        }
        // Other skips have no effect unless their events are refused, too.
        self.skips.insert(version);
        // The commit is made again without the event. Its other events may be sent twice.
        self.restart();
        self.is_reading = true;
    }

    /// Takes the number of messages of a run that are durable.
    pub(super) fn on_run(&mut self, durable: usize) {
        self.queue.acknowledge(durable);
        self.is_flushing = false;
        let before = self.sent;
        self.settle();
        if self.sent != before {
            self.is_checkpoint_due = true;
        }
        if self.queue.is_empty() {
            self.is_one_by_one = false;
        }
    }
    /// Takes the refusal of a run, of which this number of messages are not durable. No repeat can
    /// help.
    pub(super) fn on_run_refused(&mut self, left: usize, error: PublishError) {
        if left > 1 {
            self.is_one_by_one = true;
            return;
        }
        match self.queue.next_version() {
            Some(version) => {
                self.queue.clear();
                self.filled = self.sent;
                self.is_read_over = true;
                self.refused = Some((version, error));
            }
            None => self.fail(error),
        }
    }

    fn settle(&mut self) {
        while let Some(CommitEnd {
            first, watermark, ..
        }) = self.queue.take_end()
        {
            self.sent = Some(watermark);
            self.unmarked += 1;
            if self.has_markers {
                self.uncleared.insert(first);
            }
        }
    }

    /// Takes the watermark's row after an attempt to move it.
    pub(super) fn on_advanced(&mut self, row: Stored<Watermark>, to: Watermark) {
        self.unmarked = 0;
        let now = row.value;
        self.row = Some(row);
        if now.version > to.version {
            // Another publisher has sent more, and this one continues after it.
            self.sent = Some(now);
            self.restart();
            self.remember(false);
        } else if now.is_same_commit(&to) {
            self.remember(true);
        } else {
            let found = Some((to.version, to.commit_id));
            self.sent = Some(now);
            let forked = self.forked(found);
            self.end(Err(forked));
        }
    }
    /// Notes that the markers are removed.
    pub(super) fn on_cleared(&mut self) {
        self.uncleared.clear();
        self.notices.forget_covered(self.covered());
    }
    /// Takes an error of the removal of markers.
    pub(super) fn on_not_cleared(&mut self, error: PublishError) {
        if self.ending.is_some() {
            return self.on_no_checkpoint(error);
        }
        self.clears_at_end = true;
        self.is_checkpoint_due = false;
    }
    /// Takes an error of a checkpoint that no repeat has helped.
    pub(super) fn on_no_checkpoint(&mut self, error: PublishError) {
        self.is_checkpoint_due = false;
        self.queue.clear();
        match &self.ending {
            Some(Err(_)) => {
                let stream = self.stream();
                tracing::warn!(%stream, error = crate::chain(&error), "the stream failed again");
            }
            _ => self.ending = Some(Err(error)),
        }
    }

    fn interrupt(&mut self) {
        self.end(Err(PublishError::Interrupted {
            stream: self.stream().clone(),
            version: self.acknowledged(),
        }));
    }
    /// Ends the work with an error. What was acknowledged before it is marked first.
    pub(super) fn fail(&mut self, error: PublishError) {
        self.phase = Phase::Work;
        self.end(Err(error));
    }
    fn end(&mut self, result: Result<(), PublishError>) {
        self.is_forked |= matches!(result, Err(PublishError::HistoryForked { .. }));
        self.is_checkpoint_due = true;
        self.queue.clear();
        self.ending = Some(result);
    }
}

fn version(at: Option<Watermark>) -> Version {
    at.map_or(Version::NONE, |at| at.version)
}
