//! A mock cluster for one test, and helpers for the calls that tests repeat.
use foldstream::{
    Timestamp,
    ports::{
        AssignedPartition, Consumer, ConsumerEvent, Delivery, Message, MessageBus, Offset,
        OffsetCommit, PartitionId, StartOffset, Subscription,
    },
};
use foldstream_kafka::{KafkaConfig, KafkaMessageBus};
use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer},
};
use std::{sync::Arc, sync::mpsc, time::Duration};

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Order = Box<dyn FnOnce(&Cluster) + Send>;

/// The time that an answer takes.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// A mock cluster, on a thread of its own, since it cannot be sent between threads.
#[derive(Debug)]
pub(crate) struct Mock {
    orders: mpsc::Sender<Order>,
    pub(crate) brokers: String,
}

impl Mock {
    pub(crate) fn new() -> Self {
        Self::with_brokers(1)
    }

    pub(crate) fn with_brokers(count: i32) -> Self {
        let (orders, received) = mpsc::channel::<Order>();
        let (ready, brokers) = mpsc::channel();
        std::thread::spawn(move || {
            let cluster = MockCluster::new(count).unwrap();
            // The mock considers a group complete once its leader has answered, and refuses members
            // that answer later. The leader asks for metadata first. On a slow connection the
            // others therefore come first, as they do on a real cluster.
            cluster.broker_round_trip_time(-1, ROUND_TRIP).unwrap();
            ready.send(cluster.bootstrap_servers()).unwrap();
            for order in received {
                order(&cluster);
            }
        });
        Self {
            orders,
            brokers: brokers.recv().unwrap(),
        }
    }

    /// Runs an operation on the cluster.
    pub(crate) fn order<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Cluster) -> T + Send + 'static,
    ) -> T {
        let (answer, answered) = mpsc::channel();
        let order: Order = Box::new(move |cluster| answer.send(f(cluster)).unwrap());
        self.orders.send(order).unwrap();
        answered.recv().unwrap()
    }

    pub(crate) fn config(&self) -> KafkaConfig {
        KafkaConfig::default()
            .with_brokers(&*self.brokers)
            .with_request_timeout(Duration::from_secs(5))
            .with_publish_timeout(Duration::from_secs(10))
            // The mock ends every rebalance except a group's first one second before the session
            // timeout.
            .with_session_timeout(Duration::from_secs(4))
            // On a machine that is busy with other tests, some heartbeats are late.
            .with_property("heartbeat.interval.ms", "300")
            .unwrap()
    }

    pub(crate) fn bus(&self) -> KafkaMessageBus {
        KafkaMessageBus::new(self.config()).unwrap()
    }

    /// Sets the answer of later metadata requests about a topic.
    pub(crate) fn topic_answers(&self, topic: &Arc<str>, answer: Answer) {
        let topic = topic.to_string();
        self.order(move |cluster| cluster.topic_error(&topic, answer).unwrap());
    }

    /// Answers the next requests of a kind with an error.
    pub(crate) fn answers(&self, api: Api, answer: Answer, times: usize) {
        self.order(move |cluster| cluster.request_errors(api, &vec![answer; times]));
    }

    /// Creates a topic that no other test uses.
    pub(crate) fn topic(&self, partitions: i32) -> Arc<str> {
        let name = fresh("topic");
        let topic = name.clone();
        self.order(move |cluster| cluster.create_topic(&topic, partitions, 1).unwrap());
        name.into()
    }
}

/// Returns a name that no other test uses.
pub(crate) fn fresh(what: &str) -> String {
    format!("{what}-{}", uuid::Uuid::new_v4())
}

pub(crate) fn message(topic: &Arc<str>, key: &str, value: &str) -> Message {
    let at = Timestamp::from_micros(1_700_000_000_123_000);
    Message::new(Arc::clone(topic), at)
        .with_key(key.to_owned())
        .with_value(value.to_owned())
}

/// Publishes values "0", "1", ... under one key and returns their partition.
pub(crate) async fn publish(
    bus: &KafkaMessageBus,
    topic: &Arc<str>,
    key: &str,
    count: usize,
) -> PartitionId {
    let mut place = None;
    for n in 0..count {
        place = Some(
            bus.publish(&message(topic, key, &n.to_string()))
                .await
                .unwrap(),
        );
    }
    place.unwrap().0
}

/// Returns a subscription from the beginning of a topic.
pub(crate) fn from_start(group: &str, topic: &Arc<str>, partitions: u32) -> Subscription {
    let start = (0..partitions)
        .map(|p| StartOffset::new(PartitionId::new(Arc::clone(topic), p), Offset::new(0)))
        .collect();
    Subscription::new(group, [Arc::clone(topic)]).with_start(start)
}

/// Returns the next event, and fails after a time that is long for any event.
pub(crate) async fn next(consumer: &Arc<dyn Consumer>) -> ConsumerEvent {
    next_result(consumer).await.unwrap()
}

pub(crate) async fn next_result(
    consumer: &Arc<dyn Consumer>,
) -> Result<ConsumerEvent, foldstream::ports::MessageBusError> {
    tokio::time::timeout(Duration::from_secs(30), consumer.next())
        .await
        .expect("an event within 30 s")
}

pub(crate) async fn next_assigned(consumer: &Arc<dyn Consumer>) -> Vec<AssignedPartition> {
    match next(consumer).await {
        ConsumerEvent::Assigned(assignment) => assignment.partitions,
        other => panic!("not an assignment: {other:?}"),
    }
}

pub(crate) async fn next_delivery(consumer: &Arc<dyn Consumer>) -> Delivery {
    match next(consumer).await {
        ConsumerEvent::Delivery(delivery) => delivery,
        other => panic!("not a delivery: {other:?}"),
    }
}

pub(crate) fn value(delivery: &Delivery) -> &str {
    std::str::from_utf8(delivery.message.value.as_ref().unwrap()).unwrap()
}

/// Returns the offset commit of a delivery that was handled.
pub(crate) fn done(delivery: &Delivery) -> OffsetCommit {
    OffsetCommit::new(
        delivery.partition.clone(),
        delivery.epoch,
        delivery.offset.next(),
    )
}

/// Asserts that no event comes for a while. Every use is followed by a positive check, since a
/// pause alone proves nothing.
pub(crate) async fn quiet(consumer: &Arc<dyn Consumer>, how_long: Duration) {
    if let Ok(event) = tokio::time::timeout(how_long, consumer.next()).await {
        panic!("expected nothing, got {event:?}");
    }
}
