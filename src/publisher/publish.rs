//! The calls that publish streams.
use super::{
    DirtyReason, Notice, PublishError, PublishReport, Publisher, budget::Budget, notice::Notices,
    report::Outcome,
};
use crate::{
    StreamId, Version,
    control::DirtyRow,
    ports::{ControlStoreError, EventStoreError, ScanCursor, Segment, UnpublishedPage},
    resilience::{Failure, Retryable},
};
use futures::{StreamExt, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    num::NonZeroU32,
    sync::atomic::Ordering::{Acquire, Release},
};
use tokio::time::Instant;

impl Publisher {
    /// Commits that [`publish_pending`](Self::publish_pending) lists at once.
    const PENDING_PAGE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

    /// Brings every stream in the notices up to date: sends in version order what its watermark
    /// does not cover, moves the watermark, and removes the markers of what is published. A failed
    /// stream does not stop the others. Without notices nothing happens.
    ///
    /// The call may be made at any time, also several times at once and for the same streams.
    /// Within the process they take turns, and the first to work takes the commits of all that
    /// wait. If the future is dropped, nothing is lost: what it has sent since its last checkpoint
    /// is sent again.
    ///
    /// # Example
    /// ```
    /// use foldstream::{CommitId, StreamHead, StreamId, Timestamp, ports::*, publisher::Publisher};
    /// use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let (store, bus) = (InMemoryEventStore::new(), InMemoryMessageBus::new());
    /// bus.create_topic("GlobalEvents", 3);
    /// let head = StreamHead::empty(StreamId::new("order", "7")?);
    /// let events = vec![EventData::new("Placed", 1, "{}")];
    /// let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
    /// let _ = store.append(&append).await?;
    ///
    /// let publisher = Publisher::new(store, bus, InMemoryControlStore::new());
    /// let report = publisher.publish([append.to_commit()]).await;
    /// assert_eq!((report.messages, report.first_to_keep()), (1, None));
    /// // The watermark covers the commit now, so nothing is sent.
    /// assert_eq!(publisher.publish([append.to_commit().key()]).await.messages, 0);
    /// # Ok::<(), foldstream::BoxError>(())
    /// # })?;
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    pub fn publish<N>(
        &self,
        notices: impl IntoIterator<Item = N>,
    ) -> impl Future<Output = PublishReport> + Send
    where
        N: Into<Notice>,
    {
        let streams = numbered(notices);
        async move { self.publish_all(streams, &Budget::default()).await }
    }

    /// Publishes as [`publish`](Self::publish) does, and returns at the deadline at the latest.
    ///
    /// No other stream begins in the last 3 s and no other run in the last second, or in the last
    /// half and quarter of the time if there is less of it. Whatever is still under way at the
    /// deadline is dropped, so that nothing of this call is in flight once it has returned. A
    /// stream that is not up to date by then is [`PublishError::Interrupted`], and its notices are
    /// to be kept, or replaced by [`set_aside`](Self::set_aside). With
    /// [`with_max_behind`](Self::with_max_behind), a stream with a longer backlog is
    /// [`PublishError::FarBehind`] and dirty.
    pub fn publish_until<N>(
        &self,
        notices: impl IntoIterator<Item = N>,
        deadline: Instant,
    ) -> impl Future<Output = PublishReport> + Send
    where
        N: Into<Notice>,
    {
        let streams = numbered(notices);
        async move {
            let budget = Budget {
                max_behind: self.max_behind,
                ..Budget::until(deadline)
            };
            budget.run(self.publish_all(streams, &budget)).await
        }
    }

    /// Publishes one stream up to its tail. The stored history is compared with the watermark,
    /// unless that was done within the last minute.
    pub async fn publish_stream(&self, stream: &StreamId) -> PublishReport {
        let notices = Notices::to_tail(stream.clone());
        let streams = [(stream.clone(), notices)].into();
        self.publish_all(streams, &Budget::default()).await
    }

    /// Publishes everything that is listed as unpublished, repeatedly, until nothing is left or
    /// nothing moves. Streams that fail are tried once.
    ///
    /// # Errors
    /// [`EventStoreError`] if the list cannot be read, after repeats; `Refused(Unsupported)` if the
    /// store keeps no list. What was published until then stays published.
    pub async fn publish_pending(&self) -> Result<PublishReport, EventStoreError> {
        let mut total = PublishReport::default();
        let mut failed = BTreeSet::new();
        loop {
            let before = total.messages;
            let mut after = None;
            loop {
                let page = self.list(Segment::ALL, after, Self::PENDING_PAGE).await?;
                let keys = page.keys.into_iter();
                let keys = keys.filter(|key| !failed.contains(&key.stream));
                let streams = Notices::by_stream(keys.map(|key| (None, Notice::Key(key))));
                let report = self.publish_all(streams, &Budget::default()).await;
                total.messages += report.messages;
                failed.extend(report.failed.iter().map(|f| f.stream.clone()));
                total.published.extend(report.published);
                total.failed.extend(report.failed);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            if total.messages == before {
                total.published.retain(|stream, _| !failed.contains(stream));
                return Ok(total);
            }
        }
    }

    /// Notes in a row that a stream has unpublished commits up to this version, so that a trigger
    /// may forget its notices. A [sweep](Self::sweep) publishes the stream.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the row cannot be written, after repeats. The notices must be kept.
    pub async fn set_aside(
        &self,
        stream: &StreamId,
        version: Version,
        why: DirtyReason,
    ) -> Result<(), ControlStoreError> {
        self.note_dirty(stream, version, why, None).await
    }

    /// Notes that a stream is dirty.
    pub(super) async fn note_dirty(
        &self,
        stream: &StreamId,
        known: Version,
        why: DirtyReason,
        error: Option<&str>,
    ) -> Result<(), ControlStoreError> {
        let finding = DirtyRow::new(known, why, error, self.clock.now());
        let note = || self.rows.dirty_note(stream, &finding);
        let noted = note.retry(self.retry).when(Failure::failure_class);
        noted.run().await?;
        self.state.marks.set_dirty(stream, true);
        Ok(())
    }

    /// Deletes the row of a dirty stream that is published up to this version. If that fails, the
    /// next sweep does it.
    pub(super) async fn forget_dirty(&self, stream: &StreamId, published: Version) {
        let forgotten = async {
            let row = self.rows.dirty_get(stream).await?;
            if let Some(row) = row.filter(|row| row.value.known <= published) {
                let _ = self.rows.dirty_delete(stream, row.revision).await?;
            }
            Ok::<_, ControlStoreError>(())
        };
        match forgotten.await {
            Ok(()) => self.state.marks.set_dirty(stream, false),
            Err(error) => {
                let error = crate::chain(&error);
                tracing::warn!(%stream, error, "the row of a stream that is dirty no longer stays until the next sweep");
            }
        }
    }

    /// Refuses to publish while a bootstrap is not done. Once this process has seen that it is, the
    /// row is not read again.
    pub(super) async fn check_bootstrap(&self, stream: &StreamId) -> Result<(), PublishError> {
        let state = &self.state;
        if state.is_bootstrapped.load(Acquire) {
            return Ok(());
        }
        let _one = state.bootstrapping.lock().await;
        if state.is_bootstrapped.load(Acquire) {
            return Ok(());
        }
        let read = || self.rows.bootstrap_get();
        let row = read.retry(self.retry).when(Failure::failure_class).run();
        let row = row.await.map_err(|source| PublishError::Watermark {
            stream: stream.clone(),
            source,
        })?;
        if row.is_some_and(|row| !row.value.is_done) {
            let stream = stream.clone();
            return Err(PublishError::NotBootstrapped { stream });
        }
        state.is_bootstrapped.store(true, Release);
        Ok(())
    }

    pub(super) async fn list(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        let list = || self.store.unpublished(segment, after.clone(), limit);
        list.retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await
    }

    /// Publishes streams, as many at a time as this publisher may.
    pub(super) async fn publish_all(
        &self,
        streams: BTreeMap<StreamId, Notices>,
        budget: &Budget,
    ) -> PublishReport {
        let mut waiting = streams.into_values();
        let mut working = FuturesUnordered::new();
        let mut report = PublishReport::default();
        loop {
            let free = self.concurrency - working.len();
            if budget.may_begin() {
                let next = waiting.by_ref().take(free);
                working.extend(next.map(|notices| self.publish_one(notices, budget)));
            }
            match working.next().await {
                Some(outcome) => report.add(outcome),
                None => break,
            }
        }
        for notices in waiting {
            report.add(Outcome::not_begun(&notices));
        }
        report.failed.sort_by(|a, b| a.stream.cmp(&b.stream));
        report
    }
}

/// Joins the notices of a call by stream, with their places in the call.
fn numbered<N: Into<Notice>>(notices: impl IntoIterator<Item = N>) -> BTreeMap<StreamId, Notices> {
    let notices = notices.into_iter().enumerate();
    Notices::by_stream(notices.map(|(place, notice)| (Some(place), notice.into())))
}
