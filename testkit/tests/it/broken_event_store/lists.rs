//! Stores that break a rule of the lists of streams and of unpublished commits.
use super::{AppendedAll, Store, Suspects, full, history, plain, tail};
use async_trait::async_trait;
use foldstream::{
    CommitId, Timestamp,
    ports::{
        Append, AppendAll, Capabilities, Commit, CommitKey, EventData, EventStore, EventStoreError,
        ScanCursor, ScanScope, Segment, StreamPage, UnpublishedPage,
    },
};
use foldstream_testkit::intercept::EventStoreLayer;
use std::{num::NonZeroU32, sync::Mutex};

pub(super) fn suspects() -> Suspects {
    vec![
        full::<ListsTenStreams>(&["streams_come_to_list_every_stream_of_the_type"]),
        full::<ListsByPrefix>(&["streams_of_other_types_are_not_listed"]),
        full::<HidesTheList>(&["a_declared_list_of_unpublished_commits_is_in_the_capabilities"]),
        full::<ForgetsFirstCommits>(&["a_stored_commit_is_unpublished_until_it_is_cleared"])
            .and_by(&[
                "cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up",
                "a_walk_from_stream_to_stream_visits_each_once",
                "commits_cleared_during_a_walk_hide_no_others",
                "clearing_touches_nothing_else",
                "clearing_an_unknown_or_cleared_key_does_nothing",
                "many_keys_are_cleared_in_one_call",
                "unpublished_commits_come_in_pages_by_stream",
                "each_unpublished_commit_is_in_exactly_one_segment",
                "commits_of_an_atomic_append_are_unpublished",
            ]),
        full::<NeverClears>(&["a_stored_commit_is_unpublished_until_it_is_cleared"]).and_by(&[
            "commits_cleared_during_a_walk_hide_no_others",
            "clearing_touches_nothing_else",
            "clearing_an_unknown_or_cleared_key_does_nothing",
            "many_keys_are_cleared_in_one_call",
            "commits_of_an_atomic_append_are_unpublished",
        ]),
        full::<ClearsTheStream>(&["clearing_touches_nothing_else"]).and_by(&[
            "commits_cleared_during_a_walk_hide_no_others",
            "a_stored_commit_is_unpublished_until_it_is_cleared",
            "clearing_an_unknown_or_cleared_key_does_nothing",
            "many_keys_are_cleared_in_one_call",
        ]),
        full::<ClearingMakesCommits>(&["clearing_an_unknown_or_cleared_key_does_nothing"]),
        full::<ClearsOneBatch>(&["many_keys_are_cleared_in_one_call"]),
        full::<IgnoresTheLimit>(&["unpublished_commits_come_in_pages_by_stream"])
            .and_by(&["cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up"]),
        full::<NeverSkips>(&["a_walk_from_stream_to_stream_visits_each_once"]),
        full::<SkipsNoRest>(&["a_walk_from_stream_to_stream_visits_each_once"]),
        full::<SkipsTwo>(&["a_walk_from_stream_to_stream_visits_each_once"]),
        full::<ListsByVersion>(&["unpublished_commits_come_in_pages_by_stream"])
            .and_by(&["a_walk_from_stream_to_stream_visits_each_once"]),
        full::<ListsInEverySegment>(&["each_unpublished_commit_is_in_exactly_one_segment"])
            .and_by(&["cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up"]),
        full::<ForgetsAtomicCommits>(&["commits_of_an_atomic_append_are_unpublished"]),
        plain::<ListsUndeclared>(&["an_undeclared_list_of_unpublished_commits_is_unsupported"]),
        full::<ListsByNumber>(&["commits_cleared_during_a_walk_hide_no_others"])
            .and_by(&["a_walk_from_stream_to_stream_visits_each_once"]),
        full::<TakesCursorsOfScans>(&[
            "cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up",
        ]),
    ]
}

type Unpublished = Result<UnpublishedPage, EventStoreError>;

#[derive(Debug, Default)]
struct ListsTenStreams;
#[async_trait]
impl EventStoreLayer for ListsTenStreams {
    async fn streams(
        &self,
        store: &Store,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        let mut page = store.streams(aggregate, after).await?;
        page.streams.truncate(10);
        page.next = None;
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct ListsByPrefix {
    types: Mutex<Vec<String>>,
}
#[async_trait]
impl EventStoreLayer for ListsByPrefix {
    async fn append(&self, store: &Store, append: &Append) -> super::Appended {
        let aggregate = append.head.stream().aggregate().to_owned();
        let mut types = self.types.lock().unwrap().clone();
        if !types.contains(&aggregate) {
            types.push(aggregate);
        }
        *self.types.lock().unwrap() = types;
        store.append(append).await
    }
    async fn streams(
        &self,
        store: &Store,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        let mut page = store.streams(aggregate, after).await?;
        let types = self.types.lock().unwrap().clone();
        for other in types {
            if other != aggregate && other.starts_with(aggregate) {
                page.streams
                    .extend(store.streams(&other, None).await?.streams);
            }
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct HidesTheList;
#[async_trait]
impl EventStoreLayer for HidesTheList {
    fn capabilities(&self, store: &Store) -> Capabilities {
        store.capabilities().with_unpublished_list(false)
    }
}

/// Changes the keys of a page.
async fn listed(
    store: &Store,
    (segment, after, limit): (Segment, Option<ScanCursor>, NonZeroU32),
    change: impl FnOnce(&mut Vec<CommitKey>),
) -> Unpublished {
    let mut page = store.unpublished(segment, after, limit).await?;
    change(&mut page.keys);
    Ok(page)
}

#[derive(Debug, Default)]
struct ForgetsFirstCommits;
#[async_trait]
impl EventStoreLayer for ForgetsFirstCommits {
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Unpublished {
        let forget = |keys: &mut Vec<CommitKey>| keys.retain(|k| k.first_version.get() > 1);
        listed(store, (segment, after, limit), forget).await
    }
}

#[derive(Debug, Default)]
struct NeverClears;
#[async_trait]
impl EventStoreLayer for NeverClears {
    async fn clear_unpublished(&self, _: &Store, _: &[CommitKey]) -> Result<(), EventStoreError> {
        Ok(())
    }
}

#[derive(Debug, Default)]
struct ClearsTheStream;
#[async_trait]
impl EventStoreLayer for ClearsTheStream {
    async fn clear_unpublished(
        &self,
        store: &Store,
        commits: &[CommitKey],
    ) -> Result<(), EventStoreError> {
        for key in commits {
            let all = history(store, &key.stream).await;
            let keys: Vec<_> = all.iter().map(Commit::key).collect();
            store.clear_unpublished(&keys).await?;
        }
        Ok(())
    }
}

/// Updates the row of a key, which creates the row if it is missing.
#[derive(Debug, Default)]
struct ClearingMakesCommits;
#[async_trait]
impl EventStoreLayer for ClearingMakesCommits {
    async fn clear_unpublished(
        &self,
        store: &Store,
        commits: &[CommitKey],
    ) -> Result<(), EventStoreError> {
        store.clear_unpublished(commits).await?;
        for key in commits {
            let head = tail(store, &key.stream).await;
            if head.version().next() == key.first_version {
                let ghost = [EventData::new("Ghost", 1, "null")];
                let ghost = Append::after(head, CommitId::random(), Timestamp::now(), ghost);
                let _ = store.append(&ghost).await?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct ClearsOneBatch;
#[async_trait]
impl EventStoreLayer for ClearsOneBatch {
    async fn clear_unpublished(
        &self,
        store: &Store,
        commits: &[CommitKey],
    ) -> Result<(), EventStoreError> {
        store
            .clear_unpublished(&commits[..commits.len().min(25)])
            .await
    }
}

#[derive(Debug, Default)]
struct IgnoresTheLimit;
#[async_trait]
impl EventStoreLayer for IgnoresTheLimit {
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        _: NonZeroU32,
    ) -> Unpublished {
        let many = NonZeroU32::new(1000).unwrap();
        store.unpublished(segment, after, many).await
    }
}

/// Has no start after the last stream.
#[derive(Debug, Default)]
struct NeverSkips;
#[async_trait]
impl EventStoreLayer for NeverSkips {
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Unpublished {
        let page = store.unpublished(segment, after, limit).await?;
        Ok(page.with_next_stream(None))
    }
}

/// Goes on with the rest of the last stream.
#[derive(Debug, Default)]
struct SkipsNoRest;
#[async_trait]
impl EventStoreLayer for SkipsNoRest {
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Unpublished {
        let page = store.unpublished(segment, after, limit).await?;
        let next = page.next.clone();
        Ok(page.with_next_stream(next))
    }
}

/// Leaves out another stream.
#[derive(Debug, Default)]
struct SkipsTwo;
#[async_trait]
impl EventStoreLayer for SkipsTwo {
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Unpublished {
        let page = store.unpublished(segment, after, limit).await?;
        let Some(past) = page.next_stream.clone() else {
            return Ok(page);
        };
        let other = store.unpublished(segment, Some(past), NonZeroU32::MIN);
        let past = other.await?.next_stream;
        Ok(page.with_next_stream(past))
    }
}

#[derive(Debug, Default)]
struct ListsByVersion;
#[async_trait]
impl EventStoreLayer for ListsByVersion {
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Unpublished {
        let sort = |keys: &mut Vec<CommitKey>| keys.sort_by_key(|k| k.first_version);
        listed(store, (segment, after, limit), sort).await
    }
}

#[derive(Debug, Default)]
struct ListsInEverySegment;
#[async_trait]
impl EventStoreLayer for ListsInEverySegment {
    async fn unpublished(
        &self,
        store: &Store,
        _: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Unpublished {
        store.unpublished(Segment::ALL, after, limit).await
    }
}

#[derive(Debug, Default)]
struct ForgetsAtomicCommits;
#[async_trait]
impl EventStoreLayer for ForgetsAtomicCommits {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        let outcome = store.append_all(all).await?;
        let stored = all.commits.iter();
        let keys: Vec<_> = stored.map(|append| append.to_commit().key()).collect();
        store.clear_unpublished(&keys).await?;
        Ok(outcome)
    }
}

#[derive(Debug, Default)]
struct ListsUndeclared;
#[async_trait]
impl EventStoreLayer for ListsUndeclared {
    async fn unpublished(
        &self,
        _: &Store,
        _: Segment,
        _: Option<ScanCursor>,
        _: NonZeroU32,
    ) -> Unpublished {
        Ok(UnpublishedPage::new(Vec::<CommitKey>::new(), None))
    }
}

/// Goes on after a number of keys.
#[derive(Debug, Default)]
struct ListsByNumber;
#[async_trait]
impl EventStoreLayer for ListsByNumber {
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Unpublished {
        let name = format!("{segment:?}, after ");
        let number = after.as_ref().map_or(Some(0), |cursor| {
            let text = std::str::from_utf8(cursor.as_bytes()).ok()?;
            text.strip_prefix(&name)?.parse::<usize>().ok()
        });
        let Some(number) = number else {
            return store.unpublished(segment, after, limit).await;
        };
        let mut page = store.unpublished(segment, None, NonZeroU32::MAX).await?;
        let (next, found) = (number + limit.get() as usize, page.keys.len());
        page.keys.truncate(next);
        page.keys.drain(..number.min(page.keys.len()));
        page.next = (next < found).then(|| ScanCursor::from_bytes(format!("{name}{next}")));
        Ok(page)
    }
}

/// Starts from the beginning where it is given a cursor of a scan.
#[derive(Debug, Default)]
struct TakesCursorsOfScans;
#[async_trait]
impl EventStoreLayer for TakesCursorsOfScans {
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Unpublished {
        let what = ScanScope::Commits;
        let scanned = store.scan(segment, after.clone(), what, limit).await;
        let after = after.filter(|_| scanned.is_err());
        store.unpublished(segment, after, limit).await
    }
}
