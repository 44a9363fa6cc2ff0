//! Making durable what is deferred in lanes that several streams share: order rows first, then the
//! park row of each stream that is met.
//!
//! An owner may die between any two rows. A redrive handles the records that the park rows cover,
//! and the others come again. So the park rows are raised in the order of the records: at any
//! moment they cover none that is after one that comes again.
use super::{
    Machine,
    lanes::LaneKey,
    partition::{Partition, Phase},
    record::Record,
    rows::{RowAnswer, RowOp},
    shared::arrived,
    tasks::{Kind, Reply, TaskId},
};
use crate::{
    StreamId, Version,
    control::{Followed, PutIf},
    runner::{
        step::{Step, next_step},
        streams::Progress,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Deferred records whose rows are being written: the order rows first, the park rows last.
#[derive(Debug)]
pub(super) struct Place {
    lane: Arc<str>,
    records: Vec<Arc<Record>>,
    step: PlaceStep,
    /// `high` of the park rows that were written for these records.
    written: BTreeMap<StreamId, Version>,
    has_created: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlaceStep {
    /// Waits for a flush that begins after this number of flushes.
    Flush(u64),
    /// Stores the place of this record.
    Order(usize),
    /// Stores this record, where there is no event store.
    Record(usize),
    /// Lets the park row of its stream cover this record, and those of the stream right after it.
    Row(usize),
    Announce,
}

impl Place {
    pub(super) const fn lane(&self) -> &Arc<str> {
        &self.lane
    }
    pub(super) fn awaits_flush(&self) -> Option<(u64, &StreamId)> {
        let first = self.records.first()?;
        match self.step {
            PlaceStep::Flush(after) => Some((after, &first.event.header.stream)),
            _ => None,
        }
    }
    /// Returns the stream whose park row is being written.
    pub(super) fn parked_stream(&self) -> Option<&StreamId> {
        match self.step {
            PlaceStep::Row(at) => self.records.get(at).map(|r| &r.event.header.stream),
            _ => None,
        }
    }
    /// Returns the record at this place, the number of records of its stream from it up to the
    /// first of another stream, and their last version.
    fn run(&self, at: usize) -> Option<(&Arc<Record>, usize, Version)> {
        let first = self.records.get(at)?;
        let stream = &first.event.header.stream;
        let headers = self.records.iter().skip(at).map(|r| &r.event.header);
        let of_stream = headers.take_while(|header| header.stream == *stream);
        let (count, last) = of_stream.fold((0, Version::NONE), |(count, last), header| {
            (count + 1, header.version.max(last))
        });
        Some((first, count, last))
    }
    /// Notes the row of a stream, and goes on with the first record that no row is known to cover.
    fn row_written(&mut self, stream: StreamId, high: Version) {
        self.written.insert(stream, high);
        while let PlaceStep::Row(at) = self.step
            && let Some((first, count, last)) = self.run(at)
            && let Some(high) = self.written.get(&first.event.header.stream)
            && *high >= last
        {
            self.step = PlaceStep::Row(at + count);
        }
    }
}

impl Machine {
    /// Makes durable what is deferred in shared lanes.
    pub(super) fn place_deferred(&mut self) {
        let mut found = Vec::new();
        for (partition, owned) in &self.partitions.owned {
            if matches!(owned.phase, Phase::Starting(_)) {
                continue;
            }
            for (lane, shared) in &owned.parking.shared {
                let is_idle = shared.round.is_none() && !shared.is_held;
                // An attempt that began before the lane was parked may still move a position.
                let key = LaneKey::Shared(lane.clone());
                if is_idle
                    && !shared.deferred.is_empty()
                    && !self.is_lane_at_work(partition, lane, shared)
                    && !self.attempts.runs_in(&key)
                {
                    let records = shared.within(self.rules.policy.limits.parked, self.parked());
                    found.push((partition.clone(), owned.epoch, lane.clone(), records));
                }
            }
        }
        for (partition, epoch, lane, (records, is_held)) in found {
            if let Some(owned) = self.partitions.get(&partition, epoch)
                && let Some(shared) = owned.parking.shared.get_mut(&lane)
            {
                shared.is_held = is_held;
            }
            if records.is_empty() {
                continue;
            }
            let place = Place {
                lane,
                records,
                written: BTreeMap::new(),
                step: PlaceStep::Flush(self.checkpoint.flushes_begun()),
                has_created: false,
            };
            let id = self.begin_task(&partition, epoch, Kind::Place(Box::new(place)), None);
            // What is buffered of the lane must be durable first: a park row says so.
            let owned = self.partitions.owned.get(&partition);
            let task = self.tasks.running.get(&id).and_then(|t| t.awaits_flush());
            let is_buffered = owned
                .zip(task)
                .is_some_and(|(owned, (_, stream))| self.rules.is_buffered(owned, stream));
            if !is_buffered {
                self.place_flushed(id);
            }
        }
    }

    pub(super) fn place_flushed(&mut self, id: TaskId) {
        if let Some((reply, Kind::Place(mut place))) = self.tasks.take(id) {
            place.step = PlaceStep::Order(0);
            self.place_on(&reply, place);
        }
    }

    fn place_on(&mut self, reply: &Reply, mut place: Box<Place>) {
        if !self.is_deferred(reply, &place) {
            // The lane was released meanwhile, and its records are in the lane again.
            return;
        }
        let op = match place.step {
            PlaceStep::Flush(_) => None,
            PlaceStep::Order(at) => (place.records.get(at)).and_then(|r| self.rules.order_op(r)),
            PlaceStep::Record(at) => place.records.get(at).map(|record| {
                let header = &record.event.header;
                let stored = Arc::new(record.stored());
                RowOp::PutDeferred(header.stream.clone(), header.version, stored)
            }),
            PlaceStep::Row(at) => match self.place_row(reply, &place, at) {
                Ok(op) => op,
                // The records wait in memory, and so does their offset.
                Err(Held) => return,
            },
            PlaceStep::Announce => Some(RowOp::Announce),
        };
        let Some(op) = op else {
            place.step = match place.step {
                PlaceStep::Order(_) if !self.rules.has_event_store => PlaceStep::Record(0),
                PlaceStep::Row(_) if place.has_created => PlaceStep::Announce,
                PlaceStep::Row(_) | PlaceStep::Announce => return self.place_done(reply, &place),
                _ => PlaceStep::Row(0),
            };
            return self.place_on(reply, place);
        };
        self.go_on(reply, Kind::Place(place), Some(op));
    }

    fn is_deferred(&mut self, reply: &Reply, place: &Place) -> bool {
        let owned = self.partitions.get(&reply.partition, reply.epoch);
        let shared = owned.and_then(|owned| owned.parking.shared.get(&place.lane));
        let mut deferred = shared.into_iter().flat_map(|shared| &shared.deferred);
        let first = place.records.first();
        deferred.any(|record| first.is_some_and(|first| Arc::ptr_eq(first, record)))
    }

    /// Returns the write of the park row that covers this record; `None` if all are covered.
    fn place_row(
        &mut self,
        reply: &Reply,
        place: &Place,
        at: usize,
    ) -> Result<Option<RowOp>, Held> {
        let Some((first, _, last)) = place.run(at) else {
            return Ok(None);
        };
        let stream = &first.event.header.stream;
        let progress = self.streams.get(stream);
        let is_full = self.parked() >= self.rules.policy.limits.parked;
        let has_store = self.rules.has_event_store;
        let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) else {
            return Err(Held);
        };
        let parking = &mut owned.parking;
        if let Some(parked) = parking.parked.get(stream) {
            let row = self.rules.deferred(&parked.row.value, last);
            let op = RowOp::ReplacePark(stream.clone(), row, parked.row.revision);
            return Ok(Some(op));
        }
        let Some(shared) = parking.shared.get_mut(&place.lane) else {
            return Err(Held);
        };
        if is_full {
            shared.is_held = true;
            return Err(Held);
        }
        let mut rows = shared.streams.iter().filter_map(|s| parking.parked.get(s));
        let failed = rows.clone().find(|parked| !parked.row.value.is_follower);
        let Some(row) = failed.or_else(|| rows.next()) else {
            return Err(Held);
        };
        let from = first_version(&progress, first, has_store);
        let followed = Followed {
            from,
            high: last,
            fingerprint: row.row.value.fingerprint,
            at: row.row.value.since,
            notes: self.rules.park_notes(&progress, from),
        };
        Ok(Some(RowOp::Follow(stream.clone(), followed)))
    }

    /// Takes the answer to the write of a row about deferred records.
    pub(super) fn placed(&mut self, reply: &Reply, mut place: Box<Place>) {
        match &mut place.step {
            PlaceStep::Flush(_) => {}
            PlaceStep::Order(at) | PlaceStep::Record(at) => *at += 1,
            PlaceStep::Announce => return self.place_done(reply, &place),
            PlaceStep::Row(_) => {
                let Some(stream) = place.parked_stream().cloned() else {
                    return;
                };
                let (row, is_new) = match &reply.answer {
                    RowAnswer::Park(PutIf::Written(row)) => (row.clone(), true),
                    RowAnswer::Park(PutIf::Conflict(Some(row))) => (row.clone(), false),
                    // The stream was released: what is deferred of it is looked at again.
                    _ => return self.row_gone(reply, stream),
                };
                let high = row.value.high;
                let owned = self.partitions.get(&reply.partition, reply.epoch);
                let was_known = owned.is_some_and(|o| o.parking.parked.contains_key(&stream));
                if is_new && !was_known {
                    self.counts.parked += 1;
                    place.has_created = true;
                }
                self.row_written(reply, &stream, row);
                place.row_written(stream, high);
            }
        }
        self.place_on(reply, place);
    }

    /// All rows about deferred records are durable: the offset may pass them.
    fn place_done(&mut self, reply: &Reply, place: &Place) {
        let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) else {
            return;
        };
        let Partition {
            parking, window, ..
        } = owned;
        if let Some(shared) = parking.shared.get_mut(&place.lane) {
            let placed: BTreeSet<_> = place.records.iter().map(|r| r.offset).collect();
            shared.deferred.retain(|record| {
                let is_placed = placed.contains(&record.offset);
                if is_placed {
                    window.done(record.offset);
                }
                !is_placed
            });
        }
    }
}

/// The records wait in memory: another park row would be over the limit, or the lane is gone.
struct Held;

/// Returns the first version of a stream that waits, by the first record of it that does.
fn first_version(progress: &Progress, record: &Record, has_store: bool) -> Version {
    match next_step(progress, arrived(record)) {
        Step::Fill(first, _) if has_store => first,
        _ => record.event.header.version,
    }
}
