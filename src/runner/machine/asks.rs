//! Requests of operators for dead letters of streams that are not parked: handle the event once
//! more, or drop the letter.
use super::{
    Again, AttemptId, Ended, Failure, FailureOf, Machine, Outcome, What, Work,
    give_up::LetterOf,
    partition::Phase,
    retry::Retry,
    rows::{RowAnswer, RowOp},
    tasks::{Ask, AskStep, Kind, Reply, TaskId},
};
use crate::{
    RecordedEvent, Version,
    breaker::Permit,
    control::{AskKind, DiscardState, LetterBody, LetterKey},
    from_message,
    ports::Offset,
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
    pub(super) fn advance_asks(&mut self, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        let mut ready = Vec::new();
        for (id, task) in &mut self.tasks.running {
            if let Kind::Ask(ask) = &mut task.kind
                && let AskStep::Ready(_, at) = &mut ask.step
                && at.is_none_or(|at| at <= now)
            {
                // It may have to wait for its lane or for the breaker, and needs no timer for that.
                *at = None;
                ready.push(*id);
            }
        }
        for id in ready {
            if !self.may_redrive() {
                break;
            }
            if self.end_if_handled(id) || !self.may_handle_again(id) {
                continue;
            }
            let Ok(permit) = self.permit(now) else {
                break;
            };
            self.handle_again(id, permit);
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
                    retry: None,
                };
                self.begin_task(&partition, epoch, Kind::Ask(Box::new(ask)), Some(op));
            }
        }
    }

    /// Takes the answer to an operation of a request.
    pub(super) fn ask_answered(&mut self, reply: &Reply, mut ask: Box<Ask>) {
        match &mut ask.step {
            AskStep::Read => self.ask_read(reply, ask),
            AskStep::Ready(..) | AskStep::Handling(..) | AskStep::Flush(..) => {}
            // The letter of the new failure is written: the request is served.
            AskStep::Write => self.end_ask(reply, ask),
            AskStep::Passed => self.delete_letter(reply, ask),
            AskStep::DeleteLetter => {
                self.letter_deleted(reply, &ask.letter);
                self.end_ask(reply, ask);
            }
            AskStep::DeleteAsk => {}
        }
    }

    fn end_ask(&mut self, reply: &Reply, mut ask: Box<Ask>) {
        ask.step = AskStep::DeleteAsk;
        let op = RowOp::DeleteAsk(ask.letter.clone(), ask.row.revision);
        self.go_on(reply, Kind::Ask(ask), Some(op));
    }

    fn delete_letter(&mut self, reply: &Reply, mut ask: Box<Ask>) {
        ask.step = AskStep::DeleteLetter;
        let op = RowOp::DeleteLetter(ask.letter.clone());
        self.go_on(reply, Kind::Ask(ask), Some(op));
    }

    fn ask_read(&mut self, reply: &Reply, mut ask: Box<Ask>) {
        let letter = match &reply.answer {
            RowAnswer::Letter(Some(letter)) if letter.head.id == ask.row.value.letter => letter,
            // The letter that was meant is gone.
            _ => return self.end_ask(reply, ask),
        };
        let (event, offset) = match &letter.body {
            LetterBody::Event(event) => (Some(event.clone()), None),
            LetterBody::Record(record) => (from_message(&record.message).ok(), Some(record.offset)),
        };
        if let LetterKey::Event { stream, version } = &ask.letter
            && let Some(owned) = self.partitions.get(&reply.partition, reply.epoch)
            && let Some(parked) = owned.parking.parked.get(stream)
        {
            if !parked.row.value.is_duplicate(*version) {
                // The park row and the discards of the stream serve it.
                return self.end_ask(reply, ask);
            }
            if !letter.head.is_given_up {
                return self.delete_letter(reply, ask);
            }
            // The stream went on without the event before it was parked: no redrive of the stream
            // handles it.
        }
        let is_given_up = letter.head.is_given_up || !self.rules.is_projector;
        if self.is_discarded(reply, &ask.letter) {
            // Whatever was asked first: what is discarded is not handled.
            return self.discard_letter(reply, ask);
        }
        match (ask.row.value.what, event) {
            (AskKind::Redrive, Some(event)) if is_given_up || !self.was_handled(&event) => {
                let again = Again {
                    event: Box::new(event),
                    is_given_up,
                    offset,
                };
                ask.step = AskStep::Ready(again, None);
                self.go_on(reply, Kind::Ask(ask), None);
            }
            (AskKind::Redrive, None) => {
                // A build that can read the record may come: the letter stays.
                tracing::warn!(processor = %self.rules.name, letter = ?ask.letter, "a dead letter still cannot be read: it stays");
                self.end_ask(reply, ask);
            }
            (AskKind::Redrive, Some(_)) => self.delete_letter(reply, ask),
            _ => self.discard_letter(reply, ask),
        }
    }

    /// Returns true if an operator has discarded the event of a letter.
    fn is_discarded(&mut self, reply: &Reply, letter: &LetterKey) -> bool {
        let owned = self.partitions.get(&reply.partition, reply.epoch);
        let LetterKey::Event { stream, version } = letter else {
            return false;
        };
        let row = owned.and_then(|o| o.parking.discards.get(&(stream.clone(), *version)));
        row.is_some_and(|row| row.value.is_in_force())
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
        self.delete_letter(reply, ask);
    }

    /// Returns true if an event whose letter does not say that it was given up is known to be
    /// handled: the writer of the letter died before it parked the stream, and the event came
    /// again.
    fn was_handled(&mut self, event: &RecordedEvent) -> bool {
        let progress = self.streams.get(&event.header.stream);
        matches!(progress, Progress::At(at) if at.version >= event.header.version)
    }

    /// Ends a request whose event was not given up and has come by the bus meanwhile. Returns false
    /// if there is still something to do.
    fn end_if_handled(&mut self, id: TaskId) -> bool {
        let event = self
            .tasks
            .running
            .get(&id)
            .and_then(|task| match &task.kind {
                Kind::Ask(ask) => match &ask.step {
                    AskStep::Ready(again, _) if !again.is_given_up => Some(again.event.clone()),
                    _ => None,
                },
                _ => None,
            });
        if !event.is_some_and(|event| self.was_handled(&event)) {
            return false;
        }
        if let Some((reply, Kind::Ask(ask))) = self.tasks.take(id) {
            self.delete_letter(&reply, ask);
        }
        true
    }

    /// Returns true if nothing else runs in the lane of a request. Asked before there is a permit:
    /// one that is given back unused would tell all that wait for the breaker to look again, this
    /// processor first of all, without end.
    fn may_handle_again(&self, id: TaskId) -> bool {
        let Some(task) = self.tasks.running.get(&id) else {
            return false;
        };
        let Kind::Ask(ask) = &task.kind else {
            return false;
        };
        let AskStep::Ready(again, _) = &ask.step else {
            return false;
        };
        self.may_run_beside(&task.partition, &again.event.header.stream)
    }

    /// Starts the attempt of a request.
    fn handle_again(&mut self, id: TaskId, permit: Option<Permit>) {
        let Some(task) = self.tasks.running.get_mut(&id) else {
            return;
        };
        let Kind::Ask(ask) = &mut task.kind else {
            return;
        };
        let AskStep::Ready(again, _) = &ask.step else {
            return;
        };
        let lane = self.rules.lane(&again.event.header.stream);
        let owned = self.partitions.owned.get(&task.partition);
        if !owned.is_some_and(|owned| matches!(owned.phase, Phase::Serving))
            || !self.lanes.reserve(&lane)
        {
            return;
        }
        let (again, retry) = (again.clone(), ask.retry.as_ref());
        let number = retry.map_or(1, |retry| retry.attempts() + 1);
        let work = Arc::new(Work {
            partition: task.partition.clone(),
            epoch: task.epoch,
            lane,
            what: What::Again(again.clone()),
            progress: Progress::Unknown,
            number,
            is_repeat: number > 1,
            is_alone: false,
            skip: Vec::new(),
            letters: Vec::new(),
        });
        let attempt = self.attempts.start(work.clone(), permit);
        // An event that is tried again is one redrive.
        self.counts.redrives += u64::from(ask.retry.is_none());
        ask.step = AskStep::Handling(attempt, again);
        self.out.push(super::Effect::Start(attempt, work));
    }

    /// Takes the result of an event that was handled once more.
    pub(super) fn asked_again(
        &mut self,
        attempt: AttemptId,
        ended: Ended,
        is_kept: bool,
        now: Instant,
    ) {
        let found = self.tasks.running.iter().find(|(_, task)| {
            matches!(&task.kind, Kind::Ask(ask) if matches!(&ask.step, AskStep::Handling(id, _) if *id == attempt))
        });
        let Some(id) = found.map(|(id, _)| *id) else {
            return;
        };
        let Some((reply, Kind::Ask(mut ask))) = self.tasks.take(id) else {
            return;
        };
        match ended.result {
            // The service is away: the request waits.
            Outcome::Failed(_) if is_kept => self.handle_later(&reply, ask, None),
            // Perhaps it has not even begun.
            Outcome::Cancelled => self.handle_later(&reply, ask, None),
            Outcome::Failed(failure) => self.asked_in_vain(&reply, ask, &failure, now),
            Outcome::Done => {
                let AskStep::Handling(_, again) = &ask.step else {
                    return;
                };
                let stream = again.event.header.stream.clone();
                self.note_redriven(&reply, again);
                if self.rules.is_projector
                    && let Some(owned) = self.partitions.get(&reply.partition, reply.epoch)
                {
                    owned.effects.touched.insert(stream.clone());
                }
                // The letter goes once the effect is durable.
                ask.step = AskStep::Flush(self.checkpoint.flushes_begun(), stream);
                self.go_on(&reply, Kind::Ask(ask), None);
            }
        }
    }

    /// Notes that an event was handled whose record may still come: the process that has written
    /// its letter may have died before the offset passed the record.
    fn note_redriven(&mut self, reply: &Reply, again: &Again) {
        let header = &again.event.header;
        let (stream, version) = (&header.stream, header.version);
        if again.is_given_up {
            let is_passed = again.offset.is_none() && self.was_handled(&again.event);
            if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
                let low = owned.window.low();
                if !is_passed && again.offset.is_none_or(|offset| offset >= low) {
                    owned.parking.redriven.insert((stream.clone(), version));
                }
            }
            return;
        }
        // The writer was about to park the stream. What lies below was made durable before.
        let commit_id = Some(header.event_id.commit_id());
        let progress = Progress::at(version, commit_id);
        self.streams.set(stream, reply.partition.clone(), progress);
        if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
            let position = (version, commit_id);
            owned.effects.positions.insert(stream.clone(), position);
        }
    }

    /// Lets a request wait for its next attempt.
    fn handle_later(&mut self, reply: &Reply, mut ask: Box<Ask>, at: Option<Instant>) {
        if let AskStep::Handling(_, again) = ask.step {
            ask.step = AskStep::Ready(again, at);
            self.go_on(reply, Kind::Ask(ask), None);
        }
    }

    /// Tries an event again that was handled once more and has failed, or keeps its letter.
    fn asked_in_vain(&mut self, reply: &Reply, mut ask: Box<Ask>, failure: &Failure, now: Instant) {
        let AskStep::Handling(_, again) = &ask.step else {
            return;
        };
        let (stream, class) = (again.event.header.stream.clone(), failure.error.class());
        let is_store = matches!(failure.of, FailureOf::Store);
        let mut retry = Retry::after(
            ask.retry.take(),
            self.rules.retry(),
            failure.version,
            is_store,
        );
        if let Some(at) = retry.failed(class.into(), now) {
            ask.retry = Some(retry);
            self.counts.retries += 1;
            return self.handle_later(reply, ask, Some(at));
        }
        tracing::warn!(processor = %self.rules.name, %stream, version = %failure.version, attempts = retry.attempts(), ?class, error = crate::chain(failure.error.source()), "a redriven event has failed again: its letter stays");
        let (wall, of) = (self.rules.wall(now), LetterOf::Event(&again.event));
        let (_, letter) = self.rules.letter_of(&stream, failure, &retry, wall, &of);
        let op = RowOp::WriteLetter(ask.letter.clone(), letter);
        ask.step = AskStep::Write;
        self.go_on(reply, Kind::Ask(ask), Some(op));
    }

    /// Returns the time at which the pause after a failure of a request is over.
    pub(super) fn ask_wake_at(&self) -> Option<Instant> {
        let tasks = self.tasks.running.values();
        let pauses = tasks.filter_map(|task| match &task.kind {
            Kind::Ask(ask) => match ask.step {
                AskStep::Ready(_, at) => at,
                _ => None,
            },
            _ => None,
        });
        pauses.min()
    }

    /// The effect of an event that was handled once more is durable: its letter goes.
    pub(super) fn ask_flushed(&mut self, id: TaskId) {
        if let Some((reply, Kind::Ask(ask))) = self.tasks.take(id) {
            self.delete_letter(&reply, ask);
        }
    }

    /// Deletes the letters of events that an attempt has handled: their writers died before they
    /// went on. A duplicate keeps its letter, since the position of a processor also passes events
    /// that were given up.
    pub(super) fn drop_letters(&mut self, work: &Work, settled: &[Version]) {
        let (Some(stream), Some(owned)) = (
            work.stream(),
            self.partitions.get(&work.partition, work.epoch),
        ) else {
            return;
        };
        if owned.parking.parked.contains_key(stream) {
            return;
        }
        let letters = settled
            .iter()
            .map(|version| LetterKey::event(stream.clone(), *version));
        let dropped: Vec<_> = letters
            .filter(|key| owned.parking.letters.remove(key).is_some())
            .collect();
        for key in dropped {
            let op = RowOp::DeleteLetter(key.clone());
            let kind = Kind::DropLetter(key);
            self.begin_task(&work.partition, work.epoch, kind, Some(op));
        }
    }

    /// Notes that a letter is written.
    pub(super) fn letter_written(&mut self, reply: &Reply, key: LetterKey, is_given_up: bool) {
        let loads = self.polling.loads;
        if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
            owned.parking.letter_written(key, is_given_up, loads);
        }
    }

    /// Notes that a letter is deleted.
    pub(super) fn letter_deleted(&mut self, reply: &Reply, key: &LetterKey) {
        let loads = self.polling.loads;
        if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
            owned.parking.letter_deleted(key, loads);
        }
    }
}
