//! The bootstrap: where the publishing of data begins that was stored before the first publisher.
use super::{
    BootstrapMode, DirtyReason, Publisher,
    reconcile::{heads_of, tails},
};
use crate::{
    StreamHead, StreamId, Version,
    control::{BootstrapRow, PutIf, Stored, Watermark},
    hex::{from_hex, to_hex},
    ports::{ControlStoreError, EventStoreError, ScanCursor, ScanScope, Segment},
    resilience::{Failure, Retryable},
};
use std::{collections::BTreeMap, num::NonZeroU32};

/// The result of a bootstrap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BootstrapReport {
    /// True if the bootstrap was done before this call.
    pub was_done: bool,
    /// The number of times that this call has noted where a stream begins.
    pub streams: u64,
}

/// The error returned by a bootstrap that is not done. Call it again: it continues where it has
/// stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// Another bootstrap has begun, which starts elsewhere.
    #[error(
        "a bootstrap at {found:?} has begun, so none at {asked:?} can: finish that one, or delete its row and the watermarks that it has written"
    )]
    AnotherMode {
        /// The mode that this call has asked for.
        asked: BootstrapMode,
        /// The mode of the bootstrap that has begun.
        found: BootstrapMode,
    },
    /// The cursor in the row of the bootstrap cannot be read.
    #[error("the cursor of the bootstrap cannot be read: was it written by a newer build?")]
    Cursor,
    /// The streams cannot be scanned.
    #[error("the streams cannot be scanned")]
    Store(#[from] EventStoreError),
    /// The rows of the publisher cannot be read or written.
    #[error("the rows of the publisher cannot be read or written")]
    Control(#[from] ControlStoreError),
}

impl Publisher {
    const BOOTSTRAP_PAGE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

    /// Notes where the publishing of existing data begins. Call it once, before the first publisher
    /// starts on a store that has events. Publishers refuse to start until it is done
    /// ([`PublishError::NotBootstrapped`](super::PublishError::NotBootstrapped)). Without a call
    /// they start, and publish what they have notices of.
    ///
    /// - With [`BootstrapMode::Beginning`] every stream without a watermark is noted as dirty, so
    ///   that a [sweep](Self::sweep) publishes it from its first event.
    /// - With [`BootstrapMode::Tail`] every stream without a watermark gets one at its tail. What
    ///   is appended after that is published, and its first record says that none was before it.
    ///
    /// A call that fails or is dropped may be repeated, by any process: it continues where the last
    /// one has stopped. Streams that have watermarks are left as they are.
    ///
    /// # Errors
    /// - [`BootstrapError::AnotherMode`] if a bootstrap in another mode has begun.
    /// - [`BootstrapError::Cursor`] if its row cannot be read.
    /// - [`BootstrapError::Store`] or [`BootstrapError::Control`] if a backend refuses or fails.
    pub async fn bootstrap(&self, mode: BootstrapMode) -> Result<BootstrapReport, BootstrapError> {
        let mut report = BootstrapReport::default();
        let mut row = self.begin_bootstrap(mode).await?;
        if row.value.is_done {
            report.was_done = true;
            return Ok(report);
        }
        while !row.value.is_done {
            let cursor = row.value.cursor.as_deref();
            let cursor = cursor.map(|hex| from_hex(hex).ok_or(BootstrapError::Cursor));
            let cursor = cursor.transpose()?.map(ScanCursor::from_bytes);
            let scan = || {
                let (scope, page) = (ScanScope::Tails, Self::BOOTSTRAP_PAGE);
                self.store.scan(Segment::ALL, cursor.clone(), scope, page)
            };
            let page = scan
                .retry(self.retry)
                .when(Failure::failure_class)
                .run()
                .await?;
            // The rows of the page come first, so that the cursor never passes a stream without.
            let tails = tails(heads_of(page.items));
            report.streams += match mode {
                BootstrapMode::Beginning => self.begin_at_first(tails).await?,
                BootstrapMode::Tail => self.begin_at_tail(tails).await?,
            };
            let next = BootstrapRow {
                mode,
                cursor: page.next.as_ref().map(|cursor| to_hex(cursor.as_bytes())),
                is_done: page.next.is_none(),
            };
            row = match self.put_bootstrap(next, Some(&row)).await? {
                PutIf::Written(row) | PutIf::Conflict(Some(row)) => row,
                // The row was deleted: an operator has started over.
                PutIf::Conflict(None) => self.begin_bootstrap(mode).await?,
            };
        }
        Ok(report)
    }

    async fn begin_bootstrap(
        &self,
        mode: BootstrapMode,
    ) -> Result<Stored<BootstrapRow>, BootstrapError> {
        let first = BootstrapRow {
            mode,
            cursor: None,
            is_done: false,
        };
        loop {
            let read = || self.rows.bootstrap_get();
            let found = read
                .retry(self.retry)
                .when(Failure::failure_class)
                .run()
                .await?;
            let row = match found {
                Some(row) => row,
                None => match self.put_bootstrap(first.clone(), None).await? {
                    PutIf::Written(row) | PutIf::Conflict(Some(row)) => row,
                    PutIf::Conflict(None) => continue,
                },
            };
            if row.value.mode != mode {
                return Err(BootstrapError::AnotherMode {
                    asked: mode,
                    found: row.value.mode,
                });
            }
            return Ok(row);
        }
    }

    async fn put_bootstrap(
        &self,
        row: BootstrapRow,
        seen: Option<&Stored<BootstrapRow>>,
    ) -> Result<PutIf<BootstrapRow>, ControlStoreError> {
        let put = || self.rows.bootstrap_put(row.clone(), seen);
        put.retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await
    }

    /// Notes as dirty the streams that have no watermark.
    async fn begin_at_first(
        &self,
        tails: BTreeMap<StreamId, StreamHead>,
    ) -> Result<u64, ControlStoreError> {
        let mut noted = 0;
        for (stream, head, mark) in self.with_marks(tails).await? {
            if mark.is_none() {
                self.set_aside(&stream, head.version(), DirtyReason::Backlog)
                    .await?;
                noted += 1;
            }
        }
        Ok(noted)
    }

    /// Writes watermarks at the tails of the streams that have none, or one of this bootstrap: the
    /// scan may show a stream again, at a higher version.
    async fn begin_at_tail(
        &self,
        tails: BTreeMap<StreamId, StreamHead>,
    ) -> Result<u64, ControlStoreError> {
        let mut noted = 0;
        for (stream, head, mark) in self.with_marks(tails).await? {
            let is_mine = mark.is_none_or(|mark| mark.value.last_record() == Version::NONE);
            let Some(commit_id) = head.commit_id().filter(|_| is_mine) else {
                continue;
            };
            let to = Watermark::new(head.version(), commit_id).with_last_record(Version::NONE);
            let advance = || self.watermarks.advance(&stream, mark, to);
            advance
                .retry(self.retry)
                .when(Failure::failure_class)
                .run()
                .await?;
            noted += 1;
        }
        Ok(noted)
    }

    async fn with_marks(
        &self,
        tails: BTreeMap<StreamId, StreamHead>,
    ) -> Result<Vec<(StreamId, StreamHead, Option<Stored<Watermark>>)>, ControlStoreError> {
        let read = || self.watermarks.get_many(tails.keys());
        let marks = read
            .retry(self.retry)
            .when(Failure::failure_class)
            .run()
            .await?;
        let tails = tails.iter().zip(marks);
        let rows = tails.map(|((stream, head), mark)| (stream.clone(), head.clone(), mark));
        Ok(rows.collect())
    }
}
