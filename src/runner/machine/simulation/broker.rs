//! A model of the bus: partitions with records and holes, assignments, and committed offsets.
use super::super::{
    Input, Record, RevocationId,
    testing::{partition, record},
};
use crate::{
    StreamId, Timestamp,
    control::StoredRecord,
    ports::{
        AssignedPartition, AssignmentEpoch, Message, MessageBusError, Offset, OffsetCommit,
        PartitionId, StartedFrom,
    },
};
use std::{collections::VecDeque, sync::Arc, time::Duration};

pub(super) const PARTITIONS: u32 = 3;
pub(super) const STREAMS: u64 = 2;

/// A record of the log; `None` is an offset without a record.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) stream: StreamId,
    pub(super) version: u64,
    pub(super) is_readable: bool,
    /// It was given up, by a letter.
    pub(super) is_given_up: bool,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) records: Vec<Option<Logged>>,
    /// The newest version of each stream of the partition.
    versions: [u64; STREAMS as usize],
    pub(super) committed: u64,
    pub(super) owner: Option<Owner>,
}

/// The assignment of a partition to an instance.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) instance: usize,
    pub(super) epoch: u64,
    /// The next offset to deliver.
    pub(super) position: u64,
    pub(super) is_paused: bool,
    pub(super) revocation: Option<RevocationId>,
}

#[derive(Debug, Default)]
pub(super) struct Broker {
    pub(super) logs: [Log; PARTITIONS as usize],
    /// The events that each instance will receive next.
    pub(super) inboxes: [VecDeque<Input>; 2],
    pub(super) is_member: [bool; 2],
    last_epoch: u64,
    last_revocation: u64,
}

pub(super) fn stream_of(partition: u32, number: u64) -> StreamId {
    super::super::testing::stream(&format!("{partition}-{number}"))
}

impl Broker {
    pub(super) fn log(&mut self, partition: &PartitionId) -> &mut Log {
        &mut self.logs[partition.partition as usize]
    }

    /// Appends the next event of a stream, an older one again, or an offset without a record.
    pub(super) fn produce(&mut self, rng: &mut fastrand::Rng) {
        let number = rng.u32(0..PARTITIONS);
        let log = &mut self.logs[number as usize];
        let stream = rng.u64(0..STREAMS);
        let is_readable = rng.u8(0..200) != 0;
        let newest = &mut log.versions[stream as usize];
        let version = match rng.u8(0..20) {
            0..=1 => return log.records.push(None),
            // Another program has written a record that is no event.
            _ if !is_readable => 0,
            2..=3 if *newest > 0 => *newest - rng.u64(0..(*newest).min(3)),
            _ => {
                *newest += 1;
                *newest
            }
        };
        log.records.push(Some(Logged {
            stream: stream_of(number, stream),
            version,
            is_readable,
            is_given_up: false,
        }));
    }

    /// Lets a member have a partition that nobody has.
    pub(super) fn assign(&mut self, number: u32, instance: usize) {
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        let log = &mut self.logs[number as usize];
        let position = log.committed;
        log.owner = Some(Owner {
            instance,
            epoch,
            position,
            is_paused: false,
            revocation: None,
        });
        let assigned = AssignedPartition::new(
            partition(number),
            AssignmentEpoch::new(epoch),
            Offset::new(position),
            StartedFrom::Committed,
        );
        self.inboxes[instance].push_back(Input::Assigned(vec![assigned]));
    }

    /// Asks an instance to give partitions up.
    pub(super) fn revoke(&mut self, instance: usize, numbers: &[u32], grace: Duration) {
        self.last_revocation += 1;
        let id = RevocationId(self.last_revocation);
        for number in numbers {
            if let Some(owner) = &mut self.logs[*number as usize].owner {
                owner.revocation = Some(id);
            }
        }
        let partitions = numbers.iter().map(|n| partition(*n)).collect();
        self.inboxes[instance].push_back(Input::Revoking(id, partitions, grace));
    }

    pub(super) fn released(&mut self, instance: usize, id: RevocationId) {
        for log in &mut self.logs {
            let is_of = |o: &Owner| o.instance == instance && o.revocation == Some(id);
            if log.owner.as_ref().is_some_and(is_of) {
                log.owner = None;
            }
        }
    }

    /// Takes a partition away at once. The old owner is told when it receives again.
    pub(super) fn lose(&mut self, number: u32) -> Option<usize> {
        let owner = self.logs[number as usize].owner.take()?;
        let lost = Input::Lost(vec![partition(number)]);
        self.inboxes[owner.instance].push_back(lost);
        Some(owner.instance)
    }

    /// Ends a membership.
    pub(super) fn leave(&mut self, instance: usize) {
        self.is_member[instance] = false;
        self.inboxes[instance].clear();
        for log in &mut self.logs {
            if log.owner.as_ref().is_some_and(|o| o.instance == instance) {
                log.owner = None;
            }
        }
    }

    /// Returns the numbers of the partitions that an instance owns and that are not to be given up.
    pub(super) fn owned_by(&self, instance: usize) -> Vec<u32> {
        let is_of = |o: &Owner| o.instance == instance && o.revocation.is_none();
        let numbers = 0..PARTITIONS;
        numbers
            .filter(|n| self.logs[*n as usize].owner.as_ref().is_some_and(is_of))
            .collect()
    }

    pub(super) fn owns(&self, instance: usize, partition: &PartitionId, epoch: u64) -> bool {
        let owner = &self.logs[partition.partition as usize].owner;
        owner
            .as_ref()
            .is_some_and(|o| o.instance == instance && o.epoch == epoch)
    }

    /// Returns true if the instance would receive something.
    pub(super) fn has_something_for(&self, instance: usize) -> bool {
        !self.inboxes[instance].is_empty()
            || (self.logs.iter()).any(|log| Self::delivers(log, instance))
    }

    fn delivers(log: &Log, instance: usize) -> bool {
        log.owner.as_ref().is_some_and(|o| {
            o.instance == instance && !o.is_paused && (o.position as usize) < log.records.len()
        })
    }

    /// Returns what an instance receives next.
    pub(super) fn receive(&mut self, instance: usize, rng: &mut fastrand::Rng) -> Option<Input> {
        // What was fetched already may come before the news of a rebalance.
        if !self.inboxes[instance].is_empty() && rng.u8(0..4) > 0 {
            return self.inboxes[instance].pop_front();
        }
        // What was fetched already is delivered although the partition is to be given up.
        let takes_more = rng.u8(0..4) == 0;
        let ready = (0..PARTITIONS).filter(|n| {
            let log = &self.logs[*n as usize];
            let is_free = |o: &Owner| o.revocation.is_none() || takes_more;
            Self::delivers(log, instance) && log.owner.as_ref().is_some_and(is_free)
        });
        let ready: Vec<_> = ready.collect();
        let is_told = |n: &u32| {
            !self.inboxes[instance].iter().any(|input| {
                matches!(input, Input::Assigned(assigned) if assigned.iter().any(|a| a.partition.partition == *n))
            })
        };
        let ready: Vec<_> = ready.into_iter().filter(is_told).collect();
        let Some(number) = rng.choice(&ready) else {
            return self.inboxes[instance].pop_front();
        };
        let log = &mut self.logs[*number as usize];
        let owner = log.owner.as_mut()?;
        let (epoch, offset) = (AssignmentEpoch::new(owner.epoch), owner.position);
        owner.position += 1;
        Some(match log.records.get(offset as usize)? {
            None => Input::Reached(partition(*number), epoch, Offset::new(offset + 1)),
            Some(logged) if !logged.is_readable => {
                let message = Message::new("t", Timestamp::from_micros(1)).with_partition(*number);
                let record = StoredRecord::new(message, Offset::new(offset));
                Input::Unreadable(Box::new(record), epoch, crate::WireError::Tombstone)
            }
            Some(logged) => {
                let id = logged.stream.id();
                let read = record(*number, offset, id, logged.version);
                let read = Arc::into_inner(read)?;
                Input::Delivered(Arc::new(Record { epoch, ..read }))
            }
        })
    }

    /// Stores offsets, or refuses all of them. Returns the records that are passed by it.
    pub(super) fn commit(
        &mut self,
        instance: usize,
        offsets: &[OffsetCommit],
    ) -> Result<Vec<Logged>, MessageBusError> {
        for commit in offsets {
            if !self.owns(instance, &commit.partition, commit.epoch.get()) {
                let partition = commit.partition.clone();
                return Err(MessageBusError::StaleAssignment { partition });
            }
        }
        let mut passed = Vec::new();
        for commit in offsets {
            let log = self.log(&commit.partition);
            let next = commit.next.get();
            assert!(next >= log.committed, "the offset moves back");
            assert!(next as usize <= log.records.len(), "past the end");
            let range = log.committed as usize..next as usize;
            passed.extend(log.records[range].iter().flatten().cloned());
            log.committed = next;
        }
        Ok(passed)
    }
}
