//! The records of one page on their way to the bus.
use super::{context::Context, service::StreamRecord};
use foldstream::{
    StreamId, Timestamp, Version,
    ports::CommitKey,
    publisher::{DirtyReason, Notice, PublishReport},
    resilience::{Attempts, FailureClass},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// The commits of a page that are not covered.
#[derive(Debug)]
pub(super) struct Batch {
    shard: String,
    /// The id of the page in the window.
    pub(super) page: u64,
    entries: Vec<Entry>,
    /// The commits as the stream showed them, for the first attempt only.
    notices: Vec<Notice>,
    attempts: Attempts<'static>,
    pause: Duration,
    failing_since: Option<Instant>,
    /// The memory of the page.
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Entry {
    /// The place of the record in its page.
    place: usize,
    created_at: Option<Timestamp>,
    key: CommitKey,
}

impl Batch {
    pub(super) fn new(
        cx: &Context,
        shard: &str,
        page: u64,
        records: Vec<StreamRecord>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let (mut entries, mut notices) = (Vec::new(), Vec::new());
        for (place, record) in records.into_iter().enumerate() {
            let Some(notice) = record.notice else {
                continue;
            };
            let key = match &notice {
                Notice::Commit(commit) => commit.key(),
                Notice::Key(key) => key.clone(),
                // A kind of notice of a later build of the core, which this reader never makes.
                _ => continue,
            };
            entries.push(Entry {
                place,
                created_at: record.created_at,
                key,
            });
            notices.push(notice);
        }
        Self {
            shard: shard.to_owned(),
            page,
            entries,
            notices,
            attempts: cx.attempts(),
            pause: Duration::ZERO,
            failing_since: None,
            _permit: permit,
        }
    }

    /// Returns the place of the first record of the page that is not covered.
    pub(super) fn first_to_keep(&self) -> Option<usize> {
        self.entries.iter().map(|entry| entry.place).min()
    }

    /// Publishes what is not covered, once.
    pub(super) async fn publish(mut self, cx: &Context) -> Self {
        tokio::time::sleep(self.pause).await;
        self.set_old_aside(cx).await;
        let notices = std::mem::take(&mut self.notices);
        if self.entries.is_empty() {
            return self;
        }
        let report = if notices.len() == self.entries.len() {
            cx.publisher.publish(notices).await
        } else {
            let keys = self.entries.iter().map(|entry| entry.key.clone());
            cx.publisher.publish(keys.collect::<Vec<_>>()).await
        };
        self.keep_uncovered(cx, &report);
        self.give_up_slow(cx).await;
        if self.entries.is_empty() {
            cx.works(&self.shard, "publishing");
        }
        self
    }

    /// Drops what the report says is covered: by the watermark, or by the row of a dirty stream.
    fn keep_uncovered(&mut self, cx: &Context, report: &PublishReport) {
        let mut shared = cx.shared();
        shared.status.messages += report.messages;
        if report.messages > 0 {
            shared.last_success = Some(Instant::now());
        }
        drop(shared);
        let failed: BTreeMap<&StreamId, usize> = report
            .failed
            .iter()
            .filter(|failure| !failure.is_dirty)
            .filter_map(|failure| Some((&failure.stream, failure.notice?)))
            .collect();
        let mut index = 0..;
        self.entries.retain(|entry| {
            let index = index.next().unwrap_or_default();
            failed
                .get(&entry.key.stream)
                .is_some_and(|first| index >= *first)
        });
        if self.entries.is_empty() {
            return;
        }
        self.failing_since.get_or_insert_with(Instant::now);
        let pause = self.attempts.next(FailureClass::Transient);
        self.pause = pause.unwrap_or(cx.config.backoff.max);
        if let Some(failure) = report.failed.iter().find(|failure| !failure.is_dirty) {
            cx.fails(
                &self.shard,
                "publishing",
                self.attempts.failed(),
                &failure.error,
            );
        }
    }

    /// Sets the streams of old records aside, so that the records after them do not grow too old
    /// as well.
    async fn set_old_aside(&mut self, cx: &Context) {
        let now = cx.now();
        let is_old = |at: Timestamp| now.since(at) >= cx.config.max_age;
        let entries = self.entries.iter();
        let old = entries.filter(|entry| entry.created_at.is_some_and(is_old));
        let old: BTreeSet<StreamId> = old.map(|entry| entry.key.stream.clone()).collect();
        if !old.is_empty() {
            self.set_aside(cx, old, DirtyReason::Old).await;
        }
    }

    /// Sets the streams aside that have failed for a while, if it is not the bus that fails: one
    /// stream must not hold its shard until the records of others are deleted.
    async fn give_up_slow(&mut self, cx: &Context) {
        let Some(since) = self.failing_since else {
            return;
        };
        let last_success = cx.shared().last_success;
        if since.elapsed() < cx.config.patience || last_success.is_none_or(|last| last <= since) {
            return;
        }
        let failing = self.entries.iter().map(|entry| entry.key.stream.clone());
        self.set_aside(cx, failing.collect(), DirtyReason::Backlog)
            .await;
    }

    /// Writes the rows of dirty streams, and drops their entries. A stream whose row cannot be
    /// written keeps its entries.
    async fn set_aside(&mut self, cx: &Context, streams: BTreeSet<StreamId>, why: DirtyReason) {
        for stream in streams {
            let of_stream = self
                .entries
                .iter()
                .filter(|entry| entry.key.stream == stream);
            let version = of_stream.map(|entry| entry.key.first_version).max();
            let version = version.unwrap_or(Version::NONE);
            match cx.publisher.set_aside(&stream, version, why).await {
                Ok(()) => {
                    tracing::warn!(%stream, ?why, "set aside for the sweep");
                    cx.shared().status.set_aside += 1;
                    self.entries.retain(|entry| entry.key.stream != stream);
                }
                Err(error) => cx.fails(
                    &self.shard,
                    "setting streams aside",
                    self.attempts.failed(),
                    &error,
                ),
            }
        }
    }
}
