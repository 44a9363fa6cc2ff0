//! The calls of the handler, each with the events that wait for it.
use super::{Attempt, panic_message};
use crate::{
    RecordedEvent, Version,
    runner::{
        EventContext, HandlerError,
        erased::{AnyEvent, Handled},
        machine::{Failure, FailureOf, Outcome, Suspects, What},
        signals::Unanswered,
        spans::{self, Cause},
    },
};
use futures::FutureExt;
use std::{panic::AssertUnwindSafe, pin::pin, task::Poll};
use tokio::time::Instant;
use tracing::{Instrument, Span};

/// An event that waits for the next call of the handler.
pub(super) struct Pending {
    /// The record that it comes from, or before.
    pub(super) record: usize,
    pub(super) version: Version,
    pub(super) event: Box<AnyEvent>,
    pub(super) ctx: EventContext,
    /// The event itself, if it did not come by the bus.
    pub(super) filled: Option<Box<RecordedEvent>>,
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

/// A note about an event while the handler has it.
pub(super) struct Note {
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

impl Attempt {
    /// Calls the handler with what is pending.
    pub(super) async fn handle_pending(&mut self) -> Result<(), (usize, Outcome)> {
        let mut pending = std::mem::take(&mut self.pending);
        let asked = pending.len();
        if asked == 0 {
            return Ok(());
        }
        let mut notes = std::mem::take(&mut self.notes);
        notes.extend(pending.iter_mut().map(Note::of));
        let began = self.shared.rules.counts_calls.then(Instant::now);
        let Answer {
            done,
            error,
            names_event,
        } = self.call(&mut pending).await;
        if let Some(began) = began {
            self.calls.note(began.elapsed(), error.is_some());
        }
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
            What::Commits(_) => Cause::Replay,
        };
        let span = self.shared.spans.process(&first.ctx, asked, cause);
        if let Some(caused) = self.shared.spans.caused(&span) {
            for event in &mut *pending {
                event.ctx.set_trace(Some(caused.clone()));
            }
        }
        // Work that the handler left elsewhere is told when nobody waits for the answer any more.
        let unanswered = Unanswered(self.cancel.take());
        self.has_called = true;
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
        let began = Instant::now();
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
        crate::runner::metrics::called(
            self.shared.model.processor(),
            began.elapsed(),
            answer.error.as_ref().map(HandlerError::class),
        );
        answer
    }
}
