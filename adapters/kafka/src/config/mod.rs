//! [`KafkaConfig`]: what the adapter is told, checked before any connection is made.
mod check;
mod client;
mod wiring;
#[cfg(test)]
mod tests;

pub use check::KafkaConfigError;
use check::{PROTECTED, invalid, is_secret};
use std::{collections::BTreeMap, fmt, time::Duration};

/// The protocol by which the members of a group share its partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// JoinGroup and SyncGroup with the cooperative-sticky assignor: every broker since Kafka 2.4.
    #[default]
    Classic,
    /// KIP-848: the broker assigns, Kafka 4.0 and later. The session timeout is then the broker's.
    Consumer,
}

/// Settings of the adapter. Every setting has a default; none reads the environment but [`from_env`](Self::from_env).
///
/// # Example
/// ```
/// use foldstream_kafka::KafkaConfig;
/// let config = KafkaConfig::default()
///     .with_brokers("kafka-1:9092,kafka-2:9092")
///     .with_property("security.protocol", "ssl")?;
/// assert_eq!(config.events_topic(), "GlobalEvents");
/// # Ok::<(), foldstream_kafka::KafkaConfigError>(())
/// ```
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct KafkaConfig {
    pub(crate) brokers: String,
    pub(crate) group_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) events_topic: String,
    pub(crate) request_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) session_timeout: Duration,
    pub(crate) max_poll_interval: Duration,
    pub(crate) revoke_grace: Option<Duration>,
    pub(crate) refusal_patience: Duration,
    pub(crate) max_message_bytes: usize,
    pub(crate) buffer_records: usize,
    pub(crate) buffer_bytes: usize,
    pub(crate) group_protocol: GroupProtocol,
    pub(crate) properties: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".into(),
            group_id: None,
            client_id: "foldstream".into(),
            events_topic: "GlobalEvents".into(),
            request_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(30),
            session_timeout: Duration::from_secs(45),
            max_poll_interval: Duration::from_secs(300),
            revoke_grace: None,
            refusal_patience: Duration::from_secs(300),
            max_message_bytes: 1_000_000,
            buffer_records: 1_000,
            buffer_bytes: 16 * 1024 * 1024,
            group_protocol: GroupProtocol::Classic,
            properties: BTreeMap::new(),
        }
    }
}

impl KafkaConfig {
    /// Reads `KAFKA_BROKERS` (default `localhost:9092`), `KAFKA_GROUP_ID` (default `example-group`), `KAFKA_CLIENT_ID`
    /// (default `foldstream`) and `KAFKA_EVENTS_TOPIC` (default `GlobalEvents`); the rest has its defaults.
    ///
    /// # Errors
    /// [`KafkaConfigError`], naming the variable.
    pub fn from_env() -> Result<Self, KafkaConfigError> {
        Self::from_variables(|name| match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(invalid(name, "is not UTF-8")),
        })
    }

    fn from_variables(
        variable: impl Fn(&'static str) -> Result<Option<String>, KafkaConfigError>,
    ) -> Result<Self, KafkaConfigError> {
        let mut config = Self::default();
        let group_id = config.group_id.insert("example-group".into());
        for (name, field) in [
            ("KAFKA_BROKERS", &mut config.brokers),
            ("KAFKA_GROUP_ID", group_id),
            ("KAFKA_CLIENT_ID", &mut config.client_id),
            ("KAFKA_EVENTS_TOPIC", &mut config.events_topic),
        ] {
            if let Some(value) = variable(name)? {
                *field = value;
            }
        }
        config.check_names([
            "KAFKA_BROKERS",
            "KAFKA_GROUP_ID",
            "KAFKA_CLIENT_ID",
            "KAFKA_EVENTS_TOPIC",
        ])?;
        Ok(config)
    }

    /// Sets the brokers to start from: `host:port`, several with commas.
    #[must_use]
    pub fn with_brokers(mut self, brokers: impl Into<String>) -> Self {
        self.brokers = brokers.into();
        self
    }
    /// Sets the prefix of the consumer groups that a runner makes. There is no default but that of
    /// [`from_env`](Self::from_env): two applications with one prefix would share their groups, and each would get a part
    /// of the events.
    #[must_use]
    pub fn with_group_id(mut self, group_id: impl Into<String>) -> Self {
        self.group_id = Some(group_id.into());
        self
    }
    /// Sets the name by which brokers log and meter this client.
    #[must_use]
    pub fn with_client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = client_id.into();
        self
    }
    /// Sets the topic of all events.
    #[must_use]
    pub fn with_events_topic(mut self, topic: impl Into<String>) -> Self {
        self.events_topic = topic.into();
        self
    }
    /// Sets how long one question to the brokers may take: metadata, offsets, commits, administration. Default 10 s;
    /// more only delays the answer that the brokers are away.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }
    /// Sets how long a publish may take with all its retries inside the client. Default 30 s; more bridges longer
    /// failovers, and holds back the stream's next record as long.
    #[must_use]
    pub fn with_publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }
    /// Sets after how long without a heartbeat a crashed member loses its partitions. Default 45 s (Kafka's); less
    /// finds a crash sooner and mistakes a pause for one more often. Not used with [`GroupProtocol::Consumer`].
    #[must_use]
    pub fn with_session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }
    /// Sets how long a rebalance waits for a member. Default 5 min (Kafka's), at least the session timeout.
    #[must_use]
    pub fn with_max_poll_interval(mut self, interval: Duration) -> Self {
        self.max_poll_interval = interval;
        self
    }
    /// Sets how long a revoked partition waits for its reader to finish and commit. Default the lesser of 20 s and a
    /// third of the poll interval; more lets longer handlers finish, and keeps the partition unread as long. Zero
    /// takes partitions away at once.
    #[must_use]
    pub fn with_revoke_grace(mut self, grace: Duration) -> Self {
        self.revoke_grace = Some(grace);
        self
    }
    /// Sets for how long a missing topic, a failed login or a denied permission counts as an outage where the same has
    /// worked before through this bus. Default 5 min; more bridges slower restarts of the brokers, and hides a topic that
    /// was deleted or a permission that was taken away as long. Zero refuses at once, also a topic that was created a
    /// moment ago, which is otherwise looked for during 2 s.
    #[must_use]
    pub fn with_refusal_patience(mut self, patience: Duration) -> Self {
        self.refusal_patience = patience;
        self
    }
    /// Sets the size of the largest record in bytes, which has up to 97 bytes more than its message
    /// ([`TopicDescription::record_overhead`](foldstream::ports::TopicDescription::record_overhead)). Default 1,000,000 (librdkafka's, under the brokers' 1,048,588);
    /// topics must take as much, by `max.message.bytes`.
    #[must_use]
    pub fn with_max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }
    /// Sets how many records, and of how many bytes together, a consumer reads ahead of its caller. Default 1,000 and
    /// 16 MiB, shared evenly by its partitions, each of which may always hold one record. More smooths slow networks
    /// and takes memory.
    #[must_use]
    pub fn with_read_ahead(mut self, records: usize, bytes: usize) -> Self {
        self.buffer_records = records;
        self.buffer_bytes = bytes;
        self
    }
    /// Sets how a group's members agree. Default [`GroupProtocol::Classic`].
    #[must_use]
    pub fn with_group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.group_protocol = protocol;
        self
    }
    /// Sets a property of librdkafka, as in its `CONFIGURATION.md`: TLS, SASL, compression, fetch sizes.
    ///
    /// # Errors
    /// [`KafkaConfigError::Protected`] for one that the contract of the adapter stands on.
    pub fn with_property(
        mut self,
        property: impl Into<String>,
        value: impl Into<String>,
    ) -> Result<Self, KafkaConfigError> {
        let property = property.into();
        if let Some((_, reason)) = PROTECTED.iter().find(|(name, _)| *name == property) {
            return Err(KafkaConfigError::Protected { property, reason });
        }
        self.properties.insert(property, value.into());
        Ok(self)
    }

    /// The brokers to start from.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }
    /// The prefix of the consumer groups that a runner makes; `None` unless it was set or read from the environment.
    pub fn group_id(&self) -> Option<&str> {
        self.group_id.as_deref()
    }
    /// The name by which brokers know this client.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }
    /// The topic of all events.
    pub fn events_topic(&self) -> &str {
        &self.events_topic
    }
    /// Returns the time that a revoked partition waits for its reader.
    pub fn revoke_grace(&self) -> Duration {
        self.revoke_grace
            .unwrap_or_else(|| Duration::from_secs(20).min(self.max_poll_interval / 3))
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: BTreeMap<&str, &str> = self
            .properties
            .iter()
            .map(|(name, value)| {
                let value = if is_secret(name) { "***" } else { value };
                (name.as_str(), value)
            })
            .collect();
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("group_id", &self.group_id)
            .field("client_id", &self.client_id)
            .field("events_topic", &self.events_topic)
            .field("request_timeout", &self.request_timeout)
            .field("publish_timeout", &self.publish_timeout)
            .field("session_timeout", &self.session_timeout)
            .field("max_poll_interval", &self.max_poll_interval)
            .field("revoke_grace", &self.revoke_grace())
            .field("refusal_patience", &self.refusal_patience)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("buffer_records", &self.buffer_records)
            .field("buffer_bytes", &self.buffer_bytes)
            .field("group_protocol", &self.group_protocol)
            .field("properties", &shown)
            .finish()
    }
}
