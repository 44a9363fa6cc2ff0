//! Doing what the machine returns. Each effect becomes a job, or is done at once without waiting.
use super::{Done, Driver, Running, next::Membership, pool::Job, rows};
use crate::{
    ports::{AssignedPartition, MessageBusError, OffsetCommit},
    runner::{
        HandlerError, RunnerError,
        attempt::{Shared, panic_message},
        machine::{AttemptId, Effect, Ends, Input, Setback, StreamPosition, Work},
        signals::Signals,
    },
};
use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{task::JoinError, time::Instant};

/// The time for which leaving the group is waited for. Afterwards the membership ends by itself,
/// with the session timeout.
const LEAVE: Duration = Duration::from_secs(5);

/// The number of positions that are stored at a time.
const STORES_AT_ONCE: usize = 16;

/// The time that a call of the bus or of the control store may take, more than any adapter waits
/// for its server. A call that never returns would keep back all that waits for it, and nothing
/// would show it.
const CALL: Duration = Duration::from_secs(60);

/// The time in which all rows of a partition must be read, which may be many pages.
const LOAD: Duration = Duration::from_secs(300);

impl Driver {
    /// Does what the machine wants. Returns the result of the processor once it has ended.
    pub(super) fn perform(&mut self, effect: Effect) -> Option<Result<(), RunnerError>> {
        match effect {
            Effect::Join => self.join(),
            Effect::Start(id, work) => self.start(id, work),
            Effect::Finish(id) => {
                if let Some(running) = self.attempts.get(&id)
                    && !self.pool.withdraw(id)
                {
                    running.signals.finish();
                }
            }
            Effect::Cancel(id) => {
                if let Some(running) = self.attempts.get(&id)
                    && !self.pool.withdraw(id)
                {
                    tracing::warn!(processor = %self.settings.rules.name, "a handler is cancelled: its partition is gone, or it took longer than the drain");
                    running.signals.cancel();
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
                    let stored = store_positions(&shared, positions);
                    let stored = stored.map_err(|e| settings.control_setback(e));
                    Input::PositionsStored(returning(CALL, stored).await)
                }
                .boxed()
            }),
            Effect::Commit(offsets) => self.commit(offsets),
            Effect::Pause(partitions) => self.member(|m, _| {
                let consumer = m.consumer.clone();
                async move { Input::PauseChanged(of_bus(consumer.pause(&partitions)).await) }
                    .boxed()
            }),
            Effect::Resume(partitions) => self.member(|m, _| {
                let consumer = m.consumer.clone();
                async move { Input::PauseChanged(of_bus(consumer.resume(&partitions)).await) }
                    .boxed()
            }),
            Effect::Load(load) => self.member(|m, s| {
                let (shared, settings) = (m.shared.clone(), s.clone());
                async move {
                    let loaded = rows::load(&shared, &load).map_ok(Box::new);
                    let loaded = loaded.map_err(|e| settings.control_setback(e));
                    let loaded = returning(LOAD, loaded).await;
                    Input::Loaded(load, loaded)
                }
                .boxed()
            }),
            Effect::Row(id, partition, op) => self.member(|m, s| {
                let (shared, settings) = (m.shared.clone(), s.clone());
                async move {
                    let answer = rows::perform(&shared.rows, &partition, *op);
                    let answer = answer.map_err(|e| settings.control_setback(e));
                    Input::Row(id, returning(CALL, answer).await)
                }
                .boxed()
            }),
            Effect::Poll => self.member(|m, s| {
                let (shared, settings) = (m.shared.clone(), s.clone());
                async move {
                    let polled = rows::poll(&shared.rows, &settings.found);
                    let polled = polled.map_err(|e| settings.control_setback(e));
                    Input::Polled(returning(CALL, polled).await)
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
                async move { Input::GroupCommitted(of_bus(settings.group_committed(&group)).await) }
                    .boxed()
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
        let signals = Signals::default();
        let running = Running {
            signals: signals.clone(),
            steps: 0,
        };
        self.attempts.insert(id, running);
        self.pool.queue(Job {
            id,
            shared: membership.shared.clone(),
            work,
            signals,
            until: self.settings.lease.until(),
        });
    }

    fn commit(&mut self, offsets: Vec<OffsetCommit>) {
        self.member(|m, _| {
            let consumer = m.consumer.clone();
            async move { Input::Committed(of_bus(consumer.commit(&offsets)).await) }.boxed()
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

    /// Notes what was heard of an attempt.
    pub(super) fn heard(&mut self, input: Input) -> Input {
        if let Input::Finished(id, _) = &input {
            self.attempts.remove(id);
        }
        input
    }

    /// Turns the answer of a job into an input.
    pub(super) fn answered(&mut self, joined: Result<Done, JoinError>) -> Option<Input> {
        let error = match joined {
            Ok(done) => {
                return Some(match done {
                    Done::Watched(answer) => {
                        return self.answered_watch(answer, Instant::now());
                    }
                    Done::OfMember(left, input) => {
                        // A consumer that was left may answer late, and that it is closed. Nobody
                        // waits for it, and it says nothing about the consumer after it, whose
                        // assignments may have the same epochs. Nor do rows that were read before.
                        let is_of_consumer = matches!(
                            input,
                            Input::PauseChanged(_)
                                | Input::Begun(..)
                                | Input::NotBegun(..)
                                | Input::Loaded(..)
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
                        let generation = self.settings.generation;
                        self.watch.joined(generation);
                        tracing::info!(processor = %self.settings.rules.name, %group, generation, "the group is joined");
                        self.membership = Some(*membership);
                        Input::Joined(group, ends)
                    }
                });
            }
            Err(error) => error,
        };
        match error.try_into_panic() {
            Ok(panic) => Some(Input::Broken(panic_message("bus or store", &*panic))),
            // The job that joins was aborted, since the processor ends.
            Err(_) => None,
        }
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
        let begun = settings.begin(&*consumer, &group, boot, &assigned);
        let begun = returning(CALL, begun).await;
        let (partition, epoch) = (assigned.partition, assigned.epoch);
        match begun {
            Ok(is_owned) => Input::Begun(partition, epoch, is_owned),
            Err(setback) => Input::NotBegun(partition, epoch, setback),
        }
    }
    .boxed()
}

/// Awaits a step, and counts a backend as away that has not answered in time.
pub(super) async fn returning<T>(
    time: Duration,
    step: impl Future<Output = Result<T, Setback>>,
) -> Result<T, Setback> {
    let answer = tokio::time::timeout(time, step).await;
    answer.unwrap_or_else(|_| Err(Setback::Wait(no_answer(time))))
}

/// Awaits a call of the bus in the same way.
async fn of_bus<T>(
    call: impl Future<Output = Result<T, MessageBusError>>,
) -> Result<T, MessageBusError> {
    let answer = tokio::time::timeout(CALL, call).await;
    answer.unwrap_or_else(|_| {
        let source = no_answer(CALL);
        Err(MessageBusError::Unavailable { source })
    })
}

fn no_answer(time: Duration) -> crate::BoxError {
    format!("no answer within {time:?}").into()
}

async fn flush(shared: &Shared, timeout: Duration) -> Result<(), HandlerError> {
    in_time("flush", shared.processor.flush(&shared.model), timeout).await
}

/// Makes a call of the projector, within the time of an attempt.
pub(in crate::runner) async fn in_time(
    what: &str,
    call: impl Future<Output = Result<(), HandlerError>>,
    timeout: Duration,
) -> Result<(), HandlerError> {
    in_time_of(what, call, timeout).await
}

/// Makes a call of the projector that returns a value, within the time of an attempt.
pub(in crate::runner) async fn in_time_of<T>(
    what: &str,
    call: impl Future<Output = Result<T, HandlerError>>,
    timeout: Duration,
) -> Result<T, HandlerError> {
    within(what, call, timeout, "the attempt timeout of ").await
}

/// Makes a call of the projector within a time. `limit` is what an error says before the time.
pub(in crate::runner) async fn within<T>(
    what: &str,
    call: impl Future<Output = Result<T, HandlerError>>,
    timeout: Duration,
    limit: &str,
) -> Result<T, HandlerError> {
    let call = AssertUnwindSafe(call).catch_unwind();
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(HandlerError::permanent(panic_message(what, &*panic))),
        Err(_) => Err(HandlerError::transient(format!(
            "{what} took longer than {limit}{timeout:?}"
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
