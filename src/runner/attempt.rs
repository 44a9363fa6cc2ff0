//! One attempt at the first records of a lane: check each version, fill gaps from history, decode,
//! handle.
use super::{
    EventContext, EventSource, HandlerError, ModelId, Position, Start, UnknownEvents,
    erased::{AnyEvent, ErasedProcessor},
    machine::{Ended, Failure, Outcome, Record, Work},
    report::Counts,
    step::{Arrived, HistoryForked, Step, next_step},
    streams::Progress,
};
use crate::{
    CodecError, EventHeader, Opened, PayloadCodecs, PayloadContext, RecordedEvent, StreamId,
    Upcasters, Version,
    control::StreamPositions,
    ports::{EventStore, PartitionId, ReadFrom},
};
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// What the attempts of one processor share.
pub(super) struct Shared {
    pub(super) processor: Arc<dyn ErasedProcessor>,
    pub(super) model: ModelId,
    pub(super) history: Option<Arc<dyn EventStore>>,
    /// The stored positions, at the level that stores them.
    pub(super) positions: Option<StreamPositions>,
    pub(super) upcasters: Upcasters,
    pub(super) codecs: PayloadCodecs,
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

/// What came of reading an event.
enum Read {
    Event(Box<AnyEvent>),
    /// Retired, or of no interest.
    Nothing,
    Shredded,
}

/// An event that waits for the next call of the handler.
struct Pending {
    /// The record that it comes from, or before.
    record: usize,
    version: Version,
    event: Box<AnyEvent>,
    ctx: EventContext,
    is_late: bool,
    is_filled: bool,
}

/// The signals to an attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct Signals {
    /// The result no longer counts.
    pub(super) cancelled: CancellationToken,
    /// The attempt is to end after its current call.
    pub(super) finish: CancellationToken,
}

pub(super) struct Attempt<F> {
    shared: Arc<Shared>,
    work: Work,
    signals: Signals,
    /// Tells that the next call of a handler begins.
    advance: F,
    /// With what is pending counted as handled.
    progress: Progress,
    /// Without it.
    certain: Progress,
    pending: Vec<Pending>,
    counts: Counts,
}

impl<F: Fn() + Send + Sync> Attempt<F> {
    pub(super) fn new(shared: Arc<Shared>, mut work: Work, signals: Signals, advance: F) -> Self {
        let progress = std::mem::replace(&mut work.progress, Progress::Unknown);
        Self {
            shared,
            work,
            signals,
            advance,
            certain: progress.clone(),
            progress,
            pending: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub(super) async fn run(mut self) -> Ended {
        let records = std::mem::take(&mut self.work.records);
        let (done, result) = self.take_all(&records).await;
        Ended {
            progress: self.certain,
            done,
            counts: self.counts,
            result,
        }
    }

    async fn take_all(&mut self, records: &[Arc<Record>]) -> (usize, Outcome) {
        for (at, record) in records.iter().enumerate() {
            if at > 0 && self.signals.finish.is_cancelled() {
                let done = self.pending.first().map_or(at, |pending| pending.record);
                return (done, Outcome::Done);
            }
            if let Err(failed) = self.take(at, record).await {
                return failed;
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
        let here = |error| failed(at, header.version, error);
        if self.progress == Progress::Unknown || (at == 0 && self.work.number > 1) {
            self.progress = self.look_up(stream).await.map_err(here)?;
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
            Step::Handle => self.handle(at, &record.event, source(), record).await,
            Step::Late => {
                self.counts.out_of_order += 1;
                self.handle(at, &record.event, source(), record).await
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
                self.handle(at, &record.event, source(), record).await
            }
        }
    }

    /// Asked again before a retry: the attempt that failed may have stored its event, and only its
    /// answer was lost.
    async fn look_up(&self, stream: &StreamId) -> Result<Progress, HandlerError> {
        let asked = self.shared.processor.position(&self.shared.model, stream);
        let rules = &self.shared.rules;
        Ok(match (self.in_time(asked).await?, &self.progress) {
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
            (Position::Stored { version, .. }, Progress::At(known)) if known.version >= version => {
                self.progress.clone()
            }
            (Position::Stored { version, commit_id }, _) => Progress::at(version, commit_id),
        })
    }

    async fn stored_position(&self, stream: &StreamId) -> Result<Progress, HandlerError> {
        let Some(positions) = &self.shared.positions else {
            return Ok(Progress::NoBase);
        };
        let stored = async { Ok(positions.get(stream).await?) };
        let stored = self.in_time(stored).await?;
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
            let read = self.in_time(async { Ok(commits.try_next().await?) });
            let commit = read.await.map_err(|e| failed(at, expected, e))?;
            let Some(commit) = commit else {
                let gap = format!("{stream} ends before version {last} in the event store");
                return Err(failed(at, expected, HandlerError::transient(gap)));
            };
            for event in commit.recorded() {
                let version = event.header.version;
                if version < expected || version > last {
                    continue;
                }
                self.handle(at, &event, EventSource::History, record)
                    .await?;
                (self.advance)();
                expected = version.next();
            }
        }
        Ok(())
    }

    /// Reads one event, and handles it with the next call.
    async fn handle(
        &mut self,
        at: usize,
        event: &RecordedEvent,
        source: EventSource,
        record: &Record,
    ) -> Result<(), (usize, Outcome)> {
        let header = &event.header;
        let version = header.version;
        let read = match self.read(event).await {
            Ok(read) => read,
            Err(error) => {
                // What comes before it is handled first.
                self.handle_pending().await?;
                return Err(failed(at, version, error));
            }
        };
        let is_filled = source == EventSource::History;
        let commit_id = Some(header.event_id.commit_id());
        let partition: &PartitionId = &record.partition;
        let is_late = matches!(&self.progress, Progress::At(at) if version <= at.version);
        self.progress.handled(version, commit_id, partition);
        match read {
            Read::Event(event) => {
                let number = if at == 0 { self.work.number } else { 1 };
                let cancelled = self.signals.cancelled.child_token();
                let ctx = EventContext::new(self.shared.model.clone(), header.clone(), source)
                    .with_attempt(number, cancelled);
                self.pending.push(Pending {
                    record: at,
                    version,
                    event,
                    ctx,
                    is_late,
                    is_filled,
                });
                if self.pending.len() >= self.shared.rules.max_batch {
                    self.handle_pending().await?;
                }
                return Ok(());
            }
            Read::Nothing => self.counts.skipped += 1,
            Read::Shredded => self.counts.shredded += 1,
        }
        self.counts.filled += u64::from(is_filled);
        if self.pending.is_empty() {
            self.certain = self.progress.clone();
        }
        Ok(())
    }

    /// Calls the handler with what is pending.
    async fn handle_pending(&mut self) -> Result<(), (usize, Outcome)> {
        let pending = std::mem::take(&mut self.pending);
        let asked = pending.len();
        if asked == 0 {
            return Ok(());
        }
        let notes: Vec<_> = (pending.iter())
            .map(|p| (p.record, p.version, p.ctx.clone(), p.is_late, p.is_filled))
            .collect();
        let (done, error) = self.call(pending).await;
        for (_, version, ctx, _, is_filled) in &notes[..done] {
            let commit_id = ctx.header().event_id.commit_id();
            if done < asked {
                let partition = PartitionId::new("", 0);
                self.certain.handled(*version, Some(commit_id), &partition);
            }
            self.counts.handled += 1;
            self.counts.filled += u64::from(*is_filled);
        }
        match error {
            None => {
                self.certain = self.progress.clone();
                Ok(())
            }
            Some(error) => {
                let (record, version, ..) = &notes[done.min(asked - 1)];
                self.progress = self.certain.clone();
                Err(failed(*record, *version, error))
            }
        }
    }

    /// Returns how many events were handled, and the error of the next one.
    async fn call(&self, mut pending: Vec<Pending>) -> (usize, Option<HandlerError>) {
        let asked = pending.len();
        let tokens: Vec<_> = pending.iter().map(|p| p.ctx.cancel_token()).collect();
        // Work that the handler left elsewhere is told when nobody waits for the answer any more:
        // after a timeout, a panic, or the end of the run.
        let unanswered: Vec<_> = tokens
            .into_iter()
            .map(CancellationToken::drop_guard)
            .collect();
        let (what, call) = if self.shared.rules.max_batch == 1
            && let Some(Pending { event, ctx, .. }) = pending.pop()
        {
            let processor = self.shared.processor.clone();
            let call = async move {
                let handled = processor.handle(&*event, &ctx).await;
                (usize::from(handled.is_ok()), handled.err())
            };
            ("handler", call.boxed())
        } else {
            let events = pending.into_iter().map(|p| (p.event, p.ctx)).collect();
            ("batch handler", self.shared.processor.handle_batch(events))
        };
        let timeout = self.shared.rules.timeout;
        let called = tokio::time::timeout(timeout, AssertUnwindSafe(call).catch_unwind()).await;
        let (done, error) = match called {
            Err(_) => (0, Some(HandlerError::timed_out(timeout))),
            Ok(Err(panic)) => {
                let message = panic_message(what, &*panic);
                (0, Some(HandlerError::permanent(message)))
            }
            Ok(Ok(answer)) => {
                for guard in unanswered {
                    guard.disarm();
                }
                answer
            }
        };
        match error {
            None if done == asked => (asked, None),
            Some(error) if done < asked => (done, Some(error)),
            error => {
                let reason = format!(
                    "the batch handler says that it has handled {done} of {asked} events, {}: a batch is done with all of its events and no error, or with less and the error of the next one",
                    if error.is_some() {
                        "with an error"
                    } else {
                        "without an error"
                    }
                );
                (done.min(asked - 1), Some(HandlerError::permanent(reason)))
            }
        }
    }

    /// Opens, lifts and decodes.
    async fn read(&self, event: &RecordedEvent) -> Result<Read, HandlerError> {
        let header = &event.header;
        let decoded = match header.codec.as_deref() {
            None => self.decode(header, &event.payload),
            Some(tags) if self.may_know(header) => {
                let context = PayloadContext::of_event(header);
                let codecs = &self.shared.codecs;
                let open = codecs.open(&context, Some(tags), &event.payload);
                let open = async { open.await.map_err(HandlerError::unreadable) };
                match self.in_time(open).await? {
                    Opened::Payload(payload) => self.decode(header, &payload),
                    Opened::Shredded => return Ok(Read::Shredded),
                }
            }
            // What is of no interest needs no codec, nor a key that this service may not even have.
            Some(_) => Err(CodecError::UnknownEvent {
                aggregate: header.stream.aggregate().into(),
                name: header.name.to_string(),
            }),
        };
        match decoded {
            Ok(decoded) => Ok(decoded.map_or(Read::Nothing, Read::Event)),
            Err(CodecError::UnknownEvent { .. })
                if self.shared.rules.unknown_events == UnknownEvents::Skip =>
            {
                Ok(Read::Nothing)
            }
            Err(error) => Err(HandlerError::unreadable(error)),
        }
    }

    fn decode(
        &self,
        header: &EventHeader,
        payload: &Bytes,
    ) -> Result<Option<Box<AnyEvent>>, CodecError> {
        let shared = &*self.shared;
        shared.processor.decode(&shared.upcasters, header, payload)
    }

    /// Returns true if the event is in the processor's set, or may be after a rename.
    fn may_know(&self, header: &EventHeader) -> bool {
        let aggregate = header.stream.aggregate();
        let selectors = self.shared.processor.selectors();
        let mut mine = selectors.iter().filter(|s| s.aggregate == aggregate);
        mine.any(|s| s.types.iter().any(|t| header.name == t.name()))
            || self.shared.upcasters.know(aggregate, &header.name)
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, HandlerError>>,
    ) -> Result<T, HandlerError> {
        let timeout = self.shared.rules.timeout;
        match tokio::time::timeout(timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(HandlerError::timed_out(timeout)),
        }
    }
}

fn failed(done: usize, version: Version, error: HandlerError) -> (usize, Outcome) {
    (done, Outcome::Failed(Failure { version, error }))
}

/// Returns what a panic of this function said.
pub(super) fn panic_message(what: &str, payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("the {what} panicked: {}", text.unwrap_or("no message"))
}
