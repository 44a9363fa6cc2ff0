//! One attempt at the first records of a lane: check each version, fill gaps from history, decode,
//! handle.
mod call;
mod commits;
mod history;
mod public;
mod read;

pub(crate) use self::commits::{KnownSkips, Only};
use self::{
    call::{Note, Pending},
    history::Gap,
    read::Read,
};
pub(super) use self::{public::PublicHistory, read::panic_message};
use super::{
    EventContext, EventSource, HandlerError, ModelId, Position, Start, UnknownEvents,
    erased::ErasedProcessor,
    machine::{Calls, Ended, Failure, FailureOf, Outcome, Record, What, Work},
    report::Counts,
    signals::{Cancel, Signals},
    spans::Spans,
    step::{Arrived, HistoryForked, Step, next_step},
    streams::Progress,
};
use crate::{
    PayloadCodecs, RecordedEvent, StreamId, Upcasters, Version,
    control::{ProcessorRows, StreamPositions},
    ports::{EventStore, PartitionId},
    resilience::FailureClass,
};
use std::{sync::Arc, time::Duration};

/// The parts that the attempts of one processor share.
pub(super) struct Shared {
    pub(super) processor: Arc<dyn ErasedProcessor>,
    pub(super) model: ModelId,
    pub(super) history: Option<Arc<dyn EventStore>>,
    pub(super) public: PublicHistory,
    /// The stored positions, at the level that stores them.
    pub(super) positions: Option<StreamPositions>,
    /// The rows about failed events.
    pub(super) rows: ProcessorRows,
    pub(super) upcasters: Upcasters,
    pub(super) codecs: PayloadCodecs,
    pub(super) spans: Spans,
    pub(super) rules: AttemptRules,
    /// The part of the history that a filtered replay repeats; `None` for all.
    pub(super) only: Option<Only>,
}

/// The part of the policy that concerns one attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptRules {
    pub(super) unknown_events: UnknownEvents,
    pub(super) start: Start,
    pub(super) timeout: Duration,
    /// The most events that one call of the handler gets.
    pub(super) max_batch: usize,
    /// A circuit breaker counts the calls of the handler.
    pub(super) counts_calls: bool,
    /// The projector must store its positions.
    pub(super) needs_position: bool,
}

/// The memory that one attempt leaves to the next one. An attempt that is dropped leaves none.
#[derive(Default)]
pub(super) struct Buffers {
    pending: Vec<Pending>,
    notes: Vec<Note>,
}

pub(super) struct Attempt {
    shared: Arc<Shared>,
    work: Arc<Work>,
    signals: Signals,
    /// With what is pending counted as handled.
    progress: Progress,
    /// Without it.
    certain: Progress,
    pending: Vec<Pending>,
    /// Empty between two calls.
    notes: Vec<Note>,
    /// Of the next call, once an event waits for it.
    cancel: Option<Cancel>,
    /// The handler was called.
    has_called: bool,
    counts: Counts,
    passed: Vec<Version>,
    /// Of a range: the first version that is not done.
    next: Version,
    is_short: bool,
    /// The versions with a letter that were handled or passed over.
    settled: Vec<Version>,
    calls: Calls,
}

impl Attempt {
    pub(super) fn new(shared: Arc<Shared>, work: Arc<Work>, signals: Signals) -> Self {
        let progress = work.progress.clone();
        Self {
            cancel: None,
            has_called: false,
            shared,
            work,
            signals,
            certain: progress.clone(),
            progress,
            pending: Vec::new(),
            notes: Vec::new(),
            counts: Counts::default(),
            passed: Vec::new(),
            next: Version::NONE,
            is_short: false,
            settled: Vec::new(),
            calls: Calls::default(),
        }
    }

    pub(super) async fn run(mut self, buffers: &mut Buffers) -> Ended {
        (self.pending, self.notes) = (
            std::mem::take(&mut buffers.pending),
            std::mem::take(&mut buffers.notes),
        );
        let work = self.work.clone();
        let (done, result) = match &work.what {
            What::Records(records) => self.take_all(records).await,
            // Boxed, so that the future of an attempt at records stays small.
            What::Range(range) => Box::pin(self.take_range(range)).await,
            What::Again(again) => Box::pin(self.take_again(again)).await,
            What::Commits(commits) => Box::pin(self.take_commits(commits)).await,
        };
        self.pending.clear();
        self.notes.clear();
        (buffers.pending, buffers.notes) = (self.pending, self.notes);
        Ended {
            progress: self.certain,
            done,
            counts: self.counts,
            result,
            passed: self.passed,
            next: self.next,
            is_short: self.is_short,
            settled: self.settled,
            calls: self.calls,
            has_waited: false,
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
        if self.progress == Progress::Unknown || (at == 0 && self.work.is_repeat) {
            let progress = Box::pin(self.look_up(stream)).await;
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
                Box::pin(self.fill(at, Gap::before(record), first, last)).await?;
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
                let cancel = self.cancel_of_next_call();
                let model = self.shared.model.clone();
                let ctx = EventContext::of_attempt(model, header.clone(), source, number, cancel);
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

    fn cancel_of_next_call(&mut self) -> Cancel {
        let create = || {
            let attempt = self.signals.clone();
            if self.has_called {
                Cancel::of_later(attempt)
            } else {
                Cancel::of_first(attempt)
            }
        };
        self.cancel.get_or_insert_with(create).clone()
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
}

fn failed(done: usize, version: Version, error: HandlerError, of: FailureOf) -> (usize, Outcome) {
    (done, Outcome::Failed(Failure::new(version, error, of)))
}
