//! `read_in_pages`: a contiguous history or an error, whatever the pages hold.
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp, Version,
    adapter::read_in_pages,
    ports::{Append, Commit, CommitKey, EventData, EventStoreError, ReadFrom},
};
use futures::{FutureExt, StreamExt, TryStreamExt};
use std::{
    future::ready,
    num::{NonZeroU32, NonZeroUsize},
    sync::Mutex,
};

/// A table whose rows a test may lose or shift.
struct Table {
    stream: StreamId,
    rows: Vec<Commit>,
    /// The sizes of the pages that were asked for.
    asked: Mutex<Vec<usize>>,
}

impl Table {
    /// Commits of two events each: 1 and 2, 3 and 4, ...
    fn of_pairs(commits: usize) -> Self {
        let stream = StreamId::new("cart", "7").unwrap();
        let mut head = StreamHead::empty(stream.clone());
        let mut rows = Vec::new();
        for _ in 0..commits {
            let events = [(); 2].map(|()| EventData::new("Added", 1, "{}"));
            let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
            head = append.head_after();
            rows.push(append.to_commit());
        }
        let asked = Mutex::default();
        Self {
            stream,
            rows,
            asked,
        }
    }

    fn without(mut self, first_version: u64) -> Self {
        self.rows
            .retain(|row| row.first_version.get() != first_version);
        self
    }

    fn page(&self, from: &ReadFrom, size: usize) -> Vec<Commit> {
        self.asked.lock().unwrap().push(size);
        let rows = self.rows.iter().cloned();
        match from {
            ReadFrom::After(head) => rows
                .filter(|row| row.first_version > head.version())
                .take(size)
                .collect(),
            ReadFrom::Event(version) => rows
                .filter(|row| row.last_version() >= *version)
                .take(size)
                .collect(),
            ReadFrom::Newest => rows.rev().take(size).collect(),
            ReadFrom::NewestAtOrBelow(version) => rows
                .rev()
                .filter(|row| row.last_version() <= *version)
                .take(size)
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    async fn read(&self, from: ReadFrom, limit: u32) -> Result<Vec<u64>, EventStoreError> {
        let two = NonZeroUsize::new(2).unwrap();
        let page = |from, size| ready(Ok(self.page(&from, size)));
        let limit = NonZeroU32::new(limit);
        let read = read_in_pages(self.stream.clone(), from, limit, two, page);
        read.map_ok(|commit| commit.first_version.get())
            .try_collect()
            .await
    }

    /// The version after which the read finds the stream corrupt.
    async fn corrupt_after(&self, from: ReadFrom) -> u64 {
        match self.read(from, 0).await {
            Err(EventStoreError::Corrupt { after, .. }) => after.get(),
            other => panic!("not corrupt: {other:?}"),
        }
    }

    fn start(&self) -> ReadFrom {
        ReadFrom::After(StreamHead::empty(self.stream.clone()))
    }
}

const fn version(number: u64) -> Version {
    Version::new(number)
}

#[tokio::test]
async fn a_whole_history_is_read_from_every_start_and_across_pages() {
    let table = Table::of_pairs(5);
    let newest_first = vec![9, 7, 5, 3, 1];
    assert_eq!(table.read(table.start(), 0).await.unwrap(), [1, 3, 5, 7, 9]);
    assert_eq!(table.read(ReadFrom::Newest, 0).await.unwrap(), newest_first);
    let below_eight = ReadFrom::NewestAtOrBelow(version(8));
    assert_eq!(table.read(below_eight, 0).await.unwrap(), [7, 5, 3, 1]);
    let sixth = ReadFrom::Event(version(6));
    assert_eq!(table.read(sixth, 0).await.unwrap(), [5, 7, 9]);
    let zeroth = ReadFrom::Event(Version::NONE);
    assert_eq!(table.read(zeroth, 0).await.unwrap(), [1, 3, 5, 7, 9]);
    assert!(
        table
            .read(ReadFrom::Event(version(11)), 0)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_missing_commit_is_corrupt_after_the_last_sound_version_below_it() {
    for missing in [1, 3, 5, 7] {
        let table = Table::of_pairs(5).without(missing);
        let sound = missing - 1;
        assert_eq!(table.corrupt_after(table.start()).await, sound, "{missing}");
        let newest = table.corrupt_after(ReadFrom::Newest).await;
        assert_eq!(newest, sound, "{missing}, newest first");
        let event = ReadFrom::Event(version(missing + 1));
        let event = table.corrupt_after(event).await;
        assert_eq!(event, missing, "a read from within commit {missing}");
    }
}

#[tokio::test]
async fn a_commit_that_overlaps_another_is_corrupt() {
    let mut table = Table::of_pairs(5);
    let row = &table.rows[2];
    let key = CommitKey::new(row.stream.clone(), version(4));
    let shifted = Commit::new(
        key,
        row.id,
        row.recorded_at,
        row.metadata.clone(),
        row.events.clone(),
    );
    table.rows[2] = shifted;
    assert_eq!(table.corrupt_after(table.start()).await, 4);
    // Version 6 is the first that is missing, and what is below the hole overlaps.
    assert!(table.corrupt_after(ReadFrom::Newest).await <= 5);
}

#[tokio::test]
async fn a_limit_is_handed_to_the_page_and_ends_the_read() {
    let table = Table::of_pairs(5);
    assert_eq!(table.read(table.start(), 1).await.unwrap(), [1]);
    assert_eq!(*table.asked.lock().unwrap(), [1]);
    assert_eq!(table.read(ReadFrom::Newest, 3).await.unwrap(), [9, 7, 5]);
    assert_eq!(*table.asked.lock().unwrap(), [1, 2, 2]);
}

#[tokio::test]
async fn no_page_is_read_before_the_first_poll_nor_before_it_is_needed() {
    let table = Table::of_pairs(5);
    let two = NonZeroUsize::new(2).unwrap();
    let page = |from, size| ready(Ok(table.page(&from, size)));
    let mut read = read_in_pages(table.stream.clone(), table.start(), None, two, page);
    assert!(table.asked.lock().unwrap().is_empty());
    for pages in [1, 1, 2] {
        assert!(read.next().now_or_never().flatten().unwrap().is_ok());
        assert_eq!(table.asked.lock().unwrap().len(), pages);
    }
}

#[tokio::test]
async fn a_head_of_another_stream_is_invalid_and_reads_nothing() {
    let table = Table::of_pairs(1);
    let other = StreamHead::empty(StreamId::new("cart", "8").unwrap());
    let found = table.read(ReadFrom::After(other), 0).await;
    assert!(
        matches!(found, Err(EventStoreError::Invalid { .. })),
        "{found:?}"
    );
    assert!(table.asked.lock().unwrap().is_empty());
}
