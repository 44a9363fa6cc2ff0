//! The work of a publisher whose trigger is the reader of the change stream: all that the reader
//! does from its start to its end, a loss of records included.
use crate::support::{Fate, Server, Wire, given, stream};
use foldstream::publisher::Publisher;
use foldstream_dynamodb::{
    DynamoDb,
    streams::{ReaderState, StreamsConfig, StreamsReader},
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_millis(20);

/// Reads the change stream, and records the requests to both APIs in the wire.
pub(super) async fn work(
    server: &Server,
    writer: &DynamoDb,
    stores: &DynamoDb,
    wire: &Wire,
    publisher: &Publisher,
) {
    // The first request for records finds that some are deleted, so that an operator reconciles.
    wire.decide(|call| match (call.operation.as_str(), call.nth) {
        ("GetRecords", 1) => Fate::error(400, "TrimmedDataAccessException", "deleted"),
        _ => Fate::Pass,
    });
    let client = wire.streams_client(&server.endpoint);
    let config = StreamsConfig::default()
        .with_coordination(SOON)
        .with_idle_pause(SOON)
        .with_min_pause(SOON)
        .with_checkpoint(SOON);
    let reader = StreamsReader::with_client(&client, stores, publisher.clone()).with_config(config);
    let stop = CancellationToken::new();
    let running = {
        let (reader, stop) = (reader.clone(), stop.clone());
        tokio::spawn(async move { reader.run(stop.cancelled_owned()).await })
    };

    let lost = loop {
        if let Some(lost) = reader.status().reconcile {
            break lost;
        }
        assert!(!running.is_finished(), "{:?}", running.await);
        tokio::time::sleep(SOON).await;
    };
    assert!(reader.reconciled(&lost).await.unwrap());
    given(&writer.event_store(), &stream(), &[1]).await;
    let has_read = |reader: &StreamsReader| {
        let status = reader.status();
        status.messages > 0 && status.shards.iter().any(|shard| shard.checkpoint.is_some())
    };
    while !has_read(&reader) {
        assert!(!running.is_finished(), "{:?}", running.await);
        tokio::time::sleep(SOON).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(reader.status().state, ReaderState::Stopped);
    wire.name_streams_of_iterators();
}
