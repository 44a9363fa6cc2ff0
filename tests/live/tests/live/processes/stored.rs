//! The contents of the servers, read with their plain clients.
use super::Fleet;
use aws_sdk_dynamodb::{Client, types::AttributeValue};
use foldstream_live::Balance;
use rdkafka::{
    ClientConfig, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// The longest time of one answer of Kafka.
const TIMEOUT: Duration = Duration::from_secs(30);

type Item = HashMap<String, AttributeValue>;

/// An event as it is stored: its name and amount.
#[derive(Debug)]
pub(super) struct StoredEvent {
    pub(super) name: String,
    amount: i64,
}

impl StoredEvent {
    pub(super) fn is_dispute(&self) -> bool {
        self.name == "Disputed"
    }
}

/// Returns the events of each stream, from version 1.
pub(super) async fn events(fleet: &Fleet) -> BTreeMap<String, Vec<StoredEvent>> {
    let table = fleet.settings.dynamodb_config().events_table();
    let mut streams = BTreeMap::<String, BTreeMap<u64, Vec<StoredEvent>>>::new();
    for item in scan(fleet.stores.client(), &table).await {
        let list = serde_json::from_str::<Vec<serde_json::Value>>(item["e"].as_s().unwrap());
        let events = list.unwrap().chunks(2).map(stored_event).collect();
        let first = item["sk"].as_n().unwrap().parse().unwrap();
        let stream = streams.entry(item["pk"].as_s().unwrap().clone());
        stream.or_default().insert(first, events);
    }
    let joined = streams.into_iter().map(|(stream, commits)| {
        let mut events = Vec::new();
        for (first, commit) in commits {
            assert_eq!(first, events.len() as u64 + 1, "{stream} has a hole");
            events.extend(commit);
        }
        (stream, events)
    });
    joined.collect()
}

fn stored_event(pair: &[serde_json::Value]) -> StoredEvent {
    StoredEvent {
        name: pair[0].as_str().unwrap().into(),
        amount: pair[1]["amount"].as_i64().unwrap(),
    }
}

/// Returns the row that the events of a stream add up to.
pub(super) fn fold(events: &[StoredEvent]) -> Balance {
    let amounts = events.iter().map(|event| match event.name.as_str() {
        "Deposited" => event.amount,
        "Withdrawn" => -event.amount,
        "Disputed" => 0,
        other => panic!("{other}"),
    });
    Balance {
        sum: amounts.sum(),
        versions: (1..=events.len() as u64).collect(),
    }
}

/// Returns the rows of the first generation of a read model, each with the position that it holds.
pub(super) async fn rows_of<T: DeserializeOwned>(
    fleet: &Fleet,
    model: &str,
) -> BTreeMap<String, (T, u64)> {
    rows_of_generation(fleet, model, 1).await
}

/// Returns the rows of a generation of a read model, each with the position that it holds.
pub(super) async fn rows_of_generation<T: DeserializeOwned>(
    fleet: &Fleet,
    model: &str,
    generation: u32,
) -> BTreeMap<String, (T, u64)> {
    let table = fleet.settings.dynamodb_config().read_models_table();
    let (items, start) = (
        scan(fleet.stores.client(), &table).await,
        format!("{model}.g{generation}/"),
    );
    let of_model = items
        .into_iter()
        .filter(|item| item["pk"].as_s().unwrap().starts_with(&start));
    let row = |item: Item| {
        let row = serde_json::from_str(item["d"].as_s().unwrap()).unwrap();
        let version = item["v"].as_n().unwrap().parse().unwrap();
        (item["sk"].as_s().unwrap().clone(), (row, version))
    };
    of_model.map(row).collect()
}

/// Returns the keys of the rows about failed events that are still there: parked streams, dead
/// letters, deferred records and requests.
pub(super) async fn failed_events(fleet: &Fleet) -> Vec<String> {
    let table = fleet.settings.dynamodb_config().control_table();
    let mut left = Vec::new();
    for item in scan(fleet.stores.client(), &table).await {
        let (partition, sort) = (item["pk"].as_s().unwrap(), item["sk"].as_s().unwrap());
        let is_about_one = ["park/", "dlq/", "def/", "ask/"]
            .iter()
            .any(|start| partition.starts_with(start));
        // A large value that was deleted leaves its head for a day.
        let is_deleted = item["d"].as_b().unwrap().as_ref() == b"-";
        if is_about_one && sort != "!changed" && !is_deleted {
            left.push(format!("{partition} {}", sort.replace('\u{1f}', " ")));
        }
    }
    left
}

/// Returns the rows of a circuit breaker: the revision of each.
pub(super) async fn breaker(fleet: &Fleet, name: &str) -> BTreeMap<String, String> {
    let table = fleet.settings.dynamodb_config().control_table();
    let items = scan(fleet.stores.client(), &table).await.into_iter();
    let partition = format!("breaker/{name}");
    items
        .filter(|item| item["pk"].as_s().unwrap() == &partition)
        .map(|item| {
            let text = |name: &str| item[name].as_s().unwrap().clone();
            (text("sk"), text("r"))
        })
        .collect()
}

pub(super) async fn scan(client: &Client, table: &str) -> Vec<Item> {
    let request = client.scan().table_name(table).consistent_read(true);
    let mut items = request.into_paginator().items().send();
    let mut all = Vec::new();
    while let Some(item) = items.next().await {
        all.push(item.unwrap());
    }
    all
}

/// Returns the number of records that a processor has not committed; `None` while the brokers do
/// not say.
pub(super) async fn lag(fleet: &Fleet, processor: &str) -> Option<u64> {
    lag_of(fleet, &format!("{}.{processor}.g1", fleet.settings.name)).await
}

/// Returns the number of records of the topic that a group has not committed.
pub(super) async fn lag_of(fleet: &Fleet, group: &str) -> Option<u64> {
    let settings = &fleet.settings;
    let (brokers, topic) = (settings.brokers.clone(), settings.name.clone());
    let group = group.to_owned();
    let asked = tokio::task::spawn_blocking(move || lag_of_group(&brokers, &topic, &group));
    asked.await.unwrap()
}

fn lag_of_group(brokers: &str, topic: &str, group: &str) -> Option<u64> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).ok()?;
    let mut asked = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        asked.add_partition(topic, partition.id());
    }
    let committed = consumer.committed_offsets(asked, TIMEOUT).ok()?;
    let mut lag = 0;
    for element in committed.elements() {
        let (low, high) = consumer
            .fetch_watermarks(topic, element.partition(), TIMEOUT)
            .ok()?;
        // Nothing is committed yet: all is open.
        let at = element
            .offset()
            .to_raw()
            .filter(|at| *at >= 0)
            .unwrap_or(low);
        lag += u64::try_from(high - at).unwrap();
    }
    Some(lag)
}
