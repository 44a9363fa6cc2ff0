//! The requests for one event in each publish mode, by which the section "Costs" of the README
//! counts. Requests that do not depend on events, such as those of leases, are left out.
use crate::support::{Call, Fate, Server, Wire, append_of, stream};
use foldstream::{
    StreamHead, StreamId,
    control::Watermarks,
    ports::EventStore as _,
    publisher::{PollConfig, Publisher},
};
use foldstream_dynamodb::{
    DynamoDb, PublishMode, TableOptions, create_tables,
    streams::{StreamsConfig, StreamsReader},
};
use foldstream_testkit::{InMemoryMessageBus, SeededIds};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_millis(20);

/// Returns the requests for the items of one stream, as `<operation> <table>`.
fn of_stream(calls: &[Call], stream: &StreamId) -> Vec<String> {
    let about = calls.iter().filter(|call| {
        // An index is listed for all streams together.
        call.body["IndexName"].is_null() && call.body.to_string().contains(stream.as_str())
    });
    about
        .map(|call| {
            let table = call.body["TableName"].as_str();
            let table = table.map_or_else(|| call.body.to_string(), str::to_owned);
            format!("{} {table}", call.operation)
        })
        .collect()
}

/// Publishes with the trigger of the mode, until the token is cancelled.
async fn publish(
    server: &Server,
    mode: PublishMode,
    stores: DynamoDb,
    wire: Wire,
    stop: CancellationToken,
) {
    let bus = InMemoryMessageBus::new();
    bus.create_topic("GlobalEvents", 1);
    let publisher = Publisher::new(stores.event_store(), bus, stores.control_store());
    if mode.marks_commits() {
        let config = PollConfig::default();
        publisher.poll(config, stop.cancelled()).await.unwrap();
        return;
    }
    let client = wire.streams_client(&server.endpoint);
    let config = StreamsConfig::default()
        .with_coordination(SOON)
        .with_idle_pause(SOON);
    let reader = StreamsReader::with_client(&client, &stores, publisher).with_config(config);
    reader.run(stop.cancelled()).await.unwrap();
}

/// Appends two commits of one event, and returns the requests for each: of the append, and of the
/// publisher.
async fn requests(mode: PublishMode) -> [Vec<String>; 4] {
    let server = Server::start();
    let config = server.config().with_publish_mode(mode);
    create_tables(&config, &TableOptions::default())
        .await
        .unwrap();
    let (writer, writes) = server.connect_over(config.clone(), |_| Fate::Pass).await;
    let (stores, wire) = server.connect_over(config, |_| Fate::Pass).await;
    let (writer, stores) = (writer.unwrap(), stores.unwrap());
    let marks = Watermarks::new(Arc::new(writer.control_store()), SeededIds::new(1));
    let stop = CancellationToken::new();
    let (running, stopping) = (wire.clone(), stop.clone());
    let publishing = publish(&server, mode, stores, running, stopping);
    let stream = stream();
    let appending = async {
        let mut head = StreamHead::empty(stream.clone());
        let mut requests = Vec::new();
        for _ in 0..2 {
            writes.forget();
            wire.forget();
            let append = append_of(&head, 1);
            let _ = writer.event_store().append(&append).await.unwrap();
            requests.push(of_stream(&writes.calls(), &stream));
            head = append.head_after();
            let is_published = async || {
                let mark = marks.get(&stream).await.unwrap();
                let clears = wire.operations().iter().any(|op| op == "UpdateItem");
                mark.is_some_and(|mark| mark.value.version == head.version())
                    && (clears || !mode.marks_commits())
            };
            while !is_published().await {
                tokio::time::sleep(SOON).await;
            }
            requests.push(of_stream(&wire.calls(), &stream));
        }
        stop.cancel();
        requests
    };
    let ((), requests) = tokio::join!(publishing, appending);
    requests.try_into().unwrap()
}

#[tokio::test]
async fn an_event_costs_the_requests_that_the_readme_counts() {
    let [append, first, again, later] = requests(PublishMode::Stream).await;
    assert_eq!([append, again], [["PutItem events"]; 2]);
    assert_eq!(first, ["GetItem events-control", "PutItem events-control"]);
    assert_eq!(later, ["PutItem events-control"]);

    let [append, first, again, later] = requests(PublishMode::Poller).await;
    assert_eq!([append, again], [["PutItem events"]; 2]);
    let finds = ["GetItem events-control", "Query events"];
    let publishes = ["PutItem events-control", "UpdateItem events"];
    assert_eq!(first, [finds, publishes].concat());
    assert_eq!(later, [&finds[1..], &publishes].concat());
}
