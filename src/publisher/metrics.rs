//! The names under which publishers record metrics by the facade `metrics`, behind the feature
//! `metrics`.
//!
//! Names of OpenTelemetry's messaging conventions are used where there is one. Every metric has the
//! label [`PUBLISHER`]. No label holds the id of a stream or of an event.
//!
//! A publisher records them every second while [`Publisher::show_status`] runs, and once more when
//! it ends, from what [`Publisher::status`] tells. [`Publisher::poll`] and the reader of a change
//! stream run it by themselves.
use super::{Publisher, PublisherStatus, TopicStatus};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The label that holds the name of the publisher. It is empty for the publisher without a name.
pub const PUBLISHER: &str = "foldstream.publisher";
/// The label that holds the topic. All counters and [`LAG`] have it.
pub const TOPIC: &str = "messaging.destination.name";

/// A counter: the records that the bus has acknowledged, duplicates included.
pub const PUBLISHED: &str = "messaging.client.sent.messages";
/// A counter: the size of the acknowledged records in bytes.
pub const BYTES: &str = "foldstream.publisher.bytes";
/// A counter: the notices whose commits were published already, so that nothing was sent.
pub const DUPLICATES_SUPPRESSED: &str = "foldstream.publisher.duplicates_suppressed";
/// A counter: the times that a stream could not be brought up to date.
pub const FAILURES: &str = "foldstream.publisher.failures";
/// A gauge: the events that are known to wait, of the streams that are being published.
pub const LAG: &str = "foldstream.publisher.lag";
/// A gauge: the age of the oldest commit that was read and is not acknowledged, in seconds; 0 if
/// there is none.
pub const LAG_TIME: &str = "foldstream.publisher.lag.time";
/// A gauge: the streams that are being published.
pub const WORKING: &str = "foldstream.publisher.working";
/// A gauge: the streams that this process has set aside as dirty and has not published since.
pub const DIRTY: &str = "foldstream.publisher.dirty";

/// The time between two records.
const INTERVAL: Duration = Duration::from_secs(1);

/// The counts of each topic that were recorded last.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<BTreeMap<Arc<str>, TopicStatus>>);

impl Meter {
    /// Records the difference to the last counts, and the state.
    fn record(&self, name: &str, status: &PublisherStatus) {
        let before = {
            let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *last, status.topics.clone())
        };
        let nothing = TopicStatus::default();
        for (topic, now) in &status.topics {
            let before = before.get(topic).unwrap_or(&nothing);
            for ((counter, now), (_, before)) in counts(now).into_iter().zip(counts(before)) {
                let new = now.saturating_sub(before);
                if new > 0 {
                    metrics::counter!(counter, PUBLISHER => name.to_owned(), TOPIC => topic.clone())
                        .increment(new);
                }
            }
            metrics::gauge!(LAG, PUBLISHER => name.to_owned(), TOPIC => topic.clone())
                .set(float(now.lag));
        }
        let age = status.oldest_unpublished.unwrap_or_default();
        let gauges = [
            (LAG_TIME, age.as_secs_f64()),
            (WORKING, float(status.working as u64)),
            (DIRTY, float(status.dirty as u64)),
        ];
        for (gauge, value) in gauges {
            metrics::gauge!(gauge, PUBLISHER => name.to_owned()).set(value);
        }
    }
}

impl Publisher {
    /// Records the metrics at each interval, forever.
    pub(super) async fn record_metrics(&self) {
        loop {
            self.record_metrics_once();
            tokio::time::sleep(INTERVAL).await;
        }
    }

    pub(super) fn record_metrics_once(&self) {
        let name = self.name.as_ref().map_or("", |name| name.as_str());
        self.state.meter.record(name, &self.status());
    }
}

const fn counts(topic: &TopicStatus) -> [(&'static str, u64); 4] {
    [
        (PUBLISHED, topic.published),
        (BYTES, topic.bytes),
        (DUPLICATES_SUPPRESSED, topic.duplicates_suppressed),
        (FAILURES, topic.failures),
    ]
}

/// A gauge is a floating-point number: exact up to 2^53.
#[allow(clippy::cast_precision_loss, reason = "a gauge needs no more digits")]
const fn float(value: u64) -> f64 {
    value as f64
}
