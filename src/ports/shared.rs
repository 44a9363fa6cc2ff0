//! Implementations of every port for `Arc<T>`, so that constructors take a port by value or shared.
use super::{
    Append, AppendAll, AppendOutcome, Capabilities, Commit, CommitKey, Consumer, ConsumerEvent,
    ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, EventStore, EventStoreError,
    Expect, Message, MessageBus, MessageBusError, Offset, OffsetCommit, PartitionId,
    PartitionOffsets, PutOutcome, RangeQuery, ReadFrom, Row, RowKey, RowPage, RunOutcome,
    SaveOutcome, ScanCursor, ScanPage, ScanScope, Segment, SnapshotStore, SnapshotStoreError,
    StoredSnapshot, StreamPage, Subscription, TopicDescription, UnpublishedPage,
};
use crate::{StreamHead, StreamId};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{any::Any, num::NonZeroU32, sync::Arc};

/// Returns an event store as the trait object that the core holds.
pub(crate) fn event_store(store: impl EventStore) -> Arc<dyn EventStore> {
    shared(store, |store| Arc::new(store))
}
/// Returns a snapshot store as the trait object that the core holds.
pub(crate) fn snapshot_store(store: impl SnapshotStore) -> Arc<dyn SnapshotStore> {
    shared(store, |store| Arc::new(store))
}
/// Returns a control store as the trait object that the core holds.
pub(crate) fn control_store(store: impl ControlStore) -> Arc<dyn ControlStore> {
    shared(store, |store| Arc::new(store))
}
/// Returns a message bus as the trait object that the core holds.
pub(crate) fn message_bus(bus: impl MessageBus) -> Arc<dyn MessageBus> {
    shared(bus, |bus| Arc::new(bus))
}

/// Returns `port` itself if it is already the trait object, otherwise the result of `wrap`.
fn shared<D: ?Sized + 'static, P: 'static>(port: P, wrap: impl FnOnce(P) -> Arc<D>) -> Arc<D> {
    match (&port as &dyn Any).downcast_ref::<Arc<D>>() {
        Some(shared) => shared.clone(),
        None => wrap(port),
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: EventStore + ?Sized> EventStore for Arc<T> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }
    fn incarnation(&self) -> u64 {
        (**self).incarnation()
    }
    fn identity(&self) -> usize {
        (**self).identity()
    }
    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        (**self).append(append).await
    }
    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        (**self).append_all(all).await
    }
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        (**self).read(stream, from, limit)
    }
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        (**self).streams(aggregate, after).await
    }
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanScope,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        (**self).scan(segment, after, what, max_items).await
    }
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        (**self).unpublished(segment, after, limit).await
    }
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        (**self).clear_unpublished(commits).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: SnapshotStore + ?Sized> SnapshotStore for Arc<T> {
    async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        (**self).load(stream).await
    }
    async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        (**self).save(snapshot).await
    }
    async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        (**self).delete(stream).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: ControlStore + ?Sized> ControlStore for Arc<T> {
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        (**self).get(key).await
    }
    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
        (**self).get_many(keys).await
    }
    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        (**self).put(row, expect).await
    }
    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        (**self).delete(key, expect).await
    }
    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        (**self).range(query).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: MessageBus + ?Sized> MessageBus for Arc<T> {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        (**self).publish(message).await
    }
    async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        (**self).publish_run(run).await
    }
    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        (**self).subscribe(subscription).await
    }
    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        (**self).offsets(topic).await
    }
    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        (**self).committed(group, topic).await
    }
    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        (**self).describe_topic(topic).await
    }
    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        (**self).delete_group(group).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Consumer + ?Sized> Consumer for Arc<T> {
    async fn next(&self) -> Result<ConsumerEvent, MessageBusError> {
        (**self).next().await
    }
    fn try_next(&self) -> Option<Result<ConsumerEvent, MessageBusError>> {
        (**self).try_next()
    }
    async fn commit(&self, offsets: &[OffsetCommit]) -> Result<(), MessageBusError> {
        (**self).commit(offsets).await
    }
    async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        (**self).pause(partitions).await
    }
    async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        (**self).resume(partitions).await
    }
    async fn leave(&self) -> Result<(), MessageBusError> {
        (**self).leave().await
    }
}
