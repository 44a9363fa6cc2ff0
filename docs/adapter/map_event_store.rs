//! `MapEventStore`: the adapter that the chapter "Writing an adapter in an afternoon" builds.
use async_trait::async_trait;
use foldstream::{
    Bytes, StreamHead, StreamId, Version, VersionConflict,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, RefusedKind, ScanCursor, ScanItems, ScanPage, ScanScope,
        Segment, StreamPage, UnpublishedPage,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The most bytes of the value in one row.
const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// The most commits of one page of a read.
const PAGE: usize = 100;
/// The streams of one page of [`EventStore::streams`].
const STREAMS_PAGE: usize = 1000;
/// A version after every other.
const LAST: Version = Version::new(u64::MAX);

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

impl MapEventStore {
    fn table(&self) -> MutexGuard<'_, Table> {
        // What a panic leaves behind is whole: nothing between two inserts of one append can fail.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next commits of a read, at most `size`.
    fn page(
        &self,
        stream: &StreamId,
        from: &ReadFrom,
        size: usize,
    ) -> Result<Vec<Commit>, EventStoreError> {
        let table = self.table();
        let key = |version| CommitKey::new(stream.clone(), version);
        let rows = |first, last| table.range(key(first)..=key(last)).map(decode);
        match from {
            ReadFrom::After(head) if head.stream() != stream => {
                Err(invalid(format!("{} is another stream", head.stream())))
            }
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
            other => Err(unsupported(format!("cannot read from {other:?}"))),
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
            Some(cursor) => Bound::Excluded(read_cursor(name, cursor)?),
            None => Bound::Unbounded,
        };
        let (mut items, mut last) = (Vec::new(), None);
        for (key, row) in self.table().range((start, Bound::Unbounded)) {
            if items.len() == limit {
                return Ok((items, last.map(|key| write_cursor(name, key))));
            }
            items.extend(pick(key, row));
            last = Some(key);
        }
        Ok((items, None))
    }
}

/// A cursor is the name of its walk and the last key that was looked at.
fn write_cursor(walk: &str, last: &CommitKey) -> ScanCursor {
    ScanCursor::from_bytes(format!("{walk}@{} {}", last.first_version, last.stream))
}

fn read_cursor(walk: &str, cursor: &ScanCursor) -> Result<CommitKey, EventStoreError> {
    let read = || {
        let text = std::str::from_utf8(cursor.as_bytes()).ok()?;
        let key = text.strip_prefix(walk)?.strip_prefix('@')?;
        let (version, stream) = key.split_once(' ')?;
        let version = Version::new(version.parse().ok()?);
        Some(CommitKey::new(stream.parse().ok()?, version))
    };
    read().ok_or_else(|| invalid(format!("the cursor is not one of the walk {walk:?}")))
}

/// Returns the answer to an append that must not be stored: a repeat or a conflict.
fn answer_without_insert(
    table: &Table,
    all: &AppendAll,
) -> Result<Option<AppendOutcome<Vec<StreamHead>>>, EventStoreError> {
    // First the repeat. It stays one, however far the streams have moved since.
    let mut stored = Vec::new();
    for append in &all.commits {
        let in_slot = table.get_key_value(&append.to_commit().key());
        let commit = in_slot.map(decode).transpose()?;
        stored.extend(commit.filter(|commit| commit.id == append.commit_id));
    }
    if stored.len() == all.commits.len() {
        return Ok(Some(AppendOutcome::Repeated(stored)));
    }
    let heads = all.commits.iter().map(|append| &append.head);
    for head in heads.chain(&all.unchanged) {
        let key = |version| CommitKey::new(head.stream().clone(), version);
        let rows = table.range(key(Version::NONE)..=key(LAST));
        let newest = rows.map(decode).next_back().transpose()?;
        let empty = || StreamHead::empty(head.stream().clone());
        let tail = newest.map_or_else(empty, |commit| commit.head());
        if !tail.is_same_commit(head) {
            let (stream, actual) = (head.stream().clone(), Some(tail.version()));
            let conflict = VersionConflict::new(stream, head.version(), actual);
            return Ok(Some(AppendOutcome::Conflict(conflict)));
        }
    }
    Ok(None)
}

/// A hole in a history: the version that is missing, and the last version before the hole.
type Hole = (Version, Version);

/// Returns the first hole before or within a page; `expected` is where the page must begin.
fn hole(page: &[Commit], is_backwards: bool, expected: &mut Option<Version>) -> Option<Hole> {
    for commit in page {
        let (first, last) = (commit.first_version, commit.last_version());
        let (near, next) = match is_backwards {
            true => (last, before(first)),
            false => (first, last.next()),
        };
        match *expected {
            // Whatever the direction, the error names what is sound below the hole.
            Some(version) if version != near && is_backwards => return Some((version, last)),
            Some(version) if version != near => return Some((version, before(version))),
            _ => *expected = Some(next),
        }
    }
    None
}

fn before(version: Version) -> Version {
    Version::new(version.get().saturating_sub(1))
}

fn invalid(reason: String) -> EventStoreError {
    EventStoreError::Invalid { reason }
}

fn unsupported(reason: String) -> EventStoreError {
    EventStoreError::Refused {
        kind: RefusedKind::Unsupported,
        reason,
        source: "see the capabilities of MapEventStore".into(),
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
        let all = AppendAll::new(vec![append.clone()]);
        Ok(match self.append_all(&all).await? {
            AppendOutcome::Appended(_) => AppendOutcome::Appended(append.head_after()),
            AppendOutcome::Repeated(stored) => AppendOutcome::Repeated(stored),
            AppendOutcome::Conflict(conflict) => AppendOutcome::Conflict(conflict),
        })
    }

    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        all.validate_for(&self.capabilities())?;

        // The lock is the transaction: the check and all inserts happen under it.
        let mut table = self.table();
        if let Some(answer) = answer_without_insert(&table, all)? {
            return Ok(answer);
        }
        for commit in all.commits.iter().map(Append::to_commit) {
            let row = Row {
                commit: commit.to_bytes(),
                is_published: false,
            };
            table.insert(commit.key(), row);
        }
        let heads = all.commits.iter().map(Append::head_after).collect();
        Ok(AppendOutcome::Appended(heads))
    }

    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        let is_backwards = matches!(from, ReadFrom::Newest | ReadFrom::NewestAtOrBelow(_));
        let expected = match &from {
            ReadFrom::After(head) => Some(head.version().next()),
            _ => None,
        };
        let limit = limit.map_or(usize::MAX, |limit| limit.get() as usize);
        let (stream, size) = (stream.clone(), PAGE.min(limit));
        let start = (Some(from), expected);
        // Nothing runs before the caller polls, and one page is held at a time.
        stream::try_unfold(start, move |(from, mut expected)| {
            let page = from.map(|from| self.page(&stream, &from, size)).transpose();
            std::future::ready(page.and_then(|page| {
                let Some(page) = page else { return Ok(None) };
                let is_over = page.len() < size;
                let hole = hole(&page, is_backwards, &mut expected);
                // A history that is read backwards ends with version 1.
                let beginning = expected.filter(|v| is_over && is_backwards && *v > Version::NONE);
                let beginning = beginning.map(|version| (version, Version::NONE));
                if let Some((version, after)) = hole.or(beginning) {
                    return Err(EventStoreError::Corrupt {
                        stream: stream.clone(),
                        after,
                        reason: format!("version {version} is missing"),
                    });
                }
                let next = page
                    .last()
                    .filter(|_| !is_over)
                    .map(|last| match is_backwards {
                        true => ReadFrom::NewestAtOrBelow(before(last.first_version)),
                        false => ReadFrom::After(last.head()),
                    });
                let items = stream::iter(page.into_iter().map(Ok));
                Ok(Some((items, (next, expected))))
            }))
        })
        .try_flatten()
        .take(limit)
        .boxed()
    }

    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        let name = format!("streams {aggregate}");
        let (streams, next) = self.walk(&name, after.as_ref(), STREAMS_PAGE, |key, _| {
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
            other => return Err(unsupported(format!("cannot scan for {other:?}"))),
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
        Ok(UnpublishedPage::new(keys, next))
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
