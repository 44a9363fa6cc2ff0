//! The same settings as librdkafka takes them, for each kind of client.
use super::{GroupProtocol, KafkaConfig};
use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use std::time::Duration;

impl KafkaConfig {
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
        extend(&mut config, &self.common());
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
        extend(&mut config, &self.common());
        config.set("group.id", group);
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("auto.offset.reset", "error");
        // librdkafka's default is to take a damaged record for a good one.
        config.set("check.crcs", "true");
        config.set("isolation.level", "read_committed");
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

fn extend(config: &mut ClientConfig, by: &ClientConfig) {
    for (property, value) in by.config_map() {
        config.set(property, value);
    }
    config.set_log_level(by.log_level);
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
