//! A model of one process: the machine, the jobs of its driver, its handlers, and what its
//! projector has buffered.
use super::super::{
    AttemptId, Calls, Effect, Ended, Failure, FailureOf, Input, Machine, Outcome, Record,
    RevocationId, Work,
    lanes::LaneKey,
    rows::{Load, RowOp},
    tasks::TaskId,
};
use super::store::Store;
use crate::{
    StreamId, Version,
    breaker::{ChangesReceiver, CircuitBreaker, CircuitState},
    ports::{AssignedPartition, OffsetCommit, PartitionId},
    runner::{
        DeliveryLevel, ErrorClass, HandlerError,
        machine::StreamPosition,
        report::Counts,
        step::{Arrived, Step, next_step},
        streams::Progress,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// A step of I/O that the driver does.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a few of them live at a time")]
pub(super) enum What {
    Join,
    Begin(AssignedPartition),
    /// Makes durable what was buffered when it began.
    Flush(Vec<u64>),
    Forget(Vec<StreamId>),
    Store(Vec<StreamPosition>),
    Commit(Vec<OffsetCommit>),
    Pause(Vec<PartitionId>, bool),
    Load(Load),
    Row(TaskId, PartitionId, RowOp),
    Poll,
    Leave,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) what: What,
    /// It has been applied, and this is the answer.
    pub(super) answer: Option<Input>,
    pub(super) not_before: Instant,
}

/// The plan of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Succeed,
    /// The record of this index fails, before or after its effect.
    Fail(ErrorClass, usize, bool),
    /// It ends only if it is cancelled.
    Hang,
    /// It blocks its thread: it does not even end if it is cancelled.
    Block,
}

#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) work: Arc<Work>,
    pub(super) plan: Plan,
    pub(super) not_before: Instant,
    pub(super) is_cancelled: bool,
    pub(super) is_abandoned: bool,
    pub(super) is_told_to_finish: bool,
    /// Its effects are there, and this is the answer.
    pub(super) ended: Option<Ended>,
}

impl Attempt {
    pub(super) fn head(&self) -> &Arc<Record> {
        &self.work.records()[0]
    }
    /// Returns true if it may end now.
    pub(super) fn is_ready(&self, now: Instant, is_calm: bool) -> bool {
        let goes_on = match self.plan {
            Plan::Succeed | Plan::Fail(..) => true,
            Plan::Hang => self.is_cancelled || is_calm,
            Plan::Block => is_calm,
        };
        goes_on && (self.not_before <= now || self.is_cancelled || is_calm)
    }
}

/// An effect that is not durable yet.
#[derive(Debug)]
pub(super) struct Buffered {
    pub(super) id: u64,
    pub(super) stream: StreamId,
    pub(super) version: u64,
    pub(super) partition: PartitionId,
    pub(super) epoch: u64,
    /// The machine knows of the attempt's end.
    pub(super) is_reported: bool,
}

/// The news that a machine has had of an assignment.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) epoch: u64,
    pub(super) start: u64,
    /// True: done.
    pub(super) records: BTreeMap<u64, bool>,
    pub(super) next: u64,
    pub(super) is_begun: bool,
}

impl Told {
    /// Returns the offset that may be committed.
    pub(super) fn low(&self) -> u64 {
        let open = self.records.iter().find(|(_, is_done)| !**is_done);
        open.map_or(self.next.max(self.start), |(offset, _)| *offset)
    }
}

pub(super) struct Instance {
    pub(super) machine: Option<Machine>,
    pub(super) breaker: Option<CircuitBreaker>,
    /// Tells of changes of the breaker, as the driver listens to them.
    pub(super) changes: Option<ChangesReceiver>,
    /// The attempts that have been started while the circuit was not closed.
    pub(super) probes: BTreeSet<AttemptId>,
    pub(super) jobs: Vec<Job>,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    pub(super) buffer: Vec<Buffered>,
    pub(super) last_buffered: u64,
    pub(super) revoking: BTreeMap<RevocationId, (Instant, Vec<PartitionId>)>,
    pub(super) stop_by: Option<Instant>,
    pub(super) told: BTreeMap<PartitionId, Told>,
    /// The epoch and version of the newest effect of each stream.
    pub(super) newest: HashMap<StreamId, (u64, u64)>,
    /// The driver has a consumer. Without one it drops what the machine wants of it.
    pub(super) has_consumer: bool,
    /// Pausing has failed since the last start, so that windows may overflow.
    pub(super) has_pause_failed: bool,
    /// Steps of a checkpoint since time has moved on or something else has happened.
    pub(super) steps_at_once: u32,
}

impl Instance {
    pub(super) fn new() -> Self {
        Self {
            machine: None,
            breaker: None,
            changes: None,
            probes: BTreeSet::new(),
            jobs: Vec::new(),
            attempts: BTreeMap::new(),
            buffer: Vec::new(),
            last_buffered: 0,
            revoking: BTreeMap::new(),
            stop_by: None,
            told: BTreeMap::new(),
            newest: HashMap::new(),
            has_consumer: false,
            has_pause_failed: false,
            steps_at_once: 0,
        }
    }

    /// Returns true once for each time at which the breaker has told of a change.
    pub(super) fn is_breaker_changed(&mut self) -> bool {
        let changes = self.changes.as_mut();
        changes.is_some_and(ChangesReceiver::take)
    }

    /// Checks that no attempt begins while the circuit is open, and only one at a time while it is
    /// half-open.
    pub(super) fn check_circuit(&mut self, id: AttemptId, now: Instant) {
        let state = self.breaker.as_ref().map(|breaker| breaker.state_at(now));
        match state {
            None | Some(CircuitState::Closed) => self.probes.clear(),
            Some(CircuitState::HalfOpen) => {
                let attempts = &self.attempts;
                self.probes.retain(|id| {
                    let probe = attempts.get(id);
                    probe.is_some_and(|probe| !probe.is_cancelled)
                });
                assert!(self.probes.is_empty(), "two probes at once");
                self.probes.insert(id);
            }
            Some(open) => panic!("an attempt begins although the circuit is {open:?}"),
        }
    }

    pub(super) fn begin_attempt(
        &mut self,
        id: AttemptId,
        work: Arc<Work>,
        plan: Plan,
        at: Instant,
    ) {
        let lane: &LaneKey = &work.lane;
        let runs = self.attempts.values().any(|a| a.work.lane == *lane);
        assert!(!runs, "two attempts of {lane:?} at once");
        let records = work.records();
        for record in records {
            assert_eq!(record.epoch, work.epoch, "records of two assignments");
        }
        let attempt = Attempt {
            work,
            plan,
            not_before: at,
            is_cancelled: false,
            is_abandoned: false,
            is_told_to_finish: false,
            ended: None,
        };
        self.attempts.insert(id, attempt);
    }

    /// Lets the handler of an attempt take effect.
    pub(super) fn apply(
        &mut self,
        id: AttemptId,
        store: &mut Store,
        level: DeliveryLevel,
        is_projector: bool,
        rng: &mut fastrand::Rng,
    ) {
        let Some(attempt) = self.attempts.get(&id) else {
            return;
        };
        let (plan, is_told) = (attempt.plan, attempt.is_told_to_finish);
        let records = attempt.work.records().to_vec();
        let mut progress = attempt.work.progress.clone();
        let stream = attempt.head().event.header.stream.clone();
        if progress == Progress::Unknown {
            progress = store.look_up(&stream, level);
        }
        let (mut counts, mut done, mut result) = (Counts::default(), 0, Outcome::Done);
        for (at, record) in records.iter().enumerate() {
            // One that has not begun when it is told ends with nothing done.
            if is_told && rng.bool() {
                break;
            }
            let version = record.event.header.version;
            let fails = match plan {
                Plan::Fail(class, index, after) if index.min(records.len() - 1) == at => {
                    Some((class, after))
                }
                _ => None,
            };
            let arrived = Arrived {
                version,
                commit_id: record.event.header.event_id.commit_id(),
                previous: None,
                partition: &record.partition,
            };
            let step = next_step(&progress, arrived);
            match step {
                Step::Duplicate => counts.duplicates += 1,
                Step::Handle | Step::Fill(..) => {
                    if let Step::Fill(first, last) = step {
                        // The first record after a restart was an older one, published twice.
                        assert_ne!(level, DeliveryLevel::Deduplicated, "{stream}: a gap");
                        // A retry fills it again.
                        self.newest.remove(&stream);
                        for version in first.get()..=last.get() {
                            self.take_effect(record, version, store, is_projector);
                        }
                    }
                    if fails.is_none_or(|(_, after)| after) {
                        self.take_effect(record, version.get(), store, is_projector);
                    }
                    if let Some((class, _)) = fails {
                        let error = HandlerError::new(class, "scripted");
                        let of = FailureOf::Record;
                        result = Outcome::Failed(Failure::new(version, error, of));
                        break;
                    }
                    let commit_id = Some(record.event.header.event_id.commit_id());
                    progress.handled(version, commit_id, &record.partition);
                    counts.handled += 1;
                }
                other => panic!("{stream} {version}: {other:?}, though nothing was skipped"),
            }
            done = at + 1;
        }
        let calls = Calls {
            answered: vec![Duration::ZERO; done],
            failed: matches!(result, Outcome::Failed(_)).then_some(Duration::ZERO),
        };
        let ended = Ended {
            progress,
            done,
            counts,
            result,
            calls,
            passed: Vec::new(),
            settled: Vec::new(),
            next: Version::NONE,
            is_short: false,
            has_waited: rng.bool(),
        };
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.ended = Some(ended);
        }
    }

    fn take_effect(
        &mut self,
        record: &Arc<Record>,
        version: u64,
        store: &mut Store,
        is_projector: bool,
    ) {
        let (stream, epoch) = (record.event.header.stream.clone(), record.epoch.get());
        if let Some((known, newest)) = self.newest.get(&stream) {
            assert!(epoch >= *known, "an effect of an older assignment");
            if *known == epoch {
                let is_next = version == *newest || version == newest + 1;
                assert!(is_next, "{stream}: {version} after {newest}");
            }
        }
        self.newest.insert(stream.clone(), (epoch, version));
        store.took_effect(&stream, version);
        if !is_projector {
            store.durable.insert((stream, version));
            return;
        }
        for buffered in self.buffer.iter().filter(|b| b.stream == stream) {
            assert_eq!(
                buffered.epoch, epoch,
                "{stream} is projected beside what a lost assignment has buffered"
            );
        }
        self.last_buffered += 1;
        self.buffer.push(Buffered {
            id: self.last_buffered,
            stream,
            version,
            partition: record.partition.clone(),
            epoch,
            is_reported: false,
        });
    }

    /// Checks that a flush stores nothing of partitions that are gone, and returns what it stores.
    pub(super) fn begin_flush(&self) -> Vec<u64> {
        for buffered in self.buffer.iter().filter(|b| b.is_reported) {
            assert!(
                self.is_told(&buffered.partition, buffered.epoch),
                "a flush stores {} {} of an assignment that has ended",
                buffered.stream,
                buffered.version
            );
        }
        self.buffer.iter().map(|b| b.id).collect()
    }

    /// An event was given up: the next one of its stream may take effect.
    pub(super) fn given_up(&mut self, stream: &StreamId, version: u64) {
        let newest = self.newest.get_mut(stream);
        if let Some((_, newest)) = newest.filter(|(_, newest)| *newest < version) {
            *newest = version;
        }
    }

    pub(super) fn is_told(&self, partition: &PartitionId, epoch: u64) -> bool {
        (self.told.get(partition)).is_some_and(|told| told.epoch == epoch)
    }

    /// Checks that nothing is flushed or projected of these streams.
    pub(super) fn begin_forget(&self, streams: &[StreamId]) {
        let flushes = self.jobs.iter().any(|j| matches!(j.what, What::Flush(_)));
        assert!(!flushes, "forget_buffered during a flush");
        for attempt in self.attempts.values().filter(|a| !a.is_abandoned) {
            let stream = &attempt.head().event.header.stream;
            assert!(
                !streams.contains(stream),
                "forget_buffered during an attempt at {stream}"
            );
        }
    }

    /// Notes what a finished attempt has got done.
    pub(super) fn finished(&mut self, attempt: &Attempt, ended: &Ended) {
        for record in attempt.work.records().iter().take(ended.done) {
            if let Some(told) = self.told.get_mut(&record.partition)
                && told.epoch == record.epoch.get()
            {
                told.records.insert(record.offset.get(), true);
            }
        }
        let stream = &attempt.head().event.header.stream;
        for buffered in self.buffer.iter_mut().filter(|b| b.stream == *stream) {
            buffered.is_reported = true;
        }
    }

    /// A partition that was lost is no part of a revocation any more.
    pub(super) fn forget_revocations(&mut self, partition: &PartitionId) {
        for (_, partitions) in self.revoking.values_mut() {
            partitions.retain(|p| p != partition);
        }
    }

    /// Checks that the partition of a stream has not been lost.
    pub(super) fn check_owned(&self, stream: &StreamId) {
        let mut owned = self.told.keys();
        let is_owned = owned.any(|p| stream.id().starts_with(&format!("{}-", p.partition)));
        assert!(is_owned, "a position of {stream}, whose partition was lost");
    }

    pub(super) fn gives_up(&self, partition: &PartitionId) -> bool {
        let mut revoking = self.revoking.values();
        revoking.any(|(_, partitions)| partitions.contains(partition))
    }

    /// Checks a release before the end of the grace: what is done is committed.
    pub(super) fn release(
        &mut self,
        id: RevocationId,
        now: Instant,
        committed: impl Fn(&Told, &PartitionId) -> Option<u64>,
    ) {
        let Some((deadline, partitions)) = self.revoking.remove(&id) else {
            return;
        };
        for partition in partitions {
            let Some(told) = self.told.remove(&partition) else {
                continue;
            };
            let low = told.low();
            if let Some(committed) = committed(&told, &partition)
                && now < deadline
                && told.is_begun
                && low > told.start
            {
                assert!(
                    committed >= low,
                    "{partition} was released at {committed} before {low} was committed"
                );
            }
        }
    }
}

pub(super) fn cancelled() -> Ended {
    Ended::with_nothing_done(Outcome::Cancelled)
}

/// A draw of what an attempt does.
pub(super) fn plan(rng: &mut fastrand::Rng, is_calm: bool) -> (Plan, Duration) {
    let wait = Duration::from_millis(if rng.u8(0..4) == 0 {
        rng.u64(0..3_000)
    } else {
        0
    });
    if is_calm {
        return (Plan::Succeed, Duration::ZERO);
    }
    let (index, after) = (rng.usize(0..3), rng.bool());
    let retry_after = Duration::from_millis(rng.u64(0..5_000));
    let plan = match rng.u8(0..100) {
        0..=9 => Plan::Fail(ErrorClass::Transient, index, after),
        10..=13 => Plan::Fail(ErrorClass::Throttled { retry_after }, index, after),
        14 => Plan::Fail(ErrorClass::Permanent, index, after),
        15..=19 => Plan::Hang,
        20..=21 => Plan::Block,
        _ => Plan::Succeed,
    };
    (plan, wait)
}

/// Returns true for a step of a checkpoint.
pub(super) fn is_checkpoint(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Flush | Effect::Forget(_) | Effect::StorePositions(_) | Effect::Commit(_)
    )
}
