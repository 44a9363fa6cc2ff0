//! One membership in the consumer group: receives, dispatches, settles.
use super::{
    RunnerError,
    attempt::{Attempted, Incoming, Shared},
    lanes::Lanes,
    processor::{Ends, Processor, after},
    streams::Streams,
    window::Window,
};
use crate::{
    Backoff, RetryPolicy, StreamId, Version, WireError,
    control::BootRows,
    from_message,
    ports::{
        AssignmentEpoch, Consumer, ConsumerEvent, Delivery, MessageBusError, NoPosition, Offset,
        PartitionId, Revocation,
    },
    previous_record,
    resilience::{Attempts, Failure},
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::{AbortHandle, Id, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// Streams whose position is remembered in any case.
const STREAMS: usize = 50_000;

/// Pauses of a consumer that cannot receive anything.
const RECEIVE_PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// How a session ended without an error.
pub(super) enum End {
    /// It was told to, or it has reached the ends.
    Stopped,
    /// There is a partition that the subscription has no start for.
    Resubscribe,
}

pub(super) struct Session<'a> {
    pub(super) processor: &'a mut Processor,
    pub(super) boot: &'a mut BootRows,
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Arc<dyn Consumer>,
    pub(super) partitions: BTreeMap<PartitionId, Owned>,
    /// Flushes that have failed in a row.
    pub(super) flushes: Attempts<'static>,
    /// Until when not to commit, after a failure.
    pub(super) commit_after: Option<Instant>,
    pub(super) group: &'a str,
    ends: Option<&'a Ends>,
    pub(super) lanes: Lanes<Arc<Incoming>>,
    pub(super) streams: Streams,
    pub(super) running: JoinSet<Attempted>,
    pub(super) jobs: HashMap<Id, Job>,
    pub(super) retries: HashMap<StreamId, Retry>,
    pub(super) waits: FuturesUnordered<BoxFuture<'static, StreamId>>,
    /// Calls of `next` that have failed in a row, and until when not to ask again.
    receives: Attempts<'static>,
    receive_after: Option<Instant>,
}

/// A partition that this consumer reads.
pub(super) struct Owned {
    pub(super) epoch: AssignmentEpoch,
    pub(super) window: Window,
    pub(super) is_paused: bool,
    /// The first record that cannot be read. It is an error when its turn comes; nothing after it is taken.
    pub(super) unreadable: Option<(Offset, WireError)>,
}

pub(super) struct Job {
    pub(super) stream: StreamId,
    pub(super) incoming: Arc<Incoming>,
    pub(super) cancelled: CancellationToken,
    pub(super) handle: AbortHandle,
}

/// How the head of a stream's queue has failed so far.
pub(super) struct Retry {
    pub(super) version: Version,
    pub(super) attempts: Attempts<'static>,
    /// When the next attempt may start.
    pub(super) until: Instant,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        processor: &'a mut Processor,
        boot: &'a mut BootRows,
        shared: Arc<Shared>,
        consumer: Arc<dyn Consumer>,
        group: &'a str,
        ends: Option<&'a Ends>,
    ) -> Self {
        let retry = processor.policy.retry;
        Self {
            processor,
            boot,
            shared,
            consumer,
            partitions: BTreeMap::new(),
            flushes: Attempts::new(retry),
            commit_after: None,
            group,
            ends,
            lanes: Lanes::new(),
            streams: Streams::new(STREAMS),
            running: JoinSet::new(),
            jobs: HashMap::new(),
            retries: HashMap::new(),
            waits: FuturesUnordered::new(),
            receives: Attempts::new(RetryPolicy::forever(Backoff {
                seed: retry.backoff.seed,
                ..RECEIVE_PAUSES
            })),
            receive_after: None,
        }
    }

    /// Works until the end, then finishes what is in hand, commits and leaves, however it ended.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<End, RunnerError> {
        let worked = self.work(stop).await;
        let all: HashSet<_> = self.partitions.keys().cloned().collect();
        let deadline = after(self.processor.policy.drain);
        // Whatever fails now is not done, thus not committed: it comes again.
        let _ = self.finish_running(&all, deadline).await;
        let committed = self.commit().await;
        if let Err(error) = self.consumer.leave().await {
            // The membership ends by itself after the session timeout.
            tracing::warn!(processor = %self.processor.name, error = crate::chain(&error), "the group could not be left at once");
        }
        let end = worked?;
        committed?;
        Ok(end)
    }

    async fn work(&mut self, stop: &CancellationToken) -> Result<End, RunnerError> {
        let mut ticks = tokio::time::interval(self.processor.policy.commit_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let consumer = self.consumer.clone();
        loop {
            self.check_readable()?;
            self.dispatch();
            self.balance().await?;
            if self.is_caught_up_here() {
                if self.may_commit() {
                    self.commit().await?;
                }
                // What could not be flushed or committed yet is not dealt with yet.
                if self.is_all_committed() {
                    return Ok(End::Stopped);
                }
            }
            let resting_until = self.receive_after.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(End::Stopped),
                Some(joined) = self.running.join_next_with_id() => self.settle(joined)?,
                Some(stream) = self.waits.next() => self.wake(&stream),
                _ = ticks.tick() => {
                    if self.may_commit() {
                        self.commit().await?;
                    }
                    if self.is_caught_up_elsewhere().await? {
                        return Ok(End::Stopped);
                    }
                }
                () = tokio::time::sleep_until(resting_until), if self.receive_after.is_some() => {
                    self.receive_after = None;
                }
                event = consumer.next(), if self.receive_after.is_none() => {
                    if let Some(end) = self.receive(event, stop).await? {
                        return Ok(end);
                    }
                }
            }
            if self.must_commit() {
                self.commit().await?;
            }
        }
    }

    async fn receive(
        &mut self,
        event: Result<ConsumerEvent, MessageBusError>,
        stop: &CancellationToken,
    ) -> Result<Option<End>, RunnerError> {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let Some(wait) = self.receives.next(error.failure_class()) else {
                    return Err(self.processor.bus_error(error));
                };
                tracing::warn!(processor = %self.processor.name, error = crate::chain(&error), ?wait, "nothing can be received");
                self.receive_after = Some(after(wait));
                return Ok(None);
            }
        };
        self.receives.reset();
        match event {
            ConsumerEvent::Delivery(delivery) => self.take(delivery),
            ConsumerEvent::Reached(partition, epoch, next) => {
                let owned = self.partitions.get_mut(&partition);
                // Nothing after a record that cannot be read is taken.
                if let Some(owned) = owned.filter(|o| o.epoch == epoch && o.unreadable.is_none()) {
                    owned.window.reached(next);
                }
            }
            ConsumerEvent::Assigned(assignment) => {
                for assigned in assignment.partitions {
                    if stop.is_cancelled() {
                        break;
                    }
                    self.begin(assigned, stop).await?;
                }
            }
            ConsumerEvent::Revoking(revocation) => self.give_up(revocation).await?,
            ConsumerEvent::Lost(partitions) => {
                let lost = partitions.into_iter().collect();
                let finished = self.finish_running(&lost, Instant::now()).await;
                self.forget(&lost);
                finished?;
            }
            ConsumerEvent::NoPosition(partition, NoPosition::Missing)
                if self.boot.get(&partition).is_none() =>
            {
                return Ok(Some(End::Resubscribe));
            }
            ConsumerEvent::NoPosition(partition, why) => {
                let reason = match why {
                    NoPosition::OutOfRange { begin, end } => {
                        format!("the partition holds {begin} to {end}")
                    }
                    NoPosition::Missing => "nothing is committed".into(),
                    NoPosition::Recreated => "the topic was deleted and created again".into(),
                };
                return Err(self.position_lost(partition, &reason));
            }
        }
        Ok(None)
    }

    fn take(&mut self, delivery: Delivery) {
        let Some(owned) = self.partitions.get_mut(&delivery.partition) else {
            return;
        };
        let bytes = delivery.message.size();
        let is_behind = owned.unreadable.is_some();
        if owned.epoch != delivery.epoch || is_behind || !owned.window.push(delivery.offset, bytes)
        {
            return;
        }
        let message = &delivery.message;
        let read = from_message(message).and_then(|event| Ok((event, previous_record(message)?)));
        let (event, previous) = match read {
            Ok(read) => read,
            Err(error) => {
                owned.unreadable = Some((delivery.offset, error));
                return;
            }
        };
        let stream = event.header.stream.clone();
        let incoming = Incoming {
            partition: delivery.partition.clone(),
            offset: delivery.offset,
            epoch: delivery.epoch,
            event,
            previous,
        };
        self.lanes
            .push(&stream, delivery.partition, Arc::new(incoming));
    }

    /// An error if the next record of a partition cannot be read: all before it is done.
    fn check_readable(&mut self) -> Result<(), RunnerError> {
        for (partition, owned) in &mut self.partitions {
            let is_next = |at: &mut (Offset, WireError)| owned.window.first_open() == Some(at.0);
            if let Some((offset, error)) = owned.unreadable.take_if(is_next) {
                return Err(RunnerError::Unreadable {
                    processor: self.processor.name.clone(),
                    partition: partition.clone(),
                    offset,
                    source: error.into(),
                });
            }
        }
        Ok(())
    }

    /// Finishes what runs of these partitions, commits, and lets the group take them.
    async fn give_up(&mut self, revocation: Revocation) -> Result<(), RunnerError> {
        let leaving = revocation.partitions().iter().cloned().collect();
        // Time is left for the commit.
        let grace = revocation.grace() - revocation.grace() / 4;
        let deadline = after(grace.min(self.processor.policy.drain));
        let finished = self.finish_running(&leaving, deadline).await;
        let committed = self.commit().await;
        self.forget(&leaving);
        drop(revocation);
        finished.and(committed)
    }

    /// Drops what is queued of these partitions and waits for what runs of them; past the deadline it is cancelled.
    ///
    /// # Errors
    /// Only of handlers of other partitions. What failed of these is not done, so it comes again, here or elsewhere.
    async fn finish_running(
        &mut self,
        partitions: &HashSet<PartitionId>,
        deadline: Instant,
    ) -> Result<(), RunnerError> {
        self.lanes.drop_queued(partitions);
        let runs = |jobs: &HashMap<Id, Job>| {
            jobs.values()
                .any(|job| partitions.contains(&job.incoming.partition))
        };
        let (mut is_cancelled, mut outcome) = (false, Ok(()));
        while runs(&self.jobs) {
            let joined = tokio::select! {
                biased;
                Some(joined) = self.running.join_next_with_id() => joined,
                () = tokio::time::sleep_until(deadline), if !is_cancelled => {
                    is_cancelled = true;
                    self.cancel(partitions);
                    continue;
                }
                else => break,
            };
            match self.settle(joined) {
                Err(RunnerError::Halted {
                    partition, source, ..
                }) if partitions.contains(&partition) => {
                    tracing::warn!(%partition, error = crate::chain(&*source), "a handler failed while its partition was given up");
                }
                settled => outcome = outcome.and(settled),
            }
            // A failed one that now waits for a retry must not be started again.
            self.lanes.drop_queued(partitions);
        }
        outcome
    }

    fn cancel(&self, partitions: &HashSet<PartitionId>) {
        for job in self.jobs.values() {
            if partitions.contains(&job.incoming.partition) {
                tracing::warn!(processor = %self.processor.name, stream = %job.stream, "a handler is cancelled: it took longer than the drain");
                job.cancelled.cancel();
                job.handle.abort();
            }
        }
    }

    fn forget(&mut self, partitions: &HashSet<PartitionId>) {
        self.partitions
            .retain(|partition, _| !partitions.contains(partition));
        self.streams.forget(partitions);
        self.retries.retain(|stream, _| self.lanes.contains(stream));
    }

    /// Pauses partitions whose window is full, and resumes those that are half empty.
    async fn balance(&mut self) -> Result<(), RunnerError> {
        let policy = &self.processor.policy;
        let (records, bytes) = (policy.max_records, policy.max_bytes);
        let (mut full, mut free) = (Vec::new(), Vec::new());
        for (partition, owned) in &self.partitions {
            let (len, size) = (owned.window.len(), owned.window.bytes());
            if !owned.is_paused && (len >= records || size >= bytes) {
                full.push(partition.clone());
            } else if owned.is_paused && len <= records / 2 && size <= bytes / 2 {
                free.push(partition.clone());
            }
        }
        if !full.is_empty() {
            let paused = self.consumer.pause(&full).await;
            self.note_pause(&full, true, paused)?;
        }
        if !free.is_empty() {
            let resumed = self.consumer.resume(&free).await;
            self.note_pause(&free, false, resumed)?;
        }
        Ok(())
    }

    fn note_pause(
        &mut self,
        partitions: &[PartitionId],
        is_paused: bool,
        outcome: Result<(), MessageBusError>,
    ) -> Result<(), RunnerError> {
        match outcome {
            Ok(()) => {
                for partition in partitions {
                    if let Some(owned) = self.partitions.get_mut(partition) {
                        owned.is_paused = is_paused;
                    }
                }
                Ok(())
            }
            // The next round asks again.
            Err(error) if error.is_transient() => {
                tracing::warn!(processor = %self.processor.name, error = crate::chain(&error), "a partition could not be paused or resumed yet");
                Ok(())
            }
            Err(error) => Err(self.processor.bus_error(error)),
        }
    }

    /// Whether this member owns everything up to the ends and has dealt with it.
    fn is_caught_up_here(&self) -> bool {
        self.ends.is_some_and(|ends| {
            ends.iter().all(|(partition, end)| {
                let owned = self.partitions.get(partition);
                owned.is_some_and(|owned| owned.window.low() >= *end)
            })
        })
    }

    /// Whether the group has committed everything up to the ends, with what other members have done.
    async fn is_caught_up_elsewhere(&mut self) -> Result<bool, RunnerError> {
        let Some(ends) = self.ends else {
            return Ok(false);
        };
        for topic in &self.processor.topics {
            let committed = self.processor.bus.committed(self.group, topic).await;
            let committed = match committed {
                Ok(committed) => committed,
                Err(error) if error.is_transient() => return Ok(false),
                Err(error) => return Err(self.processor.bus_error(error)),
            };
            for (partition, next) in committed {
                let end = ends.get(&partition).copied().unwrap_or_default();
                if next.is_none_or(|next| next < end) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    pub(super) fn position_lost(&self, partition: PartitionId, found: &str) -> RunnerError {
        RunnerError::PositionLost {
            processor: self.processor.name.clone(),
            group: self.group.into(),
            partition,
            reason: format!(
                "{found}; rebuild it under a new name, or commit an offset for the group by hand"
            ),
        }
    }
}
