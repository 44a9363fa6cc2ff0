//! The driver of an instance: it receives, performs effects, and answers.
use super::super::{
    AttemptId, Effect, Input, RevocationId, Setback,
    rows::{Polled, RowAnswer, RowOp},
    testing::partition,
};
use super::{
    Simulation,
    instance::{self, Job, Told, What},
};
use crate::{
    control::{ChangeToken, LetterKey, StoredRecord},
    ports::{MessageBusError, OffsetCommit, PartitionId},
    runner::{ErrorClass, HandlerError},
};
use std::time::Duration;

/// The steps that may happen next in an instance.
enum Next {
    Receive,
    Job(usize),
    Attempt(AttemptId),
}

fn partition_of(record: &StoredRecord) -> PartitionId {
    partition(record.message.partition.unwrap_or_default())
}

fn away() -> Setback {
    Setback::Wait("away".into())
}

impl Simulation {
    /// Lets one thing happen that can happen now. Returns false if there is none.
    pub(super) fn work(&mut self) -> bool {
        let mut ready = Vec::new();
        for at in 0..2 {
            let instance = &self.instances[at];
            if self.receives(at) && self.broker.has_something_for(at) {
                ready.push((at, Next::Receive));
            }
            let (now, is_calm) = (self.now, self.is_calm);
            let jobs = instance.jobs.iter().enumerate();
            let jobs = jobs.filter(|(_, job)| is_calm || job.not_before <= now);
            ready.extend(jobs.map(|(n, _)| (at, Next::Job(n))));
            let attempts = instance.attempts.iter();
            let attempts = attempts.filter(|(_, attempt)| attempt.is_ready(now, is_calm));
            ready.extend(attempts.map(|(id, _)| (at, Next::Attempt(*id))));
        }
        if ready.is_empty() {
            return false;
        }
        let (at, next) = ready.swap_remove(self.rng.usize(0..ready.len()));
        match next {
            Next::Receive => {
                if let Some(input) = self.broker.receive(at, &mut self.rng) {
                    self.instances[at].steps_at_once = 0;
                    self.input(at, input);
                }
            }
            Next::Job(n) => self.advance_job(at, n),
            Next::Attempt(id) => self.advance_attempt(at, id),
        }
        true
    }

    /// Notes what an instance learns.
    pub(super) fn observe(&mut self, at: usize, input: &Input) {
        let now = self.now;
        let instance = &mut self.instances[at];
        match input {
            // What comes while a partition is given up is not taken in.
            Input::Reached(partition, ..) if instance.gives_up(partition) => {}
            Input::Unreadable(record, ..) if instance.gives_up(&partition_of(record)) => {}
            Input::Delivered(record) if instance.gives_up(&record.partition) => {}
            Input::Delivered(record) => {
                if let Some(told) = instance.told.get_mut(&record.partition)
                    && told.epoch == record.epoch.get()
                {
                    told.records.entry(record.offset.get()).or_insert(false);
                    told.next = record.offset.get() + 1;
                }
            }
            Input::Unreadable(record, epoch, _) => {
                if let Some(told) = instance.told.get_mut(&partition_of(record))
                    && told.epoch == epoch.get()
                {
                    told.records.insert(record.offset.get(), false);
                    told.next = record.offset.get() + 1;
                }
            }
            Input::Reached(partition, epoch, next) => {
                if let Some(told) = instance.told.get_mut(partition)
                    && told.epoch == epoch.get()
                {
                    told.next = next.get();
                }
            }
            Input::Assigned(assigned) => {
                for assigned in assigned {
                    instance.forget_revocations(&assigned.partition);
                    let told = Told {
                        epoch: assigned.epoch.get(),
                        start: assigned.next.get(),
                        next: assigned.next.get(),
                        ..Told::default()
                    };
                    instance.told.insert(assigned.partition.clone(), told);
                }
            }
            Input::Begun(partition, epoch, false) if instance.is_told(partition, epoch.get()) => {
                instance.told.remove(partition);
            }
            Input::Loaded(load, Ok(_)) => {
                if let Some(told) = instance.told.get_mut(&load.partition)
                    && told.epoch == load.epoch.get()
                {
                    told.is_begun = true;
                }
            }
            Input::Revoking(id, partitions, grace) => {
                // Nothing of a partition that has not begun was handled.
                instance
                    .told
                    .retain(|p, told| told.is_begun || !partitions.contains(p));
                let leaving = (now + *grace, partitions.clone());
                instance.revoking.insert(*id, leaving);
            }
            Input::Lost(partitions) => {
                for partition in partitions {
                    instance.forget_revocations(partition);
                    instance.told.remove(partition);
                }
            }
            Input::Joined(..) => {
                instance.has_consumer = true;
                // The old membership has ended in the meantime.
                let is_waited_for = |job: &Job| !matches!(job.what, What::Leave);
                instance.jobs.retain(is_waited_for);
            }
            Input::Left => instance.told.clear(),
            Input::Finished(id, ended) => {
                if let Some(attempt) = instance.attempts.remove(id) {
                    instance.finished(&attempt, ended);
                    instance.attempts.insert(*id, attempt);
                }
            }
            _ => {}
        }
    }

    fn job(&mut self, at: usize, what: What) {
        if !self.instances[at].has_consumer && !matches!(what, What::Join | What::Leave) {
            return;
        }
        let millis = match self.rng.u8(0..20) {
            0..=10 => 0,
            11..=17 => self.rng.u64(0..50),
            18 => self.rng.u64(0..5_000),
            _ if matches!(what, What::Leave) => 5_000,
            _ => self.rng.u64(0..60_000),
        };
        self.instances[at].jobs.push(Job {
            what,
            answer: None,
            not_before: self.now + Duration::from_millis(millis),
        });
    }

    pub(super) fn effect(&mut self, at: usize, effect: Effect, leaves: bool) {
        match effect {
            Effect::Join => self.job(at, What::Join),
            Effect::Begin(assigned) => self.job(at, What::Begin(assigned)),
            Effect::Start(id, work) => {
                let (plan, wait) = instance::plan(&mut self.rng, self.is_calm);
                let from = self.now + wait;
                self.instances[at].check_circuit(id, self.now);
                self.instances[at].begin_attempt(id, work, plan, from);
            }
            Effect::Finish(id) => {
                if let Some(attempt) = self.instances[at].attempts.get_mut(&id) {
                    attempt.is_told_to_finish = true;
                }
            }
            Effect::Cancel(id) => {
                if let Some(attempt) = self.instances[at].attempts.get_mut(&id) {
                    attempt.is_cancelled = true;
                }
            }
            Effect::Abandon(id) => {
                if let Some(attempt) = self.instances[at].attempts.get_mut(&id) {
                    attempt.is_abandoned = true;
                }
            }
            Effect::Flush => {
                let taken = self.instances[at].begin_flush();
                self.job(at, What::Flush(taken));
            }
            Effect::Forget(streams) => {
                self.instances[at].begin_forget(&streams);
                self.job(at, What::Forget(streams));
            }
            Effect::StorePositions(positions) => {
                for position in &positions {
                    self.instances[at].check_owned(&position.stream);
                }
                self.job(at, What::Store(positions));
            }
            Effect::Commit(offsets) => {
                for commit in &offsets {
                    let (partition, epoch) = (&commit.partition, commit.epoch.get());
                    let is_told = self.instances[at].is_told(partition, epoch);
                    assert!(is_told, "{commit:?} of an assignment that has ended");
                }
                self.job(at, What::Commit(offsets));
            }
            Effect::Release(id) => self.release(at, id, leaves),
            Effect::Pause(partitions) => self.job(at, What::Pause(partitions, true)),
            Effect::Resume(partitions) => self.job(at, What::Pause(partitions, false)),
            Effect::Load(load) => self.job(at, What::Load(load)),
            Effect::Row(id, partition, op) => self.job(at, What::Row(id, partition, *op)),
            Effect::Poll => self.job(at, What::Poll),
            Effect::SendLetter(..) => panic!("this processor has no topic of dead letters"),
            Effect::AskGroup => panic!("this run has no ends"),
            Effect::Leave => {
                let instance = &mut self.instances[at];
                instance.has_consumer = false;
                // A consumer that was left is closed, and nobody waits for what it says.
                let is_waited_for =
                    |job: &Job| !matches!(job.what, What::Pause(..) | What::Begin(_));
                instance.jobs.retain(is_waited_for);
                for job in &mut instance.jobs {
                    if matches!(job.what, What::Commit(_)) && job.answer.is_none() {
                        job.answer = Some(Input::Committed(Err(MessageBusError::Closed)));
                    }
                }
                self.job(at, What::Leave);
            }
            Effect::End(_) => {
                self.broker.leave(at);
                self.instances[at].machine = None;
                self.instances[at].jobs.clear();
                self.instances[at].attempts.clear();
                self.instances[at].revoking.clear();
            }
        }
    }

    fn release(&mut self, at: usize, id: RevocationId, leaves: bool) {
        let broker = &self.broker;
        let committed = |told: &Told, partition: &PartitionId| {
            let is_owned = broker.owns(at, partition, told.epoch);
            let committed = broker.logs[partition.partition as usize].committed;
            (is_owned && !leaves).then_some(committed)
        };
        self.instances[at].release(id, self.now, committed);
        self.broker.released(at, id);
    }

    /// Applies a job, or answers one that was applied.
    fn advance_job(&mut self, at: usize, n: usize) {
        if self.instances[at].jobs[n].answer.is_none() {
            let what = std::mem::replace(&mut self.instances[at].jobs[n].what, What::Join);
            let answer = self.apply(at, &what);
            let job = &mut self.instances[at].jobs[n];
            (job.what, job.answer) = (what, Some(answer));
            // The answer often comes later, so that a crash can fall in between.
            if self.rng.u8(0..3) == 0 {
                return;
            }
        }
        if let Some(answer) = self.instances[at].jobs.swap_remove(n).answer {
            self.input(at, answer);
        }
    }

    fn fails(&mut self, percent: u8) -> bool {
        !self.is_calm && self.rng.u8(0..100) < percent
    }

    fn apply(&mut self, at: usize, what: &What) -> Input {
        match what {
            What::Join if self.fails(15) => Input::NotJoined(away()),
            What::Join => {
                // Leaving may have taken too long to be waited for: that membership ends by itself.
                self.broker.leave(at);
                self.broker.is_member[at] = true;
                Input::Joined("group".into(), None)
            }
            What::Begin(assigned) => {
                let (partition, epoch) = (assigned.partition.clone(), assigned.epoch);
                if self.fails(20) {
                    return Input::NotBegun(partition, epoch, away());
                }
                let is_owned = self.broker.owns(at, &partition, epoch.get());
                Input::Begun(partition, epoch, is_owned)
            }
            What::Flush(taken) => Input::Flushed(self.flush(at, taken)),
            What::Forget(streams) => {
                self.instances[at]
                    .buffer
                    .retain(|b| !streams.contains(&b.stream));
                Input::Forgotten(Ok(()))
            }
            What::Store(positions) => {
                let (fails, happens) = (self.fails(15), self.rng.bool());
                if !fails || happens {
                    self.store.store_positions(positions);
                }
                Input::PositionsStored(if fails { Err(away()) } else { Ok(()) })
            }
            What::Commit(offsets) => Input::Committed(self.commit(at, offsets)),
            What::Pause(partitions, is_paused) => {
                if self.fails(5) {
                    self.instances[at].has_pause_failed = true;
                    let source = "away".into();
                    return Input::PauseChanged(Err(MessageBusError::Unavailable { source }));
                }
                for partition in partitions {
                    let owner = self.broker.log(partition).owner.as_mut();
                    if let Some(owner) = owner.filter(|o| o.instance == at) {
                        owner.is_paused = *is_paused;
                    }
                }
                Input::PauseChanged(Ok(()))
            }
            What::Leave => {
                self.broker.leave(at);
                Input::Left
            }
            What::Load(load) if self.fails(15) => Input::Loaded(load.clone(), Err(away())),
            What::Load(load) => Input::Loaded(load.clone(), Ok(Box::default())),
            What::Row(id, partition, op) => {
                let (fails, happens) = (self.fails(15), self.rng.bool());
                if !fails || happens {
                    self.row(at, partition, op);
                }
                let answer = if fails {
                    Err(away())
                } else {
                    Ok(RowAnswer::Done)
                };
                Input::Row(*id, answer)
            }
            What::Poll if self.fails(10) => Input::Polled(Err(away())),
            // Other processes change rows now and then.
            What::Poll => {
                let token = u128::from(self.rng.u8(0..2));
                let token = (!self.is_calm).then(|| ChangeToken::from_u128(token));
                Input::Polled(Ok(Polled { token, pause: None }))
            }
        }
    }

    fn row(&mut self, at: usize, partition: &PartitionId, op: &RowOp) {
        let RowOp::WriteLetter(key, _) = op else {
            return;
        };
        match key {
            LetterKey::Event { stream, version } => {
                self.store.given_up(stream, version.get());
                self.instances[at].given_up(stream, version.get());
            }
            LetterKey::Record(offset) => {
                let record = &mut self.broker.log(partition).records[offset.get() as usize];
                if let Some(record) = record {
                    record.is_given_up = true;
                }
            }
        }
    }

    fn flush(&mut self, at: usize, taken: &[u64]) -> Result<(), HandlerError> {
        let fails = self.fails(15);
        let buffer = &mut self.instances[at].buffer;
        for buffered in buffer.iter().filter(|b| taken.contains(&b.id)) {
            if !fails || self.rng.bool() {
                let effect = (buffered.stream.clone(), buffered.version);
                self.store.durable.insert(effect);
            }
        }
        if !fails {
            buffer.retain(|b| !taken.contains(&b.id));
            return Ok(());
        }
        let retry_after = Duration::from_secs(self.rng.u64(0..5));
        let class = match self.rng.u8(0..20) {
            0 => ErrorClass::Permanent,
            1..=4 => ErrorClass::Throttled { retry_after },
            _ => ErrorClass::Transient,
        };
        Err(HandlerError::new(class, "scripted"))
    }

    fn commit(&mut self, at: usize, offsets: &[OffsetCommit]) -> Result<(), MessageBusError> {
        let (fails, happens) = (self.fails(15), self.rng.bool());
        if !fails || happens {
            let passed = self.broker.commit(at, offsets)?;
            self.store.check_passed(&passed, self.rules.policy.level);
        }
        if !fails {
            return Ok(());
        }
        let source = "away".into();
        Err(match self.rng.u8(0..30) {
            0 => MessageBusError::Closed,
            _ => MessageBusError::Unavailable { source },
        })
    }

    /// Lets a handler take effect, or answers for one that has.
    fn advance_attempt(&mut self, at: usize, id: AttemptId) {
        let (level, is_projector) = (self.rules.policy.level, self.rules.is_projector);
        let instance = &mut self.instances[at];
        let Some(attempt) = instance.attempts.get(&id) else {
            return;
        };
        let (is_cancelled, has_ended) = (attempt.is_cancelled, attempt.ended.is_some());
        if !(has_ended || is_cancelled && self.rng.bool()) {
            instance.apply(id, &mut self.store, level, is_projector, &mut self.rng);
            if self.rng.u8(0..3) == 0 {
                return;
            }
        }
        let ended = instance.attempts.get_mut(&id).and_then(|a| a.ended.take());
        // An attempt that is cancelled may have taken effect without an answer.
        let ended = ended.filter(|_| !is_cancelled || self.rng.bool());
        let ended = ended.unwrap_or_else(instance::cancelled);
        self.instances[at].steps_at_once = 0;
        self.input(at, Input::Finished(id, Box::new(ended)));
    }
}
