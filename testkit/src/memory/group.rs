//! A consumer group of the in-memory message bus, which assigns partitions to members.
use super::{
    member::{Member, Revoking},
    topic::Topics,
};
use foldstream::ports::{
    AssignmentEpoch, ConsumerEvent, MessageBusError, Offset, OffsetCommit, PartitionId,
    RefusedKind, Subscription,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The number of a membership. Members are ordered by the time at which they joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberId(pub(super) u64);

/// The answer to a member that asks for its next event.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "almost all events are deliveries"
)]
pub(super) enum Polled {
    Event(ConsumerEvent),
    /// The partitions of a revocation, and the time that is left for it.
    Revoking(Vec<(PartitionId, AssignmentEpoch)>, Duration),
    /// There is no event now. The member asks again when it is notified, or at this time.
    Nothing(Option<Instant>),
}

#[derive(Debug, Default)]
pub(super) struct Group {
    committed: BTreeMap<PartitionId, Offset>,
    /// The partitions of the members' topics, in the order in which the group learned of them. New
    /// partitions come last, so that the others stay with their members.
    met: Vec<PartitionId>,
    members: BTreeMap<MemberId, Member>,
    /// Static members whose instance id another member has taken over.
    fenced: BTreeSet<MemberId>,
    /// The earliest end of a revocation or of the session of an absent member.
    deadline: Option<Instant>,
}

/// The parts of the bus that a group needs.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) topics: &'a Topics,
    /// The highest epoch that was assigned so far.
    pub(super) epochs: &'a mut u64,
    pub(super) now: Instant,
    pub(super) timeouts: Timeouts,
}

/// The times for which a group waits for its members.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// The time to wait for the release of a revocation.
    pub(super) grace: Duration,
    /// The time to wait for the return of a static member.
    pub(super) session: Duration,
}

impl Group {
    pub(super) fn committed(&self, partition: &PartitionId) -> Option<Offset> {
        self.committed.get(partition).copied()
    }
    pub(super) fn forget_committed(&mut self) {
        self.committed.clear();
    }
    pub(super) fn forget_topic(&mut self, topic: &str) {
        self.committed
            .retain(|partition, _| *partition.topic != *topic);
    }
    /// Returns true if the group has a member that is not expelled. An absent static member counts
    /// too.
    pub(super) fn has_active_members(&self) -> bool {
        self.members.values().any(|member| !member.is_expelled)
    }
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
    pub(super) fn owner(&self, partition: &PartitionId) -> Option<MemberId> {
        let mut members = self.members.iter();
        let found = members.find(|(_, member)| member.owned.contains_key(partition));
        found.map(|(id, _)| *id)
    }
    pub(super) fn member_ids(&self) -> Vec<MemberId> {
        self.members.keys().copied().collect()
    }
    /// Wakes the member that reads the partition.
    pub(super) fn wake_owner(&self, partition: &PartitionId) {
        for member in self.members.values() {
            if member.owned.contains_key(partition) {
                member.notify.notify_one();
            }
        }
    }

    pub(super) fn join(
        &mut self,
        id: MemberId,
        subscription: Subscription,
        notify: Arc<Notify>,
        around: &mut Surroundings<'_>,
    ) {
        // Removes absent members whose sessions are over, so that the new member does not replace
        // one.
        self.expire(around);
        let instance = subscription.instance_id.clone();
        let mut member = Member::new(id, subscription, notify, around.topics);
        let holds = |(_, other): &(&MemberId, &Member)| other.instance == instance;
        let before = self.members.iter().find(holds).map(|(id, _)| *id);
        if let Some(before) = before.filter(|_| instance.is_some())
            && let Some(replaced) = self.members.remove(&before)
        {
            // The new member takes the rank of the old one, so that the others keep their
            // partitions.
            member.rank = replaced.rank;
            if replaced.away_until.is_none() {
                self.fenced.insert(before);
                replaced.notify.notify_one();
            }
        }
        self.members.insert(id, member);
        self.settle(around);
    }

    /// Ends the membership of a member. A static member is only absent: it keeps its partitions
    /// until its session is over.
    pub(super) fn leave(&mut self, id: MemberId, around: &mut Surroundings<'_>) {
        self.fenced.remove(&id);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        // Wakes a task that waits for the member's next event, which then gets `Closed`.
        member.notify.notify_one();
        if member.instance.is_some() && !member.is_expelled {
            let until = around.now + around.timeouts.session;
            member.go_away(until);
        } else {
            self.members.remove(&id);
        }
        self.settle(around);
    }

    /// Takes all partitions from these members at once, as a broker does when sessions expire.
    pub(super) fn expel(&mut self, ids: &[MemberId], around: &mut Surroundings<'_>) {
        for id in ids {
            if let Some(member) = self.members.get_mut(id) {
                let owned = std::mem::take(&mut member.owned).into_iter();
                let known = owned.filter(|(_, owned)| owned.is_known);
                member.lost.extend(known.map(|(partition, _)| partition));
                member.is_expelled = true;
            }
        }
        self.settle(around);
    }

    /// Releases the partitions of a dropped revocation to other members.
    ///
    /// A partition that was assigned again since then has a new epoch and is not released.
    pub(super) fn release(
        &mut self,
        id: MemberId,
        released: &[(PartitionId, AssignmentEpoch)],
        around: &mut Surroundings<'_>,
    ) {
        if let Some(member) = self.members.get_mut(&id) {
            for (partition, epoch) in released {
                if member
                    .owned
                    .get(partition)
                    .is_some_and(|o| o.epoch == *epoch)
                {
                    member.owned.remove(partition);
                }
            }
            self.settle(around);
        }
    }

    /// Takes the partitions that were not released in time, and those of static members whose
    /// session is over. Costs O(1) if nothing is overdue.
    pub(super) fn expire(&mut self, around: &mut Surroundings<'_>) {
        let now = around.now;
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.members
            .retain(|_, member| member.away_until.is_none_or(|until| now < until));
        for member in self.members.values_mut() {
            let Member { owned, lost, .. } = member;
            owned.retain(|partition, owned| {
                let is_overdue = owned.revoking.deadline().is_some_and(|at| at <= now);
                if is_overdue && matches!(owned.revoking, Revoking::Untold(_)) {
                    lost.insert(partition.clone());
                }
                !is_overdue
            });
        }
        self.settle(around);
    }

    /// Returns the member to which each partition should be assigned.
    ///
    /// Partitions are distributed round-robin, in the order in which the group learned of them,
    /// among the members that subscribe to the topic, in the order of their ranks.
    fn targets(&mut self, topics: &Topics) -> BTreeMap<PartitionId, MemberId> {
        let active = self.members.iter().filter(|(_, m)| !m.is_expelled);
        let mut active: Vec<_> = active.collect();
        active.sort_by_key(|(_, member)| member.rank);
        let wanted = active.iter().flat_map(|(_, member)| member.topics.keys());
        let wanted: BTreeSet<_> = wanted.collect();
        // A deleted topic has no partitions. Its subscribers get some when it is created again.
        let partitions = wanted.into_iter().filter_map(|t| topics.partitions(t).ok());
        let mut new: BTreeSet<_> = partitions.flatten().collect();
        self.met.retain(|partition| new.remove(partition));
        self.met.extend(new);
        let mut targets = BTreeMap::new();
        for (index, partition) in self.met.iter().enumerate() {
            let wants = |member: &Member| member.topics.contains_key(&partition.topic);
            let candidates: Vec<_> = active.iter().filter(|(_, m)| wants(m)).collect();
            if let Some((id, _)) = candidates.get(index % candidates.len().max(1)) {
                targets.insert(partition.clone(), **id);
            }
        }
        targets
    }

    /// Moves the assignment one step toward its target: starts revocations and assigns free
    /// partitions.
    pub(super) fn settle(&mut self, around: &mut Surroundings<'_>) {
        let targets = self.targets(around.topics);
        let mut held = BTreeSet::new();
        for (id, member) in &mut self.members {
            let Member {
                owned,
                lost,
                away_until,
                ..
            } = member;
            owned.retain(|partition, owned| {
                let keep = match targets.get(partition) {
                    // The topic was deleted, and its partitions with it.
                    None => {
                        if owned.is_known {
                            lost.insert(partition.clone());
                        }
                        false
                    }
                    Some(target) if target == id => true,
                    // An absent member keeps its partitions even if others join meanwhile.
                    Some(_) if away_until.is_some() => true,
                    // The member never learned of the partition, so no revocation is needed.
                    Some(_) if !owned.is_known => false,
                    Some(_) => {
                        if owned.revoking == Revoking::No {
                            owned.revoking = Revoking::Untold(around.now + around.timeouts.grace);
                        }
                        true
                    }
                };
                if keep {
                    held.insert(partition.clone());
                }
                keep
            });
        }
        for (partition, target) in targets {
            if held.contains(&partition) {
                continue;
            }
            let committed = self.committed(&partition);
            if let Some(member) = self.members.get_mut(&target) {
                member.assign(partition, committed, around);
            }
        }
        let deadlines = self.members.values().flat_map(|member| {
            let owned = member.owned.values();
            let revocations = owned.filter_map(|owned| owned.revoking.deadline());
            revocations.chain(member.away_until)
        });
        self.deadline = deadlines.min();
        for member in self.members.values() {
            member.notify.notify_one();
        }
    }

    /// Takes the next event of a member.
    ///
    /// # Errors
    /// - [`MessageBusError::Closed`] if the member has left.
    /// - `Refused` if another member has taken over its instance id, or a topic has been missing
    ///   for too long.
    /// - `Unavailable` if a topic is found missing for the first time.
    pub(super) fn poll(
        &mut self,
        id: MemberId,
        around: &mut Surroundings<'_>,
    ) -> Result<Polled, MessageBusError> {
        self.expire(around);
        let member = self.member(id)?;
        if member.is_expelled && member.lost.is_empty() {
            member.is_expelled = false;
            self.settle(around);
        }
        let deadlines = [self.deadline, around.topics.next_shown()];
        let member = self.member(id)?;
        let news = member.news(around.now);
        let polled = news.or_else(|| member.next_message(around.topics).map(Polled::Event));
        if let Some(polled) = polled {
            return Ok(polled);
        }
        let patience = member.look_for_topics(around)?;
        let deadlines = deadlines.into_iter().chain([patience]);
        Ok(Polled::Nothing(deadlines.flatten().min()))
    }

    fn member(&mut self, id: MemberId) -> Result<&mut Member, MessageBusError> {
        if self.fenced.contains(&id) {
            return Err(MessageBusError::Refused {
                kind: RefusedKind::InstanceIdInUse,
                reason: "another member has joined with the instance id of this one: give each process its own".into(),
                source: "fenced".into(),
            });
        }
        let member = self.members.get_mut(&id);
        let present = member.filter(|member| member.away_until.is_none());
        present.ok_or(MessageBusError::Closed)
    }

    /// Stores all offset commits or none.
    pub(super) fn commit(
        &mut self,
        id: MemberId,
        commits: &[OffsetCommit],
        around: &mut Surroundings<'_>,
    ) -> Result<(), MessageBusError> {
        self.expire(around);
        let member = self.member(id)?;
        for commit in commits {
            let owned = member.owned.get(&commit.partition);
            if owned.is_none_or(|owned| owned.epoch != commit.epoch) {
                return Err(MessageBusError::StaleAssignment {
                    partition: commit.partition.clone(),
                });
            }
        }
        for commit in commits {
            self.committed.insert(commit.partition.clone(), commit.next);
        }
        Ok(())
    }

    pub(super) fn set_paused(
        &mut self,
        id: MemberId,
        partitions: &[PartitionId],
        is_paused: bool,
    ) -> Result<(), MessageBusError> {
        let member = self.member(id)?;
        for partition in partitions {
            if let Some(owned) = member.owned.get_mut(partition) {
                owned.is_paused = is_paused;
            }
        }
        member.notify.notify_one();
        Ok(())
    }
}
