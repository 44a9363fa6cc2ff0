//! An event store that holds nothing: it makes its commits when they are read.
//!
//! So the memory of a process that scans it is that of the scan, however large the store is said to
//! be.
use super::table::event;
use async_trait::async_trait;
use foldstream::{
    CommitId, Metadata, StreamHead, StreamId, Timestamp, Version,
    adapter::{read_cursor, read_in_pages, unsupported, write_cursor},
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, ScanCursor, ScanItems, ScanPage, ScanScope, Segment, StreamPage,
        UnpublishedPage,
    },
};
use futures::StreamExt;
use std::num::{NonZeroU32, NonZeroUsize};

/// The most commits of a page of a read.
const READ_PAGE: NonZeroUsize = NonZeroUsize::new(100).expect("not zero");

/// A store of streams of the same length, each commit of which has one event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generated {
    pub(super) streams: u64,
    /// The number of commits of each stream.
    pub(super) commits: u64,
}

/// The position of a commit: the number of its stream, and its version.
type At = (u64, u64);

impl Generated {
    /// Makes a commit, which is always the same at one position.
    fn commit(&self, (number, version): At) -> Result<Commit, EventStoreError> {
        let invalid = |reason: String| EventStoreError::Invalid { reason };
        let stream = StreamId::new("account", &format!("a-{number:08}"));
        let stream = stream.map_err(|error| invalid(error.to_string()))?;
        let event = event(version).map_err(|error| invalid(error.to_string()))?;
        let id = CommitId::from_u128(u128::from(number) << 64 | u128::from(version));
        let micros = i64::try_from(version).unwrap_or(i64::MAX);
        let key = CommitKey::new(stream, Version::new(version));
        let (at, metadata) = (Timestamp::from_micros(micros), Metadata::new());
        Ok(Commit::new(key, id, at, metadata, vec![event]))
    }

    /// Returns the number of a stream; `None` if the store has no such stream.
    fn number(&self, stream: &StreamId) -> Option<u64> {
        let number = stream.id().strip_prefix("a-")?.parse().ok()?;
        (stream.aggregate() == "account" && number < self.streams).then_some(number)
    }

    /// Returns the position after this one in a segment.
    const fn after(&self, segment: Segment, (number, version): At) -> At {
        if version < self.commits {
            (number, version + 1)
        } else {
            (number + segment.total() as u64, 1)
        }
    }
}

#[async_trait]
impl EventStore for Generated {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(400_000)
    }

    async fn append(&self, _: &Append) -> Result<AppendOutcome, EventStoreError> {
        Err(unsupported("generated events are only read"))
    }

    async fn append_all(
        &self,
        _: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        Err(unsupported("generated events are only read"))
    }

    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        let number = self.number(stream);
        let page = move |from: ReadFrom, size: usize| {
            let first = match from {
                ReadFrom::After(head) => Ok(head.version().get() + 1),
                ReadFrom::Event(version) => Ok(version.get().max(1)),
                _ => Err(unsupported("generated events are read oldest first")),
            };
            let commits = first.and_then(|first| match number {
                None => Ok(Vec::new()),
                Some(number) => (first..=self.commits)
                    .take(size)
                    .map(|version| self.commit((number, version)))
                    .collect(),
            });
            std::future::ready(commits)
        };
        read_in_pages(stream.clone(), from, limit, READ_PAGE, page).boxed()
    }

    async fn streams(&self, _: &str, _: Option<ScanCursor>) -> Result<StreamPage, EventStoreError> {
        Err(unsupported("generated streams are not listed"))
    }

    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanScope,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        if what != ScanScope::Commits {
            return Err(unsupported(
                "generated events are scanned for whole commits",
            ));
        }
        let walk = format!("scan {}/{}", segment.index(), segment.total());
        let mut at = match after {
            None => (u64::from(segment.index()), 1),
            Some(after) => {
                let last = read_cursor(&walk, &after)?;
                let number = self.number(&last.stream);
                let number = number.ok_or_else(|| EventStoreError::Invalid {
                    reason: format!("the cursor names {}, which is not here", last.stream),
                })?;
                self.after(segment, (number, last.first_version.get()))
            }
        };
        let mut commits = Vec::new();
        while at.0 < self.streams && commits.len() < max_items.get() as usize {
            commits.push(self.commit(at)?);
            at = self.after(segment, at);
        }
        let last = commits.last().filter(|_| at.0 < self.streams);
        let next = last.map(|last| write_cursor(&walk, &last.key()));
        Ok(ScanPage::new(ScanItems::Commits(commits), next))
    }

    async fn unpublished(
        &self,
        _: Segment,
        _: Option<ScanCursor>,
        _: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        Err(unsupported("generated events are not listed"))
    }

    async fn clear_unpublished(&self, _: &[CommitKey]) -> Result<(), EventStoreError> {
        Ok(())
    }
}
