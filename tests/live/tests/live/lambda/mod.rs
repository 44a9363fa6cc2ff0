//! The Lambda function on real servers: the program `bootstrap`, driven by a fake of the Runtime
//! API, which is frozen and killed.
pub(crate) mod runtime_api;

use self::runtime_api::{Answer, RuntimeApi};
use crate::kafka::unique;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine as _;
use foldstream::{
    CommitId, IdSource, StreamHead, StreamId, SystemIds, Timestamp, Version,
    control::Watermarks,
    ports::{Append, AppendOutcome, EventData, EventStore as _},
    publisher::{DirtyReason, Publisher},
};
use foldstream_dynamodb::{DynamoDb, PublishMode, TableOptions, create_tables};
use foldstream_kafka::{KafkaConfig, KafkaMessageBus, TopicSpec};
use foldstream_live::dynamodb_config;
use foldstream_testkit::{containers, length};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

const PARTITIONS: u32 = 3;
/// The time of an invocation. The machine may be busy with other tests.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The time after which the function takes a pause for a freeze, and its producer loses patience.
const FREEZE: Duration = Duration::from_secs(2);

/// Returns the program. CI has built it. Otherwise it is built here, into the folder of this build.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("FOLDSTREAM_LAMBDA") {
        Some(path) => path.into(),
        None => {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = std::process::Command::new(cargo)
                .args(["build", "-p", "foldstream-lambda", "--bin", "bootstrap"])
                .arg("--message-format=json")
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .stderr(Stdio::inherit())
                .output()
                .expect("cargo runs");
            assert!(built.status.success(), "the function does not build");
            let messages = String::from_utf8(built.stdout).unwrap();
            let messages = messages
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            let mut executables =
                messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
            executables.next_back().expect("cargo names the program")
        }
    })
}

/// A table in stream mode, a topic, and the Runtime API of one function.
struct World {
    name: String,
    database: String,
    brokers: String,
    stores: DynamoDb,
    api: RuntimeApi,
    heads: HashMap<StreamId, StreamHead>,
    folder: tempfile::TempDir,
}

impl World {
    async fn open(name: &str) -> Self {
        let database = containers::DynamoDb::shared().await.endpoint().to_owned();
        let brokers = containers::Kafka::shared().await.brokers().to_owned();
        let name = unique(name);
        let config = dynamodb_config(&database, &name).with_publish_mode(PublishMode::Stream);
        create_tables(&config, &TableOptions::default())
            .await
            .unwrap();
        let world = Self {
            stores: DynamoDb::connect(config).await.unwrap(),
            api: RuntimeApi::start().await,
            heads: HashMap::new(),
            folder: tempfile::tempdir().unwrap(),
            name,
            database,
            brokers,
        };
        let topic = TopicSpec::new(&world.name, PARTITIONS);
        world.bus().create_topic(&topic).await.unwrap();
        world
    }

    fn bus(&self) -> KafkaMessageBus {
        let config = KafkaConfig::default().with_brokers(&self.brokers);
        KafkaMessageBus::new(config.with_events_topic(&self.name)).unwrap()
    }

    /// Starts the function, with an environment that has nothing of the test's.
    fn start(&self, log: &str, concurrency: u32) -> Function {
        let seconds = FREEZE.as_secs().to_string();
        let log = self.folder.path().join(log);
        let child = Command::new(program())
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", &self.api.address)
            .env("AWS_LAMBDA_FUNCTION_NAME", "publisher")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("DYNAMODB_URL", &self.database)
            .env("DYNAMODB_PREFIX", format!("{}-", self.name))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("KAFKA_BROKERS", &self.brokers)
            .env("KAFKA_EVENTS_TOPIC", &self.name)
            .env("KAFKA_PUBLISH_TIMEOUT", &seconds)
            .env("FOLDSTREAM_FREEZE", &seconds)
            .env("FOLDSTREAM_CONCURRENCY", concurrency.to_string())
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Function { child, log }
    }

    /// Appends commits of two events to each stream.
    async fn append(&mut self, streams: u32, commits: u32) {
        let store = self.stores.event_store();
        for n in 0..streams {
            let stream = StreamId::new("cart", &n.to_string()).unwrap();
            let head = self.heads.remove(&stream);
            let mut head = head.unwrap_or_else(|| StreamHead::empty(stream.clone()));
            for _ in 0..commits {
                let events = vec![EventData::new("Added", 1, r#"{"sku":"x"}"#); 2];
                let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
                let AppendOutcome::Appended(appended) = store.append(&append).await.unwrap() else {
                    panic!("the append of {stream} has a conflict");
                };
                head = appended;
            }
            self.heads.insert(stream, head);
        }
    }

    /// Returns the event with which Lambda would report the items of the table with versions above
    /// this one.
    async fn batch(&self, above: u64) -> Value {
        let table = format!("{}-events", self.name);
        let request = self.stores.client().scan().table_name(table);
        let mut items = request.into_paginator().items().send();
        let mut records = Vec::new();
        while let Some(item) = items.next().await {
            let item = item.unwrap();
            let version: u64 = item["sk"].as_n().unwrap().parse().unwrap();
            if version > above && item["pk"].as_s().unwrap().starts_with("cart#") {
                records.push((version, item));
            }
        }
        // Commits of a stream come in order, and those of different streams in turns.
        records.sort_by_key(|(version, _)| *version);
        let seconds = Timestamp::now().as_micros() / 1_000_000;
        let records = records.into_iter().zip(1_u64..).map(|((_, item), number)| {
            json!({
                "eventID": number.to_string(), "eventName": "INSERT", "eventVersion": "1.1",
                "eventSource": "aws:dynamodb", "awsRegion": "us-east-1",
                "dynamodb": {
                    "ApproximateCreationDateTime": seconds,
                    "Keys": {"pk": json_of(&item["pk"]), "sk": json_of(&item["sk"])},
                    "NewImage": map_of(&item),
                    "SequenceNumber": format!("4{number:020}"),
                    "SizeBytes": 200, "StreamViewType": "NEW_IMAGE",
                },
            })
        });
        json!({"Records": records.collect::<Vec<_>>()})
    }

    async fn invoke(&self, event: &Value) -> Value {
        match self.api.invoke(event, TIMEOUT).await {
            Answer::Response(json) => json,
            Answer::Error(json) => panic!("the function answers with an error: {json}"),
        }
    }

    /// Reads the topic with librdkafka alone, checks the order of first occurrences, and returns
    /// the number of records and that of events.
    async fn read_topic(&self) -> (usize, usize) {
        let (brokers, topic) = (self.brokers.clone(), self.name.clone());
        let read = move || read(&brokers, &topic);
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    /// Checks that every event is in the topic, and every watermark at its tail. Returns the number
    /// of duplicates.
    async fn assert_published(&self) -> usize {
        let (records, events) = self.read_topic().await;
        let tails = self.heads.values().map(|head| head.version().get());
        assert_eq!(events as u64, tails.sum::<u64>());
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds);
        let marks = Watermarks::new(self.stores.control_store(), ids);
        for (stream, head) in &self.heads {
            let mark = marks.get(stream).await.unwrap();
            let mark = mark.map_or(Version::NONE, |row| row.value.version);
            assert_eq!(mark, head.version(), "{stream}");
        }
        records - events
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("logs: {}", self.folder.path().display());
        }
    }
}

fn json_of(value: &AttributeValue) -> Value {
    let base64 = |bytes: &aws_sdk_dynamodb::primitives::Blob| {
        base64::engine::general_purpose::STANDARD.encode(bytes.as_ref())
    };
    match value {
        AttributeValue::S(text) => json!({"S": text}),
        AttributeValue::N(number) => json!({"N": number}),
        AttributeValue::B(bytes) => json!({"B": base64(bytes)}),
        AttributeValue::Bool(value) => json!({"BOOL": value}),
        AttributeValue::M(map) => json!({"M": map_of(map)}),
        AttributeValue::L(list) => json!({"L": list.iter().map(json_of).collect::<Vec<_>>()}),
        other => panic!("{other:?}"),
    }
}
fn map_of(map: &HashMap<String, AttributeValue>) -> Value {
    map.iter()
        .map(|(name, value)| (name.clone(), json_of(value)))
        .collect()
}

fn read(brokers: &str, topic: &str) -> (usize, usize) {
    let patience = Duration::from_secs(30);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "raw-reader")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let (mut assigned, mut left) = (TopicPartitionList::new(), 0);
    for partition in 0..PARTITIONS.cast_signed() {
        let range = consumer.fetch_watermarks(topic, partition, patience);
        left += range.unwrap().1;
        assigned
            .add_partition_offset(topic, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assigned).unwrap();
    let records = usize::try_from(left).unwrap();
    let mut newest = BTreeMap::<Vec<u8>, usize>::new();
    while left > 0 {
        let record = consumer.poll(patience).expect("a record in time").unwrap();
        let headers = record.headers().unwrap();
        let version = headers.iter().find(|header| header.key == "ce_fsversion");
        let version = std::str::from_utf8(version.unwrap().value.unwrap()).unwrap();
        let version: usize = version.parse().unwrap();
        let newest = newest.entry(record.key().unwrap().to_vec()).or_default();
        assert!(version <= *newest + 1, "{version} after {newest}");
        *newest = version.max(*newest);
        left -= 1;
    }
    (records, newest.values().sum())
}

/// A process of the function. Dropping the value kills it.
struct Function {
    child: Child,
    log: PathBuf,
}
impl Function {
    fn signal(&self, name: &str) {
        let id = self.child.id().expect("the process is running").to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &id])
            .status();
        assert!(sent.unwrap().success());
    }
    /// Returns the lines of the log, each of which is JSON.
    fn logged(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }
    fn has_logged(&self, text: &str) -> bool {
        self.logged().iter().any(|line| line["message"] == text)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_function_publishes_batches_and_sweeps_also_after_a_freeze() {
    let mut world = World::open("lambda-freeze").await;
    let mut function = world.start("function.log", 32);
    let done = json!({"batchItemFailures": []});
    world.append(20, 2).await;
    let event = world.batch(0).await;
    assert_eq!(event["Records"].as_array().unwrap().len(), 40);
    assert_eq!(world.invoke(&event).await, done);
    assert_eq!(world.assert_published().await, 0);
    // The batch comes again.
    assert_eq!(world.invoke(&event).await, done);

    // Between invocations, for longer than the producer has patience.
    function.signal("STOP");
    tokio::time::sleep(2 * FREEZE).await;
    function.signal("CONT");
    world.append(20, 2).await;
    assert_eq!(world.invoke(&world.batch(4).await).await, done);
    assert!(function.has_logged("the function was frozen, and connects again"));
    assert_eq!(world.assert_published().await, 0);

    // A stream that was set aside, and an event of a schedule.
    world.append(1, 1).await;
    let (store, control) = (world.stores.event_store(), world.stores.control_store());
    let stream = StreamId::new("cart", "0").unwrap();
    let (known, why) = (world.heads[&stream].version(), DirtyReason::Backlog);
    let operator = Publisher::new(store, world.bus(), control);
    operator.set_aside(&stream, known, why).await.unwrap();
    let schedule = json!({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}});
    let swept = world.invoke(&schedule).await;
    assert_eq!(
        (&swept["found"], &swept["published"]),
        (&json!(1), &json!(1)),
        "{swept}"
    );
    assert_eq!(world.assert_published().await, 0);

    let unknown = world.api.invoke(&json!({"hello": "world"}), TIMEOUT).await;
    let Answer::Error(error) = unknown else {
        panic!("{unknown:?}");
    };
    assert_eq!(error["errorType"], "InvalidEvent");
    let message = error["errorMessage"].as_str().unwrap();
    assert!(
        message.contains("map the function to the stream"),
        "{message}"
    );

    function.signal("TERM");
    let ended = tokio::time::timeout(TIMEOUT, function.child.wait()).await;
    assert!(ended.expect("the function ends").unwrap().success());
    assert!(function.has_logged("the process was told to stop"));
}

/// Given a function that is killed in the middle of a batch, when the batch is delivered again,
/// then the topic has every event, and first occurrences are in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_batch_whose_function_was_killed_is_published_when_it_comes_again() {
    // `processes::triggers` kills a function as well.
    let kills = length::of("kills of a function", 1, 20);
    let mut world = World::open("lambda-kill").await;
    let mut above = 0;
    for kill in 0..kills {
        world.append(100, 3).await;
        let event = world.batch(above).await;
        above += 6;
        let before = world.read_topic().await.0;
        // One stream at a time, so that there is a middle.
        let mut function = world.start(&format!("killed-{kill}.log"), 1);
        let killing = async {
            let began = Instant::now();
            while world.read_topic().await.0 < before + 50 {
                assert!(began.elapsed() < TIMEOUT, "nothing is published");
            }
            function.child.kill().await.unwrap();
        };
        tokio::select! {
            answer = world.api.invoke(&event, TIMEOUT) => panic!("the function was faster than the test: {answer:?}"),
            () = killing => {}
        }
        let published = world.read_topic().await.0 - before;
        assert!(published < 600, "kill {kill} came after the whole batch");
        let _function = world.start(&format!("again-{kill}.log"), 32);
        assert_eq!(world.invoke(&event).await, json!({"batchItemFailures": []}));
    }
    let duplicates = world.assert_published().await;
    println!("{kills} kills in the middle of a batch, {duplicates} duplicates");
}
