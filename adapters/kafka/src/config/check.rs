//! The checks of settings, and the error of a setting that is not accepted.
use super::{GroupProtocol, KafkaConfig};
use foldstream::BoxError;
use rdkafka::error::KafkaError;

/// The error of a setting that cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaConfigError {
    /// A variable or field has a value that is not accepted.
    #[error("{name} {reason}")]
    Invalid {
        /// The name of the environment variable or of the field.
        name: &'static str,
        /// The rule that the value breaks.
        reason: &'static str,
    },
    /// The adapter sets this property itself.
    #[error("the property {property} cannot be set: {reason}")]
    Protected {
        /// The name of the librdkafka property.
        property: String,
        /// The reason why the property is not free, or the setting to use instead.
        reason: &'static str,
    },
    /// A property is refused by librdkafka.
    #[error(
        "the property {property} is refused: see librdkafka's CONFIGURATION.md; ssl.* and sasl.* need the crate features tls or gssapi"
    )]
    Rejected {
        /// The name of the librdkafka property. Empty if librdkafka does not name one.
        property: String,
        /// The error of librdkafka.
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

/// The properties on which the contract of the adapter rests, and the reason or remedy for each.
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
        "enable.gapless.guarantee",
        "without it records after a refused one of the same stream may be stored without it",
    ),
    (
        "max.in.flight.requests.per.connection",
        "five requests in flight keep their order, and more do not",
    ),
    (
        "max.in.flight",
        "five requests in flight keep their order, and more do not",
    ),
    (
        "linger.ms",
        "a run is queued at once, and waiting for more records would delay it",
    ),
    (
        "queue.buffering.max.ms",
        "a run is queued at once, and waiting for more records would delay it",
    ),
    (
        "batch.size",
        "batches stay below the limit of every topic: a larger one would be refused with all its records",
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
        "auto.commit.enable",
        "only what a consumer commits counts as done",
    ),
    (
        "offset.store.method",
        "the brokers keep the offsets of a group, not a local file",
    ),
    (
        "check.crcs",
        "a record that was damaged on its way must be an error and not an event; checksums are always verified",
    ),
    (
        "isolation.level",
        "records of an aborted transaction are not events",
    ),
    (
        "delivery.report.only.error",
        "a publish waits for the report of its own record, also of one that was stored",
    ),
    (
        "enabled_events",
        "the client tells of reports, errors and rebalances, and the adapter listens to all of them",
    ),
    (
        "test.mock.num.brokers",
        "it replaces the brokers by a mock cluster in this process, which loses all records with it",
    ),
    ("group.instance.id", "use Subscription::with_instance_id"),
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

/// The properties that only members of classic groups have.
const CLASSIC_ONLY: &[(&str, &str)] = &[
    (
        "heartbeat.interval.ms",
        "with GroupProtocol::Consumer the broker sets it by group.consumer.heartbeat.interval.ms",
    ),
    (
        "partition.assignment.strategy",
        "with GroupProtocol::Consumer the broker assigns: set group.remote.assignor to uniform or range",
    ),
    (
        "group.protocol.type",
        "GroupProtocol::Consumer has no types",
    ),
];

/// The properties that only members of the other groups have.
const CONSUMER_ONLY: &[(&str, &str)] = &[(
    "group.remote.assignor",
    "it needs KafkaConfig::with_group_protocol(GroupProtocol::Consumer): in classic groups a member assigns, by partition.assignment.strategy",
)];

/// Returns true for properties whose values are never shown.
pub(super) fn is_secret(property: &str) -> bool {
    [
        "password",
        "secret",
        "key.pem",
        "token",
        "oauthbearer.config",
        "passphrase",
        "jaas",
    ]
    .iter()
    .any(|part| property.contains(part))
}

impl KafkaConfig {
    /// Checks all settings that can be checked without a broker.
    pub(crate) fn check(&self) -> Result<(), KafkaConfigError> {
        self.check_names(["brokers", "group_id", "client_id", "events_topic"])?;
        self.check_protocol()?;
        for (name, value) in [
            ("request_timeout", self.request_timeout),
            ("session_timeout", self.session_timeout),
            ("max_poll_interval", self.max_poll_interval),
        ] {
            if !(1..=86_400_000).contains(&value.as_millis()) {
                return Err(invalid(name, "must be from 1 ms to 1 day"));
            }
        }
        if !(1_000..=86_400_000).contains(&self.publish_timeout.as_millis()) {
            return Err(invalid(
                "publish_timeout",
                "must be from 1 s to 1 day: a producer that is given up sooner could not even connect",
            ));
        }
        self.check_login()?;
        self.check_group_protocol()?;
        // The broker sets the session timeout of the other protocol.
        let is_classic = self.group_protocol == GroupProtocol::Classic;
        if is_classic && self.session_timeout > self.max_poll_interval {
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
        // The bounds of librdkafka's `message.max.bytes`.
        if !(1_000..=1_000_000_000).contains(&self.max_message_bytes) {
            return Err(invalid(
                "max_message_bytes",
                "must be from 1,000 to 1,000,000,000",
            ));
        }
        for config in [self.producer(Self::BATCH_BYTES), self.consumer("check")] {
            config
                .create_native_config()
                .map_err(KafkaConfigError::rejected)?;
        }
        Ok(())
    }

    /// Checks that tokens are used by the mechanism that has them.
    pub(super) fn check_login(&self) -> Result<(), KafkaConfigError> {
        let property = |name: &str| self.properties.get(name).map_or("", String::as_str);
        let names = ["sasl.mechanism", "sasl.mechanisms"].map(property);
        let is_bearer = |name: &str| name.eq_ignore_ascii_case("OAUTHBEARER");
        let has_another = names
            .iter()
            .any(|name| !name.is_empty() && !is_bearer(name));
        let protocol = property("security.protocol");
        let is_sasl = protocol
            .get(..4)
            .is_some_and(|p| p.eq_ignore_ascii_case("sasl"));
        if self.tokens.is_some() && has_another {
            return Err(invalid(
                "token_provider",
                "is for the SASL mechanism OAUTHBEARER: leave out the property sasl.mechanism",
            ));
        }
        if self.tokens.is_some() && !is_sasl {
            return Err(invalid(
                "token_provider",
                "needs the property security.protocol = sasl_ssl",
            ));
        }
        let has_own_source = property("enable.sasl.oauthbearer.unsecure.jwt") == "true"
            || property("sasl.oauthbearer.method").eq_ignore_ascii_case("oidc");
        if self.tokens.is_none() && names.into_iter().any(is_bearer) && !has_own_source {
            return Err(invalid(
                "token_provider",
                "is missing: the SASL mechanism OAUTHBEARER needs KafkaConfig::with_token_provider",
            ));
        }
        Ok(())
    }

    /// Checks that no property belongs to the other group protocol. librdkafka would refuse it only
    /// when the first member joins, or ignore it.
    fn check_group_protocol(&self) -> Result<(), KafkaConfigError> {
        let of_other = match self.group_protocol {
            GroupProtocol::Classic => CONSUMER_ONLY,
            GroupProtocol::Consumer => CLASSIC_ONLY,
        };
        let mut set = of_other.iter();
        match set.find(|(name, _)| self.properties.contains_key(*name)) {
            None => Ok(()),
            Some((name, reason)) => Err(KafkaConfigError::Protected {
                property: (*name).into(),
                reason,
            }),
        }
    }

    /// Checks that the schemes of the brokers agree with `security.protocol`. librdkafka ignores
    /// other brokers.
    pub(super) fn check_protocol(&self) -> Result<(), KafkaConfigError> {
        let protocol = self.properties.get("security.protocol");
        let protocol = protocol.map_or("plaintext", String::as_str);
        let mut schemes = self.brokers.split(',').filter_map(|b| b.split_once("://"));
        if schemes.all(|(scheme, _)| scheme.trim().eq_ignore_ascii_case(protocol)) {
            return Ok(());
        }
        Err(invalid(
            "brokers",
            "have a scheme that differs from the property security.protocol (default plaintext): write host:port and set \
             that property",
        ))
    }

    /// Checks brokers, group, client and topic. `names` are their names as the caller knows them.
    pub(super) fn check_names(&self, names: [&'static str; 4]) -> Result<(), KafkaConfigError> {
        let [brokers, group, client, topic] = names;
        for broker in self.brokers.split(',') {
            check_broker(broker.trim()).map_err(|reason| invalid(brokers, reason))?;
        }
        let group_id = self.group_id.as_ref().map(|value| (group, value));
        for (name, value) in group_id.into_iter().chain([(client, &self.client_id)]) {
            if value.is_empty() || value.contains('\0') {
                return Err(invalid(name, "must not be empty nor hold a NUL"));
            }
        }
        check_topic(&self.events_topic).map_err(|reason| invalid(topic, reason))
    }
}

/// The values of `security.protocol`, which may also precede an address, as in
/// `SASL_SSL://kafka:9093`.
const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];

/// Checks the address of one broker.
///
/// librdkafka ignores an address that it cannot read, together with all addresses after it. Every
/// call would then time out.
fn check_broker(broker: &str) -> Result<(), &'static str> {
    let address = match broker.split_once("://") {
        None => broker,
        Some((scheme, address)) => {
            check_scheme(scheme)?;
            address
        }
    };
    if address.contains(['/', '?', '#', '@']) {
        return Err("must be host:port without a path or a user, several with commas");
    }
    let (host, port) = match address.rsplit_once(':') {
        // An IPv6 address without a port ends with its bracket.
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

fn check_scheme(scheme: &str) -> Result<(), &'static str> {
    let is = |name: &str| scheme.eq_ignore_ascii_case(name);
    if is("http") || is("https") {
        return Err(
            "is an HTTP URL, and Kafka does not speak HTTP: write host:port, several with commas",
        );
    }
    if !PROTOCOLS.iter().any(|protocol| is(protocol)) {
        return Err("has an unknown scheme: write host:port, several with commas");
    }
    Ok(())
}

/// Checks the name of a topic by Kafka's rule (`Topic.validate` of its clients).
fn check_topic(topic: &str) -> Result<(), &'static str> {
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
