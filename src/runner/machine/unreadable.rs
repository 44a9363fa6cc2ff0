//! Records that are no events of this library, or of a newer format.
use super::{
    Machine,
    asks::LetterOnly,
    partition::{Phase, Unreadable},
    record::held_size,
    rows::RowOp,
    tasks::{Kind, Reply},
};
use crate::{
    StreamId, WireError,
    control::{DeadLetter, Failed, LetterBody, LetterClass, LetterKey, StoredRecord},
    ports::{AssignmentEpoch, Offset, PartitionId},
    runner::{FailedEvent, FailureAction, HandlerError, RunnerError},
};
use std::sync::Arc;
use tokio::time::Instant;

impl Machine {
    pub(super) fn unreadable(
        &mut self,
        record: StoredRecord,
        epoch: AssignmentEpoch,
        error: WireError,
    ) {
        let Some(number) = record.message.partition else {
            return;
        };
        let partition = PartitionId::new(record.message.topic.clone(), number);
        let owned = self.partitions.get(&partition, epoch);
        if let Some(owned) = owned.filter(|owned| !owned.is_leaving())
            && owned.window.push(record.offset, held_size(&record.message))
        {
            let bytes = held_size(&record.message);
            self.room.took(&owned.window, bytes, &self.rules.policy);
            self.counts.unreadable += 1;
            owned.unreadable.push_back(Unreadable {
                record,
                error,
                is_given_up: false,
                is_held: false,
            });
        }
    }

    /// Decides about records that cannot be read, each when all before it is done: a processor that
    /// halts has then handled what comes before.
    pub(super) fn advance_unreadable(&mut self, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        let mut next = Vec::new();
        for (partition, owned) in &self.partitions.owned {
            if matches!(owned.phase, Phase::Serving)
                && let Some(first) = owned.unreadable.front()
                && !first.is_given_up
                && !first.is_held
                && owned.window.first_open() == Some(first.record.offset)
            {
                next.push((partition.clone(), owned.epoch));
            }
        }
        for (partition, epoch) in next {
            self.give_up_unreadable(&partition, epoch, now);
        }
    }

    fn give_up_unreadable(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        now: Instant,
    ) {
        let rules = self.rules.clone();
        let may_write = self.may_write_letter();
        let Some(owned) = self.partitions.get(partition, epoch) else {
            return;
        };
        let Some(first) = owned.unreadable.front_mut() else {
            return;
        };
        let (record, offset) = (&first.record, first.record.offset);
        let error = HandlerError::poison(first.error.to_string());
        let key = record.message.key.as_deref().unwrap_or_default();
        let stream = std::str::from_utf8(key).ok();
        let stream = stream.and_then(|key| StreamId::parse(key).ok());
        let event = FailedEvent {
            processor: &rules.name,
            is_projector: rules.is_projector,
            header: None,
            partition,
            offset,
            attempts: 1,
            error: &error,
            may_be_ours: stream.is_some_and(|stream| rules.subscribes_to(&stream)),
        };
        let action = rules.policy.on_failure.decide(&event);
        tracing::warn!(processor = %rules.name, %partition, %offset, ?action, error = crate::chain(&first.error), "a record cannot be read");
        match action {
            // The limit is reached: it stays where it is.
            FailureAction::DeadLetter if !may_write => first.is_held = true,
            FailureAction::DeadLetter => {
                let wall = rules.wall(now);
                let failed = Failed {
                    class: LetterClass::Poison,
                    error_type: "foldstream::WireError",
                    error: &crate::chain(&first.error).to_string(),
                    event_type: None,
                    stream: None,
                    attempts: 1,
                    first: wall,
                    last: wall,
                };
                let letter = DeadLetter::new(&failed, LetterBody::Record(record.clone()));
                let letter = letter.given_up();
                first.is_given_up = true;
                let (key, letter) = (LetterKey::Record(offset), Arc::new(letter));
                let op = RowOp::WriteLetter(key.clone(), letter);
                let kind = Kind::LetterOnly(LetterOnly { key, offset });
                self.begin_task(partition, epoch, kind, Some(op));
            }
            FailureAction::Discard(reason) => {
                first.is_given_up = true;
                let target = format!("{} {partition} offset {offset}", rules.name);
                let entry = rules.audit_of_discard(target, &reason, now);
                let kind = Kind::DiscardUnreadable(offset);
                self.begin_task(partition, epoch, kind, Some(RowOp::Audit(entry)));
            }
            // A record without a stream and a version cannot be parked.
            FailureAction::Park | FailureAction::Halt => {
                let Some(Unreadable { error, .. }) = owned.unreadable.pop_front() else {
                    return;
                };
                let error = RunnerError::Unreadable {
                    processor: rules.name.clone(),
                    partition: partition.clone(),
                    offset,
                    source: error.into(),
                };
                self.halt(error, now);
            }
        }
    }

    /// The letter of a record that cannot be read is stored.
    pub(super) fn letter_stored(&mut self, reply: &Reply, letter: LetterOnly) {
        self.counts.dead_letters += 1;
        self.letter_written(reply, letter.key, true);
        self.pass_unreadable(reply, letter.offset);
    }

    /// The discard of a record that cannot be read is in the audit.
    pub(super) fn discard_stored(&mut self, reply: &Reply, offset: Offset) {
        self.counts.discarded += 1;
        self.pass_unreadable(reply, offset);
    }

    fn pass_unreadable(&mut self, reply: &Reply, offset: Offset) {
        if let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) {
            owned.window.done(offset);
            owned.unreadable.pop_front();
        }
    }
}
