//! The trace of a seed: every call that a process makes to a port, and the answer that it gets. Two
//! runs of one seed must not differ in it.
use super::world::World;
use foldstream::{
    Clock, Timestamp,
    ports::{
        Consumer, ConsumerEvent, ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome,
        EventStore, EventStoreError, Expect, MessageBus, MessageBusError, Offset, OffsetCommit,
        PartitionId, PartitionOffsets, PutOutcome, RangeQuery, Row, RowKey, RowPage, Subscription,
    },
};
use foldstream_testkit::intercept::{
    self, Commits, ConsumerLayer, ControlStoreLayer, EventStoreLayer, MessageBusLayer, Read,
    async_trait,
};
use futures::StreamExt;
use std::{fmt::Debug, sync::Arc};
use tokio::time::Instant;

use super::super::harness::SENT_AT;

/// A clock that follows tokio's, so that what rows say of times depends on the seed alone.
#[derive(Debug)]
pub(super) struct SimulatedClock(pub(super) Instant);
impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        SENT_AT.plus(self.0.elapsed())
    }
}

/// A layer that notes the calls of a process, and their answers.
#[derive(Clone)]
pub(super) struct Recorder {
    world: Arc<World>,
    who: String,
}

impl Recorder {
    fn new(world: &Arc<World>, who: &str) -> Option<Self> {
        let (world, who) = (world.clone(), who.to_owned());
        world.is_traced.then_some(Self { world, who })
    }
    async fn note<T: Debug>(&self, call: impl Debug, answer: impl Future<Output = T>) -> T {
        self.world.note(|| format!("{} calls {call:?}", self.who));
        let answer = answer.await;
        self.world
            .note(|| format!("{} hears {answer:?} of {call:?}", self.who));
        answer
    }
}

/// Notes what a process asks of its control store, if the run is traced.
pub(super) fn control_store(
    world: &Arc<World>,
    who: &str,
    inner: Arc<dyn ControlStore>,
) -> Arc<dyn ControlStore> {
    match Recorder::new(world, who) {
        Some(recorder) => intercept::control_store(inner, recorder),
        None => inner,
    }
}
/// Notes what a process asks of its message bus and its consumers, if the run is traced.
pub(super) fn message_bus(
    world: &Arc<World>,
    who: &str,
    inner: Arc<dyn MessageBus>,
) -> Arc<dyn MessageBus> {
    match Recorder::new(world, who) {
        Some(recorder) => intercept::message_bus(inner, recorder),
        None => inner,
    }
}
/// Notes what a process reads from its event store, if the run is traced.
pub(super) fn event_store(
    world: &Arc<World>,
    who: &str,
    inner: Arc<dyn EventStore>,
) -> Arc<dyn EventStore> {
    match Recorder::new(world, who) {
        Some(recorder) => intercept::event_store(inner, recorder),
        None => inner,
    }
}

#[async_trait]
impl ControlStoreLayer for Recorder {
    async fn get(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
    ) -> Result<Option<Row>, ControlStoreError> {
        self.note(("get", key), inner.get(key)).await
    }
    async fn get_many(
        &self,
        inner: &Arc<dyn ControlStore>,
        keys: &[RowKey],
    ) -> Result<Vec<Option<Row>>, ControlStoreError> {
        self.note(("get", keys), inner.get_many(keys)).await
    }
    async fn put(
        &self,
        inner: &Arc<dyn ControlStore>,
        row: &Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        self.note(("put", row, expect), inner.put(row, expect))
            .await
    }
    async fn delete(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        self.note(("delete", key, expect), inner.delete(key, expect))
            .await
    }
    async fn range(
        &self,
        inner: &Arc<dyn ControlStore>,
        query: &RangeQuery,
    ) -> Result<RowPage, ControlStoreError> {
        self.note(("range", query), inner.range(query)).await
    }
}

#[async_trait]
impl EventStoreLayer for Recorder {
    async fn read<'a>(
        &'a self,
        inner: &'a Arc<dyn EventStore>,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        self.world.note(|| format!("{} calls {read:?}", self.who));
        let commits = inner.read(&read.stream, read.from.clone(), read.limit);
        let noted = commits.inspect(move |commit| {
            self.world
                .note(|| format!("{} hears {commit:?} of {}", self.who, read.stream));
        });
        Ok(noted.boxed().into())
    }
}

#[async_trait]
impl MessageBusLayer for Recorder {
    async fn subscribe(
        &self,
        inner: &Arc<dyn MessageBus>,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        self.world.note(|| format!("{} subscribes", self.who));
        let consumer = inner.subscribe(subscription).await;
        // A consumer shows the whole bus.
        let result = consumer.as_ref().map(|_| ());
        self.world
            .note(|| format!("{} hears {result:?} of that", self.who));
        Ok(intercept::consumer(consumer?, self.clone()))
    }
    async fn offsets(
        &self,
        inner: &Arc<dyn MessageBus>,
        topic: &str,
    ) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        self.note(("offsets", topic), inner.offsets(topic)).await
    }
    async fn committed(
        &self,
        inner: &Arc<dyn MessageBus>,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        self.note(("committed", group, topic), inner.committed(group, topic))
            .await
    }
}

#[async_trait]
impl ConsumerLayer for Recorder {
    async fn next(&self, inner: &Arc<dyn Consumer>) -> Result<ConsumerEvent, MessageBusError> {
        self.note("next", inner.next()).await
    }
    async fn commit(
        &self,
        inner: &Arc<dyn Consumer>,
        commits: &[OffsetCommit],
    ) -> Result<(), MessageBusError> {
        self.note(("commit", commits), inner.commit(commits)).await
    }
    async fn pause(
        &self,
        inner: &Arc<dyn Consumer>,
        partitions: &[PartitionId],
    ) -> Result<(), MessageBusError> {
        self.note(("pause", partitions), inner.pause(partitions))
            .await
    }
    async fn resume(
        &self,
        inner: &Arc<dyn Consumer>,
        partitions: &[PartitionId],
    ) -> Result<(), MessageBusError> {
        self.note(("resume", partitions), inner.resume(partitions))
            .await
    }
}
