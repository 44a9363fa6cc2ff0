//! The bus during and after failures of its brokers.
use crate::mock::{
    Mock, done, fresh, from_start, message, next_assigned, next_delivery, next_result, publish,
    value,
};
use foldstream::ports::{ConsumerEvent, MessageBus, MessageBusError, RefusedKind};
use foldstream_kafka::{KafkaConfig, KafkaMessageBus};
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const SECOND: Duration = Duration::from_secs(1);

fn source_of(error: &MessageBusError) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_away_are_unavailable_and_named() {
    let config = KafkaConfig::default()
        .with_brokers("127.0.0.1:1")
        .with_request_timeout(SECOND)
        .with_publish_timeout(SECOND);
    let bus = KafkaMessageBus::new(config).unwrap();
    let topic = "orders".into();
    let errors = [
        bus.publish(&message(&topic, "k", "x"))
            .await
            .map(drop)
            .unwrap_err(),
        bus.offsets(&topic).await.map(drop).unwrap_err(),
        bus.describe_topic(&topic).await.map(drop).unwrap_err(),
        bus.committed("g", &topic).await.map(drop).unwrap_err(),
        bus.subscribe(from_start("g", &topic, 1))
            .await
            .map(drop)
            .unwrap_err(),
        bus.delete_group("g").await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_transient(), "{error:?}");
        assert!(
            source_of(&error).contains("127.0.0.1:1"),
            "{}",
            source_of(&error)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_while_the_broker_is_down_is_unavailable_and_succeeds_once_it_is_up() {
    let mock = Mock::new();
    let config = mock.config().with_publish_timeout(SECOND);
    let (bus, topic) = (KafkaMessageBus::new(config).unwrap(), mock.topic(1));
    published_in_time(&bus, &topic, "before").await;
    mock.order(|cluster| cluster.broker_down(-1).unwrap());
    let error = bus
        .publish(&message(&topic, "k", "down"))
        .await
        .unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    mock.order(|cluster| cluster.broker_up(-1).unwrap());
    published_in_time(&bus, &topic, "after").await;
}

/// Publishes a record, again if its short timeout ends on a busy machine while the broker is
/// available.
async fn published_in_time(bus: &KafkaMessageBus, topic: &Arc<str>, value: &str) {
    let deadline = Instant::now() + 60 * SECOND;
    while let Err(error) = bus.publish(&message(topic, "k", value)).await {
        assert!(error.is_transient(), "{error:?}");
        assert!(Instant::now() < deadline, "the broker is up for long");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_waiting_cures_is_retried_inside() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(1));
    bus.publish(&message(&topic, "k", "0")).await.unwrap();
    mock.order(|cluster| {
        cluster.request_errors(
            Api::Produce,
            &[
                Answer::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                Answer::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
                Answer::RD_KAFKA_RESP_ERR__TRANSPORT,
            ],
        );
    });
    let (_, offset) = bus.publish(&message(&topic, "k", "1")).await.unwrap();
    assert_eq!(offset.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_says_what_must_change() {
    for (answer, expected) in [
        (
            Answer::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RefusedKind::Permission,
        ),
        (
            Answer::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
            RefusedKind::Permission,
        ),
        (
            Answer::RD_KAFKA_RESP_ERR_INVALID_RECORD,
            RefusedKind::Validation,
        ),
    ] {
        let mock = Mock::new();
        let (bus, topic) = (mock.bus(), mock.topic(1));
        mock.order(move |cluster| cluster.request_errors(Api::Produce, &[answer]));
        let error = bus.publish(&message(&topic, "k", "1")).await.unwrap_err();
        assert!(
            matches!(error, MessageBusError::Refused { kind, .. } if kind == expected),
            "{answer:?}: {error:?}"
        );
        // The bus itself still works.
        bus.publish(&message(&topic, "k", "2")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_broker_finds_too_large_is_too_large() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(1));
    bus.publish(&message(&topic, "k", "0")).await.unwrap();
    mock.order(|cluster| {
        cluster.request_errors(
            Api::Produce,
            &[Answer::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE],
        );
    });
    let error = bus.publish(&message(&topic, "k", "1")).await.unwrap_err();
    assert!(
        matches!(error, MessageBusError::TooLarge { limit: None, .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_error_of_the_producer_is_unavailable_and_the_next_publish_succeeds() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    bus.publish(&message(&topic, "k", "0")).await.unwrap();
    mock.order(|cluster| {
        cluster.request_errors(
            Api::Produce,
            &[Answer::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER],
        );
    });
    let error = bus.publish(&message(&topic, "k", "1")).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    // A client with a fatal error refuses every further record, so another client has published
    // this one.
    bus.publish(&message(&topic, "k", "1")).await.unwrap();
    bus.publish(&message(&topic, "k", "2")).await.unwrap();
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "2") {
        seen.push(value(&next_delivery(&consumer).await).to_owned());
    }
    seen.dedup();
    assert_eq!(seen, ["0", "1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_hears_that_the_brokers_are_down_and_reads_on_and_commits_when_they_are_up() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 1).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    next_delivery(&consumer).await;
    mock.order(|cluster| cluster.broker_down(-1).unwrap());
    let error = next_result(&consumer).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(
        source_of(&error).contains(&mock.brokers),
        "{}",
        source_of(&error)
    );
    mock.order(|cluster| cluster.broker_up(-1).unwrap());
    let deadline = Instant::now() + 30 * SECOND;
    while let Err(error) = bus.publish(&message(&topic, "k", "again")).await {
        assert!(
            error.is_transient() && Instant::now() < deadline,
            "{error:?}"
        );
    }
    let again = loop {
        match next_result(&consumer).await {
            Ok(ConsumerEvent::Delivery(delivery)) if value(&delivery) == "again" => break delivery,
            Ok(_) => {}
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
        assert!(
            Instant::now() < deadline + 30 * SECOND,
            "the broker is up for long"
        );
    };
    // The same consumer commits again, without a new start.
    consumer.commit(&[done(&again)]).await.unwrap();
    let committed = bus.committed(&group, &topic).await.unwrap();
    assert_eq!(committed[0].1, Some(again.offset.next()));
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_cannot_be_asked_are_asked_again() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 1).await;
    mock.order(|cluster| {
        let denied = Answer::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
        cluster.request_errors(Api::OffsetFetch, &[denied, denied]);
    });
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    let mut refusals = 0;
    loop {
        match next_result(&consumer).await {
            Ok(ConsumerEvent::Assigned(_)) => break,
            Ok(other) => panic!("{other:?}"),
            Err(MessageBusError::Refused {
                kind: RefusedKind::Permission,
                ..
            }) => refusals += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(refusals > 0);
    assert_eq!(value(&next_delivery(&consumer).await), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_between_two_generations_is_tried_again() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 1).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let delivery = next_delivery(&consumer).await;
    mock.order(|cluster| {
        let between = Answer::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS;
        cluster.request_errors(Api::OffsetCommit, &[between, between]);
    });
    consumer.commit(&[done(&delivery)]).await.unwrap();
    let committed = bus.committed(&group, &topic).await.unwrap();
    assert_eq!(committed[0].1, Some(delivery.offset.next()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_the_group_has_forgotten_hears_that_it_lost_its_partitions() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    let id = publish(&bus, &topic, "k", 1).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    let before = next_assigned(&consumer).await[0].epoch;
    let delivery = next_delivery(&consumer).await;
    mock.order(|cluster| {
        cluster.request_errors(
            Api::Heartbeat,
            &[Answer::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID],
        );
    });
    let ConsumerEvent::Lost(lost) = next_result(&consumer).await.unwrap() else {
        panic!("not told");
    };
    assert_eq!(lost, [id]);
    let error = consumer.commit(&[done(&delivery)]).await.unwrap_err();
    assert!(
        matches!(error, MessageBusError::StaleAssignment { .. }),
        "{error:?}"
    );
    // The member joins again by itself, under a higher epoch.
    let after = next_assigned(&consumer).await[0].epoch;
    assert!(after > before);
    assert_eq!(value(&next_delivery(&consumer).await), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_while_the_brokers_are_down_ends_in_bounded_time() {
    let mock = Mock::new();
    let config = mock.config().with_request_timeout(2 * SECOND);
    let (bus, topic, group) = (
        KafkaMessageBus::new(config).unwrap(),
        mock.topic(1),
        fresh("group"),
    );
    publish(&bus, &topic, "k", 1).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    mock.order(|cluster| cluster.broker_down(-1).unwrap());
    let started = Instant::now();
    let left = consumer.leave().await;
    assert!(started.elapsed() < 30 * SECOND, "{:?}", started.elapsed());
    assert!(
        left.is_ok() || left.as_ref().is_err_and(MessageBusError::is_transient),
        "{left:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_without_administration_are_unsupported() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(2));
    let refused = |answer: Result<(), MessageBusError>| {
        assert!(
            matches!(
                answer,
                Err(MessageBusError::Refused {
                    kind: RefusedKind::Unsupported,
                    ..
                })
            ),
            "{answer:?}"
        );
    };
    refused(bus.delete_group(&fresh("group")).await);
    // Values that the brokers do not reveal are left open, and the others are returned.
    let description = bus.describe_topic(&topic).await.unwrap();
    assert_eq!(description.partitions, 2);
    assert_eq!(
        (
            description.compacted,
            description.retention,
            description.max_message_bytes
        ),
        (None, None, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_a_member_that_was_expelled_is_stale() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    publish(&bus, &topic, "k", 1).await;
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let delivery = next_delivery(&consumer).await;
    mock.order(|cluster| {
        let unknown = Answer::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID;
        cluster.request_errors(Api::OffsetCommit, &[unknown]);
    });
    let error = consumer.commit(&[done(&delivery)]).await.unwrap_err();
    assert!(
        matches!(error, MessageBusError::StaleAssignment { .. }),
        "{error:?}"
    );
    assert!(matches!(
        next_result(&consumer).await,
        Ok(ConsumerEvent::Lost(_))
    ));
}
