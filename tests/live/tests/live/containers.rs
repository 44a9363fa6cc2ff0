//! The servers that the other live suites stand on: they answer, they are shared, and they are set
//! up as the suites expect.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use foldstream_testkit::containers::{DynamoDb, Kafka};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::types::RDKafkaErrorCode;

const PATIENCE: Duration = Duration::from_secs(30);

fn client(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers());
    config
}

fn unique(prefix: &str) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    format!("{prefix}-{}-{}", std::process::id(), now.as_nanos())
}

async fn create_topic(kafka: &Kafka, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = client(kafka).create().unwrap();
    let topic = NewTopic::new(topic, 3, TopicReplication::Fixed(1));
    for result in admin
        .create_topics([&topic], &AdminOptions::new())
        .await
        .unwrap()
    {
        result.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn dynamodb_answers_an_api_call() {
    let dynamodb = DynamoDb::shared().await;
    let address = dynamodb.endpoint().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "POST / HTTP/1.0\r\nHost: {address}\r\nX-Amz-Target: DynamoDB_20120810.ListTables\r\n\
         Content-Type: application/x-amz-json-1.0\r\nX-Amz-Date: 20260101T000000Z\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/dynamodb/aws4_request, \
         SignedHeaders=host, Signature=0\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
    assert!(answer.contains("TableNames"), "{answer}");
}

#[tokio::test]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn kafka_commits_a_transaction_on_one_node() {
    let kafka = Kafka::shared().await;
    let topic = unique("transaction");
    create_topic(kafka, &topic).await;
    let producer: FutureProducer = client(kafka)
        .set("transactional.id", unique("producer"))
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    let record = FutureRecord::to(&topic).key("key").payload("payload");
    producer
        .send(record, PATIENCE)
        .await
        .map_err(|(error, _)| error)
        .unwrap();
    producer.commit_transaction(PATIENCE).unwrap();
}

#[tokio::test]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn kafka_does_not_create_a_topic_by_itself() {
    let kafka = Kafka::shared().await;
    let producer: FutureProducer = client(kafka)
        .set("topic.metadata.propagation.max.ms", "1000")
        .create()
        .unwrap();
    let topic = unique("misspelt");
    let record = FutureRecord::to(&topic).key("key").payload("payload");
    let (error, _) = producer.send(record, PATIENCE).await.unwrap_err();
    let KafkaError::MessageProduction(code) = error else {
        panic!("{error}")
    };
    assert!(
        matches!(
            code,
            RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition
        ),
        "{code:?}"
    );
}

/// Each test has a runtime of its own, and the server outlives all of them.
#[test]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
fn one_server_is_shared_across_runtimes() {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let kafka = Kafka::shared().await;
            create_topic(kafka, &unique("shared")).await;
            kafka.brokers()
        })
    };
    assert!(std::ptr::eq(ask(), ask()));
}
