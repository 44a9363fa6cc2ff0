//! The reader of the change stream on DynamoDB Local: two instances, of which one dies.
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp,
    control::Watermarks,
    ports::{Append, AppendOutcome, EventData, EventStore as _, MessageBus as _},
    publisher::Publisher,
};
use foldstream_dynamodb::{
    DynamoDb, PublishMode, TableOptions, create_tables,
    streams::{ReaderState, StreamsConfig, StreamsReader},
};
use foldstream_live::dynamodb_config;
use foldstream_testkit::{InMemoryMessageBus, SeededIds, containers};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const STREAMS: usize = 20;
const ROUNDS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);

fn account(n: usize) -> StreamId {
    StreamId::new("account", &n).unwrap()
}

async fn reader(stores: &DynamoDb, bus: &Arc<InMemoryMessageBus>) -> StreamsReader {
    let publisher = Publisher::new(stores.event_store(), bus.clone(), stores.control_store());
    let config = StreamsConfig::default()
        .with_lease(Duration::from_secs(2))
        .with_coordination(Duration::from_millis(200))
        .with_idle_pause(Duration::from_millis(100));
    let reader = StreamsReader::new(stores, publisher).await.unwrap();
    reader.with_config(config)
}

async fn append(stores: &DynamoDb, heads: &mut [StreamHead]) {
    for head in heads {
        let events = vec![EventData::new("Deposited", 1, "{}"); 2];
        let append = Append::after(head.clone(), CommitId::random(), Timestamp::now(), events);
        match stores.event_store().append(&append).await.unwrap() {
            AppendOutcome::Appended(after) => *head = after,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn readers_of_the_change_stream_take_over_and_lose_nothing() {
    let server = containers::DynamoDb::shared().await;
    let config = dynamodb_config(server.endpoint(), &CommitId::random().to_string());
    let config = config.with_publish_mode(PublishMode::Stream);
    create_tables(&config, &TableOptions::default())
        .await
        .unwrap();
    let stores = DynamoDb::connect(config).await.unwrap();
    let bus = InMemoryMessageBus::new();
    bus.create_topic("GlobalEvents", 3);
    let mut heads: Vec<StreamHead> = (0..STREAMS)
        .map(|n| StreamHead::empty(account(n)))
        .collect();

    let (first, second) = (reader(&stores, &bus).await, reader(&stores, &bus).await);
    let dying = {
        let reader = first.clone();
        tokio::spawn(async move { reader.run(std::future::pending()).await })
    };
    let stop = CancellationToken::new();
    let staying = {
        let (reader, stop) = (second.clone(), stop.clone());
        tokio::spawn(async move { reader.run(stop.cancelled()).await })
    };
    for round in 0..ROUNDS {
        append(&stores, &mut heads).await;
        if round == ROUNDS / 2 {
            dying.abort();
        }
    }
    let events = (STREAMS * ROUNDS * 2) as u64;
    let marks = Watermarks::new(Arc::new(stores.control_store()), SeededIds::new(1));
    let is_published = async || {
        for head in &heads {
            let mark = marks.get(head.stream()).await.unwrap();
            if mark.map(|mark| mark.value.version) != Some(head.version()) {
                return false;
            }
        }
        true
    };
    let started = tokio::time::Instant::now();
    while !is_published().await {
        assert!(
            started.elapsed() < PATIENCE,
            "not published: {:?}",
            second.status()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let offsets = bus.offsets("GlobalEvents").await.unwrap();
    let records: u64 = offsets.iter().map(|partition| partition.end.get()).sum();
    assert!(records >= events, "{records} records of {events} events");
    // The instance that is left takes the shards over, if it had none.
    while second.status().state != ReaderState::Reading {
        assert!(started.elapsed() < PATIENCE, "{:?}", second.status());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(second.status().reconcile, None);
    stop.cancel();
    staying.await.unwrap().unwrap();
}
