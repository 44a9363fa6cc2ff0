//! [`KafkaConfig`]: what the adapter is told, checked before any connection is made.
use foldstream::BoxError;
use rdkafka::{ClientConfig, config::RDKafkaLogLevel, error::KafkaError};
use std::{collections::BTreeMap, fmt, time::Duration};

/// How members of a group agree on who reads what.
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
    pub(crate) group_id: String,
    pub(crate) client_id: String,
    pub(crate) events_topic: String,
    pub(crate) request_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) session_timeout: Duration,
    pub(crate) max_poll_interval: Duration,
    pub(crate) revoke_grace: Option<Duration>,
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
            group_id: "example-group".into(),
            client_id: "foldstream".into(),
            events_topic: "GlobalEvents".into(),
            request_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(30),
            session_timeout: Duration::from_secs(45),
            max_poll_interval: Duration::from_secs(300),
            revoke_grace: None,
            max_message_bytes: 1_000_000,
            buffer_records: 1_000,
            buffer_bytes: 16 * 1024 * 1024,
            group_protocol: GroupProtocol::Classic,
            properties: BTreeMap::new(),
        }
    }
}

/// Settings that a contract of the adapter stands on.
const PROTECTED: &[(&str, &str)] = &[
    (
        "acks",
        "a publish returns only when every in-sync replica has the record",
    ),
    (
        "request.required.acks",
        "a publish returns only when every in-sync replica has the record",
    ),
    (
        "enable.idempotence",
        "without it a retry inside the client doubles and reorders records",
    ),
    (
        "transactional.id",
        "records are published outside of transactions",
    ),
    (
        "partitioner",
        "the partition is Kafka's murmur2 of the key, as Java clients compute it",
    ),
    (
        "auto.offset.reset",
        "a group without a position must say so instead of skipping or repeating",
    ),
    (
        "enable.auto.commit",
        "only what a consumer commits counts as done",
    ),
    (
        "enable.auto.offset.store",
        "only what a consumer commits counts as done",
    ),
    (
        "allow.auto.create.topics",
        "a mistyped topic must be an error and not a new topic",
    ),
    (
        "group.instance.id",
        "a static member keeps its partitions after it has left",
    ),
    ("group.id", "a subscription names its group"),
    ("bootstrap.servers", "use KafkaConfig::with_brokers"),
    ("metadata.broker.list", "use KafkaConfig::with_brokers"),
    ("client.id", "use KafkaConfig::with_client_id"),
    ("group.protocol", "use KafkaConfig::with_group_protocol"),
    (
        "message.timeout.ms",
        "use KafkaConfig::with_publish_timeout",
    ),
    (
        "delivery.timeout.ms",
        "use KafkaConfig::with_publish_timeout",
    ),
    (
        "session.timeout.ms",
        "use KafkaConfig::with_session_timeout",
    ),
    (
        "max.poll.interval.ms",
        "use KafkaConfig::with_max_poll_interval",
    ),
    (
        "message.max.bytes",
        "use KafkaConfig::with_max_message_bytes",
    ),
];

/// Properties whose values are never shown.
fn is_secret(property: &str) -> bool {
    [
        "password",
        "secret",
        "key.pem",
        "token",
        "oauthbearer.config",
    ]
    .iter()
    .any(|part| property.contains(part))
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
        for (name, field) in [
            ("KAFKA_BROKERS", &mut config.brokers),
            ("KAFKA_GROUP_ID", &mut config.group_id),
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
    /// Sets the prefix of the groups that a runner makes.
    #[must_use]
    pub fn with_group_id(mut self, group_id: impl Into<String>) -> Self {
        self.group_id = group_id.into();
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
    /// Sets the size of the largest record in bytes. Default 1,000,000 (librdkafka's, under the brokers' 1,048,588);
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
    /// The prefix of the groups that a runner makes.
    pub fn group_id(&self) -> &str {
        &self.group_id
    }
    /// The name by which brokers know this client.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }
    /// The topic of all events.
    pub fn events_topic(&self) -> &str {
        &self.events_topic
    }
    /// How long a revoked partition waits for its reader.
    pub fn revoke_grace(&self) -> Duration {
        self.revoke_grace
            .unwrap_or_else(|| Duration::from_secs(20).min(self.max_poll_interval / 3))
    }

    /// Checks everything that can be checked without a broker.
    pub(crate) fn check(&self) -> Result<(), KafkaConfigError> {
        self.check_names(["brokers", "group_id", "client_id", "events_topic"])?;
        for (name, value, least) in [
            ("request_timeout", self.request_timeout, 1),
            ("publish_timeout", self.publish_timeout, 1),
            ("session_timeout", self.session_timeout, 1),
            ("max_poll_interval", self.max_poll_interval, 1),
        ] {
            let millis = value.as_millis();
            if millis < least || millis > 86_400_000 {
                return Err(invalid(name, "must be from 1 ms to 1 day"));
            }
        }
        if self.session_timeout > self.max_poll_interval {
            return Err(invalid(
                "session_timeout",
                "must not exceed max_poll_interval",
            ));
        }
        if self.revoke_grace() > self.max_poll_interval / 3 {
            return Err(invalid(
                "revoke_grace",
                "must not exceed a third of max_poll_interval, or the group expels the member while it drains",
            ));
        }
        if self.buffer_records == 0 || self.buffer_bytes == 0 {
            return Err(invalid(
                "read_ahead",
                "must be at least one record and one byte",
            ));
        }
        // The bounds of librdkafka's message.max.bytes.
        if !(1_000..=1_000_000_000).contains(&self.max_message_bytes) {
            return Err(invalid(
                "max_message_bytes",
                "must be from 1,000 to 1,000,000,000",
            ));
        }
        for config in [self.producer(), self.consumer("check")] {
            config
                .create_native_config()
                .map_err(KafkaConfigError::rejected)?;
        }
        Ok(())
    }

    /// `names` are those of brokers, group, client and topic, as the caller knows them.
    fn check_names(&self, names: [&'static str; 4]) -> Result<(), KafkaConfigError> {
        let [brokers, group, client, topic] = names;
        for broker in self.brokers.split(',') {
            check_broker(broker.trim()).map_err(|reason| invalid(brokers, reason))?;
        }
        for (name, value) in [(group, &self.group_id), (client, &self.client_id)] {
            if value.is_empty() || value.contains('\0') {
                return Err(invalid(name, "must not be empty nor hold a NUL"));
            }
        }
        check_topic(&self.events_topic).map_err(|reason| invalid(topic, reason))
    }

    fn common(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", &self.client_id);
        // librdkafka's default for producers is to let brokers make unknown topics.
        config.set("allow.auto.create.topics", "false");
        for (property, value) in &self.properties {
            config.set(property, value);
        }
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    pub(crate) fn producer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // One record of a stream is sent at a time: waiting for company only delays it.
        config.set("linger.ms", "0");
        // A batch stays far below any topic's limit, so that a refused batch means a record that is too large.
        config.set("batch.size", "262144");
        extend(&mut config, self.common());
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        config.set("message.timeout.ms", millis(self.publish_timeout));
        config.set("message.max.bytes", self.max_message_bytes.to_string());
        config
    }

    /// For questions; also administration.
    pub(crate) fn reader(&self) -> ClientConfig {
        let mut config = self.common();
        // The end of a partition counts every record, also behind somebody's open transaction.
        config.set("isolation.level", "read_uncommitted");
        config
    }

    pub(crate) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Kept per partition, in front of what the adapter reads ahead by itself.
        config.set("queued.min.messages", "1000");
        config.set("queued.max.messages.kbytes", "1024");
        extend(&mut config, self.common());
        config.set("group.id", group);
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("auto.offset.reset", "error");
        config.set("max.poll.interval.ms", millis(self.max_poll_interval));
        match self.group_protocol {
            GroupProtocol::Classic => {
                config.set("session.timeout.ms", millis(self.session_timeout));
                if !self.properties.contains_key("heartbeat.interval.ms") {
                    // Two may be lost; 3 s is Kafka's own.
                    let beat = (self.session_timeout / 3).min(Duration::from_secs(3));
                    config.set(
                        "heartbeat.interval.ms",
                        millis(beat.max(Duration::from_millis(1))),
                    );
                }
                if !self
                    .properties
                    .contains_key("partition.assignment.strategy")
                {
                    config.set("partition.assignment.strategy", "cooperative-sticky");
                }
            }
            GroupProtocol::Consumer => {
                config.set("group.protocol", "consumer");
            }
        }
        config
    }
}

fn extend(config: &mut ClientConfig, by: ClientConfig) {
    for (property, value) in by.config_map() {
        config.set(property, value);
    }
    config.set_log_level(by.log_level);
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

fn check_broker(broker: &str) -> Result<(), &'static str> {
    // librdkafka also takes "PLAINTEXT://host:port".
    let address = broker.rsplit_once("://").map_or(broker, |(_, rest)| rest);
    let (host, port) = match address.rsplit_once(':') {
        // An IPv6 address without a port ends in its bracket.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (address, None),
    };
    if host.is_empty() || host.contains(char::is_whitespace) || host.contains('\0') {
        return Err("must be host:port, several with commas");
    }
    match port.map(str::parse::<u16>) {
        None | Some(Ok(1..)) => Ok(()),
        Some(_) => Err("has a port that is not a number from 1 to 65535"),
    }
}

/// Kafka's rule for names of topics (`Topic.validate` of its clients).
pub(crate) fn check_topic(topic: &str) -> Result<(), &'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if topic.is_empty() || topic.len() > 249 {
        Err("must have 1 to 249 characters")
    } else if topic == "." || topic == ".." {
        Err("must not be \".\" nor \"..\"")
    } else if !topic.bytes().all(legal) {
        Err("may have only ASCII letters, digits, '.', '_' and '-'")
    } else {
        Ok(())
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
            .field("max_message_bytes", &self.max_message_bytes)
            .field("buffer_records", &self.buffer_records)
            .field("buffer_bytes", &self.buffer_bytes)
            .field("group_protocol", &self.group_protocol)
            .field("properties", &shown)
            .finish()
    }
}

/// A setting that cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaConfigError {
    /// A variable or field has a value that makes no sense.
    #[error("{name} {reason}")]
    Invalid {
        /// The environment variable or the field.
        name: &'static str,
        /// What it must be.
        reason: &'static str,
    },
    /// A property that the adapter sets itself.
    #[error("the property {property} cannot be set: {reason}")]
    Protected {
        /// Of librdkafka.
        property: String,
        /// Why it is not free, or what to use instead.
        reason: &'static str,
    },
    /// A property that librdkafka does not take.
    #[error(
        "the property {property} is refused: see librdkafka's CONFIGURATION.md; ssl.* and sasl.* need the crate features ssl or gssapi"
    )]
    Rejected {
        /// Of librdkafka; empty where it does not name one.
        property: String,
        /// What it says.
        #[source]
        source: BoxError,
    },
}

fn invalid(name: &'static str, reason: &'static str) -> KafkaConfigError {
    KafkaConfigError::Invalid { name, reason }
}

impl KafkaConfigError {
    pub(crate) fn rejected(error: KafkaError) -> Self {
        match error {
            // The client's own text repeats the value, which may be a secret.
            KafkaError::ClientConfig(_, text, property, value) => Self::Rejected {
                source: hide(&text, &value).into(),
                property,
            },
            other => Self::Rejected {
                property: String::new(),
                source: other.into(),
            },
        }
    }
}

fn hide(text: &str, value: &str) -> String {
    if value.is_empty() {
        text.to_owned()
    } else {
        text.replace(value, "***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&'static str, &str)]) -> Result<KafkaConfig, KafkaConfigError> {
        KafkaConfig::from_variables(|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            Ok(found.map(|(_, value)| (*value).to_owned()))
        })
    }

    #[test]
    fn an_empty_environment_gives_the_documented_defaults() {
        let config = from(&[]).unwrap();
        assert_eq!(config.brokers(), "localhost:9092");
        assert_eq!(config.group_id(), "example-group");
        assert_eq!(config.client_id(), "foldstream");
        assert_eq!(config.events_topic(), "GlobalEvents");
        assert!(config.check().is_ok());
    }

    #[test]
    fn the_environment_is_read() {
        let config = from(&[
            ("KAFKA_BROKERS", "a:1,b:2"),
            ("KAFKA_GROUP_ID", "g"),
            ("KAFKA_CLIENT_ID", "c"),
            ("KAFKA_EVENTS_TOPIC", "t"),
        ]);
        let expected = KafkaConfig::default()
            .with_brokers("a:1,b:2")
            .with_group_id("g")
            .with_client_id("c")
            .with_events_topic("t");
        assert_eq!(config.unwrap(), expected);
    }

    #[test]
    fn a_bad_variable_is_named() {
        for (name, value) in [
            ("KAFKA_BROKERS", ""),
            ("KAFKA_BROKERS", "a:9092,"),
            ("KAFKA_BROKERS", "a:port"),
            ("KAFKA_BROKERS", "a:0"),
            ("KAFKA_BROKERS", "a b:9092"),
            ("KAFKA_GROUP_ID", ""),
            ("KAFKA_CLIENT_ID", ""),
            ("KAFKA_EVENTS_TOPIC", ""),
            ("KAFKA_EVENTS_TOPIC", "a/b"),
            ("KAFKA_EVENTS_TOPIC", ".."),
        ] {
            let error = from(&[(name, value)]).unwrap_err();
            assert!(error.to_string().starts_with(name), "{value:?}: {error}");
        }
    }

    #[test]
    fn addresses_of_brokers_may_have_no_port_a_scheme_or_brackets() {
        for brokers in [
            "kafka",
            "SSL://kafka:9093",
            "[::1]:9092",
            "[::1]",
            "10.0.0.1:9092, b",
        ] {
            assert!(from(&[("KAFKA_BROKERS", brokers)]).is_ok(), "{brokers}");
        }
    }

    #[test]
    fn a_property_that_the_contract_stands_on_is_protected() {
        for property in [
            "enable.idempotence",
            "acks",
            "auto.offset.reset",
            "enable.auto.commit",
            "enable.auto.offset.store",
            "partitioner",
            "allow.auto.create.topics",
        ] {
            let error = KafkaConfig::default()
                .with_property(property, "x")
                .unwrap_err();
            assert!(matches!(error, KafkaConfigError::Protected { .. }));
            assert!(error.to_string().contains(property), "{error}");
        }
    }

    #[test]
    fn an_unknown_property_is_named_and_its_value_is_not() {
        for (property, value) in [("no.such.property", "hunter2"), ("linger.ms", "hunter2")] {
            let config = KafkaConfig::default()
                .with_property(property, value)
                .unwrap();
            let error = config.check().unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(error.to_string().contains(property), "{error}");
            assert!(
                !format!("{error} {source} {error:?}").contains(value),
                "{source}"
            );
        }
    }

    #[test]
    fn a_field_that_cannot_work_is_named() {
        let second = Duration::from_secs(1);
        let base = KafkaConfig::default;
        for (field, config) in [
            (
                "request_timeout",
                base().with_request_timeout(Duration::ZERO),
            ),
            (
                "publish_timeout",
                base().with_publish_timeout(Duration::ZERO),
            ),
            (
                "session_timeout",
                base().with_max_poll_interval(second * 10),
            ),
            ("revoke_grace", base().with_revoke_grace(second * 101)),
            ("read_ahead", base().with_read_ahead(0, 1)),
            ("max_message_bytes", base().with_max_message_bytes(1)),
            ("brokers", base().with_brokers("")),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.to_string().starts_with(field), "{field}: {error}");
        }
    }

    #[test]
    fn debug_hides_secrets() {
        let config = KafkaConfig::default()
            .with_property("sasl.password", "hunter2")
            .unwrap()
            .with_property("ssl.key.pem", "hunter2")
            .unwrap();
        let shown = format!("{config:?}");
        assert!(
            shown.contains("sasl.password") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
