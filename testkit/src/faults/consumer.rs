//! The wrapper that injects faults into a member of a consumer group.
use super::{Call, Fault, Faults, known_topics::KnownTopics};
use async_trait::async_trait;
use foldstream::ports::{
    AssignmentEpoch, Consumer, ConsumerEvent, MessageBus, MessageBusError, NoPosition,
    OffsetCommit, PartitionId, Subscription,
};
use futures::FutureExt;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

#[derive(Debug)]
pub(super) struct FaultyConsumer {
    faults: Faults,
    bus: Arc<dyn MessageBus>,
    topics: KnownTopics,
    subscription: Subscription,
    member: Mutex<Member>,
    /// Wakes a waiting `next` after a partition was resumed, because an event that was held back
    /// may be due now.
    resumed: Notify,
}

/// The state of the current membership. Each time that the group expels the consumer, a new
/// membership replaces it.
#[derive(Debug)]
struct Member {
    inner: Arc<dyn Consumer>,
    /// The number that is added to the epochs of this membership, so that they are higher than
    /// those of all earlier memberships.
    base: u64,
    /// The highest epoch that the caller has seen.
    newest: u64,
    owned: BTreeSet<PartitionId>,
    paused: BTreeSet<PartitionId>,
    /// The events of partitions that are held back, in order, with the end of the delay.
    held: BTreeMap<PartitionId, (Instant, VecDeque<ConsumerEvent>)>,
    /// The partitions without a position, whose further events the caller does not get.
    nowhere: BTreeMap<PartitionId, NoPosition>,
    /// The reason for which the next partition that is assigned has no position.
    next_nowhere: Option<NoPosition>,
    /// The events that the caller gets before all others, oldest first.
    untold: VecDeque<ConsumerEvent>,
    is_expelled: bool,
    has_left: bool,
}

impl Member {
    /// Ends the membership and returns the partitions that the caller loses.
    fn expel(&mut self) -> Vec<PartitionId> {
        self.is_expelled = true;
        self.base = self.newest.saturating_add(1);
        self.held.clear();
        self.paused.clear();
        self.nowhere.clear();
        self.untold.clear();
        std::mem::take(&mut self.owned).into_iter().collect()
    }
    fn forget(&mut self, partitions: &[PartitionId]) {
        for partition in partitions {
            self.owned.remove(partition);
            self.paused.remove(partition);
            self.held.remove(partition);
            self.nowhere.remove(partition);
        }
    }

    /// Removes the position of the first partition that has one, or else of the next partition that
    /// is assigned.
    fn lose_position(&mut self, why: NoPosition) {
        let mut owned = self.owned.iter();
        match owned.find(|partition| !self.nowhere.contains_key(*partition)) {
            Some(partition) => self.strand(partition.clone(), why),
            None => self.next_nowhere = Some(why),
        }
    }

    /// Queues the event that a partition has no position.
    fn strand(&mut self, partition: PartitionId, why: NoPosition) {
        self.held.remove(&partition);
        self.nowhere.insert(partition.clone(), why);
        let event = ConsumerEvent::NoPosition(partition, why);
        self.untold.push_back(event);
    }
    fn epoch(&mut self, inner: AssignmentEpoch) -> AssignmentEpoch {
        let epoch = self.base.saturating_add(inner.get());
        self.newest = self.newest.max(epoch);
        AssignmentEpoch::new(epoch)
    }

    /// Translates the epochs of offset commits into those of the inner consumer. Fails with the
    /// partition of a commit that belongs to an earlier assignment.
    fn translated(&self, commits: &[OffsetCommit]) -> Result<Vec<OffsetCommit>, PartitionId> {
        let own = |commit: &OffsetCommit| {
            if self.nowhere.get(&commit.partition) == Some(&NoPosition::Recreated) {
                return Err(commit.partition.clone());
            }
            let epoch = commit.epoch.get();
            // For a consumer that has left, the inner one reports that, and not a stale assignment.
            let epoch = match epoch.checked_sub(self.base) {
                None if self.has_left => epoch,
                epoch => epoch.ok_or_else(|| commit.partition.clone())?,
            };
            let epoch = AssignmentEpoch::new(epoch);
            Ok(OffsetCommit::new(
                commit.partition.clone(),
                epoch,
                commit.next,
            ))
        };
        commits.iter().map(own).collect()
    }

    /// Takes an event that is due: one that is queued, or one that was held back long enough.
    fn due(&mut self, now: Instant) -> Option<ConsumerEvent> {
        if let Some(event) = self.untold.pop_front() {
            return Some(event);
        }
        let due = |(partition, (until, _)): &(&PartitionId, &(Instant, _))| {
            *until <= now && !self.paused.contains(*partition)
        };
        let partition = self.held.iter().find(due).map(|(p, _)| p.clone())?;
        let (_, waiting) = self.held.get_mut(&partition)?;
        let event = waiting.pop_front();
        if waiting.is_empty() {
            self.held.remove(&partition);
        }
        event
    }
    /// Returns the time at which the next event that is held back becomes due.
    fn next_due(&self) -> Option<Instant> {
        let held = self.held.iter();
        held.filter(|(partition, _)| !self.paused.contains(*partition))
            .map(|(_, (until, _))| *until)
            .min()
    }

    /// Queues an event after those of its partition that are held back, or returns it if there are
    /// none.
    fn in_order(&mut self, partition: &PartitionId, event: ConsumerEvent) -> Option<ConsumerEvent> {
        match self.held.get_mut(partition) {
            Some((_, waiting)) => {
                waiting.push_back(event);
                None
            }
            None => Some(event),
        }
    }

    /// Returns true if the event is of a partition without a position.
    fn is_of_nowhere(&self, event: &ConsumerEvent) -> bool {
        match event {
            ConsumerEvent::Delivery(delivery) => self.nowhere.contains_key(&delivery.partition),
            ConsumerEvent::Reached(partition, ..) | ConsumerEvent::NoPosition(partition, _) => {
                self.nowhere.contains_key(partition)
            }
            _ => false,
        }
    }

    /// Returns the event that the caller gets for an event of the inner consumer, or `None` if the
    /// event is held back or dropped.
    fn take(&mut self, event: ConsumerEvent, hold: &mut Option<Instant>) -> Option<ConsumerEvent> {
        if self.is_of_nowhere(&event) {
            return None;
        }
        match event {
            ConsumerEvent::Delivery(mut delivery) => {
                delivery.epoch = self.epoch(delivery.epoch);
                let partition = delivery.partition.clone();
                let event = self.in_order(&partition, ConsumerEvent::Delivery(delivery))?;
                let Some(until) = hold.take() else {
                    return Some(event);
                };
                self.held.insert(partition, (until, [event].into()));
                None
            }
            ConsumerEvent::Assigned(mut assignment) => {
                for added in &mut assignment.partitions {
                    added.epoch = self.epoch(added.epoch);
                    self.owned.insert(added.partition.clone());
                }
                if !assignment.partitions.is_empty()
                    && let Some(why) = self.next_nowhere.take()
                {
                    let stranded = assignment.partitions.remove(0);
                    self.strand(stranded.partition, why);
                }
                let has_more = !assignment.partitions.is_empty();
                has_more.then_some(ConsumerEvent::Assigned(assignment))
            }
            ConsumerEvent::Revoking(revocation) => {
                self.forget(revocation.partitions());
                Some(ConsumerEvent::Revoking(revocation))
            }
            ConsumerEvent::Lost(partitions) => {
                self.forget(&partitions);
                Some(ConsumerEvent::Lost(partitions))
            }
            ConsumerEvent::Reached(partition, epoch, next) => {
                let reached = ConsumerEvent::Reached(partition.clone(), self.epoch(epoch), next);
                self.in_order(&partition, reached)
            }
            ConsumerEvent::NoPosition(partition, why) => self.in_order(
                &partition.clone(),
                ConsumerEvent::NoPosition(partition, why),
            ),
            other => Some(other),
        }
    }
}

impl FaultyConsumer {
    pub(super) fn new(
        faults: Faults,
        bus: Arc<dyn MessageBus>,
        topics: KnownTopics,
        subscription: Subscription,
        inner: Arc<dyn Consumer>,
    ) -> Self {
        let member = Member {
            inner,
            base: 0,
            newest: 0,
            owned: BTreeSet::new(),
            paused: BTreeSet::new(),
            held: BTreeMap::new(),
            nowhere: BTreeMap::new(),
            next_nowhere: None,
            untold: VecDeque::new(),
            is_expelled: false,
            has_left: false,
        };
        Self {
            faults,
            bus,
            topics,
            subscription,
            member: Mutex::new(member),
            resumed: Notify::new(),
        }
    }

    fn member(&self) -> MutexGuard<'_, Member> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn inner(&self) -> Arc<dyn Consumer> {
        self.member().inner.clone()
    }
    /// Returns the error of brokers that do not know the first topic of the subscription.
    fn unknown_topic(&self) -> MessageBusError {
        let first = self.subscription.topics.first();
        self.topics.unknown(first.map_or("", |topic| topic))
    }

    /// Notes that the topic of a delivery works.
    fn note_topic(&self, event: &ConsumerEvent) {
        if let ConsumerEvent::Delivery(delivery) = event {
            self.topics.worked(&delivery.partition.topic);
        }
    }

    /// Joins the group again as a new member if the consumer was expelled.
    ///
    /// The caller already knows which partitions it lost. If the future is dropped, the next call
    /// joins.
    async fn rejoin(&self) -> Result<(), MessageBusError> {
        let expelled = {
            let member = self.member();
            (member.is_expelled && !member.has_left).then(|| member.inner.clone())
        };
        let Some(expelled) = expelled else {
            return Ok(());
        };
        expelled.leave().await?;
        let joined = self.bus.subscribe(self.subscription.clone()).await?;
        let mut member = self.member();
        member.inner = joined;
        member.is_expelled = false;
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Consumer for FaultyConsumer {
    async fn next(&self) -> Result<ConsumerEvent, MessageBusError> {
        let fault = self.faults.arrive(&Call::Next).await;
        if let Some(Fault::UnknownTopic) = fault
            && !self.member().has_left
        {
            return Err(self.unknown_topic());
        }
        if let Some(error) = fault
            .as_ref()
            .and_then(|f| self.faults.failure(&Call::Next, f))
        {
            return Err(error);
        }
        self.rejoin().await?;
        let mut hold = match fault {
            Some(Fault::HoldBack(by)) => Some(Instant::now() + by),
            Some(Fault::LoseSession) if !self.member().has_left => {
                let lost = self.member().expel();
                if !lost.is_empty() {
                    return Ok(ConsumerEvent::Lost(lost));
                }
                self.rejoin().await?;
                None
            }
            Some(Fault::NoPosition(why)) => {
                self.member().lose_position(why);
                None
            }
            Some(Fault::CrashAfter) => {
                // It makes no difference if the process had taken an event: a dead process commits
                // nothing, so the event is delivered again.
                self.faults.crash();
                future::pending().await
            }
            _ => None,
        };
        let inner = self.inner();
        loop {
            let next_due = {
                let mut member = self.member();
                if let Some(event) = member.due(Instant::now()) {
                    return Ok(event);
                }
                member.next_due()
            };
            let due = async {
                match next_due {
                    Some(at) => sleep_until(at).await,
                    None => future::pending().await,
                }
            };
            // A caller may drop this future at any await. Nothing is awaited between taking an
            // event from the inner consumer and queuing or returning it, so no event is lost.
            tokio::select! {
                biased;
                event = inner.next() => {
                    if let Some(event) = self.member().take(event?, &mut hold) {
                        self.note_topic(&event);
                        return Ok(event);
                    }
                }
                () = due => {}
                () = self.resumed.notified() => {}
            }
        }
    }

    fn try_next(&self) -> Option<Result<ConsumerEvent, MessageBusError>> {
        self.next().now_or_never()
    }
    async fn commit(&self, commits: &[OffsetCommit]) -> Result<(), MessageBusError> {
        // The member is looked up when the call is carried out: a call that was delayed may find
        // that the consumer was expelled and has joined again meanwhile.
        let act = || -> futures::future::BoxFuture<'_, _> {
            Box::pin(async {
                let translated = self.member().translated(commits);
                match translated {
                    Ok(commits) => self.inner().commit(&commits).await,
                    Err(partition) => Err(MessageBusError::StaleAssignment { partition }),
                }
            })
        };
        let call = Call::Commit(commits);
        match self.faults.arrive(&call).await {
            Some(Fault::UnknownTopic) if !self.member().has_left => Err(self.unknown_topic()),
            fault => self.faults.finish_asking(call, fault, act).await,
        }
    }

    async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        let act = || -> futures::future::BoxFuture<'_, _> {
            Box::pin(async { self.inner().pause(partitions).await })
        };
        let done = self.faults.ask(Call::Pause(partitions), act).await;
        if done.is_ok() {
            let mut member = self.member();
            let owned: Vec<_> = partitions
                .iter()
                .filter(|p| member.owned.contains(*p))
                .cloned()
                .collect();
            member.paused.extend(owned);
        }
        done
    }

    async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        let act = || -> futures::future::BoxFuture<'_, _> {
            Box::pin(async { self.inner().resume(partitions).await })
        };
        let done = self.faults.ask(Call::Resume(partitions), act).await;
        if done.is_ok() {
            let mut member = self.member();
            for partition in partitions {
                member.paused.remove(partition);
            }
            self.resumed.notify_one();
        }
        done
    }

    async fn leave(&self) -> Result<(), MessageBusError> {
        let inner = self.inner();
        let done = self.faults.ask(Call::Leave, || inner.leave()).await;
        if done.is_ok() {
            let mut member = self.member();
            member.has_left = true;
            member.held.clear();
        }
        done
    }
}
