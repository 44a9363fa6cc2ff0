//! A consumer group of the in-memory message bus: who reads which partition, from where, and how it changes hands.
//!
//! What a member is told is derived from the state, never queued: a change that is overtaken by another before the
//! member looks is not told at all, and nothing has to be taken back. In the order of telling: what is lost, what is
//! being revoked, what is assigned, what has no position, then messages.
use super::topic::Topics;
use foldstream::ports::{
    AssignedPartition, Assignment, AssignmentEpoch, ConsumerEvent, Delivery, MessageBusError,
    NoPosition, Offset, OwnedMark, PartitionId, StartedFrom, Subscription,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Orders members by when they joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberId(pub(super) u64);

/// How far the taking away of a partition has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Revoking {
    No,
    /// The member has not asked since.
    Untold(Instant),
    /// The member holds the revocation.
    Told(Instant),
}
impl Revoking {
    const fn deadline(self) -> Option<Instant> {
        match self {
            Self::No => None,
            Self::Untold(at) | Self::Told(at) => Some(at),
        }
    }
}

/// A partition in the hands of a member.
#[derive(Debug)]
struct Owned {
    epoch: AssignmentEpoch,
    position: Result<(Offset, StartedFrom), NoPosition>,
    /// Whether the member knows that it has this partition.
    is_known: bool,
    /// Whether the member knows of the position, or of its lack.
    is_told: bool,
    is_paused: bool,
    revoking: Revoking,
}

#[derive(Debug)]
struct Member {
    topics: BTreeSet<Arc<str>>,
    start: BTreeMap<PartitionId, Offset>,
    owned: BTreeMap<PartitionId, Owned>,
    lost: BTreeSet<PartitionId>,
    /// Thrown out: joins again when it has been told what it lost.
    is_expelled: bool,
    /// The last partition that a message came from: the next one has its turn.
    last: Option<PartitionId>,
    notify: Arc<Notify>,
}

/// What a member gets when it asks.
#[derive(Debug)]
pub(super) enum Polled {
    Event(ConsumerEvent),
    /// To be handed out as a revocation.
    Revoking(Vec<(PartitionId, AssignmentEpoch)>, Duration),
    /// Nothing now; ask again when notified, or when the next revocation is overdue.
    Nothing(Option<Instant>),
}

#[derive(Debug, Default)]
pub(super) struct Group {
    committed: BTreeMap<PartitionId, Offset>,
    members: BTreeMap<MemberId, Member>,
    /// When the first revocation under way is overdue.
    deadline: Option<Instant>,
}

/// What a group needs of its bus.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) topics: &'a Topics,
    /// The last epoch given.
    pub(super) epochs: &'a mut u64,
    pub(super) now: Instant,
    pub(super) grace: Duration,
}

impl Group {
    pub(super) fn committed(&self, partition: &PartitionId) -> Option<Offset> {
        self.committed.get(partition).copied()
    }
    pub(super) fn forget_committed(&mut self) {
        self.committed.clear();
    }
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
    /// Wakes who reads the partition.
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
        let start = subscription.start.into_iter();
        let member = Member {
            topics: subscription.topics.into_iter().collect(),
            start: start.map(|mark| (mark.partition, mark.next)).collect(),
            owned: BTreeMap::new(),
            lost: BTreeSet::new(),
            is_expelled: false,
            last: None,
            notify,
        };
        self.members.insert(id, member);
        self.settle(around);
    }

    pub(super) fn leave(&mut self, id: MemberId, around: &mut Surroundings<'_>) {
        if let Some(member) = self.members.remove(&id) {
            // Whoever waits for its next event learns that there is none.
            member.notify.notify_one();
            self.settle(around);
        }
    }

    /// Takes everything from these members at once, as when their sessions end.
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

    /// A revocation was dropped: the partitions that are still under that assignment go on.
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

    /// Takes away what its members did not give back in time. Cheap when there is nothing.
    pub(super) fn expire(&mut self, around: &mut Surroundings<'_>) {
        let now = around.now;
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
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

    /// Round-robin over the partitions in order, among the members that want the topic, by when they joined.
    fn targets(&self, topics: &Topics) -> BTreeMap<PartitionId, MemberId> {
        let active = || {
            self.members
                .iter()
                .filter(|(_, member)| !member.is_expelled)
        };
        let wanted: BTreeSet<_> = active().flat_map(|(_, member)| &member.topics).collect();
        // A topic that was deleted has no partitions; its subscribers get it back when it is made anew.
        let partitions = wanted.into_iter().filter_map(|t| topics.partitions(t).ok());
        let mut targets = BTreeMap::new();
        for (turn, partition) in partitions.flatten().enumerate() {
            let wants = |member: &Member| member.topics.contains(&partition.topic);
            let candidates: Vec<_> = active()
                .filter(|(_, m)| wants(m))
                .map(|(id, _)| *id)
                .collect();
            if let Some(id) = candidates.get(turn % candidates.len().max(1)) {
                targets.insert(partition, *id);
            }
        }
        targets
    }

    /// Brings who has what nearer to who should have what: starts revocations, and gives out what nobody holds.
    pub(super) fn settle(&mut self, around: &mut Surroundings<'_>) {
        let targets = self.targets(around.topics);
        let mut held = BTreeSet::new();
        for (id, member) in &mut self.members {
            let Member { owned, lost, .. } = member;
            owned.retain(|partition, owned| {
                let keep = match targets.get(partition) {
                    // The topic is gone, and with it the partition.
                    None => {
                        if owned.is_known {
                            lost.insert(partition.clone());
                        }
                        false
                    }
                    Some(target) if target == id => true,
                    // Never told: nothing to wait for.
                    Some(_) if !owned.is_known => false,
                    Some(_) => {
                        if owned.revoking == Revoking::No {
                            owned.revoking = Revoking::Untold(around.now + around.grace);
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
        let owned = self
            .members
            .values()
            .flat_map(|member| member.owned.values());
        self.deadline = owned.filter_map(|owned| owned.revoking.deadline()).min();
        for member in self.members.values() {
            member.notify.notify_one();
        }
    }

    /// The member's next event. [`MessageBusError::Closed`] once it has left.
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
        let deadline = self.deadline;
        let member = self.member(id)?;
        let news = member.news(around.now);
        let polled = news.or_else(|| member.next_message(around.topics).map(Polled::Event));
        Ok(polled.unwrap_or(Polled::Nothing(deadline)))
    }

    fn member(&mut self, id: MemberId) -> Result<&mut Member, MessageBusError> {
        self.members.get_mut(&id).ok_or(MessageBusError::Closed)
    }

    /// Stores all marks or none.
    pub(super) fn commit(
        &mut self,
        id: MemberId,
        marks: &[OwnedMark],
        around: &mut Surroundings<'_>,
    ) -> Result<(), MessageBusError> {
        self.expire(around);
        let member = self.member(id)?;
        for mark in marks {
            let owned = member.owned.get(&mark.partition);
            if owned.is_none_or(|owned| owned.epoch != mark.epoch) {
                return Err(MessageBusError::StaleAssignment {
                    partition: mark.partition.clone(),
                });
            }
        }
        for mark in marks {
            self.committed.insert(mark.partition.clone(), mark.next);
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

impl Member {
    fn assign(
        &mut self,
        partition: PartitionId,
        committed: Option<Offset>,
        around: &mut Surroundings<'_>,
    ) {
        let declared = || {
            self.start
                .get(&partition)
                .map(|at| (*at, StartedFrom::Declared))
        };
        let start = committed
            .map(|at| (at, StartedFrom::Committed))
            .or_else(declared);
        let position = start.ok_or(NoPosition::Missing).and_then(|start| {
            match out_of_range(around.topics, &partition, start.0) {
                Some(found) => Err(found),
                None => Ok(start),
            }
        });
        *around.epochs += 1;
        let owned = Owned {
            epoch: AssignmentEpoch::new(*around.epochs),
            position,
            is_known: false,
            is_told: false,
            is_paused: false,
            revoking: Revoking::No,
        };
        self.owned.insert(partition, owned);
    }

    /// What has changed for this member since it last asked.
    fn news(&mut self, now: Instant) -> Option<Polled> {
        if !self.lost.is_empty() {
            let lost = std::mem::take(&mut self.lost).into_iter().collect();
            return Some(Polled::Event(ConsumerEvent::Lost(lost)));
        }
        let (mut revoked, mut assigned) = (Vec::new(), Vec::new());
        let mut grace = Duration::MAX;
        for (partition, owned) in &mut self.owned {
            if let Revoking::Untold(deadline) = owned.revoking {
                owned.revoking = Revoking::Told(deadline);
                grace = grace.min(deadline.saturating_duration_since(now));
                revoked.push((partition.clone(), owned.epoch));
            }
        }
        if !revoked.is_empty() {
            return Some(Polled::Revoking(revoked, grace));
        }
        for (partition, owned) in self.owned.iter_mut().filter(|(_, owned)| !owned.is_told) {
            if let Ok((next, from)) = owned.position {
                (owned.is_told, owned.is_known) = (true, true);
                let partition = partition.clone();
                assigned.push(AssignedPartition::new(partition, owned.epoch, next, from));
            }
        }
        if !assigned.is_empty() {
            let assignment = Assignment::new(assigned);
            return Some(Polled::Event(ConsumerEvent::Assigned(assignment)));
        }
        let mut untold = self.owned.iter_mut().filter(|(_, owned)| !owned.is_told);
        let (partition, owned) = untold.next()?;
        let why = owned.position.err()?;
        (owned.is_told, owned.is_known) = (true, true);
        let event = ConsumerEvent::NoPosition(partition.clone(), why);
        Some(Polled::Event(event))
    }

    /// The next message, each partition in its turn; or that a partition was trimmed past its position.
    fn next_message(&mut self, topics: &Topics) -> Option<ConsumerEvent> {
        let is_ready = |partition: &PartitionId, owned: &Owned| match owned.position {
            Ok((next, _)) if !owned.is_paused && owned.revoking == Revoking::No => {
                topics.log(partition).is_some_and(|log| next != log.end())
            }
            _ => false,
        };
        let behind = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.owned.range((behind, Bound::Unbounded));
        let mut turns = later.chain(&self.owned);
        let ready = turns.find(|(partition, owned)| is_ready(partition, owned));
        let partition = ready.map(|(partition, _)| partition.clone())?;

        let owned = self.owned.get_mut(&partition)?;
        let (offset, from) = owned.position.ok()?;
        if let Some(found) = out_of_range(topics, &partition, offset) {
            owned.position = Err(found);
            return Some(ConsumerEvent::NoPosition(partition, found));
        }
        let message = topics.log(&partition)?.get(offset)?.clone();
        owned.position = Ok((offset.next(), from));
        self.last = Some(partition.clone());
        let delivery = Delivery::new(partition, offset, owned.epoch, message);
        Some(ConsumerEvent::Delivery(delivery))
    }
}

fn out_of_range(topics: &Topics, partition: &PartitionId, at: Offset) -> Option<NoPosition> {
    let log = topics.log(partition)?;
    let (begin, end) = (log.begin(), log.end());
    (at < begin || at > end).then_some(NoPosition::OutOfRange { begin, end })
}
