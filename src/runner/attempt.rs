//! One attempt at the head of a stream's queue: check the version, fill a gap from history, decode, handle.
use super::{
    EventContext, EventSource, HandlerError, ModelId, Position, Start, UnknownEvents,
    erased::{AnyEvent, ErasedProcessor},
    streams::Progress,
};
use crate::{
    CodecError, CommitId, EventHeader, Opened, PayloadCodecs, PayloadContext, RecordedEvent,
    StreamId, Upcasters, Version,
    ports::{AssignmentEpoch, EventStore, Offset, PartitionId, ReadFrom},
};
use bytes::Bytes;
use futures::TryStreamExt;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// A record as received and understood.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) partition: PartitionId,
    pub(super) offset: Offset,
    pub(super) epoch: AssignmentEpoch,
    pub(super) event: RecordedEvent,
    /// The version of the stream's previous record in the topic, if the record says that it is not the version before.
    pub(super) previous: Option<Version>,
}

/// What the attempts of one processor share.
pub(super) struct Shared {
    pub(super) processor: Arc<dyn ErasedProcessor>,
    pub(super) model: ModelId,
    pub(super) history: Option<Arc<dyn EventStore>>,
    pub(super) upcasters: Upcasters,
    pub(super) codecs: PayloadCodecs,
    pub(super) unknown_events: UnknownEvents,
    pub(super) start: Start,
    pub(super) timeout: Duration,
}

/// Counts of what was done; a processor's report is their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) handled: u64,
    pub(super) skipped: u64,
    pub(super) shredded: u64,
    pub(super) duplicates: u64,
    pub(super) filled: u64,
    pub(super) gaps_unverified: u64,
}

/// How an attempt ended. What it got done counts even if it failed.
pub(super) struct Attempted {
    pub(super) progress: Progress,
    pub(super) tally: Tally,
    pub(super) result: Result<(), Failure>,
}

/// What came of reading an event.
enum Read {
    Event(Box<AnyEvent>),
    /// Retired, or of no interest.
    Nothing,
    Shredded,
}

/// An event that could not be handled.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) version: Version,
    pub(super) error: HandlerError,
}

/// The history that a processor has followed is not the history that is stored now.
#[derive(Debug, thiserror::Error)]
#[error(
    "the history of {stream} has forked: version {version} was of commit {followed}, now it is of {found}; rebuild the read model"
)]
pub(super) struct HistoryForked {
    stream: StreamId,
    version: Version,
    followed: CommitId,
    found: CommitId,
}

pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) incoming: Arc<Incoming>,
    pub(super) number: u32,
    pub(super) cancelled: CancellationToken,
    pub(super) progress: Progress,
    pub(super) tally: Tally,
}

impl Attempt {
    pub(super) async fn run(mut self) -> Attempted {
        let result = self.take_in().await;
        Attempted {
            progress: self.progress,
            tally: self.tally,
            result,
        }
    }

    async fn take_in(&mut self) -> Result<(), Failure> {
        let incoming = self.incoming.clone();
        let header = &incoming.event.header;
        let stream = &header.stream;
        let here = |error| Failure {
            version: header.version,
            error,
        };
        if !self.subscribes_to(stream) {
            self.tally.skipped += 1;
            return Ok(());
        }
        if self.progress == Progress::Unknown || self.number > 1 {
            self.progress = self.look_up(stream).await.map_err(here)?;
        }
        if let Progress::At(version, commit) = self.progress {
            if header.version <= version {
                self.check_fork(header.version, version, commit)
                    .map_err(here)?;
                self.tally.duplicates += 1;
                return Ok(());
            }
            // The versions between the previous record and this one are in no record, so only a gap before the previous
            // record is one.
            let next = incoming.previous.map_or(header.version, Version::next);
            if next > version.next() {
                self.fill(stream, version, next).await?;
            }
        }
        let source = EventSource::Bus {
            partition: incoming.partition.clone(),
            offset: incoming.offset,
        };
        self.handle(&incoming.event, source).await
    }

    /// Foreign aggregate types are passed without a look at the payload, and without keeping progress for them.
    fn subscribes_to(&self, stream: &StreamId) -> bool {
        let selectors = self.shared.processor.selectors();
        selectors.iter().any(|s| s.aggregate == stream.aggregate())
    }

    /// Asked again before a retry: the attempt that failed may have stored its event, and only its answer was lost.
    async fn look_up(&self, stream: &StreamId) -> Result<Progress, HandlerError> {
        let asked = self.shared.processor.position(&self.shared.model, stream);
        Ok(match (self.in_time(asked).await?, self.progress) {
            (Position::KeptByRunner, Progress::Unknown) => Progress::NoBase,
            (Position::KeptByRunner, known) => known,
            // What lies before the start is not wanted: the first event seen is the base.
            (Position::Stored { version, .. }, Progress::Unknown | Progress::NoBase)
                if version == Version::NONE && self.shared.start == Start::Now =>
            {
                Progress::NoBase
            }
            // Events that were skipped since are not in the read model.
            (Position::Stored { version, .. }, Progress::At(known, _)) if known > version => {
                self.progress
            }
            (Position::Stored { version, commit_id }, _) => Progress::At(version, commit_id),
        })
    }

    /// A version that was followed under another commit id is another history.
    fn check_fork(
        &self,
        seen: Version,
        position: Version,
        followed: Option<CommitId>,
    ) -> Result<(), HandlerError> {
        let header = &self.incoming.event.header;
        let found = header.event_id.commit_id();
        match followed {
            Some(followed) if seen == position && followed != found => {
                Err(HandlerError::fatal(HistoryForked {
                    stream: header.stream.clone(),
                    version: seen,
                    followed,
                    found,
                }))
            }
            _ => Ok(()),
        }
    }

    /// Handles what the bus has skipped between `position` and `next`. Without a history source the gap is only counted.
    async fn fill(
        &mut self,
        stream: &StreamId,
        position: Version,
        next: Version,
    ) -> Result<(), Failure> {
        let Some(history) = self.shared.history.clone() else {
            self.tally.gaps_unverified += 1;
            // It has been passed: a retry of what follows it does not meet it again.
            self.progress = Progress::At(Version::new(next.get() - 1), None);
            return Ok(());
        };
        let failed = |version, error: HandlerError| Failure { version, error };
        let mut commits = history.read(stream, ReadFrom::Event(position.next()), None);
        let mut expected = position.next();
        loop {
            let read = self.in_time(async { Ok(commits.try_next().await?) });
            let commit = read.await.map_err(|e| failed(expected, e))?;
            let Some(commit) = commit else { break };
            for event in commit.recorded() {
                let version = event.header.version;
                if version < expected {
                    continue;
                }
                if version >= next {
                    return Ok(());
                }
                self.handle(&event, EventSource::History).await?;
                self.tally.filled += 1;
                expected = version.next();
            }
        }
        if expected < next {
            let gap = format!("{stream} ends before version {next} in the event store");
            return Err(failed(expected, HandlerError::transient(gap)));
        }
        Ok(())
    }

    /// Lifts, decodes and handles one event, and moves the progress over it.
    async fn handle(&mut self, event: &RecordedEvent, source: EventSource) -> Result<(), Failure> {
        let version = event.header.version;
        let done = self.handle_one(event, source).await;
        done.map_err(|error| Failure { version, error })?;
        self.progress = Progress::At(version, Some(event.header.event_id.commit_id()));
        Ok(())
    }

    async fn handle_one(
        &mut self,
        event: &RecordedEvent,
        source: EventSource,
    ) -> Result<(), HandlerError> {
        let decoded = match self.read(event).await? {
            Read::Event(decoded) => decoded,
            Read::Nothing => {
                self.tally.skipped += 1;
                return Ok(());
            }
            Read::Shredded => {
                self.tally.shredded += 1;
                return Ok(());
            }
        };
        let cancelled = self.cancelled.child_token();
        let ctx = EventContext::new(self.shared.model.clone(), event.header.clone(), source)
            .with_attempt(self.number, cancelled.clone());
        let handled = async {
            // Work that the handler left elsewhere is told when nobody waits for the answer any more: after a timeout,
            // a panic, or the end of the run.
            let unanswered = cancelled.drop_guard();
            let handled = self.shared.processor.handle(&*decoded, &ctx).await;
            unanswered.disarm();
            handled
        };
        self.in_time(handled).await?;
        self.tally.handled += 1;
        Ok(())
    }

    /// Opens, lifts and decodes.
    async fn read(&self, event: &RecordedEvent) -> Result<Read, HandlerError> {
        let header = &event.header;
        let decoded = match header.codec.as_deref() {
            None => self.decode(header, &event.payload),
            Some(tags) if self.may_know(header) => {
                let context = PayloadContext::of_event(header);
                let open = self
                    .shared
                    .codecs
                    .open(&context, Some(tags), &event.payload);
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
                if self.shared.unknown_events == UnknownEvents::Skip =>
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
        let Shared {
            processor,
            upcasters,
            ..
        } = &*self.shared;
        processor.decode(upcasters, header, payload)
    }

    /// Whether the event is in the processor's set, or may be after a rename.
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
        match tokio::time::timeout(self.shared.timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(HandlerError::transient(format!(
                "it took longer than the attempt timeout of {:?}",
                self.shared.timeout
            ))),
        }
    }
}
