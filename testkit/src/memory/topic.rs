//! The logs of the in-memory message bus.
use foldstream::{
    Timestamp, kafka_partition,
    ports::{
        Message, MessageBusError, Offset, PartitionId, PartitionOffsets, RefusedKind,
        TopicDescription, TopicId,
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// The records of one partition. An offset is never used twice, whatever is deleted, and need not hold a record.
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
    /// The first record at this offset or after it.
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
    fn skip(&mut self, offsets: u64) {
        self.end = self.end.saturating_add(offsets);
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
}

impl Topic {
    fn new(id: TopicId, mut description: TopicDescription) -> Self {
        description.partitions = description.partitions.max(1);
        let logs = (0..description.partitions).map(|_| Log::default());
        let description = description.with_topic_id(Some(id));
        Self {
            logs: logs.collect(),
            description,
        }
    }
}

/// All topics of a bus.
#[derive(Debug, Default)]
pub(super) struct Topics {
    by_name: BTreeMap<Arc<str>, Topic>,
    /// Counts the topics that were ever created, so that each life of a topic has an id of its own.
    created: u64,
}

impl Topics {
    /// Returns true if the topic was created now.
    pub(super) fn create(&mut self, name: Arc<str>, description: TopicDescription) -> bool {
        let is_new = !self.by_name.contains_key(&name);
        if is_new {
            self.created += 1;
            let id = TopicId::new(format!("topic-{}", self.created));
            self.by_name.insert(name, Topic::new(id, description));
        }
        is_new
    }
    pub(super) fn delete(&mut self, name: &str) {
        self.by_name.remove(name);
    }
    /// The id of the topic that has this name now.
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
        let topic = self.topic_mut(name)?;
        if partitions < topic.description.partitions {
            return Err(MessageBusError::Invalid {
                reason: format!(
                    "topic {name} has {} partitions already: they cannot be taken away",
                    topic.description.partitions
                ),
            });
        }
        topic.description.partitions = partitions;
        topic.logs.resize_with(partitions as usize, Log::default);
        Ok(())
    }

    fn topic(&self, name: &str) -> Result<&Topic, MessageBusError> {
        self.by_name.get(name).ok_or_else(|| missing(name))
    }
    pub(super) fn describe(&self, name: &str) -> Result<TopicDescription, MessageBusError> {
        Ok(self.topic(name)?.description.clone())
    }
    pub(super) fn partitions(&self, name: &str) -> Result<Vec<PartitionId>, MessageBusError> {
        let found = self.by_name.get_key_value(name);
        let (name, topic) = found.ok_or_else(|| missing(name))?;
        let partitions = 0..topic.description.partitions;
        Ok(partitions
            .map(|p| PartitionId::new(name.clone(), p))
            .collect())
    }
    pub(super) fn log(&self, partition: &PartitionId) -> Option<&Log> {
        let topic = self.by_name.get(&partition.topic)?;
        topic.logs.get(partition.partition as usize)
    }
    pub(super) fn offsets(&self, name: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        let logs = &self.topic(name)?.logs;
        let offsets = self.partitions(name)?.into_iter().zip(logs);
        Ok(offsets
            .map(|(id, log)| PartitionOffsets::new(id, log.begin(), log.end()))
            .collect())
    }

    pub(super) fn publish(
        &mut self,
        message: &Message,
    ) -> Result<(PartitionId, Offset), MessageBusError> {
        let name = &message.topic;
        let topic = self.topic_mut(name)?;
        let (bytes, limit) = (message.size(), topic.description.message_limit());
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        if limit.is_some_and(|limit| bytes > limit) {
            return Err(MessageBusError::TooLarge {
                topic: name.clone(),
                bytes,
                limit,
            });
        }
        let number = partition_of(message, topic.description.partitions)?;
        let mut stored = message.clone();
        stored.partition = Some(number);
        // Kafka keeps milliseconds; what is finer must not survive here either.
        let millis = message.timestamp.as_micros().div_euclid(1000);
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

    pub(super) fn skip(
        &mut self,
        partition: &PartitionId,
        offsets: u64,
    ) -> Result<(), MessageBusError> {
        self.log_mut(partition)?.skip(offsets);
        Ok(())
    }
}

/// The partition that a message names, or else the one of its key.
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

fn missing(topic: &str) -> MessageBusError {
    MessageBusError::Refused {
        kind: RefusedKind::MissingTopic,
        reason: format!("topic {topic} does not exist: create it first"),
        source: "the in-memory bus does not have it".into(),
    }
}
