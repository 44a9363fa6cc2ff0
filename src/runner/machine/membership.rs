//! The membership in the group: joining it, receiving from it, and joining it again for a partition
//! that has no start.
use super::{Effect, Ends, Machine, Setback, retry::Patience};
use crate::ports::{MessageBusError, PartitionId};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A membership that has lasted for this long is not the consequence of the one before.
const LASTING: Duration = Duration::from_secs(60);

/// The membership in the group.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) state: Member,
    /// The group; empty before the first join.
    pub(super) group: Arc<str>,
    /// Calls to join that have failed in a row.
    joins: Patience,
    /// Memberships that have ended because a partition had no start.
    rejoins: Patience,
    /// The last partition that had no start.
    without_start: Option<PartitionId>,
    /// The time at which the group is left for it, to be joined again. The other partitions go on
    /// until then.
    rejoin_at: Option<Instant>,
    /// The time at which the group was joined.
    since: Instant,
    /// Calls to receive that have failed in a row.
    pub(super) receives: Patience,
    /// Nothing is received before this time.
    pub(super) receive_at: Option<Instant>,
    /// The offsets up to which this run is to go.
    pub(super) ends: Option<Ends>,
    /// The offsets that the group has committed were asked for.
    pub(super) is_asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// Not a member; joins at this time.
    Out(Instant),
    Joining,
    In,
    Leaving,
    Over,
}

impl Membership {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            state: Member::Out(now),
            group: "".into(),
            joins: Patience::new(seed),
            rejoins: Patience::new(seed),
            without_start: None,
            rejoin_at: None,
            since: now,
            receives: Patience::new(seed),
            receive_at: None,
            ends: None,
            is_asked: false,
        }
    }

    /// Returns the failures to join or to receive, with the time of the first one.
    pub(super) fn failures(&self) -> Option<(&super::Noted, Instant)> {
        match self.state {
            Member::Out(_) | Member::Joining => self.joins.noted(),
            Member::In => self.receives.noted(),
            Member::Leaving | Member::Over => None,
        }
    }

    /// Notes that an offset of a partition was committed. That is the progress that ends a row of
    /// memberships without it: a start that went well can be followed by the same end.
    pub(super) fn has_committed(&mut self, partition: &PartitionId) {
        if self.without_start.as_ref() == Some(partition) {
            self.without_start = None;
            self.rejoins.reset();
        }
    }

    /// Lets the membership that has just ended be followed by another one.
    pub(super) fn begin_again(&mut self, now: Instant) {
        self.state = Member::Out(now);
    }

    /// Returns the time at which the group is left to be joined again.
    pub(super) const fn rejoin_at(&self) -> Option<Instant> {
        self.rejoin_at
    }

    /// Notes that partitions are gone: what they lack is no concern of this member any more.
    pub(super) fn lost(&mut self, partitions: &HashSet<PartitionId>) {
        let partition = self.without_start.as_ref();
        if partition.is_some_and(|partition| partitions.contains(partition)) {
            self.rejoin_at = None;
        }
    }
}

impl Machine {
    pub(super) fn join(&mut self, now: Instant) {
        if let Member::Out(at) = self.membership.state
            && at <= now
            && self.ending.is_none()
        {
            self.membership.state = Member::Joining;
            self.out.push(Effect::Join);
        }
    }

    pub(super) fn joined(&mut self, group: Arc<str>, ends: Option<Ends>, now: Instant) {
        let membership = &mut self.membership;
        membership.group = group;
        membership.since = now;
        membership.rejoin_at = None;
        membership.joins.reset();
        if membership.state == Member::Joining {
            membership.state = Member::In;
        }
        if membership.ends.is_none() {
            membership.ends = ends;
        }
    }

    pub(super) fn not_joined(&mut self, setback: Setback, now: Instant) {
        if self.membership.state != Member::Joining {
            return;
        }
        let at = self.membership.joins.failed(now);
        self.membership.state = Member::Out(at);
        match setback {
            Setback::Wait(error) => {
                self.membership.joins.note(&*error);
                tracing::warn!(processor = %self.rules.name, wait = ?(at - now), error = crate::chain(&*error), "the group could not be joined yet");
            }
            Setback::Halt(error) => self.halt(error, now),
        }
    }

    /// There is a partition that the subscription has no start for: the group will be left, and
    /// joined again.
    pub(super) fn rejoin(&mut self, partition: PartitionId, now: Instant) {
        let membership = &mut self.membership;
        if self.ending.is_some() || membership.rejoin_at.is_some() {
            return;
        }
        if now.saturating_duration_since(membership.since) >= LASTING {
            membership.rejoins.reset();
        }
        let at = membership.rejoins.failed(now);
        tracing::info!(processor = %self.rules.name, %partition, wait = ?(at - now), "a partition is new: the processor will join its group again");
        membership.without_start = Some(partition);
        membership.rejoin_at = Some(at);
    }

    pub(super) fn advance_rejoin(&mut self, now: Instant) {
        let membership = &mut self.membership;
        if membership.state == Member::In && membership.rejoin_at.is_some_and(|at| at <= now) {
            membership.rejoin_at = None;
            self.end_to_rejoin(now);
        }
    }

    pub(super) fn not_received(&mut self, error: MessageBusError, now: Instant) {
        if !error.is_transient() {
            return self.bus_refused(error, now);
        }
        let at = self.membership.receives.failed(now);
        self.membership.receives.note(&error);
        tracing::warn!(processor = %self.rules.name, wait = ?(at - now), error = crate::chain(&error), "nothing can be received");
        self.membership.receive_at = Some(at);
    }
}
