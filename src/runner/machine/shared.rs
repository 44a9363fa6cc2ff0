//! Lanes that several streams share: one that fails parks the lane as a whole.
//!
//! Park rows stay per stream, one per stream that is met. A stream that has not failed itself is a
//! follower. The order between the streams is in order rows, since no store knows it.
//!
//! ```text
//! record of a parked lane -> order row -> park row of its stream (`high`) -> done
//! request for any stream -> claim all rows of the lane -> handle in the order of the order rows
//!   -> nothing is left: delete all rows -> release the lane
//!   -> one fails: park it there, and let the others wait again
//! ```
//! Each stream of the lane has a redrive of its own. [`Turn`] says which of them may go on.
use super::{
    Machine, Rules,
    partition::Phase,
    record::{Record, defer_in_order},
    rows::{RowAnswer, RowOp},
    tasks::{Kind, Reply, TaskId},
};
use crate::{
    StreamId, Version,
    control::{LaneHash, OrderKey, OrderRow, ParkRow, ParkState},
    ports::{AssignmentEpoch, Offset, PartitionId},
    runner::step::{Arrived, Step, next_step},
};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

/// A lane that several streams share, of which at least one stream is parked.
#[derive(Debug, Default)]
pub(super) struct SharedLane {
    /// The streams that have a park row.
    pub(super) streams: BTreeSet<StreamId>,
    /// Records that have arrived and whose rows are not durable, in order.
    pub(super) deferred: Vec<Arc<Record>>,
    /// The redrive of the lane.
    pub(super) round: Option<Round>,
    /// Another stream would be parked, over the limit.
    pub(super) is_held: bool,
}

/// A redrive of a whole lane.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The next records in the order of the lane.
    next: VecDeque<(Offset, OrderRow)>,
    /// Those that are done, and whose rows are to be deleted.
    done: Vec<Offset>,
    /// The key after which the next page begins.
    after: Option<String>,
    is_read: bool,
    end: Option<RoundEnd>,
}

/// The reason for which a redrive of a lane ends before all is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoundEnd {
    /// A stream is parked again.
    Stopped,
    /// Another owner has written its name.
    Yielded,
}

/// The next step of the redrive of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Another stream of the lane is next.
    Wait,
    /// The stream handles its next events, up to this version.
    Handle(Version),
    /// All streams of the lane are done: the rows are deleted.
    Delete,
}

/// A page of order rows that is being read, after those that are done are deleted.
#[derive(Debug)]
pub(super) struct Reading {
    lane: Arc<str>,
    done: Vec<Offset>,
}

impl SharedLane {
    /// Returns the deferred records that may have rows, and true if others must wait: their streams
    /// would be parked over the limit.
    pub(super) fn within(&self, limit: usize, parked: usize) -> (Vec<Arc<Record>>, bool) {
        let (mut records, mut new) = (Vec::new(), BTreeSet::new());
        for record in &self.deferred {
            let stream = &record.event.header.stream;
            if !self.streams.contains(stream) && !new.contains(stream) {
                if parked + new.len() >= limit {
                    return (records, true);
                }
                new.insert(stream);
            }
            records.push(record.clone());
        }
        (records, false)
    }
}

impl Round {
    /// Takes out what is done, and what waits for nobody: a place that its park row does not cover
    /// is that of a record that comes again. Only what is done is deleted, since another owner may
    /// write the park row.
    fn take_done<'a>(&mut self, row_of: impl Fn(&StreamId) -> Option<&'a ParkRow>) {
        while let Some((offset, place)) = self.next.front() {
            let row = row_of(&place.stream);
            if row.is_some_and(|row| row.covers(place.version)) {
                return;
            }
            if row.is_some_and(|row| row.is_duplicate(place.version)) {
                self.done.push(*offset);
            }
            self.next.pop_front();
        }
    }

    /// Returns the stream that is next, and the last version before another stream is.
    fn head(&self) -> Option<(&StreamId, Version)> {
        let (_, first) = self.next.front()?;
        let same = self.next.iter().map(|(_, row)| row);
        let same = same.take_while(|row| row.stream == first.stream);
        let last = same.map(|row| row.version).max()?;
        Some((&first.stream, last))
    }
}

impl Rules {
    /// Returns the operation that stores the place of a record in its lane; `None` if the lane is
    /// that of its stream alone.
    pub(super) fn order_op(&self, record: &Record) -> Option<RowOp> {
        let header = &record.event.header;
        let lane = self.shared_lane(&header.stream)?;
        let row = OrderRow {
            stream: header.stream.clone(),
            version: header.version,
        };
        Some(RowOp::PutOrder((LaneHash::of(&lane), record.offset), row))
    }
}

impl Machine {
    /// Takes a record of a shared lane. Returns false if the lane is not parked.
    pub(super) fn defer_in_lane(&mut self, lane: &Arc<str>, record: &Arc<Record>) -> bool {
        let header = &record.event.header;
        let progress = self.streams.get(&header.stream);
        let Some(owned) = self.partitions.get(&record.partition, record.epoch) else {
            return false;
        };
        owned.parking.meet(record);
        let Some(shared) = owned.parking.shared.get_mut(lane) else {
            return false;
        };
        let parked = owned.parking.parked.get(&header.stream);
        let row = parked.map(|parked| &parked.row.value);
        let is_duplicate = match row {
            Some(row) => row.is_duplicate(header.version),
            None => next_step(&progress, arrived(record)) == Step::Duplicate,
        };
        if is_duplicate {
            self.counts.duplicates += 1;
            owned.window.done(record.offset);
        } else {
            // Also if the park row covers it: another owner has written that row, and may not have
            // kept the place of the record.
            self.counts.deferred += 1;
            defer_in_order(&mut shared.deferred, record);
        }
        true
    }

    /// A stream of a shared lane is parked no longer. Returns what goes back to the lane: what was
    /// deferred of all its streams, once none of them is parked.
    pub(super) fn leave_lane(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        lane: &Arc<str>,
        stream: &StreamId,
    ) -> Vec<Arc<Record>> {
        let Some(owned) = self.partitions.get(partition, epoch) else {
            return Vec::new();
        };
        let lanes = &mut owned.parking.shared;
        if let Some(shared) = lanes.get_mut(lane) {
            shared.streams.remove(stream);
            if shared.streams.is_empty() {
                return lanes.remove(lane).map_or_else(Vec::new, |l| l.deferred);
            }
        }
        Vec::new()
    }

    /// Returns true if a task changes rows of the lane.
    pub(super) fn is_lane_at_work(
        &self,
        partition: &PartitionId,
        lane: &Arc<str>,
        of: &SharedLane,
    ) -> bool {
        let mut tasks = self.tasks.running.values();
        tasks.any(|task| {
            task.partition == *partition
                && match &task.kind {
                    Kind::Place(place) => place.lane() == lane,
                    Kind::Reading(reading) => reading.lane == *lane,
                    _ => task.parked_stream().is_some_and(|s| of.streams.contains(s)),
                }
        })
    }

    /// Begins redrives of lanes, and goes on with those that run.
    pub(super) fn advance_rounds(&mut self) {
        let mut lanes = Vec::new();
        for (partition, owned) in &self.partitions.owned {
            if matches!(owned.phase, Phase::Serving) {
                let of = owned.parking.shared.keys();
                lanes.extend(of.map(|lane| (partition.clone(), owned.epoch, lane.clone())));
            }
        }
        for (partition, epoch, lane) in lanes {
            self.advance_round(&partition, epoch, &lane);
        }
    }

    fn advance_round(&mut self, partition: &PartitionId, epoch: AssignmentEpoch, lane: &Arc<str>) {
        let Some(owned) = self.partitions.owned.get(partition) else {
            return;
        };
        let parking = &owned.parking;
        let Some(shared) = parking.shared.get(lane) else {
            return;
        };
        let members = shared.streams.iter();
        let members = members.filter_map(|s| parking.parked.get_key_value(s));
        match &shared.round {
            None => {
                let is_yielded = members.clone().any(|(_, parked)| parked.is_yielded);
                let has_failed = members.clone().any(|(_, p)| !p.row.value.is_follower);
                let mut wanted = members.clone().filter(|(s, p)| parking.wants_redrive(s, p));
                // What only follows a failure goes on by itself once the failure is gone.
                let is_wanted = wanted.next().is_some() || !has_failed;
                if is_wanted && !is_yielded && !self.is_lane_at_work(partition, lane, shared) {
                    self.set_round(partition, lane, Some(Round::default()));
                    self.claim_members(partition, epoch, lane);
                }
            }
            Some(Round { end: None, .. }) => {
                self.claim_members(partition, epoch, lane);
                self.read_order(partition, epoch, lane);
            }
            Some(Round { end: Some(end), .. }) => self.wind_up(partition, lane, *end),
        }
    }

    fn set_round(&mut self, partition: &PartitionId, lane: &Arc<str>, round: Option<Round>) {
        if let Some(owned) = self.partitions.owned.get_mut(partition)
            && let Some(shared) = owned.parking.shared.get_mut(lane)
        {
            shared.round = round;
        }
    }

    /// Claims the rows of all streams of a lane, so that no other owner can go on with any of them.
    fn claim_members(&mut self, partition: &PartitionId, epoch: AssignmentEpoch, lane: &Arc<str>) {
        let Some(owned) = self.partitions.owned.get(partition) else {
            return;
        };
        let Some(shared) = owned.parking.shared.get(lane) else {
            return;
        };
        let rows = shared.streams.iter();
        let rows = rows.filter_map(|stream| owned.parking.parked.get_key_value(stream));
        let mut requests = rows.clone().filter_map(|(_, p)| p.row.value.request());
        let by = requests.next().map_or_else(String::new, |r| r.by.clone());
        let free = rows.filter(|(stream, _)| !self.tasks.is_busy_with(stream));
        let free: Vec<_> = free.map(|(stream, _)| stream.clone()).collect();
        for stream in free {
            self.begin_redrive(partition, epoch, stream, &by);
        }
    }

    /// Reads the next order rows if none is left, after deleting those that are done.
    fn read_order(&mut self, partition: &PartitionId, epoch: AssignmentEpoch, lane: &Arc<str>) {
        let is_reading = self.is_reading(partition, lane);
        let Some(owned) = self.partitions.owned.get_mut(partition) else {
            return;
        };
        let parking = &mut owned.parking;
        let Some(shared) = parking.shared.get_mut(lane) else {
            return;
        };
        let Some(round) = &mut shared.round else {
            return;
        };
        let parked = &parking.parked;
        round.take_done(|stream| parked.get(stream).map(|parked| &parked.row.value));
        let is_empty = round.next.is_empty() && (!round.is_read || !round.done.is_empty());
        if is_reading || !is_empty {
            return;
        }
        let reading = Reading {
            lane: lane.clone(),
            done: std::mem::take(&mut round.done),
        };
        let op = reading.op(round.after.clone());
        self.begin_task(partition, epoch, Kind::Reading(reading), Some(op));
    }

    fn is_reading(&self, partition: &PartitionId, lane: &Arc<str>) -> bool {
        let mut tasks = self.tasks.running.values();
        tasks.any(|task| {
            matches!(&task.kind, Kind::Reading(reading) if reading.lane == *lane)
                && task.partition == *partition
        })
    }

    /// Takes a page of order rows, or the answer to the deletion of one.
    pub(super) fn order_read(&mut self, reply: &Reply, mut reading: Reading) {
        let rules = self.rules.clone();
        let owned = self.partitions.get(&reply.partition, reply.epoch);
        let shared = owned.and_then(|owned| owned.parking.shared.get_mut(&reading.lane));
        let Some(round) = shared.and_then(|shared| shared.round.as_mut()) else {
            return;
        };
        if let RowAnswer::Order(page) = &reply.answer {
            let rows = page
                .rows
                .iter()
                .map(|((_, offset), row)| (*offset, &row.value));
            let of_lane = rows
                .filter(|(_, row)| rules.shared_lane(&row.stream).as_ref() == Some(&reading.lane));
            round
                .next
                .extend(of_lane.map(|(offset, row)| (offset, row.clone())));
            round.after.clone_from(&page.next);
            round.is_read = page.next.is_none();
            return;
        }
        reading.done.pop();
        if reading.done.is_empty() && round.is_read {
            return;
        }
        let op = reading.op(round.after.clone());
        self.go_on(reply, Kind::Reading(reading), Some(op));
    }

    /// Notes that the redrive of a lane cannot go on.
    pub(super) fn end_round(&mut self, reply: &Reply, stream: &StreamId, end: RoundEnd) {
        let Some(lane) = self.rules.shared_lane(stream) else {
            return;
        };
        let owned = self.partitions.get(&reply.partition, reply.epoch);
        let shared = owned.and_then(|owned| owned.parking.shared.get_mut(&lane));
        if let Some(round) = shared.and_then(|shared| shared.round.as_mut()) {
            round.end = match round.end {
                Some(RoundEnd::Yielded) => round.end,
                _ => Some(end),
            };
        }
    }

    /// Ends the redrives of the streams of a lane that cannot go on, each once it does nothing
    /// else.
    fn wind_up(&mut self, partition: &PartitionId, lane: &Arc<str>, end: RoundEnd) {
        let (mut ready, mut is_at_work) = (Vec::new(), self.is_reading(partition, lane));
        for (id, task) in &self.tasks.running {
            if let Kind::Redrive(redrive) = &task.kind
                && task.partition == *partition
                && self.rules.shared_lane(&redrive.stream).as_ref() == Some(lane)
            {
                is_at_work = true;
                if redrive.is_ready() {
                    ready.push(*id);
                }
            }
        }
        if !is_at_work {
            return self.set_round(partition, lane, None);
        }
        for id in ready {
            match end {
                RoundEnd::Stopped => self.stop_redrive(id),
                // The other owner claims these rows, too.
                RoundEnd::Yielded => drop(self.tasks.take(id)),
            }
        }
    }

    /// Returns the next step of the redrive of a stream. A stream with a lane of its own is always
    /// next.
    pub(super) fn turn(&self, id: TaskId) -> Turn {
        const ALL: Version = Version::new(u64::MAX);
        let Some(task) = self.tasks.running.get(&id) else {
            return Turn::Wait;
        };
        let Some(stream) = task.parked_stream() else {
            return Turn::Wait;
        };
        let Some(lane) = self.rules.shared_lane(stream) else {
            return Turn::Handle(ALL);
        };
        let Some(owned) = self.partitions.owned.get(&task.partition) else {
            return Turn::Wait;
        };
        let Some(shared) = owned.parking.shared.get(&lane) else {
            return Turn::Wait;
        };
        let (Some(round), me) = (&shared.round, &*self.rules.instance) else {
            return Turn::Wait;
        };
        let rows = shared.streams.iter();
        let mut rows = rows.filter_map(|stream| owned.parking.parked.get_key_value(stream));
        let is_claimed = rows.clone().all(|(_, parked)| {
            matches!(&parked.row.value.state, ParkState::Redriving { owner, .. } if owner == me)
        });
        if round.end.is_some() || !is_claimed || self.is_reading(&task.partition, &lane) {
            return Turn::Wait;
        }
        if let Some((next, last)) = round.head() {
            return if next == stream {
                Turn::Handle(last)
            } else {
                Turn::Wait
            };
        }
        if !round.is_read || !round.done.is_empty() {
            return Turn::Wait;
        }
        // What has no place, since its lane had another name, is handled stream by stream.
        match rows.find(|(_, parked)| !parked.row.value.is_drained()) {
            None => Turn::Delete,
            Some((next, _)) if next == stream => Turn::Handle(ALL),
            Some(_) => Turn::Wait,
        }
    }
}

impl Reading {
    fn op(&self, after: Option<String>) -> RowOp {
        let lane = LaneHash::of(&self.lane);
        match self.done.last() {
            Some(offset) => {
                let key: OrderKey = (lane, *offset);
                RowOp::DeleteOrder(key)
            }
            None => RowOp::ReadOrder(lane, after),
        }
    }
}

pub(super) fn arrived(record: &Record) -> Arrived<'_> {
    let header = &record.event.header;
    Arrived {
        version: header.version,
        commit_id: header.event_id.commit_id(),
        previous: record.previous,
        partition: &record.partition,
    }
}
