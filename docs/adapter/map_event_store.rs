//! `MapEventStore`: the adapter that the chapter "Writing an adapter in an afternoon" builds.
use async_trait::async_trait;
use foldstream::{
    Bytes, StreamHead, StreamId, Version, adapter,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, ScanCursor, ScanItems, ScanPage, ScanScope, Segment, StreamPage,
        UnpublishedPage,
    },
};
use std::{
    collections::BTreeMap,
    future::ready,
    num::{NonZeroU32, NonZeroUsize},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// An [`EventStore`] in a map, with a row per commit as a table of a database would have it.
#[derive(Debug, Default)]
pub struct MapEventStore {
    table: Mutex<Table>,
}

type Table = BTreeMap<CommitKey, Row>;

#[derive(Debug)]
struct Row {
    commit: Bytes,
    is_published: bool,
}

fn decode((key, row): (&CommitKey, &Row)) -> Result<Commit, EventStoreError> {
    Commit::from_bytes_at(key, row.commit.clone())
}

/// The rows of a stream between two versions, in the order of versions.
fn rows<'a>(
    table: &'a Table,
    stream: &StreamId,
    first: Version,
    last: Version,
) -> impl DoubleEndedIterator<Item = Result<Commit, EventStoreError>> + 'a {
    let key = |version| CommitKey::new(stream.clone(), version);
    table.range(key(first)..=key(last)).map(decode)
}

/// Returns the head at which a stream ends.
fn tail(table: &Table, stream: &StreamId) -> Result<StreamHead, EventStoreError> {
    let newest = rows(table, stream, Version::NONE, LAST)
        .next_back()
        .transpose()?;
    Ok(newest.map_or_else(|| StreamHead::empty(stream.clone()), |commit| commit.head()))
}

/// The most bytes of the value in one row.
const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// The most items of one page, for reads and lists that name no limit.
const PAGE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99);
/// A version after every other.
const LAST: Version = Version::new(u64::MAX);

impl MapEventStore {
    fn table(&self) -> MutexGuard<'_, Table> {
        // What a panic leaves behind is whole: nothing between two inserts of one append can fail.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the next commits of a read, at most `size`.
    fn page(
        &self,
        stream: &StreamId,
        from: &ReadFrom,
        size: usize,
    ) -> Result<Vec<Commit>, EventStoreError> {
        let table = self.table();
        let rows = |first, last| rows(&table, stream, first, last);
        match from {
            ReadFrom::After(head) => rows(head.version().next(), LAST).take(size).collect(),
            ReadFrom::Event(version) => {
                // The row that begins at the version, or the one before it if its commit
                // holds the version.
                let before = rows(Version::NONE, *version).next_back().transpose()?;
                let holds = before.filter(|commit| commit.last_version() >= *version);
                let first = holds.map_or(*version, |commit| commit.first_version);
                rows(first, LAST).take(size).collect()
            }
            ReadFrom::Newest => rows(Version::NONE, LAST).rev().take(size).collect(),
            ReadFrom::NewestAtOrBelow(version) => {
                let ends_after = |commit: &Commit| commit.last_version() > *version;
                rows(Version::NONE, *version)
                    .rev()
                    .skip_while(|commit| commit.as_ref().is_ok_and(ends_after))
                    .take(size)
                    .collect()
            }
            other => Err(adapter::unsupported(format!("cannot read from {other:?}"))),
        }
    }

    /// Walks over the rows in the order of their keys, from a cursor on, and takes at most `limit`
    /// items.
    fn walk<T>(
        &self,
        name: &str,
        after: Option<&ScanCursor>,
        limit: usize,
        pick: impl Fn(&CommitKey, &Row) -> Option<T>,
    ) -> Result<(Vec<T>, Option<ScanCursor>), EventStoreError> {
        let start = match after {
            Some(cursor) => Bound::Excluded(adapter::read_cursor(name, cursor)?),
            None => Bound::Unbounded,
        };
        let (mut items, mut last) = (Vec::new(), None);
        for (key, row) in self.table().range((start, Bound::Unbounded)) {
            if items.len() == limit {
                return Ok((items, last.map(|key| adapter::write_cursor(name, key))));
            }
            items.extend(pick(key, row));
            last = Some(key);
        }
        Ok((items, None))
    }
}

#[async_trait]
impl EventStore for MapEventStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(MAX_VALUE_BYTES - Commit::MAX_OVERHEAD_BYTES)
            .with_streams_per_append(100)
            .with_unpublished_list(true)
    }

    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        adapter::append_alone(self, append).await
    }

    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        all.validate_for(&self.capabilities())?;
        let commits: Vec<Commit> = all.commits.iter().map(Append::to_commit).collect();

        // The lock is the transaction: the check and all inserts happen under it.
        let mut table = self.table();
        let slot = |c: &Commit| table.get_key_value(&c.key()).map(decode).transpose();
        let slots = commits.iter().map(slot).collect::<Result<_, _>>()?;
        let heads = all.commits.iter().map(|append| &append.head);
        let tails = heads
            .chain(&all.unchanged)
            .map(|head| tail(&table, head.stream()));
        let tails: Vec<StreamHead> = tails.collect::<Result<_, _>>()?;
        if let Some(answer) = adapter::append_answer(all, slots, &tails) {
            return Ok(answer);
        }
        for commit in &commits {
            let row = Row {
                commit: commit.to_bytes(),
                is_published: false,
            };
            table.insert(commit.key(), row);
        }
        Ok(AppendOutcome::Appended(
            commits.iter().map(Commit::head).collect(),
        ))
    }

    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        let id = stream.clone();
        let page = move |from, size| ready(self.page(&id, &from, size));
        adapter::read_in_pages(stream.clone(), from, limit, PAGE, page)
    }

    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        let name = format!("streams {aggregate}");
        let (streams, next) = self.walk(&name, after.as_ref(), PAGE.get(), |key, _| {
            let is_first = key.first_version == Version::new(1);
            (is_first && key.stream.aggregate() == aggregate).then(|| key.stream.clone())
        })?;
        Ok(StreamPage::new(streams, next))
    }

    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanScope,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        let name = format!("scan {what:?} {}/{}", segment.index(), segment.total());
        let limit = max_items.get() as usize;
        let (found, next) = self.walk(&name, after.as_ref(), limit, |key, row| {
            is_in(segment, key).then(|| decode((key, row)))
        })?;
        let commits: Vec<Commit> = found.into_iter().collect::<Result<_, _>>()?;
        let items = match what {
            ScanScope::Commits => ScanItems::Commits(commits),
            ScanScope::Tails => ScanItems::Tails(commits.iter().map(Commit::head).collect()),
            other => return Err(adapter::unsupported(format!("cannot scan for {other:?}"))),
        };
        Ok(ScanPage::new(items, next))
    }

    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        let name = format!("unpublished {}/{}", segment.index(), segment.total());
        let limit = limit.get() as usize;
        let (keys, next) = self.walk(&name, after.as_ref(), limit, |key, row| {
            (is_in(segment, key) && !row.is_published).then(|| key.clone())
        })?;
        // The rest of the last stream lies before the highest version that it can have.
        let rest = keys
            .last()
            .map(|key| CommitKey::new(key.stream.clone(), LAST));
        let rest = next.as_ref().and(rest);
        let next_stream = rest.map(|key| adapter::write_cursor(&name, &key));
        Ok(UnpublishedPage::new(keys, next).with_next_stream(next_stream))
    }

    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        let mut table = self.table();
        for key in commits {
            if let Some(row) = table.get_mut(key) {
                row.is_published = true;
            }
        }
        Ok(())
    }
}

fn is_in(segment: Segment, key: &CommitKey) -> bool {
    key.stream.shard(segment.total()) == segment.index()
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream::{CommitId, Timestamp, ports::EventData};
    use futures::TryStreamExt;

    /// A stream of so many commits of one event.
    async fn given(commits: u64) -> (MapEventStore, StreamId) {
        let store = MapEventStore::default();
        let stream = StreamId::new("order", "o-1").unwrap();
        let mut head = StreamHead::empty(stream.clone());
        for _ in 0..commits {
            let placed = [EventData::new("Placed", 1, "{}")];
            let append = Append::after(head, CommitId::random(), Timestamp::now(), placed);
            let outcome = store.append(&append).await.unwrap();
            assert!(matches!(outcome, AppendOutcome::Appended(_)));
            head = append.head_after();
        }
        (store, stream)
    }

    async fn read(
        store: &MapEventStore,
        stream: &StreamId,
        from: ReadFrom,
    ) -> Result<usize, EventStoreError> {
        let read: Vec<_> = store.read(stream, from, None).try_collect().await?;
        Ok(read.len())
    }

    #[tokio::test]
    async fn a_read_across_a_missing_row_is_corrupt_in_both_directions() {
        let (store, stream) = given(250).await;
        // The first row, rows within a page, and rows on either side of a page's border, in both
        // directions.
        for missing in [1, 50, 100, 101, 150, 151] {
            let key = CommitKey::new(stream.clone(), Version::new(missing));
            let row = store.table().remove(&key).unwrap();
            let start = StreamHead::empty(stream.clone());
            for from in [ReadFrom::After(start), ReadFrom::Newest] {
                let found = read(&store, &stream, from).await;
                let Err(EventStoreError::Corrupt { after, .. }) = found else {
                    panic!("without version {missing}: {found:?}");
                };
                assert_eq!(after, Version::new(missing - 1));
            }
            store.table().insert(key, row);
        }
        assert_eq!(read(&store, &stream, ReadFrom::Newest).await.unwrap(), 250);
    }

    #[tokio::test]
    async fn the_bytes_of_another_commit_are_corrupt() {
        let (store, stream) = given(1).await;
        let another = StreamHead::empty(StreamId::new("order", "o-2").unwrap());
        let placed = [EventData::new("Placed", 1, "{}")];
        let another = Append::after(another, CommitId::random(), Timestamp::now(), placed);
        let key = CommitKey::new(stream.clone(), Version::new(1));
        store.table().get_mut(&key).unwrap().commit = another.to_commit().to_bytes();
        let found = read(&store, &stream, ReadFrom::Newest).await;
        assert!(
            matches!(found, Err(EventStoreError::Corrupt { .. })),
            "{found:?}"
        );
    }
}
