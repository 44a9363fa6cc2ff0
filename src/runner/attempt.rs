//! One attempt at the first records of a lane: check each version, fill gaps from history, decode,
//! handle.
mod read;

use self::read::Read;
pub(super) use self::read::panic_message;
use super::{
    ErrorClass, EventContext, EventSource, HandlerError, ModelId, Position, Start, UnknownEvents,
    erased::{AnyEvent, ErasedProcessor, Handled},
    handler::{Cancel, Unanswered},
    machine::{Again, Ended, Failure, FailureOf, Outcome, Range, Record, Suspects, What, Work},
    report::Counts,
    spans::{self, Cause, Spans},
    step::{Arrived, HistoryForked, Step, next_step},
    streams::Progress,
};
use crate::{
    PayloadCodecs, RecordedEvent, StreamId, Upcasters, Version,
    control::{ProcessorRows, StreamPositions},
    from_message,
    ports::{EventStore, PartitionId, ReadFrom},
    resilience::FailureClass,
};
use futures::{FutureExt, TryStreamExt};
use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

/// The parts that the attempts of one processor share.
pub(super) struct Shared {
    pub(super) processor: Arc<dyn ErasedProcessor>,
    pub(super) model: ModelId,
    pub(super) history: Option<Arc<dyn EventStore>>,
    /// The stored positions, at the level that stores them.
    pub(super) positions: Option<StreamPositions>,
    /// The rows about failed events.
    pub(super) rows: ProcessorRows,
    pub(super) upcasters: Upcasters,
    pub(super) codecs: PayloadCodecs,
    pub(super) spans: Spans,
    pub(super) rules: AttemptRules,
}

/// The part of the policy that concerns one attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptRules {
    pub(super) unknown_events: UnknownEvents,
    pub(super) start: Start,
    pub(super) timeout: Duration,
    /// The most events that one call of the handler gets.
    pub(super) max_batch: usize,
    /// The projector must store its positions.
    pub(super) needs_position: bool,
}

/// An event that waits for the next call of the handler.
struct Pending {
    /// The record that it comes from, or before.
    record: usize,
    version: Version,
    event: Box<AnyEvent>,
    ctx: EventContext,
    /// The event itself, if it did not come by the bus.
    filled: Option<Box<RecordedEvent>>,
}

/// The answer of a handler to one call.
struct Answer {
    /// The number of events that were handled, from the first.
    done: usize,
    /// The error of the next event.
    error: Option<HandlerError>,
    /// The handler has said which event the error is of. It has not if it has panicked or has taken
    /// too long.
    names_event: bool,
}

impl Answer {
    const fn new(done: usize, error: Option<HandlerError>) -> Self {
        Self {
            done,
            error,
            names_event: true,
        }
    }

    /// Creates the answer of a handler that has not said which event the error is of.
    const fn of_no_event(error: HandlerError) -> Self {
        Self {
            done: 0,
            error: Some(error),
            names_event: false,
        }
    }
}

/// What is remembered of an event while the handler has it.
struct Note {
    record: usize,
    version: Version,
    commit_id: crate::CommitId,
    filled: Option<Box<RecordedEvent>>,
}

impl Note {
    fn of(pending: &mut Pending) -> Self {
        Self {
            record: pending.record,
            version: pending.version,
            commit_id: pending.ctx.event_id().commit_id(),
            filled: pending.filled.take(),
        }
    }
}

/// The signals to an attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct Signals {
    /// The result no longer counts.
    pub(super) cancelled: CancellationToken,
    /// The attempt is to end after its current call.
    finish: Arc<AtomicBool>,
}

impl Signals {
    /// Lets the attempt end after its current call.
    pub(super) fn finish(&self) {
        self.finish.store(true, Ordering::Relaxed);
    }

    fn is_to_finish(&self) -> bool {
        self.finish.load(Ordering::Relaxed)
    }
}

pub(super) struct Attempt<F> {
    shared: Arc<Shared>,
    work: Arc<Work>,
    signals: Signals,
    /// Tells that the next call of a handler begins.
    advance: F,
    /// With what is pending counted as handled.
    progress: Progress,
    /// Without it.
    certain: Progress,
    pending: Vec<Pending>,
    /// Empty between two calls.
    notes: Vec<Note>,
    /// Of the next call.
    cancel: Arc<Cancel>,
    counts: Counts,
    passed: Vec<Version>,
    /// Of a range: the first version that is not done.
    next: Version,
    is_short: bool,
    /// The versions with a letter that were handled or passed over.
    settled: Vec<Version>,
}

impl<F: Fn() + Send + Sync> Attempt<F> {
    pub(super) fn new(shared: Arc<Shared>, work: Arc<Work>, signals: Signals, advance: F) -> Self {
        let progress = work.progress.clone();
        let cancel = Arc::new(Cancel::of(signals.cancelled.clone()));
        Self {
            cancel,
            shared,
            work,
            signals,
            advance,
            certain: progress.clone(),
            progress,
            pending: Vec::new(),
            notes: Vec::new(),
            counts: Counts::default(),
            passed: Vec::new(),
            next: Version::NONE,
            is_short: false,
            settled: Vec::new(),
        }
    }

    pub(super) async fn run(mut self) -> Ended {
        let work = self.work.clone();
        let (done, result) = match &work.what {
            What::Records(records) => self.take_all(records).await,
            What::Range(range) => self.take_range(range).await,
            What::Again(again) => self.take_again(again).await,
        };
        Ended {
            progress: self.certain,
            done,
            counts: self.counts,
            result,
            passed: self.passed,
            next: self.next,
            is_short: self.is_short,
            settled: self.settled,
        }
    }

    async fn take_all(&mut self, records: &[Arc<Record>]) -> (usize, Outcome) {
        for (at, record) in records.iter().enumerate() {
            if at > 0 && self.signals.is_to_finish() {
                let done = self.pending.first().map_or(at, |pending| pending.record);
                return (done, Outcome::Done);
            }
            if let Err(failed) = self.take(at, record).await {
                // What comes before it counts as done, and still waits for a call of the handler.
                return self.handle_pending().await.err().unwrap_or(failed);
            }
        }
        match self.handle_pending().await {
            Ok(()) => (records.len(), Outcome::Done),
            Err(failed) => failed,
        }
    }

    async fn take(&mut self, at: usize, record: &Record) -> Result<(), (usize, Outcome)> {
        let header = &record.event.header;
        let stream = &header.stream;
        let here = |error| failed(at, header.version, error, FailureOf::Record);
        if self.progress == Progress::Unknown || (at == 0 && self.work.number > 1) {
            let progress = self.look_up(stream).await;
            self.progress = progress.map_err(|error| {
                // Where the position is kept is away, or busy: that says nothing about the event,
                // and is waited for.
                let is_away = !matches!(FailureClass::from(error.class()), FailureClass::Permanent);
                let of = if is_away {
                    FailureOf::Store
                } else {
                    FailureOf::Record
                };
                failed(at, header.version, error, of)
            })?;
            self.certain = self.progress.clone();
        }
        let source = || EventSource::Bus {
            partition: record.partition.clone(),
            offset: record.offset,
        };
        let arrived = Arrived {
            version: header.version,
            commit_id: header.event_id.commit_id(),
            previous: record.previous,
            partition: &record.partition,
        };
        match next_step(&self.progress, arrived) {
            Step::Handle => {
                self.handle(at, &record.event, source(), &record.partition)
                    .await
            }
            Step::Late => {
                self.counts.out_of_order += 1;
                self.handle(at, &record.event, source(), &record.partition)
                    .await
            }
            Step::Duplicate => {
                self.counts.duplicates += 1;
                Ok(())
            }
            Step::Fork { followed } => Err(here(HandlerError::fatal(HistoryForked {
                stream: stream.clone(),
                version: header.version,
                followed,
                found: arrived.commit_id,
            }))),
            Step::Fill(first, last) => {
                self.fill(at, record, first, last).await?;
                self.handle(at, &record.event, source(), &record.partition)
                    .await
            }
        }
    }

    /// Asked again before a retry: the attempt that failed may have stored its event, and only its
    /// answer was lost.
    async fn look_up(&self, stream: &StreamId) -> Result<Progress, HandlerError> {
        let asked = self.shared.processor.position(&self.shared.model, stream);
        let rules = &self.shared.rules;
        Ok(
            match (self.in_time("position", asked).await?, &self.progress) {
                (Position::KeptByRunner, _) if rules.needs_position => {
                    return Err(HandlerError::fatal(
                        "the level ExactlyOnceEffect needs a projector that stores its position with its rows: implement Projector::position, or choose another level",
                    ));
                }
                (Position::KeptByRunner, Progress::Unknown) => self.stored_position(stream).await?,
                (Position::KeptByRunner, known) => known.clone(),
                // What lies before the start is not wanted: the first event seen is the base.
                (Position::Stored { version, .. }, Progress::Unknown | Progress::NoBase)
                    if version == Version::NONE && rules.start == Start::Now =>
                {
                    Progress::NoBase
                }
                // Events that were skipped since are not in the read model.
                (Position::Stored { version, .. }, Progress::At(known))
                    if known.version >= version =>
                {
                    self.progress.clone()
                }
                (Position::Stored { version, commit_id }, _) => Progress::at(version, commit_id),
            },
        )
    }

    async fn stored_position(&self, stream: &StreamId) -> Result<Progress, HandlerError> {
        let Some(positions) = &self.shared.positions else {
            return Ok(Progress::NoBase);
        };
        let stored = async { Ok(positions.get(stream).await?) };
        let stored = self.in_time("store of positions", stored).await?;
        Ok(stored.map_or(Progress::NoBase, |(version, commit_id)| {
            Progress::at(version, commit_id)
        }))
    }

    /// Handles what the bus has skipped before a record. Without a history source, the gap is only
    /// counted.
    async fn fill(
        &mut self,
        at: usize,
        record: &Record,
        first: Version,
        last: Version,
    ) -> Result<(), (usize, Outcome)> {
        let stream = &record.event.header.stream;
        let Some(history) = self.shared.history.clone() else {
            self.handle_pending().await?;
            self.counts.gaps_unverified += 1;
            // It has been passed: a retry of what follows it does not meet it again.
            self.progress.passed(first, last);
            self.certain = self.progress.clone();
            return Ok(());
        };
        let mut commits = history.read(stream, ReadFrom::Event(first), None);
        let mut expected = first;
        while expected <= last {
            let read = self.in_time("event store", async { Ok(commits.try_next().await?) });
            let commit = (read.await).map_err(|e| failed(at, expected, e, FailureOf::Store))?;
            let Some(commit) = commit else {
                let gap = format!("{stream} ends before version {last} in the event store");
                let gap = HandlerError::transient(gap);
                let version = record.event.header.version;
                return Err(failed(at, version, gap, FailureOf::Record));
            };
            for event in commit.recorded() {
                let version = event.header.version;
                if version < expected || version > last {
                    continue;
                }
                self.handle(at, &event, EventSource::History, &record.partition)
                    .await?;
                (self.advance)();
                expected = version.next();
            }
        }
        Ok(())
    }

    /// Handles versions of a parked stream, from the event store, or from the rows of deferred
    /// records.
    async fn take_range(&mut self, range: &Range) -> (usize, Outcome) {
        self.next = range.from;
        let range = &match self.not_stored(range).await {
            Ok(range) => range,
            Err(error) => return self.without_position(range, error).await,
        };
        if range.from > range.to {
            return (0, Outcome::Done);
        }
        let taken = match self.shared.history.clone() {
            Some(history) => self.take_history(range, &*history).await,
            None => self.take_deferred(range).await,
        };
        let taken = match taken {
            Ok(()) => self.handle_pending().await,
            Err(failed) => Err(failed),
        };
        match taken {
            Ok(()) => {
                // What is passed over at the end is done, too.
                if let Progress::At(at) = &self.certain {
                    self.next = self.next.max(at.version.next());
                }
                (0, Outcome::Done)
            }
            Err((done, outcome)) => (done, outcome),
        }
    }

    /// Returns the part of a range that is not in the read model: an attempt before this one may
    /// have stored its events, and nobody has learned of it.
    async fn not_stored(&mut self, range: &Range) -> Result<Range, HandlerError> {
        let known = self.look_up(&range.stream).await?;
        let mut range = range.clone();
        if let Progress::At(at) = &known
            && range.may_begin_before
            && at.version.next() < range.from
        {
            // The stream has not failed itself, so that nobody has looked for a gap before it.
            range.from = at.version.next();
        }
        if let Progress::At(at) = known
            && at.version >= range.from
        {
            let first = range.from.get();
            range.from = at.version.next().min(range.to.next());
            self.counts.duplicates += range.from.get() - first;
            self.next = range.from;
        }
        // History has no gaps and no duplicates.
        (self.progress, self.certain) = (Progress::NoBase, Progress::NoBase);
        Ok(range)
    }

    /// The position of a stream could not be had. If that is for good, such as after a panic, it is
    /// a failure of the first event of the range, which is read for its letter.
    async fn without_position(&self, range: &Range, error: HandlerError) -> (usize, Outcome) {
        let from = match range.may_begin_before {
            true => Version::NONE.next(),
            false => range.from,
        };
        if !matches!(error.class(), ErrorClass::Permanent | ErrorClass::Poison) {
            return failed(0, from, error, FailureOf::Store);
        }
        let of = match self.first_of(range, from).await {
            Ok(Some(of)) => of,
            Ok(None) => FailureOf::Store,
            Err(away) => return failed(0, from, away, FailureOf::Store),
        };
        failed(0, from, error, of)
    }

    /// Returns the event of a version of a parked stream, as the part that fails.
    async fn first_of(
        &self,
        range: &Range,
        from: Version,
    ) -> Result<Option<FailureOf>, HandlerError> {
        let Some(history) = self.shared.history.clone() else {
            let rows = &self.shared.rows;
            let partition = &self.work.partition;
            let page = rows.deferred_page(partition, &range.stream, (from, from), None);
            let page = self.in_time("control store", async { Ok(page.await?) });
            let first = page.await?.records.into_iter().next();
            return Ok(first.map(|(_, record)| FailureOf::Deferred(Box::new(record))));
        };
        let mut commits = history.read(&range.stream, ReadFrom::Event(from), None);
        let read = self.in_time("event store", async { Ok(commits.try_next().await?) });
        let Some(commit) = read.await? else {
            return Ok(None);
        };
        let mut events = commit.recorded();
        let event = events.find(|event| event.header.version == from);
        Ok(event.map(|event| FailureOf::Event(Box::new(event))))
    }

    async fn take_history(
        &mut self,
        range: &Range,
        history: &dyn EventStore,
    ) -> Result<(), (usize, Outcome)> {
        let partition = self.work.partition.clone();
        let mut commits = history.read(&range.stream, ReadFrom::Event(range.from), None);
        let mut expected = range.from;
        while expected <= range.to && !self.signals.is_to_finish() {
            let read = self.in_time("event store", async { Ok(commits.try_next().await?) });
            let commit = (read.await).map_err(|e| failed(0, expected, e, FailureOf::Store))?;
            let Some(commit) = commit else {
                self.is_short = true;
                return Ok(());
            };
            for event in commit.recorded() {
                let version = event.header.version;
                if version < expected || version > range.to {
                    continue;
                }
                self.handle(0, &event, EventSource::History, &partition)
                    .await?;
                (self.advance)();
                expected = version.next();
            }
        }
        Ok(())
    }

    async fn take_deferred(&mut self, range: &Range) -> Result<(), (usize, Outcome)> {
        let (rows, partition) = (self.shared.rows.clone(), self.work.partition.clone());
        let mut after = None;
        loop {
            let versions = (range.from, range.to);
            let page = rows.deferred_page(&partition, &range.stream, versions, after);
            let page = self
                .in_time("control store", async { Ok(page.await?) })
                .await;
            let page = page.map_err(|e| failed(0, range.from, e, FailureOf::Store))?;
            for (version, record) in page.records {
                if self.signals.is_to_finish() {
                    return Ok(());
                }
                let event = match from_message(&record.message) {
                    Ok(event) => event,
                    Err(error) => {
                        self.handle_pending().await?;
                        let of = FailureOf::Deferred(Box::new(record));
                        return Err(failed(0, version, HandlerError::poison(error), of));
                    }
                };
                self.handle(0, &event, EventSource::History, &partition)
                    .await?;
                (self.advance)();
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        // Versions without a record are of private events, or are in a gap.
        self.handle_pending().await?;
        self.next = range.to.next();
        Ok(())
    }

    /// Handles one event that has a letter. If it was given up, its stream has gone on without it,
    /// so that the position says nothing.
    async fn take_again(&mut self, again: &Again) -> (usize, Outcome) {
        let event = &*again.event;
        if !again.is_given_up {
            match self.look_up(&event.header.stream).await {
                Ok(Progress::At(at)) if at.version >= event.header.version => {
                    self.counts.duplicates += 1;
                    return (1, Outcome::Done);
                }
                Ok(_) => {}
                Err(error) if error.class() == ErrorClass::Permanent => {
                    let of = FailureOf::Event(Box::new(event.clone()));
                    return failed(0, event.header.version, error, of);
                }
                Err(error) => {
                    // That is no failure of the event: the request waits.
                    let stream = &event.header.stream;
                    tracing::warn!(%stream, error = crate::chain(error.source()), "the position of a stream could not be read for a redrive");
                    return (0, Outcome::Cancelled);
                }
            }
        }
        (self.progress, self.certain) = (Progress::NoBase, Progress::NoBase);
        let partition = self.work.partition.clone();
        let handled = self.handle(0, event, EventSource::History, &partition);
        let handled = match handled.await {
            Ok(()) => self.handle_pending().await,
            Err(failed) => Err(failed),
        };
        handled.map_or_else(|failed| failed, |()| (1, Outcome::Done))
    }

    /// Returns true if the event fills a gap. What a redrive reads from history fills none.
    fn is_filling(&self, filled: Option<&RecordedEvent>) -> bool {
        filled.is_some() && matches!(self.work.what, What::Records(_))
    }

    /// Reads one event, and handles it with the next call.
    async fn handle(
        &mut self,
        at: usize,
        event: &RecordedEvent,
        source: EventSource,
        partition: &PartitionId,
    ) -> Result<(), (usize, Outcome)> {
        let header = &event.header;
        let (version, commit_id) = (header.version, Some(header.event_id.commit_id()));
        let filled = (source == EventSource::History).then(|| Box::new(event.clone()));
        let is_filling = self.is_filling(filled.as_deref());
        if self.work.skip.contains(&version) {
            self.passed.push(version);
            self.counts.discarded += 1;
            self.passed_over(version, commit_id, partition);
            return Ok(());
        }
        let read = match self.read(event).await {
            Ok(read) => read,
            Err(error) => {
                // What comes before it is handled first.
                self.handle_pending().await?;
                let of = filled.map_or(FailureOf::Record, FailureOf::Event);
                return Err(failed(at, version, error, of));
            }
        };
        match read {
            Read::Event(event) => {
                self.progress.handled(version, commit_id, partition);
                let number = if at == 0 { self.work.number } else { 1 };
                let ctx = EventContext::new(self.shared.model.clone(), header.clone(), source)
                    .with_attempt(number, self.cancel.clone());
                self.pending.push(Pending {
                    record: at,
                    version,
                    event,
                    ctx,
                    filled,
                });
                if self.work.is_alone || self.pending.len() >= self.shared.rules.max_batch {
                    self.handle_pending().await?;
                }
                return Ok(());
            }
            Read::Nothing => self.counts.skipped += 1,
            Read::Shredded => self.counts.shredded += 1,
        }
        self.counts.filled += u64::from(is_filling);
        self.passed_over(version, commit_id, partition);
        Ok(())
    }

    /// Moves over an event that no handler gets.
    fn passed_over(
        &mut self,
        version: Version,
        commit_id: Option<crate::CommitId>,
        partition: &PartitionId,
    ) {
        self.settle(version);
        self.progress.handled(version, commit_id, partition);
        if self.pending.is_empty() {
            self.certain = self.progress.clone();
            self.next = self.next.max(version.next());
        }
    }

    fn settle(&mut self, version: Version) {
        if self.work.letters.contains(&version) {
            self.settled.push(version);
        }
    }

    /// Calls the handler with what is pending.
    async fn handle_pending(&mut self) -> Result<(), (usize, Outcome)> {
        let mut pending = std::mem::take(&mut self.pending);
        let asked = pending.len();
        if asked == 0 {
            return Ok(());
        }
        let mut notes = std::mem::take(&mut self.notes);
        notes.extend(pending.iter_mut().map(Note::of));
        let Answer {
            done,
            error,
            names_event,
        } = self.call(&mut pending).await;
        let work = self.work.clone();
        for note in notes.iter().take(done) {
            if done < asked {
                let commit_id = Some(note.commit_id);
                (self.certain).handled(note.version, commit_id, &work.partition);
            }
            self.next = self.next.max(note.version.next());
            self.settle(note.version);
            self.counts.handled += 1;
            self.counts.filled += u64::from(self.is_filling(note.filled.as_deref()));
        }
        let suspects = match (notes.first(), notes.last()) {
            (Some(first), Some(last)) if asked > 1 && !names_event => Some(Suspects {
                records: last.record - first.record + 1,
                last: last.version,
            }),
            _ => None,
        };
        let failed_one = notes.drain(..).nth(done.min(asked - 1));
        // The next call needs no new memory.
        (self.pending, self.notes) = (pending, notes);
        match (error, failed_one) {
            (Some(error), Some(note)) => {
                self.progress = self.certain.clone();
                let of = note.filled.map_or(FailureOf::Record, FailureOf::Event);
                let failure = Failure {
                    suspects,
                    ..Failure::new(note.version, error, of)
                };
                Err((note.record, Outcome::Failed(failure)))
            }
            _ => {
                self.certain = self.progress.clone();
                Ok(())
            }
        }
    }

    /// Calls the handler with all that are pending, of which there is at least one.
    async fn call(&mut self, pending: &mut Vec<Pending>) -> Answer {
        let asked = pending.len();
        let Some(first) = pending.first() else {
            return Answer::new(0, None);
        };
        let cause = match &self.work.what {
            What::Records(_) => Cause::Event,
            What::Range(_) | What::Again(_) => Cause::Redrive,
        };
        let span = self.shared.spans.process(&first.ctx, asked, cause);
        if let Some(caused) = self.shared.spans.caused(&span) {
            for event in &mut *pending {
                event.ctx.set_trace(Some(caused.clone()));
            }
        }
        // Work that the handler left elsewhere is told when nobody waits for the answer any more.
        let next = Arc::new(Cancel::of(self.signals.cancelled.clone()));
        let unanswered = Unanswered(Some(std::mem::replace(&mut self.cancel, next)));
        let processor = &self.shared.processor;
        let answer = if self.shared.rules.max_batch == 1
            && let Some(Pending { event, ctx, .. }) = pending.pop()
        {
            let call = processor.handle(&*event, &ctx);
            let call = call.map(|handled| (usize::from(handled.is_ok()), handled.err()));
            self.answer("handler", call, &span, unanswered).await
        } else {
            let events = pending.drain(..).map(|p| (p.event, p.ctx)).collect();
            let call = processor.handle_batch(events);
            self.answer("batch handler", call, &span, unanswered).await
        };
        let done = answer.done;
        match answer.error {
            None if done == asked => Answer::new(asked, None),
            Some(error) if done < asked => Answer {
                error: Some(error),
                ..answer
            },
            error => {
                let reason = format!(
                    "the batch handler says that it has handled {done} of {asked} events, {}: a batch is done with all of its events and no error, or with less and the error of the next one",
                    if error.is_some() {
                        "with an error"
                    } else {
                        "without an error"
                    }
                );
                Answer::new(done.min(asked - 1), Some(HandlerError::permanent(reason)))
            }
        }
    }

    /// Waits for a call of a handler, at most for the timeout.
    async fn answer(
        &self,
        what: &str,
        call: impl Future<Output = Handled> + Send,
        span: &Span,
        unanswered: Unanswered,
    ) -> Answer {
        let timeout = self.shared.rules.timeout;
        let call = AssertUnwindSafe(call.instrument(span.clone())).catch_unwind();
        #[cfg(feature = "metrics")]
        let began = tokio::time::Instant::now();
        let mut call = pin!(call);
        let called = match futures::poll!(call.as_mut()) {
            // Most calls never wait, and need no timer.
            Poll::Ready(called) => Ok(called),
            Poll::Pending => tokio::time::timeout(timeout, call).await,
        };
        let answer = match called {
            Err(_) => Answer::of_no_event(HandlerError::timed_out(timeout)),
            Ok(Err(panic)) => {
                let message = panic_message(what, &*panic);
                Answer::of_no_event(HandlerError::permanent(message))
            }
            Ok(Ok((done, error))) => {
                unanswered.answered();
                Answer::new(done, error)
            }
        };
        if let Some(error) = &answer.error {
            spans::failed(span, error);
        }
        #[cfg(feature = "metrics")]
        super::metrics::called(
            self.shared.model.processor(),
            began.elapsed(),
            answer.error.as_ref().map(HandlerError::class),
        );
        answer
    }
}

fn failed(done: usize, version: Version, error: HandlerError, of: FailureOf) -> (usize, Outcome) {
    (done, Outcome::Failed(Failure::new(version, error, of)))
}
