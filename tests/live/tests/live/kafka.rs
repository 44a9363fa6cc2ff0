//! The Kafka adapter on Apache Kafka: the contract of `MessageBus`, and the rules that only a real
//! broker shows.
use foldstream::{
    Timestamp,
    ports::{
        Consumer, ConsumerEvent, Message, MessageBus, MessageBusError, NoPosition, Offset,
        OffsetCommit, PartitionId, RefusedKind, StartOffset, Subscription,
    },
};
use foldstream_kafka::{GroupProtocol, KafkaConfig, KafkaMessageBus, TopicOutcome, TopicSpec};
use foldstream_testkit::{containers::Kafka, contract::message_bus::BusFixture};
use rdkafka::{
    ClientConfig, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};
use std::{sync::Arc, time::Duration};

pub(crate) struct Fixture {
    pub(crate) bus: Arc<KafkaMessageBus>,
}

pub(crate) async fn config() -> KafkaConfig {
    KafkaConfig::default().with_brokers(Kafka::shared().await.brokers())
}

pub(crate) async fn fixture(protocol: GroupProtocol) -> Fixture {
    let mut config = config().await.with_group_protocol(protocol);
    if protocol == GroupProtocol::Classic {
        config = config.with_session_timeout(SESSION);
    }
    Fixture {
        bus: Arc::new(KafkaMessageBus::new(config).unwrap()),
    }
}

impl Fixture {
    fn admin(&self) -> AdminClient<DefaultClientContext> {
        admin(self.bus.config().brokers())
    }
}

#[async_trait::async_trait]
impl BusFixture for Fixture {
    fn bus(&self) -> Arc<dyn MessageBus> {
        Arc::clone(&self.bus) as _
    }
    async fn create_topic(&self, name: &str, partitions: u32) {
        let made = self
            .bus
            .create_topic(&TopicSpec::new(name, partitions))
            .await;
        assert_eq!(made.unwrap(), TopicOutcome::Created);
    }
    async fn delete_records_before(&self, partition: &PartitionId, offset: Offset) {
        let admin = self.admin();
        let mut before = TopicPartitionList::new();
        let number = i32::try_from(partition.partition).unwrap();
        let place = rdkafka::Offset::Offset(i64::try_from(offset.get()).unwrap());
        before
            .add_partition_offset(&partition.topic, number, place)
            .unwrap();
        let deleted = admin
            .delete_records(&before, &AdminOptions::new())
            .await
            .unwrap();
        for element in deleted.elements() {
            element.error().unwrap();
        }
    }
    async fn add_partitions(&self, name: &str, partitions: u32) {
        let count = usize::try_from(partitions).unwrap();
        let wanted = [&NewPartitions::new(name, count)];
        let grown = self.admin().create_partitions(wanted, &AdminOptions::new());
        for answer in grown.await.unwrap() {
            answer.unwrap();
        }
        while self.bus.describe_topic(name).await.unwrap().partitions < partitions {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    async fn leave_hole(&self, partition: &PartitionId) {
        abort_a_transaction(self.bus.config().brokers(), partition).await;
    }
    async fn recreate_topic(&self, name: &str, partitions: u32) {
        delete_topic(self.bus.config().brokers(), name).await;
        let spec = TopicSpec::new(name, partitions);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            // The name is taken until the brokers have forgotten the deleted topic.
            let made = self.bus.create_topic(&spec).await.unwrap();
            if made == TopicOutcome::Created {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{name} is not deleted"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    fn session_timeout(&self) -> Duration {
        SESSION
    }
}

/// The shortest session timeout that brokers accept by default.
pub(crate) const SESSION: Duration = Duration::from_secs(6);

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers);
    client.create().unwrap()
}

pub(crate) async fn delete_topic(brokers: &str, name: &str) {
    let deleted = admin(brokers)
        .delete_topics(&[name], &AdminOptions::new())
        .await;
    for answer in deleted.unwrap() {
        answer.unwrap();
    }
}

/// Leaves an aborted record and the marker of its transaction at the end of a partition.
pub(crate) async fn abort_a_transaction(brokers: &str, partition: &PartitionId) {
    let (brokers, id) = (brokers.to_owned(), partition.clone());
    let aborted = tokio::task::spawn_blocking(move || {
        let patience = Duration::from_secs(30);
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", brokers)
            .set("transactional.id", unique("transaction"));
        let producer: ThreadedProducer<DefaultProducerContext> = client.create().unwrap();
        producer.init_transactions(patience).unwrap();
        producer.begin_transaction().unwrap();
        let record = BaseRecord::<[u8], [u8]>::to(&id.topic)
            .partition(i32::try_from(id.partition).unwrap())
            .payload(b"aborted");
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(patience).unwrap();
        producer.abort_transaction(patience).unwrap();
    });
    aborted.await.unwrap();
}

/// Groups of the classic protocol, which is the default.
mod classic {
    use super::{Fixture, GroupProtocol, fixture};

    async fn fresh() -> Fixture {
        fixture(GroupProtocol::Classic).await
    }
    foldstream_testkit::message_bus_contract! {
        #[ignore = "needs Docker; see CONTRIBUTING.md"]
        bus = fresh, with = [trim, grow, holes, recreate, static_members, delete_group]
    }
}

/// Groups of KIP-848, in which the broker assigns.
///
/// The broker also sets the session timeout to 45 s, for which the cases of static members do not
/// wait.
mod consumer_protocol {
    use super::{Fixture, GroupProtocol, fixture};

    async fn fresh() -> Fixture {
        fixture(GroupProtocol::Consumer).await
    }
    foldstream_testkit::message_bus_contract! {
        #[ignore = "needs Docker; see CONTRIBUTING.md"]
        bus = fresh, with = [trim, grow, holes, recreate, delete_group]
    }
}

pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{}", foldstream::CommitId::random())
}

fn message(topic: &str, value: impl Into<String>) -> Message {
    Message::new(topic, Timestamp::now())
        .with_key("k")
        .with_value(value.into())
}

pub(crate) async fn next(consumer: &Arc<dyn Consumer>) -> ConsumerEvent {
    tokio::time::timeout(Duration::from_secs(60), consumer.next())
        .await
        .expect("an event within a minute")
        .unwrap()
}

pub(crate) fn from_start(group: &str, topic: &str) -> Subscription {
    let start = StartOffset::new(PartitionId::new(topic, 0), Offset::new(0));
    Subscription::new(group, [topic]).with_start(vec![start])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_topic_is_described_as_it_was_made() {
    let bus = fixture(GroupProtocol::Classic).await.bus;
    let (plain, compacted) = (unique("plain"), unique("compacted"));
    let plain_spec = TopicSpec::new(&plain, 5)
        .with_replication(1)
        .with_config("retention.ms", "86400000")
        .with_config("max.message.bytes", "2000000");
    let compacted_spec = TopicSpec::new(&compacted, 1)
        .with_config("cleanup.policy", "compact,delete")
        .with_config("retention.ms", "-1");
    let outcomes = bus
        .create_topics(&[plain_spec.clone(), compacted_spec])
        .await
        .unwrap();
    assert_eq!(outcomes, [TopicOutcome::Created, TopicOutcome::Created]);
    assert_eq!(
        bus.create_topic(&plain_spec).await.unwrap(),
        TopicOutcome::Existed
    );

    let description = bus.describe_topic(&plain).await.unwrap();
    assert_eq!(description.partitions, 5);
    assert_eq!(description.compacted, Some(false));
    assert_eq!(description.retention, Some(Duration::from_secs(86_400)));
    assert_eq!(description.max_message_bytes, Some(2_000_000));
    let description = bus.describe_topic(&compacted).await.unwrap();
    assert_eq!(description.compacted, Some(true));
    assert_eq!(description.retention, Some(Duration::MAX));
    assert_eq!(description.max_message_bytes, Some(1_048_588));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_topic_that_the_brokers_cannot_make_is_refused() {
    let bus = fixture(GroupProtocol::Classic).await.bus;
    let spec = TopicSpec::new(unique("topic"), 1).with_config("no.such.property", "1");
    let error = bus.create_topic(&spec).await.unwrap_err();
    assert!(
        matches!(
            error,
            MessageBusError::Refused {
                kind: RefusedKind::Validation,
                ..
            }
        ),
        "{error:?}"
    );
    let spec = TopicSpec::new(unique("topic"), 1).with_replication(99);
    let error = bus.create_topic(&spec).await.unwrap_err();
    assert!(
        matches!(
            error,
            MessageBusError::Refused {
                kind: RefusedKind::Validation,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn records_that_retention_takes_from_under_a_slow_reader_are_told() {
    let fixture = fixture(GroupProtocol::Classic).await;
    let (bus, topic, group) = (Arc::clone(&fixture.bus), unique("topic"), unique("group"));
    fixture.create_topic(&topic, 1).await;
    // More than the client and the adapter read ahead together.
    let value = "x".repeat(100_000);
    for _ in 0..100 {
        bus.publish(&message(&topic, &*value)).await.unwrap();
    }
    let config = config().await.with_read_ahead(5, 1_000_000);
    let slow = KafkaMessageBus::new(config).unwrap();
    let consumer = slow.subscribe(from_start(&group, &topic)).await.unwrap();
    assert!(matches!(next(&consumer).await, ConsumerEvent::Assigned(_)));
    let ConsumerEvent::Delivery(first) = next(&consumer).await else {
        panic!("no delivery");
    };
    let id = first.partition.clone();
    fixture.delete_records_before(&id, Offset::new(99)).await;
    let mut expected = first.offset.next();
    loop {
        match next(&consumer).await {
            ConsumerEvent::Delivery(delivery) => {
                assert_eq!(delivery.offset, expected, "nothing is skipped silently");
                assert!(
                    expected < Offset::new(99),
                    "the rest was read ahead: the case shows nothing"
                );
                expected = expected.next();
            }
            ConsumerEvent::NoPosition(partition, why) => {
                let (begin, end) = (Offset::new(99), Offset::new(100));
                assert_eq!(
                    (partition, why),
                    (id, NoPosition::OutOfRange { begin, end })
                );
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_group_is_deleted_only_without_members_and_any_number_of_times() {
    let fixture = fixture(GroupProtocol::Classic).await;
    let (bus, topic, group) = (Arc::clone(&fixture.bus), unique("topic"), unique("group"));
    fixture.create_topic(&topic, 1).await;
    bus.publish(&message(&topic, "0")).await.unwrap();
    let consumer = bus.subscribe(from_start(&group, &topic)).await.unwrap();
    let ConsumerEvent::Assigned(assignment) = next(&consumer).await else {
        panic!("no assignment");
    };
    let own = &assignment.partitions[0];
    let commit = OffsetCommit::new(own.partition.clone(), own.epoch, Offset::new(1));
    consumer.commit(&[commit]).await.unwrap();
    let error = bus.delete_group(&group).await.unwrap_err();
    assert!(
        matches!(
            error,
            MessageBusError::Refused {
                kind: RefusedKind::Validation,
                ..
            }
        ),
        "{error:?}"
    );
    consumer.leave().await.unwrap();
    for _ in 0..2 {
        bus.delete_group(&group).await.unwrap();
        let committed = bus.committed(&group, &topic).await.unwrap();
        assert_eq!(committed, [(PartitionId::new(&*topic, 0), None)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_record_over_the_limit_of_its_topic_is_too_large() {
    let bus = fixture(GroupProtocol::Classic).await.bus;
    let topic = unique("topic");
    let spec = TopicSpec::new(&topic, 1).with_config("max.message.bytes", "20000");
    bus.create_topic(&spec).await.unwrap();
    let described = bus.describe_topic(&topic).await.unwrap();
    let limit = usize::try_from(described.message_limit().unwrap()).unwrap();
    let largest = message(&topic, "x".repeat(limit - 1));
    assert_eq!(largest.size(), limit);
    bus.publish(&largest).await.unwrap();
    let too_large = message(&topic, "x".repeat(30_000)).with_partition(0);
    let expected = |error: &MessageBusError| {
        matches!(
            error,
            MessageBusError::TooLarge { bytes: 30_001, limit: Some(named), .. } if *named == limit
        )
    };
    let error = bus.publish(&too_large).await.unwrap_err();
    assert!(expected(&error), "{error:?}");
    // The messages before it are sent.
    let small = message(&topic, "x".repeat(1_000)).with_partition(0);
    let run = [small.clone(), small.clone(), too_large, small.clone()];
    let outcome = bus.publish_run(&run).await;
    assert_eq!(outcome.durable, 2);
    assert!(outcome.error.as_ref().is_some_and(expected), "{outcome:?}");
    let end = bus.offsets(&topic).await.unwrap()[0].end;
    assert_eq!(end, Offset::new(3));
    // Small records are never refused because of others in their batch.
    let outcome = bus.publish_run(&vec![small; 500]).await;
    assert!(outcome.error.is_none(), "{outcome:?}");
}
