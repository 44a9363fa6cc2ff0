//! The end of a membership: what runs is finished, what is done is committed, and the group is
//! left.
use super::{Effect, Ends, Machine, Member};
use crate::{ports::MessageBusError, runner::RunnerError};
use std::time::Duration;
use tokio::time::Instant;

/// The time after the drain in which the last checkpoint must be done.
const LAST_CHECKPOINT: Duration = Duration::from_secs(5);

/// The time after the last checkpoint in which the group must be left. Afterwards the membership
/// ends by itself, with the session timeout.
const LEAVE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Ending {
    then: Then,
    /// When attempts that still run are cancelled.
    cancel_at: Instant,
    /// When the group is left, whatever is not durable then.
    leave_at: Instant,
    /// When the processor ends, whether the group has been left or not.
    end_at: Instant,
    last: LastCheckpoint,
}

/// The step that follows once the group is left.
#[derive(Debug)]
enum Then {
    End(Result<(), RunnerError>),
    Rejoin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastCheckpoint {
    /// Attempts run.
    NotYet,
    Wanted,
    /// It has failed, and is tried once more after a pause.
    WantedAgain,
    /// It has begun, so it holds all that is done.
    Running,
    Done,
}

impl Ending {
    /// Returns true if the processor ends, and does not only join its group again.
    pub(super) const fn is_end(&self) -> bool {
        matches!(self.then, Then::End(_))
    }

    /// Returns true if the last checkpoint is to begin, or to begin once more after its pause.
    pub(super) const fn wants_last_checkpoint(&self) -> bool {
        matches!(
            self.last,
            LastCheckpoint::Wanted | LastCheckpoint::WantedAgain
        )
    }

    /// Returns true if the last checkpoint is to begin, whatever pause an earlier one has to make.
    pub(super) fn wants_it_at_once(&self) -> bool {
        self.last == LastCheckpoint::Wanted
    }

    pub(super) const fn checkpoint_began(&mut self) {
        if self.wants_last_checkpoint() {
            self.last = LastCheckpoint::Running;
        }
    }

    /// A checkpoint that had begun before the last record was done is not the last one. One that
    /// may be repeated after a pause is not, either, if the processor ends: there is time until the
    /// group is left. Whoever joins the group again gets the records once more.
    pub(super) const fn checkpoint_ended(&mut self, may_repeat: bool) {
        if matches!(self.last, LastCheckpoint::Running) {
            self.last = if may_repeat && self.is_end() {
                LastCheckpoint::WantedAgain
            } else {
                LastCheckpoint::Done
            };
        }
    }

    /// Lets the ending be over by this time: drain, last checkpoint, and leaving the group.
    fn end_by(&mut self, by: Instant, now: Instant) {
        let time = by.saturating_duration_since(now);
        // A fifth of the time is left for the last checkpoint, and half of that for leaving.
        self.cancel_at = self.cancel_at.min(now + time.mul_f32(0.8));
        self.leave_at = self.leave_at.min(now + time.mul_f32(0.9));
        self.end_at = self.end_at.min(by);
    }

    pub(super) fn wake_at(&self, machine: &Machine) -> Option<Instant> {
        match machine.membership.state {
            Member::In => {}
            Member::Leaving => return Some(self.end_at),
            Member::Out(_) | Member::Joining | Member::Over => return None,
        }
        let cancel = machine.attempts.any().then_some(self.cancel_at);
        let cancel = cancel.filter(|_| machine.attempts.any_uncancelled());
        let again = machine.checkpoint.not_before;
        let again = again.filter(|_| {
            self.last == LastCheckpoint::WantedAgain && machine.checkpoint.wake_at().is_some()
        });
        let times = cancel.into_iter().chain(again);
        Some(times.fold(self.leave_at, Instant::min))
    }
}

impl Machine {
    /// Ends the processor because it must not go on.
    pub(super) fn halt(&mut self, error: RunnerError, now: Instant) {
        match &mut self.ending {
            None => self.begin_ending(Then::End(Err(error)), self.rules.policy.drain, now),
            Some(ending) => match &mut ending.then {
                Then::End(Err(_)) => {
                    tracing::warn!(processor = %self.rules.name, error = crate::chain(&error), "another error while the processor was ending");
                }
                then => *then = Then::End(Err(error)),
            },
        }
    }

    /// The bus has refused a call for good. A call that was under way while the group was left is
    /// refused because of it: pauses and offsets of this membership have no meaning any more.
    pub(super) fn bus_refused(&mut self, error: MessageBusError, now: Instant) {
        if matches!(self.membership.state, Member::Leaving | Member::Over) {
            tracing::debug!(processor = %self.rules.name, error = crate::chain(&error), "a call came too late: the group is left");
            return;
        }
        self.halt(self.rules.bus_error(error), now);
    }

    /// A step of a store or of the bus has panicked: what it has done is not known.
    pub(super) fn broken(&mut self, reason: String, now: Instant) {
        let processor = self.rules.name.clone();
        self.halt(RunnerError::Broken { processor, reason }, now);
    }

    /// Ends the processor because it was told to, at the latest by this time.
    pub(super) fn stop(&mut self, by: Instant, now: Instant) {
        match &mut self.ending {
            None => self.begin_ending(Then::End(Ok(())), self.rules.policy.drain, now),
            Some(ending) if matches!(ending.then, Then::Rejoin) => {
                ending.then = Then::End(Ok(()));
            }
            Some(_) => {}
        }
        if let Some(ending) = &mut self.ending {
            ending.end_by(by, now);
        }
    }

    /// Ends the membership, so that another one can follow.
    pub(super) fn end_to_rejoin(&mut self, now: Instant) {
        if self.ending.is_none() {
            self.begin_ending(Then::Rejoin, self.rules.policy.drain, now);
        }
    }

    fn begin_ending(&mut self, then: Then, drain: Duration, now: Instant) {
        let all = self.partitions.owned.keys().cloned().collect();
        self.lanes.drop_queued(&all);
        self.attempts.finish(None, &mut self.out);
        let cancel_at = super::later(now, drain);
        self.ending = Some(Ending {
            then,
            cancel_at,
            leave_at: cancel_at + LAST_CHECKPOINT,
            end_at: cancel_at + LAST_CHECKPOINT + LEAVE,
            last: LastCheckpoint::NotYet,
        });
    }

    pub(super) fn advance_ending(&mut self, now: Instant) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        match self.membership.state {
            Member::Leaving if ending.end_at <= now => return self.left(now),
            Member::Leaving | Member::Over => return,
            Member::Out(_) => {
                // It has never joined, or left already.
                self.membership.state = Member::Leaving;
                return self.left(now);
            }
            Member::Joining => {
                self.membership.state = Member::Leaving;
                return self.out.push(Effect::Leave);
            }
            Member::In => {}
        }
        if ending.cancel_at <= now {
            self.attempts.cancel(None, now, &mut self.out);
        }
        if ending.last == LastCheckpoint::NotYet && !self.attempts.any() {
            ending.last = LastCheckpoint::Wanted;
            self.advance_checkpoint(now);
            self.advance_revocations(now);
        }
        let Some(ending) = &self.ending else {
            return;
        };
        if ending.last == LastCheckpoint::Done || ending.leave_at <= now {
            if ending.last != LastCheckpoint::Done {
                tracing::warn!(processor = %self.rules.name, "the group is left before everything that is done is committed: it comes again");
            }
            self.membership.state = Member::Leaving;
            // Nothing more can be committed. A flush that still runs is waited for by the next
            // checkpoint.
            let all = self.partitions.owned.keys().cloned().collect();
            self.checkpoint.void(&all);
            for id in std::mem::take(&mut self.partitions.leaving).into_keys() {
                self.out.push(Effect::Release(id));
            }
            self.out.push(Effect::Leave);
        }
    }

    /// The group is left.
    pub(super) fn left(&mut self, now: Instant) {
        if self.membership.state != Member::Leaving {
            return;
        }
        let Some(ending) = self.ending.take() else {
            return;
        };
        match ending.then {
            Then::End(result) => {
                self.membership.state = Member::Over;
                self.ending = None;
                self.out.push(Effect::End(result));
            }
            Then::Rejoin => {
                let all: std::collections::HashSet<_> =
                    self.partitions.owned.keys().cloned().collect();
                self.lost(&all, now);
                self.pausing = None;
                self.membership.begin_again(now);
            }
        }
    }

    /// Returns true if this member owns everything up to the ends, and has dealt with it.
    pub(super) fn is_at_ends(&self) -> bool {
        self.membership.ends.as_ref().is_some_and(|ends| {
            ends.iter().all(|(partition, end)| {
                let owned = self.partitions.owned.get(partition);
                // A start that is not durable yet may show that the position was lost.
                owned.is_some_and(|owned| owned.has_begun() && owned.window.low() >= *end)
            })
        })
    }

    pub(super) fn end_if_caught_up(&mut self, now: Instant) {
        // What could not be flushed or committed yet is not dealt with yet.
        if self.ending.is_none()
            && self.membership.state == Member::In
            && self.is_at_ends()
            && self.is_all_committed()
        {
            self.stop(super::later(now, self.rules.policy.drain), now);
        }
    }

    /// Asks how far the whole group is, if this run has ends: other members may have done the rest.
    pub(super) fn ask_group(&mut self) {
        if self.membership.ends.is_some() && !self.membership.is_asked {
            self.membership.is_asked = true;
            self.out.push(Effect::AskGroup);
        }
    }

    pub(super) fn group_committed(&mut self, result: Result<Ends, MessageBusError>, now: Instant) {
        self.membership.is_asked = false;
        match result {
            Ok(committed) => {
                let mut ends = self.membership.ends.iter().flatten();
                if ends.all(|(p, end)| committed.get(p).is_some_and(|next| next >= end)) {
                    self.stop(super::later(now, self.rules.policy.drain), now);
                }
            }
            Err(error) if error.is_transient() => {
                tracing::debug!(processor = %self.rules.name, error = crate::chain(&error), "the offsets of the group are not known yet");
            }
            Err(error) => self.bus_refused(error, now),
        }
    }
}
