//! Layers over a message bus and over its consumers.
use super::Intercepted;
use async_trait::async_trait;
use foldstream::ports::{
    Consumer, ConsumerEvent, Message, MessageBus, MessageBusError, Offset, OffsetCommit,
    PartitionId, PartitionOffsets, RunOutcome, Subscription, TopicDescription,
};
use futures::FutureExt;
use std::sync::Arc;

/// A layer over a message bus. Every method passes the call on unless the layer overrides it.
///
/// # Example
/// A bus whose consumers get each message twice. The layer over a consumer is added in `subscribe`.
/// ```
/// use foldstream::{Timestamp, ports::*};
/// use foldstream_testkit::{
///     InMemoryMessageBus,
///     intercept::{self, ConsumerLayer, MessageBusLayer, async_trait},
/// };
/// use std::sync::{Arc, Mutex};
///
/// struct DeliversTwice;
///
/// #[async_trait]
/// impl MessageBusLayer for DeliversTwice {
///     async fn subscribe(
///         &self,
///         inner: &Arc<dyn MessageBus>,
///         subscription: Subscription,
///     ) -> Result<Arc<dyn Consumer>, MessageBusError> {
///         let consumer = inner.subscribe(subscription).await?;
///         Ok(intercept::consumer(consumer, Again::default()))
///     }
/// }
///
/// #[derive(Default)]
/// struct Again(Mutex<Option<Delivery>>);
///
/// #[async_trait]
/// impl ConsumerLayer for Again {
///     async fn next(&self, inner: &Arc<dyn Consumer>) -> Result<ConsumerEvent, MessageBusError> {
///         let again = self.0.lock().expect("no panic under the lock").take();
///         if let Some(delivery) = again {
///             return Ok(ConsumerEvent::Delivery(delivery));
///         }
///         let event = inner.next().await?;
///         if let ConsumerEvent::Delivery(delivery) = &event {
///             *self.0.lock().expect("no panic under the lock") = Some(delivery.clone());
///         }
///         Ok(event)
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let below = InMemoryMessageBus::new();
/// below.create_topic("events", 1);
/// let bus = intercept::message_bus(below, DeliversTwice);
/// bus.publish(&Message::new("events", Timestamp::now()).with_key("cart#a")).await?;
///
/// let start = StartOffset::new(PartitionId::new("events", 0), Offset::new(0));
/// let subscription = Subscription::new("billing", ["events"]).with_start(vec![start]);
/// let consumer = bus.subscribe(subscription).await?;
/// assert!(matches!(consumer.next().await?, ConsumerEvent::Assigned(_)));
/// for _ in 0..2 {
///     let event = consumer.next().await?;
///     assert!(matches!(event, ConsumerEvent::Delivery(d) if d.offset.get() == 0));
/// }
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
pub trait MessageBusLayer: Send + Sync + 'static {
    /// Sends one message to its topic. The publisher of the core sends [runs](Self::publish_run).
    async fn publish(
        &self,
        inner: &Arc<dyn MessageBus>,
        message: &Message,
    ) -> Result<(PartitionId, Offset), MessageBusError> {
        inner.publish(message).await
    }
    /// Sends the messages of one key in order.
    async fn publish_run(&self, inner: &Arc<dyn MessageBus>, run: &[Message]) -> RunOutcome {
        inner.publish_run(run).await
    }
    /// Joins a consumer group.
    ///
    /// The consumer that is returned has no layer unless this method puts one over it.
    async fn subscribe(
        &self,
        inner: &Arc<dyn MessageBus>,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        inner.subscribe(subscription).await
    }
    /// Returns the range of offsets of every partition of a topic.
    async fn offsets(
        &self,
        inner: &Arc<dyn MessageBus>,
        topic: &str,
    ) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        inner.offsets(topic).await
    }
    /// Returns the offsets that a group has committed in a topic.
    async fn committed(
        &self,
        inner: &Arc<dyn MessageBus>,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        inner.committed(group, topic).await
    }
    /// Returns the settings of a topic.
    async fn describe_topic(
        &self,
        inner: &Arc<dyn MessageBus>,
        topic: &str,
    ) -> Result<TopicDescription, MessageBusError> {
        inner.describe_topic(topic).await
    }
    /// Deletes a group with its committed offsets.
    async fn delete_group(
        &self,
        inner: &Arc<dyn MessageBus>,
        group: &str,
    ) -> Result<(), MessageBusError> {
        inner.delete_group(group).await
    }
}

// Denied because a method with a default must pass through the layer too; likewise below.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<L: MessageBusLayer> MessageBus for Intercepted<dyn MessageBus, L> {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        self.layer.publish(&self.inner, message).await
    }
    async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        self.layer.publish_run(&self.inner, run).await
    }
    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        self.layer.subscribe(&self.inner, subscription).await
    }
    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        self.layer.offsets(&self.inner, topic).await
    }
    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        self.layer.committed(&self.inner, group, topic).await
    }
    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        self.layer.describe_topic(&self.inner, topic).await
    }
    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        self.layer.delete_group(&self.inner, group).await
    }
}

/// A layer over a member of a consumer group. Every method passes the call on unless the layer
/// overrides it.
///
/// [`consumer`](super::consumer) puts a layer over a consumer, usually in
/// [`MessageBusLayer::subscribe`]. See [`MessageBusLayer`] for an example. The consumer below is
/// dropped with the layer and then leaves its group.
#[async_trait]
pub trait ConsumerLayer: Send + Sync + 'static {
    /// Waits for the next message or change of assignment.
    ///
    /// If the future is dropped, no event may be lost: the next call must return it.
    async fn next(&self, inner: &Arc<dyn Consumer>) -> Result<ConsumerEvent, MessageBusError> {
        inner.next().await
    }
    /// Commits offsets of the group for partitions of this consumer.
    async fn commit(
        &self,
        inner: &Arc<dyn Consumer>,
        commits: &[OffsetCommit],
    ) -> Result<(), MessageBusError> {
        inner.commit(commits).await
    }
    /// Stops the deliveries of partitions until they are resumed.
    async fn pause(
        &self,
        inner: &Arc<dyn Consumer>,
        partitions: &[PartitionId],
    ) -> Result<(), MessageBusError> {
        inner.pause(partitions).await
    }
    /// Continues the deliveries of paused partitions.
    async fn resume(
        &self,
        inner: &Arc<dyn Consumer>,
        partitions: &[PartitionId],
    ) -> Result<(), MessageBusError> {
        inner.resume(partitions).await
    }
    /// Ends the membership in the group.
    async fn leave(&self, inner: &Arc<dyn Consumer>) -> Result<(), MessageBusError> {
        inner.leave().await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<L: ConsumerLayer> Consumer for Intercepted<dyn Consumer, L> {
    async fn next(&self) -> Result<ConsumerEvent, MessageBusError> {
        self.layer.next(&self.inner).await
    }
    fn try_next(&self) -> Option<Result<ConsumerEvent, MessageBusError>> {
        self.next().now_or_never()
    }
    async fn commit(&self, commits: &[OffsetCommit]) -> Result<(), MessageBusError> {
        self.layer.commit(&self.inner, commits).await
    }
    async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        self.layer.pause(&self.inner, partitions).await
    }
    async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        self.layer.resume(&self.inner, partitions).await
    }
    async fn leave(&self) -> Result<(), MessageBusError> {
        self.layer.leave(&self.inner).await
    }
}
