//! The end of a membership: what runs is finished, what is done is committed, and the group is left.
use super::{Effect, Ends, Machine, Member};
use crate::{
    ports::{MessageBusError, PartitionId},
    runner::RunnerError,
};
use std::time::Duration;
use tokio::time::Instant;

/// The time after the drain in which the last checkpoint must be done.
const LAST_CHECKPOINT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Ending {
    then: Then,
    /// When attempts that still run are cancelled.
    cancel_at: Instant,
    /// When the group is left, whatever is not durable then.
    leave_at: Instant,
    last: LastCheckpoint,
}

/// What follows once the group is left.
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
    Done,
}

impl Ending {
    /// Returns true if the processor ends, and does not only join its group again.
    pub(super) const fn is_end(&self) -> bool {
        matches!(self.then, Then::End(_))
    }

    pub(super) fn wants_last_checkpoint(&self) -> bool {
        self.last == LastCheckpoint::Wanted
    }

    pub(super) const fn checkpoint_ended(&mut self) {
        if matches!(self.last, LastCheckpoint::Wanted) {
            self.last = LastCheckpoint::Done;
        }
    }

    pub(super) fn wake_at(&self, machine: &Machine) -> Option<Instant> {
        if machine.membership.state != Member::In {
            return None;
        }
        let cancel = machine.attempts.any().then_some(self.cancel_at);
        let cancel = cancel.filter(|_| machine.attempts.any_uncancelled());
        Some(cancel.map_or(self.leave_at, |at| at.min(self.leave_at)))
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
        let drain = by
            .saturating_duration_since(now)
            .min(self.rules.policy.drain);
        match &mut self.ending {
            None => self.begin_ending(Then::End(Ok(())), drain, now),
            Some(ending) => {
                if matches!(ending.then, Then::Rejoin) {
                    ending.then = Then::End(Ok(()));
                }
                ending.cancel_at = ending.cancel_at.min(super::later(now, drain));
                ending.leave_at = ending.leave_at.min(ending.cancel_at + LAST_CHECKPOINT);
            }
        }
    }

    /// Leaves and joins again: there is a partition that the subscription has no start for.
    pub(super) fn rejoin(&mut self, partition: &PartitionId, now: Instant) {
        if self.ending.is_none() {
            tracing::info!(processor = %self.rules.name, %partition, "a partition is new: the processor joins its group again");
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
            last: LastCheckpoint::NotYet,
        });
    }

    pub(super) fn advance_ending(&mut self, now: Instant) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        match self.membership.state {
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
                self.lost(all, now);
                self.pausing = None;
                let at = self.membership.joins.failed(now);
                self.membership.state = Member::Out(at);
            }
        }
    }

    /// Returns true if this member owns everything up to the ends, and has dealt with it.
    pub(super) fn is_at_ends(&self) -> bool {
        self.membership.ends.as_ref().is_some_and(|ends| {
            ends.iter().all(|(partition, end)| {
                let owned = self.partitions.owned.get(partition);
                owned.is_some_and(|owned| owned.window.low() >= *end)
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
