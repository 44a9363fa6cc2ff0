//! The operators' view of publishers, and what operators do about them: status and lag, watermarks,
//! dirty streams, pinned topics, skip, sweep, reconciliation.
use super::{
    InstanceId, ListCursor, ListPage, OperateError, Operator, Reason, cursor::Place, letters::walk,
};
use crate::{
    Backoff, CommitId, StreamId, Timestamp, Version,
    control::{
        PublisherInstanceRow, PublisherName, PublisherRows, ReconcileRun, Stored, TopicPins,
        Watermark, Watermarks,
    },
    publisher::{
        DirtyStream, Publisher, PublisherStatus, ReconcileBudget, ReconcileReport, Skipped,
        SweepConfig, SweepReport,
    },
};
use std::{num::NonZeroU32, time::Duration};

/// The state of a publisher in all processes, from the rows that they have written. Nothing is
/// scanned for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherOverview {
    /// The name of the publisher; `None` for the publisher without a name.
    pub name: Option<PublisherName>,
    /// The running processes, by their ids. One that has died is listed for up to ten minutes.
    pub instances: Vec<PublisherInstance>,
    /// The reconciliation that has begun and not ended; `None` if there is none.
    pub reconciling: Option<ReconcileStatus>,
    /// The last reconciliation that has compared all streams; `None` before the first one.
    pub reconciled: Option<ReconcileStatus>,
}

impl PublisherOverview {
    /// Returns the number of events that the processes know to wait. Events of which no process has
    /// a notice are found by a reconciliation. A process that is
    /// [silent](PublisherInstance::is_silent) counts with its last number.
    pub fn lag(&self) -> u64 {
        let lags = self.instances.iter().map(|instance| instance.status.lag);
        lags.fold(0, u64::saturating_add)
    }
    /// Returns the age of the oldest commit that a process has read and not seen acknowledged;
    /// `None` if there is none. This is the lag in time.
    pub fn oldest_unpublished(&self) -> Option<Duration> {
        let ages = self.instances.iter();
        ages.filter_map(|instance| instance.status.oldest_unpublished)
            .max()
    }
}

/// A process that publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherInstance {
    /// The id of the start of the process.
    pub id: InstanceId,
    /// The stable name of the process, by default that of its host.
    pub label: String,
    /// The time since which the process shows its status.
    pub since: Timestamp,
    /// The time of this status. It is written every ten seconds, so a much older one is that of a
    /// process that has died: see [`is_silent`](Self::is_silent).
    pub updated: Timestamp,
    /// The status at that time.
    pub status: PublisherStatus,
}

impl PublisherInstance {
    /// The age from which a status is that of a process that has died or is cut off.
    const SILENT: Duration = Duration::from_secs(60);

    /// Returns true if the status is more than a minute old at `now`, so that the process has died
    /// or is cut off from the control store. What the status says was true at
    /// [`updated`](Self::updated).
    pub fn is_silent(&self, now: Timestamp) -> bool {
        now.since(self.updated) >= Self::SILENT
    }

    fn new(id: InstanceId, row: &PublisherInstanceRow) -> Self {
        Self {
            id,
            label: row.label.clone(),
            since: row.since,
            updated: row.updated,
            status: PublisherStatus::shown(row),
        }
    }
}

/// The numbers of a reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReconcileStatus {
    /// The time at which the reconciliation began.
    pub since: Timestamp,
    /// The time of the last page, and of the end once it has ended.
    pub updated: Timestamp,
    /// The number of heads of commits that were read.
    pub heads: u64,
    /// The number of times that a stream was found behind its tail.
    pub behind: u64,
    /// The number of events that those streams lacked: the lag at that time.
    pub events: u64,
    /// The number of streams that could not be published.
    pub failed: u64,
}

impl From<ReconcileRun> for ReconcileStatus {
    fn from(run: ReconcileRun) -> Self {
        Self {
            since: run.since,
            updated: run.updated,
            heads: run.heads,
            behind: run.behind,
            events: run.events,
            failed: run.failed,
        }
    }
}

/// The version up to which a stream is published.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishedStream {
    /// The stream that was published.
    pub stream: StreamId,
    /// The version up to which the bus has acknowledged the stream.
    pub version: Version,
    /// The id of the commit that ends at that version.
    pub commit_id: CommitId,
    /// The last version that has a record in the topic. It is lower than `version` if the events
    /// after it are private or skipped, and 0 if none has a record.
    pub last_record: Version,
}

impl PublishedStream {
    fn new(stream: StreamId, row: &Stored<Watermark>) -> Self {
        Self {
            stream,
            version: row.value.version,
            commit_id: row.value.commit_id,
            last_record: row.value.last_record(),
        }
    }
}

/// A topic whose number of partitions is pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinnedTopic {
    /// The name of the topic.
    pub topic: String,
    /// The number of partitions by which publishers choose the partition of a stream.
    pub pinned: u32,
    /// The number of partitions that the topic has. `None` without a
    /// [bus](Operator::with_bus), or if the bus cannot describe the topic.
    pub found: Option<u32>,
}

/// The publisher to which a row belongs, for the audit.
fn target(name: Option<&PublisherName>) -> String {
    name.map_or("publisher".into(), |name| format!("publisher {name}"))
}

/// The places of a list about streams, one per shard.
fn shards(kind: &str, name: Option<&PublisherName>) -> Vec<Place> {
    let place = |partition| Place {
        processor: name.map_or(String::new(), |name| name.as_str().into()),
        generation: 0,
        topic: kind.into(),
        partition,
        after: None,
    };
    (0..PublisherRows::SHARDS).map(place).collect()
}

impl Operator {
    fn publisher_rows(&self, name: Option<&PublisherName>) -> PublisherRows {
        PublisherRows::over(self.rows.clone(), name.cloned())
    }
    fn watermarks_of(&self, name: Option<&PublisherName>) -> Watermarks {
        let watermarks = Watermarks::over(self.rows.clone());
        match name {
            None => watermarks,
            Some(name) => watermarks.of_publisher(name.clone()),
        }
    }

    /// Returns the state of a publisher in all processes; `None` stands for the publisher without a
    /// name. Processes show their status if they [poll](Publisher::poll), read a change stream, or
    /// call [`show_status`](Publisher::show_status).
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn publisher(
        &self,
        name: Option<&PublisherName>,
    ) -> Result<PublisherOverview, OperateError> {
        let rows = self.publisher_rows(name);
        let (mut instances, mut after) = (Vec::new(), None);
        loop {
            let page = rows.instance_page(after).await?;
            let found = page.rows.iter();
            instances.extend(found.map(|(id, row)| PublisherInstance::new(*id, &row.value)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let reconcile = rows.reconcile_get().await?.map(|row| row.value);
        let reconcile = reconcile.unwrap_or_default();
        Ok(PublisherOverview {
            name: name.cloned(),
            instances,
            reconciling: reconcile.running.map(Into::into),
            reconciled: reconcile.last.map(Into::into),
        })
    }

    /// Returns the version up to which a stream is published; `None` if none of its commits is.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn published(
        &self,
        name: Option<&PublisherName>,
        stream: &StreamId,
    ) -> Result<Option<PublishedStream>, OperateError> {
        let row = self.watermarks_of(name).get(stream).await?;
        Ok(row.map(|row| PublishedStream::new(stream.clone(), &row)))
    }

    /// Returns one page of the streams that were published, with the version of each.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn published_streams(
        &self,
        name: Option<&PublisherName>,
        after: Option<&ListCursor>,
        limit: NonZeroU32,
    ) -> Result<ListPage<PublishedStream>, OperateError> {
        let watermarks = self.watermarks_of(name);
        let read = async |place: &Place, room: NonZeroU32| {
            let page = watermarks
                .page(place.partition, place.after.clone(), room)
                .await?;
            let found = page.rows.into_iter();
            let found = found.map(|(stream, row)| PublishedStream::new(stream, &row));
            Ok((found.collect(), page.next))
        };
        walk(&shards("wm", name), after, limit, read).await
    }

    /// Returns one page of the dirty streams of a publisher: those that were set aside, each with
    /// the reason, the attempts and the last error.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn dirty_streams(
        &self,
        name: Option<&PublisherName>,
        after: Option<&ListCursor>,
        limit: NonZeroU32,
    ) -> Result<ListPage<DirtyStream>, OperateError> {
        let rows = self.publisher_rows(name);
        let read = async |place: &Place, room: NonZeroU32| {
            let page = rows
                .dirty_page(place.partition, place.after.clone(), room)
                .await?;
            let found = page.rows.into_iter();
            let found = found.map(|(stream, row)| DirtyStream::new(stream, row));
            Ok((found.collect(), page.next))
        };
        walk(&shards("dirty", name), after, limit, read).await
    }

    /// Returns the topics whose number of partitions is pinned.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn topics(&self) -> Result<Vec<PinnedTopic>, OperateError> {
        let mut topics = Vec::new();
        for (topic, pinned) in self.rows.pinned_topics().await? {
            let found = match &self.bus {
                None => None,
                // A topic that is gone is still listed.
                Some((bus, _)) => bus.describe_topic(&topic).await.ok().map(|t| t.partitions),
            };
            topics.push(PinnedTopic {
                topic,
                pinned,
                found,
            });
        }
        Ok(topics)
    }

    /// Accepts that a topic now has this many partitions, and pins the number. Streams move to
    /// other partitions, so everything that was published before must have been handled.
    ///
    /// Before the call, stop every publisher of the topic, wait until every consumer group has
    /// reached its end, and redrive or discard its parked streams. The call checks this for the
    /// processors and the publisher without a name on this control store. Publishers with a name,
    /// and consumers of other kinds, are yours to check.
    ///
    /// # Errors
    /// - [`OperateError::NoBus`] without a [bus](Operator::with_bus).
    /// - [`OperateError::NotThatMany`] if the topic has another number.
    /// - [`OperateError::StillPublishing`] if a publisher that was alive within the last minute
    ///   has published to the topic.
    /// - [`OperateError::Unhandled`] if a processor has not read the topic to its end.
    /// - [`OperateError::StillParked`] if a processor has parked a stream of the topic.
    /// - [`OperateError::Control`] or [`OperateError::Bus`] if the control store or the bus refuses
    ///   or fails.
    pub async fn accept_partitions(
        &self,
        topic: &str,
        partitions: u32,
        reason: &Reason,
    ) -> Result<u64, OperateError> {
        let act = async {
            self.check_partitions(topic, partitions).await?;
            let pinned = self.rows.pinned_topics().await?;
            if pinned
                .iter()
                .any(|(name, pin)| name == topic && *pin == partitions)
            {
                return Ok((0, 0));
            }
            TopicPins::new(self.rows.clone())
                .pin(topic, partitions)
                .await?;
            Ok((1, 1))
        };
        let target = format!("topic {topic}: {partitions} partitions");
        self.audited("accept partitions", target, reason, act).await
    }

    async fn check_partitions(&self, topic: &str, partitions: u32) -> Result<(), OperateError> {
        let Some((bus, _)) = &self.bus else {
            return Err(OperateError::NoBus);
        };
        let topic_name = || topic.to_owned();
        let found = bus.describe_topic(topic).await?.partitions;
        if found != partitions {
            return Err(OperateError::NotThatMany {
                topic: topic_name(),
                accepted: partitions,
                found,
            });
        }
        let now = self.clock.now();
        let instances = self.publisher(None).await?.instances.into_iter();
        let alive = instances.filter(|of| !of.is_silent(now));
        let busy = alive.filter(|of| of.status.topics.contains_key(topic));
        let busy: Vec<String> = busy.map(|of| of.label).collect();
        if !busy.is_empty() {
            return Err(OperateError::StillPublishing {
                topic: topic_name(),
                instances: busy,
            });
        }
        for processor in self.all_names().await? {
            let generation = self.generations(&processor).await?.active;
            let lag = self.lag_of(&processor, generation, Some(topic)).await?;
            if let Some(records) = lag.filter(|records| *records > 0) {
                return Err(OperateError::Unhandled {
                    topic: topic_name(),
                    processor,
                    records,
                });
            }
            self.check_parked(topic, processor).await?;
        }
        Ok(())
    }

    async fn check_parked(&self, topic: &str, processor: String) -> Result<(), OperateError> {
        let mut after = None;
        loop {
            let page = self.parked(&processor, after.as_ref(), Self::PAGE).await?;
            if let Some(parked) = page
                .items
                .into_iter()
                .find(|p| &*p.partition.topic == topic)
            {
                return Err(OperateError::StillParked {
                    topic: topic.into(),
                    processor,
                    stream: parked.stream,
                });
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// The rows that are read at once by a check.
    const PAGE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

    /// Keeps an event out of the topic at which its stream stands still, as
    /// [`Publisher::skip`] does, and publishes what follows. The publisher is one with the route
    /// and the outbox of the service, in whichever process.
    ///
    /// # Errors
    /// [`OperateError::SkipPublishing`] if the event is published already, is not refused, or the
    /// rows cannot be written.
    pub async fn skip_publishing(
        &self,
        publisher: &Publisher,
        stream: &StreamId,
        version: Version,
        reason: &Reason,
    ) -> Result<Skipped, OperateError> {
        // It writes the audit entry by itself, between its own steps.
        Ok(publisher.skip(stream, version, reason).await?)
    }

    /// Tries all dirty streams again now, however lately they were tried, as
    /// [`Publisher::sweep`] does. The publisher is one with the route and the outbox of the
    /// service, in whichever process.
    ///
    /// # Errors
    /// - [`OperateError::Sweep`] if the dirty streams cannot be read, or nothing can be published.
    /// - [`OperateError::Control`] if the audit entry cannot be written.
    pub async fn sweep(
        &self,
        publisher: &Publisher,
        config: &SweepConfig,
        reason: &Reason,
    ) -> Result<SweepReport, OperateError> {
        let now = config.with_backoff(Backoff::new(Duration::ZERO, Duration::ZERO));
        let act = async {
            let report = publisher.sweep(&now).await?;
            let published = report.published;
            Ok((report, published))
        };
        let target = target(publisher.name());
        self.audited("sweep", target, reason, act).await
    }

    /// Compares the tails of streams with their watermarks, up to a budget, from where the last
    /// call in any process has ended, as [`Publisher::reconcile_next`] does. Call it again until
    /// [`ReconcileReport::next`] is `None`.
    ///
    /// # Errors
    /// - [`OperateError::Reconcile`] if the scan or the rows of the publisher fail.
    /// - [`OperateError::Control`] if the audit entry cannot be written.
    pub async fn reconcile(
        &self,
        publisher: &Publisher,
        budget: &ReconcileBudget,
        reason: &Reason,
    ) -> Result<ReconcileReport, OperateError> {
        let act = async {
            let report = publisher.reconcile_next(budget).await?;
            let behind = report.behind;
            Ok((report, behind))
        };
        let target = target(publisher.name());
        self.audited("reconcile", target, reason, act).await
    }
}
