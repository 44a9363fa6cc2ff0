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
    assert_eq!(config.group_id(), Some("example-group"));
    assert_eq!(KafkaConfig::default().group_id(), None);
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
        ("KAFKA_BROKERS", "http://a:9092"),
        ("KAFKA_BROKERS", "a:9092,kafka://b:9092"),
        ("KAFKA_BROKERS", "a:9092/topic"),
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
fn an_http_url_is_refused_and_the_error_says_what_to_write() {
    for brokers in [
        "http://kafka:9092",
        "HTTPS://kafka",
        "kafka-1:9092, https://kafka-2:9092",
    ] {
        let config = KafkaConfig::default().with_brokers(brokers);
        for error in [
            config.check().unwrap_err(),
            from(&[("KAFKA_BROKERS", brokers)]).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                text.contains("HTTP") && text.contains("host:port"),
                "{text}"
            );
        }
    }
}

#[test]
fn a_scheme_must_be_the_security_protocol() {
    let config = |brokers: &str| KafkaConfig::default().with_brokers(brokers);
    assert!(config("PLAINTEXT://a:1,b:2").check().is_ok());
    let error = config("a:1,sasl_plaintext://b:2").check().unwrap_err();
    assert!(error.to_string().contains("security.protocol"), "{error}");
    let sasl = config("SASL_PLAINTEXT://a:1");
    let sasl = sasl.with_property("security.protocol", "sasl_plaintext");
    assert!(sasl.unwrap().check_protocol().is_ok());
}

#[test]
fn a_property_that_the_contract_stands_on_is_protected() {
    for property in [
        "enable.idempotence",
        "acks",
        "auto.offset.reset",
        "enable.auto.commit",
        "auto.commit.enable",
        "enable.auto.offset.store",
        "offset.store.method",
        "partitioner",
        "allow.auto.create.topics",
        "check.crcs",
        "isolation.level",
        "delivery.report.only.error",
        "enable.gapless.guarantee",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "linger.ms",
        "queue.buffering.max.ms",
        "batch.size",
        "message.timeout.ms",
        "delivery.timeout.ms",
        "message.max.bytes",
        "test.mock.num.brokers",
        "group.instance.id",
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
    for (property, value) in [
        ("no.such.property", "hunter2"),
        ("retry.backoff.ms", "hunter2"),
    ] {
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
            base().with_publish_timeout(Duration::from_millis(999)),
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

/// The properties that librdkafka itself hides in its dump of a configuration, but for names of
/// users, files and certificates, which help to find a mistake.
#[test]
fn debug_hides_every_secret_that_librdkafka_knows() {
    for property in [
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
        "sasl.password",
        "sasl.jaas.config",
        "sasl.oauthbearer.config",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "sasl.oauthbearer.assertion.private.key.pem",
    ] {
        let config = KafkaConfig::default().with_property(property, "hunter2");
        let shown = format!("{:?}", config.unwrap());
        assert!(
            shown.contains(property) && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}

/// `ClientConfig::config_map` of rdkafka has a placeholder instead of a secret.
#[test]
fn every_client_gets_the_secrets() {
    let names = ["sasl.password", "ssl.key.password", "ssl.keystore.password"];
    let set = |config: KafkaConfig, name: &&str| config.with_property(*name, "hunter2").unwrap();
    let config = names.iter().fold(KafkaConfig::default(), set);
    for client in [
        config.producer(262_144),
        config.reader(),
        config.consumer("g"),
        config.member("g", None),
    ] {
        for name in names {
            assert_eq!(client.get(name), Some("hunter2"), "{name}");
        }
    }
}

struct NoTokens;
#[async_trait::async_trait]
impl TokenProvider for NoTokens {
    async fn token(&self) -> Result<crate::Token, foldstream::BoxError> {
        Err("none".into())
    }
}

#[test]
fn tokens_and_the_mechanism_that_has_them_belong_together() {
    let with = |properties: &[(&str, &str)]| {
        let mut config = KafkaConfig::default();
        for (property, value) in properties {
            config = config.with_property(*property, *value).unwrap();
        }
        config
    };
    let sasl = ("security.protocol", "SASL_SSL");
    let (bearer, scram) = (
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.mechanisms", "SCRAM-SHA-512"),
    );
    let unsecured = ("enable.sasl.oauthbearer.unsecure.jwt", "true");
    for (config, is_right) in [
        (with(&[sasl]).with_token_provider(NoTokens), true),
        (with(&[sasl, bearer]).with_token_provider(NoTokens), true),
        (with(&[sasl, scram]).with_token_provider(NoTokens), false),
        (with(&[]).with_token_provider(NoTokens), false),
        (with(&[sasl, bearer]), false),
        (with(&[sasl, bearer, unsecured]), true),
        (with(&[sasl, scram]), true),
    ] {
        let checked = config.check_login();
        assert_eq!(checked.is_ok(), is_right, "{config:?}: {checked:?}");
    }
    let config = with(&[sasl]).with_token_provider(NoTokens);
    for client in [
        config.producer(262_144),
        config.reader(),
        config.member("g", None),
    ] {
        assert_eq!(client.get("sasl.mechanism"), Some("OAUTHBEARER"));
    }
}

#[test]
fn checksums_are_verified_and_aborted_records_are_left_out() {
    let consumer = KafkaConfig::default().consumer("g");
    assert_eq!(consumer.get("check.crcs"), Some("true"));
    assert_eq!(consumer.get("isolation.level"), Some("read_committed"));
}

#[test]
fn a_producer_gives_up_nothing_by_itself_and_keeps_the_order_of_what_is_in_flight() {
    let config = KafkaConfig::default().producer(20_000);
    for (property, value) in [
        ("enable.idempotence", "true"),
        ("acks", "all"),
        ("enable.gapless.guarantee", "true"),
        ("message.timeout.ms", "0"),
        ("max.in.flight.requests.per.connection", "5"),
        ("linger.ms", "1"),
        ("batch.size", "20000"),
        ("message.max.bytes", "1000000"),
        ("allow.auto.create.topics", "false"),
        // Below the 15 s of the adapter's own patience.
        ("socket.timeout.ms", "10000"),
        ("request.timeout.ms", "10000"),
    ] {
        assert_eq!(config.get(property), Some(value), "{property}");
    }
    let short = KafkaConfig::default().with_publish_timeout(Duration::from_secs(1));
    assert_eq!(short.producer(1).get("socket.timeout.ms"), Some("666"));
    // Others may be set.
    let own = KafkaConfig::default().with_property("socket.timeout.ms", "4000");
    let own = own.unwrap().producer(1);
    assert_eq!(own.get("socket.timeout.ms"), Some("4000"));
}

#[test]
fn a_consumer_waits_briefly_for_partitions_without_records_unless_told_otherwise() {
    let consumer = KafkaConfig::default().consumer("g");
    assert_eq!(consumer.get("fetch.wait.max.ms"), Some("50"));
    let patient = KafkaConfig::default()
        .with_property("fetch.wait.max.ms", "500")
        .unwrap();
    let consumer = patient.consumer("g");
    assert_eq!(consumer.get("fetch.wait.max.ms"), Some("500"));
}

/// The properties with which librdkafka refuses a member of a KIP-848 group.
const CLASSIC: [&str; 3] = [
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
];

#[test]
fn a_member_of_the_consumer_protocol_has_no_setting_of_a_classic_group() {
    let classic = KafkaConfig::default().with_session_timeout(Duration::from_secs(30));
    let member = classic.member("g", Some("node-1"));
    assert_eq!(member.get("group.protocol"), None);
    for property in CLASSIC {
        assert!(member.get(property).is_some(), "{property}");
    }
    let consumer = classic.with_group_protocol(GroupProtocol::Consumer);
    assert!(consumer.check().is_ok());
    let member = consumer.member("g", Some("node-1"));
    assert_eq!(member.get("group.protocol"), Some("consumer"));
    assert_eq!(member.get("group.instance.id"), Some("node-1"));
    assert_eq!(member.get("max.poll.interval.ms"), Some("300000"));
    for property in CLASSIC {
        assert_eq!(member.get(property), None, "{property}");
    }
    // librdkafka checks this only when it creates the member.
    assert!(member.create::<rdkafka::consumer::BaseConsumer>().is_ok());
}

#[test]
fn a_property_of_the_other_group_protocol_is_refused_before_any_member_joins() {
    for (protocol, property, value, remedy) in [
        (
            GroupProtocol::Consumer,
            "heartbeat.interval.ms",
            "1000",
            "group.consumer.heartbeat.interval.ms",
        ),
        (
            GroupProtocol::Consumer,
            "partition.assignment.strategy",
            "range",
            "group.remote.assignor",
        ),
        (
            GroupProtocol::Consumer,
            "group.protocol.type",
            "consumer",
            "no types",
        ),
        (
            GroupProtocol::Classic,
            "group.remote.assignor",
            "uniform",
            "with_group_protocol",
        ),
    ] {
        let config = KafkaConfig::default().with_group_protocol(protocol);
        let error = config.with_property(property, value).unwrap().check();
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(property) && error.contains(remedy),
            "{error}"
        );
        let other = match protocol {
            GroupProtocol::Classic => GroupProtocol::Consumer,
            GroupProtocol::Consumer => GroupProtocol::Classic,
        };
        let config = KafkaConfig::default().with_group_protocol(other);
        let config = config.with_property(property, value).unwrap();
        config.check().unwrap();
    }
}

#[test]
fn the_session_timeout_of_the_consumer_protocol_is_the_brokers() {
    let second = Duration::from_secs(1);
    let short = KafkaConfig::default().with_max_poll_interval(10 * second);
    assert!(short.check().is_err(), "45 s do not fit into 10 s");
    let consumer = short.with_group_protocol(GroupProtocol::Consumer);
    assert!(consumer.check().is_ok());
}
