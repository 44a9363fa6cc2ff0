//! Lanes: a queue per stream and a list of the streams that may run.
//!
//! A stream is in at most one of three states: ready, running, or waiting for its retry. So its events are handled one
//! after the other in order, and a stream in backoff blocks only itself.
use crate::{StreamId, ports::PartitionId};
use std::collections::{HashMap, HashSet, VecDeque};

#[derive(Debug)]
struct Lane<T> {
    queue: VecDeque<(PartitionId, T)>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Running,
    Waiting,
}

#[derive(Debug)]
pub(super) struct Lanes<T> {
    /// Only looked up, never iterated for an effect, so its order does not matter.
    lanes: HashMap<StreamId, Lane<T>>,
    ready: VecDeque<StreamId>,
}

impl<T: Clone> Lanes<T> {
    pub(super) fn new() -> Self {
        Self {
            lanes: HashMap::new(),
            ready: VecDeque::new(),
        }
    }

    /// Puts a record after the others of its stream.
    pub(super) fn push(&mut self, stream: &StreamId, partition: PartitionId, item: T) {
        if let Some(lane) = self.lanes.get_mut(stream) {
            lane.queue.push_back((partition, item));
            return;
        }
        let lane = Lane {
            queue: VecDeque::from([(partition, item)]),
            state: State::Ready,
        };
        self.lanes.insert(stream.clone(), lane);
        self.ready.push_back(stream.clone());
    }

    /// The head of the stream that has waited longest; the stream is running until [`finished`](Self::finished) or [`wait`](Self::wait).
    pub(super) fn start_next(&mut self) -> Option<(StreamId, T)> {
        while let Some(stream) = self.ready.pop_front() {
            if let Some(lane) = self.lanes.get_mut(&stream)
                && lane.state == State::Ready
                && let Some((_, item)) = lane.queue.front()
            {
                lane.state = State::Running;
                return Some((stream, item.clone()));
            }
        }
        None
    }

    /// The head of a running stream is dealt with.
    pub(super) fn finished(&mut self, stream: &StreamId) {
        if let Some(lane) = self.lanes.get_mut(stream) {
            lane.queue.pop_front();
            lane.state = State::Ready;
            if lane.queue.is_empty() {
                self.lanes.remove(stream);
            } else {
                self.ready.push_back(stream.clone());
            }
        }
    }

    /// The head of a running stream shall be tried again, after a [`wake`](Self::wake).
    pub(super) fn wait(&mut self, stream: &StreamId) {
        if let Some(lane) = self.lanes.get_mut(stream) {
            lane.state = State::Waiting;
        }
    }

    /// A waiting stream may run again.
    pub(super) fn wake(&mut self, stream: &StreamId) {
        if let Some(lane) = self.lanes.get_mut(stream)
            && lane.state == State::Waiting
        {
            lane.state = State::Ready;
            self.ready.push_back(stream.clone());
        }
    }

    /// Drops what is queued of these partitions. Heads that are running stay until they are finished.
    pub(super) fn drop_queued(&mut self, partitions: &HashSet<PartitionId>) {
        let mut unblocked = Vec::new();
        self.lanes.retain(|stream, lane| {
            let is_gone = |(partition, _): &(PartitionId, T)| partitions.contains(partition);
            let running = usize::from(lane.state == State::Running);
            let lost_head = lane.state == State::Waiting && lane.queue.front().is_some_and(is_gone);
            let mut at = 0;
            lane.queue.retain(|record| {
                at += 1;
                at <= running || !is_gone(record)
            });
            if lost_head && !lane.queue.is_empty() {
                // Nobody will wake it for the record that is gone.
                lane.state = State::Ready;
                unblocked.push(stream.clone());
            }
            !lane.queue.is_empty()
        });
        // The map's order is random; the order of dispatch is not.
        unblocked.sort_unstable();
        self.ready.extend(unblocked);
        self.ready.retain(|stream| self.lanes.contains_key(stream));
    }

    pub(super) fn contains(&self, stream: &StreamId) -> bool {
        self.lanes.contains_key(stream)
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(id: &str) -> StreamId {
        StreamId::new("s", id).unwrap()
    }
    fn partition(number: u32) -> PartitionId {
        PartitionId::new("t", number)
    }
    fn lanes(records: &[(&str, u32)]) -> Lanes<u32> {
        let mut lanes = Lanes::new();
        for (id, item) in records {
            lanes.push(&stream(id), partition(0), *item);
        }
        lanes
    }

    #[test]
    fn a_stream_runs_one_record_at_a_time_in_order() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
        assert_eq!(lanes.start_next(), Some((stream("a"), 1)));
        assert_eq!(lanes.start_next(), Some((stream("b"), 3)));
        assert_eq!(lanes.start_next(), None);
        lanes.finished(&stream("a"));
        assert_eq!(lanes.start_next(), Some((stream("a"), 2)));
    }

    #[test]
    fn a_waiting_stream_blocks_only_itself_and_keeps_its_head() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
        lanes.start_next();
        lanes.wait(&stream("a"));
        assert_eq!(lanes.start_next(), Some((stream("b"), 3)));
        assert_eq!(lanes.start_next(), None);
        lanes.wake(&stream("a"));
        assert_eq!(lanes.start_next(), Some((stream("a"), 1)));
    }

    #[test]
    fn dropping_a_partition_keeps_running_heads_and_other_partitions() {
        let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
        lanes.push(&stream("c"), partition(1), 4);
        lanes.start_next();
        lanes.drop_queued(&HashSet::from([partition(0)]));
        assert_eq!(lanes.start_next(), Some((stream("c"), 4)));
        lanes.finished(&stream("a"));
        lanes.finished(&stream("c"));
        assert!(lanes.is_empty());
    }
}
