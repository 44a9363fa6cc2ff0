//! Lanes: a queue per stream, the state of its retry, and the order in which lanes may run.
//!
//! A lane is in one state at a time: ready, running, or waiting for its retry. So the events of its
//! streams are handled one after the other, in order, and a lane in backoff blocks only itself.
use super::{record::Record, retry::Retry};
use crate::{StreamId, ports::PartitionId};
use foldhash::HashMap;
use smallvec::SmallVec;
use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The most queues of lanes that are gone whose memory is kept for the next ones.
const SPARE_QUEUES: usize = 512;
/// The most records for which such a queue has room.
const SPARE_CAPACITY: usize = 16;

/// The key of a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::runner) enum LaneKey {
    /// The lane of one stream.
    Stream(StreamId),
    /// A lane that several streams share.
    Shared(Arc<str>),
}

#[derive(Debug)]
struct Lane {
    queue: VecDeque<Arc<Record>>,
    state: State,
    /// The failures of the record at the head.
    retry: Option<Retry>,
    /// The last of them was one of the handler, so that the record tells whether the service is
    /// back. Otherwise it waits out its pause, whatever the circuit breaker wants.
    is_of_call: bool,
    /// The number of records, from the head, that are tried one by one.
    alone: usize,
    /// A record that was tried and is not done: its effects may be there, whatever became of the
    /// answer.
    tried: Option<Arc<Record>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// The first records of the queue are being handled: this many.
    Running(usize),
    Waiting(Instant),
    /// Waits until the processor holds no longer.
    Held,
}

/// The first records of a lane, which are to be handled.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) key: LaneKey,
    pub(super) records: SmallVec<[Arc<Record>; 1]>,
    /// The failures of the first record.
    pub(super) failed: u32,
    /// The first record is tried alone since a batch with it has failed.
    pub(super) is_alone: bool,
    /// The first record was tried before, also if that spent no attempt.
    pub(super) was_tried: bool,
}

impl Lane {
    const fn new(queue: VecDeque<Arc<Record>>) -> Self {
        Self {
            queue,
            state: State::Ready,
            retry: None,
            is_of_call: false,
            alone: 0,
            tried: None,
        }
    }

    fn was_tried(&self) -> bool {
        let heads = self.tried.as_ref().zip(self.queue.front());
        heads.is_some_and(|(tried, head)| Arc::ptr_eq(tried, head))
    }

    /// Returns the number of records that are being handled, and true if the lane runs. A lane that
    /// is reserved runs without a record.
    const fn running(&self) -> (usize, bool) {
        match self.state {
            State::Running(records) => (records, true),
            State::Ready | State::Waiting(_) | State::Held => (0, false),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Only looked up, or iterated in an order that is sorted afterwards, so that the machine stays
    /// deterministic.
    lanes: HashMap<LaneKey, Lane>,
    ready: VecDeque<LaneKey>,
    waiting: BTreeSet<(Instant, LaneKey)>,
    held: BTreeSet<LaneKey>,
    /// Empty queues of lanes that are gone.
    spare: Vec<VecDeque<Arc<Record>>>,
}

impl Lanes {
    /// Puts a record after the others of its lane.
    pub(super) fn push(&mut self, key: &LaneKey, record: Arc<Record>) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.queue.push_back(record);
            return;
        }
        let mut lane = Lane::new(self.spare.pop().unwrap_or_default());
        lane.queue.push_back(record);
        self.lanes.insert(key.clone(), lane);
        self.ready.push_back(key.clone());
    }

    /// Starts the lane that has been ready longest, with at most `most` records, all of one stream
    /// and assignment. The lane runs until [`finished`](Self::finished). Lanes whose head may not
    /// run stay where they are.
    pub(super) fn start_next(
        &mut self,
        most: usize,
        may_run: impl Fn(&LaneKey, &StreamId) -> bool,
    ) -> Option<Started> {
        let mut held = Vec::new();
        let started = self.start_first(most, may_run, &mut held);
        for key in held.into_iter().rev() {
            self.ready.push_front(key);
        }
        started
    }

    /// Returns true if [`start_next`](Self::start_next) starts a lane.
    pub(super) fn can_start(&self, may_run: impl Fn(&LaneKey, &StreamId) -> bool) -> bool {
        self.ready.iter().any(|key| {
            let head = self.ready_head(key);
            head.is_some_and(|head| may_run(key, &head.event.header.stream))
        })
    }

    /// Returns the head of a lane, if the lane is ready.
    fn ready_head(&self, key: &LaneKey) -> Option<&Arc<Record>> {
        let lane = self.lanes.get(key);
        lane.filter(|lane| lane.state == State::Ready)?
            .queue
            .front()
    }

    fn start_first(
        &mut self,
        most: usize,
        may_run: impl Fn(&LaneKey, &StreamId) -> bool,
        held: &mut Vec<LaneKey>,
    ) -> Option<Started> {
        while let Some(key) = self.ready.pop_front() {
            if let Some(lane) = self.lanes.get_mut(&key)
                && lane.state == State::Ready
                && let Some(head) = lane.queue.front()
            {
                if !may_run(&key, &head.event.header.stream) {
                    held.push(key);
                    continue;
                }
                // After a failure the head is tried alone, so that each event counts its own
                // failures.
                let is_alone = lane.retry.is_some() || lane.alone > 0;
                let most = if is_alone { 1 } else { most.max(1) };
                let records: SmallVec<_> = (lane.queue.iter().take(most))
                    .take_while(|record| {
                        record.partition == head.partition
                            && record.event.header.stream == head.event.header.stream
                    })
                    .cloned()
                    .collect();
                let started = Started {
                    failed: lane.retry.as_ref().map_or(0, Retry::attempts),
                    is_alone: lane.alone > 0,
                    was_tried: lane.was_tried(),
                    key,
                    records,
                };
                lane.state = State::Running(started.records.len());
                return Some(started);
            }
        }
        None
    }

    /// Takes the first `done` records off a lane that was running, and makes it ready.
    pub(super) fn finished(&mut self, key: &LaneKey, done: usize) {
        let Some(lane) = self.lanes.get_mut(key) else {
            return;
        };
        lane.queue.drain(..done.min(lane.queue.len()));
        lane.alone = lane.alone.saturating_sub(done);
        if done > 0 {
            lane.retry = None;
        }
        lane.state = State::Ready;
        if lane.queue.is_empty() {
            let lane = self.lanes.remove(key);
            self.spare
                .extend(lane.map(|lane| lane.queue).filter(|queue| {
                    self.spare.len() < SPARE_QUEUES && queue.capacity() <= SPARE_CAPACITY
                }));
        } else {
            self.ready.push_back(key.clone());
        }
    }

    /// Lets a lane wait for its next attempt. A lane whose handler has failed may be woken before,
    /// as a probe.
    pub(super) fn wait(&mut self, key: &LaneKey, retry: Retry, until: Instant, is_of_call: bool) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.retry = Some(retry);
            lane.is_of_call = is_of_call;
            lane.state = State::Waiting(until);
            self.waiting.insert((until, key.clone()));
        }
    }

    /// Lets the first records of a lane be tried one by one: a batch of them has failed, and
    /// nothing says at which.
    pub(super) fn try_alone(&mut self, key: &LaneKey, records: usize) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.alone = lane.alone.max(records);
        }
    }

    /// Notes that the head of a lane was tried.
    pub(super) fn note_tried(&mut self, key: &LaneKey) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.tried = lane.queue.front().cloned();
        }
    }

    /// Lets a task finish the first records of a lane: the lane runs until
    /// [`finished`](Self::finished).
    pub(super) fn block(&mut self, key: &LaneKey, records: usize) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.state = State::Running(records.min(lane.queue.len()));
        }
    }

    /// Keeps a lane for an attempt at events that are not in it. Returns false if the lane runs.
    /// Otherwise it runs until [`finished`](Self::finished).
    pub(super) fn reserve(&mut self, key: &LaneKey) -> bool {
        let lane = self.lanes.entry(key.clone());
        let lane = lane.or_insert_with(|| Lane::new(VecDeque::new()));
        let is_free = !matches!(lane.state, State::Running(_));
        if is_free {
            lane.state = State::Running(0);
        }
        is_free
    }

    /// Lets a lane wait until [`resume_held`](Self::resume_held).
    pub(super) fn hold(&mut self, key: &LaneKey) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.state = State::Held;
            self.held.insert(key.clone());
        }
    }

    /// Returns true if a lane is held.
    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Makes the lanes ready that were held.
    pub(super) fn resume_held(&mut self) {
        for key in std::mem::take(&mut self.held) {
            if let Some(lane) = self.lanes.get_mut(&key)
                && lane.state == State::Held
            {
                lane.state = State::Ready;
                self.ready.push_back(key);
            }
        }
    }

    /// Takes the records of a stream out of its lane, except those that are being handled. Of a
    /// lane that several streams share it takes all.
    pub(super) fn take_queued(&mut self, key: &LaneKey, stream: &StreamId) -> Vec<Arc<Record>> {
        let Some(lane) = self.lanes.get_mut(key) else {
            return Vec::new();
        };
        let (running, is_running) = lane.running();
        let mut taken = Vec::new();
        let mut at = 0;
        lane.queue.retain(|record| {
            at += 1;
            let is_taken = at > running
                && (matches!(key, LaneKey::Shared(_)) || record.event.header.stream == *stream);
            if is_taken {
                taken.push(record.clone());
            }
            !is_taken
        });
        if lane.queue.is_empty() && !is_running {
            self.lanes.remove(key);
        } else if !is_running && !taken.is_empty() {
            lane.retry = None;
            lane.state = State::Ready;
            self.ready.push_back(key.clone());
        }
        taken
    }

    /// Puts records before all others of their lane, except those that are being handled and those
    /// with lower offsets.
    pub(super) fn put_back(&mut self, key: &LaneKey, records: Vec<Arc<Record>>) {
        let Some(first) = records.first().cloned() else {
            return;
        };
        if !self.lanes.contains_key(key) {
            self.push(key, first);
            for record in records.into_iter().skip(1) {
                self.push(key, record);
            }
            return;
        }
        if let Some(lane) = self.lanes.get_mut(key) {
            let (running, is_running) = lane.running();
            let mut at = running;
            for record in records {
                // A record before them may have come back to the lane meanwhile, from an attempt
                // that has failed.
                let is_before = |queued: &Arc<Record>| {
                    queued.partition == record.partition && queued.offset < record.offset
                };
                at += lane
                    .queue
                    .iter()
                    .skip(at)
                    .take_while(|q| is_before(q))
                    .count();
                lane.queue.insert(at, record);
                at += 1;
            }
            let is_first = |head: &Arc<Record>| Arc::ptr_eq(head, &first);
            if !is_running && lane.queue.front().is_some_and(is_first) {
                lane.retry = None;
                lane.state = State::Ready;
                self.ready.push_back(key.clone());
            }
        }
    }

    /// Takes the failures of the lane's head.
    pub(super) fn take_retry(&mut self, key: &LaneKey) -> Option<Retry> {
        self.lanes.get_mut(key).and_then(|lane| lane.retry.take())
    }

    /// Sets the failures of the lane's head.
    pub(super) fn set_retry(&mut self, key: &LaneKey, retry: Option<Retry>) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.retry = retry;
        }
    }

    /// Returns true if nothing runs in a lane.
    pub(super) fn is_free(&self, key: &LaneKey) -> bool {
        let lane = self.lanes.get(key);
        lane.is_none_or(|lane| !matches!(lane.state, State::Running(_)))
    }

    /// Makes a lane ready that was running, and lets it run before the others.
    pub(super) fn return_first(&mut self, key: &LaneKey) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.state = State::Ready;
            self.ready.retain(|ready| ready != key);
            self.ready.push_front(key.clone());
        }
    }

    /// Moves the clocks of all retries: the time for which the circuit was open does not count. A
    /// pause that no probe may shorten has passed meanwhile, and is not made longer.
    pub(super) fn thaw(&mut self, frozen: Duration) {
        let waiting = std::mem::take(&mut self.waiting);
        for (until, key) in waiting {
            if let Some(lane) = self.lanes.get_mut(&key)
                && lane.state == State::Waiting(until)
            {
                let moved = if lane.is_of_call {
                    frozen
                } else {
                    Duration::ZERO
                };
                let until = super::later(until, moved);
                lane.state = State::Waiting(until);
                self.waiting.insert((until, key));
            }
        }
        for lane in self.lanes.values_mut() {
            if let Some(retry) = &mut lane.retry {
                retry.move_start(frozen);
            }
        }
    }

    /// Makes a lane ready that waits for its retry, if no lane is ready but the one that was tried
    /// last. A lane whose last failure was none of the handler waits out its pause.
    pub(super) fn wake_one_for_probe(&mut self, tried: Option<&LaneKey>, now: Instant) {
        // A lane may have gone, or may run or wait, since it was ready.
        let mut ready = std::mem::take(&mut self.ready);
        ready.retain(|key| self.ready_head(key).is_some());
        self.ready = ready;
        let is_other = |key: &LaneKey| Some(key) != tried;
        if self.ready.iter().any(is_other) {
            // The one that was tried last comes after the others.
            if let Some(tried) = tried
                && self.ready.front() == Some(tried)
            {
                self.ready.rotate_left(1);
            }
            return;
        }
        let may_wake = |(until, key): &&(Instant, LaneKey)| {
            *until <= now || self.lanes.get(key).is_none_or(|lane| lane.is_of_call)
        };
        let mut others = self.waiting.iter().filter(may_wake);
        let found = others.find(|(_, key)| is_other(key));
        let found = found.or_else(|| self.waiting.iter().find(may_wake));
        let Some((until, key)) = found.cloned() else {
            return;
        };
        self.waiting.remove(&(until, key.clone()));
        if let Some(lane) = self.lanes.get_mut(&key)
            && lane.state == State::Waiting(until)
        {
            lane.state = State::Ready;
            self.ready.push_front(key);
        }
    }

    /// Returns the next time at which a lane has waited out its pause that no probe may shorten.
    pub(super) fn next_pause(&self, now: Instant) -> Option<Instant> {
        let mut waiting = self.waiting.iter();
        let next = waiting.find(|(until, key)| {
            *until > now && self.lanes.get(key).is_some_and(|lane| !lane.is_of_call)
        });
        next.map(|(until, _)| *until)
    }

    /// Returns true if records wait.
    pub(super) fn has_any(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// Returns true if records wait in another lane than this one.
    pub(super) fn has_other_than(&self, key: Option<&LaneKey>) -> bool {
        self.lanes.keys().any(|other| Some(other) != key)
    }

    /// Returns the failures of the heads of all lanes, in no order.
    pub(super) fn retries(&self) -> impl Iterator<Item = &Retry> {
        self.lanes.values().filter_map(|lane| lane.retry.as_ref())
    }

    /// Returns the heads of all lanes, in no order.
    pub(super) fn heads(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.lanes.values().filter_map(|lane| lane.queue.front())
    }

    /// Makes the lanes ready whose pause is over.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((until, key)) = self.waiting.pop_first() {
            if until > now {
                self.waiting.insert((until, key));
                return;
            }
            // The lane may be gone, or may wait for another time, if its partition was taken away.
            if let Some(lane) = self.lanes.get_mut(&key)
                && lane.state == State::Waiting(until)
            {
                lane.state = State::Ready;
                self.ready.push_back(key);
            }
        }
    }

    /// Returns the time of the next [`wake`](Self::wake).
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Drops what is queued of these partitions. Records that are being handled stay until the
    /// attempt has ended.
    pub(super) fn drop_queued(&mut self, partitions: &HashSet<PartitionId>) {
        let mut unblocked = Vec::new();
        self.lanes.retain(|key, lane| {
            let is_gone = |record: &Arc<Record>| partitions.contains(&record.partition);
            let (running, is_running) = lane.running();
            let lost_head = lane.queue.front().is_some_and(is_gone);
            let mut at = 0;
            lane.queue.retain(|record| {
                at += 1;
                at <= running || !is_gone(record)
            });
            if lost_head && !is_running {
                // Nobody will wake the lane for the record that is gone, and what failed is gone
                // too.
                lane.retry = None;
                if matches!(lane.state, State::Waiting(_) | State::Held) && !lane.queue.is_empty() {
                    lane.state = State::Ready;
                    unblocked.push(key.clone());
                }
            }
            is_running || !lane.queue.is_empty()
        });
        // The order of the map is random; the order in which lanes run must not be.
        unblocked.sort_unstable();
        self.ready.extend(unblocked);
        self.ready.retain(|key| self.lanes.contains_key(key));
        self.waiting.retain(|(until, key)| {
            let lane = self.lanes.get(key);
            lane.is_some_and(|lane| lane.state == State::Waiting(*until))
        });
    }

    /// Returns the number of lanes that wait for a retry.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests;
