//! A message bus through faults.
use super::{
    Call, Faults,
    consumer::FaultyConsumer,
    pass::{Late, Plain},
};
use async_trait::async_trait;
use foldstream::ports::{
    Consumer, Message, MessageBus, MessageBusError, Offset, PartitionId, PartitionOffsets,
    RunOutcome, Subscription, TopicDescription,
};
use futures::future::BoxFuture;
use std::sync::Arc;

pub(super) fn wrap(faults: Faults, inner: Arc<dyn MessageBus>) -> Arc<dyn MessageBus> {
    Arc::new(FaultyMessageBus { faults, inner })
}

#[derive(Clone, Debug)]
struct FaultyMessageBus {
    faults: Faults,
    inner: Arc<dyn MessageBus>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl MessageBus for FaultyMessageBus {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        let late = || -> Late {
            let (this, message) = (self.clone(), message.clone());
            Box::pin(async move {
                let sent = async { this.inner.publish(&message).await.map(Plain) };
                // Nobody waits for the answer any more.
                let _ = this.faults.reach(&Call::Publish(&message), sent).await;
            })
        };
        let act = || -> BoxFuture<'_, _> {
            Box::pin(async { self.inner.publish(message).await.map(Plain) })
        };
        let call = Call::Publish(message);
        let done = self.faults.pass(call, act, late).await;
        done.map(|Plain(place)| place)
    }

    async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        let late = || -> Late {
            let (this, run) = (self.clone(), run.to_vec());
            Box::pin(async move {
                let sent = async { Ok::<_, MessageBusError>(this.inner.publish_run(&run).await) };
                // Nobody waits for the answer any more.
                let _ = this.faults.reach(&Call::PublishRun(&run), sent).await;
            })
        };
        let act = || -> BoxFuture<'_, _> {
            Box::pin(async {
                match self.inner.publish_run(run).await {
                    // Nothing was done: an error that the faults pass on as they do for a single message.
                    RunOutcome {
                        durable: 0,
                        error: Some(error),
                        ..
                    } => Err(error),
                    outcome => Ok(outcome),
                }
            })
        };
        let call = Call::PublishRun(run);
        match self.faults.pass(call, act, late).await {
            Ok(outcome) => outcome,
            // The caller does not know of any message that it is durable.
            Err(error) => RunOutcome::broken_off(0, error),
        }
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        let act = || self.inner.subscribe(subscription.clone());
        let call = Call::Subscribe(&subscription);
        let inner = self.faults.ask(call, act).await?;
        let (faults, bus) = (self.faults.clone(), self.inner.clone());
        Ok(Arc::new(FaultyConsumer::new(
            faults,
            bus,
            subscription,
            inner,
        )))
    }

    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        let act = || self.inner.offsets(topic);
        self.faults.ask(Call::Offsets { topic }, act).await
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        let act = || self.inner.committed(group, topic);
        self.faults.ask(Call::Committed { group, topic }, act).await
    }

    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        let act = || self.inner.describe_topic(topic);
        self.faults.ask(Call::DescribeTopic { topic }, act).await
    }

    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        let act = || self.inner.delete_group(group);
        self.faults.ask(Call::DeleteGroup { group }, act).await
    }
}
