//! Parked streams: what is deferred, what is released, and what other processes have changed.
use super::{
    Effect, Machine, Rules, Setback,
    health::Noted,
    lanes::LaneKey,
    parking::{Parked, Parking},
    partition::{Partition, Phase},
    record::{Record, defer_in_order},
    retry::Patience,
    rows::{Load, Loaded, Polled, RowAnswer, RowOp, Sweep},
    tasks::{Clear, Kind, Raise, Reply},
};
use crate::{
    StreamId, Version,
    control::{DeleteIf, ParkRow, PutIf, Stored},
    ports::{AssignmentEpoch, PartitionId},
    runner::streams::Progress,
};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The interval in which the change token is read.
const POLL: Duration = Duration::from_secs(5);
/// The interval in which all rows are read again, whether or not the token has moved.
const RELOAD: Duration = Duration::from_secs(300);

/// The reading of rows that other processes may have changed.
#[derive(Debug)]
pub(super) struct Polling {
    /// The next poll; `None` while one runs.
    poll_at: Option<Instant>,
    reload_at: Instant,
    /// The number of loads that have begun.
    pub(super) loads: u64,
    rng: fastrand::Rng,
    /// Streams that were parked lately, for the limit per minute.
    pub(super) newly_parked: std::collections::VecDeque<Instant>,
    pub(super) is_paused: bool,
    /// The failures of the polls before the first answer. `None` once it is known whether an
    /// operator has paused the processor; nothing is handled before.
    unknown: Option<Patience>,
    /// The time after which no attempt may start.
    pub(super) lease: Option<Instant>,
    has_lease: bool,
}

impl Polling {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            poll_at: Some(now),
            reload_at: now + RELOAD,
            loads: 0,
            rng: fastrand::Rng::with_seed(seed),
            newly_parked: std::collections::VecDeque::new(),
            is_paused: false,
            unknown: Some(Patience::new(seed)),
            lease: None,
            has_lease: true,
        }
    }
    /// Notes whether attempts may start now.
    pub(super) fn check_lease(&mut self, now: Instant) {
        self.has_lease = self.lease.is_none_or(|until| now < until);
    }
    pub(super) const fn wake_at(&self) -> Option<Instant> {
        self.poll_at
    }
    /// Returns true if it is known that no operator has paused the processor, and if the row of
    /// this instance was renewed in time.
    pub(super) const fn may_handle(&self) -> bool {
        !self.is_paused && self.unknown.is_none() && self.has_lease
    }
    /// Returns the failures of the polls, while nothing is handled because of them.
    pub(super) fn failures(&self) -> Option<(&Noted, Instant)> {
        self.unknown.as_ref()?.noted()
    }
    /// Instances that started together do not poll together.
    fn next(&mut self, now: Instant) {
        self.poll_at = Some(now + POLL.mul_f64(0.8 + 0.4 * self.rng.f64()));
    }
}

impl Machine {
    /// Asks for the rows of a partition.
    pub(super) fn load(&mut self, partition: &PartitionId, epoch: AssignmentEpoch) {
        self.polling.loads += 1;
        let mut sweep = None;
        if let Some(owned) = self.partitions.get(partition, epoch) {
            if let Phase::Starting(starting) = &owned.phase {
                sweep = Some(Sweep {
                    starts_at: starting.assigned.next,
                    has_records: !self.rules.has_event_store,
                    has_places: self.rules.policy.lane.is_some(),
                });
            }
            owned.parking.is_loading = true;
            owned.parking.is_outdated = false;
        }
        self.out.push(Effect::Load(Load {
            partition: partition.clone(),
            epoch,
            number: self.polling.loads,
            sweep,
        }));
    }

    /// Reads the change token from time to time, and all rows more rarely.
    pub(super) fn advance_polls(&mut self, now: Instant) {
        if self.ending.is_some() || self.membership.state != super::Member::In {
            return;
        }
        if self.polling.poll_at.is_some_and(|at| at <= now) {
            self.polling.poll_at = None;
            self.out.push(Effect::Poll);
        }
        if self.polling.reload_at <= now {
            self.polling.reload_at = now + RELOAD;
            self.reload(|_| true);
        }
    }

    /// Reads the rows of partitions again, except those whose rows are being read: the next poll
    /// sees to them.
    fn reload(&mut self, is_wanted: impl Fn(&Parking) -> bool) {
        let serving: Vec<_> = (self.partitions.owned.iter())
            .filter(|(_, owned)| matches!(owned.phase, Phase::Serving))
            .filter(|(_, owned)| !owned.parking.is_loading && is_wanted(&owned.parking))
            .map(|(partition, owned)| (partition.clone(), owned.epoch))
            .collect();
        for (partition, epoch) in serving {
            self.load(&partition, epoch);
        }
    }

    pub(super) fn polled(&mut self, result: Result<Polled, Setback>, now: Instant) {
        self.polling.next(now);
        match result {
            Ok(polled) => {
                self.polling.unknown = None;
                let is_paused = polled.pause.is_some_and(|pause| pause.is_paused);
                if is_paused && !self.polling.is_paused {
                    // What has begun ends after its call, and the others do not call at all.
                    self.attempts.finish(None, &mut self.out);
                }
                self.polling.is_paused = is_paused;
                // Each partition has the token that was read before its rows: a partition whose
                // rows were read before the last change, or while it happened, is read again.
                self.reload(|parking| parking.is_outdated || parking.token != polled.token);
            }
            Err(Setback::Wait(error)) => {
                if let Some(patience) = &mut self.polling.unknown {
                    patience.note(&*error);
                    self.polling.poll_at = Some(patience.failed(now));
                }
                tracing::warn!(processor = %self.rules.name, error = crate::chain(&*error), "the requests of operators could not be read yet");
            }
            Err(Setback::Halt(error)) => self.halt(error, now),
        }
    }

    /// Takes the rows of a partition.
    pub(super) fn loaded(
        &mut self,
        load: &Load,
        result: Result<Box<Loaded>, Setback>,
        now: Instant,
    ) {
        let Some(owned) = self.partitions.get(&load.partition, load.epoch) else {
            return;
        };
        let loaded = match result {
            Ok(loaded) => *loaded,
            Err(setback) => return self.not_loaded(load, setback, now),
        };
        let is_first = matches!(owned.phase, Phase::Starting(_));
        let parking = &mut owned.parking;
        (parking.token, parking.is_loading) = (loaded.token, false);
        parking.load_discards(loaded.discards, load.number);
        parking.load_letters(loaded.letters, load.number);
        parking.asks = loaded.asks.into_iter().collect();
        self.compare(load, loaded.parked);
        self.carry_out_discards(load);
        self.archive_discards(load, &loaded.positions);
        if is_first {
            self.serve(&load.partition, load.epoch);
        }
    }

    fn not_loaded(&mut self, load: &Load, setback: Setback, now: Instant) {
        let name = self.rules.name.clone();
        let error = match setback {
            Setback::Wait(error) => error,
            Setback::Halt(error) => return self.halt(error, now),
        };
        let Some(owned) = self.partitions.get(&load.partition, load.epoch) else {
            return;
        };
        tracing::warn!(processor = %name, partition = %load.partition, error = crate::chain(&*error), "the rows about failed events could not be read yet");
        (owned.parking.is_loading, owned.parking.is_outdated) = (false, true);
        if let Phase::Starting(starting) = &mut owned.phase {
            starting.try_at = Some(starting.patience.failed(now));
            starting.patience.note(&*error);
        }
    }

    /// Compares the park rows that were read with those that are known.
    fn compare(&mut self, load: &Load, rows: Vec<(StreamId, Stored<ParkRow>, Option<Version>)>) {
        let mut found = HashSet::new();
        for (stream, row, position) in rows {
            found.insert(stream.clone());
            if self.is_newer_here(load, &stream, &row) {
                continue;
            }
            let known = match self.streams.get(&stream) {
                Progress::At(at) => Some(at.version),
                Progress::Unknown | Progress::NoBase => None,
            };
            let is_stale = row.value.is_stale(position.max(known));
            if let Some(position) = position.filter(|at| is_stale && known < Some(*at)) {
                // What the row covers may end below the position.
                let progress = Progress::at(position, None);
                self.streams.set(&stream, load.partition.clone(), progress);
            }
            let Some(owned) = self.partitions.get(&load.partition, load.epoch) else {
                return;
            };
            match owned.parking.parked.get_mut(&stream) {
                Some(parked) => {
                    parked.row = row.clone();
                    parked.is_yielded = false;
                }
                None => {
                    let parked = Parked::new(row.clone(), 0);
                    owned.parking.note_parked(&stream, parked, &self.rules);
                    self.defer_queued(&stream);
                }
            }
            if is_stale {
                self.clear(load, stream, &row);
            }
        }
        let Some(owned) = self.partitions.get(&load.partition, load.epoch) else {
            return;
        };
        let gone: Vec<_> = (owned.parking.parked.iter())
            .filter(|(stream, parked)| {
                !found.contains(*stream) && parked.written_after < load.number
            })
            .map(|(stream, _)| stream.clone())
            .collect();
        for stream in gone {
            if !self.tasks.is_busy_with(&stream) {
                self.release(&load.partition, load.epoch, &stream);
            }
        }
    }

    /// Returns true if the row of a stream is being changed here, or was after the load began. If
    /// the load has found another write than the one that is known, it may be the newer one, such
    /// as a request: the rows are read again soon.
    fn is_newer_here(&mut self, load: &Load, stream: &StreamId, row: &Stored<ParkRow>) -> bool {
        let is_busy = self.tasks.is_busy_with(stream);
        let Some(owned) = self.partitions.get(&load.partition, load.epoch) else {
            return true;
        };
        let known = owned.parking.parked.get(stream);
        let is_newer = is_busy || known.is_some_and(|p| p.written_after >= load.number);
        if is_newer && known.is_none_or(|known| known.row.revision != row.revision) {
            owned.parking.is_outdated = true;
        }
        is_newer
    }

    /// Deletes the rows of a stream whose events were all handled meanwhile: the letters first.
    fn clear(&mut self, load: &Load, stream: StreamId, row: &Stored<ParkRow>) {
        let Some(owned) = self.partitions.get(&load.partition, load.epoch) else {
            return;
        };
        // What was given up was not handled, although the stream has passed it.
        let below = row.value.high.next();
        let mut letters = owned.parking.letters_of_handled(&stream, below, below);
        let revision = row.revision;
        let op = match letters.pop() {
            Some(letter) => RowOp::DeleteLetter(letter),
            None => RowOp::DeletePark(stream.clone(), revision),
        };
        let clear = Clear {
            stream,
            letters,
            revision,
        };
        self.begin_task(&load.partition, load.epoch, Kind::Clear(clear), Some(op));
    }

    pub(super) fn cleared(&mut self, reply: &Reply, mut clear: Clear) {
        match &reply.answer {
            RowAnswer::ParkDeleted(DeleteIf::Deleted) => self.row_gone(reply, clear.stream),
            RowAnswer::ParkDeleted(DeleteIf::Conflict(row)) => {
                self.row_written(reply, &clear.stream, row.clone());
            }
            _ => {
                let op = match clear.letters.pop() {
                    Some(letter) => RowOp::DeleteLetter(letter),
                    None => RowOp::DeletePark(clear.stream.clone(), clear.revision),
                };
                self.go_on(reply, Kind::Clear(clear), Some(op));
            }
        }
    }

    /// Notes the row of a parked stream as it is now.
    pub(super) fn row_written(&mut self, reply: &Reply, stream: &StreamId, row: Stored<ParkRow>) {
        let (loads, has_store) = (self.polling.loads, self.rules.has_event_store);
        let rules = self.rules.clone();
        let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) else {
            return;
        };
        let Partition {
            parking, window, ..
        } = owned;
        if !parking.parked.contains_key(stream) {
            parking.note_parked(stream, Parked::new(row.clone(), loads), &rules);
        }
        let Some(parked) = parking.parked.get_mut(stream) else {
            return;
        };
        parked.row = row;
        parked.written_after = loads;
        let row = &parked.row.value;
        parked.deferred.retain(|record| {
            let version = record.event.header.version;
            let is_settled = row.is_duplicate(version) || (has_store && row.covers(version));
            if is_settled {
                window.done(record.offset);
            }
            !is_settled
        });
    }

    /// Takes a record of a stream that may be parked. Returns false if it is not, so that the
    /// record goes into its lane.
    pub(super) fn defer(&mut self, record: &Arc<Record>) -> bool {
        let header = &record.event.header;
        if let Some(lane) = self.rules.shared_lane(&header.stream) {
            return self.defer_in_lane(&lane, record);
        }
        let has_store = self.rules.has_event_store;
        let Some(owned) = self.partitions.get(&record.partition, record.epoch) else {
            return false;
        };
        owned.parking.meet(record);
        let Some(parked) = owned.parking.parked.get_mut(&header.stream) else {
            return false;
        };
        let row = &parked.row.value;
        if row.is_duplicate(header.version) || (has_store && header.version <= row.high) {
            // It was handled, or will be handled by a redrive. For the offset that is the same.
            if row.is_duplicate(header.version) {
                self.counts.duplicates += 1;
            } else {
                self.counts.deferred += 1;
            }
            owned.window.done(record.offset);
            return true;
        }
        self.counts.deferred += 1;
        defer_in_order(&mut parked.deferred, record);
        true
    }

    /// Defers what is queued of a stream that is parked now, or of the lane that it shares.
    pub(super) fn defer_queued(&mut self, stream: &StreamId) {
        let lane = self.lane(stream);
        for record in self.lanes.take_queued(&lane, stream) {
            if !self.defer(&record) {
                self.lanes.push(&lane, record);
            }
        }
    }

    /// Raises `high` of the streams that have deferred records: all of them if somebody waits for
    /// the offset, else once in a checkpoint interval.
    pub(super) fn raise(&mut self) {
        let mut raises = Vec::new();
        for (partition, owned) in &self.partitions.owned {
            if matches!(owned.phase, Phase::Starting(_)) {
                continue;
            }
            for (stream, parked) in &owned.parking.parked {
                let last = parked.deferred.iter().map(|r| r.event.header.version).max();
                if let Some(to) = last
                    && !self.tasks.is_busy_with(stream)
                {
                    raises.push((partition.clone(), owned.epoch, stream.clone(), to));
                }
            }
        }
        // The order of the map is random; the order of effects must not be.
        raises.sort_unstable_by(|a, b| a.2.cmp(&b.2));
        for (partition, epoch, stream, to) in raises {
            let Some(owned) = self.partitions.get(&partition, epoch) else {
                continue;
            };
            let Some(parked) = owned.parking.parked.get(&stream) else {
                continue;
            };
            let to_store = if self.rules.has_event_store {
                Vec::new()
            } else {
                parked.deferred.clone()
            };
            let op = self.rules.raise_op(&stream, &to_store, parked, to);
            let raise = Raise {
                stream,
                to_store,
                to,
            };
            self.begin_task(&partition, epoch, Kind::Raise(raise), Some(op));
        }
        self.place_deferred();
    }

    pub(super) fn raised(&mut self, reply: &Reply, mut raise: Raise) {
        let row = match &reply.answer {
            RowAnswer::Park(PutIf::Written(row) | PutIf::Conflict(Some(row))) => row.clone(),
            // The stream was released: all that is not covered goes back, before anything newer.
            RowAnswer::Park(PutIf::Conflict(None)) => return self.row_gone(reply, raise.stream),
            _ => {
                // A record is stored.
                raise.to_store.pop();
                return self.raise_on(reply, raise);
            }
        };
        let high = row.value.high;
        self.row_written(reply, &raise.stream, row);
        if high < raise.to {
            return self.raise_on(reply, raise);
        }
        let Some(owned) = self.partitions.get(&reply.partition, reply.epoch) else {
            return;
        };
        let Partition {
            parking, window, ..
        } = owned;
        if let Some(parked) = parking.parked.get_mut(&raise.stream) {
            // What was deferred since is covered by the next raise.
            let to = raise.to.min(high);
            parked.deferred.retain(|record| {
                let is_covered = record.event.header.version <= to;
                if is_covered {
                    window.done(record.offset);
                }
                !is_covered
            });
        }
    }

    fn raise_on(&mut self, reply: &Reply, raise: Raise) {
        let rules = self.rules.clone();
        let op = match self.partitions.get(&reply.partition, reply.epoch) {
            Some(owned) => match owned.parking.parked.get(&raise.stream) {
                Some(parked) => rules.raise_op(&raise.stream, &raise.to_store, parked, raise.to),
                None => return,
            },
            None => return,
        };
        self.go_on(reply, Kind::Raise(raise), Some(op));
    }

    /// The row of a stream is gone: reads the discards of the stream, then releases it. Another
    /// owner may have passed over a version that is deferred here, and may have said so to an
    /// operator.
    pub(super) fn row_gone(&mut self, reply: &Reply, stream: StreamId) {
        let op = RowOp::ReadDiscards(stream.clone(), Version::NONE, Version::new(u64::MAX));
        self.go_on(reply, Kind::Release(stream), Some(op));
    }

    pub(super) fn discards_read(&mut self, reply: &Reply, stream: &StreamId) {
        let loads = self.polling.loads;
        if let RowAnswer::Discards(rows) = &reply.answer
            && let Some(owned) = self.partitions.get(&reply.partition, reply.epoch)
        {
            owned
                .parking
                .read_discards(stream, Version::NONE, rows, loads);
        }
        self.release(&reply.partition, reply.epoch, stream);
    }

    /// Goes on with a stream that is parked no longer. What its row covered was handled; what was
    /// deferred and is not covered goes back to the head of the lane, before anything newer.
    pub(super) fn release(
        &mut self,
        partition: &PartitionId,
        epoch: AssignmentEpoch,
        stream: &StreamId,
    ) {
        let Some(owned) = self.partitions.get(partition, epoch) else {
            return;
        };
        let Some(parked) = owned.parking.parked.remove(stream) else {
            return;
        };
        let high = parked
            .row
            .value
            .high
            .max(Version::new(parked.row.value.from.get().saturating_sub(1)));
        let mut progress = self.streams.get(stream);
        // Newer events were handled if those that waited came late: only a known position may move.
        if !parked.row.value.is_late || matches!(progress, Progress::At(_)) {
            progress.reached(high);
            self.streams.set(stream, partition.clone(), progress);
        }
        let lane = self.lane(stream);
        let deferred = match &lane {
            LaneKey::Stream(_) => parked.deferred,
            LaneKey::Shared(lane) => self.leave_lane(partition, epoch, lane, stream),
        };
        self.lanes.put_back(&lane, deferred);
    }
}

impl Rules {
    fn raise_op(
        &self,
        stream: &StreamId,
        to_store: &[Arc<Record>],
        parked: &Parked,
        to: Version,
    ) -> RowOp {
        match to_store.last() {
            Some(record) => {
                let version = record.event.header.version;
                RowOp::PutDeferred(stream.clone(), version, Arc::new(record.stored()))
            }
            None => {
                let row = self.deferred(&parked.row.value, to);
                RowOp::ReplacePark(stream.clone(), row, parked.row.revision)
            }
        }
    }

    /// Returns a park row once a record of this version was passed over.
    pub(super) fn deferred(&self, row: &ParkRow, version: Version) -> ParkRow {
        if self.has_event_store {
            row.deferred_to_history(version)
        } else {
            row.deferred_to(version)
        }
    }
}
