//! A member of a consumer group, with its partitions and its next event.
//!
//! Events are derived from the state when the member asks, and are never queued. If another change
//! supersedes a change before the member asks, the member never gets the first one, and nothing has
//! to be undone. Events come in this order: lost partitions, revocations, assignments, partitions
//! without a position, then messages.
use super::{
    group::{MemberId, Polled, Surroundings},
    topic::{self, Topics},
};
use foldstream::ports::{
    AssignedPartition, Assignment, AssignmentEpoch, ConsumerEvent, Delivery, MessageBusError,
    NoPosition, Offset, PartitionId, StartedFrom, Subscription, TopicId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The progress of the revocation of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revoking {
    No,
    /// The member has not got the revocation yet. The revocation ends at this time.
    Untold(Instant),
    /// The member holds the revocation, which ends at this time.
    Told(Instant),
}
impl Revoking {
    pub(super) const fn deadline(self) -> Option<Instant> {
        match self {
            Self::No => None,
            Self::Untold(at) | Self::Told(at) => Some(at),
        }
    }
}

/// A partition that is assigned to a member.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) epoch: AssignmentEpoch,
    pub(super) position: Result<(Offset, StartedFrom), NoPosition>,
    /// True if the member knows that it owns this partition.
    pub(super) is_known: bool,
    /// True if the member knows the position, or that there is none.
    pub(super) is_told: bool,
    pub(super) is_paused: bool,
    pub(super) revoking: Revoking,
}

/// The time for which a missing topic counts as an outage before it is a refusal, as in the Kafka
/// adapter.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// A member of a consumer group.
#[derive(Debug)]
pub(super) struct Member {
    /// The order of the member among the others when partitions are assigned: its own number, or
    /// for a static member the number of the first member with its instance id.
    pub(super) rank: MemberId,
    /// The instance id of a static member.
    pub(super) instance: Option<String>,
    /// The subscribed topics, with their ids at the time of joining.
    pub(super) topics: BTreeMap<Arc<str>, Option<TopicId>>,
    start: BTreeMap<PartitionId, Offset>,
    pub(super) owned: BTreeMap<PartitionId, Owned>,
    pub(super) lost: BTreeSet<PartitionId>,
    /// True if the group has expelled the member. It joins again after it got its lost partitions.
    pub(super) is_expelled: bool,
    /// The end of the session of a static member that has left.
    pub(super) away_until: Option<Instant>,
    /// The time since which a subscribed topic is missing.
    missing_since: Option<Instant>,
    /// The partition of the last message. The next message comes from the partition after it.
    last: Option<PartitionId>,
    pub(super) notify: Arc<Notify>,
}

impl Member {
    pub(super) fn new(
        id: MemberId,
        subscription: Subscription,
        notify: Arc<Notify>,
        topics: &Topics,
    ) -> Self {
        let start = subscription.start.into_iter();
        let with_id = |topic: Arc<str>| {
            let id = topics.id(&topic).cloned();
            (topic, id)
        };
        Self {
            rank: id,
            instance: subscription.instance_id,
            topics: subscription.topics.into_iter().map(with_id).collect(),
            start: start.map(|start| (start.partition, start.next)).collect(),
            owned: BTreeMap::new(),
            lost: BTreeSet::new(),
            is_expelled: false,
            away_until: None,
            missing_since: None,
            last: None,
            notify,
        }
    }

    /// Keeps the membership of a static member that has left, which gets no more events.
    pub(super) fn go_away(&mut self, until: Instant) {
        self.away_until.get_or_insert(until);
        self.lost.clear();
        for owned in self.owned.values_mut() {
            if matches!(owned.revoking, Revoking::Untold(_)) {
                owned.revoking = Revoking::No;
            }
        }
    }

    pub(super) fn assign(
        &mut self,
        partition: PartitionId,
        committed: Option<Offset>,
        around: &mut Surroundings<'_>,
    ) {
        let declared = || {
            self.start
                .get(&partition)
                .map(|at| (*at, StartedFrom::Configured))
        };
        let start = committed
            .map(|at| (at, StartedFrom::Committed))
            .or_else(declared);
        let joined = self.topics.get(&partition.topic).and_then(Option::as_ref);
        let position = if joined == around.topics.id(&partition.topic) {
            start.ok_or(NoPosition::Missing).and_then(|start| {
                match out_of_range(around.topics, &partition, start.0) {
                    Some(found) => Err(found),
                    None => Ok(start),
                }
            })
        } else {
            Err(NoPosition::Recreated)
        };
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

    /// Takes the next event that is not a message: a change of the assignment since the member last
    /// asked.
    pub(super) fn news(&mut self, now: Instant) -> Option<Polled> {
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

    /// Checks that all subscribed topics exist.
    ///
    /// A missing topic is reported once as an outage. After that, returns the time at which it
    /// becomes a refusal, or `None` if no topic is missing.
    ///
    /// # Errors
    /// - `Unavailable` if a topic is found missing for the first time.
    /// - `Refused` if the topic has been missing for too long.
    pub(super) fn look_for_topics(
        &mut self,
        around: &Surroundings<'_>,
    ) -> Result<Option<Instant>, MessageBusError> {
        let mut topics = self.topics.keys();
        let Some(missing) = topics.find(|topic| !around.topics.is_shown(topic)) else {
            self.missing_since = None;
            return Ok(None);
        };
        match self.missing_since {
            None => {
                self.missing_since = Some(around.now);
                let source = format!(
                    "topic {missing} does not exist anymore; it has worked before, so it counts as an outage for {PATIENCE:?}"
                );
                Err(MessageBusError::Unavailable {
                    source: source.into(),
                })
            }
            Some(since) if around.now < since + PATIENCE => Ok(Some(since + PATIENCE)),
            Some(_) => Err(topic::missing(missing)),
        }
    }

    /// Takes the next message, from all partitions in rotation.
    ///
    /// Also returns that a position has passed offsets without records, or that a position is out
    /// of range because old records were deleted.
    pub(super) fn next_message(&mut self, topics: &Topics) -> Option<ConsumerEvent> {
        let is_ready = |partition: &PartitionId, owned: &Owned| match owned.position {
            Ok((next, _)) if !owned.is_paused && owned.revoking == Revoking::No => {
                topics.log(partition).is_some_and(|log| next != log.end())
            }
            _ => false,
        };
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.owned.range((after, Bound::Unbounded));
        let mut candidates = later.chain(&self.owned);
        let ready = candidates.find(|(partition, owned)| is_ready(partition, owned));
        let partition = ready.map(|(partition, _)| partition.clone())?;

        let owned = self.owned.get_mut(&partition)?;
        let (offset, from) = owned.position.ok()?;
        if let Some(found) = out_of_range(topics, &partition, offset) {
            owned.position = Err(found);
            return Some(ConsumerEvent::NoPosition(partition, found));
        }
        self.last = Some(partition.clone());
        let log = topics.log(&partition)?;
        let record = log.next_record(offset);
        let reached = record.map_or(log.end(), |(at, _)| at);
        let Some((_, message)) = record.filter(|_| reached == offset) else {
            owned.position = Ok((reached, from));
            let epoch = owned.epoch;
            return Some(ConsumerEvent::Reached(partition, epoch, reached));
        };
        let message = message.clone();
        owned.position = Ok((offset.next(), from));
        let delivery = Delivery::new(partition, offset, owned.epoch, message);
        Some(ConsumerEvent::Delivery(delivery))
    }
}

fn out_of_range(topics: &Topics, partition: &PartitionId, at: Offset) -> Option<NoPosition> {
    let log = topics.log(partition)?;
    let (begin, end) = (log.begin(), log.end());
    (at < begin || at > end).then_some(NoPosition::OutOfRange { begin, end })
}
