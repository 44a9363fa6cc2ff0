//! What all clients of librdkafka share: their log, where they are dropped, and the questions that need no group.
use crate::{
    error::{Errors, task_failed},
    worked_before::{Access, Uses},
};
use foldstream::{
    Backoff, RetryPolicy,
    ports::{MessageBusError, Offset, PartitionId, RefusedKind},
    resilience::{FailureClass, Retrying},
};
use rdkafka::{
    ClientContext, Offset as Place, Statistics, TopicPartitionList,
    config::{ClientConfig, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    metadata::Metadata,
    types::RDKafkaRespErr,
};
use std::{fmt, sync::Arc, time::Duration};

/// Sends librdkafka's log to `tracing` and its problems to [`Errors`].
#[derive(Clone, Debug)]
pub(crate) struct Listening {
    pub(crate) errors: Arc<Errors>,
}

impl ClientContext for Listening {
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
    // One set of properties serves producers and consumers, and each kind warns of the other's.
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

/// Drops a client on a thread of its own: librdkafka joins its threads there, which would hold up an async worker.
pub(crate) struct DropElsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> DropElsewhere<T> {
    pub(crate) fn new(client: T) -> Self {
        Self(Some(client))
    }
    /// Nothing only while it is dropped.
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
        // Without a thread it is dropped by the failed call, which is slow and right.
        let _ = thread.spawn(move || drop(client));
    }
}

/// Runs a blocking call of librdkafka; each has its own timeout.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, MessageBusError> + Send + 'static,
) -> Result<T, MessageBusError> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(task_failed)?
}

/// Partitions as Kafka counts them.
pub(crate) fn kafka_number(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// What a partition holds: its oldest offset, and one past its newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) begin: Offset,
    pub(crate) end: Offset,
}

/// Asks brokers about topics. It joins no group.
pub(crate) struct Reader {
    client: DropElsewhere<BaseConsumer<Listening>>,
    errors: Arc<Errors>,
    timeout: Duration,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    pub(crate) fn new(
        config: &ClientConfig,
        errors: &Arc<Errors>,
        timeout: Duration,
    ) -> Result<Self, MessageBusError> {
        let context = Listening {
            errors: Arc::clone(errors),
        };
        let client = config
            .create_with_context(context)
            .map_err(|error| errors.failed("creating a client", Uses::nothing(), error))?;
        Ok(Self {
            client: DropElsewhere::new(client),
            errors: Arc::clone(errors),
            timeout,
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
            // Nobody else serves this client's log and problems, which would pile up; each poll serves one.
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

    /// Returns the number of partitions of a topic; blocks.
    pub(crate) fn partitions(&self, topic: &Arc<str>) -> Result<u32, MessageBusError> {
        self.topic(topic).map(|(partitions, _)| partitions)
    }

    /// A broker that is there; blocks.
    pub(crate) fn any_broker(&self) -> Result<i32, MessageBusError> {
        self.ask("looking for brokers", Uses::nothing(), |client| {
            // Brokers come with the answer about any topic, whether it exists or not; without one, with all topics.
            let metadata = client.fetch_metadata(Some("__consumer_offsets"), self.timeout)?;
            let broker = metadata.brokers().first().map(|broker| broker.id());
            broker.ok_or(KafkaError::MetadataFetch(
                RDKafkaErrorCode::BrokerNotAvailable,
            ))
        })
    }

    /// Returns the number of partitions of a topic and a broker that is there; blocks.
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

    /// What partitions hold, in their order: two questions, however many they are; blocks.
    pub(crate) fn ranges(&self, partitions: &[PartitionId]) -> Result<Vec<Range>, MessageBusError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        // The end first: a partition that is trimmed in between must not seem to begin after its end.
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

    /// `Beginning` and `End` are the special times -2 and -1 of Kafka's ListOffsets.
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

/// The topics of some partitions, each once.
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

/// The pauses before a topic that is missing on first contact is looked for again.
const APPEARANCE_PAUSES: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_millis(200));

/// Looks for a topic, for a short time also again: one that was created a moment ago is unknown to other brokers than
/// the one that created it. Blocks.
pub(crate) fn until_shown<T>(
    errors: &Errors,
    topic: &Arc<str>,
    look: impl Fn() -> Result<T, MessageBusError>,
) -> Result<T, MessageBusError> {
    // `is_first_contact` knows how long a first contact lasts.
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

/// A list for librdkafka. It must be dropped before the client that it was used with: the client would hang.
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

/// Where a group is, for each of `partitions`, from an answered list.
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

/// How many partitions metadata gives a topic.
pub(crate) fn partition_count(metadata: &Metadata, topic: &str) -> KafkaResult<u32> {
    let found = metadata.topics().iter().find(|t| t.name() == topic);
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    let found = found.ok_or(KafkaError::MetadataFetch(unknown.into()))?;
    match found.error() {
        Some(error) => Err(KafkaError::MetadataFetch(error.into())),
        // Without an error and without partitions: it is being made just now.
        None if found.partitions().is_empty() => Err(KafkaError::MetadataFetch(
            RDKafkaErrorCode::LeaderNotAvailable,
        )),
        None => Ok(u32::try_from(found.partitions().len()).unwrap_or(u32::MAX)),
    }
}
