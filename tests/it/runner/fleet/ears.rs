//! The ears of an instance: they note what it hears at its ports, and check what it must do with
//! it. It never holds more than its windows, and handles nothing while an operator has paused the
//! processor.
use super::{handlers::Body, schedule::Schedule, world::NAME};
use foldstream::ports::{
    Consumer, ConsumerEvent, ControlStore, ControlStoreError, Delivery, MessageBus,
    MessageBusError, OffsetCommit, PartitionId, Row, RowKey, Subscription,
};
use foldstream_testkit::intercept::{
    self, ConsumerLayer, ControlStoreLayer, MessageBusLayer, async_trait,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};

/// The time that an attempt takes at most between two events, and the news of a pause at most.
const MOMENT: Duration = Duration::from_secs(4);

/// The bytes that a record counts beside its key, value and headers, as the runner says.
const KEPT_WITH_EACH: usize = 1_024;

/// Tells the instance's handlers what the instance hears of its group and of operators. A deaf
/// instance hears nothing of its group, and goes on with what it has.
#[derive(Clone)]
pub(super) struct Ears(pub(super) Arc<Body>);

/// The last request of an operator that an instance has heard, since when.
#[derive(Debug, Default)]
pub(super) struct Heard {
    is_paused: Option<(bool, Instant)>,
    /// The last call about each lane.
    calls: BTreeMap<u32, Instant>,
}

impl Heard {
    fn of(&mut self, row: Option<&Row>) -> bool {
        let value = row.map(|row| serde_json::from_slice::<serde_json::Value>(&row.value).unwrap());
        let is_paused = value.is_some_and(|value| value["p"] == true);
        if self.is_paused.is_none_or(|(was, _)| was != is_paused) {
            self.is_paused = Some((is_paused, Instant::now()));
        }
        is_paused
    }

    /// Notes a call of a handler about a lane. Returns the rule that it breaks.
    pub(super) fn called(&mut self, lane: u32) -> Option<&'static str> {
        let now = Instant::now();
        let last = self.calls.insert(lane, now);
        match self.is_paused {
            None => Some("before it has heard whether it is paused"),
            // An attempt that has begun goes on to its end, with all events that it has.
            Some((true, since)) if now - since >= MOMENT => {
                let goes_on = last.is_some_and(|last| now - last < MOMENT);
                (!goes_on).then_some("although it is paused")
            }
            Some(_) => None,
        }
    }
}

/// The records that an instance holds: those that were delivered and are not committed.
#[derive(Debug, Default)]
pub(super) struct Windows {
    held: BTreeMap<PartitionId, Held>,
    /// Pausing or resuming has failed or takes time: more may come meanwhile.
    may_overflow: bool,
}

/// The records of one assignment.
#[derive(Debug, Default)]
struct Held {
    records: BTreeMap<u64, usize>,
    /// More was taken in than the window holds. An instance that ends drops what comes under a new
    /// assignment, so this counts once the instance has gone on to work under it.
    overflow: Option<String>,
}

impl Windows {
    fn delivered(&mut self, delivery: &Delivery, plan: &Schedule) -> Option<&Held> {
        let held = self.held.get_mut(&delivery.partition)?;
        let (count, bytes) = (held.records.len(), held.bytes());
        let size = delivery.message.size() + KEPT_WITH_EACH;
        held.records.insert(delivery.offset.get(), size);
        if (count >= plan.window || bytes >= plan.bytes) && !self.may_overflow {
            let partition = delivery.partition.partition;
            let wrong = format!("has taken in {count} records of {partition}, {bytes} bytes");
            held.overflow
                .get_or_insert(format!("{wrong}, and one more"));
        }
        Some(held)
    }

    /// Notes that the instance works under an assignment. Returns the rule that it has broken.
    pub(super) fn works_at(&mut self, partition: &PartitionId) -> Option<String> {
        self.held.get_mut(partition)?.overflow.take()
    }
}

impl Held {
    fn bytes(&self) -> usize {
        self.records.values().sum()
    }
}

impl Ears {
    fn heard(&self, event: &ConsumerEvent) {
        let mut windows = self.0.windows.lock().unwrap();
        match event {
            ConsumerEvent::Assigned(assignment) => {
                for assigned in &assignment.partitions {
                    let none = Held::default();
                    windows.held.insert(assigned.partition.clone(), none);
                }
            }
            ConsumerEvent::Lost(partitions) => {
                windows.held.retain(|of, _| !partitions.contains(of));
            }
            ConsumerEvent::Revoking(revocation) => {
                let gone = revocation.partitions();
                windows.held.retain(|of, _| !gone.contains(of));
            }
            ConsumerEvent::Delivery(delivery) => {
                let world = &self.0.world;
                if let Some(held) = windows.delivered(delivery, &world.plan) {
                    if held.records.len() >= world.plan.window {
                        world.hit("full window");
                    }
                    if held.bytes() >= world.plan.bytes {
                        world.hit("full window in bytes");
                    }
                }
            }
            _ => {}
        }
        drop(windows);
        self.0.heard(event);
    }

    async fn changes_pauses(
        &self,
        change: impl Future<Output = Result<(), MessageBusError>> + Send,
    ) -> Result<(), MessageBusError> {
        let began = Instant::now();
        let may_overflow = |may| {
            let mut windows = self.0.windows.lock().unwrap();
            std::mem::replace(&mut windows.may_overflow, may)
        };
        let before = may_overflow(true);
        let result = change.await;
        if result.is_ok() && began.elapsed() == Duration::ZERO {
            may_overflow(before);
        }
        result
    }
}

#[async_trait]
impl MessageBusLayer for Ears {
    async fn subscribe(
        &self,
        inner: &Arc<dyn MessageBus>,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        let consumer = inner.subscribe(subscription).await?;
        self.0.windows.lock().unwrap().held.clear();
        Ok(intercept::consumer(consumer, self.clone()))
    }
}

#[async_trait]
impl ConsumerLayer for Ears {
    async fn next(&self, inner: &Arc<dyn Consumer>) -> Result<ConsumerEvent, MessageBusError> {
        let until = *self.0.deaf_until.lock().unwrap();
        if let Some(until) = until {
            sleep_until(until).await;
        }
        let event = inner.next().await?;
        self.heard(&event);
        Ok(event)
    }
    async fn commit(
        &self,
        inner: &Arc<dyn Consumer>,
        commits: &[OffsetCommit],
    ) -> Result<(), MessageBusError> {
        for commit in commits {
            self.0.works_at(&commit.partition);
        }
        let result = inner.commit(commits).await;
        let mut windows = self.0.windows.lock().unwrap();
        match &result {
            Ok(()) => {
                for commit in commits {
                    if let Some(held) = windows.held.get_mut(&commit.partition) {
                        let next = commit.next.get();
                        held.records.retain(|offset, _| *offset >= next);
                    }
                }
            }
            Err(MessageBusError::StaleAssignment { partition }) => {
                windows.held.remove(partition);
            }
            Err(_) => {}
        }
        drop(windows);
        result
    }
    async fn pause(
        &self,
        inner: &Arc<dyn Consumer>,
        partitions: &[PartitionId],
    ) -> Result<(), MessageBusError> {
        self.changes_pauses(inner.pause(partitions)).await
    }
    async fn resume(
        &self,
        inner: &Arc<dyn Consumer>,
        partitions: &[PartitionId],
    ) -> Result<(), MessageBusError> {
        self.changes_pauses(inner.resume(partitions)).await
    }
}

#[async_trait]
impl ControlStoreLayer for Ears {
    async fn get(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
    ) -> Result<Option<Row>, ControlStoreError> {
        let row = inner.get(key).await?;
        if key.sort == "pause" && key.partition == format!("op/{NAME}") {
            let is_paused = self.0.operators.lock().unwrap().of(row.as_ref());
            self.0.world.hit(format!("heard of a pause: {is_paused}"));
        }
        Ok(row)
    }
}
