//! A topic that was deleted and created again is never read from an old position.
//!
//! The mock cluster cannot delete topics, so the live tests cover the rest.
use crate::mock::{
    Mock, done, fresh, from_start, next, next_assigned, next_delivery, publish, value,
};
use foldstream::ports::{ConsumerEvent, MessageBus, NoPosition, PartitionId};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
};
use std::{sync::Arc, time::Duration};

/// Returns a client of another program, in the same group.
fn other_program(mock: &Mock, group: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &mock.brokers)
        .set("group.id", group);
    config.create().unwrap()
}

fn commit_with_metadata(mock: &Mock, group: &str, topic: &Arc<str>, offset: i64, metadata: &str) {
    let client = other_program(mock, group);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset))
        .unwrap();
    let mut element = list.find_partition(topic, 0).unwrap();
    element.set_metadata(metadata);
    client.commit(&list, CommitMode::Sync).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_carries_the_id_of_its_topic() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 2).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let delivery = next_delivery(&consumer).await;
    consumer.commit(&[done(&delivery)]).await.unwrap();
    consumer.leave().await.unwrap();
    let metadata = tokio::task::spawn_blocking(move || {
        let client = other_program(&mock, &group);
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, 0);
        let answer = client
            .committed_offsets(list, Duration::from_secs(10))
            .unwrap();
        answer
            .find_partition(&topic, 0)
            .unwrap()
            .metadata()
            .to_owned()
    });
    let metadata = metadata.await.unwrap();
    let id = metadata.strip_prefix("topic-id=").unwrap();
    assert_eq!(id.len(), 22, "{metadata}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_was_committed_for_another_topic_of_that_name_is_not_used() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 4).await;
    commit_with_metadata(&mock, &group, &topic, 2, "topic-id=1234567890123456789012");
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    let mut assigned = None;
    loop {
        match next(&consumer).await {
            // The id of the topic may become known only after the assignment.
            ConsumerEvent::Assigned(assignment) => {
                assigned = assignment.partitions.first().cloned();
            }
            ConsumerEvent::NoPosition(partition, why) => {
                let expected = PartitionId::new(Arc::clone(&topic), 0);
                break assert_eq!((partition, why), (expected, NoPosition::Recreated));
            }
            other => panic!("{other:?}"),
        }
    }
    // The offset is not committed for the new topic either.
    if let Some(own) = assigned {
        let commit = foldstream::ports::OffsetCommit::new(own.partition, own.epoch, own.next);
        let error = consumer.commit(&[commit]).await.unwrap_err();
        let is_stale = matches!(
            error,
            foldstream::ports::MessageBusError::StaleAssignment { .. }
        );
        assert!(is_stale, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_another_tool_has_committed_is_used() {
    for metadata in ["", "reset by hand"] {
        let mock = Mock::new();
        let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
        publish(&bus, &topic, "k", 4).await;
        commit_with_metadata(&mock, &group, &topic, 2, metadata);
        let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
        next_assigned(&consumer).await;
        assert_eq!(value(&next_delivery(&consumer).await), "2");
    }
}
