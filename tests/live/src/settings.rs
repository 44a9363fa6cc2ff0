//! The settings of a worker process.
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, PublishMode};
use foldstream_kafka::{KafkaConfig, KafkaMessageBus};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// The work of a worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Runs a listener and a projector of each level.
    Accounts,
    /// Runs the two projectors whose rows a replay builds again.
    Models,
    /// Replays these two, or goes on with the replay of a process that was killed.
    Replayer,
    /// Runs a projector of the build that does not know disputes.
    OlderBuild,
    /// Runs the same projector of the build that knows them.
    NewerBuild,
    /// Calls a service through a distributed breaker.
    Caller,
    /// Publishes what the store lists as unpublished.
    Poller,
    /// Publishes what the change stream of the events table reports.
    Reader,
    /// Publishes the batches that a Lambda Runtime API hands out.
    Function,
}

/// The settings of a worker process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerSettings {
    /// The work of the process.
    pub role: Role,
    /// The name of the process, which it keeps over a restart.
    pub instance: String,
    /// The URL of DynamoDB.
    pub dynamodb: String,
    /// The addresses of the Kafka brokers. Empty for a caller.
    pub brokers: String,
    /// The topic, the prefix of the tables and that of the consumer groups.
    pub name: String,
    /// The folder of the test's files.
    pub folder: PathBuf,
    /// One of this many attempts of a handler fails at random. 0: none.
    pub failures: u32,
    /// The address of the service that a caller calls, or that of a function's Runtime API.
    pub service: String,
}

impl WorkerSettings {
    /// The environment variable that holds the settings of a process, as JSON.
    pub const VARIABLE: &str = "FOLDSTREAM_WORKER";
    /// The time without a heartbeat after which a process loses its partitions: the shortest that
    /// brokers accept by default.
    pub const SESSION: Duration = Duration::from_secs(6);

    /// Returns the settings of this process.
    ///
    /// # Panics
    /// If the variable is not set, or does not hold settings.
    pub fn from_environment() -> Self {
        let text = std::env::var(Self::VARIABLE).expect("the test sets the variable");
        serde_json::from_str(&text).expect("the test writes the settings")
    }

    /// Returns the configuration of the stores.
    pub fn dynamodb_config(&self) -> DynamoDbConfig {
        let mode = match self.role {
            Role::Poller | Role::Reader | Role::Function => PublishMode::Both,
            _ => PublishMode::Poller,
        };
        dynamodb_config(&self.dynamodb, &self.name).with_publish_mode(mode)
    }

    /// Connects to the stores.
    ///
    /// # Panics
    /// If the configuration is refused.
    pub async fn stores(&self) -> DynamoDb {
        DynamoDb::connect(self.dynamodb_config()).await.unwrap()
    }

    /// Creates a client of the brokers.
    ///
    /// # Panics
    /// If the configuration is refused.
    pub fn bus(&self) -> KafkaMessageBus {
        let config = KafkaConfig::default()
            .with_brokers(&self.brokers)
            .with_session_timeout(Self::SESSION)
            .with_max_poll_interval(Duration::from_secs(30))
            .with_revoke_grace(Duration::from_secs(3))
            // After an outage, librdkafka may wait ten seconds before it connects again.
            .with_property("reconnect.backoff.max.ms", "1000")
            .unwrap();
        KafkaMessageBus::new(config).unwrap()
    }

    /// Returns the file whose existence says that the cause of all failures is mended.
    pub fn mended(&self) -> PathBuf {
        self.folder.join("mended")
    }
    /// Returns the file with the id of the replay.
    pub fn replay(&self) -> PathBuf {
        self.folder.join("replay")
    }
    /// Returns the file to which processes append the progress of the replay.
    pub fn progress(&self) -> PathBuf {
        self.folder.join("progress")
    }
    /// Returns the file to which processes append the changes of their partitions.
    pub fn moves(&self) -> PathBuf {
        self.folder.join("moves")
    }
}

/// Returns the configuration of stores on a server that a busy machine may keep from answering for
/// many seconds. Commits have markers, for a poller.
pub fn dynamodb_config(endpoint: &str, name: &str) -> DynamoDbConfig {
    DynamoDbConfig::default()
        .with_endpoint(endpoint)
        .with_prefix(format!("{name}-"))
        .with_publish_mode(PublishMode::Poller)
        .with_attempt_timeout(Duration::from_secs(30))
}
