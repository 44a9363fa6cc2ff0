//! Administration: creating topics, describing them, and deleting groups.
use crate::{
    client::{Listening, Reader, blocking, kafka_number},
    config::KafkaConfig,
    error::{Errors, code, invalid},
    worked_before::{Access, Uses},
};
use foldstream::{
    Backoff, RetryPolicy,
    adapter::{check_group, check_topic},
    ports::{MessageBusError, RefusedKind, TopicDescription},
    resilience::Retryable,
};
use rdkafka::{
    admin::{
        AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
    },
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use std::{sync::Arc, time::Duration};

/// The pauses before a new topic is looked up again, until the brokers show it.
const APPEARANCE_PAUSES: Backoff =
    Backoff::new(Duration::from_millis(50), Duration::from_millis(200));

/// The bytes that the limits count at most beyond the size of a message.
///
/// librdkafka's `message.max.bytes` counts 36 bytes for the parts of a record other than key, value
/// and headers: its attributes, and the longest forms of its own length, of the two deltas, of the
/// lengths of key and value, and of the number of headers. A topic's `max.message.bytes` counts the
/// batch, which has a header of 61 bytes. A record near the limit has a batch of its own.
pub(crate) const RECORD_OVERHEAD: usize = 36 + 61;

/// The definition of a topic to create.
///
/// # Example
/// ```
/// use foldstream_kafka::TopicSpec;
/// let topic = TopicSpec::new("orders", 12)
///     .with_replication(3)
///     .with_config("retention.ms", "-1")
///     .with_config("min.insync.replicas", "2");
/// assert_eq!(topic.partitions(), 12);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicSpec {
    name: String,
    partitions: u32,
    replication: Option<u16>,
    config: Vec<(String, String)>,
}

impl TopicSpec {
    /// Creates the definition of a topic with this number of partitions.
    ///
    /// The number of replicas is the brokers' default. The topic has `cleanup.policy=delete`, since
    /// a compacted topic loses history.
    #[must_use]
    pub fn new(name: impl Into<String>, partitions: u32) -> Self {
        Self {
            name: name.into(),
            partitions,
            replication: None,
            config: vec![("cleanup.policy".into(), "delete".into())],
        }
    }
    /// Sets the number of brokers that store each partition. Default: the brokers' default.
    #[must_use]
    pub fn with_replication(mut self, replicas: u16) -> Self {
        self.replication = Some(replicas);
        self
    }
    /// Sets a property of the topic by Kafka's name, such as `retention.ms` or `max.message.bytes`.
    /// The last value of a property applies.
    #[must_use]
    pub fn with_config(mut self, property: impl Into<String>, value: impl Into<String>) -> Self {
        let property = property.into();
        self.config.retain(|(name, _)| *name != property);
        self.config.push((property, value.into()));
        self
    }
    /// Returns the name of the topic.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Returns the number of partitions of the topic.
    pub const fn partitions(&self) -> u32 {
        self.partitions
    }
}

/// The outcome of [`KafkaMessageBus::create_topic`](crate::KafkaMessageBus::create_topic).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicOutcome {
    /// The topic was created by this call.
    Created,
    /// A topic of that name existed. It was not changed, and may have other settings.
    Existed,
}

/// The client of one administrative request.
struct Asking {
    client: AdminClient<Listening>,
    timeout: Duration,
}

impl Asking {
    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.timeout))
            .operation_timeout(Some(self.timeout))
    }

    /// Asks for something that brokers support since Kafka 0.11, before a request that they support
    /// since 1.1.
    ///
    /// librdkafka 2.12 aborts the process (it destroys a queue twice) if a coordinator cannot
    /// delete groups.
    async fn expect_administration(&self, broker: i32) -> KafkaResult<()> {
        let question = [&ResourceSpecifier::Broker(broker)];
        let options = self.options().broker_id(broker);
        // A missing permission for this question does not matter here.
        let answers = self.client.describe_configs(question, &options);
        answers.await.map(drop)
    }
}

/// Sends administrative requests. It creates a client for each one, since they are rare.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) config: KafkaConfig,
    pub(crate) errors: Arc<Errors>,
}

impl Admin {
    /// Sends one request on a blocking thread, on which the client may also be created and closed.
    async fn ask<T, A, F>(
        &self,
        doing: String,
        question: A,
    ) -> Result<KafkaResult<T>, MessageBusError>
    where
        T: Send + 'static,
        A: FnOnce(Asking) -> F + Send + 'static,
        F: Future<Output = KafkaResult<T>> + Send,
    {
        let Self { config, errors } = self.clone();
        if config.tokens.is_some() {
            return Err(no_administration(&doing));
        }
        let runtime = tokio::runtime::Handle::current();
        blocking(move || {
            let timeout = config.request_timeout;
            let context = Listening::new(&config, &errors);
            let client = config
                .reader()
                .create_with_context::<_, AdminClient<_>>(context)
                .map_err(|error| errors.failed(doing, Uses::nothing(), error))?;
            Ok(runtime.block_on(question(Asking { client, timeout })))
        })
        .await
    }

    /// Creates one topic and waits until the brokers show it.
    pub(crate) async fn create_topic(
        &self,
        spec: &TopicSpec,
        reader: Arc<Reader>,
    ) -> Result<TopicOutcome, MessageBusError> {
        check_topic(&spec.name)?;
        if spec.partitions == 0 {
            return Err(invalid(format!(
                "the topic {} has no partitions",
                spec.name
            )));
        }
        let doing = format!("creating the topic {}", spec.name);
        let wanted = spec.clone();
        let answer = self.ask(doing.clone(), move |admin| async move {
            let replicas = wanted.replication.map_or(-1, i32::from);
            let mut topic = NewTopic::new(
                &wanted.name,
                kafka_number(wanted.partitions),
                TopicReplication::Fixed(replicas),
            );
            for (property, value) in &wanted.config {
                topic = topic.set(property, value);
            }
            only(
                admin
                    .client
                    .create_topics([&topic], &admin.options())
                    .await?,
            )
        });
        match answer.await? {
            Ok(_) => {
                self.await_topic(spec, reader).await?;
                Ok(TopicOutcome::Created)
            }
            Err(error) if code(&error) == Some(RDKafkaErrorCode::TopicAlreadyExists) => {
                Ok(TopicOutcome::Existed)
            }
            Err(error) => Err(self.errors.failed(doing, Uses::nothing(), error)),
        }
    }

    async fn await_topic(
        &self,
        spec: &TopicSpec,
        reader: Arc<Reader>,
    ) -> Result<(), MessageBusError> {
        let look = || {
            let (name, reader) = (Arc::from(&*spec.name), Arc::clone(&reader));
            async move {
                match blocking(move || reader.partitions(&name)).await {
                    Ok(count) if count >= spec.partitions => Ok(()),
                    Ok(_) => Err(None),
                    Err(error) => Err(Some(error)),
                }
            }
        };
        let policy = RetryPolicy::new(APPEARANCE_PAUSES, self.config.request_timeout);
        match look.retry(policy).when(|_| true).run().await {
            // Partitions that are not shown yet exist. The next look at the topic finds them.
            Ok(()) | Err(None) => Ok(()),
            Err(Some(error)) => Err(error),
        }
    }

    /// Returns the settings of a topic, as far as the brokers reveal them to this principal.
    pub(crate) async fn describe_topic(
        &self,
        topic: &str,
        reader: Arc<Reader>,
    ) -> Result<TopicDescription, MessageBusError> {
        let name: Arc<str> = topic.into();
        let uses_of = Arc::clone(&name);
        let (partitions, broker) = blocking(move || reader.topic(&name)).await?;
        let description = TopicDescription::new(partitions)
            .with_max_producer_bytes(u64::try_from(self.config.max_message_bytes).ok())
            .with_record_overhead(RECORD_OVERHEAD as u64);
        let config = self.describe_config(&uses_of, broker).await?;
        Ok(match config {
            Some(config) => with_config(description, &config),
            None => description,
        })
    }

    /// Returns the size in bytes of the largest record that a topic takes, if the brokers reveal it
    /// to this principal.
    pub(crate) async fn max_message_bytes(
        &self,
        topic: &Arc<str>,
        broker: Option<i32>,
    ) -> Result<Option<usize>, MessageBusError> {
        let config = self.describe_config(topic, broker).await?;
        let described = config.map(|config| with_config(TopicDescription::new(1), &config));
        let bytes = described.and_then(|described| described.max_message_bytes);
        Ok(bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)))
    }

    /// Asks a broker for the properties of a topic. Returns `None` if the brokers do not know this
    /// question, if this principal may not ask it, or if the login needs tokens.
    async fn describe_config(
        &self,
        topic: &Arc<str>,
        broker: Option<i32>,
    ) -> Result<Option<ConfigResource>, MessageBusError> {
        if self.config.tokens.is_some() {
            return Ok(None);
        }
        let (doing, name) = (format!("describing the topic {topic}"), topic.to_string());
        let answer = self.ask(doing.clone(), move |admin| async move {
            // Any broker can answer. The default is the controller, for which the client may wait
            // in vain.
            let options = admin.options().broker_id(broker);
            only(
                admin
                    .client
                    .describe_configs([&ResourceSpecifier::Topic(&name)], &options)
                    .await?,
            )
        });
        let uses = Uses::topic(Access::DescribeConfigs, topic);
        match answer.await? {
            Ok(config) => {
                self.errors.succeeded(uses);
                Ok(Some(config))
            }
            Err(error) => {
                let error = self.errors.failed(doing, uses, error);
                if error.is_transient() {
                    return Err(error);
                }
                // The port's description leaves the value open in that case.
                tracing::debug!(
                    topic = &**topic,
                    error = foldstream::chain(&error),
                    "no topic settings"
                );
                Ok(None)
            }
        }
    }

    /// Deletes a consumer group and its committed offsets.
    pub(crate) async fn delete_group(
        &self,
        group: &str,
        reader: Arc<Reader>,
    ) -> Result<(), MessageBusError> {
        check_group(group)?;
        let broker = blocking(move || reader.any_broker()).await?;
        let (doing, name) = (format!("deleting the group {group}"), group.to_owned());
        let answer = self.ask(doing.clone(), move |admin| async move {
            admin.expect_administration(broker).await?;
            only(
                admin
                    .client
                    .delete_groups(&[&name], &admin.options())
                    .await?,
            )
        });
        match answer.await? {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some(RDKafkaErrorCode::GroupIdNotFound) => Ok(()),
            Err(error) => Err(self.errors.failed(doing, Uses::nothing(), error)),
        }
    }
}

/// Returns the refusal of a request that cannot be sent with tokens: rdkafka's client for
/// administration does not serve the events with which librdkafka asks for one.
fn no_administration(doing: &str) -> MessageBusError {
    MessageBusError::Refused {
        kind: RefusedKind::Unsupported,
        reason: format!("{doing} is not possible with a token provider: use Kafka's own tools"),
        source: KafkaError::AdminOp(RDKafkaErrorCode::UnsupportedFeature).into(),
    }
}

/// Returns the only answer to a request about one subject.
fn only<T, E: Into<AnswerError>>(answers: Vec<Result<T, E>>) -> KafkaResult<T> {
    match answers.into_iter().next() {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(error)) => Err(KafkaError::AdminOp(error.into().0)),
        None => Err(KafkaError::AdminOp(RDKafkaErrorCode::Partial)),
    }
}

/// The error code in an answer of any of rdkafka's shapes.
struct AnswerError(RDKafkaErrorCode);
impl From<RDKafkaErrorCode> for AnswerError {
    fn from(code: RDKafkaErrorCode) -> Self {
        Self(code)
    }
}
impl From<(String, RDKafkaErrorCode)> for AnswerError {
    fn from((_, code): (String, RDKafkaErrorCode)) -> Self {
        Self(code)
    }
}

fn with_config(description: TopicDescription, config: &ConfigResource) -> TopicDescription {
    let value = |name: &str| config.get(name).and_then(|entry| entry.value.as_deref());
    let compacted =
        value("cleanup.policy").map(|policy| policy.split(',').any(|p| p.trim() == "compact"));
    let retention = value("retention.ms").and_then(|millis| millis.parse::<i64>().ok());
    let retention =
        retention.map(|millis| u64::try_from(millis).map_or(Duration::MAX, Duration::from_millis));
    let bytes = value("max.message.bytes").and_then(|bytes| bytes.parse().ok());
    description
        .with_compacted(compacted)
        .with_retention(retention)
        .with_max_message_bytes(bytes)
}
