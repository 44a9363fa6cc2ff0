//! Publishes: their partitions, their limits, and their acknowledgements.
use crate::mock::{Mock, fresh, from_start, message, next_assigned, next_delivery, publish, value};
use foldstream::{
    CommitId, SourceUri, StreamHead, StreamId, Timestamp,
    adapter::{kafka_partition, to_message},
    ports::{
        Append, AppendOutcome, EventData, EventStore, HeaderName, Message, MessageBus,
        MessageBusError, RefusedKind,
    },
    publisher::{Publisher, TopicRoute},
};
use foldstream_kafka::KafkaMessageBus;
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore};
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_as_it_was_sent() {
    let (mock, group) = (Mock::new(), fresh("group"));
    let (bus, topic) = (mock.bus(), mock.topic(1));
    let at = Timestamp::from_micros(1_700_000_000_123_456);
    let name = HeaderName::from_static;
    let new = || Message::new(Arc::clone(&topic), at).with_partition(0);
    let full = new()
        .with_key(vec![0, 255])
        .with_value(vec![1, 0, 2])
        .with_header(name("a"), "1")
        .with_header(name("b"), vec![0, 255])
        .with_header(name("a"), "2")
        .with_header(name("empty"), "")
        .with_null_header(name("null"));
    let tombstone = new().with_key("k");
    let empty = new().with_key("").with_value("");
    let keyless = new().with_value("x");
    for message in [&full, &tombstone, &empty, &keyless] {
        bus.publish(message).await.unwrap();
    }
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    for mut sent in [full, tombstone, empty, keyless] {
        sent.timestamp = Timestamp::from_micros(1_700_000_000_123_000);
        assert_eq!(next_delivery(&consumer).await.message, sent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_to_the_partition_of_its_key() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(7));
    for n in 0..50 {
        let key = format!("cart#{n}");
        let (place, _) = bus.publish(&message(&topic, &key, "x")).await.unwrap();
        assert_eq!(place.partition, kafka_partition(key.as_bytes(), 7), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn awaited_messages_of_a_key_have_rising_offsets() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(3));
    let mut last = None;
    for n in 0..20 {
        let (_, offset) = bus
            .publish(&message(&topic, "k", &n.to_string()))
            .await
            .unwrap();
        assert!(last < Some(offset), "{last:?} then {offset}");
        last = Some(offset);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_messages_do_not_wait_for_each_other() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(1));
    bus.publish(&message(&topic, "warm", "up")).await.unwrap();
    let delay = std::time::Duration::from_millis(300);
    mock.order(move |cluster| cluster.broker_round_trip_time(1, delay).unwrap());
    let started = tokio::time::Instant::now();
    let sends: Vec<_> = (0..20)
        .map(|n| {
            let (bus, message) = (bus.clone(), message(&topic, &n.to_string(), "x"));
            tokio::spawn(async move { bus.publish(&message).await.map(|(_, offset)| offset) })
        })
        .collect();
    let mut offsets = Vec::new();
    for send in sends {
        offsets.push(send.await.unwrap().unwrap());
    }
    // One after the other, they would take 20 round trips of 6 s in all.
    assert!(started.elapsed() < delay * 10, "{:?}", started.elapsed());
    offsets.sort();
    offsets.dedup();
    assert_eq!(offsets.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_is_refused_and_never_made() {
    let mock = Mock::new();
    let bus = mock.bus();
    let topic: Arc<str> = fresh("nowhere").into();
    for _ in 0..2 {
        let error = bus.publish(&message(&topic, "k", "x")).await.unwrap_err();
        let MessageBusError::Refused { kind, reason, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*kind, RefusedKind::MissingTopic);
        assert!(
            reason.contains(&*topic) && reason.contains("create it"),
            "{reason}"
        );
    }
    let error = bus.describe_topic(&topic).await.unwrap_err();
    assert!(matches!(
        error,
        MessageBusError::Refused {
            kind: RefusedKind::MissingTopic,
            ..
        }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_later_is_found() {
    let mock = Mock::new();
    let bus = mock.bus();
    let topic: Arc<str> = fresh("later").into();
    bus.publish(&message(&topic, "k", "x")).await.unwrap_err();
    let name = topic.to_string();
    mock.order(move |cluster| cluster.create_topic(&name, 2, 1).unwrap());
    bus.publish(&message(&topic, "k", "x")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_too_large_and_the_next_one_goes() {
    let mock = Mock::new();
    let topic = mock.topic(1);
    let config = mock.config().with_max_message_bytes(10_000);
    let bus = KafkaMessageBus::new(config).unwrap();
    let error = bus
        .publish(&message(&topic, "k", &"x".repeat(20_000)))
        .await
        .unwrap_err();
    let MessageBusError::TooLarge { bytes, limit, .. } = error else {
        panic!("{error:?}");
    };
    // The record's own lengths and times, and its batch, count too.
    assert_eq!((bytes, limit), (20_001, Some(9_903)));
    bus.publish(&message(&topic, "k", "x")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_just_the_described_limit_is_sent() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(1));
    let described = bus.describe_topic(&topic).await.unwrap();
    let limit = usize::try_from(described.message_limit().unwrap()).unwrap();
    let plain = message(&topic, "k", "");
    let mut many_headers = plain.clone();
    for n in 0..100 {
        // Three bytes hold the length of the value, and two the length of the name.
        let name = HeaderName::new(format!("{n:0>70}")).unwrap();
        many_headers = many_headers.with_header(name, vec![b'x'; 9_000]);
    }
    let null_header = HeaderName::from_static("null");
    let null_header = plain.clone().with_null_header(null_header);
    for message in [plain, many_headers, null_header] {
        let rest = limit - message.size();
        let at = message.clone().with_value(vec![b'x'; rest]);
        assert_eq!(at.size(), limit);
        bus.publish(&at).await.unwrap();
        let over = message.with_value(vec![b'x'; rest + 100]);
        let error = bus.publish(&over).await.unwrap_err();
        assert!(
            matches!(error, MessageBusError::TooLarge { limit: Some(named), .. } if named == limit),
            "{error:?}"
        );
    }
}

/// The publisher checks the sizes of all records first, so that no commit is sent in part.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_with_a_record_of_just_the_limit_is_sent_whole_and_one_above_not_at_all() {
    let mock = Mock::new();
    let config = mock.config().with_max_message_bytes(100_000);
    let bus = KafkaMessageBus::new(config).unwrap();
    for over in [0, 1, 61, 62, 97, 98] {
        let topic = mock.topic(1);
        let commit_of = |bytes: usize| {
            let large = format!("\"{}\"", "x".repeat(bytes));
            let events = vec![
                EventData::new("Deposited", 1, "{}"),
                EventData::new("Deposited", 1, large),
            ];
            let head = StreamHead::empty(StreamId::new("account", "1").unwrap());
            Append::after(
                head,
                CommitId::from_u128(7),
                Timestamp::from_micros(1),
                events,
            )
        };
        let size = |append: &Append| {
            let last = append.to_commit().recorded().last().unwrap();
            to_message(&last, &topic, &SourceUri::default(), Timestamp::now()).size()
        };
        let described = bus.describe_topic(&topic).await.unwrap();
        let limit = usize::try_from(described.message_limit().unwrap()).unwrap();
        let append = commit_of(limit + over - size(&commit_of(0)));
        assert_eq!(size(&append), limit + over);
        let store = InMemoryEventStore::new();
        let stored = store.append(&append).await.unwrap();
        assert!(matches!(stored, AppendOutcome::Appended(_)), "{stored:?}");
        let publisher = Publisher::new(store, bus.clone(), InMemoryControlStore::new())
            .with_route(TopicRoute::One(topic.clone()));
        for _ in 0..2 {
            publisher.publish_pending().await.unwrap();
        }
        let end = bus.offsets(&topic).await.unwrap()[0].end.get();
        assert_eq!(end, if over == 0 { 2 } else { 0 }, "{over} bytes over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_cannot_keep_is_invalid() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(1));
    let mut early = message(&topic, "k", "x");
    early.timestamp = Timestamp::from_micros(999);
    let mut nowhere = message(&topic, "k", "x");
    nowhere.key = None;
    let mut unnamed = message(&topic, "k", "x");
    unnamed.topic = "a b".into();
    for message in [early, nowhere, unnamed] {
        let error = bus.publish(&message).await.unwrap_err();
        assert!(
            matches!(error, MessageBusError::Invalid { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_publish_leaves_the_bus_in_order() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    bus.publish(&message(&topic, "k", "first")).await.unwrap();
    // No answer can come within one poll.
    let delay = std::time::Duration::from_millis(50);
    mock.order(move |cluster| cluster.broker_round_trip_time(1, delay).unwrap());
    for _ in 0..20 {
        let dropped = message(&topic, "k", "dropped");
        let sending = bus.publish(&dropped);
        assert!(poll_once(sending).await.is_none());
    }
    bus.publish(&message(&topic, "k", "last")).await.unwrap();
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    assert_eq!(value(&next_delivery(&consumer).await), "first");
    loop {
        match value(&next_delivery(&consumer).await) {
            "dropped" => {}
            other => break assert_eq!(other, "last"),
        }
    }
}

/// Polls a future once and drops it, as a timeout or a `select!` does.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = Box::pin(future);
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// The leader refuses the first request of a new producer. If the second one were on its way, the
/// leader would store it, and librdkafka would take that as a proof for both: it would acknowledge
/// the first record without an offset, although it is not in the topic.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_record_of_a_new_producer_is_acknowledged_alone() {
    for refusal in [
        Answer::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Answer::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Answer::RD_KAFKA_RESP_ERR_INVALID_MSG,
    ] {
        let (mock, group) = (Mock::new(), fresh("group"));
        let topic = mock.topic(1);
        // Each record has a request of its own.
        let config = mock.config().with_property("batch.num.messages", "1");
        let bus = KafkaMessageBus::new(config.unwrap()).unwrap();
        mock.order(move |cluster| cluster.request_errors(Api::Produce, &[refusal]));
        let run = |key: &str| {
            let numbered = |n: usize| message(&topic, key, &format!("{key}{n}")).with_partition(0);
            (0..3).map(numbered).collect::<Vec<_>>()
        };
        let (a, b) = (run("a"), run("b"));
        for outcome in <[_; 2]>::from(tokio::join!(bus.publish_run(&a), bus.publish_run(&b))) {
            assert!(outcome.error.is_none(), "{refusal:?}: {outcome:?}");
            assert_eq!(outcome.durable, 3, "{refusal:?}");
        }
        let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
        next_assigned(&consumer).await;
        let mut found = [Vec::new(), Vec::new()];
        for _ in 0..6 {
            let delivery = next_delivery(&consumer).await;
            let value = value(&delivery).to_owned();
            found[usize::from(value.starts_with('b'))].push(value);
        }
        assert_eq!(found, [["a0", "a1", "a2"], ["b0", "b1", "b2"]]);
    }
}

/// The producer is replaced for all runs. Those that did not fail continue on the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_ends_its_own_run_only() {
    let (mock, group) = (Mock::new(), fresh("group"));
    let topic = mock.topic(1);
    let config = mock.config().with_property("batch.num.messages", "1");
    let bus = KafkaMessageBus::new(config.unwrap()).unwrap();
    let primes = message(&topic, "k", "primes").with_partition(0);
    bus.publish(&primes).await.unwrap();
    let refusal = Answer::RD_KAFKA_RESP_ERR_INVALID_RECORD;
    mock.order(move |cluster| cluster.request_errors(Api::Produce, &[refusal]));
    let sends = (0..8).map(|key| {
        let (bus, topic) = (bus.clone(), Arc::clone(&topic));
        async move {
            let numbered = |n: usize| {
                let message = message(&topic, &format!("k{key}"), &n.to_string());
                message.with_partition(0)
            };
            bus.publish_run(&(0..20).map(numbered).collect::<Vec<_>>())
                .await
        }
    });
    let outcomes = futures::future::join_all(sends).await;
    let (refused, complete): (Vec<_>, Vec<_>) =
        outcomes.iter().partition(|outcome| outcome.error.is_some());
    let [refused] = refused[..] else {
        panic!("one run must be refused: {outcomes:?}");
    };
    let kind = match &refused.error {
        Some(MessageBusError::Refused { kind, .. }) => *kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind, RefusedKind::Validation);
    assert!(complete.iter().all(|outcome| outcome.durable == 20));
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let mut found = vec![Vec::new(); 8];
    while found.iter().filter(|values| values.len() == 20).count() < 7 {
        let delivery = next_delivery(&consumer).await;
        let key = delivery.message.key.as_deref().unwrap_or_default();
        let Ok(key) = String::from_utf8_lossy(&key[1..]).parse::<usize>() else {
            continue;
        };
        let value = value(&delivery).parse::<usize>().unwrap();
        if !found[key].contains(&value) {
            found[key].push(value);
        }
    }
    assert!(found.iter().all(|values| values.is_sorted()), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_broker_calls_a_duplicate_is_not_published() {
    let mock = Mock::new();
    let (bus, topic) = (mock.bus(), mock.topic(1));
    publish(&bus, &topic, "k", 1).await;
    mock.order(|cluster| {
        let duplicate = Answer::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
        cluster.request_errors(Api::Produce, &[duplicate]);
    });
    let error = bus.publish(&message(&topic, "k", "1")).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let (_, offset) = bus.publish(&message(&topic, "k", "1")).await.unwrap();
    assert_eq!(offset.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_gives_up_the_records_of_dropped_calls() {
    let (mock, group) = (Mock::new(), fresh("group"));
    let (bus, topic) = (mock.bus(), mock.topic(1));
    publish(&bus, &topic, "k", 1).await;
    while bus.unacknowledged() > 0 {
        tokio::task::yield_now().await;
    }
    mock.order(|cluster| cluster.broker_down(1).unwrap());
    let (lost, soon) = (
        message(&topic, "k", "lost"),
        std::time::Duration::from_millis(500),
    );
    let dropped = tokio::time::timeout(soon, bus.publish(&lost)).await;
    assert!(dropped.is_err(), "{dropped:?}");
    // The client still has the record, and would send it as soon as it can.
    assert_eq!(bus.unacknowledged(), 1);
    assert_eq!(bus.reconnect().await, 1);
    assert_eq!(bus.unacknowledged(), 0);
    mock.order(|cluster| cluster.broker_up(1).unwrap());
    let sent = bus.publish(&message(&topic, "k", "sent")).await.unwrap();
    assert_eq!(sent.1, foldstream::ports::Offset::new(1));

    // A call that runs meanwhile is not disturbed.
    let delay = std::time::Duration::from_millis(300);
    mock.order(move |cluster| cluster.broker_round_trip_time(1, delay).unwrap());
    let running = {
        let (bus, last) = (bus.clone(), message(&topic, "k", "last"));
        tokio::spawn(async move { bus.publish(&last).await })
    };
    while bus.unacknowledged() == 0 {
        tokio::task::yield_now().await;
    }
    bus.reconnect().await;
    running.await.unwrap().unwrap();
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let mut values = Vec::new();
    while values.last().map(String::as_str) != Some("last") {
        values.push(value(&next_delivery(&consumer).await).to_owned());
    }
    values.dedup();
    assert_eq!(values[1..], ["sent", "last"], "{values:?}");
}
