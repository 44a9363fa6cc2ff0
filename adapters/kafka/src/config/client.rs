//! The configurations of librdkafka for each kind of client.
use super::{GroupProtocol, KafkaConfig};
use crate::security::Login;
use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use std::time::Duration;

impl KafkaConfig {
    /// Sets what all clients have in common. It overrides the defaults of one kind of client that
    /// are set before, as properties do.
    fn set_common(&self, config: &mut ClientConfig) {
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", &self.client_id);
        // By default librdkafka's producers let the brokers create unknown topics.
        config.set("allow.auto.create.topics", "false");
        for (property, value) in &self.properties {
            config.set(property, value);
        }
        if self.tokens.is_some() {
            config.set("sasl.mechanism", "OAUTHBEARER");
        }
        config.set_log_level(if self.logs_debug() {
            RDKafkaLogLevel::Debug
        } else {
            RDKafkaLogLevel::Info
        });
    }

    /// Returns the login of one client.
    pub(crate) fn login(&self) -> Login {
        Login::new(self.tokens.as_ref(), self.request_timeout)
    }

    /// Returns true if the property `debug` names contexts, whose lines would not appear below that
    /// level.
    pub(crate) fn logs_debug(&self) -> bool {
        self.properties.get("debug").is_some_and(|d| !d.is_empty())
    }

    /// The most bytes of a batch that has several records. A topic with a lower limit makes it
    /// smaller.
    pub(crate) const BATCH_BYTES: usize = 262_144;

    /// Returns the configuration of a producer that sends several records in one batch only up to
    /// `batch_bytes`.
    pub(crate) fn producer(&self, batch_bytes: usize) -> ClientConfig {
        let mut config = ClientConfig::new();
        // A connection that is stuck is replaced by the client itself, before the adapter loses its
        // patience and replaces the client.
        let patience = self.publish_timeout;
        let least = Duration::from_secs(1).min(patience * 2 / 3);
        let answer = (patience / 3).clamp(least, Duration::from_secs(60));
        let answer = millis(answer.max(Duration::from_millis(10)));
        config.set("socket.timeout.ms", &answer);
        config.set("request.timeout.ms", &answer);
        self.set_common(&mut config);
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        // The client stops if records after a refused one could be stored without it.
        config.set("enable.gapless.guarantee", "true");
        // Only the adapter gives records up, so that it can give up all that are after them, too.
        config.set("message.timeout.ms", "0");
        config.set("max.in.flight.requests.per.connection", "5");
        // The client sends a batch as soon as it is full. Without this millisecond, a run that is
        // still being queued would leave in many small batches, and only five may be in flight.
        config.set("linger.ms", "1");
        config.set("batch.size", batch_bytes.to_string());
        config.set("message.max.bytes", self.max_message_bytes.to_string());
        config
    }

    /// Returns the configuration of a client for requests and administration.
    pub(crate) fn reader(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.set_common(&mut config);
        // The end of a partition counts every record, also after a transaction that is still open.
        config.set("isolation.level", "read_uncommitted");
        config
    }

    /// Returns the configuration of a member of a group. Its log reveals the ids of topics and some
    /// losses of partitions, which no call returns: see `consumer/topic_ids.rs` and
    /// `consumer/member.rs`.
    pub(crate) fn member(&self, group: &str, instance_id: Option<&str>) -> ClientConfig {
        let mut config = self.consumer(group);
        let debug = match self.properties.get("debug") {
            Some(contexts) if !contexts.is_empty() => format!("{contexts},metadata,consumer"),
            _ => "metadata,consumer".to_owned(),
        };
        config.set("debug", debug);
        config.set_log_level(RDKafkaLogLevel::Debug);
        if let Some(id) = instance_id {
            config.set("group.instance.id", id);
        }
        config
    }

    /// Returns the configuration of a client that carries the name of a group.
    pub(crate) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Counts per partition, in addition to the records that the adapter reads ahead itself.
        config.set("queued.min.messages", "1000");
        config.set("queued.max.messages.kbytes", "1024");
        // librdkafka stops fetching a partition whose queue is full, and looks again only after
        // this time: by default after a second, in which the caller has long emptied the queue.
        config.set("fetch.queue.backoff.ms", "10");
        // A broker gets one fetch at a time. A partition whose queue was full is not part of it,
        // and is not fetched before it is answered: by default for half a second, if the others
        // have no records.
        config.set("fetch.wait.max.ms", "50");
        self.set_common(&mut config);
        config.set("group.id", group);
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("auto.offset.reset", "error");
        // By default librdkafka does not notice damaged records.
        config.set("check.crcs", "true");
        config.set("isolation.level", "read_committed");
        config.set("max.poll.interval.ms", millis(self.max_poll_interval));
        match self.group_protocol {
            GroupProtocol::Classic => {
                config.set("session.timeout.ms", millis(self.session_timeout));
                if !self.properties.contains_key("heartbeat.interval.ms") {
                    // Two heartbeats may be lost. 3 s is Kafka's own default.
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

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
