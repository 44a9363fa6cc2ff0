//! The events of a replay that are not tried again.
use super::{Failing, Rebuild, RebuildError, StreamProgress, controlled, is_of_store, text_of};
use crate::{
    RecordedEvent, StreamId, Version,
    control::{AuditRow, DeadLetter, DiscardRow, Failed, LetterBody, LetterKey, ParkFailure},
    ports::{Offset, PartitionId},
    runner::{
        ErrorClass, FailedEvent, FailureAction,
        machine::{Failure, FailureOf},
    },
};

use std::sync::atomic::Ordering;

impl Rebuild {
    /// Does what the policy says about an event that is not tried again.
    pub(super) async fn give_up(
        &self,
        stream: &StreamId,
        partition: &PartitionId,
        failure: Failure,
        failing: &Failing,
        progress: &mut StreamProgress,
    ) -> Result<(), RebuildError> {
        let version = failure.version;
        let event = match failure.of {
            FailureOf::Event(event) if failure.error.class() != ErrorClass::Fatal => event,
            _ if is_of_store(&failure) => {
                return Err(RebuildError::Store {
                    stream: stream.clone(),
                    source: failure.error.into_source(),
                });
            }
            _ => return Err(halted(stream, version, failure)),
        };
        let attempts = failing.failed();
        let action = self.policy.on_failure.decide(&FailedEvent {
            processor: self.of.name(),
            is_projector: true,
            header: Some(&event.header),
            partition,
            offset: Offset::new(0),
            attempts,
            error: &failure.error,
            may_be_ours: true,
        });
        let class = failure.error.class();
        tracing::warn!(processor = %self.of.name(), %stream, %version, attempts, ?class, ?action, error = text_of(&failure.error), "a replay gives up an event");
        let failure = Failure {
            of: FailureOf::Event(event.clone()),
            ..failure
        };
        match action {
            FailureAction::Halt => return Err(halted(stream, version, failure)),
            // The order of a shared lane is that of the topic, which a scan does not know.
            FailureAction::Park if self.of.has_shared_lanes() => {
                return Err(halted(stream, version, failure));
            }
            FailureAction::Park => {
                return self
                    .park(stream, partition, &event, &failure, attempts)
                    .await;
            }
            FailureAction::DeadLetter => {
                let limit = self.policy.limits.dead_letters;
                if self.letters.fetch_add(1, Ordering::Relaxed) >= limit {
                    let what = "dead letters are written";
                    return Err(RebuildError::TooManyGivenUp { what, limit });
                }
                let letter = self.letter(&event, &failure, attempts).given_up();
                self.write_letter(partition, stream, version, &letter)
                    .await?;
            }
            FailureAction::Discard(reason) => {
                self.discard(partition, stream, version, &reason).await?;
            }
        }
        let id = Some(event.header.event_id.commit_id());
        progress.0.handled(version, id, partition);
        Ok(())
    }

    async fn park(
        &self,
        stream: &StreamId,
        partition: &PartitionId,
        event: &RecordedEvent,
        failure: &Failure,
        attempts: u32,
    ) -> Result<(), RebuildError> {
        let limit = self.policy.limits.parked;
        let _one_at_a_time = self.parking.lock().await;
        if self.parked.len() >= limit {
            let what = "streams are parked";
            return Err(RebuildError::TooManyGivenUp { what, limit });
        }
        // Every version below the failed one is durable before the row says so.
        self.flush().await?;
        let letter = self.letter(event, failure, attempts);
        self.write_letter(partition, stream, failure.version, &letter)
            .await?;
        let failed = ParkFailure {
            version: failure.version,
            fingerprint: letter.head.fingerprint,
            attempts,
            at: letter.head.last,
        };
        let rows = &self.shared.rows;
        Ok(self.parked.park(rows, partition, stream, &failed).await?)
    }

    fn letter(&self, event: &RecordedEvent, failure: &Failure, attempts: u32) -> DeadLetter {
        let header = &event.header;
        let event_type = format!("{}.{}", header.stream.aggregate(), header.name);
        let now = self.clock.now();
        let failed = Failed {
            class: failure.error.class().into(),
            error_type: failure.error.error_type(),
            error: &text_of(&failure.error),
            event_type: Some(&event_type),
            stream: Some(&header.stream),
            attempts,
            first: now,
            last: now,
        };
        DeadLetter::new(&failed, LetterBody::Event(event.clone()))
    }

    async fn write_letter(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
        letter: &DeadLetter,
    ) -> Result<(), RebuildError> {
        let (rows, key) = (&self.shared.rows, LetterKey::event(stream.clone(), version));
        controlled(|| rows.letter_write(partition, &key, letter)).await?;
        Ok(())
    }

    async fn discard(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        version: Version,
        reason: &str,
    ) -> Result<(), RebuildError> {
        let (rows, now) = (&self.shared.rows, self.clock.now());
        let who = format!("policy of {}", self.of.name());
        let entry = AuditRow {
            who: who.clone(),
            at: now,
            action: "discard".into(),
            target: format!("{} {stream} version {version}", self.of.name()),
            why: reason.into(),
            affected: Some(1),
        };
        controlled(|| rows.rows.audit_put(entry.clone())).await?;
        let row = DiscardRow::asked(&who, reason, now).passed();
        // A row that is there already says the same.
        let _ = controlled(|| rows.discard_ask(partition, stream, version, row.clone())).await?;
        Ok(())
    }
}

fn halted(stream: &StreamId, version: Version, failure: Failure) -> RebuildError {
    RebuildError::Halted {
        stream: stream.clone(),
        version,
        source: failure.error.into_source(),
    }
}
