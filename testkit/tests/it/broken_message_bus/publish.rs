//! Buses that break a rule of publishing, or report wrong facts about a topic.
use super::{Committed, Offsets, Published, Sabotage, Suspects, broken};
use async_trait::async_trait;
use foldstream::{
    Timestamp,
    adapter::kafka_partition,
    ports::{Message, MessageBus, MessageBusError, Offset, RefusedKind, TopicDescription},
};
use foldstream_testkit::InMemoryMessageBus;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<CountsAcknowledgedLate>(&["offsets_count_every_published_message"]).and_by(&[
            "messages_published_at_once_have_places_of_their_own",
            "a_message_over_the_limit_is_too_large",
            "a_timestamp_that_the_bus_cannot_keep_is_invalid",
            "a_run_is_durable_in_its_order",
            "a_run_that_breaks_off_is_durable_up_to_some_message",
            "a_position_that_retention_has_passed_is_out_of_range",
            "a_position_reaches_the_end_after_a_hole",
            "records_after_a_hole_are_delivered",
            "a_paused_partition_reaches_nothing",
            "a_reached_offset_can_be_committed",
        ]),
        broken::<TakesEmptyKeysForNone>(&[
            "messages_of_one_key_have_rising_offsets_in_the_keys_partition",
        ])
        .and_by(&["everything_of_a_message_arrives_as_sent"]),
        broken::<IgnoresNamedPartitions>(&["a_message_goes_to_the_partition_that_it_names"])
            .and_by(&[
                "a_partition_that_the_topic_lacks_is_refused",
                "a_topic_that_grows_moves_no_message_that_names_its_partition",
            ]),
        broken::<TakesPartitionZeroForNone>(&["a_message_without_key_and_partition_is_invalid"]),
        broken::<WrapsPartitions>(&["a_partition_that_the_topic_lacks_is_refused"])
            .and_by(&["a_topic_that_grows_moves_no_message_that_names_its_partition"]),
        broken::<CountsPartitionsOnce>(&[
            "a_topic_that_grows_moves_no_message_that_names_its_partition",
        ]),
        broken::<GuessesPlaces>(&["messages_published_at_once_have_places_of_their_own"])
            .and_by(&["messages_published_while_a_member_reads_are_delivered_once"]),
        broken::<MakesTopics>(&["a_missing_topic_is_refused_and_never_made"])
            .and_by(&["a_name_that_no_topic_can_have_is_invalid"]),
        broken::<LooksForEveryName>(&["a_name_that_no_topic_can_have_is_invalid"]),
        broken::<TakesTheTimeOfArrival>(&["a_timestamp_that_the_bus_cannot_keep_is_invalid"]),
        broken::<CutsLargeMessages>(&["a_message_over_the_limit_is_too_large"]),
        broken::<DescribesOnePartition>(&["a_topic_is_described_with_its_partitions"])
            .and_by(&["a_topic_that_grows_moves_no_message_that_names_its_partition"]),
        broken::<StartsGroupsAtZero>(&["an_unknown_group_has_committed_nothing"]).and_by(&[
            "a_partition_without_position_is_missing_and_delivers_nothing",
            "a_commit_is_stored_when_it_returns",
            "a_commit_under_another_epoch_is_stale_and_stores_nothing",
            "after_leave_everything_is_closed",
            "a_commit_during_a_revocation_counts",
            "a_deleted_group_is_forgotten",
            "a_recreated_topic_has_no_committed_offsets",
            "a_running_member_never_continues_in_a_recreated_topic",
        ]),
    ]
}

/// Does not count the newest message.
#[derive(Debug, Default)]
struct CountsAcknowledgedLate;
#[async_trait]
impl Sabotage for CountsAcknowledgedLate {
    async fn offsets(&self, bus: &InMemoryMessageBus, topic: &str) -> Offsets {
        let mut offsets = bus.offsets(topic).await?;
        for partition in &mut offsets {
            let newest = partition.end.get().saturating_sub(1);
            partition.end = partition.begin.max(Offset::new(newest));
        }
        Ok(offsets)
    }
}

/// Spreads messages with an empty key over all partitions.
#[derive(Debug, Default)]
struct TakesEmptyKeysForNone(AtomicU32);
#[async_trait]
impl Sabotage for TakesEmptyKeysForNone {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        let mut message = message.clone();
        if message.key.as_ref().is_some_and(|key| key.is_empty()) {
            let spread = self.0.fetch_add(1, Ordering::SeqCst).to_string();
            message.key = Some(spread.into());
        }
        bus.publish(&message).await
    }
}

/// Sends every message that has a key to the partition of its key.
#[derive(Debug, Default)]
struct IgnoresNamedPartitions;
#[async_trait]
impl Sabotage for IgnoresNamedPartitions {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        let mut message = message.clone();
        if message.key.is_some() {
            message.partition = None;
        }
        bus.publish(&message).await
    }
}

#[derive(Debug, Default)]
struct TakesPartitionZeroForNone;
#[async_trait]
impl Sabotage for TakesPartitionZeroForNone {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        let mut message = message.clone();
        if message.key.is_none() {
            message.partition.get_or_insert(0);
        }
        bus.publish(&message).await
    }
}

/// Sends a message for a missing partition to an existing one.
#[derive(Debug, Default)]
struct WrapsPartitions;
#[async_trait]
impl Sabotage for WrapsPartitions {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        let mut message = message.clone();
        let count = bus.offsets(&message.topic).await?.len();
        message.partition = message.partition.map(|p| p % u32::try_from(count).unwrap());
        bus.publish(&message).await
    }
}

/// Refuses partitions that were added after the first message to the topic.
#[derive(Debug, Default)]
struct CountsPartitionsOnce(Mutex<BTreeMap<Arc<str>, u32>>);
#[async_trait]
impl Sabotage for CountsPartitionsOnce {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        let count = u32::try_from(bus.offsets(&message.topic).await?.len()).unwrap();
        let count = *self
            .0
            .lock()
            .unwrap()
            .entry(message.topic.clone())
            .or_insert(count);
        let mut message = message.clone();
        message.partition = message
            .partition
            .map(|p| if p < count { p } else { u32::MAX });
        bus.publish(&message).await
    }
}

/// Takes the end before the send for the offset of the message.
#[derive(Debug, Default)]
struct GuessesPlaces;
#[async_trait]
impl Sabotage for GuessesPlaces {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        let offsets = bus.offsets(&message.topic).await?;
        let count = u32::try_from(offsets.len()).unwrap();
        let of_key = || kafka_partition(message.key.as_deref().unwrap_or_default(), count);
        let partition = message.partition.unwrap_or_else(of_key);
        let guess = offsets.get(partition as usize).map(|o| o.end);
        tokio::task::yield_now().await;
        let (id, sound) = bus.publish(message).await?;
        Ok((id, guess.unwrap_or(sound)))
    }
}

#[derive(Debug, Default)]
struct MakesTopics;
#[async_trait]
impl Sabotage for MakesTopics {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        bus.create_topic(message.topic.clone(), 1);
        bus.publish(message).await
    }
}

/// Looks for a topic before it validates the name.
#[derive(Debug, Default)]
struct LooksForEveryName;
#[async_trait]
impl Sabotage for LooksForEveryName {
    async fn offsets(&self, bus: &InMemoryMessageBus, topic: &str) -> Offsets {
        bus.offsets(topic).await.map_err(|error| match error {
            MessageBusError::Invalid { reason } => MessageBusError::Refused {
                kind: RefusedKind::MissingTopic,
                source: "looked for".into(),
                reason,
            },
            other => other,
        })
    }
}

/// Treats a timestamp that cannot be kept as missing, as librdkafka treats 0.
#[derive(Debug, Default)]
struct TakesTheTimeOfArrival;
#[async_trait]
impl Sabotage for TakesTheTimeOfArrival {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        let mut message = message.clone();
        message.timestamp = message.timestamp.max(Timestamp::from_micros(1_000));
        bus.publish(&message).await
    }
}

#[derive(Debug, Default)]
struct CutsLargeMessages;
#[async_trait]
impl Sabotage for CutsLargeMessages {
    async fn publish(&self, bus: &InMemoryMessageBus, message: &Message) -> Published {
        match bus.publish(message).await {
            Err(MessageBusError::TooLarge { .. }) => {
                let mut cut = message.clone();
                cut.value = message.value.as_ref().map(|value| value.slice(..1000));
                bus.publish(&cut).await
            }
            other => other,
        }
    }
}

#[derive(Debug, Default)]
struct DescribesOnePartition;
#[async_trait]
impl Sabotage for DescribesOnePartition {
    fn described(&self, mut sound: TopicDescription) -> TopicDescription {
        sound.partitions = 1;
        sound
    }
}

#[derive(Debug, Default)]
struct StartsGroupsAtZero;
#[async_trait]
impl Sabotage for StartsGroupsAtZero {
    async fn committed(&self, bus: &InMemoryMessageBus, group: &str, topic: &str) -> Committed {
        let mut committed = bus.committed(group, topic).await?;
        for (_, offset) in &mut committed {
            *offset = offset.or(Some(Offset::new(0)));
        }
        Ok(committed)
    }
}
