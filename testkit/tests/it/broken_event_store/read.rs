//! Stores that break a rule of reads.
use super::{Answer, Appended, AppendedAll, Read, Store, Suspects, full, history, is_backwards};
use crate::matrix::Suspect;
use async_trait::async_trait;
use foldstream::{
    StreamHead, StreamId,
    adapter::observed_head,
    ports::{
        Append, AppendAll, BoxStream, Capabilities, Commit, CommitKey, EventStore, EventStoreError,
        ReadFrom, ScanCursor, ScanPage, ScanScope, Segment, StreamPage, UnpublishedPage,
    },
};
use foldstream_testkit::{InMemoryEventStore, intercept::EventStoreLayer};
use futures::{FutureExt, StreamExt, stream};
use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
};

pub(super) fn suspects() -> Suspects {
    vec![
        full::<ReadsStale>(&["every_acknowledged_commit_is_seen_by_every_later_read"]).and_by(&[
            "a_dropped_append_leaves_the_commit_whole_or_not_at_all",
            "of_several_atomic_appends_with_the_same_heads_exactly_one_wins",
            "a_dropped_atomic_append_leaves_all_commits_or_none",
        ]),
        full::<ReadsOneMegabyte>(&["a_history_of_many_pages_is_read_to_the_tail"]),
        full::<ReadsAHundredCommits>(&["a_history_of_many_commits_is_read_to_the_tail"]),
        full::<FailsOnUnknownStreams>(&["an_unknown_stream_is_empty"])
            .and_by(&["writers_that_retry_on_conflict_lose_nothing"]),
        full::<RepeatsTheTail>(&["a_read_of_what_is_not_there_is_empty"])
            .and_by(&["streams_whose_ids_are_prefixes_are_not_mixed_up"]),
        full::<IncludesTheHead>(&["after_reads_from_the_commit_after_the_head"]).and_by(&[
            "a_read_after_a_head_of_another_stream_is_invalid",
            "a_read_after_a_head_of_another_history_starts_at_its_version",
            "a_read_after_a_version_within_a_commit_leaves_nothing_out",
            "the_time_of_a_head_does_not_count",
            "every_acknowledged_commit_is_seen_by_every_later_read",
            "a_history_of_many_pages_is_read_to_the_tail",
            "a_read_of_what_is_not_there_is_empty",
            "a_limit_counts_commits",
            "streams_whose_ids_are_prefixes_are_not_mixed_up",
        ]),
        full::<SkipsTheCommitAroundAnEvent>(&[
            "event_reads_from_the_commit_that_holds_the_version",
        ])
        .and_by(&[
            "every_acknowledged_commit_is_seen_by_every_later_read",
            "a_history_of_many_pages_is_read_to_the_tail",
            "a_limit_counts_commits",
        ]),
        full::<ReadsForwardsOnly>(&["newest_reads_backwards_from_the_tail"]).and_by(&[
            "a_read_is_current_as_of_its_first_poll",
            "a_read_during_appends_is_contiguous_and_never_too_short",
            "a_history_of_many_pages_is_read_to_the_tail",
            "a_history_of_many_commits_is_read_to_the_tail",
            "a_limit_counts_commits",
            "streams_whose_ids_are_prefixes_are_not_mixed_up",
        ]),
        full::<IncludesCommitsThatEndAbove>(&[
            "newest_at_or_below_reads_backwards_from_a_commit_end",
        ])
        .and_by(&[
            "a_read_of_what_is_not_there_is_empty",
            "a_limit_counts_commits",
        ]),
        full::<LimitsEvents>(&["a_limit_counts_commits"])
            .and_by(&["a_history_of_many_pages_is_read_to_the_tail"]),
        full::<MixesUpPrefixes>(&["streams_whose_ids_are_prefixes_are_not_mixed_up"]),
        Suspect::new::<ReadsAtOnce>(
            &[
                "atomic_append",
                "unpublished",
                "atomic_append_and_unpublished",
            ],
            || {
                let capabilities = Capabilities::new(super::LIMIT)
                    .with_streams_per_append(10)
                    .with_unpublished_list(true);
                Arc::new(ReadsAtOnce(InMemoryEventStore::with_capabilities(
                    capabilities,
                )))
            },
            &["a_read_is_current_as_of_its_first_poll"],
        ),
        full::<LeavesOutTheRestOfACommit>(&[
            "a_read_after_a_version_within_a_commit_leaves_nothing_out",
        ]),
        full::<LooksForTheCommitOfAHead>(&[
            "a_read_after_a_head_of_another_history_starts_at_its_version",
        ])
        .and_by(&["a_read_after_a_version_within_a_commit_leaves_nothing_out"]),
        full::<IgnoresTheStreamOfAHead>(&["a_read_after_a_head_of_another_stream_is_invalid"]),
    ]
}

/// Answers with the previous answer to the same question, once.
#[derive(Debug, Default)]
struct ReadsStale {
    answers: Mutex<HashMap<String, Vec<Commit>>>,
}
#[async_trait]
impl EventStoreLayer for ReadsStale {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let question = format!("{what:?}");
        let known = self.answers.lock().unwrap().remove(&question);
        if let Some(answer) = known {
            return Ok(answer.into());
        }
        let answer = what.all(store).await?;
        self.answers
            .lock()
            .unwrap()
            .insert(question, answer.clone());
        Ok(answer.into())
    }
}

/// Forgets that a page has a successor.
#[derive(Debug, Default)]
struct ReadsOneMegabyte;
#[async_trait]
impl EventStoreLayer for ReadsOneMegabyte {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let (mut bytes, mut page) = (0, Vec::new());
        for commit in what.all(store).await? {
            bytes += commit.events.iter().map(|e| e.payload.len()).sum::<usize>();
            if !page.is_empty() && bytes > 1 << 20 {
                break;
            }
            page.push(commit);
        }
        Ok(page.into())
    }
}

#[derive(Debug, Default)]
struct ReadsAHundredCommits;
#[async_trait]
impl EventStoreLayer for ReadsAHundredCommits {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        found.truncate(100);
        Ok(found.into())
    }
}

#[derive(Debug, Default)]
struct FailsOnUnknownStreams;
#[async_trait]
impl EventStoreLayer for FailsOnUnknownStreams {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        // Reads like a store that looks up the newest commit first.
        if is_backwards(&what) && history(store, &what.stream).await.is_empty() {
            return Err(EventStoreError::Invalid {
                reason: format!("no such stream: {}", what.stream),
            });
        }
        Ok(what.pass(store))
    }
}

#[derive(Debug, Default)]
struct RepeatsTheTail;
#[async_trait]
impl EventStoreLayer for RepeatsTheTail {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let found = what.all(store).await?;
        let is_after = matches!(what.from, ReadFrom::Event(_));
        if found.is_empty() && is_after {
            let newest = history(store, &what.stream).await.pop();
            return Ok(Vec::from_iter(newest).into());
        }
        Ok(found.into())
    }
}

#[derive(Debug, Default)]
struct IncludesTheHead;
#[async_trait]
impl EventStoreLayer for IncludesTheHead {
    async fn read<'a>(&'a self, store: &'a Store, mut what: Read) -> Answer<'a> {
        if let ReadFrom::After(head) = &what.from {
            what.from = ReadFrom::Event(head.version());
        }
        Ok(what.pass(store))
    }
}

#[derive(Debug, Default)]
struct SkipsTheCommitAroundAnEvent;
#[async_trait]
impl EventStoreLayer for SkipsTheCommitAroundAnEvent {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        if let ReadFrom::Event(version) = what.from {
            found.retain(|commit| commit.first_version >= version);
        }
        Ok(found.into())
    }
}

#[derive(Debug, Default)]
struct ReadsForwardsOnly;
#[async_trait]
impl EventStoreLayer for ReadsForwardsOnly {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        if what.from == ReadFrom::Newest {
            found.reverse();
        }
        Ok(found.into())
    }
}

/// Looks for commits that start at or below the version.
#[derive(Debug, Default)]
struct IncludesCommitsThatEndAbove;
#[async_trait]
impl EventStoreLayer for IncludesCommitsThatEndAbove {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let ReadFrom::NewestAtOrBelow(version) = what.from else {
            return Ok(what.pass(store));
        };
        let mut found = history(store, &what.stream).await;
        found.retain(|commit| commit.first_version <= version);
        found.reverse();
        found.truncate(what.limit.map_or(usize::MAX, |l| l.get() as usize));
        Ok(found.into())
    }
}

#[derive(Debug, Default)]
struct LimitsEvents;
#[async_trait]
impl EventStoreLayer for LimitsEvents {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let limit = what.limit.map_or(usize::MAX, |l| l.get() as usize);
        let mut events = 0;
        let mut found = what.all(store).await?;
        found.retain(|commit| {
            let is_within = events < limit;
            events += commit.events.len();
            is_within
        });
        Ok(found.into())
    }
}

/// Continues into the next stream whose name begins with this one's.
#[derive(Debug, Default)]
struct MixesUpPrefixes {
    streams: Mutex<Vec<StreamId>>,
}
#[async_trait]
impl EventStoreLayer for MixesUpPrefixes {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let stream = append.head.stream();
        self.streams.lock().unwrap().push(stream.clone());
        store.append(append).await
    }
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let found = what.all(store).await?;
        let is_other =
            |s: &&StreamId| **s != what.stream && s.as_str().starts_with(what.stream.as_str());
        let other = self.streams.lock().unwrap().iter().find(is_other).cloned();
        match other {
            Some(other) if found.is_empty() => Ok(history(store, &other).await.into()),
            _ => Ok(found.into()),
        }
    }
}

/// Looks for what follows a version, whether or not a commit ends there.
#[derive(Debug, Default)]
struct LeavesOutTheRestOfACommit;
#[async_trait]
impl EventStoreLayer for LeavesOutTheRestOfACommit {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        match &what.from {
            ReadFrom::After(head) if *head.stream() == what.stream => {
                let mut found = history(store, &what.stream).await;
                found.retain(|commit| commit.first_version > head.version());
                found.truncate(what.limit.map_or(usize::MAX, |l| l.get() as usize));
                Ok(found.into())
            }
            _ => Ok(what.pass(store)),
        }
    }
}

/// Returns nothing after a head whose commit it does not find.
#[derive(Debug, Default)]
struct LooksForTheCommitOfAHead;
#[async_trait]
impl EventStoreLayer for LooksForTheCommitOfAHead {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        if let ReadFrom::After(head) = &what.from
            && head.commit_id().is_some()
            && *head.stream() == what.stream
        {
            let commits = history(store, &what.stream).await;
            if !commits
                .iter()
                .any(|commit| commit.head().is_same_commit(head))
            {
                return Ok(Vec::new().into());
            }
        }
        Ok(what.pass(store))
    }
}

/// Takes a head's version for one of the stream that is read.
#[derive(Debug, Default)]
struct IgnoresTheStreamOfAHead;
#[async_trait]
impl EventStoreLayer for IgnoresTheStreamOfAHead {
    async fn read<'a>(&'a self, store: &'a Store, mut what: Read) -> Answer<'a> {
        if let ReadFrom::After(head) = &what.from {
            let stream = what.stream.clone();
            what.from = ReadFrom::After(match head.commit_id() {
                Some(id) => observed_head(stream, head.version(), id, head.recorded_at()),
                None => StreamHead::empty(stream),
            });
        }
        Ok(what.pass(store))
    }
}

/// Reads when it is asked for a read, and not when the read is polled.
#[derive(Debug)]
struct ReadsAtOnce(Arc<InMemoryEventStore>);
#[async_trait]
impl EventStore for ReadsAtOnce {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    async fn append(&self, append: &Append) -> Appended {
        self.0.append(append).await
    }
    async fn append_all(&self, all: &AppendAll) -> AppendedAll {
        self.0.append_all(all).await
    }
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        let read = self.0.read(stream, from, limit);
        let found: Vec<_> = read.collect().now_or_never().unwrap();
        stream::iter(found).boxed()
    }
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        self.0.streams(aggregate, after).await
    }
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanScope,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        self.0.scan(segment, after, what, max_items).await
    }
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        self.0.unpublished(segment, after, limit).await
    }
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        self.0.clear_unpublished(commits).await
    }
}
