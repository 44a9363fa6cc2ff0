//! The topic of dead letters: the records that other tools read, with the names of Kafka Connect.
use crate::{
    Clock, SourceUri,
    control::{DeadLetter, LetterBody},
    ports::{HeaderName, Message, MessageBus, MessageBusError, PartitionId, TopicDescription},
    to_message,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The time for which one letter is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time for which the description of the topic is believed.
const FRESH: Duration = Duration::from_secs(60);

/// The topic that gets a copy of each dead letter of one processor.
pub(super) struct LetterTopic {
    topic: Arc<str>,
    processor: Arc<str>,
    bus: Arc<dyn MessageBus>,
    clock: Arc<dyn Clock>,
    described: Mutex<Option<(Instant, TopicDescription)>>,
}

impl LetterTopic {
    pub(super) fn new(
        topic: Arc<str>,
        processor: Arc<str>,
        bus: Arc<dyn MessageBus>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            topic,
            processor,
            bus,
            clock,
            described: Mutex::new(None),
        }
    }

    /// Sends the copy of a letter about a record of this partition.
    pub(super) async fn send(
        &self,
        of: &PartitionId,
        letter: &DeadLetter,
    ) -> Result<(), MessageBusError> {
        let sent = tokio::time::timeout(PATIENCE, self.send_now(of, letter)).await;
        sent.unwrap_or_else(|_| {
            let source = format!("no answer within {PATIENCE:?}").into();
            Err(MessageBusError::Unavailable { source })
        })
    }

    async fn send_now(&self, of: &PartitionId, letter: &DeadLetter) -> Result<(), MessageBusError> {
        let described = self.describe().await?;
        let message = self.message(of, letter, described.partitions);
        let is_over = |limit: u64| message.size() as u64 > limit;
        if !described.message_limit().is_some_and(is_over) {
            match self.bus.publish(&message).await {
                Err(MessageBusError::TooLarge { .. }) => {}
                published => return published.map(drop),
            }
        }
        self.bus.publish(&without_value(message)).await.map(drop)
    }

    async fn describe(&self) -> Result<TopicDescription, MessageBusError> {
        let known = {
            let described = self.described.lock();
            described.unwrap_or_else(PoisonError::into_inner).clone()
        };
        if let Some((_, known)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(known);
        }
        let found = self.bus.describe_topic(&self.topic).await?;
        let described = self.described.lock();
        *described.unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    /// Returns the record as it came, with headers that say where it came from and why it failed.
    fn message(&self, of: &PartitionId, letter: &DeadLetter, partitions: u32) -> Message {
        let head = &letter.head;
        let (mut message, offset) = match &letter.body {
            LetterBody::Record(record) => (record.message.clone(), Some(record.offset)),
            // The event was read from the event store: its record is written again.
            LetterBody::Event(event) => {
                let source = SourceUri::default();
                (
                    to_message(event, &self.topic, &source, self.clock.now()),
                    None,
                )
            }
        };
        message.topic = self.topic.clone();
        message.timestamp = self.clock.now();
        // A record without a key has no partition of its own.
        let same = of.partition < partitions;
        message.partition = match (same, &message.key) {
            (true, _) => Some(of.partition),
            (false, Some(_)) => None,
            (false, None) => Some(of.partition % partitions.max(1)),
        };
        let offset = offset.map(|offset| offset.get().to_string());
        let headers = [
            ("__connect.errors.topic", Some(of.topic.to_string())),
            ("__connect.errors.partition", Some(of.partition.to_string())),
            ("__connect.errors.offset", offset),
            (
                "__connect.errors.exception.class.name",
                Some(head.error_type.clone()),
            ),
            (
                "__connect.errors.exception.message",
                Some(head.error.clone()),
            ),
            ("fs_processor", Some(self.processor.to_string())),
            ("fs_attempts", Some(head.attempts.to_string())),
            ("fs_fingerprint", Some(head.fingerprint.to_string())),
        ];
        for (name, value) in headers {
            if let (Ok(name), Some(value)) = (HeaderName::new(name), value) {
                message = message.with_header(name, value);
            }
        }
        message
    }
}

/// Returns a message that is over the limit without its value, and with a header that says so.
fn without_value(mut message: Message) -> Message {
    let bytes = message.value.take().map_or(0, |value| value.len());
    match HeaderName::new("fs_value_omitted") {
        Ok(name) => message.with_header(name, bytes.to_string()),
        Err(_) => message,
    }
}
