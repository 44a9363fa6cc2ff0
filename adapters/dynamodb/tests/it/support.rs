//! A DynamoDB for one test, and an HTTP client that can lose requests and answers.
use aws_sdk_dynamodb::{
    Client,
    config::{
        BehaviorVersion, Credentials, HttpClient, Region, RuntimeComponents, SharedHttpClient,
    },
    error::ConnectorError,
    types::AttributeValue,
};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
    },
    http::StatusCode,
};
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream};
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp,
    ports::{Append, Commit, EventData, EventStore, EventStoreError, ReadFrom},
};
use foldstream_dynamodb::{
    DynamoDb, DynamoDbConfig, DynamoDbError, PublishMode, TableOptions, create_tables,
};
use foldstream_testkit::embedded::DynamoDbServer;
use futures::TryStreamExt as _;
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// An empty database and its server. The server runs until the process ends, since stores outlive
/// this value.
pub(crate) struct Server {
    pub(crate) endpoint: String,
}

impl Server {
    pub(crate) fn start() -> Self {
        let server = DynamoDbServer::start().unwrap();
        Self {
            endpoint: server.keep_running(),
        }
    }

    pub(crate) fn config(&self) -> DynamoDbConfig {
        DynamoDbConfig::default().with_endpoint(&self.endpoint)
    }
    /// Returns the configuration for tables whose commits have markers.
    pub(crate) fn poller(&self) -> DynamoDbConfig {
        self.config().with_publish_mode(PublishMode::Poller)
    }
    /// Creates tables whose commits have markers, and returns the stores.
    pub(crate) async fn stores(&self) -> DynamoDb {
        self.stores_with(self.poller()).await
    }
    pub(crate) async fn stores_with(&self, config: DynamoDbConfig) -> DynamoDb {
        create_tables(&config, &TableOptions::default())
            .await
            .unwrap();
        DynamoDb::connect(config).await.unwrap()
    }
    /// Creates the tables, and returns stores whose requests meet the fates that `fate` decides.
    pub(crate) async fn stores_over(
        &self,
        fate: impl Fn(&Call) -> Fate + Send + Sync + 'static,
    ) -> (DynamoDb, Wire) {
        let config = self.poller();
        create_tables(&config, &TableOptions::default())
            .await
            .unwrap();
        let wire = Wire::new(fate);
        let client = wire.client(&self.endpoint);
        wire.cut.store(false, Ordering::SeqCst);
        let stores = DynamoDb::with_client(client, config).await.unwrap();
        wire.cut.store(true, Ordering::SeqCst);
        wire.calls.lock().unwrap().clear();
        (stores, wire)
    }
    /// Returns a client whose requests meet the fates that `fate` decides.
    pub(crate) fn client_over(
        &self,
        fate: impl Fn(&Call) -> Fate + Send + Sync + 'static,
    ) -> Client {
        Wire::new(fate).client(&self.endpoint)
    }
    /// Returns a client without faults, for requests of the tests.
    pub(crate) fn client(&self) -> Client {
        self.client_over(|_| Fate::Pass)
    }
    /// Returns a client whose requests are recorded, and meet the fates that `fate` decides.
    pub(crate) fn wire(
        &self,
        fate: impl Fn(&Call) -> Fate + Send + Sync + 'static,
    ) -> (Client, Wire) {
        let wire = Wire::new(fate);
        (wire.client(&self.endpoint), wire)
    }
    /// Connects to existing tables by a client whose requests meet the fates that `fate` decides.
    pub(crate) async fn connect_over(
        &self,
        config: DynamoDbConfig,
        fate: impl Fn(&Call) -> Fate + Send + Sync + 'static,
    ) -> (Result<DynamoDb, DynamoDbError>, Wire) {
        let wire = Wire::new(fate);
        let client = wire.client(&self.endpoint);
        (DynamoDb::with_client(client, config).await, wire)
    }
}

/// The fate of a request.
pub(crate) enum Fate {
    Pass,
    /// The server carries the request out, and its answer is lost.
    LoseAnswer,
    /// The request is lost, and the client does not learn it.
    LoseRequest,
    /// The client gives the request up, and the server carries it out this much later.
    ApplyLater(Duration),
    /// The server does not see the request, which gets this answer.
    Answer(u16, String),
    /// The server carries the request out, and its answer is changed.
    Change(Box<dyn FnOnce(&mut serde_json::Value) + Send>),
}
impl Fate {
    /// Returns an error in the form of DynamoDB.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let kind = format!("com.amazonaws.dynamodb.v20120810#{code}");
        let body = serde_json::json!({ "__type": kind, "message": message });
        Self::Answer(status, body.to_string())
    }
}

/// A request that the client has sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) operation: String,
    pub(crate) body: serde_json::Value,
    /// The number of requests of this operation so far, including this one.
    pub(crate) nth: usize,
}

type Decide = dyn Fn(&Call) -> Fate + Send + Sync;

/// An HTTP client that records its requests, and may lose them.
#[derive(Clone)]
pub(crate) struct Wire {
    http: SharedHttpClient,
    fate: Arc<Mutex<Arc<Decide>>>,
    calls: Arc<Mutex<Vec<Call>>>,
    /// True if requests meet their fates. Otherwise all of them pass.
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn new(fate: impl Fn(&Call) -> Fate + Send + Sync + 'static) -> Self {
        Self {
            http: aws_smithy_http_client::Builder::new().build_http(),
            fate: Arc::new(Mutex::new(Arc::new(fate))),
            calls: Arc::default(),
            cut: Arc::new(AtomicBool::new(true)),
        }
    }
    /// Decides the fates of later requests in another way.
    pub(crate) fn decide(&self, fate: impl Fn(&Call) -> Fate + Send + Sync + 'static) {
        *self.fate.lock().unwrap() = Arc::new(fate);
    }
    pub(crate) fn client(&self, endpoint: &str) -> Client {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(self.clone())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("local", "local", None, None, "test"))
            .endpoint_url(endpoint);
        Client::from_conf(config.build())
    }
    /// Returns a client of the streams API, whose requests are recorded together with those to the
    /// tables.
    pub(crate) fn streams_client(&self, endpoint: &str) -> aws_sdk_dynamodbstreams::Client {
        let config = aws_sdk_dynamodbstreams::Config::builder()
            .behavior_version(aws_sdk_dynamodbstreams::config::BehaviorVersion::latest())
            .http_client(self.clone())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("local", "local", None, None, "test"))
            .endpoint_url(endpoint);
        aws_sdk_dynamodbstreams::Client::from_conf(config.build())
    }
    /// Adds the stream to the recorded requests for records, which name only an iterator. There
    /// must be one stream.
    pub(crate) fn name_streams_of_iterators(&self) {
        let mut calls = self.calls.lock().unwrap();
        let named = calls.iter().filter(|c| c.operation == "GetShardIterator");
        let mut streams: Vec<_> = named.map(|c| c.body["StreamArn"].clone()).collect();
        streams.dedup();
        let [stream] = &streams[..] else {
            panic!("{streams:?}");
        };
        for call in calls.iter_mut().filter(|c| c.operation == "GetRecords") {
            call.body["StreamArn"] = stream.clone();
        }
    }
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
    /// Forgets the requests that were sent so far.
    pub(crate) fn forget(&self) {
        self.calls.lock().unwrap().clear();
    }
    pub(crate) fn operations(&self) -> Vec<String> {
        self.calls().into_iter().map(|c| c.operation).collect()
    }

    fn record(&self, request: &HttpRequest) -> Call {
        let target = request.headers().get("x-amz-target").unwrap();
        let operation = target.rsplit('.').next().unwrap().to_owned();
        let mut calls = self.calls.lock().unwrap();
        let before = calls.iter().filter(|c| c.operation == operation).count();
        let call = Call {
            operation,
            body: serde_json::from_slice(request.body().bytes().unwrap()).unwrap(),
            nth: before + 1,
        };
        calls.push(call.clone());
        call
    }
}
impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl HttpClient for Wire {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            wire: self.clone(),
            inner: self.http.http_connector(settings, components),
        })
    }
}

#[derive(Debug)]
struct Connector {
    wire: Wire,
    inner: SharedHttpConnector,
}
impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let call = self.wire.record(&request);
        let lost = || ConnectorError::timeout("the test cut the wire".into());
        let fate = if self.wire.cut.load(Ordering::SeqCst) {
            let decide = self.wire.fate.lock().unwrap().clone();
            decide(&call)
        } else {
            Fate::Pass
        };
        match fate {
            Fate::Pass => self.inner.call(request),
            Fate::LoseRequest => HttpConnectorFuture::ready(Err(lost())),
            Fate::ApplyLater(wait) => {
                let answer = self.inner.call(request);
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    // Nobody waits for the answer.
                    let _ = answer.await;
                });
                HttpConnectorFuture::ready(Err(lost()))
            }
            Fate::LoseAnswer => {
                let answer = self.inner.call(request);
                HttpConnectorFuture::new(async move {
                    answer.await?;
                    Err(lost())
                })
            }
            Fate::Answer(status, body) => {
                let status = StatusCode::try_from(status).unwrap();
                HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(body))))
            }
            Fate::Change(change) => {
                let answer = self.inner.call(request);
                HttpConnectorFuture::new(async move {
                    let answer = answer.await?;
                    let status = answer.status();
                    let body = ByteStream::new(answer.into_body()).collect().await.unwrap();
                    let mut body = serde_json::from_slice(&body.into_bytes()).unwrap();
                    change(&mut body);
                    Ok(HttpResponse::new(status, SdkBody::from(body.to_string())))
                })
            }
        }
    }
}

/// Returns a stream of which there are no other users.
pub(crate) fn stream() -> StreamId {
    StreamId::new("cart", &CommitId::random()).unwrap()
}
pub(crate) fn event(payload: impl Into<String>) -> EventData {
    EventData::new("ItemAdded", 1, payload.into())
}
/// Returns an append of this number of events after a head.
pub(crate) fn append_of(head: &StreamHead, events: usize) -> Append {
    let events: Vec<_> = (0..events)
        .map(|n| event(format!("{{\"n\":{n}}}")))
        .collect();
    let now = Timestamp::from_micros(1_767_225_600_000_001);
    Append::after(head.clone(), CommitId::random(), now, events)
}
/// Stores commits of these lengths, and returns them.
pub(crate) async fn given(
    store: &impl EventStore,
    stream: &StreamId,
    lengths: &[usize],
) -> Vec<Commit> {
    let mut head = StreamHead::empty(stream.clone());
    let mut commits = Vec::new();
    for &events in lengths {
        let append = append_of(&head, events);
        let _ = store.append(&append).await.unwrap();
        head = append.head_after();
        commits.push(append.to_commit());
    }
    commits
}
pub(crate) async fn read(
    store: &impl EventStore,
    stream: &StreamId,
    from: ReadFrom,
) -> Result<Vec<Commit>, EventStoreError> {
    store.read(stream, from, None).try_collect().await
}
pub(crate) async fn read_all(store: &impl EventStore, stream: &StreamId) -> Vec<Commit> {
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    read(store, stream, start).await.unwrap()
}

/// The attributes of an item as DynamoDB stores them.
pub(crate) type Item = HashMap<String, AttributeValue>;

pub(crate) fn s(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}
#[expect(
    clippy::needless_pass_by_value,
    reason = "numbers are copied, and calls read better"
)]
pub(crate) fn n(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}
pub(crate) fn key(stream: &StreamId, first: u64) -> Item {
    Item::from([("pk".into(), s(stream.as_str())), ("sk".into(), n(first))])
}
pub(crate) async fn get_raw(client: &Client, stream: &StreamId, first: u64) -> Option<Item> {
    let request = client.get_item().table_name("events").consistent_read(true);
    request
        .set_key(Some(key(stream, first)))
        .send()
        .await
        .unwrap()
        .item
}
pub(crate) async fn put_raw(client: &Client, item: Item) {
    let request = client.put_item().table_name("events");
    request.set_item(Some(item)).send().await.unwrap();
}
pub(crate) async fn delete_raw(client: &Client, stream: &StreamId, first: u64) {
    let request = client.delete_item().table_name("events");
    request
        .set_key(Some(key(stream, first)))
        .send()
        .await
        .unwrap();
}
/// Returns the texts of an error and of all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |e| e.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
