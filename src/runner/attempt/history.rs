//! The events that do not come by the bus: a gap that is filled, a parked stream that is redriven,
//! and an event that has a letter.
use super::{Attempt, failed};
use crate::{
    StreamId, Version, from_message,
    ports::{EventStore, PartitionId, ReadFrom},
    runner::{
        ErrorClass, EventSource, HandlerError,
        machine::{Again, FailureOf, Outcome, Range, Record},
        streams::Progress,
    },
};
use futures::TryStreamExt;

/// The event before which a gap lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap<'a> {
    pub(super) stream: &'a StreamId,
    pub(super) version: Version,
    pub(super) partition: &'a PartitionId,
}

impl<'a> Gap<'a> {
    pub(super) fn before(record: &'a Record) -> Self {
        Self {
            stream: &record.event.header.stream,
            version: record.event.header.version,
            partition: &record.partition,
        }
    }
}

impl Attempt {
    /// Handles what the bus, or a scan, has skipped before an event. Without a history source, the
    /// gap is only counted.
    pub(super) async fn fill(
        &mut self,
        at: usize,
        before: Gap<'_>,
        first: Version,
        last: Version,
    ) -> Result<(), (usize, Outcome)> {
        let Gap {
            stream,
            version,
            partition,
        } = before;
        let Some(history) = self.shared.history.clone() else {
            self.handle_pending().await?;
            self.counts.gaps_unverified += 1;
            // It has been passed: a retry of what follows it does not meet it again.
            self.progress.passed(first, last);
            self.certain = self.progress.clone();
            return Ok(());
        };
        let skips = self.skips_of(stream, (first, last)).await;
        let skips = skips.map_err(|e| failed(at, first, e, FailureOf::Store))?;
        let mut commits = history.read(stream, ReadFrom::Event(first), None);
        let mut expected = first;
        while expected <= last {
            let read = self.in_time("event store", async { Ok(commits.try_next().await?) });
            let commit = (read.await).map_err(|e| failed(at, expected, e, FailureOf::Store))?;
            let Some(commit) = commit else {
                let gap = format!("{stream} ends before version {last} in the event store");
                let gap = HandlerError::transient(gap);
                return Err(failed(at, version, gap, FailureOf::Record));
            };
            for event in commit.recorded() {
                let version = event.header.version;
                if version < expected || version > last {
                    continue;
                }
                self.handle_stored(at, event, &skips, partition).await?;
                self.signals.advance();
                expected = version.next();
            }
        }
        Ok(())
    }

    /// Handles versions of a parked stream, from the event store, or from the rows of deferred
    /// records.
    pub(super) async fn take_range(&mut self, range: &Range) -> (usize, Outcome) {
        self.next = range.from;
        if !range.is_readable {
            // A version without a stored record would be taken for one that no record has.
            let error = HandlerError::permanent(format!(
                "{} was parked by a process that read its events from the event store: start the processor with RunnerBuilder::with_event_store, then redrive the stream",
                range.stream
            ));
            return failed(0, range.from, error, FailureOf::Store);
        }
        let range = &match self.not_stored(range).await {
            Ok(range) => range,
            Err(error) => return self.without_position(range, error).await,
        };
        if range.from > range.to {
            return (0, Outcome::Done);
        }
        let taken = match self.shared.history.clone() {
            Some(history) => self.take_history(range, &*history).await,
            None => self.take_deferred(range).await,
        };
        let taken = match taken {
            Ok(()) => self.handle_pending().await,
            Err(failed) => Err(failed),
        };
        match taken {
            Ok(()) => {
                // What is passed over at the end is done, too.
                if let Progress::At(at) = &self.certain {
                    self.next = self.next.max(at.version.next());
                }
                (0, Outcome::Done)
            }
            Err((done, outcome)) => (done, outcome),
        }
    }

    /// Returns the part of a range that is not in the read model: an attempt before this one may
    /// have stored its events, and nobody has learned of it.
    async fn not_stored(&mut self, range: &Range) -> Result<Range, HandlerError> {
        if range.is_late {
            (self.progress, self.certain) = (Progress::NoBase, Progress::NoBase);
            return Ok(range.clone());
        }
        let known = self.look_up(&range.stream).await?;
        let mut range = range.clone();
        if let Progress::At(at) = &known
            && range.may_begin_before
            && at.version.next() < range.from
        {
            // The stream has not failed itself, so that nobody has looked for a gap before it.
            range.from = at.version.next();
        }
        if let Progress::At(at) = known
            && at.version >= range.from
        {
            let first = range.from.get();
            range.from = at.version.next().min(range.to.next());
            self.counts.duplicates += range.from.get() - first;
            self.next = range.from;
        }
        // History has no gaps and no duplicates.
        (self.progress, self.certain) = (Progress::NoBase, Progress::NoBase);
        Ok(range)
    }

    /// The position of a stream could not be had. If that is for good, such as after a panic, it is
    /// a failure of the first event of the range, which is read for its letter.
    async fn without_position(&self, range: &Range, error: HandlerError) -> (usize, Outcome) {
        let from = match range.may_begin_before {
            true => Version::NONE.next(),
            false => range.from,
        };
        if !matches!(error.class(), ErrorClass::Permanent | ErrorClass::Poison) {
            return failed(0, from, error, FailureOf::Store);
        }
        let of = match self.first_of(range, from).await {
            Ok(Some(of)) => of,
            Ok(None) => FailureOf::Store,
            Err(away) => return failed(0, from, away, FailureOf::Store),
        };
        failed(0, from, error, of)
    }

    /// Returns the event of a version of a parked stream, as the part that fails.
    async fn first_of(
        &self,
        range: &Range,
        from: Version,
    ) -> Result<Option<FailureOf>, HandlerError> {
        let Some(history) = self.shared.history.clone() else {
            let rows = &self.shared.rows;
            let partition = &self.work.partition;
            let page = rows.deferred_page(partition, &range.stream, (from, from), None);
            let page = self.in_time("control store", async { Ok(page.await?) });
            let first = page.await?.records.into_iter().next();
            return Ok(first.map(|(_, record)| FailureOf::Deferred(Box::new(record))));
        };
        let mut commits = history.read(&range.stream, ReadFrom::Event(from), None);
        let read = self.in_time("event store", async { Ok(commits.try_next().await?) });
        let Some(commit) = read.await? else {
            return Ok(None);
        };
        let mut events = commit.recorded();
        let Some(event) = events.find(|event| event.header.version == from) else {
            return Ok(None);
        };
        let public = self.public(event).await?;
        Ok(public.map(|event| FailureOf::Event(Box::new(event))))
    }

    async fn take_history(
        &mut self,
        range: &Range,
        history: &dyn EventStore,
    ) -> Result<(), (usize, Outcome)> {
        let partition = self.work.partition.clone();
        let skips = self.skips_of(&range.stream, (range.from, range.to)).await;
        let skips = skips.map_err(|e| failed(0, range.from, e, FailureOf::Store))?;
        let mut commits = history.read(&range.stream, ReadFrom::Event(range.from), None);
        let mut expected = range.from;
        while expected <= range.to && !self.signals.is_to_finish() {
            let read = self.in_time("event store", async { Ok(commits.try_next().await?) });
            let commit = (read.await).map_err(|e| failed(0, expected, e, FailureOf::Store))?;
            let Some(commit) = commit else {
                self.is_short = true;
                return Ok(());
            };
            for event in commit.recorded() {
                let version = event.header.version;
                if version < expected || version > range.to {
                    continue;
                }
                self.handle_stored(0, event, &skips, &partition).await?;
                self.signals.advance();
                expected = version.next();
            }
        }
        Ok(())
    }

    async fn take_deferred(&mut self, range: &Range) -> Result<(), (usize, Outcome)> {
        let (rows, partition) = (self.shared.rows.clone(), self.work.partition.clone());
        let mut after = None;
        loop {
            let versions = (range.from, range.to);
            let page = rows.deferred_page(&partition, &range.stream, versions, after);
            let page = self
                .in_time("control store", async { Ok(page.await?) })
                .await;
            let page = page.map_err(|e| failed(0, range.from, e, FailureOf::Store))?;
            for (version, record) in page.records {
                if self.signals.is_to_finish() {
                    return Ok(());
                }
                let event = match from_message(&record.message) {
                    Ok(event) => event,
                    Err(error) => {
                        self.handle_pending().await?;
                        let of = FailureOf::Deferred(Box::new(record));
                        return Err(failed(0, version, HandlerError::poison(error), of));
                    }
                };
                self.handle(0, &event, EventSource::History, &partition)
                    .await?;
                self.signals.advance();
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        // Versions without a record are of private events, or are in a gap.
        self.handle_pending().await?;
        self.next = range.to.next();
        Ok(())
    }

    /// Handles one event that has a letter. If it was given up, its stream has gone on without it,
    /// so that the position says nothing.
    pub(super) async fn take_again(&mut self, again: &Again) -> (usize, Outcome) {
        let event = &*again.event;
        if !again.is_given_up {
            match self.look_up(&event.header.stream).await {
                Ok(Progress::At(at)) if at.version >= event.header.version => {
                    self.counts.duplicates += 1;
                    return (1, Outcome::Done);
                }
                Ok(_) => {}
                Err(error) if error.class() == ErrorClass::Permanent => {
                    let of = FailureOf::Event(Box::new(event.clone()));
                    return failed(0, event.header.version, error, of);
                }
                Err(error) => {
                    // That is no failure of the event: the request waits.
                    let stream = &event.header.stream;
                    tracing::warn!(%stream, error = crate::chain(error.source()), "the position of a stream could not be read for a redrive");
                    return (0, Outcome::Cancelled);
                }
            }
        }
        (self.progress, self.certain) = (Progress::NoBase, Progress::NoBase);
        let partition = self.work.partition.clone();
        let handled = self.handle(0, event, EventSource::History, &partition);
        let handled = match handled.await {
            Ok(()) => self.handle_pending().await,
            Err(failed) => Err(failed),
        };
        handled.map_or_else(|failed| failed, |()| (1, Outcome::Done))
    }
}
