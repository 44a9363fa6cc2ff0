//! Copies of dead letters in a topic of Apache Kafka.
use super::kafka::{config, from_start, next, unique};
use foldstream::{
    DomainEvent, Timestamp,
    ports::{ConsumerEvent, HeaderName, Message, MessageBus},
    runner::{EventContext, HandlerResult, Listener, ProcessorPolicy, Runner, Start},
};
use foldstream_kafka::{KafkaMessageBus, TopicSpec};
use foldstream_testkit::InMemoryControlStore;
use std::{sync::Arc, time::Duration};

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "meter")]
enum MeterEvent {
    Read { value: u64 },
}

struct Meters;
impl Listener for Meters {
    const NAME: &'static str = "meters";
    type Events = MeterEvent;
    async fn handle(&self, _: &MeterEvent, _: &EventContext) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn dead_letters_are_copied_to_a_topic_of_kafka_and_values_over_its_limit_are_left_out() {
    let bus = Arc::new(KafkaMessageBus::new(config().await).unwrap());
    let (topic, dead) = (unique("events"), unique("dead"));
    let small = TopicSpec::new(&dead, 1).with_config("max.message.bytes", "4000");
    let topics = [TopicSpec::new(&topic, 3), small];
    bus.create_topics(&topics).await.unwrap();
    let name = HeaderName::new("h").unwrap();
    for (number, size) in [(2, 10), (1, 10_000)] {
        // No event of this library, so that it is given up at once.
        let foreign = Message::new(&*topic, Timestamp::now())
            .with_key("k")
            .with_value("x".repeat(size))
            .with_header(name.clone(), "v")
            .with_null_header(name.clone())
            .with_partition(number);
        bus.publish(&foreign).await.unwrap();
    }
    let policy = ProcessorPolicy::listener()
        .with_start(Start::Beginning)
        .with_dead_letter_topic(&*dead);
    let handle = Runner::builder(bus.clone(), InMemoryControlStore::new(), unique("group"))
        .with_topics([&*topic])
        .listener_with(Meters, policy)
        .build()
        .unwrap()
        .start();
    // The copies are sent beside the rest, and a processor that ends waits only a moment for them.
    let all_sent = async {
        while handle.report().processors[0].dead_letters_sent < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), all_sent).await;
    handle.stop();
    let report = handle.wait().await.into_result().unwrap();
    let report = &report[0];
    assert!(in_time.is_ok(), "{report:?}");
    assert_eq!((report.dead_letters, report.dead_letters_sent), (2, 2));
    assert_eq!(report.dead_letters_not_sent, 0);

    let reading = from_start(&unique("group"), &dead);
    let consumer = bus.subscribe(reading).await.unwrap();
    let mut copies = Vec::new();
    while copies.len() < 2 {
        if let ConsumerEvent::Delivery(delivery) = next(&consumer).await {
            copies.push(delivery.message);
        }
    }
    consumer.leave().await.unwrap();
    copies.sort_by_key(|copy| copy.value.is_none());
    let [whole, cut] = &copies[..] else {
        panic!("{copies:?}")
    };
    for (copy, partition) in [(whole, "2"), (cut, "1")] {
        assert_eq!(copy.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(copy.header("h"), Some("v"));
        assert!(copy.headers.iter().any(|header| header == (&name, None)));
        assert_eq!(copy.header("__connect.errors.topic"), Some(&*topic));
        assert_eq!(copy.header("__connect.errors.partition"), Some(partition));
        assert_eq!(copy.header("__connect.errors.offset"), Some("0"));
        assert_eq!(copy.header("fs_processor"), Some("meters"));
        assert!(copy.header("__connect.errors.exception.message").is_some());
    }
    assert_eq!(whole.value.as_deref(), Some(&b"xxxxxxxxxx"[..]));
    assert_eq!(
        (&cut.value, cut.header("fs_value_omitted")),
        (&None, Some("10000"))
    );
}
