//! A machine that is driven by hand.
use super::super::{
    AttemptId, Calls, Effect, Ended, Failure, FailureOf, Input, Loaded, Machine, Outcome,
    RevocationId, Rules, Work,
    rows::{Load, Polled},
    testing::{partition, record, stream},
};
use crate::{
    EventSelector, Timestamp, Version,
    breaker::CircuitBreaker,
    ports::{
        AssignedPartition, AssignmentEpoch, MessageBusError, Offset, OffsetCommit, PartitionId,
        StartedFrom,
    },
    runner::{
        ErrorClass, HandlerError, ProcessorPolicy, machine::Record, report::Counts,
        streams::Progress,
    },
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A machine with the attempts that it has started. It answers polls by itself.
pub(super) struct Driven {
    pub(super) machine: Machine,
    pub(super) now: Instant,
    pub(super) started: BTreeMap<AttemptId, Arc<Work>>,
}

impl Driven {
    /// A projector that is no member of its group yet.
    pub(super) fn projector(policy: ProcessorPolicy) -> Self {
        Self::with(policy, true)
    }

    pub(super) fn with(policy: ProcessorPolicy, is_projector: bool) -> Self {
        let now = Instant::now();
        let rules = Rules {
            name: "tested".into(),
            breaker: policy.breaker.clone(),
            policy: policy.with_concurrency(100),
            is_projector,
            selectors: vec![EventSelector {
                aggregate: "s",
                types: &[],
            }],
            has_event_store: true,
            instance: "instance".into(),
            started: (now, Timestamp::from_micros(1)),
            seed: 7,
        };
        Self {
            machine: Machine::new(Arc::new(rules), now),
            now,
            started: BTreeMap::new(),
        }
    }

    /// A projector that serves these partitions, each from offset 0 and under its first assignment.
    pub(super) fn serving(policy: ProcessorPolicy, partitions: &[u32]) -> Self {
        let mut driven = Self::projector(policy);
        driven.join_and_serve(partitions);
        driven
    }

    pub(super) fn join_and_serve(&mut self, partitions: &[u32]) {
        self.join();
        for number in partitions {
            self.assign(*number, 1);
            self.begin(*number, 1);
        }
    }

    pub(super) fn join(&mut self) {
        let _ = self.on(Input::Timer);
        let _ = self.on(Input::Joined("group".into(), None));
    }

    pub(super) fn assign(&mut self, number: u32, epoch: u64) -> Vec<Effect> {
        let (partition, epoch) = (partition(number), AssignmentEpoch::new(epoch));
        let from = StartedFrom::Committed;
        let assigned = AssignedPartition::new(partition, epoch, Offset::new(0), from);
        self.on(Input::Assigned(vec![assigned]))
    }

    /// Lets the start of a partition become durable, and its rows be read.
    pub(super) fn begin(&mut self, number: u32, epoch: u64) -> Vec<Effect> {
        self.begin_with(number, epoch, Loaded::default())
    }

    pub(super) fn begin_with(&mut self, number: u32, epoch: u64, rows: Loaded) -> Vec<Effect> {
        let (partition, epoch) = (partition(number), AssignmentEpoch::new(epoch));
        let mut effects = self.on(Input::Begun(partition, epoch, true));
        let load = take_load(&mut effects).expect("the rows are read");
        effects.extend(self.on(Input::Loaded(load, Ok(Box::new(rows)))));
        effects
    }

    /// Passes an input to the machine, and returns what it wants.
    pub(super) fn on(&mut self, input: Input) -> Vec<Effect> {
        let mut all = Vec::new();
        let mut next = Some(input);
        while let Some(input) = next.take() {
            if let Input::Finished(id, _) = &input {
                self.started.remove(id);
            }
            for effect in self.machine.on(input, self.now) {
                match effect {
                    Effect::Poll => {
                        let polled = Polled {
                            token: None,
                            pause: None,
                        };
                        next = Some(Input::Polled(Ok(polled)));
                    }
                    Effect::Start(id, work) => {
                        self.started.insert(id, work.clone());
                        all.push(Effect::Start(id, work));
                    }
                    effect => all.push(effect),
                }
            }
        }
        all
    }

    /// Lets time pass, with a timer whenever the machine wants one.
    pub(super) fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let end = self.now + time;
        let mut all = Vec::new();
        for _ in 0..100_000 {
            let wake_at = self.machine.wake_at().filter(|at| *at <= end);
            let Some(at) = wake_at else {
                self.now = end;
                all.extend(self.on(Input::Timer));
                return all;
            };
            self.now = self.now.max(at);
            all.extend(self.on(Input::Timer));
        }
        panic!("the machine spins");
    }

    pub(super) fn deliver(
        &mut self,
        number: u32,
        offset: u64,
        id: &str,
        version: u64,
    ) -> Vec<Effect> {
        self.on(Input::Delivered(record(number, offset, id, version)))
    }

    /// Delivers a record under another assignment than the first.
    pub(super) fn deliver_under(&mut self, epoch: u64, record: Arc<Record>) -> Vec<Effect> {
        let Some(mut record) = Arc::into_inner(record) else {
            panic!("nobody else has the record")
        };
        record.epoch = AssignmentEpoch::new(epoch);
        self.on(Input::Delivered(Arc::new(record)))
    }

    /// Returns the attempt that runs at a stream.
    pub(super) fn attempt_at(&self, id: &str) -> Option<AttemptId> {
        let mut started = self.started.iter();
        let found = started.find(|(_, work)| work.stream() == Some(&stream(id)));
        found.map(|(id, _)| *id)
    }

    /// Lets the attempt at a stream succeed.
    pub(super) fn finish(&mut self, id: &str) -> Vec<Effect> {
        let attempt = self.attempt_at(id).expect("an attempt runs");
        let work = self.started[&attempt].clone();
        let records = work.records();
        let last = records.last().expect("the attempt is at records");
        let header = &last.event.header;
        let mut progress = Progress::NoBase;
        let commit_id = Some(header.event_id.commit_id());
        progress.handled(header.version, commit_id, &last.partition);
        let done = records.len();
        let counts = Counts {
            handled: done as u64,
            ..Counts::default()
        };
        self.on(Input::Finished(
            attempt,
            Box::new(Ended {
                progress,
                done,
                counts,
                calls: Calls {
                    answered: vec![Duration::ZERO; done],
                    failed: None,
                },
                ..Ended::with_nothing_done(Outcome::Done)
            }),
        ))
    }

    /// Ends an attempt of which nothing is known.
    pub(super) fn end(&mut self, attempt: AttemptId, result: Outcome) -> Vec<Effect> {
        self.on(Input::Finished(
            attempt,
            Box::new(Ended {
                calls: Calls {
                    answered: Vec::new(),
                    failed: matches!(result, Outcome::Failed(_)).then_some(Duration::ZERO),
                },
                ..Ended::with_nothing_done(result)
            }),
        ))
    }

    pub(super) fn fail(&mut self, id: &str, class: ErrorClass) -> Vec<Effect> {
        let attempt = self.attempt_at(id).expect("an attempt runs");
        let work = &self.started[&attempt];
        let version = work.records().first().map(|r| r.event.header.version);
        let version = version.unwrap_or(Version::NONE);
        let error = HandlerError::new(class, "scripted");
        let failure = Failure::new(version, error, FailureOf::Record);
        self.end(attempt, Outcome::Failed(failure))
    }

    /// Lets everything that the machine waits for succeed at once, and returns all that it wanted.
    pub(super) fn settle(&mut self, mut all: Vec<Effect>) -> Vec<Effect> {
        let mut next = 0;
        while let Some(effect) = all.get(next) {
            next += 1;
            let answer = match effect {
                Effect::Flush => Input::Flushed(Ok(())),
                Effect::StorePositions(_) => Input::PositionsStored(Ok(())),
                Effect::Commit(_) => Input::Committed(Ok(())),
                Effect::Forget(_) => Input::Forgotten(Ok(())),
                Effect::Pause(_) | Effect::Resume(_) => Input::PauseChanged(Ok(())),
                _ => continue,
            };
            all.extend(self.on(answer));
        }
        all
    }

    pub(super) fn revoke(&mut self, number: u32, grace: Duration) -> Vec<Effect> {
        let partitions = vec![partition(number)];
        self.on(Input::Revoking(RevocationId(1), partitions, grace))
    }

    pub(super) fn lose(&mut self, number: u32) -> Vec<Effect> {
        self.on(Input::Lost(vec![partition(number)]))
    }
}

/// An error of a bus that is away.
pub(super) fn away() -> MessageBusError {
    MessageBusError::Unavailable {
        source: "away".into(),
    }
}

/// A policy whose window is never full.
pub(super) fn policy() -> ProcessorPolicy {
    ProcessorPolicy::projector().with_window(1_000_000, usize::MAX)
}

pub(super) fn with_breaker(breaker: &CircuitBreaker) -> ProcessorPolicy {
    policy().with_breaker(breaker.clone())
}

fn take_load(effects: &mut Vec<Effect>) -> Option<Load> {
    let at = effects.iter().position(|e| matches!(e, Effect::Load(_)))?;
    match effects.remove(at) {
        Effect::Load(load) => Some(load),
        _ => None,
    }
}

/// Returns the offsets of the commits.
pub(super) fn commits(effects: &[Effect]) -> Vec<(PartitionId, u64)> {
    let commits = effects.iter().filter_map(|effect| match effect {
        Effect::Commit(offsets) => Some(offsets),
        _ => None,
    });
    let pair = |commit: &OffsetCommit| (commit.partition.clone(), commit.next.get());
    commits.flatten().map(pair).collect()
}

/// Returns the partitions that are to be paused, and those that are to be resumed.
pub(super) fn pauses(effects: &[Effect]) -> (Vec<u32>, Vec<u32>) {
    let (mut paused, mut resumed) = (Vec::new(), Vec::new());
    for effect in effects {
        match effect {
            Effect::Pause(partitions) => paused.extend(partitions.iter().map(|p| p.partition)),
            Effect::Resume(partitions) => resumed.extend(partitions.iter().map(|p| p.partition)),
            _ => {}
        }
    }
    (paused, resumed)
}

/// Returns the streams of the attempts that are to start.
pub(super) fn starts(effects: &[Effect]) -> Vec<String> {
    let works = effects.iter().filter_map(|effect| match effect {
        Effect::Start(_, work) => work.stream(),
        _ => None,
    });
    works.map(|stream| stream.id().to_owned()).collect()
}

pub(super) fn has(effects: &[Effect], is_wanted: impl Fn(&Effect) -> bool) -> bool {
    effects.iter().any(is_wanted)
}

pub(super) fn flushes(effects: &[Effect]) -> bool {
    has(effects, |effect| matches!(effect, Effect::Flush))
}

pub(super) fn releases(effects: &[Effect]) -> bool {
    has(effects, |effect| matches!(effect, Effect::Release(_)))
}
