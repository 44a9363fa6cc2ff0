//! The driver of one stream: carries out the steps that [`Machine`] decides.
use super::{
    PublishError, Publisher,
    budget::Budget,
    checked_topics::{CheckedTopic, Publishing, Topic},
    machine::{Machine, PAGE},
    notice::Notices,
    prepare::prepare,
    report::Outcome,
    state::Known,
    status::Working,
    step::{Followed, Step},
};
use crate::{
    StreamId, Version,
    control::publisher_rows::DirtyReason,
    ports::{
        Commit, CommitKey, ControlStoreError, EventStoreError, Message, MessageBusError, ReadFrom,
        RefusedKind,
    },
    resilience::{Attempts, Retryable},
};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// The time for which messages wait for more of their stream, to make longer runs.
const FILL: Duration = Duration::from_millis(100);
/// The runs after which a stream lets other streams go first.
const TURN: u32 = 10;
const FULL_PAGE: NonZeroU32 = NonZeroU32::new(PAGE).expect("not zero");

impl Publisher {
    /// Brings one stream up to date. If the future is dropped, events may have been sent that the
    /// watermark does not cover yet. They are sent again.
    pub(super) async fn publish_one(&self, notices: Notices, budget: &Budget) -> Outcome {
        let stream = notices.stream.clone();
        let joined = self.state.offers.join(&notices);
        let has_markers = self.store.capabilities().lists_unpublished && self.name.is_none();
        let mut worker = Worker {
            publisher: self,
            stop: &budget.stop,
            max_behind: budget.max_behind,
            topic_name: self.route.topic(&stream),
            topic: None,
            machine: Machine::new(notices, has_markers),
            page: None,
            filling_since: None,
            attempts: self.attempts(&budget.stop),
            failed: None,
            slot: None,
            runs: 0,
            messages: 0,
            working: None,
            is_dirty: false,
        };
        let work = async {
            let _turn = self.state.streams.lock(&stream).await;
            joined.hand_to(&mut worker.machine.notices);
            drop(joined);
            worker.work().await
        };
        let result = match budget.deadline {
            None => work.await,
            Some(at) => timeout_at(at, work).await.unwrap_or_else(|_| {
                Err(PublishError::Interrupted {
                    stream: stream.clone(),
                    version: worker.machine.acknowledged(),
                })
            }),
        };
        let version = worker.machine.covered();
        Outcome {
            version,
            messages: worker.messages,
            uncovered: worker.machine.notices.first_uncovered(version),
            is_dirty: worker.is_dirty,
            result,
            stream,
        }
    }
}

/// A read of the event store that is under way, and the commits that it has returned.
struct Page<'a> {
    commits: BoxStream<'a, Result<Commit, EventStoreError>>,
    read: u32,
}

struct Worker<'a> {
    publisher: &'a Publisher,
    stop: &'a CancellationToken,
    max_behind: Option<u64>,
    topic_name: Arc<str>,
    /// The topic, once it is checked, and the note that this stream is being published to it.
    topic: Option<(Arc<Topic>, Publishing)>,
    machine: Machine,
    page: Option<Page<'a>>,
    /// The time since which messages wait for more of their stream.
    filling_since: Option<Instant>,
    /// Attempts to send, or to see what a notice names.
    attempts: Attempts<'a>,
    /// The error of the last run, if it may be repeated.
    failed: Option<PublishError>,
    slot: Option<SemaphorePermit<'a>>,
    runs: u32,
    messages: u64,
    working: Option<Working>,
    is_dirty: bool,
}

impl<'a> Worker<'a> {
    async fn work(&mut self) -> Result<(), PublishError> {
        self.take_slot().await;
        self.working = Some(self.publisher.state.status.begin(
            self.machine.stream(),
            &self.topic_name,
            self.machine.notices.highest(),
        ));
        let result = match self.publisher.check_bootstrap(self.machine.stream()).await {
            Ok(()) => self.steps().await,
            Err(error) => Err(error),
        };
        self.topic = None;
        match &result {
            Ok(()) => self.clean().await,
            Err(error) => self.note_failure(error).await,
        }
        self.slot = None;
        result
    }

    async fn take_slot(&mut self) {
        self.slot = None;
        // The semaphore is never closed, so there is always a permit.
        self.slot = self.publisher.slots.acquire().await.ok();
    }

    /// Carries out one step after the other.
    async fn steps(&mut self) -> Result<(), PublishError> {
        let stream = self.machine.stream().clone();
        let (marks, now) = (&self.publisher.state.marks, self.publisher.clock.now());
        let known = marks.get(&stream);
        let is_checked = known.is_some_and(|known| known.is_checked(now));
        let mark = known.map(|known| known.mark);
        self.machine
            .begin(mark, is_checked, marks.is_suspect(&stream));
        let mut is_counted = false;
        loop {
            self.remember();
            let step = self
                .machine
                .next(self.stop.is_cancelled(), self.run_limit());
            if !is_counted && !matches!(step, Step::ReadWatermark | Step::Compare(_)) {
                // Notices at or below the watermark are of events that are not sent again.
                is_counted = true;
                let covered = self.machine.notices.covered(self.machine.covered());
                let status = &self.publisher.state.status;
                status.suppressed(&self.topic_name, covered.count() as u64);
                let (notices, at) = (&self.machine.notices, self.machine.covered());
                if let Some(error) = notices.far_behind(at, self.max_behind) {
                    self.machine.fail(error);
                    continue;
                }
            }
            let done = match step {
                Step::ReadWatermark => self.read_watermark().await,
                Step::Compare(version) => self.compare(version).await,
                Step::Peek => {
                    self.peek();
                    Ok(())
                }
                Step::Read => self.read().await,
                Step::Prepare(commit) => self.prepare(commit).await,
                Step::Send(count) => self.send(count).await,
                Step::Advance(to) => {
                    self.advance(to).await;
                    Ok(())
                }
                Step::Clear(keys) => {
                    self.clear(keys).await;
                    Ok(())
                }
                Step::ReadSkips => self.read_skips().await,
                Step::Wait(error) => self.attempts.wait_or(error).await,
                Step::Done(result) => {
                    self.remember();
                    return result;
                }
            };
            if let Err(error) = done {
                self.machine.fail(error);
            }
        }
    }

    fn run_limit(&self) -> usize {
        self.topic
            .as_ref()
            .map_or(1, |(topic, _)| topic.run_limit())
    }
    fn stream(&self) -> StreamId {
        self.machine.stream().clone()
    }
    fn store_error(&self, source: EventStoreError) -> PublishError {
        PublishError::Store {
            stream: self.stream(),
            source,
        }
    }
    fn watermark_error(&self, source: ControlStoreError) -> PublishError {
        PublishError::Watermark {
            stream: self.stream(),
            source,
        }
    }

    /// Keeps for later calls what the machine has learned.
    fn remember(&mut self) {
        let marks = &self.publisher.state.marks;
        if let Some((mark, is_checked)) = self.machine.take_known() {
            let checked_at = is_checked.then(|| self.publisher.clock.now());
            marks.put(self.machine.stream(), Known { mark, checked_at });
        }
        if self.machine.take_trusted() {
            marks.set_suspect(self.machine.stream(), false);
        }
    }

    async fn read_watermark(&mut self) -> Result<(), PublishError> {
        let watermarks = &self.publisher.watermarks;
        let mut attempts = self.publisher.attempts(self.stop);
        loop {
            match watermarks.get(self.machine.stream()).await {
                Ok(row) => {
                    self.machine.on_watermark(row);
                    return Ok(());
                }
                Err(source) => attempts.wait_or(self.watermark_error(source)).await?,
            }
        }
    }

    async fn compare(&mut self, version: Version) -> Result<(), PublishError> {
        let store = &self.publisher.store;
        let mut attempts = self.publisher.attempts(self.stop);
        loop {
            let from = ReadFrom::NewestAtOrBelow(version);
            let mut newest = store.read(self.machine.stream(), from, Some(NonZeroU32::MIN));
            match newest.next().await.transpose() {
                Ok(newest) => {
                    let found = newest.map(|commit| (commit.last_version(), commit.id));
                    self.machine.on_compared(found);
                    return Ok(());
                }
                Err(source) => attempts.wait_or(self.store_error(source)).await?,
            }
        }
    }

    /// Looks at the tail without waiting, since that must not hold up a shutdown.
    fn peek(&mut self) {
        let is_end = self.page.as_mut().is_some_and(|page| {
            page.read < PAGE && matches!(page.commits.next().now_or_never(), Some(None))
        });
        self.machine.on_peek(is_end);
    }

    async fn read(&mut self) -> Result<(), PublishError> {
        if self.machine.take_read_over() {
            self.page = None;
        }
        let store = &self.publisher.store;
        let page = self.page.get_or_insert_with(|| {
            let from = ReadFrom::After(self.machine.read_from());
            Page {
                commits: store.read(self.machine.stream(), from, Some(FULL_PAGE)),
                read: 0,
            }
        });
        let fill = async {
            match self.filling_since {
                Some(since) if !self.machine.queue.is_empty() => {
                    tokio::time::sleep_until(since + FILL).await;
                }
                _ => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            biased;
            next = page.commits.next() => next,
            () = self.stop.cancelled() => return Ok(()),
            () = fill => {
                self.machine.flush();
                return Ok(());
            }
        };
        match next {
            Some(Ok(commit)) => {
                page.read += 1;
                if self.machine.on_commit(&commit) == Followed::Next {
                    return self.prepare(commit).await;
                }
            }
            None => {
                let read = page.read;
                self.page = None;
                self.machine.on_read_end(read);
            }
            Some(Err(source)) => {
                self.page = None;
                if !source.is_transient() {
                    self.machine.on_unreadable(source);
                } else if self.machine.queue.is_empty() {
                    let error = self.store_error(source);
                    self.attempts.wait_or(error).await?;
                } else {
                    // What was read goes out first.
                    self.machine.flush();
                }
            }
        }
        Ok(())
    }

    /// Returns the topic, which is checked again each minute.
    async fn check_topic(&mut self) -> Result<CheckedTopic, PublishError> {
        let mut attempts = self.publisher.attempts(self.stop);
        loop {
            match self.publisher.checked_topic(&self.topic_name).await {
                Ok(checked) if self.topic.is_some() => return Ok(checked),
                Ok(_) => {
                    // `None` if a number of partitions is being accepted. The next check waits
                    // until that is done.
                    let topics = &self.publisher.state.topics;
                    if let Some((publishing, checked)) = topics.enter(&self.topic_name) {
                        self.topic = Some((topics.get(&self.topic_name), publishing));
                        return Ok(checked);
                    }
                }
                Err(source) => {
                    let stream = self.stream();
                    attempts
                        .wait_or(PublishError::Topic { stream, source })
                        .await?;
                }
            }
        }
    }

    async fn prepare(&mut self, commit: Commit) -> Result<(), PublishError> {
        let topic = self.check_topic().await?;
        let mut attempts = self.publisher.attempts(self.stop);
        loop {
            let (before, skips) = (self.machine.last_record(), self.machine.skips());
            let made = prepare(
                self.publisher,
                &self.topic_name,
                &topic,
                &commit,
                before,
                skips,
            );
            match made.await {
                Ok(prepared) => {
                    if self.machine.queue.is_empty() {
                        self.filling_since = Some(Instant::now());
                    }
                    self.machine.on_prepared(prepared);
                    self.show();
                    return Ok(());
                }
                Err((version, error)) if !error.is_transient() => {
                    self.machine.on_refused(version, error);
                    return Ok(());
                }
                Err((_, error)) => attempts.wait_or(error).await?,
            }
        }
    }

    async fn send(&mut self, count: usize) -> Result<(), PublishError> {
        if let Some(error) = self.failed.take() {
            self.attempts.wait_or(error).await?;
        }
        self.check_topic().await?;
        self.runs += 1;
        if self.runs.is_multiple_of(TURN) {
            self.take_slot().await;
        }
        let publisher = self.publisher;
        // Retention counts from here, also after a long time of failures.
        let run = self.machine.queue.run(count, publisher.clock.now());
        let count = run.len();
        let spans: Vec<_> = run.iter().map(|message| span(publisher, message)).collect();
        let began = Instant::now();
        let outcome = publisher.bus.publish_run(run).await;
        drop(spans);
        let durable = outcome.durable.min(count);
        self.acknowledge(durable, began.elapsed());
        if durable == count {
            self.filling_since = Some(Instant::now());
            return Ok(());
        }
        let source = outcome
            .error
            .unwrap_or_else(|| MessageBusError::Unavailable {
                source: "the bus has acknowledged a part of a run and named no error".into(),
            });
        self.on_run_failed(count - durable, source).await
    }

    /// Takes note of a run of which this number of messages are durable.
    fn acknowledge(&mut self, durable: usize, took: Duration) {
        let status = &self.publisher.state.status;
        let sent = self.machine.queue.described(durable);
        let bytes = sent.map(|(_, bytes)| bytes as u64).sum();
        let now = self.publisher.clock.now();
        status.acknowledged(&self.topic_name, durable as u64, bytes, now);
        if let Some((topic, _)) = &self.topic {
            topic.on_run(durable, took);
        }
        self.messages += durable as u64;
        self.machine.on_run(durable);
        self.show();
        if durable > 0 {
            self.attempts.reset();
        }
    }

    /// Decides what follows a run of which this number of messages may not be durable.
    async fn on_run_failed(
        &mut self,
        left: usize,
        source: MessageBusError,
    ) -> Result<(), PublishError> {
        let has_shrunk = has_shrunk(&source);
        let next = self.machine.queue.next_version();
        let error = PublishError::Bus {
            stream: self.stream(),
            version: next.unwrap_or(Version::NONE),
            source,
        };
        if error.is_transient() {
            self.failed = Some(error);
            return Ok(());
        }
        if error.refused_event().is_some() {
            self.machine.on_run_refused(left, error);
            return Ok(());
        }
        if let Some((topic, _)) = self.topic.as_ref().filter(|_| has_shrunk) {
            topic.forget();
            self.check_topic().await?;
        }
        Err(error)
    }

    async fn advance(&mut self, to: crate::control::Watermark) {
        let watermarks = &self.publisher.watermarks;
        let mut attempts = self.publisher.attempts(self.stop);
        loop {
            let moved = watermarks
                .advance(self.machine.stream(), self.machine.row(), to)
                .await;
            match moved {
                Ok(row) => return self.machine.on_advanced(row, to),
                Err(source) => {
                    let error = self.watermark_error(source);
                    if let Err(error) = attempts.wait_or(error).await {
                        return self.machine.on_no_checkpoint(error);
                    }
                }
            }
        }
    }

    async fn clear(&mut self, keys: Vec<CommitKey>) {
        let store = &self.publisher.store;
        let clear = || store.clear_unpublished(&keys);
        let policy = self.publisher.retry;
        let cleared = clear
            .retry(policy)
            .when(crate::resilience::Failure::failure_class)
            .until(self.stop.cancelled())
            .run()
            .await;
        match cleared {
            Ok(()) => self.machine.on_cleared(),
            Err(source) => {
                let stream = self.stream();
                self.machine
                    .on_not_cleared(PublishError::Clear { stream, source });
            }
        }
    }

    async fn read_skips(&mut self) -> Result<(), PublishError> {
        let rows = &self.publisher.rows;
        let after = self.machine.acknowledged().next();
        let versions = (after, Version::new(u64::MAX));
        let mut attempts = self.publisher.attempts(self.stop);
        loop {
            match rows.skips_of(self.machine.stream(), versions).await {
                Ok(skips) => {
                    self.machine.on_skips(&skips);
                    return Ok(());
                }
                Err(source) => attempts.wait_or(self.watermark_error(source)).await?,
            }
        }
    }

    /// Shows in the status how far the stream is.
    fn show(&self) {
        if let Some(working) = &self.working {
            let (acknowledged, read) = (self.machine.acknowledged(), self.machine.filled());
            working.at(acknowledged, read, self.machine.queue.oldest());
        }
    }

    /// Forgets that the stream was dirty, if this process knows of it.
    async fn clean(&mut self) {
        let (publisher, stream) = (self.publisher, self.machine.stream());
        if publisher.state.marks.is_dirty(stream) {
            publisher.forget_dirty(stream, self.machine.covered()).await;
        }
    }

    /// Sets a stream aside that cannot be published, in a row that outlives its notices.
    async fn note_failure(&mut self, error: &PublishError) {
        let stream = self.stream();
        self.publisher.state.status.failed(&self.topic_name, error);
        if matches!(error, PublishError::HistoryForked { .. }) {
            self.publisher.state.marks.set_suspect(&stream, true);
            tracing::error!(%stream, error = crate::chain(error), "publishing of this stream has stopped");
        }
        let why = match error {
            PublishError::FarBehind { .. } => DirtyReason::Backlog,
            _ if error.is_stuck() => DirtyReason::Stuck,
            _ => return,
        };
        let known = self
            .machine
            .notices
            .highest()
            .max(self.machine.acknowledged().next());
        let text = crate::chain(error).to_string();
        // A stream that was not tried has no failed attempt, so that the next sweep takes it.
        let failed = (why != DirtyReason::Backlog).then_some(&*text);
        let noted = self.publisher.note_dirty(&stream, known, why, failed);
        match noted.await {
            Ok(()) => self.is_dirty = true,
            Err(error) => {
                let error = crate::chain(&error);
                tracing::warn!(%stream, error, "the stream could not be noted as dirty, so its notices must be kept");
            }
        }
    }
}

/// Opens the span of one record, as a child of the span that stored the event.
fn span(publisher: &Publisher, message: &Message) -> tracing::Span {
    let key = message.key.as_deref().unwrap_or_default();
    let span = tracing::info_span!(
        "publish",
        otel.name = format_args!("publish {}", message.topic),
        otel.kind = "producer",
        messaging.operation.name = "publish",
        messaging.operation.type = "publish",
        messaging.destination.name = &*message.topic,
        messaging.message.id = message.header("ce_id"),
        foldstream.stream = &*String::from_utf8_lossy(key),
        foldstream.version = message.header("ce_fsversion"),
    );
    if let (Some(trace), Some(parent)) = (&publisher.trace, message.header("traceparent")) {
        trace.adopt(&span, parent);
    }
    span
}

/// Returns true if the topic has fewer partitions than were pinned: it was created again.
const fn has_shrunk(error: &MessageBusError) -> bool {
    matches!(
        error,
        MessageBusError::Refused {
            kind: RefusedKind::UnknownPartition,
            ..
        }
    )
}
