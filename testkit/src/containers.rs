//! Apache Kafka and DynamoDB Local for live tests, in Docker containers.
//!
//! A live test asks for a server and gets its address. If an environment variable names a running
//! server, the test gets that one. Otherwise this module starts a container with Docker.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FOLDSTREAM_DYNAMODB_ENDPOINT` | URL of a running DynamoDB (Local) | start a container |
//! | `FOLDSTREAM_KAFKA_BROKERS` | `host:port,..` of a running Kafka | start a container |
//! | `FOLDSTREAM_DYNAMODB_IMAGE` | image to start | `amazon/dynamodb-local:3.1.0` |
//! | `FOLDSTREAM_KAFKA_IMAGE` | image to start | `apache/kafka:4.1.1` |
//! | `FOLDSTREAM_RUN` | the value of the label `foldstream.run` of every container | no label |
//!
//! Amazon licenses DynamoDB Local for development and testing only.
//!
//! # One container per test binary
//!
//! [`DynamoDb::shared`] and [`Kafka::shared`] start their server on the first call and return the
//! same one to every test of the process. Tests use new names of tables, topics and groups, so that
//! they do not disturb each other. Containers are driven by a runtime of their own, so they outlive
//! the runtime of the first test.
//!
//! A test that restarts its broker has one of its own: [`Kafka::start_restartable`].
//!
//! # How containers are removed
//!
//! Dropping a value removes its container. The shared values live in statics, which Rust never
//! drops, so a helper process removes their containers. The helper is a shell that waits on a pipe
//! from this process. The pipe closes however the process ends: by returning from `main`, by a
//! panic, by a signal, by `SIGKILL`. Then the helper runs `docker rm` on the containers that have
//! this process's label.
//!
//! Without a `docker` command on the `PATH`, or without Unix, a line on standard error says that
//! the containers stay. They also stay if the machine stops or if the helper is killed too. This
//! command removes all that were ever left:
//!
//! ```text
//! docker ps -aq --filter label=org.testcontainers.managed-by=testcontainers | xargs -r docker rm -fv
//! ```
//!
//! `TESTCONTAINERS_COMMAND=keep` keeps every container for inspection.
//!
//! # Example
//!
//! ```no_run
//! # async fn example() -> Result<(), foldstream_testkit::containers::ContainerError> {
//! use foldstream_testkit::containers::{DynamoDb, Kafka};
//!
//! let dynamodb = DynamoDb::shared().await;
//! let kafka = Kafka::start().await?; // only for this test
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

/// The time that a started container may take until its server answers.
///
/// A node starts in 2 s on an idle machine. The rest is for a machine that compiles at the same
/// time.
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

/// A DynamoDB server for tests.
///
/// The server is DynamoDB Local in a container, or the server that `FOLDSTREAM_DYNAMODB_ENDPOINT`
/// names. DynamoDB Local accepts any credentials. The official image keeps a database per access
/// key and region, so the clients of one test must use the same pair. The access key may only
/// contain letters and digits.
#[derive(Debug)]
pub struct DynamoDb {
    endpoint: String,
    _container: Option<Container>,
}

impl DynamoDb {
    /// Returns the server that all tests of this process share, and starts it on the first call.
    ///
    /// # Panics
    ///
    /// If the server cannot be reached or started, with the message of the [`ContainerError`], so
    /// that the live test fails. [`try_shared`](Self::try_shared) returns the error instead.
    pub async fn shared() -> &'static Self {
        engine::or_panic(Self::try_shared().await)
    }

    /// Returns the shared server as [`shared`](Self::shared) does, or the error of its start.
    ///
    /// A failed start is not tried again: later calls return the same error.
    ///
    /// # Errors
    ///
    /// If [`start`](Self::start) fails, with its error.
    pub async fn try_shared() -> Result<&'static Self, &'static ContainerError> {
        static SHARED: OnceCell<Result<DynamoDb, ContainerError>> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await.as_ref()
    }

    /// Starts a server for the caller alone, and returns once it answers.
    ///
    /// Dropping the value removes the container. If `FOLDSTREAM_DYNAMODB_ENDPOINT` is set, no
    /// container is started, and the value stands for that server, which others may use too.
    ///
    /// # Errors
    ///
    /// If a variable cannot be used, Docker or the server cannot be reached, or the server does not
    /// become ready in time. The message of the [`ContainerError`] says what to do.
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
                // The module waits a fixed 3 s. `until_http_answers` takes less than 1 s instead.
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

    /// Returns the server's URL without a trailing slash, such as `http://127.0.0.1:32768`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// A Kafka cluster for tests.
///
/// The cluster is one KRaft node in a container, or the cluster that `FOLDSTREAM_KAFKA_BROKERS`
/// names. The node supports transactions and all kinds of groups. It does not create topics
/// automatically, so a test creates the topics that it uses.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    container: Option<Container>,
    is_restartable: bool,
}

impl Kafka {
    /// Returns the server that all tests of this process share, and starts it on the first call.
    ///
    /// # Panics
    ///
    /// If the server cannot be reached or started, with the message of the [`ContainerError`], so
    /// that the live test fails. [`try_shared`](Self::try_shared) returns the error instead.
    pub async fn shared() -> &'static Self {
        engine::or_panic(Self::try_shared().await)
    }

    /// Returns the shared server as [`shared`](Self::shared) does, or the error of its start.
    ///
    /// A failed start is not tried again: later calls return the same error.
    ///
    /// # Errors
    ///
    /// If [`start`](Self::start) fails, with its error.
    pub async fn try_shared() -> Result<&'static Self, &'static ContainerError> {
        static SHARED: OnceCell<Result<Kafka, ContainerError>> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await.as_ref()
    }

    /// Starts a node for the caller alone, and returns once it serves.
    ///
    /// Dropping the value removes the container. If `FOLDSTREAM_KAFKA_BROKERS` is set, no container
    /// is started, and the value stands for that cluster, which others may use too.
    ///
    /// # Errors
    ///
    /// If a variable cannot be used, Docker or the cluster cannot be reached, or the node does not
    /// become ready in time. The message of the [`ContainerError`] says what to do.
    pub async fn start() -> Result<Self, ContainerError> {
        if let Some(brokers) = KAFKA.address()? {
            let first = address::first_broker(&brokers)
                .map_err(|reason| ContainerError::variable(KAFKA.address_variable, reason))?;
            KAFKA.expect_reachable(&first).await?;
            KAFKA.announce(&brokers, None);
            return Ok(Self {
                brokers,
                container: None,
                is_restartable: false,
            });
        }
        Self::launch(None).await
    }

    /// Starts a node in a container, for the caller alone, that [`restart`](Self::restart) can
    /// restart under the same address.
    ///
    /// Dropping the value removes the container. `FOLDSTREAM_KAFKA_BROKERS` is not used, since a
    /// test must not restart a cluster of others: this needs Docker in any case.
    ///
    /// # Errors
    ///
    /// If a variable cannot be used, Docker cannot be reached, or the node does not become ready in
    /// time. The message of the [`ContainerError`] says what to do.
    pub async fn start_restartable() -> Result<Self, ContainerError> {
        // Docker chooses a new port at every start of a container. Another process may
        // take the port until the container has it: then the start fails, and the error says so.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = free.map_err(ContainerError::Runtime)?.port();
        Self::launch(Some(port)).await
    }

    /// Kills the node of [`start_restartable`](Self::start_restartable), as a crash would, and
    /// starts it again after `down`. What the node has acknowledged is still there. Returns once
    /// the node runs, which may be a few seconds before it serves.
    ///
    /// # Errors
    ///
    /// If the node was not started by [`start_restartable`](Self::start_restartable), or if Docker
    /// does not restart it.
    pub async fn restart(&self, down: Duration) -> Result<(), ContainerError> {
        let is_restartable = self.is_restartable.then_some(self.container.as_ref());
        let Some(container) = is_restartable.flatten() else {
            return Err(ContainerError::NotRestartable { server: KAFKA.name });
        };
        container.restart(down).await
    }

    /// Starts a container whose port has this number on the host, or any number.
    async fn launch(port: Option<u16>) -> Result<Self, ContainerError> {
        let image = KAFKA.image()?;
        engine::on_runtime(async move {
            let mut request = apache::Kafka::default()
                .with_jvm_image()
                .with_name(&image.name)
                .with_tag(&image.tag)
                // The module sets only the old name of this setting, `broker.id`.
                .with_env_var("KAFKA_NODE_ID", "1")
                // There is one node, so the internal topics can only have one replica.
                .with_env_var("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
                .with_env_var("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
                // Fewer partitions and no initial delay make groups start faster.
                .with_env_var("KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS", "3")
                .with_env_var("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0")
                // Retention is applied every 2 s from the start, not every 5 minutes.
                .with_env_var("KAFKA_LOG_RETENTION_CHECK_INTERVAL_MS", "2000")
                .with_env_var("KAFKA_LOG_INITIAL_TASK_DELAY_MS", "2000")
                .with_env_var("KAFKA_HEAP_OPTS", "-Xmx512m")
                // A misspelled topic must be an error, as on a production cluster.
                .with_env_var("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false");
            if let Some(port) = port {
                request = request.with_mapped_port(port, apache::KAFKA_PORT);
            }
            let started = KAFKA.launch(&image, request, READY_WITHIN).await?;
            let brokers = started.address(apache::KAFKA_PORT).await?;
            KAFKA.announce(&brokers, Some(&image));
            Ok(Self {
                brokers,
                container: Some(started.into_container()),
                is_restartable: port.is_some(),
            })
        })
        .await
    }

    /// Returns the bootstrap servers in the format of `bootstrap.servers`, such as
    /// `127.0.0.1:32769`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }
}
