//! Publishers and runners that use the names in a configuration.
use super::{KafkaConfig, KafkaConfigError, check::invalid};
use foldstream::{
    ports::{ControlStore, EventStore, MessageBus},
    publisher::{Publisher, TopicRoute},
    runner::{Runner, RunnerBuilder},
};

impl KafkaConfig {
    /// Creates a publisher that sends all events to this configuration's topic,
    /// `KAFKA_EVENTS_TOPIC`.
    ///
    /// A publisher that is created in another way uses its own [`TopicRoute`], whatever the
    /// environment says.
    pub fn publisher(
        &self,
        store: impl EventStore,
        bus: impl MessageBus,
        control: impl ControlStore,
    ) -> Publisher {
        let topic = self.events_topic.as_str().into();
        Publisher::new(store, bus, control).with_route(TopicRoute::One(topic))
    }

    /// Creates the builder of a runner that reads this configuration's topic, `KAFKA_EVENTS_TOPIC`,
    /// in consumer groups that begin with this configuration's prefix, `KAFKA_GROUP_ID`.
    ///
    /// A runner that is created in another way uses its own topics and prefix, whatever the
    /// environment says.
    ///
    /// # Errors
    /// [`KafkaConfigError::Invalid`] if the configuration has no prefix: it was not created by
    /// [`from_env`](Self::from_env), and [`with_group_id`](Self::with_group_id) was not called.
    pub fn runner(
        &self,
        bus: impl MessageBus,
        control: impl ControlStore,
    ) -> Result<RunnerBuilder, KafkaConfigError> {
        let prefix = self.group_id().ok_or_else(|| {
            invalid(
                "KAFKA_GROUP_ID",
                "is not set: name the service with KafkaConfig::with_group_id",
            )
        })?;
        let topics = [self.events_topic.as_str()];
        Ok(Runner::builder(bus, control, prefix).with_topics(topics))
    }
}
