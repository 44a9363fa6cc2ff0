//! The number of requests of a call, the time limit of each, and requests that were certainly never
//! sent.
use crate::support::{Call, Fate, Server, Wire, append_of, chain, event, stream};
use aws_sdk_dynamodb::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region,
        endpoint::{Endpoint, EndpointFuture, Params, ResolveEndpoint},
        retry::RetryConfig,
    },
};
use foldstream::{
    CommitId, StreamHead, Version,
    ports::{
        Append, AppendAll, ControlStore as _, EventStore as _, EventStoreError, Expect, RangeQuery,
        ReadFrom, Revision, Row, RowKey, SnapshotStore as _, StoredSnapshot,
    },
};
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig};
use futures::TryStreamExt as _;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

fn empty() -> StreamHead {
    StreamHead::empty(stream())
}
fn snapshot() -> StoredSnapshot {
    StoredSnapshot::new(
        stream(),
        Version::new(1),
        CommitId::random(),
        1,
        "{}".into(),
    )
}
fn row() -> Row {
    Row::new(RowKey::new("p", "s"), b"v".to_vec(), Revision::from_u128(1))
}

/// Calls every operation of every port, and ignores the errors.
async fn call_each(stores: &DynamoDb) -> Vec<&'static str> {
    let (events, snapshots) = (stores.event_store(), stores.snapshot_store());
    let control = stores.control_store();
    let two = AppendAll::new(vec![append_of(&empty(), 1), append_of(&empty(), 1)]);
    let read = |store: &foldstream_dynamodb::DynamoDbEventStore| {
        let store = store.clone();
        async move {
            let commits = store.read(&stream(), ReadFrom::Newest, None);
            commits.try_collect::<Vec<_>>().await.is_err()
        }
    };
    let done = [
        (
            "append",
            events.append(&append_of(&empty(), 1)).await.is_err(),
        ),
        ("append_all", events.append_all(&two).await.is_err()),
        ("read", read(&events).await),
        ("streams", events.streams("cart", None).await.is_err()),
        ("load", snapshots.load(&stream()).await.is_err()),
        ("save", snapshots.save(&snapshot()).await.is_err()),
        (
            "delete a snapshot",
            snapshots.delete(&stream()).await.is_err(),
        ),
        ("get", control.get(&row().key).await.is_err()),
        ("get_many", control.get_many(&[row().key]).await.is_err()),
        ("put", control.put(&row(), Expect::Absent).await.is_err()),
        ("range", control.range(&RangeQuery::new("p")).await.is_err()),
    ];
    done.into_iter()
        .filter(|(_, failed)| !failed)
        .map(|(call, _)| call)
        .collect()
}

/// The SDK's own retries would multiply with those of the adapter: 4 times 3 requests of 5 s each.
#[tokio::test]
async fn no_call_sends_the_same_request_more_often_than_configured() {
    let table = |call: &Call| call.body.to_string().contains("events-control");
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::LoseRequest).await;
    assert_eq!(call_each(&stores).await, [""; 0], "succeeded");
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    for call in wire.calls() {
        *counts
            .entry((call.operation.clone(), table(&call)))
            .or_default() += 1;
    }
    // Two calls of each port share `PutItem` and `GetItem`.
    for ((operation, is_control), sent) in &counts {
        let most = match (operation.as_str(), is_control) {
            // An append (1), and the snapshot of a save (4).
            ("PutItem", false) => 5,
            // Both appends read their slots (4 each), and a snapshot is loaded (4).
            ("GetItem", false) => 12,
            // Callers resolve a put of a control row by the same put: four requests for an offset,
            // not eight.
            ("PutItem", true) => 2,
            ("TransactWriteItems", _) => 1,
            // The calls `read` and `streams`.
            ("Query", false) => 8,
            _ => 4,
        };
        assert_eq!(
            *sent, most,
            "{operation}, control: {is_control}: {counts:?}"
        );
    }
}

#[tokio::test]
async fn retries_of_the_callers_client_do_not_multiply_with_ours() {
    let server = Server::start();
    server.stores().await;
    let (_, wire) = server.connect_over(server.config(), |_| Fate::Pass).await;
    let client = wire.client(&server.config().endpoint.unwrap());
    let retries = RetryConfig::standard().with_max_attempts(10);
    let client = Client::from_conf(client.config().to_builder().retry_config(retries).build());
    let stores = DynamoDb::with_client(client, server.config())
        .await
        .unwrap();
    wire.decide(|_| Fate::error(500, "InternalServerError", "broken"));
    stores.snapshot_store().load(&stream()).await.unwrap_err();
    let sent = wire
        .operations()
        .into_iter()
        .filter(|name| name == "GetItem");
    // Each connect reads the row `meta/format` in addition.
    assert_eq!(sent.count(), 2 + 4);
}

/// Starts a server that accepts connections and never answers.
async fn silent() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            kept.push(socket);
        }
    });
    endpoint
}
fn client(builder: aws_sdk_dynamodb::config::Builder) -> Client {
    let builder = builder
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("l", "l", None, None, "test"));
    Client::from_conf(builder.build())
}

#[tokio::test]
async fn a_callers_client_without_time_limits_gets_one_for_every_request() {
    use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
    let limit = Duration::from_millis(200);
    let config = DynamoDbConfig::default().with_attempt_timeout(limit);
    for timeouts in [None, Some(TimeoutConfig::disabled())] {
        let mut builder = aws_sdk_dynamodb::Config::builder().endpoint_url(silent().await);
        builder.set_timeout_config(timeouts);
        let connecting = DynamoDb::with_client(client(builder), config.clone());
        let ended = tokio::time::timeout(Duration::from_secs(20), connecting).await;
        let error = ended.expect("an end in bounded time").unwrap_err();
        assert!(error.is_transient(), "{error:?}");
    }
}

#[tokio::test]
async fn a_time_limit_of_the_callers_client_is_kept() {
    use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
    let own = TimeoutConfig::builder().operation_attempt_timeout(Duration::from_millis(100));
    let builder = aws_sdk_dynamodb::Config::builder()
        .endpoint_url(silent().await)
        .timeout_config(own.build());
    let config = DynamoDbConfig::default().with_attempt_timeout(Duration::from_secs(3600));
    let connecting = DynamoDb::with_client(client(builder), config.with_max_attempts(2));
    let ended = tokio::time::timeout(Duration::from_secs(20), connecting).await;
    ended.expect("an end in bounded time").unwrap_err();
}

/// The target of requests: first the server, then an address that certainly receives nothing, then
/// perhaps the server again.
#[derive(Clone, Debug)]
struct Route {
    to: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}
impl Route {
    fn lead(&self, url: impl Into<String>) {
        *self.to.lock().unwrap() = url.into();
        self.asked.store(0, Ordering::SeqCst);
    }
}
impl ResolveEndpoint for Route {
    fn resolve_endpoint<'a>(&'a self, _: &'a Params) -> EndpointFuture<'a> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let url = self.to.lock().unwrap().clone();
        EndpointFuture::ready(Ok(Endpoint::builder().url(url).build()))
    }
}
async fn routed(server: &Server) -> (DynamoDb, Route) {
    server.stores().await;
    let url = server.config().endpoint.unwrap();
    let route = Route {
        to: Arc::new(Mutex::new(url)),
        asked: Arc::default(),
    };
    let builder = aws_sdk_dynamodb::Config::builder().endpoint_resolver(route.clone());
    let stores = DynamoDb::with_client(client(builder), server.config()).await;
    (stores.unwrap(), route)
}
/// Returns a name that does not resolve, and a port on which nothing listens.
fn nowhere() -> [String; 2] {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = closed.local_addr().unwrap();
    [
        "http://no-such-host.invalid:8000".into(),
        format!("http://{closed}"),
    ]
}

#[tokio::test]
async fn what_was_never_sent_was_certainly_not_applied() {
    let server = Server::start();
    let (stores, route) = routed(&server).await;
    let store = stores.event_store();
    let large = || {
        let events = vec![event(format!("\"{}\"", "x".repeat(300_000))); 2];
        let head = empty();
        Append::after(head.clone(), CommitId::random(), head.recorded_at(), events)
    };
    for url in nowhere() {
        route.lead(&url);
        let one = append_of(&empty(), 1);
        let checked = AppendAll::new(vec![append_of(&empty(), 1)]).with_unchanged(vec![empty()]);
        let several = AppendAll::new(vec![append_of(&empty(), 1), append_of(&empty(), 2)]);
        let errors = [
            store.append(&one).await.unwrap_err(),
            store.append(&large()).await.unwrap_err(),
            store.append_all(&checked).await.unwrap_err(),
            store.append_all(&several).await.unwrap_err(),
        ];
        for error in errors {
            assert!(error.is_certainly_not_applied(), "{url}: {error:?}");
            assert!(
                matches!(error, EventStoreError::Unavailable { pending: None, .. }),
                "{url}: {}",
                chain(&error)
            );
        }
    }
}

/// A host that accepts no connection: the time for connecting ends before the time for the answer,
/// whoever set either.
#[tokio::test]
async fn a_connection_that_is_not_made_in_time_carried_nothing() {
    use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
    let server = Server::start();
    server.stores().await;
    let endpoint = server.config().endpoint.unwrap();
    // With a full backlog the system completes no more handshakes.
    let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    let patience = Duration::from_millis(100);
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, patience) {
        waiting.push(stream);
    }
    let ms = Duration::from_millis;
    let own = || TimeoutConfig::builder().connect_timeout(ms(3_100));
    for (what, limits) in [
        ("none of its own", None),
        ("3.1 s to connect", Some(own())),
        (
            "3.1 s to connect, 400 ms for an attempt",
            Some(own().operation_attempt_timeout(ms(400))),
        ),
        (
            "3.1 s to connect, 400 ms for an operation",
            Some(own().operation_timeout(ms(400))),
        ),
        (
            "3.1 s to connect, 400 ms for the answer",
            Some(own().read_timeout(ms(400))),
        ),
        (
            "400 ms for an operation",
            Some(TimeoutConfig::builder().operation_timeout(ms(400))),
        ),
    ] {
        let route = Route {
            to: Arc::new(Mutex::new(endpoint.clone())),
            asked: Arc::default(),
        };
        let mut builder = aws_sdk_dynamodb::Config::builder().endpoint_resolver(route.clone());
        builder.set_timeout_config(limits.map(|limits| limits.build()));
        let config = server
            .config()
            .with_attempt_timeout(ms(500))
            .with_max_attempts(2)
            .with_connect_timeout(ms(500));
        let stores = DynamoDb::with_client(client(builder), config)
            .await
            .unwrap();
        route.lead(format!("http://{address}"));
        let error = stores
            .event_store()
            .append(&append_of(&empty(), 1))
            .await
            .unwrap_err();
        assert!(
            error.is_certainly_not_applied(),
            "{what}: {}",
            chain(&error)
        );
    }
}

/// If one request may have arrived, certainty about a later request says nothing about it.
#[tokio::test]
async fn a_lost_request_stays_open_though_the_next_was_never_sent() {
    let server = Server::start();
    let (stores, route) = routed(&server).await;
    let [unknown, _] = nowhere();
    let limit = Duration::from_millis(300);
    let builder = aws_sdk_dynamodb::Config::builder().endpoint_resolver(route.clone());
    let config = server.config().with_attempt_timeout(limit);
    drop(stores);
    let stores = DynamoDb::with_client(client(builder), config)
        .await
        .unwrap();
    route.lead(silent().await);
    let switch = async {
        // The put waits for its answer, and no later request can be sent.
        while route.asked.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        route.lead(&unknown);
    };
    let store = stores.event_store();
    let append = append_of(&empty(), 1);
    let (answer, ()) = tokio::join!(store.append(&append), switch);
    let error = answer.unwrap_err();
    assert!(!error.is_certainly_not_applied(), "{}", chain(&error));
}

/// The rule also holds for a split commit, whose slot is then read without result or not at all.
#[tokio::test]
async fn a_lost_answer_of_a_split_commit_is_never_certainly_not_applied() {
    for (read, code) in [
        ("GetItem", "ThrottlingException"),
        ("GetItem", "AccessDeniedException"),
        ("Query", "AccessDeniedException"),
        ("Query", "ThrottlingException"),
    ] {
        let server = Server::start();
        let (stores, _wire): (_, Wire) = server
            .stores_over(move |call| match call.operation.as_str() {
                "TransactWriteItems" => Fate::LoseAnswer,
                operation if operation == read => Fate::error(400, code, "no"),
                _ => Fate::Pass,
            })
            .await;
        let events = vec![event(format!("\"{}\"", "x".repeat(300_000))); 3];
        let head = empty();
        let append = Append::after(head.clone(), CommitId::random(), head.recorded_at(), events);
        let started = Instant::now();
        let error = stores.event_store().append(&append).await.unwrap_err();
        assert!(
            !error.is_certainly_not_applied(),
            "{read} {code}: {error:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
