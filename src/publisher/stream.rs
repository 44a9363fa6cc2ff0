//! Brings one stream up to date: the only place where events are sent.
//!
//! Indexes lag, clocks differ, change streams order items and not streams: the gapless version is the only reliable
//! order. So every bell, whatever rang it, leads to the same steps: from the watermark on, send each event, await its
//! acknowledgement, then send the next; then move the watermark; only then clear the markers. A crash, a lost answer or
//! a second publisher between any two steps repeats events, but never skips or reorders their first occurrences.
use super::{
    PublishError, Publisher,
    bells::Bells,
    checked_topics::{CheckedTopic, Publishing},
    report::Rung,
    state::Known,
};
use crate::{
    CommitId, StreamHead, StreamId, Timestamp, Version,
    control::{Stored, Watermark},
    ports::{Commit, CommitKey, EventStoreError, Message, MessageBusError, ReadFrom, RefusedKind},
    resilience::Attempts,
    to_message,
};
use futures::{FutureExt, StreamExt};
use std::{collections::BTreeSet, num::NonZeroU32, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Commits of one read.
const PAGE: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
/// The watermark moves after so many commits,
const CHECKPOINT_COMMITS: u32 = 100;
/// or after so long, and at the end: a crash repeats no more than that.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);

/// The work on one stream for one call.
#[derive(Debug)]
struct Work<'a> {
    publisher: &'a Publisher,
    stop: &'a CancellationToken,
    stream: &'a StreamId,
    bells: Bells,
    topic: Arc<str>,
    /// Held from the first successful check of the topic.
    publishing: Option<Publishing>,
    /// True if a request to stop has ended the work before the tail was reached.
    is_cut_short: bool,
    /// The watermark's row as last seen.
    mark: Option<Stored<Watermark>>,
    /// The last commit that the bus has acknowledged: the row's, or further.
    acked: Option<Watermark>,
    /// First versions of commits below `acked` whose markers may still be there.
    uncleared: BTreeSet<Version>,
    commits_since: u32,
    checkpoint_at: Timestamp,
    messages: u64,
}

impl Publisher {
    /// Brings the stream of these bells up to date. A dropped future leaves events sent that the watermark does not
    /// cover yet; they are sent again.
    pub(super) async fn ring(&self, bells: Bells, stop: &CancellationToken) -> Rung {
        let stream = bells.stream.clone();
        let _turn = self.state.streams.lock(&stream).await;
        let mut work = Work {
            publisher: self,
            stop,
            stream: &stream,
            bells,
            topic: self.route.topic(&stream),
            publishing: None,
            is_cut_short: false,
            mark: None,
            acked: None,
            uncleared: BTreeSet::new(),
            commits_since: 0,
            checkpoint_at: self.clock.now(),
            messages: 0,
        };
        let mut result = work.bring_up().await;
        if result.is_ok() && work.is_cut_short {
            let (stream, version) = (stream.clone(), work.at());
            result = Err(PublishError::Interrupted { stream, version });
        }
        if let Err(error @ PublishError::HistoryForked { .. }) = &result {
            self.state.marks.set_suspect(&stream, true);
            tracing::error!(%stream, error = crate::chain(error), "publishing of this stream has stopped");
        }
        let version = work.mark.map_or(Version::NONE, |m| m.value.version);
        Rung {
            version,
            messages: work.messages,
            uncovered: work.bells.first_uncovered(version),
            result,
            stream,
        }
    }
}

impl<'a> Work<'a> {
    async fn bring_up(&mut self) -> Result<(), PublishError> {
        self.find_watermark().await?;
        let sent = self.send_on().await;
        // Also after a failure: what was acknowledged before it need not be sent again.
        let moved = self.checkpoint().await;
        match (sent, moved) {
            (Err(first), Err(second)) => {
                let stream = self.stream;
                tracing::warn!(%stream, error = crate::chain(&second), "the stream failed again");
                Err(first)
            }
            (sent, moved) => sent.and(moved),
        }
    }

    /// The version that the bus has acknowledged.
    fn at(&self) -> Version {
        self.acked.map_or(Version::NONE, |w| w.version)
    }
    /// Returns true if the work is to end here, before the tail.
    fn is_stopped(&mut self) -> bool {
        self.is_cut_short |= self.stop.is_cancelled();
        self.is_cut_short
    }
    fn attempts(&self) -> Attempts<'a> {
        self.publisher.attempts(self.stop)
    }
    fn store_error(&self, source: EventStoreError) -> PublishError {
        PublishError::Store {
            stream: self.stream.clone(),
            source,
        }
    }
    fn forked(&self, found: Option<(Version, CommitId)>) -> PublishError {
        PublishError::HistoryForked {
            stream: self.stream.clone(),
            // A fork is only ever found against a watermark.
            watermark: self
                .acked
                .unwrap_or(Watermark::new(Version::NONE, CommitId::from_u128(0))),
            found,
        }
    }

    /// Takes the watermark from memory where the bells fit it, else from its row, and compares it with the history where
    /// the bells give reason to.
    async fn find_watermark(&mut self) -> Result<(), PublishError> {
        let marks = &self.publisher.state.marks;
        let suspect = marks.is_suspect(self.stream);
        let known = marks
            .get(self.stream)
            .filter(|k| self.bells_fit(k.mark.value));
        if let Some(known) = known.filter(|_| !suspect) {
            self.adopt(Some(known.mark));
            let checked = known.is_checked(self.publisher.clock.now());
            match self.check_history(checked).await {
                // Perhaps only the memory is wrong: an operator may have brought the row down.
                Err(PublishError::HistoryForked { .. }) => {}
                other => return other,
            }
        }
        let mut attempts = self.attempts();
        let mark = loop {
            match self.publisher.watermarks.get(self.stream).await {
                Ok(mark) => break mark,
                Err(source) => attempts.wait_or(self.watermark_error(source)).await?,
            }
        };
        self.adopt(mark);
        if suspect {
            self.compare().await?;
            marks.set_suspect(self.stream, false);
        }
        self.check_history(suspect).await
    }

    fn watermark_error(&self, source: crate::ports::ControlStoreError) -> PublishError {
        PublishError::Watermark {
            stream: self.stream.clone(),
            source,
        }
    }

    fn adopt(&mut self, mark: Option<Stored<Watermark>>) {
        self.mark = mark;
        self.acked = mark.map(|m| m.value);
    }

    /// Whether the next event to send, by this watermark, is one that rang, or none is. Otherwise somebody else has
    /// published in between, and by the row less is sent twice.
    fn bells_fit(&self, mark: Watermark) -> bool {
        let above = self.bells.lowest_above(mark.version);
        above.is_none_or(|named| named == mark.version.next())
    }

    /// A bell at or below the watermark is an old one, or of another history with the same version numbers: a backup was
    /// restored behind the publisher's back. Unless that was `checked` lately, the commit at the watermark decides.
    async fn check_history(&mut self, checked: bool) -> Result<(), PublishError> {
        let Some(mark) = self.acked else {
            return Ok(());
        };
        if self.bells.covered(mark.version).next().is_none() {
            return Ok(());
        }
        if let Some(commit) = self.bells.commits_covered(mark.version).next() {
            let (last, id) = (commit.last_version(), commit.id);
            if last == mark.version && id == mark.commit_id {
                self.remember(true);
                return Ok(());
            }
            if last >= mark.version {
                return Err(self.forked(Some((last, id))));
            }
        }
        if checked {
            return Ok(());
        }
        self.compare().await
    }

    /// Reads the newest commit at or below the watermark: it must be the watermark's.
    async fn compare(&mut self) -> Result<(), PublishError> {
        let Some(mark) = self.acked else {
            return Ok(());
        };
        let from = ReadFrom::NewestAtOrBelow(mark.version);
        let mut attempts = self.attempts();
        let newest = loop {
            let one = Some(NonZeroU32::MIN);
            let mut newest = self.publisher.store.read(self.stream, from.clone(), one);
            match newest.next().await.transpose() {
                Ok(newest) => break newest,
                Err(source) => attempts.wait_or(self.store_error(source)).await?,
            }
        };
        let found = newest.map(|commit| (commit.last_version(), commit.id));
        if found != Some((mark.version, mark.commit_id)) {
            return Err(self.forked(found));
        }
        self.remember(true);
        Ok(())
    }

    /// Keeps the watermark for the next call.
    fn remember(&self, checked: bool) {
        if let Some(mark) = self.mark {
            let checked_at = checked.then(|| self.publisher.clock.now());
            let known = Known { mark, checked_at };
            self.publisher.state.marks.put(self.stream, known);
        }
    }

    /// Sends until every bell is covered, or this publisher is asked to stop.
    async fn send_on(&mut self) -> Result<(), PublishError> {
        if self.bells.lowest_above(self.at()).is_none() {
            return Ok(());
        }
        self.check_topic().await?;
        let mut attempts = self.attempts();
        while let Some(named) = self.bells.lowest_above(self.at()) {
            if self.is_stopped() {
                return Ok(());
            }
            let before = self.at();
            match self.bells.take_commit(before.next()) {
                Some(commit) => self.send(&commit).await?,
                None => self.send_from_store().await?,
            }
            if self.at() > before {
                attempts.reset();
            } else if !self.is_stopped() {
                // The bell is ahead of a consistent read: the history is shorter than it was, or the read was torn.
                self.compare().await?;
                let error = PublishError::NotVisible {
                    stream: self.stream.clone(),
                    named,
                    tail: before,
                };
                attempts.wait_or(error).await?;
            }
        }
        Ok(())
    }

    /// Returns what is known about the topic, which is checked again each minute.
    async fn check_topic(&mut self) -> Result<CheckedTopic, PublishError> {
        let mut attempts = self.attempts();
        loop {
            match self.publisher.checked_topic(&self.topic).await {
                Ok(checked) if self.publishing.is_some() => return Ok(checked),
                Ok(_) => {
                    // None: a number of partitions is being accepted. The next check waits for that.
                    if let Some((publishing, checked)) =
                        self.publisher.state.topics.enter(&self.topic)
                    {
                        self.publishing = Some(publishing);
                        return Ok(checked);
                    }
                }
                Err(source) => {
                    let stream = self.stream.clone();
                    let error = PublishError::Topic { stream, source };
                    attempts.wait_or(error).await?;
                }
            }
        }
    }

    /// Reads on from the last acknowledged commit and sends what comes, to the tail.
    async fn send_from_store(&mut self) -> Result<(), PublishError> {
        let mut attempts = self.attempts();
        loop {
            let before = self.at();
            match self.send_page().await {
                Ok(read) if read < PAGE.get() => return Ok(()),
                Ok(_) if self.is_stopped() => return Ok(()),
                Ok(_) => {}
                Err(error @ PublishError::Store { .. }) => {
                    if self.at() > before {
                        attempts.reset();
                    }
                    if !error.is_transient() {
                        // What looks corrupt may be another history: its commits end elsewhere.
                        self.compare().await?;
                    }
                    attempts.wait_or(error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the commits of one page; how many it had.
    async fn send_page(&mut self) -> Result<u32, PublishError> {
        let from = self.acked.map_or_else(
            || StreamHead::empty(self.stream.clone()),
            // The row does not keep the commit's time, and a read does not ask for it.
            |w| {
                let unknown = Timestamp::from_micros(0);
                StreamHead::observed(self.stream.clone(), w.version, w.commit_id, unknown)
            },
        );
        let store = &self.publisher.store;
        let mut page = store.read(self.stream, ReadFrom::After(from), Some(PAGE));
        let mut read = 0;
        loop {
            let next = if self.stop.is_cancelled() {
                // Nothing more is sent. A look at the tail must not hold up the shutdown.
                let next = page.next().now_or_never();
                self.is_cut_short |= !matches!(next, Some(None));
                None
            } else {
                page.next().await
            };
            let Some(commit) = next else { break };
            let commit = commit.map_err(|source| self.store_error(source))?;
            self.follow(&commit).await?;
            read += 1;
        }
        Ok(read)
    }

    /// Sends a commit as read, if it is the next one.
    async fn follow(&mut self, commit: &Commit) -> Result<(), PublishError> {
        let (at, last) = (self.at(), commit.last_version());
        if commit.first_version == at.next() {
            return self.send(commit).await;
        }
        if commit.first_version > at.next() {
            let reason = format!("the next commit starts at version {}", commit.first_version);
            return Err(self.store_error(EventStoreError::Corrupt {
                stream: self.stream.clone(),
                after: at,
                reason,
            }));
        }
        // A checkpoint has found the watermark ahead of this page: somebody else has sent these.
        let same = self.acked.is_some_and(|w| w.commit_id == commit.id);
        if last > at || last == at && !same {
            return Err(self.forked(Some((last, commit.id))));
        }
        Ok(())
    }

    /// Sends the events of the next commit one by one, each after the acknowledgement of the one before: with several in
    /// flight, a producer whose queue times out can end as 1, 4, 5. All sizes are looked at first, so that a commit is
    /// not left half sent.
    async fn send(&mut self, commit: &Commit) -> Result<(), PublishError> {
        let topic = self.check_topic().await?;
        let partition = topic.partition_of(self.stream.as_str().as_bytes());
        let (source, now) = (&self.publisher.source, self.publisher.clock.now());
        let messages: Vec<(Version, Message)> = commit
            .recorded()
            .map(|event| {
                let message = to_message(&event, &self.topic, source, now);
                (event.header.version, message.with_partition(partition))
            })
            .collect();
        for (version, message) in &messages {
            let bytes = message.size() as u64;
            if let Some(limit) = topic.limit.filter(|limit| bytes > *limit) {
                return Err(PublishError::TooLarge {
                    stream: self.stream.clone(),
                    version: *version,
                    topic: self.topic.clone(),
                    bytes,
                    limit,
                });
            }
        }
        for (version, message) in messages {
            self.send_one(version, message).await?;
        }
        self.acked = Some(Watermark::new(commit.last_version(), commit.id));
        self.uncleared.insert(commit.first_version);
        self.commits_since += 1;
        let since = self.publisher.clock.now().since(self.checkpoint_at);
        if self.commits_since >= CHECKPOINT_COMMITS || since >= CHECKPOINT_AFTER {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Opens the span of one record, as a child of the span that stored the event.
    fn span(&self, version: Version, message: &Message) -> tracing::Span {
        let span = tracing::info_span!(
            "publish",
            otel.name = format_args!("publish {}", message.topic),
            otel.kind = "producer",
            messaging.operation.name = "publish",
            messaging.operation.type = "publish",
            messaging.destination.name = &*message.topic,
            messaging.message.id = message.header("ce_id"),
            foldstream.stream = %self.stream,
            foldstream.version = version.get(),
        );
        if let (Some(trace), Some(parent)) = (&self.publisher.trace, message.header("traceparent"))
        {
            trace.adopt(&span, parent);
        }
        span
    }

    /// Sends one record and awaits its acknowledgement.
    async fn send_one(
        &mut self,
        version: Version,
        mut message: Message,
    ) -> Result<(), PublishError> {
        let mut attempts = self.attempts();
        loop {
            // Retention counts from here, also after a long time of failures.
            message.timestamp = self.publisher.clock.now();
            let sent = self.publisher.bus.publish(&message);
            let Err(source) = sent.instrument(self.span(version, &message)).await else {
                self.messages += 1;
                return Ok(());
            };
            if has_shrunk(&source) {
                self.publisher.state.topics.get(&self.topic).forget();
                self.check_topic().await?;
            }
            let stream = self.stream.clone();
            let error = PublishError::Bus {
                stream,
                version,
                source,
            };
            attempts.wait_or(error).await?;
        }
    }

    /// Moves the watermark to what was acknowledged, or finds it further on; then clears the markers below it.
    async fn checkpoint(&mut self) -> Result<(), PublishError> {
        self.commits_since = 0;
        self.checkpoint_at = self.publisher.clock.now();
        let ahead = |w: &Watermark| self.mark.is_none_or(|m| m.value.version < w.version);
        if let Some(acked) = self.acked.filter(ahead) {
            let watermarks = &self.publisher.watermarks;
            let mut attempts = self.attempts();
            let mark = loop {
                match watermarks.advance(self.stream, self.mark, acked).await {
                    Ok(mark) => break mark,
                    Err(source) => attempts.wait_or(self.watermark_error(source)).await?,
                }
            };
            self.adopt(Some(mark));
            if mark.value.version == acked.version && mark.value != acked {
                return Err(self.forked(Some((acked.version, acked.commit_id))));
            }
            self.remember(mark.value == acked);
        }
        self.clear_markers().await
    }

    /// Clears the markers of what the watermark covers: of what was sent, and of what rang, since a publisher may have
    /// died between its watermark and its markers.
    async fn clear_markers(&mut self) -> Result<(), PublishError> {
        let store = &self.publisher.store;
        let Some(mark) = self.mark.filter(|_| store.capabilities().lists_unpublished) else {
            return Ok(());
        };
        let covered = mark.value.version;
        self.uncleared.extend(self.bells.covered(covered));
        let places = self.uncleared.iter();
        let keys: Vec<CommitKey> = places
            .map(|first| CommitKey::new(self.stream.clone(), *first))
            .collect();
        if keys.is_empty() {
            return Ok(());
        }
        let mut attempts = self.attempts();
        while let Err(source) = store.clear_unpublished(&keys).await {
            let stream = self.stream.clone();
            attempts
                .wait_or(PublishError::Clear { stream, source })
                .await?;
        }
        self.uncleared.clear();
        self.bells.forget_covered(covered);
        Ok(())
    }
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
