//! The configuration of the adapter, [`KafkaConfig`], which is checked before any connection.
mod check;
mod client;
mod wiring;
#[cfg(test)]
mod tests;

use crate::security::{TokenProvider, Tokens};
pub use check::KafkaConfigError;
use check::{PROTECTED, invalid, is_secret};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

/// The protocol by which the members of a group share its partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// JoinGroup and SyncGroup with the cooperative-sticky assignor, supported by every broker
    /// since Kafka 2.4.
    #[default]
    Classic,
    /// KIP-848, in which the broker assigns, supported since Kafka 4.0. The session timeout and the
    /// interval of heartbeats are then the broker's. Of two members with one instance id the
    /// newcomer is refused, and not the member that was there before.
    Consumer,
}

/// The settings of the adapter. Every setting has a default, and only [`from_env`](Self::from_env)
/// reads the environment.
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
    pub(crate) tokens: Option<Tokens>,
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
            tokens: None,
        }
    }
}

impl KafkaConfig {
    /// Reads the configuration from the environment. All other settings keep their defaults.
    ///
    /// | variable | setting | default |
    /// |---|---|---|
    /// | `KAFKA_BROKERS` | [`with_brokers`](Self::with_brokers) | `localhost:9092` |
    /// | `KAFKA_GROUP_ID` | [`with_group_id`](Self::with_group_id) | `example-group` |
    /// | `KAFKA_CLIENT_ID` | [`with_client_id`](Self::with_client_id) | `foldstream` |
    /// | `KAFKA_EVENTS_TOPIC` | [`with_events_topic`](Self::with_events_topic) | `GlobalEvents` |
    ///
    /// # Errors
    /// [`KafkaConfigError`] if a variable has a value that is not accepted. The error names the
    /// variable.
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

    /// Sets the brokers to connect to first, as `host:port`, separated by commas. Default:
    /// `localhost:9092`.
    #[must_use]
    pub fn with_brokers(mut self, brokers: impl Into<String>) -> Self {
        self.brokers = brokers.into();
        self
    }
    /// Sets the prefix of the consumer groups that a runner creates. Default: none, except in
    /// [`from_env`](Self::from_env).
    ///
    /// Two applications with the same prefix would share their groups, and each would receive only
    /// a part of the events.
    #[must_use]
    pub fn with_group_id(mut self, group_id: impl Into<String>) -> Self {
        self.group_id = Some(group_id.into());
        self
    }
    /// Sets the name of this client in the logs and metrics of the brokers. Default: `foldstream`.
    #[must_use]
    pub fn with_client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = client_id.into();
        self
    }
    /// Sets the topic of all events. Default: `GlobalEvents`.
    #[must_use]
    pub fn with_events_topic(mut self, topic: impl Into<String>) -> Self {
        self.events_topic = topic.into();
        self
    }
    /// Sets the longest time of one request to the brokers: metadata, offsets, commits,
    /// administration. Default: 10 s.
    ///
    /// A longer time only delays the error while the brokers are away.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }
    /// Sets the longest time in which a partition may acknowledge no record while some are in
    /// flight. Default: 30 s.
    ///
    /// A publish then fails, and the producer is replaced. The adapter begins with half of this
    /// time, but at least a second, and waits longer each time until a record is acknowledged. A
    /// longer time bridges longer failovers, and holds back the next record of the stream for as
    /// long. It must be at least 1 s, since a new producer needs time to connect.
    #[must_use]
    pub fn with_publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }
    /// Sets the time without a heartbeat after which a crashed member loses its partitions.
    /// Default: 45 s, as in Kafka.
    ///
    /// A shorter time notices a crash sooner, and mistakes a pause for a crash more often. Not used
    /// with [`GroupProtocol::Consumer`].
    #[must_use]
    pub fn with_session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }
    /// Sets the time for which a rebalance waits for a member. Default: 5 min, as in Kafka. Must be
    /// at least the session timeout.
    #[must_use]
    pub fn with_max_poll_interval(mut self, interval: Duration) -> Self {
        self.max_poll_interval = interval;
        self
    }
    /// Sets the time for which a revoked partition waits for its reader to finish and commit.
    /// Default: the lesser of 20 s and a third of the poll interval.
    ///
    /// A longer time lets longer handlers finish, and leaves the partition unread for as long. Zero
    /// revokes partitions at once.
    #[must_use]
    pub fn with_revoke_grace(mut self, grace: Duration) -> Self {
        self.revoke_grace = Some(grace);
        self
    }
    /// Sets the time for which a refusal counts as an outage if the same has worked before through
    /// this bus. Default: 5 min.
    ///
    /// This concerns a missing topic, a failed login and a denied permission. A longer time bridges
    /// slower restarts of the brokers. For as long, it also hides that a topic was deleted or a
    /// permission was removed. Zero refuses at once, also a topic that was just created, which is
    /// otherwise looked up for 2 s.
    #[must_use]
    pub fn with_refusal_patience(mut self, patience: Duration) -> Self {
        self.refusal_patience = patience;
        self
    }
    /// Sets the size of the largest record in bytes. Default: 1,000,000, as in librdkafka, and
    /// below the brokers' 1,048,588.
    ///
    /// A record has up to 97 bytes more than its message (see [`record_overhead`]). The lower of
    /// this size and the topic's `max.message.bytes` applies.
    ///
    /// [`record_overhead`]: foldstream::ports::TopicDescription::record_overhead
    #[must_use]
    pub fn with_max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }
    /// Sets the number of records and bytes that a consumer reads ahead of its caller. Default:
    /// 1,000 records and 16 MiB.
    ///
    /// The partitions of the consumer share both evenly, and each may always hold one record.
    /// Larger values smooth slow networks and use more memory.
    #[must_use]
    pub fn with_read_ahead(mut self, records: usize, bytes: usize) -> Self {
        self.buffer_records = records;
        self.buffer_bytes = bytes;
        self
    }
    /// Sets the protocol by which the members of a group share its partitions. Default:
    /// [`GroupProtocol::Classic`].
    #[must_use]
    pub fn with_group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.group_protocol = protocol;
        self
    }
    /// Sets a property of librdkafka, as listed in its `CONFIGURATION.md`: TLS, SASL, compression,
    /// fetch sizes.
    ///
    /// librdkafka checks the property and its value later, in
    /// [`KafkaMessageBus::new`](crate::KafkaMessageBus::new).
    ///
    /// # Errors
    /// [`KafkaConfigError::Protected`] if the contract of the adapter rests on the property.
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

    /// Sets the source of the OAuth tokens with which all clients log in, by the SASL mechanism
    /// OAUTHBEARER. Default: none.
    ///
    /// The property `security.protocol` must be `sasl_ssl`, or `sasl_plaintext` for tests. Both
    /// need the crate feature `tls` or `tls-vendored`. librdkafka asks for each token before the
    /// last one expires, also while a client is idle.
    #[must_use]
    pub fn with_token_provider(mut self, provider: impl TokenProvider + 'static) -> Self {
        self.tokens = Some(Tokens(Arc::new(provider)));
        self
    }

    /// Returns the brokers to connect to first.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }
    /// Returns the prefix of the consumer groups that a runner creates. `None` unless it was set or
    /// read from the environment.
    pub fn group_id(&self) -> Option<&str> {
        self.group_id.as_deref()
    }
    /// Returns the name of this client at the brokers.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }
    /// Returns the topic of all events.
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
            .field("tokens", &self.tokens)
            .finish()
    }
}
