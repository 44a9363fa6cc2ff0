//! Requests of operators for dead letters of streams that are not parked: handle the event once
//! more, or drop the letter.
use super::{
    AttemptId, Ended, Machine, Outcome, What, Work,
    give_up::LetterOf,
    partition::Phase,
    retry::Retry,
    rows::{RowAnswer, RowOp},
    tasks::{Ask, AskStep, Kind, Reply},
};
use crate::{
    RecordedEvent, StreamId, Version,
    control::{AskKind, DiscardState, LetterBody, LetterKey},
    from_message,
    ports::{AssignmentEpoch, Offset, PartitionId},
    runner::streams::Progress,
};
use std::sync::Arc;
use tokio::time::Instant;

/// The letter of a record that cannot be read.
#[derive(Debug)]
pub(super) struct LetterOnly {
    pub(super) key: LetterKey,
    pub(super) offset: Offset,
}

impl Machine {
    /// Begins to serve the requests that were read.
    pub(super) fn advance_asks(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let mut begun = Vec::new();
        for (partition, owned) in &mut self.partitions.owned {
            if matches!(owned.phase, Phase::Serving) {
                let mut asks: Vec<_> = owned.parking.asks.drain().collect();
                asks.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
                for (letter, row) in asks {
                    begun.push((partition.clone(), owned.epoch, letter, row));
                }
            }
        }
        for (partition, epoch, letter, row) in begun {
            let is_served = self.tasks.running.values().any(|task| {
                matches!(&task.kind, Kind::Ask(ask) if ask.letter == letter && task.partition == partition)
            });
            if !is_served {
                let op = RowOp::GetLetter(letter.clone());
                let ask = Ask {
                    letter,
                    row,
                    step: AskStep::Read,
                };
                self.begin_task(&partition, epoch, Kind::Ask(Box::new(ask)), Some(op));
            }
        }
    }

    /// Takes the answer to an operation of a request.
    pub(super) fn ask_answered(&mut self, reply: Reply, mut ask: Box<Ask>, now: Instant) {
        match &mut ask.step {
            AskStep::Read => self.ask_read(reply, ask, now),
            AskStep::Handling(..) => {}
            // The letter of the new failure is written: the request is served.
            AskStep::Write => self.end_ask(&reply, ask),
            AskStep::Passed => {
                ask.step = AskStep::DeleteLetter;
                let op = RowOp::DeleteLetter(ask.letter.clone());
                self.go_on(&reply, Kind::Ask(ask), Some(op));
            }
            AskStep::DeleteLetter => {
                if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
                    owned.parking.letters.remove(&ask.letter);
                }
                self.end_ask(&reply, ask);
            }
            AskStep::DeleteAsk => {}
        }
    }

    fn end_ask(&mut self, reply: &Reply, mut ask: Box<Ask>) {
        ask.step = AskStep::DeleteAsk;
        let op = RowOp::DeleteAsk(ask.letter.clone(), ask.row.revision);
        self.go_on(reply, Kind::Ask(ask), Some(op));
    }

    fn ask_read(&mut self, reply: Reply, mut ask: Box<Ask>, now: Instant) {
        let letter = match &reply.answer {
            RowAnswer::Letter(Some(letter)) if letter.head.id == ask.row.value.letter => letter,
            // The letter that was meant is gone.
            _ => return self.end_ask(&reply, ask),
        };
        let event = match &letter.body {
            LetterBody::Event(event) => Some(event.clone()),
            LetterBody::Record(record) => from_message(&record.message).ok(),
        };
        if let LetterKey::Event { stream, version } = &ask.letter
            && self.is_parked(&reply.partition, reply.epoch, stream, *version)
        {
            // The park row and the discards of the stream serve it.
            return self.end_ask(&reply, ask);
        }
        match (ask.row.value.what, event) {
            (AskKind::Redrive, Some(event)) if !self.was_handled(&event) => {
                self.handle_again(&reply, ask, event, now);
            }
            (AskKind::Redrive, None) => {
                // A build that can read the record may come: the letter stays.
                tracing::warn!(processor = %self.rules.name, letter = ?ask.letter, "a dead letter still cannot be read: it stays");
                self.end_ask(&reply, ask);
            }
            (AskKind::Redrive, Some(_)) => {
                ask.step = AskStep::DeleteLetter;
                let op = RowOp::DeleteLetter(ask.letter.clone());
                self.go_on(&reply, Kind::Ask(ask), Some(op));
            }
            _ => self.discard_letter(&reply, ask),
        }
    }

    /// Notes that a letter is discarded, then deletes it.
    fn discard_letter(&mut self, reply: &Reply, mut ask: Box<Ask>) {
        let owned = self.partitions.get(&reply.partition, reply.epoch);
        if let LetterKey::Event { stream, version } = &ask.letter
            && let Some(owned) = owned
            && let Some(row) = owned.parking.discards.get(&(stream.clone(), *version))
            && row.value.state == DiscardState::Asked
        {
            let op =
                RowOp::ReplaceDiscard(stream.clone(), *version, row.value.passed(), row.revision);
            ask.step = AskStep::Passed;
            return self.go_on(reply, Kind::Ask(ask), Some(op));
        }
        ask.step = AskStep::DeleteLetter;
        let op = RowOp::DeleteLetter(ask.letter.clone());
        self.go_on(reply, Kind::Ask(ask), Some(op));
    }

    fn is_parked(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        stream: &StreamId,
        version: Version,
    ) -> bool {
        let owned = self.partitions.get(partition, epoch);
        let parked = owned.and_then(|owned| owned.parking.parked.get(stream));
        parked.is_some_and(|parked| parked.row.value.covers(version))
    }

    /// Returns true if a projector has the event in its model. A listener's event was passed over
    /// when its letter was written, so its position says nothing.
    fn was_handled(&mut self, event: &RecordedEvent) -> bool {
        let progress = self.streams.get(&event.header.stream);
        self.rules.is_projector
            && matches!(progress, Progress::At(at) if at.version >= event.header.version)
    }

    fn handle_again(
        &mut self,
        reply: &Reply,
        mut ask: Box<Ask>,
        event: RecordedEvent,
        now: Instant,
    ) {
        let stream = event.header.stream.clone();
        let event = Box::new(event);
        let work = Work {
            partition: reply.partition.clone(),
            epoch: reply.epoch,
            lane: self.lane(&stream),
            what: What::Again(event.clone()),
            progress: Progress::NoBase,
            number: 1,
            skip: Vec::new(),
        };
        let attempt = self.attempts.start(work.clone(), None, now);
        ask.step = AskStep::Handling(attempt, event);
        self.out.push(super::Effect::Start(attempt, work));
        self.counts.redrives += 1;
        self.go_on(reply, Kind::Ask(ask), None);
    }

    /// Takes the result of an event that was handled once more.
    pub(super) fn asked_again(
        &mut self,
        attempt: AttemptId,
        work: &Work,
        ended: Ended,
        now: Instant,
    ) {
        let found = self.tasks.running.iter().find(|(_, task)| {
            matches!(&task.kind, Kind::Ask(ask) if matches!(&ask.step, AskStep::Handling(id, _) if *id == attempt))
        });
        let Some(id) = found.map(|(id, _)| *id) else {
            return;
        };
        let Some(task) = self.tasks.running.remove(&id) else {
            return;
        };
        let Kind::Ask(mut ask) = task.kind else {
            return;
        };
        let reply = Reply {
            id,
            partition: task.partition,
            epoch: task.epoch,
            answer: RowAnswer::Done,
        };
        match ended.result {
            Outcome::Failed(failure) => {
                let mut retry = Retry::new(crate::RetryPolicy::fail_fast(), failure.version);
                let _ = retry.failed(failure.error.class().into(), now);
                let wall = self.rules.wall(now);
                let (Some(stream), AskStep::Handling(_, event)) = (work.stream(), &ask.step) else {
                    return;
                };
                tracing::warn!(processor = %self.rules.name, %stream, version = %failure.version, error = crate::chain(failure.error.source()), "a redriven event has failed again: its letter stays");
                let of = LetterOf::Event(event);
                let (_, letter) = self.rules.letter_of(stream, &failure, &retry, wall, &of);
                let op = RowOp::WriteLetter(ask.letter.clone(), Arc::clone(&letter));
                ask.step = AskStep::Write;
                self.go_on(&reply, Kind::Ask(ask), Some(op));
            }
            Outcome::Done | Outcome::Cancelled => {
                ask.step = AskStep::DeleteLetter;
                let op = RowOp::DeleteLetter(ask.letter.clone());
                self.go_on(&reply, Kind::Ask(ask), Some(op));
            }
        }
    }

    /// Deletes the letters of events that an attempt has handled: their writers died before they
    /// went on.
    pub(super) fn drop_letters(&mut self, work: &Work, done: usize) {
        let Some(owned) = self.partitions.get(&work.partition, work.epoch) else {
            return;
        };
        if owned.parking.letters.is_empty() {
            return;
        }
        let mut dropped = Vec::new();
        for record in work.records().iter().take(done) {
            let key = LetterKey::Event {
                stream: record.event.header.stream.clone(),
                version: record.event.header.version,
            };
            let is_parked = owned
                .parking
                .parked
                .contains_key(&record.event.header.stream);
            if !is_parked && owned.parking.letters.remove(&key) {
                dropped.push(key);
            }
        }
        for key in dropped {
            let op = RowOp::DeleteLetter(key);
            self.begin_task(&work.partition, work.epoch, Kind::DropLetter, Some(op));
        }
    }
}
