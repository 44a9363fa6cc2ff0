//! Doing what the machine returns. Each effect becomes a job, or is done at once without waiting.
use super::{Done, Driver, next::Membership, rows};
use crate::{
    Version,
    ports::{AssignedPartition, OffsetCommit},
    runner::{
        HandlerError, RunnerError,
        attempt::{Attempt, Shared, Signals, panic_message},
        machine::{
            AttemptId, Effect, Ended, Ends, Failure, FailureOf, Input, Outcome, StreamPosition,
            Suspects, What, Work,
        },
        report::Counts,
        streams::Progress,
    },
};
use futures::{FutureExt, StreamExt, TryStreamExt};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    task::{AbortHandle, Id, JoinError},
    time::Instant,
};

/// The time for which leaving the group is waited for. Afterwards the membership ends by itself,
/// with the session timeout.
const LEAVE: Duration = Duration::from_secs(5);

/// The number of positions that are stored at a time.
const STORES_AT_ONCE: usize = 16;

/// An attempt that runs.
pub(super) struct Running {
    abort: AbortHandle,
    signals: Signals,
    /// The version of its first event.
    version: Version,
    /// The records that it handles, if there are several.
    suspects: Option<Suspects>,
}

impl Driver {
    /// Does what the machine wants. Returns the result of the processor once it has ended.
    pub(super) fn perform(&mut self, effect: Effect) -> Option<Result<(), RunnerError>> {
        match effect {
            Effect::Join => self.join(),
            Effect::Start(id, work) => self.start(id, work),
            Effect::Finish(id) => {
                if let Some(running) = self.attempts.get(&id) {
                    running.signals.finish();
                }
            }
            Effect::Cancel(id) => {
                if let Some(running) = self.attempts.get(&id) {
                    tracing::warn!(processor = %self.settings.rules.name, "a handler is cancelled: its partition is gone, or it took longer than the drain");
                    running.signals.cancelled.cancel();
                    running.abort.abort();
                }
            }
            Effect::Abandon(id) => {
                tracing::error!(processor = %self.settings.rules.name, attempt = id.0, "a handler blocks its thread although it was cancelled: it is waited for no longer");
            }
            Effect::Release(id) => drop(self.revocations.remove(&id)),
            Effect::Leave => self.leave(),
            Effect::End(result) => return Some(result),
            Effect::Begin(assigned) => self.member(|m, s| begin(m, s, assigned)),
            Effect::Flush => self.member(|m, s| {
                let (shared, timeout) = (m.shared.clone(), s.rules.policy.attempt_timeout);
                async move { Input::Flushed(flush(&shared, timeout).await) }.boxed()
            }),
            Effect::Forget(streams) => self.member(|m, s| {
                let (shared, timeout) = (m.shared.clone(), s.rules.policy.attempt_timeout);
                async move {
                    let call = shared.processor.forget_buffered(&shared.model, &streams);
                    Input::Forgotten(in_time("forget_buffered", call, timeout).await)
                }
                .boxed()
            }),
            Effect::StorePositions(positions) => self.member(|m, s| {
                let (shared, settings) = (m.shared.clone(), s.clone());
                async move {
                    let stored = store_positions(&shared, positions).await;
                    Input::PositionsStored(stored.map_err(|e| settings.control_setback(e)))
                }
                .boxed()
            }),
            Effect::Commit(offsets) => self.commit(offsets),
            Effect::Pause(partitions) => self.member(|m, _| {
                let consumer = m.consumer.clone();
                async move { Input::PauseChanged(consumer.pause(&partitions).await) }.boxed()
            }),
            Effect::Resume(partitions) => self.member(|m, _| {
                let consumer = m.consumer.clone();
                async move { Input::PauseChanged(consumer.resume(&partitions).await) }.boxed()
            }),
            Effect::Load(load) => self.member(|m, s| {
                let (shared, settings) = (m.shared.clone(), s.clone());
                async move {
                    let loaded = rows::load(&shared, &load).await;
                    let loaded = loaded.map(Box::new);
                    Input::Loaded(load, loaded.map_err(|e| settings.control_setback(e)))
                }
                .boxed()
            }),
            Effect::Row(id, partition, op) => self.member(|m, s| {
                let (shared, settings) = (m.shared.clone(), s.clone());
                async move {
                    let answer = rows::perform(&shared.rows, &partition, op).await;
                    Input::Row(id, answer.map_err(|e| settings.control_setback(e)))
                }
                .boxed()
            }),
            Effect::Poll => self.member(|m, s| {
                let (shared, settings) = (m.shared.clone(), s.clone());
                async move {
                    let polled = rows::poll(&shared.rows).await;
                    Input::Polled(polled.map_err(|e| settings.control_setback(e)))
                }
                .boxed()
            }),
            Effect::SendLetter(of, letter) => {
                let settings = self.settings.clone();
                self.jobs.spawn(async move {
                    let sent = match &settings.letter_topic {
                        Some(topic) => topic.send(&of, &letter).await,
                        None => Ok(()),
                    };
                    Done::Input(Input::LetterSent(sent))
                });
            }
            Effect::AskGroup => self.member(|m, s| {
                let (group, settings) = (m.group.clone(), s.clone());
                async move { Input::GroupCommitted(settings.group_committed(&group).await) }.boxed()
            }),
        }
        None
    }

    /// Starts a job of the membership.
    fn member(
        &mut self,
        job: impl FnOnce(
            &Membership,
            &Arc<super::Settings>,
        ) -> futures::future::BoxFuture<'static, Input>,
    ) {
        if let Some(membership) = &self.membership {
            let left = self.left;
            let job = job(membership, &self.settings);
            self.jobs
                .spawn(job.map(move |input| Done::OfMember(left, input)));
        }
    }

    fn join(&mut self) {
        let (settings, until_caught_up) = (self.settings.clone(), self.until_caught_up);
        let job = self.jobs.spawn(async move {
            let joined = async {
                let ends = if until_caught_up {
                    Some(settings.ends().await?)
                } else {
                    None
                };
                Ok((settings.join().await?, ends))
            };
            match joined.await {
                Ok((membership, ends)) => Done::Joined(Box::new(membership), ends),
                Err(setback) => Done::Input(Input::NotJoined(setback)),
            }
        });
        self.joining = Some(job);
    }

    fn start(&mut self, id: AttemptId, work: Arc<Work>) {
        let Some(membership) = &self.membership else {
            return;
        };
        let (signals, advanced) = (Signals::default(), self.advanced.0.clone());
        let advance = move || {
            // The driver outlives its attempts, so somebody listens.
            let _ = advanced.send(id);
        };
        let (version, suspects) = (first_version(&work), Suspects::of(work.records()));
        let attempt = Attempt::new(membership.shared.clone(), work, signals.clone(), advance);
        let job = async move { Done::Input(Input::Finished(id, attempt.run().await)) };
        let abort = self.jobs.spawn(job);
        self.attempt_of.insert(abort.id(), id);
        let running = Running {
            abort,
            signals,
            version,
            suspects,
        };
        self.attempts.insert(id, running);
    }

    fn commit(&mut self, offsets: Vec<OffsetCommit>) {
        self.member(|m, _| {
            let consumer = m.consumer.clone();
            async move { Input::Committed(consumer.commit(&offsets).await) }.boxed()
        });
    }

    fn leave(&mut self) {
        if let Some(joining) = self.joining.take() {
            joining.abort();
        }
        self.left += 1;
        // A membership that is dropped ends as well, without an answer.
        let (membership, name) = (self.membership.take(), self.settings.rules.name.clone());
        self.jobs.spawn(async move {
            if let Some(membership) = membership {
                match tokio::time::timeout(LEAVE, membership.consumer.leave()).await {
                    Ok(Ok(())) => {}
                    // The membership ends by itself after the session timeout.
                    Ok(Err(error)) => {
                        tracing::warn!(processor = %name, error = crate::chain(&error), "the group could not be left at once");
                    }
                    Err(_) => {
                        tracing::warn!(processor = %name, "the group could not be left within {LEAVE:?}");
                    }
                }
            }
            Done::Input(Input::Left)
        });
    }

    /// Turns the answer of a job into an input.
    pub(super) fn answered(&mut self, joined: Result<(Id, Done), JoinError>) -> Option<Input> {
        let error = match joined {
            Ok((id, done)) => {
                if let Some(attempt) = self.attempt_of.remove(&id) {
                    self.attempts.remove(&attempt);
                }
                return Some(match done {
                    Done::Watched(answer) => {
                        return self.answered_watch(answer, Instant::now());
                    }
                    Done::OfMember(left, input) => {
                        // A consumer that was left may answer late, and that it is closed. Nobody
                        // waits for it, and it says nothing about the consumer after it.
                        let is_of_consumer = matches!(
                            input,
                            Input::PauseChanged(_) | Input::Begun(..) | Input::NotBegun(..)
                        );
                        if left != self.left && is_of_consumer {
                            return None;
                        }
                        input
                    }
                    Done::Input(input) => {
                        if matches!(input, Input::NotJoined(_)) {
                            self.joining = None;
                        }
                        input
                    }
                    Done::Joined(membership, ends) => {
                        self.joining = None;
                        let group = membership.group.clone();
                        let generation = membership.shared.model.generation();
                        self.watch.joined(generation, membership.epoch);
                        tracing::info!(processor = %self.settings.rules.name, %group, generation, "the group is joined");
                        self.membership = Some(*membership);
                        Input::Joined(group, ends)
                    }
                });
            }
            Err(error) => error,
        };
        let attempt = self.attempt_of.remove(&error.id());
        let running = attempt.and_then(|id| Some((id, self.attempts.remove(&id)?)));
        match (error.try_into_panic(), running) {
            (Ok(panic), Some((id, running))) => {
                let message = panic_message("attempt", &*panic);
                Some(Input::Finished(id, panicked(&running, message)))
            }
            (Ok(panic), None) => Some(Input::Broken(panic_message("bus or store", &*panic))),
            (Err(_), Some((id, _))) => Some(Input::Finished(id, cancelled())),
            // The job that joins was aborted, since the processor ends.
            (Err(_), None) => None,
        }
    }
}

fn first_version(work: &Work) -> Version {
    match &work.what {
        What::Records(records) => {
            let first = records.first();
            first.map_or(Version::NONE, |first| first.event.header.version)
        }
        What::Range(range) => range.from,
        What::Again(again) => again.event.header.version,
    }
}

/// An attempt has panicked outside of the code of the user: nothing is known of what it has done.
fn panicked(running: &Running, message: String) -> Ended {
    let error = HandlerError::permanent(message);
    let failure = Failure::new(running.version, error, FailureOf::Record);
    let failure = Failure {
        suspects: running.suspects,
        ..failure
    };
    Ended {
        result: Outcome::Failed(failure),
        ..cancelled()
    }
}

fn cancelled() -> Ended {
    Ended {
        progress: Progress::Unknown,
        done: 0,
        counts: Counts::default(),
        result: Outcome::Cancelled,
        passed: Vec::new(),
        next: Version::NONE,
        is_short: false,
        settled: Vec::new(),
    }
}

fn begin(
    membership: &Membership,
    settings: &Arc<super::Settings>,
    assigned: AssignedPartition,
) -> futures::future::BoxFuture<'static, Input> {
    let (consumer, group) = (membership.consumer.clone(), membership.group.clone());
    let (boot, settings) = (membership.boot.clone(), settings.clone());
    async move {
        let begun = settings.begin(&*consumer, &group, boot, &assigned).await;
        let (partition, epoch) = (assigned.partition, assigned.epoch);
        match begun {
            Ok(is_owned) => Input::Begun(partition, epoch, is_owned),
            Err(setback) => Input::NotBegun(partition, epoch, setback),
        }
    }
    .boxed()
}

async fn flush(shared: &Shared, timeout: Duration) -> Result<(), HandlerError> {
    in_time("flush", shared.processor.flush(&shared.model), timeout).await
}

/// Makes a call of the projector, within the time of an attempt.
pub(super) async fn in_time(
    what: &str,
    call: impl Future<Output = Result<(), HandlerError>>,
    timeout: Duration,
) -> Result<(), HandlerError> {
    let call = AssertUnwindSafe(call).catch_unwind();
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(HandlerError::permanent(panic_message(what, &*panic))),
        Err(_) => Err(HandlerError::transient(format!(
            "{what} took longer than the attempt timeout of {timeout:?}"
        ))),
    }
}

async fn store_positions(
    shared: &Shared,
    positions: Vec<StreamPosition>,
) -> Result<(), crate::ports::ControlStoreError> {
    let Some(rows) = &shared.positions else {
        return Ok(());
    };
    let stores = futures::stream::iter(positions).map(|position| async move {
        let StreamPosition {
            stream,
            version,
            commit_id,
        } = position;
        rows.advance(&stream, version, commit_id).await
    });
    stores.buffer_unordered(STORES_AT_ONCE).try_collect().await
}

impl super::Settings {
    /// Returns the offsets that the group has committed.
    async fn group_committed(&self, group: &str) -> Result<Ends, crate::ports::MessageBusError> {
        let mut ends = Ends::new();
        for topic in &self.topics {
            let committed = self.ports.bus.committed(group, topic).await?;
            let known = committed
                .into_iter()
                .filter_map(|(p, next)| Some((p, next?)));
            ends.extend(known);
        }
        Ok(ends)
    }
}
