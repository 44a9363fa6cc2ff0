//! The topics that may carry events.
use super::world::{TOPIC, World, stream};
use foldstream::{
    ports::{ControlStore, RowKey, TopicDescription},
    publisher::{PublishError, TopicError, TopicRoute},
};
use foldstream_testkit::faults::{Call, Fault, Op};

/// Creates a world with a topic of this description, and an event that waits for it.
async fn world_with(description: TopicDescription) -> World {
    let world = World::new();
    world.bus.delete_topic(TOPIC);
    world.bus.create_topic_as(TOPIC, description);
    world.append(&stream("a"), 1).await;
    world
}

/// Asserts that neither a check nor a publish accepts the topic, and that nothing is sent.
async fn refused(world: &World) -> TopicError {
    let publisher = world.publisher();
    let report = publisher.publish_pending().await.unwrap();
    assert!(
        matches!(report.failed[0].error, PublishError::Topic { .. }),
        "{report:?}"
    );
    // Other topics may still be usable.
    assert!(!report.failed[0].error.is_set_up_wrong());
    assert_eq!(report.messages, 0);
    assert_eq!(world.unpublished().await.len(), 1);
    publisher.check_topics([]).await.unwrap_err()
}

#[tokio::test]
async fn a_compacted_topic_is_refused() {
    let world = world_with(TopicDescription::new(3).with_compacted(Some(true))).await;
    let error = refused(&world).await;
    assert!(matches!(error, TopicError::Compacted { .. }));
    assert!(
        error.to_string().contains("cleanup.policy=delete"),
        "{error}"
    );
}

#[tokio::test]
async fn a_topic_of_small_records_is_refused() {
    let world = world_with(TopicDescription::new(3).with_max_message_bytes(Some(999_999))).await;
    let error = refused(&world).await;
    assert!(matches!(
        error,
        TopicError::SmallRecords { bytes: 999_999, .. }
    ));
    assert!(error.to_string().contains("max.message.bytes"), "{error}");
}

#[tokio::test]
async fn a_missing_topic_is_refused() {
    let world = World::new();
    world.bus.delete_topic(TOPIC);
    world.append(&stream("a"), 1).await;
    let error = refused(&world).await;
    assert!(matches!(error, TopicError::Bus { .. }) && !error.is_transient());
}

#[tokio::test]
async fn a_bus_that_does_not_say_more_than_partitions_is_believed() {
    let world = world_with(TopicDescription::new(3)).await;
    world.publisher().check_topics([]).await.unwrap();
    world.publisher().publish_pending().await.unwrap();
    world.assert_at_rest().await;
}

#[tokio::test]
async fn the_first_publisher_pins_the_number_of_partitions() {
    let world = World::new();
    world.publisher().check_topics([]).await.unwrap();
    let key = RowKey::new("topic", TOPIC);
    let row = world.control.get(&key).await.unwrap().unwrap();
    assert_eq!(&row.value[..], br#"{"p":3}"#);
}

#[tokio::test]
async fn a_changed_number_of_partitions_is_refused_until_it_is_accepted() {
    let world = World::new();
    world.publisher().check_topics([]).await.unwrap();
    world.bus.set_partitions(TOPIC, 5).unwrap();
    world.append(&stream("a"), 1).await;
    let error = refused(&world).await;
    assert!(matches!(
        error,
        TopicError::PartitionsChanged {
            pinned: 3,
            found: 5,
            ..
        }
    ));
    assert!(error.to_string().contains("accept_partitions"), "{error}");

    let publisher = world.publisher();
    let error = publisher.accept_partitions(TOPIC, 4).await.unwrap_err();
    assert!(matches!(
        error,
        TopicError::NotThatMany {
            accepted: 4,
            found: 5,
            ..
        }
    ));
    assert!(
        publisher.check_topics([]).await.is_err(),
        "nothing was pinned"
    );
    publisher.accept_partitions(TOPIC, 5).await.unwrap();
    publisher.check_topics([]).await.unwrap();
    publisher.publish_pending().await.unwrap();
    world.assert_at_rest().await;
}

#[tokio::test]
async fn a_topic_is_asked_about_once_and_again_after_a_failure() {
    let world = World::new();
    let publisher = world.publisher();
    world.faults.set([Fault::Unavailable.on(Op::DescribeTopic)]);
    assert!(publisher.check_topics([]).await.unwrap_err().is_transient());
    world.heal();
    publisher.check_topics([]).await.unwrap();
    world.set_fates(|call| match call {
        Call::DescribeTopic { .. } => panic!("asked again"),
        _ => None,
    });
    publisher.check_topics([]).await.unwrap();
}

#[tokio::test]
async fn each_aggregate_type_may_have_its_own_topic() {
    let world = World::new();
    world.bus.create_topic("shop.cart", 2);
    let publisher = world.publisher().with_route(TopicRoute::ByAggregate {
        prefix: "shop.".into(),
    });
    publisher.check_topics(["cart"]).await.unwrap();
    let error = publisher.check_topics(["cart", "order"]).await.unwrap_err();
    assert!(error.to_string().contains("shop.order"), "{error}");
    let commit = world.append(&stream("a"), 1).await;
    assert_eq!(publisher.publish([commit]).await.messages, 1);
    assert_eq!(
        world.records().await,
        0,
        "nothing went to the default topic"
    );
}
