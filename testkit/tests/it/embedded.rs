//! The embedded DynamoDB: its start, its end, and its differences from DynamoDB.
use foldstream_testkit::embedded::DynamoDbServer;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

fn address(endpoint: &str) -> &str {
    endpoint.strip_prefix("http://").unwrap()
}

/// Sends one request over a connection of its own, and returns the status and the answer.
fn call(endpoint: &str, target: &str, body: &Value) -> (u16, Value) {
    let (host, body) = (address(endpoint), body.to_string());
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nx-amz-target: {target}\r\nx-amz-date: 20260101T000000Z\r\n\
         authorization: AWS4-HMAC-SHA256 Credential=any/20260101/any/dynamodb/aws4_request, SignedHeaders=host, Signature=any\r\n\
         content-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connection = TcpStream::connect(host).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}
fn dynamodb(endpoint: &str, operation: &str, body: &Value) -> (u16, Value) {
    call(endpoint, &format!("DynamoDB_20120810.{operation}"), body)
}

fn create_table(endpoint: &str, name: &str) {
    let table = json!({
        "TableName": name,
        "KeySchema": [{ "AttributeName": "pk", "KeyType": "HASH" }],
        "AttributeDefinitions": [{ "AttributeName": "pk", "AttributeType": "S" }],
        "BillingMode": "PAY_PER_REQUEST",
        "StreamSpecification": { "StreamEnabled": true, "StreamViewType": "KEYS_ONLY" },
    });
    assert_eq!(dynamodb(endpoint, "CreateTable", &table).0, 200);
}
fn tables(endpoint: &str) -> Value {
    dynamodb(endpoint, "ListTables", &json!({})).1["TableNames"].clone()
}

#[test]
fn several_servers_run_at_once_and_each_has_tables_of_its_own() {
    let servers: Vec<_> = (0..8).map(|_| DynamoDbServer::start().unwrap()).collect();
    for (n, server) in servers.iter().enumerate() {
        create_table(server.endpoint(), &format!("table-{n}"));
    }
    for (n, server) in servers.iter().enumerate() {
        assert_eq!(tables(server.endpoint()), json!([format!("table-{n}")]));
    }
}

#[test]
fn a_dropped_server_has_stopped_and_the_others_have_not() {
    let (stopped, other) = (DynamoDbServer::start(), DynamoDbServer::start().unwrap());
    let stopped = stopped.unwrap();
    let endpoint = stopped.endpoint().to_owned();
    create_table(&endpoint, "mine");
    drop(stopped);
    // Another test may have been given the port in the meantime.
    let is_closed = TcpStream::connect(address(&endpoint)).is_err();
    assert!(is_closed || tables(&endpoint) != json!(["mine"]));
    assert_eq!(tables(other.endpoint()), json!([]));
}

#[test]
fn a_dropped_server_closes_connections_that_are_idle() {
    let server = DynamoDbServer::start().unwrap();
    let mut idle = TcpStream::connect(address(server.endpoint())).unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let started = Instant::now();
    drop(server);
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "it waited for the idle one"
    );
    idle.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
}

#[tokio::test]
async fn a_server_starts_and_stops_within_a_runtime() {
    let server = DynamoDbServer::start().unwrap();
    let address = address(server.endpoint()).to_owned();
    assert!(tokio::net::TcpStream::connect(&address).await.is_ok());
    drop(server);
    assert!(tokio::net::TcpStream::connect(&address).await.is_err());
}

#[test]
fn a_server_that_is_kept_running_outlives_its_owner_and_the_runtime_that_started_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let endpoint = runtime.block_on(async { DynamoDbServer::start().unwrap().keep_running() });
    drop(runtime);
    assert_eq!(tables(&endpoint), json!([]));
}

/// Tests each row of the table "What the emulator does not do" that a request can show.
mod differences {
    use super::*;

    #[test]
    fn backups_are_unknown() {
        let server = DynamoDbServer::start().unwrap();
        create_table(server.endpoint(), "events");
        let on = json!({ "PointInTimeRecoveryEnabled": true });
        let request = json!({ "TableName": "events", "PointInTimeRecoverySpecification": on });
        let (status, answer) = dynamodb(server.endpoint(), "UpdateContinuousBackups", &request);
        let kind = answer["__type"].as_str().unwrap();
        assert_eq!(status, 400);
        assert!(kind.ends_with("UnknownOperationException"), "{kind}");
    }

    #[test]
    fn a_row_stays_after_its_time_to_live() {
        let server = DynamoDbServer::start().unwrap();
        let endpoint = server.endpoint();
        create_table(endpoint, "control");
        let ttl = json!({ "Enabled": true, "AttributeName": "x" });
        let request = json!({ "TableName": "control", "TimeToLiveSpecification": ttl });
        assert_eq!(dynamodb(endpoint, "UpdateTimeToLive", &request).0, 200);
        let row = json!({ "pk": { "S": "a" }, "x": { "N": "1767225600" } });
        let put = json!({ "TableName": "control", "Item": row });
        assert_eq!(dynamodb(endpoint, "PutItem", &put).0, 200);
        let get = json!({ "TableName": "control", "Key": { "pk": { "S": "a" } } });
        assert_eq!(dynamodb(endpoint, "GetItem", &get).1["Item"], row);
    }

    #[test]
    fn a_change_stream_has_one_shard() {
        let server = DynamoDbServer::start().unwrap();
        let endpoint = server.endpoint();
        create_table(endpoint, "events");
        let table = dynamodb(endpoint, "DescribeTable", &json!({ "TableName": "events" })).1;
        let stream = json!({ "StreamArn": table["Table"]["LatestStreamArn"] });
        let target = "DynamoDBStreams_20120810.DescribeStream";
        let described = call(endpoint, target, &stream).1;
        let shards = described["StreamDescription"]["Shards"].as_array().unwrap();
        assert_eq!(shards.len(), 1);
    }
}
