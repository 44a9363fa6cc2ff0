//! What settings must be, and the error of one that is not.
use super::KafkaConfig;
use foldstream::BoxError;
use rdkafka::error::KafkaError;

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

pub(super) fn invalid(name: &'static str, reason: &'static str) -> KafkaConfigError {
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

/// Settings that a contract of the adapter stands on.
pub(super) const PROTECTED: &[(&str, &str)] = &[
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
pub(super) fn is_secret(property: &str) -> bool {
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
    pub(super) fn check_names(&self, names: [&'static str; 4]) -> Result<(), KafkaConfigError> {
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
