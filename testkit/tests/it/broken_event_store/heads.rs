//! Stores that handle heads wrongly which are not in the stream.
use super::{Answer, Appended, Read, Store, Suspects, full, is_backwards, slots_only, tail};
use async_trait::async_trait;
use foldstream::{
    Version,
    adapter::version_conflict,
    ports::{Append, AppendOutcome, Capabilities, Commit, EventStore, EventStoreError, ReadFrom},
};
use foldstream_testkit::intercept::EventStoreLayer;
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Mutex;

pub(super) fn suspects() -> Suspects {
    vec![
        slots_only::<ClaimsToCheckHeads>(&[
            "a_head_above_the_tail_is_a_conflict_or_leaves_a_hole_that_reads_report",
            "a_head_of_another_history_is_a_conflict_or_extends_the_stream",
            "a_head_within_a_commit_is_a_conflict_or_an_overlap_that_reads_report",
            "a_checked_head_above_the_tail_lets_nothing_pass_where_heads_are_checked",
        ]),
        slots_only::<HidesHoles>(&[
            "a_head_above_the_tail_is_a_conflict_or_leaves_a_hole_that_reads_report",
            "a_head_within_a_commit_is_a_conflict_or_an_overlap_that_reads_report",
        ])
        .and_by(&["a_read_after_a_version_within_a_commit_leaves_nothing_out"]),
        slots_only::<MovesToTheTail>(&[
            "a_head_above_the_tail_is_a_conflict_or_leaves_a_hole_that_reads_report",
        ]),
        full::<LooksAtTheVersionAlone>(&[
            "a_head_of_another_history_is_a_conflict_or_extends_the_stream",
        ]),
        full::<TakesAnotherHistoryForItsOwn>(&[
            "a_head_of_another_history_before_the_tail_is_a_conflict",
        ]),
        slots_only::<SaysWhereItStopped>(&[
            "a_head_above_the_tail_is_a_conflict_or_leaves_a_hole_that_reads_report",
        ]),
        full::<ComparesWholeHeads>(&["the_time_of_a_head_does_not_count"]),
    ]
}

/// Claims to check heads, and checks only the slot.
#[derive(Debug, Default)]
struct ClaimsToCheckHeads;
#[async_trait]
impl EventStoreLayer for ClaimsToCheckHeads {
    fn capabilities(&self, store: &Store) -> Capabilities {
        store.capabilities().with_checked_heads(true)
    }
}

/// Takes a hole for the end of the stream.
#[derive(Debug, Default)]
struct HidesHoles;
#[async_trait]
impl EventStoreLayer for HidesHoles {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = Vec::new();
        let mut read = store.read(&what.stream, what.from, what.limit);
        while let Some(commit) = read.next().await {
            match commit {
                Ok(commit) => found.push(commit),
                Err(EventStoreError::Corrupt { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(found.into())
    }
}

/// Stores a commit above the tail at the tail, and reports the requested slot.
#[derive(Debug, Default)]
struct MovesToTheTail;
#[async_trait]
impl EventStoreLayer for MovesToTheTail {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let newest = tail(store, append.head.stream()).await;
        if append.head.version() <= newest.version() {
            return store.append(append).await;
        }
        let mut moved = append.clone();
        moved.head = newest;
        Ok(match store.append(&moved).await? {
            AppendOutcome::Appended(_) => AppendOutcome::Appended(append.head_after()),
            other => other,
        })
    }
}

/// Claims to check heads, and compares versions without commit ids.
#[derive(Debug, Default)]
struct LooksAtTheVersionAlone;
#[async_trait]
impl EventStoreLayer for LooksAtTheVersionAlone {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let newest = tail(store, append.head.stream()).await;
        let mut known = append.clone();
        if newest.version() == append.head.version() {
            known.head = newest;
        }
        store.append(&known).await
    }
}

/// Stores a commit on an unknown head beside the one that is in the slot, and shows the later one.
#[derive(Debug, Default)]
struct TakesAnotherHistoryForItsOwn {
    shadows: Mutex<BTreeMap<(String, Version), Commit>>,
}
#[async_trait]
impl EventStoreLayer for TakesAnotherHistoryForItsOwn {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let (stream, version) = (append.head.stream().clone(), append.head.version());
        let outcome = store.append(append).await?;
        let below = ReadFrom::NewestAtOrBelow(version);
        let known: Vec<_> = store.read(&stream, below, None).try_collect().await?;
        let is_ours = known.first().is_some_and(|c| c.head() == append.head)
            || version == Version::NONE
            || tail(store, &stream).await.version() <= version
            || known.first().is_none_or(|c| c.last_version() != version);
        if is_ours || !matches!(outcome, AppendOutcome::Conflict(_)) {
            return Ok(outcome);
        }
        let key = (stream.to_string(), version.next());
        self.shadows.lock().unwrap().insert(key, append.to_commit());
        Ok(AppendOutcome::Appended(append.head_after()))
    }
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        let shadows = self.shadows.lock().unwrap();
        for commit in &mut found {
            let key = (commit.stream.to_string(), commit.first_version);
            if let Some(shadow) = shadows.get(&key) {
                *commit = shadow.clone();
            }
        }
        Ok(found.into())
    }
}

/// Reports a damage that it meets on the way back by where it stopped, which is after the damage.
#[derive(Debug, Default)]
struct SaysWhereItStopped;
#[async_trait]
impl EventStoreLayer for SaysWhereItStopped {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let is_backwards = is_backwards(&what);
        let mut stopped = None;
        let read = store.read(&what.stream, what.from, what.limit);
        let read = read.map(move |found| match found {
            Ok(commit) => {
                stopped = Some(Version::new(commit.first_version.get() - 1));
                Ok(commit)
            }
            Err(EventStoreError::Corrupt {
                stream,
                after,
                reason,
            }) if is_backwards => Err(EventStoreError::Corrupt {
                after: stopped.unwrap_or(after),
                stream,
                reason,
            }),
            Err(error) => Err(error),
        });
        Ok(read.boxed().into())
    }
}

/// Takes a head with another time for a head of another history.
#[derive(Debug, Default)]
struct ComparesWholeHeads;
#[async_trait]
impl EventStoreLayer for ComparesWholeHeads {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let (head, newest) = (&append.head, tail(store, append.head.stream()).await);
        if head.is_same_commit(&newest) && *head != newest {
            let actual = Some(newest.version());
            let conflict = version_conflict(head.stream().clone(), head.version(), actual);
            return Ok(AppendOutcome::Conflict(conflict));
        }
        store.append(append).await
    }
}
