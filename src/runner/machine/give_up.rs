//! Giving up events whose retries are spent: by a dead letter, by an audit row, by parking the
//! stream, or by halting.
use super::{
    Failure, Machine, Rules,
    lanes::LaneKey,
    record::Record,
    retry::Retry,
    rows::{RowAnswer, RowOp},
    tasks::{DiscardStep, GiveUp, How, Kind, ParkStep, Reply, TaskId},
};
use crate::{
    StreamId, Timestamp, Version,
    control::{
        AuditRow, DeadLetter, DiscardRow, DiscardState, Failed, Fingerprint, LetterBody, LetterKey,
        ParkFailure, ParkNotes, PutIf, Stored,
    },
    runner::{ErrorClass, FailedEvent, FailureAction, RunnerError, streams::Progress},
};
use std::sync::Arc;
use tokio::time::Instant;

impl Machine {
    /// Does what the policy says about an event that is not tried again.
    pub(super) fn exhausted(
        &mut self,
        lane: &LaneKey,
        record: &Arc<Record>,
        failure: Failure,
        retry: &Retry,
        now: Instant,
    ) {
        let class = failure.error.class();
        let action = if class == ErrorClass::Fatal {
            FailureAction::Halt
        } else {
            self.action(record, &failure, retry)
        };
        let stream = &record.event.header.stream;
        tracing::warn!(processor = %self.rules.name, %stream, version = %failure.version, attempts = retry.attempts(), ?class, ?action, error = crate::chain(failure.error.source()), "the event is not tried again");
        let wall = self.rules.wall(now);
        let (letter, how) = match action {
            FailureAction::Halt => {
                let error = RunnerError::halted(&self.rules.name, record, failure, retry);
                return self.halt(error, now);
            }
            FailureAction::Park if !self.may_park(now) => {
                // The limit is reached: the head stays where it is, and its attempts are not spent.
                return self.lanes.hold(lane);
            }
            FailureAction::Park => {
                let letter =
                    self.rules
                        .letter_of(stream, &failure, retry, wall, &LetterOf::Record(record));
                let failed = ParkFailure {
                    version: failure.version,
                    fingerprint: letter.1.head.fingerprint,
                    attempts: retry.attempts(),
                    at: wall,
                };
                let step = ParkStep::Flush(self.checkpoint.flushes_begun());
                (Some(letter), How::Park(failed, step))
            }
            FailureAction::DeadLetter if !self.may_write_letter() => {
                return self.lanes.hold(lane);
            }
            FailureAction::DeadLetter => {
                let of = LetterOf::Record(record);
                let (key, letter) = self.rules.letter_of(stream, &failure, retry, wall, &of);
                let letter = Arc::new(Arc::unwrap_or_clone(letter).given_up());
                (Some((key, letter)), How::Letter)
            }
            FailureAction::Discard(reason) => {
                let row = DiscardRow::asked(&self.rules.by_policy(), &reason, wall).passed();
                let is_record = failure.event().is_none();
                let row = if is_record {
                    row.at_offset(record.offset)
                } else {
                    row
                };
                let (name, version) = (&self.rules.name, failure.version);
                let target = format!("{name} {stream} version {version}");
                let entry = self.rules.audit_of_discard(target, &reason, now);
                let how = How::Discard(DiscardStep::Audit, row);
                let give_up = GiveUp::new(lane, record, &failure, None, how);
                return self.begin_give_up(record, give_up, Some(RowOp::Audit(entry)));
            }
        };
        let op = match (&letter, &how) {
            (Some((key, letter)), How::Letter) => {
                Some(RowOp::WriteLetter(key.clone(), letter.clone()))
            }
            _ => None,
        };
        let give_up = GiveUp::new(lane, record, &failure, letter, how);
        self.begin_give_up(record, give_up, op);
    }

    fn begin_give_up(&mut self, record: &Record, give_up: GiveUp, op: Option<RowOp>) {
        self.lanes.block(&give_up.lane, 1);
        let kind = Kind::GiveUp(Box::new(give_up));
        self.begin_task(&record.partition, record.epoch, kind, op);
    }

    /// Asks the policy.
    fn action(&self, record: &Record, failure: &Failure, retry: &Retry) -> FailureAction {
        let header = failure.event().map_or(&record.event.header, |e| &e.header);
        let event = FailedEvent {
            processor: &self.rules.name,
            is_projector: self.rules.is_projector,
            header: Some(header),
            partition: &record.partition,
            offset: record.offset,
            attempts: retry.attempts(),
            error: &failure.error,
            may_be_ours: true,
        };
        self.rules.policy.on_failure.decide(&event)
    }

    /// Goes on with parking once the read model is flushed.
    pub(super) fn park_flushed(&mut self, id: TaskId) {
        let Some((reply, Kind::GiveUp(mut give_up))) = self.tasks.take(id) else {
            return;
        };
        if let How::Park(_, step) = &mut give_up.how {
            *step = ParkStep::Order;
        }
        self.park_on(&reply, give_up);
    }

    fn park_on(&mut self, reply: &Reply, give_up: Box<GiveUp>) {
        let stream = give_up.record.event.header.stream.clone();
        let How::Park(failed, step) = &give_up.how else {
            return;
        };
        let progress = self.streams.get(&stream);
        let notes = self.rules.park_notes(&progress, failed.version);
        let op = match step {
            ParkStep::Flush(_) => None,
            ParkStep::Order => match self.rules.order_op(&give_up.record) {
                Some(op) => Some(op),
                None => return self.park_next(reply, give_up),
            },
            ParkStep::Deferred if self.rules.has_event_store => {
                return self.park_next(reply, give_up);
            }
            ParkStep::Deferred => {
                let version = give_up.record.event.header.version;
                let record = Arc::new(give_up.record.stored());
                Some(RowOp::PutDeferred(stream, version, record))
            }
            ParkStep::Letter => match &give_up.letter {
                Some((key, letter)) => Some(RowOp::WriteLetter(key.clone(), letter.clone())),
                None => Some(RowOp::Park(stream, failed.clone(), notes)),
            },
            ParkStep::Create => Some(RowOp::Park(stream, failed.clone(), notes)),
            ParkStep::Announce => Some(RowOp::Announce),
        };
        self.go_on(reply, Kind::GiveUp(give_up), op);
    }

    /// Goes on with the step of parking after one that is done, or that is not needed.
    fn park_next(&mut self, reply: &Reply, mut give_up: Box<GiveUp>) {
        if let How::Park(_, step) = &mut give_up.how {
            *step = match step {
                ParkStep::Order => ParkStep::Deferred,
                _ => ParkStep::Letter,
            };
        }
        self.park_on(reply, give_up);
    }

    /// Takes the answer to an operation about an event that is given up.
    pub(super) fn given_up(&mut self, reply: &Reply, mut give_up: Box<GiveUp>, now: Instant) {
        let stream = give_up.record.event.header.stream.clone();
        match &mut give_up.how {
            How::Letter => {
                self.counts.dead_letters += 1;
                self.note_letter(reply, &give_up);
                self.pass_over(reply, &give_up);
            }
            How::Discard(step @ DiscardStep::Audit, row) => {
                *step = DiscardStep::Row;
                let op = RowOp::PutDiscard(stream, give_up.version, row.clone());
                self.go_on(reply, Kind::GiveUp(give_up), Some(op));
            }
            How::Discard(DiscardStep::Row, _) => {
                if let RowAnswer::Discard(PutIf::Conflict(Some(row))) = &reply.answer
                    && row.value.state == DiscardState::Asked
                {
                    // An operator has asked for it meanwhile.
                    let (value, seen) = (row.value.passed(), row.revision);
                    let op = RowOp::ReplaceDiscard(stream, give_up.version, value, seen);
                    return self.go_on(reply, Kind::GiveUp(give_up), Some(op));
                }
                self.counts.discarded += 1;
                self.pass_over(reply, &give_up);
            }
            How::Park(_, step) => match step {
                ParkStep::Flush(_) => {}
                ParkStep::Order | ParkStep::Deferred => self.park_next(reply, give_up),
                ParkStep::Letter => {
                    *step = ParkStep::Create;
                    self.note_letter(reply, &give_up);
                    self.park_on(reply, give_up);
                }
                ParkStep::Create => {
                    *step = ParkStep::Announce;
                    if let RowAnswer::Park(PutIf::Written(row) | PutIf::Conflict(Some(row))) =
                        &reply.answer
                    {
                        // The same event is parked once. A row of another owner is as good.
                        let row: Stored<_> = row.clone();
                        self.row_written(reply, &stream, row);
                    } else {
                        // It was there and is gone: it is put again.
                        *step = ParkStep::Create;
                    }
                    self.park_on(reply, give_up);
                }
                ParkStep::Announce => {
                    self.counts.parked += 1;
                    self.polling.newly_parked.push_back(now);
                    self.parked_now(&give_up, &stream);
                }
            },
        }
    }

    fn note_letter(&mut self, reply: &Reply, give_up: &GiveUp) {
        if let Some((key, letter)) = &give_up.letter {
            self.letter_written(reply, key.clone(), letter.head.is_given_up);
        }
    }

    /// The stream is parked: its records are deferred, the one that failed first.
    fn parked_now(&mut self, give_up: &GiveUp, stream: &StreamId) {
        let record = &give_up.record;
        self.lanes.finished(&give_up.lane, 1);
        if !self.defer(record) {
            // Its row is gone already: somebody has redriven it.
            self.lanes.put_back(&give_up.lane, vec![record.clone()]);
        }
        self.defer_queued(stream);
    }

    /// Moves over a version that is given up. If it came before the record, to fill a gap, the
    /// record is tried again.
    fn pass_over(&mut self, reply: &Reply, give_up: &GiveUp) {
        let record = &give_up.record;
        let stream = &record.event.header.stream;
        let mut progress = self.streams.get(stream);
        progress.handled(give_up.version, give_up.commit_id, &record.partition);
        if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
            if let Progress::At(at) = &progress {
                let position = (at.version, at.commit_id);
                owned.effects.positions.insert(stream.clone(), position);
            }
            let is_record = give_up.version == record.event.header.version;
            if is_record {
                owned.window.done(record.offset);
            }
            self.streams.set(stream, record.partition.clone(), progress);
            self.lanes.take_retry(&give_up.lane);
            self.lanes.finished(&give_up.lane, usize::from(is_record));
        }
    }
}

impl GiveUp {
    fn new(
        lane: &LaneKey,
        record: &Arc<Record>,
        failure: &Failure,
        letter: Option<(LetterKey, Arc<DeadLetter>)>,
        how: How,
    ) -> Self {
        let header = failure.event().map_or(&record.event.header, |e| &e.header);
        Self {
            lane: lane.clone(),
            record: record.clone(),
            version: failure.version,
            commit_id: Some(header.event_id.commit_id()),
            letter,
            how,
        }
    }
}

/// The source of the event that a letter is about.
pub(super) enum LetterOf<'a> {
    Record(&'a Record),
    Event(&'a crate::RecordedEvent),
    Deferred(&'a crate::control::StoredRecord),
}

impl Rules {
    /// Returns the notes for the row of a stream that is parked at this version.
    pub(super) fn park_notes(&self, progress: &Progress, first: Version) -> ParkNotes {
        ParkNotes {
            has_records: !self.has_event_store,
            is_late: matches!(progress, Progress::At(at) if first <= at.version),
        }
    }

    /// The wall clock's time at this moment.
    pub(super) fn wall(&self, now: Instant) -> Timestamp {
        let (instant, wall) = self.started;
        let passed = now.saturating_duration_since(instant).as_micros();
        let passed = i64::try_from(passed).unwrap_or(i64::MAX);
        Timestamp::from_micros(wall.as_micros().saturating_add(passed))
    }

    /// Returns the audit entry of a discard by the policy.
    pub(super) fn audit_of_discard(&self, target: String, reason: &str, now: Instant) -> AuditRow {
        AuditRow {
            who: self.by_policy(),
            at: self.wall(now),
            action: "discard".into(),
            target,
            why: reason.into(),
            affected: Some(1),
        }
    }

    fn by_policy(&self) -> String {
        format!("policy of {}", self.name)
    }

    /// Returns the fingerprint of a failure without an event.
    pub(super) fn fingerprint_of(&self, stream: &StreamId, failure: &Failure) -> Fingerprint {
        let (error, at) = (
            crate::chain(failure.error.source()).to_string(),
            self.started.1,
        );
        Fingerprint::of(&Failed {
            class: failure.error.class().into(),
            error_type: failure.error.error_type(),
            error: &error,
            event_type: None,
            stream: Some(stream),
            attempts: 1,
            first: at,
            last: at,
        })
    }

    /// Makes the letter of a failed event.
    pub(super) fn letter_of(
        &self,
        stream: &StreamId,
        failure: &Failure,
        retry: &Retry,
        wall: Timestamp,
        of: &LetterOf<'_>,
    ) -> (LetterKey, Arc<DeadLetter>) {
        let header = match (failure.event(), of) {
            (Some(event), _) => Some(&event.header),
            (None, LetterOf::Record(record)) => Some(&record.event.header),
            (None, LetterOf::Event(event)) => Some(&event.header),
            (None, LetterOf::Deferred(_)) => None,
        };
        let event_type = header.map(|header| format!("{}.{}", stream.aggregate(), header.name));
        let error = crate::chain(failure.error.source()).to_string();
        let failed = Failed {
            class: failure.error.class().into(),
            error_type: failure.error.error_type(),
            error: &error,
            event_type: event_type.as_deref(),
            stream: Some(stream),
            attempts: retry.attempts(),
            first: retry.since().map_or(wall, |since| self.wall(since)),
            last: wall,
        };
        let body = match (failure.event(), of) {
            (Some(event), _) => LetterBody::Event(event.clone()),
            (None, LetterOf::Record(record)) => LetterBody::Record(record.stored()),
            (None, LetterOf::Event(event)) => LetterBody::Event((*event).clone()),
            (None, LetterOf::Deferred(record)) => LetterBody::Record((*record).clone()),
        };
        let key = LetterKey::Event {
            stream: stream.clone(),
            version: failure.version,
        };
        (key, Arc::new(DeadLetter::new(&failed, body)))
    }
}
