//! The behaviour of librdkafka's `enable.gapless.guarantee` on which the adapter relies. It is
//! experimental.
use super::{
    TOPIC, read,
    tamper::{Fate, Proxy},
};
use crate::kafka::unique;
use foldstream_kafka::{KafkaConfig, KafkaMessageBus, TopicSpec};
use foldstream_testkit::containers::Kafka;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord, Producer as _, PurgeConfig},
};
use std::time::Duration;

/// The code of `INVALID_RECORD`, which no client sends again.
const INVALID_RECORD: i16 = 87;
const RECORDS: usize = 20;

/// The versions in the topic after one record was refused for good, and the fatal error of the
/// producer.
async fn after_a_refusal(gapless: bool) -> (Vec<usize>, Option<RDKafkaErrorCode>) {
    let broker = Kafka::shared().await.brokers();
    let topic = unique(TOPIC.trim_end_matches('-'));
    let direct = KafkaMessageBus::new(KafkaConfig::default().with_brokers(broker)).unwrap();
    let spec = TopicSpec::new(&topic, super::PARTITIONS);
    direct.create_topic(&spec).await.unwrap();
    let proxy = Proxy::start(broker, 0, Duration::from_secs(1)).await;
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", proxy.address())
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", gapless.to_string())
        .set("message.timeout.ms", "0")
        .set("linger.ms", "0")
        // Each record has a request of its own.
        .set("batch.num.messages", "1")
        .create()
        .unwrap();
    let send = |version: usize| {
        let value = format!("{version}:");
        let record = FutureRecord::to(&topic)
            .partition(0)
            .key("k")
            .payload(&value);
        producer.send_result(record).map_err(|(error, _)| error)
    };
    // The first record primes the partition.
    send(1).unwrap().await.unwrap().unwrap();
    proxy.script([Fate::Refuse(INVALID_RECORD)]);
    let in_flight: Vec<_> = (2..=RECORDS)
        .map(|version| send(version).unwrap())
        .collect();
    let mut in_flight = in_flight.into_iter();
    let refused = in_flight.next().unwrap().await.unwrap();
    assert!(refused.is_err(), "the record was not refused");
    if gapless {
        // Later requests are never sent, however long the producer lives.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let later = send(RECORDS + 1).map(drop);
        let fatal = KafkaError::MessageProduction(RDKafkaErrorCode::Fatal);
        assert_eq!(later.unwrap_err(), fatal);
        producer.purge(PurgeConfig::default().queue());
        producer.purge(PurgeConfig::default().queue().inflight());
    }
    for acknowledged in in_flight {
        let outcome = acknowledged.await.unwrap();
        assert_eq!(outcome.is_err(), gapless, "{outcome:?}");
    }
    let fatal = producer.client().fatal_error().map(|(code, _)| code);
    let found = read(broker, &topic).remove("k").unwrap();
    (found, fatal)
}

/// After a record that the broker refuses, later records of the producer are not stored, and the
/// producer says that it has failed for good. Without the guarantee all of them are stored.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn nothing_is_stored_after_a_refused_record_of_the_same_producer() {
    let (found, fatal) = after_a_refusal(true).await;
    assert_eq!(found, [1]);
    assert_eq!(fatal, Some(RDKafkaErrorCode::GaplessGuarantee));
    let (found, fatal) = after_a_refusal(false).await;
    assert_eq!(fatal, None);
    let without_the_refused: Vec<_> = (1..=RECORDS).filter(|version| *version != 2).collect();
    assert_eq!(found, without_the_refused);
}
