//! The tables and the topic, read with the plain clients of the servers.
use super::{super::stored::scan, Fleet};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::{BorrowedMessage, Headers as _},
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// The payloads of each stream, from version 1.
pub(super) type Payloads = BTreeMap<String, Vec<Value>>;

/// Returns the payloads that the events table holds.
pub(super) async fn events(fleet: &Fleet) -> Payloads {
    let table = fleet.settings.dynamodb_config().events_table();
    let mut streams = BTreeMap::<String, BTreeMap<usize, Vec<Value>>>::new();
    for item in scan(fleet.stores.client(), &table).await {
        // Names and payloads in turns.
        let list: Vec<Value> = serde_json::from_str(item["e"].as_s().unwrap()).unwrap();
        let payloads = list.into_iter().skip(1).step_by(2).collect();
        let first = item["sk"].as_n().unwrap().parse().unwrap();
        let stream = streams.entry(item["pk"].as_s().unwrap().clone());
        stream.or_default().insert(first, payloads);
    }
    let joined = streams.into_iter().map(|(stream, commits)| {
        let mut payloads = Vec::new();
        for (first, commit) in commits {
            assert_eq!(first, payloads.len() + 1, "{stream} has a hole");
            payloads.extend(commit);
        }
        (stream, payloads)
    });
    joined.collect()
}

/// Returns the version of each watermark row.
pub(super) async fn watermarks(fleet: &Fleet) -> BTreeMap<String, u64> {
    let table = fleet.settings.dynamodb_config().control_table();
    let rows = scan(fleet.stores.client(), &table).await.into_iter();
    rows.filter(|row| row["pk"].as_s().unwrap().starts_with("wm/"))
        .map(|row| {
            let value: Value = serde_json::from_slice(row["d"].as_b().unwrap().as_ref()).unwrap();
            (
                row["sk"].as_s().unwrap().clone(),
                value["v"].as_u64().unwrap(),
            )
        })
        .collect()
}

/// Returns the number of streams whose watermarks are not at their tails, and once there are none
/// that of the commits that still have a marker.
pub(super) async fn behind(fleet: &Fleet, tails: &BTreeMap<String, u64>) -> u64 {
    let marks = watermarks(fleet).await;
    let tails = tails.iter();
    let streams = tails.filter(|(stream, tail)| marks.get(*stream) != Some(tail));
    let streams = streams.count() as u64;
    if streams > 0 {
        return 1_000_000 + streams;
    }
    let table = fleet.settings.dynamodb_config().events_table();
    let items = scan(fleet.stores.client(), &table).await.into_iter();
    items.filter(|item| item.contains_key("mk")).count() as u64
}

/// A record of the topic.
#[derive(Debug, PartialEq)]
struct Published {
    partition: i32,
    version: u64,
    id: String,
    name: String,
    payload: Value,
}

/// All records of the topic, by stream, in the order of their offsets.
pub(super) struct Topic(BTreeMap<String, Vec<Published>>);

impl Topic {
    pub(super) async fn read(fleet: &Fleet) -> Self {
        let settings = &fleet.settings;
        let (brokers, topic) = (settings.brokers.clone(), settings.name.clone());
        let read = tokio::task::spawn_blocking(move || read(&brokers, &topic));
        Self(read.await.unwrap())
    }

    /// Checks that the topic has each event that is stored, that first occurrences are in the order
    /// of their versions, and that duplicates are the same record. Returns the number of these.
    pub(super) fn check(&self, stored: &Payloads) -> u64 {
        let of = |streams: &mut dyn Iterator<Item = &String>| streams.cloned().collect::<Vec<_>>();
        assert_eq!(of(&mut self.0.keys()), of(&mut stored.keys()));
        let mut duplicates = 0;
        for (stream, payloads) in stored {
            let mut firsts: Vec<&Published> = Vec::new();
            for record in &self.0[stream] {
                let place = usize::try_from(record.version).unwrap() - 1;
                assert!(
                    place <= firsts.len(),
                    "{stream}: version {} comes when {} is the newest one",
                    record.version,
                    firsts.len()
                );
                if let Some(first) = firsts.get(place) {
                    assert_eq!(record, *first, "{stream}: a duplicate differs");
                    duplicates += 1;
                } else {
                    assert_eq!(record.payload, payloads[place], "{stream} {place}");
                    assert_eq!(record.partition, self.0[stream][0].partition, "{stream}");
                    assert!(record.name.ends_with("Deposited"), "{record:?}");
                    firsts.push(record);
                }
            }
            assert_eq!(firsts.len(), payloads.len(), "{stream} lacks events");
        }
        duplicates
    }
}

fn read(brokers: &str, topic: &str) -> BTreeMap<String, Vec<Published>> {
    let patience = Duration::from_secs(30);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "raw-reader")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let (mut assigned, mut left) = (TopicPartitionList::new(), 0);
    for partition in 0..super::PARTITIONS.cast_signed() {
        let (low, high) = consumer
            .fetch_watermarks(topic, partition, patience)
            .unwrap();
        assert_eq!(low, 0, "partition {partition}");
        left += high;
        assigned
            .add_partition_offset(topic, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assigned).unwrap();
    let mut streams = BTreeMap::<String, Vec<Published>>::new();
    while left > 0 {
        let record = consumer.poll(patience).expect("a record in time").unwrap();
        let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
        streams.entry(key).or_default().push(published(&record));
        left -= 1;
    }
    streams
}

fn published(record: &BorrowedMessage<'_>) -> Published {
    let header = |name: &str| {
        let mut headers = record.headers().unwrap().iter();
        let header = headers.find(|header| header.key == name);
        let value = header.expect(name).value.unwrap();
        std::str::from_utf8(value).unwrap().to_owned()
    };
    Published {
        partition: record.partition(),
        version: header("ce_fsversion").parse().unwrap(),
        id: header("ce_id"),
        name: header("ce_type"),
        payload: serde_json::from_slice(record.payload().unwrap()).unwrap(),
    }
}
