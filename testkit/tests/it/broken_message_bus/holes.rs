//! Buses that break a rule of offsets without records.
use super::{Done, Member, Next, Sabotage, Suspects, broken};
use async_trait::async_trait;
use foldstream::{
    Timestamp,
    ports::{
        AssignmentEpoch, ConsumerEvent, Delivery, Message, MessageBus, Offset, OffsetCommit,
        PartitionId,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Mutex,
};
use tokio::sync::Notify;

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<SaysNothingOfHoles>(&["a_position_reaches_the_end_after_a_hole"]).and_by(&[
            "a_paused_partition_reaches_nothing",
            "a_reached_offset_can_be_committed",
        ]),
        broken::<RepeatsReached>(&["a_position_reaches_the_end_after_a_hole"]).and_by(&[
            "records_after_a_hole_are_delivered",
            "a_reached_offset_can_be_committed",
        ]),
        broken::<ReachesBeforeTheRecords>(&["a_position_reaches_the_end_after_a_hole"])
            .and_by(&["a_reached_offset_can_be_committed"]),
        broken::<DeliversHoles>(&["records_after_a_hole_are_delivered"]).and_by(&[
            "a_position_reaches_the_end_after_a_hole",
            "a_paused_partition_reaches_nothing",
            "a_reached_offset_can_be_committed",
        ]),
        broken::<StopsAtHoles>(&["records_after_a_hole_are_delivered"])
            .and_by(&["a_position_reaches_the_end_after_a_hole"]),
        broken::<PausesOnlyRecords>(&["a_paused_partition_reaches_nothing"]),
        broken::<CommitsOnlyRecords>(&["a_reached_offset_can_be_committed"]),
    ]
}

#[derive(Debug, Default)]
struct SaysNothingOfHoles;
#[async_trait]
impl Sabotage for SaysNothingOfHoles {
    async fn next(&self, member: &Member) -> Next {
        loop {
            match member.inner.next().await? {
                ConsumerEvent::Reached(..) => {}
                event => return Ok(event),
            }
        }
    }
}

#[derive(Debug, Default)]
struct RepeatsReached(Mutex<Option<ConsumerEvent>>);
#[async_trait]
impl Sabotage for RepeatsReached {
    async fn next(&self, member: &Member) -> Next {
        if let Some(again) = self.0.lock().unwrap().take() {
            return Ok(again);
        }
        let event = member.inner.next().await?;
        if let ConsumerEvent::Reached(partition, epoch, next) = &event {
            let again = ConsumerEvent::Reached(partition.clone(), *epoch, *next);
            *self.0.lock().unwrap() = Some(again);
        }
        Ok(event)
    }
}

/// Takes the end of the partition for the position when the partition is assigned, if the end holds
/// no record.
#[derive(Debug, Default)]
struct ReachesBeforeTheRecords(Mutex<VecDeque<ConsumerEvent>>);
#[async_trait]
impl Sabotage for ReachesBeforeTheRecords {
    async fn next(&self, member: &Member) -> Next {
        if let Some(early) = self.0.lock().unwrap().pop_front() {
            return Ok(early);
        }
        let event = member.inner.next().await?;
        if let ConsumerEvent::Assigned(assignment) = &event {
            for added in &assignment.partitions {
                let offsets = member.bus.offsets(&added.partition.topic).await?;
                let of = |o: &&foldstream::ports::PartitionOffsets| o.partition == added.partition;
                let end = offsets.iter().find(of).unwrap().end;
                if has_hole_at_the_end(member, &added.partition, added.next, end).await {
                    let reached = ConsumerEvent::Reached(added.partition.clone(), added.epoch, end);
                    self.0.lock().unwrap().push_back(reached);
                }
            }
        }
        Ok(event)
    }
}

/// Reads the partition in a group of its own.
async fn has_hole_at_the_end(
    member: &Member,
    partition: &PartitionId,
    from: Offset,
    end: Offset,
) -> bool {
    use foldstream::ports::{StartOffset, Subscription};
    let start = vec![StartOffset::new(partition.clone(), from)];
    let group = format!("{}-spy", member.group);
    let spy = Subscription::new(group, [partition.topic.clone()]).with_start(start);
    let Ok(spy) = member.bus.subscribe(spy).await else {
        return false;
    };
    let mut position = from;
    while position < end {
        match spy.next().await {
            Ok(ConsumerEvent::Delivery(delivery)) => position = delivery.offset.next(),
            Ok(ConsumerEvent::Reached(_, _, next)) if next == end => return true,
            Ok(ConsumerEvent::Reached(_, _, next)) => position = next,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Delivers an empty message for a hole.
#[derive(Debug, Default)]
struct DeliversHoles;
#[async_trait]
impl Sabotage for DeliversHoles {
    async fn next(&self, member: &Member) -> Next {
        Ok(match member.inner.next().await? {
            ConsumerEvent::Reached(partition, epoch, next) => {
                let message = Message::new(partition.topic.clone(), Timestamp::now());
                let offset = Offset::new(next.get() - 1);
                ConsumerEvent::Delivery(Delivery::new(partition, offset, epoch, message))
            }
            event => event,
        })
    }
}

#[derive(Debug, Default)]
struct StopsAtHoles;
#[async_trait]
impl Sabotage for StopsAtHoles {
    async fn next(&self, member: &Member) -> Next {
        let event = member.inner.next().await?;
        if let ConsumerEvent::Reached(partition, ..) = &event {
            member.inner.pause(std::slice::from_ref(partition)).await?;
        }
        Ok(event)
    }
}

/// Keeps back the records of a paused partition, and still reports its position.
#[derive(Debug, Default)]
struct PausesOnlyRecords {
    paused: Mutex<BTreeSet<PartitionId>>,
    kept: Mutex<VecDeque<Delivery>>,
    resumed: Notify,
}
impl PausesOnlyRecords {
    fn forget(&self, partitions: &[PartitionId]) {
        let gone = |partition: &PartitionId| partitions.contains(partition);
        self.paused.lock().unwrap().retain(|p| !gone(p));
        self.kept.lock().unwrap().retain(|d| !gone(&d.partition));
    }
    fn released(&self) -> Option<Delivery> {
        let paused = self.paused.lock().unwrap();
        let mut kept = self.kept.lock().unwrap();
        let at = kept.iter().position(|d| !paused.contains(&d.partition))?;
        kept.remove(at)
    }
}
#[async_trait]
impl Sabotage for PausesOnlyRecords {
    async fn next(&self, member: &Member) -> Next {
        loop {
            if let Some(released) = self.released() {
                return Ok(ConsumerEvent::Delivery(released));
            }
            let event = tokio::select! {
                biased;
                () = self.resumed.notified() => continue,
                event = member.inner.next() => event?,
            };
            match event {
                ConsumerEvent::Delivery(delivery)
                    if self.paused.lock().unwrap().contains(&delivery.partition) =>
                {
                    self.kept.lock().unwrap().push_back(delivery);
                    continue;
                }
                ConsumerEvent::Revoking(ref revocation) => self.forget(revocation.partitions()),
                ConsumerEvent::Lost(ref partitions) => self.forget(partitions),
                _ => {}
            }
            return Ok(event);
        }
    }
    async fn pause(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        self.paused
            .lock()
            .unwrap()
            .extend(partitions.iter().cloned());
        member.inner.pause(&[]).await
    }
    async fn resume(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        let resumed = |p: &PartitionId| partitions.contains(p);
        self.paused.lock().unwrap().retain(|p| !resumed(p));
        self.resumed.notify_one();
        member.inner.resume(&[]).await
    }
}

/// Commits at most the offset after the last record that it has delivered.
#[derive(Debug, Default)]
struct CommitsOnlyRecords(Mutex<BTreeMap<(PartitionId, AssignmentEpoch), Offset>>);
#[async_trait]
impl Sabotage for CommitsOnlyRecords {
    async fn next(&self, member: &Member) -> Next {
        let event = member.inner.next().await?;
        if let ConsumerEvent::Delivery(d) = &event {
            let key = (d.partition.clone(), d.epoch);
            self.0.lock().unwrap().insert(key, d.offset.next());
        }
        Ok(event)
    }
    async fn commit(&self, member: &Member, commits: &[OffsetCommit]) -> Done {
        let mut commits = commits.to_vec();
        for commit in &mut commits {
            let key = (commit.partition.clone(), commit.epoch);
            if let Some(last) = self.0.lock().unwrap().get(&key) {
                commit.next = commit.next.min(*last);
            }
        }
        member.inner.commit(&commits).await
    }
}
