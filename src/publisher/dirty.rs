//! The list of dirty streams.
use super::{DirtyReason, Publisher};
use crate::{
    StreamId, Timestamp, Version,
    control::{DirtyRow, PublisherRows, Stored},
    ports::ControlStoreError,
};
use std::num::NonZeroU32;

/// A stream that was set aside: it has unpublished commits, and no notice of them may come again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirtyStream {
    /// The stream that has unpublished commits.
    pub stream: StreamId,
    /// The highest version that is known to be stored.
    pub known: Version,
    /// The reason why the stream was set aside.
    pub why: DirtyReason,
    /// The number of attempts to publish the stream since then.
    pub attempts: u32,
    /// The error of the last attempt, with its sources; `None` if there was no attempt.
    pub error: Option<String>,
    /// The time since which the stream is dirty.
    pub since: Timestamp,
    /// The time of the last attempt.
    pub last_attempt: Timestamp,
}
impl DirtyStream {
    pub(crate) fn new(stream: StreamId, row: Stored<DirtyRow>) -> Self {
        let row = row.value;
        Self {
            stream,
            known: row.known,
            why: row.why,
            attempts: row.attempts,
            error: row.error,
            since: row.since,
            last_attempt: row.last,
        }
    }
}

/// A page of dirty streams.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirtyPage {
    /// The streams of the page. It may be empty before the end of the list.
    pub streams: Vec<DirtyStream>,
    /// The value for `after` of the next call; `None` on the last page.
    pub next: Option<(u32, Option<String>)>,
}

impl Publisher {
    /// Returns one page of at most `limit` dirty streams, for an operator. The first page is after
    /// `None`.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the control store refuses or fails.
    pub async fn dirty_streams(
        &self,
        after: Option<(u32, Option<String>)>,
        limit: NonZeroU32,
    ) -> Result<DirtyPage, ControlStoreError> {
        let (shard, after) = after.unwrap_or_default();
        let page = self.rows.dirty_page(shard, after, limit).await?;
        let streams = page.rows.into_iter();
        let next = match page.next {
            Some(after) => Some((shard, Some(after))),
            None => Some((shard + 1, None)).filter(|(shard, _)| *shard < PublisherRows::SHARDS),
        };
        Ok(DirtyPage {
            streams: streams
                .map(|(stream, row)| DirtyStream::new(stream, row))
                .collect(),
            next,
        })
    }
}
