//! The event source mapping of a Lambda function: what AWS does between the change stream of a
//! table and the function. It reads the shards with the plain SDK, and delivers a batch again until
//! the function has answered that nothing of it has failed.
use super::Fleet;
use crate::lambda::runtime_api::{Answer, RuntimeApi};
use aws_sdk_dynamodbstreams::{
    Client,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
    types::{AttributeValue, Record, ShardIteratorType},
};
use base64::Engine as _;
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// The time of an invocation.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The most records of a batch.
const BATCH: i32 = 100;
/// The pause between two requests for records.
const PAUSE: Duration = Duration::from_millis(100);

/// A mapping in tasks of its own.
pub(super) struct Mapping {
    /// The number of kills of the function.
    kills: watch::Sender<u64>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Mapping {
    pub(super) async fn start(fleet: &Fleet, api: Arc<RuntimeApi>) -> Self {
        let client = client(&fleet.settings.dynamodb);
        let table = fleet.settings.dynamodb_config().events_table();
        let streams = client.list_streams().table_name(table).send().await;
        let streams = streams.unwrap().streams.unwrap_or_default();
        let stream = streams[0].stream_arn.clone().unwrap();
        let (kills, stop) = (watch::Sender::default(), CancellationToken::new());
        let source = Source {
            client,
            stream,
            api,
            kills: kills.subscribe(),
        };
        let task = tokio::spawn(source.run(stop.clone()));
        Self { kills, stop, task }
    }

    /// Returns the number of kills of the function, to be raised by each kill. The batch of a
    /// function that has died is delivered again.
    pub(super) fn kills(&self) -> watch::Sender<u64> {
        self.kills.clone()
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn client(endpoint: &str) -> Client {
    let config = aws_sdk_dynamodbstreams::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::standard().with_max_attempts(10));
    Client::from_conf(config.build())
}

/// The change stream of a table, and the function that gets its records.
#[derive(Clone)]
struct Source {
    client: Client,
    stream: String,
    api: Arc<RuntimeApi>,
    kills: watch::Receiver<u64>,
}

impl Source {
    /// Reads all shards at the same time.
    async fn run(self, stop: CancellationToken) {
        let (mut known, mut shards) = (HashSet::new(), JoinSet::new());
        while !stop.is_cancelled() {
            let request = self.client.describe_stream().stream_arn(&self.stream);
            let description = request.send().await.unwrap().stream_description.unwrap();
            for shard in description.shards.unwrap_or_default() {
                let id = shard.shard_id.unwrap();
                if known.insert(id.clone()) {
                    shards.spawn(self.clone().read(id, stop.clone()));
                }
            }
            tokio::time::sleep(PAUSE * 10).await;
        }
        shards.join_all().await;
    }

    async fn read(self, shard: String, stop: CancellationToken) {
        let request = self.client.get_shard_iterator().stream_arn(&self.stream);
        let request = request.shard_id(shard);
        let request = request.shard_iterator_type(ShardIteratorType::TrimHorizon);
        let mut iterator = request.send().await.unwrap().shard_iterator;
        while let Some(from) = iterator.take()
            && !stop.is_cancelled()
        {
            let request = self.client.get_records().shard_iterator(from).limit(BATCH);
            let page = request.send().await.unwrap();
            iterator = page.next_shard_iterator;
            let records = page.records.unwrap_or_default();
            let batch: Vec<Value> = records.iter().filter_map(json_of_record).collect();
            self.deliver(batch, &stop).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Invokes the function until it has reported success for all records.
    async fn deliver(&self, mut batch: Vec<Value>, stop: &CancellationToken) {
        let mut kills = self.kills.clone();
        while !batch.is_empty() && !stop.is_cancelled() {
            kills.mark_unchanged();
            let event = json!({"Records": batch});
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = kills.changed() => None,
                answer = self.api.try_invoke(&event, TIMEOUT) => answer,
            };
            // Without an answer, the whole batch comes again.
            let Some(answer) = answer else { continue };
            let Answer::Response(answer) = answer else {
                panic!("the function answers with an error: {answer:?}");
            };
            let failed = answer["batchItemFailures"].as_array().unwrap();
            let Some(first) = failed
                .iter()
                .map(|f| &f["itemIdentifier"])
                .min_by_key(|s| number(s))
            else {
                return;
            };
            let is_first = |record: &Value| record["dynamodb"]["SequenceNumber"] == *first;
            let first = batch.iter().position(is_first);
            batch.drain(..first.expect("the function reports a record of the batch"));
        }
    }
}

fn number(sequence: &Value) -> u128 {
    sequence.as_str().unwrap().parse().unwrap()
}

/// Returns a record as Lambda delivers it. The mapping filters on insertions.
fn json_of_record(record: &Record) -> Option<Value> {
    if record.event_name.as_ref()?.as_str() != "INSERT" {
        return None;
    }
    let change = record.dynamodb.as_ref()?;
    Some(json!({
        "eventID": record.event_id, "eventName": "INSERT", "eventVersion": "1.1",
        "eventSource": "aws:dynamodb", "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": change.approximate_creation_date_time?.secs(),
            "Keys": json_of_map(change.keys.as_ref()?),
            "NewImage": json_of_map(change.new_image.as_ref()?),
            "SequenceNumber": change.sequence_number,
            "SizeBytes": change.size_bytes, "StreamViewType": "NEW_IMAGE",
        },
    }))
}

fn json_of(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::S(text) => json!({"S": text}),
        AttributeValue::N(number) => json!({"N": number}),
        AttributeValue::B(bytes) => {
            json!({"B": base64::engine::general_purpose::STANDARD.encode(bytes.as_ref())})
        }
        AttributeValue::Bool(value) => json!({"BOOL": value}),
        AttributeValue::M(map) => json!({"M": json_of_map(map)}),
        AttributeValue::L(list) => json!({"L": list.iter().map(json_of).collect::<Vec<_>>()}),
        other => panic!("{other:?}"),
    }
}

fn json_of_map(map: &HashMap<String, AttributeValue>) -> Value {
    map.iter()
        .map(|(name, value)| (name.clone(), json_of(value)))
        .collect()
}
