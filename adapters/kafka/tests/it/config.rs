//! A configuration that cannot work is refused before any connection.
use foldstream_kafka::{KafkaConfig, KafkaConfigError, KafkaMessageBus};

#[test]
fn a_bus_with_an_unknown_property_is_refused_by_its_name() {
    let config = KafkaConfig::default()
        .with_property("no.such.property", "x")
        .unwrap();
    let error = KafkaMessageBus::new(config).unwrap_err();
    assert!(
        matches!(&error, KafkaConfigError::Rejected { property, .. } if property == "no.such.property")
    );
}

#[test]
fn a_bus_without_brokers_is_refused_by_the_field() {
    let error = KafkaMessageBus::new(KafkaConfig::default().with_brokers("")).unwrap_err();
    assert!(error.to_string().starts_with("brokers"), "{error}");
}

#[test]
fn a_property_that_decides_correctness_cannot_be_overridden() {
    let error = KafkaConfig::default()
        .with_property("acks", "1")
        .unwrap_err();
    assert!(
        matches!(error, KafkaConfigError::Protected { .. }),
        "{error}"
    );
}
