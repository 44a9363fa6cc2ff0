//! The wrapper that injects faults into a message bus.
use super::{
    Call, Fault, Faults,
    consumer::FaultyConsumer,
    known_topics::KnownTopics,
    pass::{Late, Plain, says_the_test},
};
use async_trait::async_trait;
use foldstream::{
    adapter::check_run,
    ports::{
        Consumer, Message, MessageBus, MessageBusError, Offset, PartitionId, PartitionOffsets,
        RunOutcome, Subscription, TopicDescription,
    },
};
use futures::future::BoxFuture;
use std::sync::Arc;

pub(super) fn wrap(faults: Faults, inner: Arc<dyn MessageBus>) -> Arc<dyn MessageBus> {
    let topics = KnownTopics::default();
    Arc::new(FaultyMessageBus {
        faults,
        inner,
        topics,
    })
}

#[derive(Clone, Debug)]
struct FaultyMessageBus {
    faults: Faults,
    inner: Arc<dyn MessageBus>,
    topics: KnownTopics,
}

impl FaultyMessageBus {
    /// Waits until a call that uses a topic has arrived. Returns its fault, if any.
    ///
    /// # Errors
    /// If the fault is that the brokers do not know the topic.
    async fn arrive(&self, call: &Call<'_>, topic: &str) -> Result<Option<Fault>, MessageBusError> {
        match self.faults.arrive(call).await {
            Some(Fault::UnknownTopic) => Err(self.topics.unknown(topic)),
            fault => Ok(fault),
        }
    }

    /// Passes a call that reads the state of a topic through its faults.
    async fn ask<'b, T: 'b>(
        &self,
        call: Call<'_>,
        topic: &str,
        act: impl Fn() -> BoxFuture<'b, Result<T, MessageBusError>>,
    ) -> Result<T, MessageBusError> {
        let fault = self.arrive(&call, topic).await?;
        let answer = self.faults.finish_asking(call, fault, act).await?;
        self.topics.worked(topic);
        Ok(answer)
    }
}

/// The place at which a [`Fault::CutRun`] cuts a run.
#[derive(Clone, Copy, Debug)]
struct Cut {
    durable: usize,
    reported: usize,
}

impl Cut {
    /// Returns the cut of a run by this fault. A run that is invalid is not cut, so that the bus
    /// refuses it.
    fn of(fault: Option<&Fault>, run: &[Message]) -> Option<Self> {
        match fault {
            Some(&Fault::CutRun { durable, reported })
                if reported < run.len() && check_run(run).is_ok() =>
            {
                let durable = durable.min(run.len());
                let reported = reported.min(durable);
                Some(Self { durable, reported })
            }
            _ => None,
        }
    }

    /// Returns the answer to a cut run whose first part got this outcome.
    fn answer(self, first: RunOutcome) -> RunOutcome {
        let durable = first.durable.min(self.reported);
        let source = says_the_test("the run was cut");
        let error = first.error;
        RunOutcome::broken_off(
            durable,
            error.unwrap_or(MessageBusError::Unavailable { source }),
        )
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl MessageBus for FaultyMessageBus {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        let late = || -> Late {
            let (this, message) = (self.clone(), message.clone());
            Box::pin(async move {
                let sent = async { this.inner.publish(&message).await.map(Plain) };
                // The caller has given up and does not get the answer.
                let _ = this.faults.reach(&Call::Publish(&message), sent).await;
            })
        };
        let act = || -> BoxFuture<'_, _> {
            Box::pin(async { self.inner.publish(message).await.map(Plain) })
        };
        let call = Call::Publish(message);
        let fault = self.arrive(&call, &message.topic).await?;
        let Plain(place) = self.faults.finish(call, fault, act, late).await?;
        self.topics.worked(&message.topic);
        Ok(place)
    }

    async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        let topic = run.first().map(|message| &*message.topic);
        let topic = topic.unwrap_or_default();
        let fault = match self.arrive(&Call::PublishRun(run), topic).await {
            Ok(fault) => fault,
            Err(error) => return RunOutcome::broken_off(0, error),
        };
        let cut = Cut::of(fault.as_ref(), run);
        let run = cut.map_or(run, |cut| &run[..cut.durable]);
        let late = || -> Late {
            let (this, run) = (self.clone(), run.to_vec());
            Box::pin(async move {
                let sent = async { Ok::<_, MessageBusError>(this.inner.publish_run(&run).await) };
                // The caller has given up and does not get the answer.
                let _ = this.faults.reach(&Call::PublishRun(&run), sent).await;
            })
        };
        let act = || -> BoxFuture<'_, _> {
            Box::pin(async {
                match self.inner.publish_run(run).await {
                    // No message was published: the faults pass this error on as for a single
                    // message.
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
        match self.faults.finish(call, fault, act, late).await {
            Ok(outcome) => {
                if outcome.durable > 0 {
                    self.topics.worked(topic);
                }
                match cut {
                    Some(cut) => cut.answer(outcome),
                    None => outcome,
                }
            }
            // The caller cannot know of any message that it is durable.
            Err(error) => RunOutcome::broken_off(0, error),
        }
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        let act = || self.inner.subscribe(subscription.clone());
        let call = Call::Subscribe(&subscription);
        let first = subscription.topics.first().cloned().unwrap_or_default();
        let inner = self.ask(call, &first, act).await?;
        for topic in &subscription.topics {
            self.topics.worked(topic);
        }
        let (faults, bus) = (self.faults.clone(), self.inner.clone());
        let topics = self.topics.clone();
        Ok(Arc::new(FaultyConsumer::new(
            faults,
            bus,
            topics,
            subscription,
            inner,
        )))
    }

    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        let act = || self.inner.offsets(topic);
        self.ask(Call::Offsets { topic }, topic, act).await
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        let act = || self.inner.committed(group, topic);
        self.ask(Call::Committed { group, topic }, topic, act).await
    }

    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        let act = || self.inner.describe_topic(topic);
        self.ask(Call::DescribeTopic { topic }, topic, act).await
    }

    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        let act = || self.inner.delete_group(group);
        self.faults.ask(Call::DeleteGroup { group }, act).await
    }
}
