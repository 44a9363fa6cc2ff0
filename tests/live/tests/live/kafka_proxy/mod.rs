//! Runs on Apache Kafka behind a proxy that tampers with produce requests.
//!
//! Given buses whose producers are young, and a proxy that refuses, damages, delays and cuts their
//! requests. When streams send runs until all their versions are acknowledged, then the first
//! occurrences of each stream are in order, and everything that was acknowledged is in the topic.
//!
//! `FOLDSTREAM_LONG=1` sends ten times as many streams.
mod gapless;
mod tamper;

use self::tamper::{Proxy, TOPIC};
use crate::kafka::unique;
use foldstream::{
    Timestamp,
    ports::{Message, MessageBus},
};
use foldstream_kafka::{KafkaConfig, KafkaMessageBus, TopicSpec};
use foldstream_testkit::{containers::Kafka, length};
use futures::{StreamExt as _, stream};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

const PARTITIONS: u32 = 2;
const STREAMS_OF_A_BUS: u32 = 5;
const VERSIONS: usize = 40;
const BUSES: u64 = 40;
const BUSES_OF_A_LONG_TEST: u64 = 400;
const BUSES_AT_ONCE: usize = 8;
/// The time after which a client gives up a connection that is silent.
const SILENCE: Duration = Duration::from_millis(200);
/// The longest time of one bus, which takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The versions of each key in a topic, in their order.
type Records = BTreeMap<String, Vec<usize>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn streams_keep_their_order_and_lose_nothing_whatever_happens_to_requests() {
    let seeds = length::seeds(BUSES, BUSES_OF_A_LONG_TEST);
    let first = seeds.start;
    let buses = seeds.end - seeds.start;
    let broker = Kafka::shared().await.brokers();
    let topic: Arc<str> = unique(TOPIC.trim_end_matches('-')).into();
    let direct = KafkaMessageBus::new(KafkaConfig::default().with_brokers(broker)).unwrap();
    let spec = TopicSpec::new(&*topic, PARTITIONS);
    direct.create_topic(&spec).await.unwrap();
    let proxy = Proxy::start(broker, first, 2 * SILENCE).await;
    proxy.set_faulty(25);

    stream::iter(seeds)
        .for_each_concurrent(BUSES_AT_ONCE, |seed| {
            let (proxy, topic) = (&proxy, &topic);
            async move {
                let address = proxy.address();
                let sent = send_streams_of(seed, &address, topic);
                let in_time = tokio::time::timeout(PATIENCE, sent).await;
                in_time.unwrap_or_else(|_| panic!("the bus of seed {seed} does not end"));
            }
        })
        .await;
    // Requests that are held back arrive after this time.
    tokio::time::sleep(4 * SILENCE).await;

    let records = read(broker, &topic);
    let met = proxy.met();
    let total: usize = records.values().map(Vec::len).sum();
    let streams = buses as usize * STREAMS_OF_A_BUS as usize;
    let duplicates = total - streams * VERSIONS;
    println!("{streams} streams, {duplicates} duplicates, requests: {met:?}");
    let wrong: Vec<_> = records
        .iter()
        .filter(|(_, found)| !is_right(found))
        .collect();
    assert!(wrong.is_empty(), "{} streams: {wrong:?}", wrong.len());
    assert_eq!(records.len(), streams);
    if buses >= BUSES {
        assert!(duplicates > 0, "nothing was sent twice");
        assert_eq!(met.len(), 9, "every fate is met: {met:?}");
    }
}

/// Returns true if the first occurrences are all versions in their order.
fn is_right(found: &[usize]) -> bool {
    let mut next = 1;
    for &version in found {
        if version > next {
            return false;
        }
        next = next.max(version + 1);
    }
    next == VERSIONS + 1
}

/// Sends all streams of a bus with a producer of its own, until they are acknowledged.
async fn send_streams_of(seed: u64, brokers: &str, topic: &Arc<str>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let batch = if rng.bool() { "3" } else { "10000" };
    let mut config = KafkaConfig::default()
        .with_brokers(brokers)
        .with_publish_timeout(Duration::from_secs(1));
    for (property, value) in [
        ("batch.num.messages", batch),
        ("socket.timeout.ms", &SILENCE.as_millis().to_string()),
        ("retry.backoff.ms", "5"),
        ("retry.backoff.max.ms", "20"),
        ("reconnect.backoff.ms", "5"),
        ("reconnect.backoff.max.ms", "20"),
        ("topic.metadata.refresh.fast.interval.ms", "5"),
    ] {
        config = config.with_property(property, value).unwrap();
    }
    let bus = KafkaMessageBus::new(config).unwrap();
    let streams = (0..STREAMS_OF_A_BUS).map(|n| {
        let rng = fastrand::Rng::with_seed(rng.u64(..));
        let key = format!("{seed}-{n}");
        send_stream(&bus, topic, n % PARTITIONS, key, rng)
    });
    futures::future::join_all(streams).await;
}

async fn send_stream(
    bus: &KafkaMessageBus,
    topic: &Arc<str>,
    partition: u32,
    key: String,
    mut rng: fastrand::Rng,
) {
    let numbered = |version: usize| {
        Message::new(Arc::clone(topic), Timestamp::now())
            .with_partition(partition)
            .with_key(key.clone())
            .with_value(format!("{version}:{}", "x".repeat(50)))
    };
    let all: Vec<_> = (1..=VERSIONS).map(numbered).collect();
    let mut durable = 0;
    while durable < VERSIONS {
        let end = VERSIONS.min(durable + rng.usize(1..=VERSIONS));
        let sent = bus.publish_run(&all[durable..end]);
        // Some futures are dropped while records are in flight.
        let limit = if rng.u32(0..8) == 0 {
            Duration::from_millis(rng.u64(1..40))
        } else {
            PATIENCE
        };
        // Whatever the error is, the stream sends again.
        if let Ok(outcome) = tokio::time::timeout(limit, sent).await {
            durable += outcome.durable;
        }
    }
}

/// Reads a topic whole with librdkafka, without the adapter.
fn read(brokers: &str, topic: &str) -> Records {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "raw-reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_uncommitted")
        .create()
        .unwrap();
    let mut assigned = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..PARTITIONS.cast_signed() {
        let patience = Duration::from_secs(10);
        let range = consumer.fetch_watermarks(topic, partition, patience);
        left += range.unwrap().1;
        assigned
            .add_partition_offset(topic, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assigned).unwrap();
    let mut records = Records::new();
    let deadline = Instant::now() + PATIENCE;
    while left > 0 {
        assert!(Instant::now() < deadline, "{left} records are missing");
        let Some(record) = consumer.poll(Duration::from_millis(200)) else {
            continue;
        };
        let record = record.unwrap();
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        let (key, value) = (text(record.key()), text(record.payload()));
        let version = value.split(':').next().unwrap().parse().unwrap();
        records.entry(key).or_default().push(version);
        left -= 1;
    }
    records
}
