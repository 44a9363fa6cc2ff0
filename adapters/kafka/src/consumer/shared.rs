//! The state that the poll thread and the callers of a consumer share: the assignments, and the
//! events that wait for `next`.
//!
//! Each partition has a buffer of its own with an even share of the read-ahead. A full or paused
//! partition never holds up the others. A pause or a revocation is one flag or one removal, and
//! nothing remains in a common queue.
use super::{context::Client, wake::Wake};
use foldstream::ports::{
    AssignedPartition, Assignment, AssignmentEpoch, ConsumerEvent, Delivery, MessageBusError,
    NoPosition, Offset, OffsetCommit, PartitionId, Revocation, StartedFrom,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
    vec,
};
use tokio::sync::{Notify, watch};

/// The offset at which a new partition starts, and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    At(Offset, StartedFrom),
    Nowhere(NoPosition),
}

/// Entries that wait for `next`, in the order of their partition.
#[derive(Debug)]
enum Item {
    /// Records, at least one, each with its size.
    Records(vec::IntoIter<(Delivery, usize)>),
    Reached(Offset),
    NoPosition(NoPosition),
}

/// The state of one assigned partition.
#[derive(Debug)]
struct Reading {
    epoch: AssignmentEpoch,
    buffer: VecDeque<Item>,
    /// The number of entries in the buffer.
    entries: usize,
    bytes: usize,
    /// True if the caller has paused the partition.
    paused: bool,
    /// True if the partition is in `State::ready`.
    ready: bool,
    /// True if the poll thread left records with the client, since the buffer had its share.
    full: bool,
    /// The end of the grace of a partition that is being revoked. Until then it delivers nothing
    /// more, and its commits still count.
    revoked: Option<Instant>,
    /// True if the position belongs to an earlier topic of that name. The partition delivers
    /// nothing, and its commits are refused.
    recreated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Leaving,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Changes of the assignment, which come before any delivery.
    control: VecDeque<ConsumerEvent>,
    /// The newest problem that `next` has not returned.
    problem: Option<MessageBusError>,
    partitions: BTreeMap<PartitionId, Reading>,
    /// The partitions that have a delivery, served in rotation.
    ready: VecDeque<PartitionId>,
    commits: usize,
    last_epoch: u64,
    /// The client of the current assignments. The poll thread owns it, so that the member leaves
    /// the group there and not wherever the last reference is dropped.
    client: Weak<Client>,
}

/// The number of records and bytes that one partition may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// The state of one member, behind a lock, and its notifications.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    told: Notify,
    pub(super) wake: Arc<Wake>,
    limit: Share,
    /// True once the poll thread has left the group.
    gone: watch::Sender<bool>,
    /// The number of revocations that have begun. Each one bounds the commits under way.
    revocations: watch::Sender<u64>,
}

/// A revocation that the caller has received or will receive.
#[derive(Debug)]
pub(super) struct Pending {
    released: Arc<AtomicBool>,
}
impl Pending {
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }
}

/// A commit under way. No assignment is given up before it has ended.
#[derive(Debug)]
pub(super) struct Commit(Arc<Shared>);
impl Drop for Commit {
    fn drop(&mut self) {
        self.0.lock().commits -= 1;
        self.0.wake.notify();
    }
}

impl Shared {
    pub(super) fn new(wake: Arc<Wake>, records: usize, bytes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                phase: Phase::Open,
                control: VecDeque::new(),
                problem: None,
                partitions: BTreeMap::new(),
                ready: VecDeque::new(),
                commits: 0,
                last_epoch: 0,
                client: Weak::new(),
            }),
            told: Notify::new(),
            wake,
            limit: Share { records, bytes },
            gone: watch::Sender::new(false),
            revocations: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operations of the consumer's callers.
impl Shared {
    /// Waits for the next event. An event is taken only when it is returned, so a dropped future
    /// loses nothing.
    pub(super) async fn next(&self) -> Result<ConsumerEvent, MessageBusError> {
        loop {
            // A notification between the look and the wait is kept by the `Notify`.
            if let Some(answer) = self.take() {
                return answer;
            }
            self.told.notified().await;
        }
    }

    /// Returns the next event if it is there already.
    pub(super) fn take(&self) -> Option<Result<ConsumerEvent, MessageBusError>> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Some(Err(MessageBusError::Closed));
        }
        if let Some(event) = state.control.pop_front() {
            return Some(Ok(event));
        }
        if let Some(problem) = state.problem.take() {
            return Some(Err(problem));
        }
        let share = state.share(self.limit);
        let (event, has_room) = state.take_item(share)?;
        drop(state);
        if has_room {
            self.wake.notify();
        }
        Some(Ok(event))
    }

    /// Starts a commit, which holds its assignments until it has ended. Also returns the client
    /// that the assignments belong to.
    pub(super) fn begin_commit(
        self: &Arc<Self>,
        commits: &[OffsetCommit],
    ) -> Result<(Commit, Weak<Client>), MessageBusError> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(MessageBusError::Closed);
        }
        for commit in commits {
            let owned = state.partitions.get(&commit.partition);
            if owned.is_none_or(|reading| reading.epoch != commit.epoch || reading.recreated) {
                return Err(MessageBusError::StaleAssignment {
                    partition: commit.partition.clone(),
                });
            }
        }
        state.commits += 1;
        Ok((Commit(Arc::clone(self)), Weak::clone(&state.client)))
    }

    /// Returns the end of the grace of the partitions that are being revoked, or `None` if none of
    /// them is.
    pub(super) fn end_of_grace(&self, commits: &[OffsetCommit]) -> Option<Instant> {
        let state = self.lock();
        let readings = commits
            .iter()
            .filter_map(|commit| state.partitions.get(&commit.partition));
        readings.filter_map(|reading| reading.revoked).min()
    }

    pub(super) fn watch_revocations(&self) -> watch::Receiver<u64> {
        self.revocations.subscribe()
    }

    pub(super) fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        let mut state = self.open()?;
        for id in partitions {
            if let Some(reading) = state.partitions.get_mut(id) {
                reading.paused = true;
            }
        }
        Ok(())
    }

    pub(super) fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        let mut state = self.open()?;
        for id in partitions {
            if let Some(reading) = state.partitions.get_mut(id) {
                reading.paused = false;
                state.make_ready(id);
            }
        }
        drop(state);
        self.told.notify_one();
        self.wake.notify();
        Ok(())
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, MessageBusError> {
        let state = self.lock();
        match state.phase {
            Phase::Open => Ok(state),
            Phase::Leaving => Err(MessageBusError::Closed),
        }
    }

    /// Ends everything but the membership, which the poll thread ends.
    pub(super) fn start_leaving(&self) {
        let mut state = self.lock();
        state.phase = Phase::Leaving;
        let told = std::mem::take(&mut state.control);
        state.partitions.clear();
        state.ready.clear();
        drop(state);
        // Dropped after the lock is released, since a dropped revocation wakes the poll thread.
        drop(told);
        self.told.notify_one();
        self.wake.notify();
    }

    pub(super) fn watch_gone(&self) -> watch::Receiver<bool> {
        self.gone.subscribe()
    }
}

/// The operations of the poll thread.
impl Shared {
    pub(super) fn is_leaving(&self) -> bool {
        self.lock().phase != Phase::Open
    }

    /// Sets the client that the following assignments belong to.
    pub(super) fn set_client(&self, client: &Arc<Client>) {
        self.lock().client = Arc::downgrade(client);
    }

    pub(super) fn commits(&self) -> usize {
        self.lock().commits
    }

    /// Records that the member has left the group.
    pub(super) fn set_gone(&self) {
        self.start_leaving();
        self.gone.send_replace(true);
    }

    /// Reports a problem. The newest one counts.
    pub(super) fn tell(&self, problem: MessageBusError) {
        self.lock().problem = Some(problem);
        self.told.notify_one();
    }

    /// Adds new partitions to the assignment.
    pub(super) fn assign(&self, starts: &[(PartitionId, Start)]) {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return;
        }
        let mut assigned = Vec::new();
        let mut nowhere = Vec::new();
        for (id, start) in starts {
            state.last_epoch += 1;
            let epoch = AssignmentEpoch::new(state.last_epoch);
            let mut reading = Reading::new(epoch);
            reading.recreated = matches!(start, Start::Nowhere(NoPosition::Recreated));
            state.partitions.insert(id.clone(), reading);
            match *start {
                Start::At(next, from) => {
                    assigned.push(AssignedPartition::new(id.clone(), epoch, next, from));
                }
                Start::Nowhere(why) => nowhere.push(ConsumerEvent::NoPosition(id.clone(), why)),
            }
        }
        if !assigned.is_empty() {
            let event = ConsumerEvent::Assigned(Assignment::new(assigned));
            state.control.push_back(event);
        }
        state.control.extend(nowhere);
        drop(state);
        self.told.notify_one();
    }

    /// Starts a revocation: deliveries end, and commits still count.
    pub(super) fn revoke(&self, partitions: &[PartitionId], grace: Duration) -> Pending {
        let released = Arc::new(AtomicBool::new(false));
        let pending = Pending {
            released: Arc::clone(&released),
        };
        let mut state = self.lock();
        let known: Vec<_> = partitions
            .iter()
            .filter(|id| state.partitions.contains_key(id))
            .cloned()
            .collect();
        if known.is_empty() || state.phase != Phase::Open {
            released.store(true, Ordering::SeqCst);
            return pending;
        }
        for id in &known {
            if let Some(reading) = state.partitions.get_mut(id) {
                reading.revoked = Some(Instant::now() + grace);
                reading.clear();
            }
        }
        let wake = Arc::clone(&self.wake);
        let revocation = Revocation::new(known, grace, move || {
            released.store(true, Ordering::SeqCst);
            wake.notify();
        });
        state.control.push_back(ConsumerEvent::Revoking(revocation));
        drop(state);
        self.revocations.send_modify(|count| *count += 1);
        self.told.notify_one();
        pending
    }

    /// Ends assignments, whose commits are refused from now on. A caller who did not know of the
    /// revocation receives `Lost`.
    pub(super) fn end(&self, partitions: &[PartitionId], lost: bool) {
        let mut state = self.lock();
        let ended: Vec<_> = partitions
            .iter()
            .filter(|id| state.partitions.remove(id).is_some())
            .cloned()
            .collect();
        state.ready.retain(|id| !ended.contains(id));
        let untold = state.take_untold_revocation(&ended);
        if (lost || untold.is_some()) && !ended.is_empty() && state.phase == Phase::Open {
            state.control.push_back(ConsumerEvent::Lost(ended));
        }
        drop(state);
        drop(untold);
        self.told.notify_one();
    }

    /// Returns the share that a partition can still take. `None` while it is paused or its buffer
    /// is full.
    pub(super) fn room(&self, id: &PartitionId) -> Option<Share> {
        let mut state = self.lock();
        let share = state.share(self.limit);
        let reading = state.partitions.get_mut(id)?;
        if reading.paused || reading.revoked.is_some() {
            return None;
        }
        reading.full = !reading.has_room(share);
        (!reading.full).then(|| Share {
            records: share.records - reading.entries,
            bytes: share.bytes.saturating_sub(reading.bytes),
        })
    }

    /// Returns the epoch under which a partition is read.
    pub(super) fn epoch(&self, id: &PartitionId) -> Option<AssignmentEpoch> {
        self.lock().partitions.get(id).map(|reading| reading.epoch)
    }

    /// Adds records of one partition, in order, each with its size.
    pub(super) fn deliver(&self, id: &PartitionId, deliveries: Vec<(Delivery, usize)>) {
        if deliveries.is_empty() {
            return;
        }
        let bytes = deliveries.iter().map(|(_, size)| size).sum::<usize>();
        let mut state = self.lock();
        let Some(reading) = state.partitions.get_mut(id) else {
            return;
        };
        reading.bytes += bytes;
        reading.push(Item::Records(deliveries.into_iter()));
        state.make_ready(id);
        drop(state);
        self.told.notify_one();
    }

    /// Reports, after all deliveries, that each offset lower than `next` was delivered or holds no
    /// record.
    pub(super) fn reached(&self, id: &PartitionId, next: Offset) {
        let mut state = self.lock();
        if let Some(reading) = state.partitions.get_mut(id) {
            match reading.buffer.back_mut() {
                // The caller has not seen the earlier report, and the newer one includes it.
                Some(Item::Reached(before)) => *before = next,
                _ => reading.push(Item::Reached(next)),
            }
            state.make_ready(id);
        }
        drop(state);
        self.told.notify_one();
    }

    /// Reports that a partition belongs to a new topic of the same name. Drops the buffer, and
    /// refuses commits from now on.
    pub(super) fn recreated(&self, id: &PartitionId) {
        let mut state = self.lock();
        if let Some(reading) = state.partitions.get_mut(id)
            && !reading.recreated
        {
            reading.recreated = true;
            reading.clear();
            reading.push(Item::NoPosition(NoPosition::Recreated));
            state.make_ready(id);
        }
        drop(state);
        self.told.notify_one();
    }

    /// Returns the assigned partitions of this member.
    pub(super) fn assigned(&self) -> Vec<PartitionId> {
        self.lock().partitions.keys().cloned().collect()
    }

    /// Reports, after all deliveries, that a partition cannot be read any further.
    pub(super) fn stop(&self, id: &PartitionId, why: NoPosition) {
        let mut state = self.lock();
        if let Some(reading) = state.partitions.get_mut(id) {
            reading.push(Item::NoPosition(why));
            state.make_ready(id);
        }
        drop(state);
        self.told.notify_one();
    }
}

impl Reading {
    fn new(epoch: AssignmentEpoch) -> Self {
        Self {
            epoch,
            buffer: VecDeque::new(),
            entries: 0,
            bytes: 0,
            paused: false,
            ready: false,
            full: false,
            revoked: None,
            recreated: false,
        }
    }

    /// Returns true if an entry may be delivered, and the partition does not wait for its turn yet.
    fn may_be_ready(&self) -> bool {
        !self.ready && !self.paused && self.revoked.is_none() && !self.buffer.is_empty()
    }

    fn has_room(&self, share: Share) -> bool {
        self.buffer.is_empty() || (self.entries < share.records && self.bytes < share.bytes)
    }

    fn push(&mut self, item: Item) {
        self.entries += match &item {
            Item::Records(records) => records.len(),
            Item::Reached(_) | Item::NoPosition(_) => 1,
        };
        self.buffer.push_back(item);
    }

    fn clear(&mut self) {
        self.buffer.clear();
        (self.entries, self.bytes) = (0, 0);
    }

    /// Takes the first entry.
    fn take(&mut self, id: &PartitionId) -> Option<ConsumerEvent> {
        if let Some(Item::Records(records)) = self.buffer.front_mut() {
            let (delivery, size) = records.next()?;
            if records.len() == 0 {
                self.buffer.pop_front();
            }
            self.entries -= 1;
            self.bytes -= size;
            return Some(ConsumerEvent::Delivery(delivery));
        }
        let item = self.buffer.pop_front()?;
        self.entries -= 1;
        match item {
            Item::Records(_) => None,
            Item::Reached(next) => Some(ConsumerEvent::Reached(id.clone(), self.epoch, next)),
            Item::NoPosition(why) => Some(ConsumerEvent::NoPosition(id.clone(), why)),
        }
    }
}

impl State {
    /// Returns an even part of the read-ahead, at least one record.
    fn share(&self, limit: Share) -> Share {
        let partitions = self.partitions.len().max(1);
        Share {
            records: (limit.records / partitions).max(1),
            bytes: (limit.bytes / partitions).max(1),
        }
    }

    fn make_ready(&mut self, id: &PartitionId) {
        if let Some(reading) = self.partitions.get_mut(id)
            && reading.may_be_ready()
        {
            reading.ready = true;
            self.ready.push_back(id.clone());
        }
    }

    /// Takes the next entry of the next ready partition. Returns true with it if the buffer has
    /// room again.
    fn take_item(&mut self, share: Share) -> Option<(ConsumerEvent, bool)> {
        while let Some(id) = self.ready.pop_front() {
            let Some(reading) = self.partitions.get_mut(&id) else {
                continue;
            };
            reading.ready = false;
            if reading.paused {
                continue;
            }
            let Some(event) = reading.take(&id) else {
                continue;
            };
            let half = reading.entries <= share.records / 2 && reading.bytes <= share.bytes / 2;
            let has_room = reading.full && half;
            if has_room {
                reading.full = false;
            }
            if reading.may_be_ready() {
                reading.ready = true;
                self.ready.push_back(id);
            }
            return Some((event, has_room));
        }
        None
    }

    /// Removes a revocation of these partitions that `next` has not returned.
    fn take_untold_revocation(&mut self, partitions: &[PartitionId]) -> Option<ConsumerEvent> {
        let at = self.control.iter().position(|event| {
            matches!(event, ConsumerEvent::Revoking(r)
                if r.partitions().iter().any(|id| partitions.contains(id)))
        })?;
        self.control.remove(at)
    }
}
