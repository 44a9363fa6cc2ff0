//! The logs of the in-memory message bus.
use foldstream::{
    Timestamp,
    adapter::{check_topic, kafka_partition},
    ports::{
        Message, MessageBusError, Offset, PartitionId, PartitionOffsets, RefusedKind,
        TopicDescription, TopicId,
    },
};
use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The time for which the in-memory message bus shows old metadata of a topic after a change.
///
/// A change is the creation of the topic or an increase of its partitions. Brokers that do not know
/// the change yet show old metadata in the same way. See
/// [`InMemoryMessageBus::set_metadata_lag`](super::InMemoryMessageBus::set_metadata_lag).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetadataLag {
    /// A change is shown at once. This is the default.
    #[default]
    None,
    /// A change is shown after this number of calls that ask for the topic. Members of groups learn
    /// of it when the change is shown. 0 is the same as `None`.
    Calls(u32),
    /// A change is shown after this time on tokio's clock.
    Time(Duration),
}

/// The end of a metadata lag.
#[derive(Clone, Copy, Debug)]
enum Hidden {
    /// The lag ends after this number of further calls.
    Calls(u32),
    /// The lag ends at this time.
    Until(Instant),
}

/// The last offset at which a partition may be told to end. Kafka counts offsets as `i64`.
const MAX_END: u64 = i64::MAX as u64;

/// The records of one partition.
///
/// An offset is never used twice, even if its record is deleted, and may have no record.
#[derive(Debug, Default)]
pub(super) struct Log {
    begin: u64,
    end: u64,
    records: BTreeMap<u64, Message>,
}

impl Log {
    pub(super) const fn begin(&self) -> Offset {
        Offset::new(self.begin)
    }
    pub(super) const fn end(&self) -> Offset {
        Offset::new(self.end)
    }
    /// Returns the first record at or after an offset.
    pub(super) fn next_record(&self, offset: Offset) -> Option<(Offset, &Message)> {
        let (at, message) = self.records.range(offset.get()..).next()?;
        Some((Offset::new(*at), message))
    }
    fn push(&mut self, message: Message) -> Offset {
        let offset = self.end();
        self.records.insert(self.end, message);
        self.end += 1;
        offset
    }
    fn remove(&mut self, offsets: Range<u64>) {
        self.records.retain(|offset, _| !offsets.contains(offset));
    }
    fn delete_before(&mut self, offset: Offset) {
        let begin = offset.get().min(self.end);
        if self.begin < begin {
            self.records = self.records.split_off(&begin);
            self.begin = begin;
        }
    }
}

#[derive(Debug)]
pub(super) struct Topic {
    description: TopicDescription,
    logs: Vec<Log>,
    /// The number of partitions that the metadata shows, or 0 if the topic is not known yet.
    shown: u32,
    /// The end of the lag, or `None` if the metadata is up to date.
    hidden: Option<Hidden>,
}

impl Topic {
    fn new(id: TopicId, mut description: TopicDescription) -> Self {
        description.partitions = description.partitions.max(1);
        let logs = (0..description.partitions).map(|_| Log::default());
        let description = description.with_topic_id(Some(id));
        Self {
            logs: logs.collect(),
            shown: 0,
            hidden: None,
            description,
        }
    }

    /// Shows a change of the partitions after the lag.
    fn change(&mut self, lag: MetadataLag, now: Instant) {
        self.hidden = match lag {
            MetadataLag::None | MetadataLag::Calls(0) => None,
            MetadataLag::Calls(calls) => Some(Hidden::Calls(calls)),
            MetadataLag::Time(time) => Some(Hidden::Until(now + time)),
        };
        if self.hidden.is_none() {
            self.shown = self.description.partitions;
        }
    }

    /// Shows the current partitions if the lag is over. Returns true if that changes the metadata.
    fn show_if_due(&mut self, now: Instant) -> bool {
        let is_due = match self.hidden {
            None => false,
            Some(Hidden::Calls(left)) => left == 0,
            Some(Hidden::Until(end)) => end <= now,
        };
        if is_due {
            self.hidden = None;
            self.shown = self.description.partitions;
        }
        is_due
    }
}

/// All topics of a message bus.
#[derive(Debug, Default)]
pub(super) struct Topics {
    by_name: BTreeMap<Arc<str>, Topic>,
    /// The number of topics that were ever created, so that a topic that is created again gets a
    /// new id.
    created: u64,
    lag: MetadataLag,
    /// The time at which the next change is shown without a call.
    next_shown: Option<Instant>,
}

impl Topics {
    pub(super) fn set_lag(&mut self, lag: MetadataLag) {
        self.lag = lag;
    }
    /// Returns true if the topic was created now.
    pub(super) fn create(&mut self, name: Arc<str>, description: TopicDescription) -> bool {
        let is_new = !self.by_name.contains_key(&name);
        if is_new {
            self.created += 1;
            let id = TopicId::new(format!("topic-{}", self.created));
            let mut topic = Topic::new(id, description);
            topic.change(self.lag, Instant::now());
            self.by_name.insert(name, topic);
            self.plan();
        }
        is_new
    }
    pub(super) fn delete(&mut self, name: &str) {
        self.by_name.remove(name);
        self.plan();
    }

    /// Counts a call that asks for a topic. Returns true if the call shows a change.
    pub(super) fn ask(&mut self, name: &str) -> bool {
        let Some(topic) = self.by_name.get_mut(name) else {
            return false;
        };
        if topic.show_if_due(Instant::now()) {
            self.plan();
            return true;
        }
        if let Some(Hidden::Calls(left)) = &mut topic.hidden {
            *left = left.saturating_sub(1);
        }
        false
    }
    /// Returns the time at which the next change is shown without a call.
    pub(super) const fn next_shown(&self) -> Option<Instant> {
        self.next_shown
    }
    /// Shows all changes that are due. Returns true if there was one.
    pub(super) fn show_due(&mut self, now: Instant) -> bool {
        if self.next_shown.is_none_or(|at| now < at) {
            return false;
        }
        for topic in self.by_name.values_mut() {
            if matches!(topic.hidden, Some(Hidden::Until(_))) {
                topic.show_if_due(now);
            }
        }
        self.plan();
        true
    }
    fn plan(&mut self) {
        let ends = self
            .by_name
            .values()
            .filter_map(|topic| match topic.hidden {
                Some(Hidden::Until(end)) => Some(end),
                _ => None,
            });
        self.next_shown = ends.min();
    }
    /// Returns the id of the topic that has this name now.
    pub(super) fn id(&self, name: &str) -> Option<&TopicId> {
        self.by_name.get(name)?.description.topic_id.as_ref()
    }
    fn topic_mut(&mut self, name: &str) -> Result<&mut Topic, MessageBusError> {
        self.by_name.get_mut(name).ok_or_else(|| missing(name))
    }
    fn log_mut(&mut self, partition: &PartitionId) -> Result<&mut Log, MessageBusError> {
        let topic = self.topic_mut(&partition.topic)?;
        let log = topic.logs.get_mut(partition.partition as usize);
        log.ok_or_else(|| MessageBusError::Invalid {
            reason: format!("there is no partition {partition}"),
        })
    }
    pub(super) fn grow(&mut self, name: &str, partitions: u32) -> Result<(), MessageBusError> {
        let lag = self.lag;
        let topic = self.topic_mut(name)?;
        if partitions < topic.description.partitions {
            return Err(MessageBusError::Invalid {
                reason: format!(
                    "topic {name} has {} partitions already: they cannot be taken away",
                    topic.description.partitions
                ),
            });
        }
        if partitions == topic.description.partitions {
            return Ok(());
        }
        topic.description.partitions = partitions;
        topic.logs.resize_with(partitions as usize, Log::default);
        topic.change(lag, Instant::now());
        self.plan();
        Ok(())
    }

    /// Returns the topic if the metadata shows it.
    fn topic(&self, name: &str) -> Result<(&Arc<str>, &Topic), MessageBusError> {
        check_topic(name)?;
        let found = self.by_name.get_key_value(name);
        let shown = found.filter(|(_, topic)| topic.shown > 0);
        shown.ok_or_else(|| missing(name))
    }
    /// Returns true if the metadata shows the topic.
    pub(super) fn is_shown(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|topic| topic.shown > 0)
    }
    pub(super) fn describe(&self, name: &str) -> Result<TopicDescription, MessageBusError> {
        let (_, topic) = self.topic(name)?;
        let mut description = topic.description.clone();
        description.partitions = topic.shown;
        Ok(description)
    }
    pub(super) fn partitions(&self, name: &str) -> Result<Vec<PartitionId>, MessageBusError> {
        let (name, topic) = self.topic(name)?;
        let numbers = 0..topic.shown;
        Ok(numbers.map(|p| PartitionId::new(name.clone(), p)).collect())
    }
    pub(super) fn log(&self, partition: &PartitionId) -> Option<&Log> {
        let topic = self.by_name.get(&partition.topic)?;
        topic.logs.get(partition.partition as usize)
    }
    pub(super) fn offsets(&self, name: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        let (_, topic) = self.topic(name)?;
        let offsets = self.partitions(name)?.into_iter().zip(&topic.logs);
        Ok(offsets
            .map(|(id, log)| PartitionOffsets::new(id, log.begin(), log.end()))
            .collect())
    }

    pub(super) fn publish(
        &mut self,
        message: &Message,
    ) -> Result<(PartitionId, Offset), MessageBusError> {
        let name = &message.topic;
        check_topic(name)?;
        // Kafka keeps whole milliseconds, so this bus must not keep more either.
        let millis = message.timestamp.as_micros().div_euclid(1000);
        if millis <= 0 {
            return Err(MessageBusError::Invalid {
                reason: format!(
                    "the timestamp {} is not after 1970-01-01T00:00:00Z, which Kafka cannot keep",
                    message.timestamp
                ),
            });
        }
        self.topic(name)?;
        let topic = self.topic_mut(name)?;
        if topic.description.compacted == Some(true) && message.key.is_none() {
            return Err(keyless(name));
        }
        let (bytes, limit) = (message.size(), topic.description.message_limit());
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        if limit.is_some_and(|limit| bytes > limit) {
            return Err(MessageBusError::TooLarge {
                topic: name.clone(),
                bytes,
                limit,
            });
        }
        let number = partition_of(message, topic.shown)?;
        let mut stored = message.clone();
        stored.partition = Some(number);
        stored.timestamp = Timestamp::from_micros(millis * 1000);
        let offset = topic.logs[number as usize].push(stored);
        Ok((PartitionId::new(name.clone(), number), offset))
    }

    pub(super) fn delete_before(
        &mut self,
        partition: &PartitionId,
        offset: Offset,
    ) -> Result<(), MessageBusError> {
        self.log_mut(partition)?.delete_before(offset);
        Ok(())
    }

    pub(super) fn remove(
        &mut self,
        partition: &PartitionId,
        offsets: Range<u64>,
    ) -> Result<(), MessageBusError> {
        self.log_mut(partition)?.remove(offsets);
        Ok(())
    }

    pub(super) fn skip(
        &mut self,
        partition: &PartitionId,
        offsets: u64,
    ) -> Result<(), MessageBusError> {
        let log = self.log_mut(partition)?;
        if offsets > MAX_END.saturating_sub(log.end) {
            return Err(MessageBusError::Invalid {
                reason: format!(
                    "{partition} ends at offset {}: after {offsets} more it would end after {MAX_END}, the last offset of a \
                     Kafka partition",
                    log.end
                ),
            });
        }
        log.end += offsets;
        Ok(())
    }
}

/// Returns the partition that a message names, or else the one of its key.
fn partition_of(message: &Message, partitions: u32) -> Result<u32, MessageBusError> {
    match (message.partition, &message.key) {
        (Some(named), _) if named < partitions => Ok(named),
        (Some(named), _) => Err(MessageBusError::Refused {
            kind: RefusedKind::UnknownPartition,
            reason: format!(
                "topic {} has {partitions} partitions and no partition {named}: name another, or add partitions",
                message.topic
            ),
            source: "unknown partition".into(),
        }),
        (None, Some(key)) => Ok(kafka_partition(key, partitions)),
        (None, None) => Err(MessageBusError::Invalid {
            reason: "a message has neither a key nor a partition: set one of them".into(),
        }),
    }
}

/// Returns the refusal of a message without a key by a compacted topic.
fn keyless(topic: &str) -> MessageBusError {
    MessageBusError::Refused {
        kind: RefusedKind::Validation,
        reason: format!("topic {topic} is compacted and takes no message without a key: set one"),
        source: "the record is invalid".into(),
    }
}

pub(super) fn missing(topic: &str) -> MessageBusError {
    MessageBusError::Refused {
        kind: RefusedKind::MissingTopic,
        reason: format!("topic {topic} does not exist: create it first"),
        source: "the in-memory bus does not have it".into(),
    }
}
