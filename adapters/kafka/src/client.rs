//! The parts that all clients of librdkafka share: their log, the thread that drops them, and the
//! requests that need no group.
use crate::{
    config::KafkaConfig,
    error::{Errors, task_failed},
    security::{Login, await_token, serve_while_idle},
    worked_before::{Access, Uses},
};
use foldstream::{
    Backoff, RetryPolicy,
    ports::{MessageBusError, Offset, PartitionId, RefusedKind},
    resilience::{FailureClass, Retrying},
};
use rdkafka::{
    ClientContext, Offset as Place, Statistics, TopicPartitionList,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    metadata::Metadata,
    types::RDKafkaRespErr,
};
use std::{error::Error, fmt, sync::Arc, time::Duration};

/// The client context that sends librdkafka's log to `tracing` and its problems to [`Errors`], and
/// that logs in with tokens if the configuration has a provider.
#[derive(Clone, Debug)]
pub(crate) struct Listening {
    errors: Arc<Errors>,
    login: Login,
}

impl Listening {
    /// Creates the context of one client.
    pub(crate) fn new(config: &KafkaConfig, errors: &Arc<Errors>) -> Self {
        Self {
            errors: Arc::clone(errors),
            login: config.login(),
        }
    }
}

impl ClientContext for Listening {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.login.answer()
    }
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }
    fn stats(&self, _: Statistics) {}
    fn stats_raw(&self, json: &[u8]) {
        let json = String::from_utf8_lossy(json);
        tracing::trace!(target: "librdkafka", %json, "statistics");
    }
    fn error(&self, error: KafkaError, text: &str) {
        tracing::debug!(target: "librdkafka", error = foldstream::chain(&error), text);
        self.errors.heard(&error, text);
    }
}
impl ConsumerContext for Listening {}

pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, text: &str) {
    use RDKafkaLogLevel as Level;
    // Producers and consumers share one set of properties, and each kind warns of the properties of
    // the other.
    if facility == "CONFWARN" && text.contains("will be ignored by this") {
        tracing::debug!(target: "librdkafka", facility, "{text}");
        return;
    }
    match level {
        Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
            tracing::error!(target: "librdkafka", facility, "{text}");
        }
        Level::Warning => tracing::warn!(target: "librdkafka", facility, "{text}"),
        Level::Notice | Level::Info => tracing::info!(target: "librdkafka", facility, "{text}"),
        Level::Debug => tracing::debug!(target: "librdkafka", facility, "{text}"),
    }
}

/// A client that is dropped on a thread of its own, since librdkafka joins its threads then and
/// would block an async worker.
pub(crate) struct DropElsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> DropElsewhere<T> {
    pub(crate) fn new(client: T) -> Self {
        Self(Some(client))
    }
    /// Returns the client, which is present until it is dropped.
    pub(crate) const fn get(&self) -> KafkaResult<&T> {
        match &self.0 {
            Some(client) => Ok(client),
            None => Err(KafkaError::Canceled),
        }
    }
}
impl<T: Send + 'static> fmt::Debug for DropElsewhere<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("client")
    }
}
impl<T: Send + 'static> Drop for DropElsewhere<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        let thread = std::thread::Builder::new().name("kafka-close".into());
        // Without a thread the failed call drops the client itself, which is slow but correct.
        let _ = thread.spawn(move || drop(client));
    }
}

/// Runs a blocking call of librdkafka on a blocking thread. Every such call has a timeout.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, MessageBusError> + Send + 'static,
) -> Result<T, MessageBusError> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(task_failed)?
}

/// Converts the number of a partition to Kafka's type.
pub(crate) fn kafka_number(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// Creates a client for one request about a group, of which it does not become a member. Blocks.
pub(crate) fn asker_of(
    config: &KafkaConfig,
    group: &str,
    errors: &Arc<Errors>,
) -> KafkaResult<BaseConsumer<Listening>> {
    let context = Listening::new(config, errors);
    let login = context.login.clone();
    let client = config.consumer(group).create_with_context(context)?;
    await_token(&client, &login);
    Ok(client)
}

/// The offsets that a partition holds: its oldest one, and one after its newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) begin: Offset,
    pub(crate) end: Offset,
}

/// A client that asks brokers about topics. It joins no group.
pub(crate) struct Reader {
    client: DropElsewhere<Arc<BaseConsumer<Listening>>>,
    errors: Arc<Errors>,
    timeout: Duration,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    pub(crate) fn new(config: &KafkaConfig, errors: &Arc<Errors>) -> Result<Self, MessageBusError> {
        let context = Listening::new(config, errors);
        let login = context.login.clone();
        let client = config
            .reader()
            .create_with_context(context)
            .map_err(|error| errors.failed("creating a client", Uses::nothing(), error))?;
        let client = Arc::new(client);
        serve_while_idle(&client, &login).map_err(|error| MessageBusError::Unavailable {
            source: error.into(),
        })?;
        Ok(Self {
            client: DropElsewhere::new(client),
            errors: Arc::clone(errors),
            timeout: config.request_timeout,
        })
    }

    fn ask<T>(
        &self,
        doing: impl fmt::Display,
        uses: Uses<'_>,
        question: impl FnOnce(&BaseConsumer<Listening>) -> KafkaResult<T>,
    ) -> Result<T, MessageBusError> {
        let answer = self.client.get().and_then(|client| {
            let answer = question(client);
            // Nothing else serves the log and the problems of this client, which would pile up.
            // Each poll serves one.
            for _ in 0..32 {
                let _ = client.poll(Duration::ZERO);
            }
            answer
        });
        match answer {
            Ok(answer) => {
                self.errors.succeeded(uses);
                Ok(answer)
            }
            Err(error) => Err(self.errors.failed(doing, uses, error)),
        }
    }

    /// Returns the number of partitions of a topic. Blocks.
    pub(crate) fn partitions(&self, topic: &Arc<str>) -> Result<u32, MessageBusError> {
        self.topic(topic).map(|(partitions, _)| partitions)
    }

    /// Returns the id of an available broker. Blocks.
    pub(crate) fn any_broker(&self) -> Result<i32, MessageBusError> {
        self.ask("looking for brokers", Uses::nothing(), |client| {
            // The answer about a topic includes the brokers, even if the topic does not exist.
            // Without a topic, the answer would include all topics.
            let metadata = client.fetch_metadata(Some("__consumer_offsets"), self.timeout)?;
            let broker = metadata.brokers().first().map(|broker| broker.id());
            broker.ok_or(KafkaError::MetadataFetch(
                RDKafkaErrorCode::BrokerNotAvailable,
            ))
        })
    }

    /// Returns the number of partitions of a topic and the id of an available broker. Blocks.
    pub(crate) fn topic(&self, topic: &Arc<str>) -> Result<(u32, Option<i32>), MessageBusError> {
        until_shown(&self.errors, topic, || {
            let doing = format_args!("looking for the topic {topic}");
            self.ask(doing, Uses::topic(Access::Describe, topic), |client| {
                let metadata = client.fetch_metadata(Some(topic), self.timeout)?;
                let count = partition_count(&metadata, topic)?;
                Ok((count, metadata.brokers().first().map(|broker| broker.id())))
            })
        })
    }

    /// Returns the ranges of partitions, in their order, with two requests for any number of
    /// partitions. Blocks.
    pub(crate) fn ranges(&self, partitions: &[PartitionId]) -> Result<Vec<Range>, MessageBusError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        // The end first: a partition that is trimmed between the requests must not seem to begin
        // after its end.
        let ends = self.offsets_at(partitions, Place::End)?;
        let begins = self.offsets_at(partitions, Place::Beginning)?;
        let ranges = begins.into_iter().zip(ends);
        Ok(ranges
            .map(|(begin, end)| Range {
                begin,
                end: end.max(begin),
            })
            .collect())
    }

    /// Asks for the offsets of partitions at a time. `Beginning` and `End` are the special times -2
    /// and -1 of Kafka's ListOffsets.
    fn offsets_at(
        &self,
        partitions: &[PartitionId],
        place: Place,
    ) -> Result<Vec<Offset>, MessageBusError> {
        let topics = topics_of(partitions);
        let uses = Uses::topics(Access::Describe, &topics);
        self.ask("asking for offsets", uses, |client| {
            let found = client.offsets_for_times(list(partitions, |_| place)?, self.timeout)?;
            let mut offsets = Vec::with_capacity(partitions.len());
            for id in partitions {
                let element = found
                    .find_partition(&id.topic, kafka_number(id.partition))
                    .ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition))?;
                element.error()?;
                let Place::Offset(offset) = element.offset() else {
                    return Err(KafkaError::OffsetFetch(
                        RDKafkaErrorCode::LeaderNotAvailable,
                    ));
                };
                offsets.push(Offset::new(offset.unsigned_abs()));
            }
            Ok(offsets)
        })
    }
}

/// Returns the topics of some partitions, each once.
pub(crate) fn topics_of<'a>(
    partitions: impl IntoIterator<Item = &'a PartitionId>,
) -> Vec<Arc<str>> {
    let mut topics: Vec<_> = partitions
        .into_iter()
        .map(|id| &id.topic)
        .cloned()
        .collect();
    topics.sort_unstable();
    topics.dedup();
    topics
}

/// The pauses before a topic that is missing on first contact is looked up again.
const APPEARANCE_PAUSES: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_millis(200));

/// Looks up a topic, on first contact repeatedly for a short time. Blocks.
///
/// A topic that was just created is at first known only to the broker that created it.
pub(crate) fn until_shown<T>(
    errors: &Errors,
    topic: &Arc<str>,
    look: impl Fn() -> Result<T, MessageBusError>,
) -> Result<T, MessageBusError> {
    // `is_first_contact` bounds the time of a first contact.
    let mut retrying = Retrying::new(RetryPolicy::forever(APPEARANCE_PAUSES));
    loop {
        match look() {
            Err(MessageBusError::Refused {
                kind: RefusedKind::MissingTopic,
                ..
            }) if errors.worked_before().is_first_contact(topic) => {
                let pause = retrying.next(FailureClass::Transient, Duration::ZERO);
                std::thread::sleep(pause.unwrap_or(APPEARANCE_PAUSES.max));
            }
            answer => return answer,
        }
    }
}

/// Creates a partition list for librdkafka. The list must be dropped before its client, which would
/// hang otherwise.
pub(crate) fn list(
    partitions: &[PartitionId],
    place: impl Fn(&PartitionId) -> Place,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for id in partitions {
        list.add_partition_offset(&id.topic, kafka_number(id.partition), place(id))?;
    }
    Ok(list)
}

/// Returns the committed offset of each of `partitions`, from an answered list.
pub(crate) fn committed_places(
    answer: &TopicPartitionList,
    partitions: &[PartitionId],
) -> KafkaResult<Vec<Option<Offset>>> {
    let mut places = Vec::with_capacity(partitions.len());
    for id in partitions {
        let element = answer
            .find_partition(&id.topic, kafka_number(id.partition))
            .ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition))?;
        element.error()?;
        places.push(match element.offset() {
            Place::Offset(offset) => Some(Offset::new(offset.unsigned_abs())),
            _ => None,
        });
    }
    Ok(places)
}

/// Returns the number of partitions that metadata gives for a topic.
pub(crate) fn partition_count(metadata: &Metadata, topic: &str) -> KafkaResult<u32> {
    let found = metadata.topics().iter().find(|t| t.name() == topic);
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    let found = found.ok_or(KafkaError::MetadataFetch(unknown.into()))?;
    match found.error() {
        Some(error) => Err(KafkaError::MetadataFetch(error.into())),
        // Without an error and without partitions, the topic is just being created.
        None if found.partitions().is_empty() => Err(KafkaError::MetadataFetch(
            RDKafkaErrorCode::LeaderNotAvailable,
        )),
        None => Ok(u32::try_from(found.partitions().len()).unwrap_or(u32::MAX)),
    }
}
