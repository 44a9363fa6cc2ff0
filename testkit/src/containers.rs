//! Apache Kafka and DynamoDB Local for live tests: [`Kafka`] and [`DynamoDb`].
//!
//! A live test asks for a server and gets an address. Where the environment names a server that is already
//! running, it is that one; otherwise a container is started with Docker.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FOLDSTREAM_DYNAMODB_ENDPOINT` | URL of a running DynamoDB (Local) | start a container |
//! | `FOLDSTREAM_KAFKA_BROKERS` | `host:port,..` of a running Kafka | start a container |
//! | `FOLDSTREAM_DYNAMODB_IMAGE` | image to start | `amazon/dynamodb-local:3.1.0` |
//! | `FOLDSTREAM_KAFKA_IMAGE` | image to start | `apache/kafka:4.1.1` |
//! | `FOLDSTREAM_RUN` | put on every container as the label `foldstream.run` | no label |
//!
//! DynamoDB Local is licensed by Amazon for development and testing; it is a test server and nothing else.
//!
//! # One container per test binary
//!
//! [`DynamoDb::shared`] and [`Kafka::shared`] start their server on the first call and hand the same one to
//! every test of the process. Tests keep apart by fresh names of tables, topics and groups.
//! A server is driven by a runtime of its own, so it outlives the runtime of the test that asked first.
//!
//! # How containers go away
//!
//! A value that is dropped takes its container with it. The shared ones live in statics, which Rust never
//! drops; a helper process removes them. It is a shell that waits on a pipe from this process, and the pipe
//! closes however the process ends: by returning from `main`, by a panic, by a signal, by `SIGKILL`. It runs
//! `docker rm` on the containers that carry this process's label. Where there is no `docker` command on the
//! `PATH` (or no Unix), a line on standard error says that the containers stay. If the machine itself stops, or
//! somebody kills the helper too, they stay as well; this removes all that were ever left:
//!
//! ```text
//! docker ps -aq --filter label=org.testcontainers.managed-by=testcontainers | xargs -r docker rm -fv
//! ```
//!
//! `TESTCONTAINERS_COMMAND=keep` keeps every container for a look inside.
//!
//! # Example
//!
//! ```no_run
//! # async fn example() -> Result<(), foldstream_testkit::containers::ContainerError> {
//! use foldstream_testkit::containers::{DynamoDb, Kafka};
//!
//! let dynamodb = DynamoDb::shared().await;
//! let kafka = Kafka::start().await?; // of this test alone
//! println!("{} and {}", dynamodb.endpoint(), kafka.brokers());
//! # Ok(())
//! # }
//! ```

mod error;
mod engine;
mod reaper;
mod address;

use std::time::Duration;

use testcontainers_modules::kafka::apache;
use testcontainers_modules::testcontainers::ImageExt;
use testcontainers_modules::{dynamodb_local, testcontainers::core::IntoContainerPort};
use tokio::sync::OnceCell;

pub use self::error::ContainerError;

use self::engine::{Container, Server};

/// How long a started container may take until its server answers.
///
/// A node starts in 2 s on an idle machine; the rest is for one that compiles at the same time.
const READY_WITHIN: Duration = Duration::from_secs(120);

const DYNAMODB: Server = Server {
    name: "DynamoDB Local",
    image_variable: "FOLDSTREAM_DYNAMODB_IMAGE",
    address_variable: "FOLDSTREAM_DYNAMODB_ENDPOINT",
    default_image: "amazon/dynamodb-local:3.1.0",
};

const KAFKA: Server = Server {
    name: "Apache Kafka",
    image_variable: "FOLDSTREAM_KAFKA_IMAGE",
    address_variable: "FOLDSTREAM_KAFKA_BROKERS",
    default_image: "apache/kafka:4.1.1",
};

/// A DynamoDB for tests: DynamoDB Local in a container, or the one `FOLDSTREAM_DYNAMODB_ENDPOINT` names.
///
/// DynamoDB Local takes any credentials. The official image keeps a database for each access key and region, so the
/// clients of one test must use the same pair; the key may hold only letters and digits.
#[derive(Debug)]
pub struct DynamoDb {
    endpoint: String,
    _container: Option<Container>,
}

impl DynamoDb {
    /// The server that all tests of this process share, started by the first call.
    ///
    /// # Panics
    ///
    /// If there is none to be had, with the text of the [`ContainerError`]: a live test that cannot reach its
    /// server fails. [`try_shared`](Self::try_shared) returns the error instead.
    pub async fn shared() -> &'static Self {
        engine::or_panic(Self::try_shared().await)
    }

    /// As [`shared`](Self::shared), with the error as a value. A start that failed is not tried again.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn try_shared() -> Result<&'static Self, &'static ContainerError> {
        static SHARED: OnceCell<Result<DynamoDb, ContainerError>> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await.as_ref()
    }

    /// Starts a server for the caller alone, and returns when it answers; dropping it removes the container.
    ///
    /// If `FOLDSTREAM_DYNAMODB_ENDPOINT` is set, no container is started: it is that server, shared with
    /// everybody who uses it.
    ///
    /// # Errors
    ///
    /// [`ContainerError`], whose text says what to do.
    pub async fn start() -> Result<Self, ContainerError> {
        if let Some(endpoint) = DYNAMODB.address()? {
            let address = address::of_url(&endpoint)
                .map_err(|reason| ContainerError::variable(DYNAMODB.address_variable, reason))?;
            DYNAMODB.expect_reachable(&address).await?;
            DYNAMODB.announce(&endpoint, None);
            return Ok(Self {
                endpoint,
                _container: None,
            });
        }
        let image = DYNAMODB.image()?;
        engine::on_runtime(async move {
            let request = dynamodb_local::DynamoDb::default()
                .with_name(&image.name)
                .with_tag(&image.tag)
                .with_env_var("DDB_LOCAL_TELEMETRY", "0")
                // The module waits a fixed 3 s; the server is asked instead, and is ready in less than one.
                .with_ready_conditions(vec![]);
            let started = DYNAMODB.launch(&image, request, READY_WITHIN).await?;
            let address = started.address(8000.tcp()).await?;
            started.until_http_answers(&address, READY_WITHIN).await?;
            let endpoint = format!("http://{address}");
            DYNAMODB.announce(&endpoint, Some(&image));
            Ok(Self {
                endpoint,
                _container: Some(started.into_container()),
            })
        })
        .await
    }

    /// The server's URL, without a trailing slash (`http://127.0.0.1:32768`).
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// A Kafka for tests: one KRaft node in a container, or the cluster `FOLDSTREAM_KAFKA_BROKERS` names.
///
/// The node can do transactions and all kinds of groups, and does not create topics by itself: a test creates
/// the topics it uses.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    _container: Option<Container>,
}

impl Kafka {
    /// The server that all tests of this process share, started by the first call.
    ///
    /// # Panics
    ///
    /// If there is none to be had, with the text of the [`ContainerError`]: a live test that cannot reach its
    /// server fails. [`try_shared`](Self::try_shared) returns the error instead.
    pub async fn shared() -> &'static Self {
        engine::or_panic(Self::try_shared().await)
    }

    /// As [`shared`](Self::shared), with the error as a value. A start that failed is not tried again.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn try_shared() -> Result<&'static Self, &'static ContainerError> {
        static SHARED: OnceCell<Result<Kafka, ContainerError>> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await.as_ref()
    }

    /// Starts a node for the caller alone, and returns when it serves; dropping it removes the container.
    ///
    /// If `FOLDSTREAM_KAFKA_BROKERS` is set, no container is started: it is that cluster, shared with
    /// everybody who uses it.
    ///
    /// # Errors
    ///
    /// [`ContainerError`], whose text says what to do.
    pub async fn start() -> Result<Self, ContainerError> {
        if let Some(brokers) = KAFKA.address()? {
            let first = address::first_broker(&brokers)
                .map_err(|reason| ContainerError::variable(KAFKA.address_variable, reason))?;
            KAFKA.expect_reachable(&first).await?;
            KAFKA.announce(&brokers, None);
            return Ok(Self {
                brokers,
                _container: None,
            });
        }
        let image = KAFKA.image()?;
        engine::on_runtime(async move {
            let request = apache::Kafka::default()
                .with_jvm_image()
                .with_name(&image.name)
                .with_tag(&image.tag)
                // The module sets the old name, `broker.id`, only.
                .with_env_var("KAFKA_NODE_ID", "1")
                // One node: the internal topics have one replica.
                .with_env_var("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
                .with_env_var("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
                // For speed.
                .with_env_var("KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS", "3")
                .with_env_var("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0")
                // Retention is looked at every two seconds instead of every five minutes, and from the start.
                .with_env_var("KAFKA_LOG_RETENTION_CHECK_INTERVAL_MS", "2000")
                .with_env_var("KAFKA_LOG_INITIAL_TASK_DELAY_MS", "2000")
                .with_env_var("KAFKA_HEAP_OPTS", "-Xmx512m")
                // A misspelt topic is an error, as on a production cluster.
                .with_env_var("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false");
            let started = KAFKA.launch(&image, request, READY_WITHIN).await?;
            let brokers = started.address(apache::KAFKA_PORT).await?;
            KAFKA.announce(&brokers, Some(&image));
            Ok(Self {
                brokers,
                _container: Some(started.into_container()),
            })
        })
        .await
    }

    /// The bootstrap servers, as `bootstrap.servers` wants them (`127.0.0.1:32769`).
    pub fn brokers(&self) -> &str {
        &self.brokers
    }
}
