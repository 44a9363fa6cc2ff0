//! The row in which a running publisher shows its status to other processes.
use super::{Publisher, PublisherStatus, TopicStatus, status::total};
use crate::{
    Timestamp,
    control::{InstanceId, PublisherInstanceRow, TopicNumbers},
    host,
};
use futures::FutureExt;
use std::{collections::BTreeMap, future::Future, pin::pin, sync::Arc, time::Duration};

/// The least time between two writes of a publisher's row.
const INTERVAL: Duration = Duration::from_secs(10);

/// The longest time for which the deletion of the row is waited for.
const LAST: Duration = Duration::from_secs(5);

impl Publisher {
    /// Shows the status of this publisher in a row of the control store until `shutdown` is ready,
    /// so that an [`Operator`](crate::operate::Operator) in any process sees it. The row is written
    /// every 10 s and deleted at the end; that of a process that has died expires after 10 min.
    ///
    /// [`poll`](Self::poll) does this by itself. Call this function beside another trigger. A row
    /// that cannot be written is logged and tried again at the next interval. With the feature
    /// `metrics`, the metrics of the publisher are recorded meanwhile.
    pub async fn show_status(&self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown.fuse());
        // Clones share the counters, so that one row is enough for all of them.
        let _one = tokio::select! {
            biased;
            () = &mut shutdown => return,
            one = self.state.showing.lock() => one,
        };
        let id = InstanceId::from_u128(self.ids.revision().as_u128());
        tokio::select! {
            biased;
            () = &mut shutdown => {}
            () = self.write_status(id) => {}
            () = self.record_metrics() => {}
        }
        #[cfg(feature = "metrics")]
        self.record_metrics_once();
        // A store that does not answer must not hold up a shutdown.
        let error = match tokio::time::timeout(LAST, self.rows.instance_delete(id)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => crate::chain(&error),
            Err(_) => "the control store does not answer".into(),
        };
        tracing::debug!(error, "the row of the publisher expires");
    }

    #[cfg(not(feature = "metrics"))]
    async fn record_metrics(&self) {
        std::future::pending::<()>().await;
    }

    /// Writes the row at each interval, forever.
    async fn write_status(&self, id: InstanceId) {
        let label = self.label.clone().unwrap_or_else(host::name);
        let since = self.clock.now();
        loop {
            let row = self.status_row(&label, since);
            if let Err(error) = self.rows.instance_put(id, row).await {
                let error = crate::chain(&error);
                tracing::warn!(error, "the status of the publisher cannot be shown");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn status_row(&self, label: &str, since: Timestamp) -> PublisherInstanceRow {
        let (status, now) = (self.status(), self.clock.now());
        let numbers = |topic: &TopicStatus| TopicNumbers {
            published: topic.published,
            bytes: topic.bytes,
            suppressed: topic.duplicates_suppressed,
            failures: topic.failures,
            lag: topic.lag,
            acknowledged: topic.last_acknowledged,
        };
        let topics = status.topics.iter();
        PublisherInstanceRow {
            label: label.into(),
            since,
            updated: now,
            working: status.working as u64,
            oldest: status.oldest_unpublished.map(|age| before(now, age)),
            dirty: status.dirty as u64,
            topics: topics
                .map(|(name, topic)| (name.to_string(), numbers(topic)))
                .collect(),
        }
    }
}

/// Returns the time that is this much before another.
fn before(time: Timestamp, by: Duration) -> Timestamp {
    let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(time.as_micros().saturating_sub(micros))
}

impl PublisherStatus {
    /// Returns the status that a row shows, at the time of its write.
    pub(crate) fn shown(row: &PublisherInstanceRow) -> Self {
        let status = |numbers: &TopicNumbers| TopicStatus {
            published: numbers.published,
            bytes: numbers.bytes,
            duplicates_suppressed: numbers.suppressed,
            failures: numbers.failures,
            lag: numbers.lag,
            last_acknowledged: numbers.acknowledged,
        };
        let topics: BTreeMap<Arc<str>, TopicStatus> = row
            .topics
            .iter()
            .map(|(name, numbers)| (name.as_str().into(), status(numbers)))
            .collect();
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        total(
            topics,
            count(row.working),
            row.oldest.map(|at| row.updated.since(at)),
            count(row.dirty),
        )
    }
}
