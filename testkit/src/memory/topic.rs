//! The logs of the in-memory message bus.
use foldstream::{
    Timestamp, kafka_partition,
    ports::{
        Message, MessageBusError, Offset, PartitionId, PartitionOffsets, RefusedKind,
        TopicDescription,
    },
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// One partition: offsets are never used twice, whatever is deleted.
#[derive(Debug, Default)]
pub(super) struct Log {
    begin: u64,
    records: VecDeque<Message>,
}

impl Log {
    pub(super) const fn begin(&self) -> Offset {
        Offset::new(self.begin)
    }
    pub(super) fn end(&self) -> Offset {
        Offset::new(self.begin + self.records.len() as u64)
    }
    pub(super) fn get(&self, offset: Offset) -> Option<&Message> {
        let index = offset.get().checked_sub(self.begin)?;
        self.records.get(usize::try_from(index).ok()?)
    }
    fn push(&mut self, message: Message) -> Offset {
        let offset = self.end();
        self.records.push_back(message);
        offset
    }
    fn delete_before(&mut self, offset: Offset) {
        while self.begin < offset.get() && self.records.pop_front().is_some() {
            self.begin += 1;
        }
    }
}

#[derive(Debug)]
pub(super) struct Topic {
    description: TopicDescription,
    logs: Vec<Log>,
}

impl Topic {
    fn new(mut description: TopicDescription) -> Self {
        description.partitions = description.partitions.max(1);
        let logs = (0..description.partitions).map(|_| Log::default());
        Self {
            logs: logs.collect(),
            description,
        }
    }
}

/// All topics of a bus.
#[derive(Debug, Default)]
pub(super) struct Topics(BTreeMap<Arc<str>, Topic>);

impl Topics {
    /// Whether it was made now.
    pub(super) fn create(&mut self, name: Arc<str>, description: TopicDescription) -> bool {
        let is_new = !self.0.contains_key(&name);
        if is_new {
            self.0.insert(name, Topic::new(description));
        }
        is_new
    }
    pub(super) fn delete(&mut self, name: &str) {
        self.0.remove(name);
    }
    pub(super) fn grow(&mut self, name: &str, partitions: u32) -> Result<(), MessageBusError> {
        let topic = self.0.get_mut(name).ok_or_else(|| missing(name))?;
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
        self.0.get(name).ok_or_else(|| missing(name))
    }
    pub(super) fn describe(&self, name: &str) -> Result<TopicDescription, MessageBusError> {
        Ok(self.topic(name)?.description.clone())
    }
    pub(super) fn partitions(&self, name: &str) -> Result<Vec<PartitionId>, MessageBusError> {
        let (name, topic) = self.0.get_key_value(name).ok_or_else(|| missing(name))?;
        let partitions = 0..topic.description.partitions;
        Ok(partitions
            .map(|p| PartitionId::new(name.clone(), p))
            .collect())
    }
    pub(super) fn log(&self, partition: &PartitionId) -> Option<&Log> {
        let topic = self.0.get(&partition.topic)?;
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
        let topic = self.0.get_mut(name).ok_or_else(|| missing(name))?;
        let (bytes, limit) = (message.size(), topic.description.max_message_bytes);
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
        let name = &partition.topic;
        let topic = self.0.get_mut(name).ok_or_else(|| missing(name))?;
        let log = topic.logs.get_mut(partition.partition as usize);
        let log = log.ok_or_else(|| MessageBusError::Invalid {
            reason: format!("there is no partition {partition}"),
        })?;
        log.delete_before(offset);
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
        source: "unknown topic".into(),
    }
}
