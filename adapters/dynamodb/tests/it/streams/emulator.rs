//! The reader on dynoxide, whose streams have one shard: the calls of the SDK, and real records.
use crate::support::{Fate, Server};
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp, Version,
    control::Watermarks,
    ports::{Append, AppendOutcome, EventData, EventStore as _, MessageBus as _},
    publisher::Publisher,
};
use foldstream_dynamodb::{
    DynamoDb, PublishMode,
    streams::{ReaderState, StreamsConfig, StreamsReader},
};
use foldstream_testkit::{InMemoryMessageBus, SeededIds};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

fn order(id: u32) -> StreamId {
    StreamId::new("order", &id).unwrap()
}

async fn append(stores: &DynamoDb, id: u32, events: Vec<EventData>) {
    let head = StreamHead::empty(order(id));
    let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
    let outcome = stores.event_store().append(&append).await.unwrap();
    assert!(matches!(outcome, AppendOutcome::Appended(_)), "{outcome:?}");
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: not within 12 s");
}

#[tokio::test]
async fn commits_large_and_small_are_published_from_a_real_stream() {
    let server = Server::start();
    let stores = server
        .stores_with(server.config().with_publish_mode(PublishMode::Stream))
        .await;
    let bus = InMemoryMessageBus::new();
    bus.create_topic("GlobalEvents", 3);
    let small = || vec![EventData::new("Placed", 1, "{}")];
    append(&stores, 1, small()).await;
    // A commit of several items.
    let large = format!("\"{}\"", "x".repeat(200_000));
    append(&stores, 2, vec![EventData::new("Large", 1, large); 5]).await;

    let publisher = Publisher::new(stores.event_store(), bus.clone(), stores.control_store());
    let reader = StreamsReader::new(&stores, publisher).await.unwrap();
    let config = StreamsConfig::default()
        .with_coordination(Duration::from_millis(50))
        .with_idle_pause(Duration::from_millis(50));
    let reader = reader.with_config(config);
    let stop = CancellationToken::new();
    let running = {
        let (reader, stop) = (reader.clone(), stop.clone());
        tokio::spawn(async move { reader.run(stop.cancelled()).await })
    };
    let records = async || {
        let offsets = bus.offsets("GlobalEvents").await.unwrap();
        offsets
            .iter()
            .map(|partition| partition.end.get())
            .sum::<u64>()
    };
    until("the backlog", async || records().await == 6).await;
    append(&stores, 3, small()).await;
    until("what is new", async || records().await == 7).await;
    assert_eq!(reader.status().state, ReaderState::Reading);
    stop.cancel();
    let report = running.await.unwrap().unwrap();
    assert_eq!(report.messages, 7);

    let marks = Watermarks::new(Arc::new(stores.control_store()), SeededIds::new(1));
    for (id, version) in [(1, 1), (2, 5), (3, 1)] {
        let mark = marks.get(&order(id)).await.unwrap().unwrap().value.version;
        assert_eq!(mark, Version::new(version), "order {id}");
    }
    // Another instance goes on after the checkpoint, and sends nothing again.
    append(&stores, 4, small()).await;
    let publisher = Publisher::new(stores.event_store(), bus.clone(), stores.control_store());
    let next = StreamsReader::new(&stores, publisher).await.unwrap();
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let running = tokio::spawn(async move { next.run(stopping.cancelled()).await });
    until("what came meanwhile", async || records().await == 8).await;
    stop.cancel();
    assert_eq!(running.await.unwrap().unwrap().messages, 1);
}

#[tokio::test]
async fn an_expired_iterator_is_made_again_after_the_last_record_and_not_at_the_newest() {
    let server = Server::start();
    let config = server.config().with_publish_mode(PublishMode::Stream);
    let stores = server.stores_with(config).await;
    let (_, wire) = server.wire(|_| Fate::Pass);
    let bus = InMemoryMessageBus::new();
    bus.create_topic("GlobalEvents", 1);
    let publisher = Publisher::new(stores.event_store(), bus.clone(), stores.control_store());
    let client = wire.streams_client(&server.endpoint);
    let config = StreamsConfig::default().with_idle_pause(Duration::from_millis(20));
    let reader = StreamsReader::with_client(&client, &stores, publisher).with_config(config);
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let running = tokio::spawn(async move { reader.run(stopping.cancelled()).await });
    let records = async || bus.offsets("GlobalEvents").await.unwrap()[0].end.get();
    let small = || vec![EventData::new("Placed", 1, "{}")];
    append(&stores, 1, small()).await;
    until("the first record", async || records().await == 1).await;

    // Another record is written while the iterator expires.
    wire.decide(|call| match call.operation.as_str() {
        "GetRecords" => Fate::error(400, "ExpiredIteratorException", "15 minutes"),
        _ => Fate::Pass,
    });
    append(&stores, 2, small()).await;
    let iterators = || {
        let calls = wire.operations().into_iter();
        calls.filter(|name| name == "GetShardIterator").count()
    };
    until("another iterator", async || iterators() >= 3).await;
    wire.decide(|_| Fate::Pass);
    until("the second record", async || records().await == 2).await;
    stop.cancel();
    assert_eq!(running.await.unwrap().unwrap().messages, 2);
}
