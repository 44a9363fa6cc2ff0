//! Stores that break a rule of scans.
use super::{Scan, Store, Suspects, full};
use async_trait::async_trait;
use foldstream::{
    StreamId,
    ports::{
        Commit, EventStore, EventStoreError, ScanCursor, ScanItems, ScanPage, ScanScope, Segment,
        StreamPage, UnpublishedPage,
    },
};
use foldstream_testkit::intercept::EventStoreLayer;
use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroU32,
    sync::Mutex,
};

pub(super) fn suspects() -> Suspects {
    vec![
        full::<MissesTheLastPage>(&["a_scan_sees_everything_stored_before_it_began"])
            .and_by(&["a_scan_continues_from_a_stored_cursor"])
            // The last page may hold nothing but what was appended during the scan.
            .perhaps_by(&["a_scan_neither_skips_nor_repeats_commits_while_others_append"]),
        full::<SkipsLargeCommits>(&["a_scan_of_large_commits_sees_everything"]),
        full::<OverlapsSegments>(&["each_commit_is_in_exactly_one_segment"])
            .and_by(&["a_cursor_of_another_scan_is_invalid"]),
        full::<IgnoresMaxItems>(&["a_page_has_at_most_max_items_and_streams_in_version_order"])
            .and_by(&[
                "cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up",
                "a_cursor_of_a_scan_for_commits_is_invalid_for_tails",
                "a_scan_of_tails_returns_where_streams_end",
                "a_cursor_of_another_scan_is_invalid",
            ]),
        full::<ScansBackwards>(&["a_page_has_at_most_max_items_and_streams_in_version_order"]),
        full::<ForgetsUsedCursors>(&["a_scan_continues_from_a_stored_cursor"]),
        full::<SkipsOneAfterACursor>(&["a_scan_continues_from_a_stored_cursor"])
            .and_by(&["a_scan_sees_everything_stored_before_it_began"])
            // Only commits that were appended during the scan may be skipped.
            .perhaps_by(&["a_scan_neither_skips_nor_repeats_commits_while_others_append"]),
        full::<ShowsFirstCommitsAsTails>(&["a_scan_of_tails_returns_where_streams_end"]),
        full::<TakesAnyCursor>(&[
            "a_cursor_that_nobody_gave_is_invalid",
            "a_cursor_of_another_scan_is_invalid",
            "a_cursor_that_is_not_the_unpublished_lists_is_invalid",
        ])
        .and_by(&[
            "cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up",
            "a_cursor_of_a_scan_for_commits_is_invalid_for_tails",
        ]),
        full::<SkipsByNumber>(&["a_scan_neither_skips_nor_repeats_commits_while_others_append"]),
        full::<TakesCommitsForTails>(&["a_cursor_of_a_scan_for_commits_is_invalid_for_tails"]),
    ]
}

type Page = Result<ScanPage, EventStoreError>;

/// Changes the commits of a page.
fn changed(mut page: ScanPage, change: impl FnOnce(&mut Vec<Commit>)) -> ScanPage {
    if let ScanItems::Commits(commits) = &mut page.items {
        change(commits);
    }
    page
}

/// Returns no commits if there is no cursor.
#[derive(Debug, Default)]
struct MissesTheLastPage;
#[async_trait]
impl EventStoreLayer for MissesTheLastPage {
    async fn scan(&self, store: &Store, what: Scan) -> Page {
        let page = what.pass(store).await?;
        let is_last_of_several = page.next.is_none() && what.after.is_some();
        Ok(changed(page, |commits| {
            if is_last_of_several {
                commits.clear();
            }
        }))
    }
}

#[derive(Debug, Default)]
struct SkipsLargeCommits;
#[async_trait]
impl EventStoreLayer for SkipsLargeCommits {
    async fn scan(&self, store: &Store, what: Scan) -> Page {
        let bytes = |c: &Commit| c.events.iter().map(|e| e.payload.len()).sum::<usize>();
        let page = what.pass(store).await?;
        Ok(changed(page, |commits| {
            commits.retain(|c| bytes(c) < 65_536);
        }))
    }
}

/// Assigns everything to the last segment.
#[derive(Debug, Default)]
struct OverlapsSegments;
#[async_trait]
impl EventStoreLayer for OverlapsSegments {
    async fn scan(&self, store: &Store, mut what: Scan) -> Page {
        if what.segment.index() + 1 == what.segment.total() {
            what.segment = Segment::ALL;
        }
        what.pass(store).await
    }
}

#[derive(Debug, Default)]
struct IgnoresMaxItems;
#[async_trait]
impl EventStoreLayer for IgnoresMaxItems {
    async fn scan(&self, store: &Store, mut what: Scan) -> Page {
        what.max_items = what.max_items.max(NonZeroU32::new(50).unwrap());
        what.pass(store).await
    }
}

#[derive(Debug, Default)]
struct ScansBackwards;
#[async_trait]
impl EventStoreLayer for ScansBackwards {
    async fn scan(&self, store: &Store, what: Scan) -> Page {
        Ok(changed(what.pass(store).await?, |commits| {
            commits.reverse();
        }))
    }
}

/// Keeps cursors in memory, and forgets each when it is used.
#[derive(Debug, Default)]
struct ForgetsUsedCursors {
    cursors: Mutex<HashMap<Vec<u8>, ScanCursor>>,
}
#[async_trait]
impl EventStoreLayer for ForgetsUsedCursors {
    async fn scan(&self, store: &Store, mut what: Scan) -> Page {
        if let Some(handle) = &what.after {
            let known = self.cursors.lock().unwrap().remove(handle.as_bytes());
            let cursor = known.ok_or_else(|| EventStoreError::Invalid {
                reason: "unknown cursor".into(),
            })?;
            what.after = Some(cursor);
        }
        let mut page = what.pass(store).await?;
        if let Some(cursor) = page.next.take() {
            let mut cursors = self.cursors.lock().unwrap();
            let handle = format!("{} in {:?}", cursors.len(), what.segment).into_bytes();
            cursors.insert(handle.clone(), cursor);
            page.next = Some(ScanCursor::from_bytes(handle));
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct SkipsOneAfterACursor;
#[async_trait]
impl EventStoreLayer for SkipsOneAfterACursor {
    async fn scan(&self, store: &Store, what: Scan) -> Page {
        let page = what.pass(store).await?;
        Ok(changed(page, |commits| {
            if what.after.is_some() && !commits.is_empty() {
                commits.remove(0);
            }
        }))
    }
}

/// Shows each stream once, at the first commit that it meets.
#[derive(Debug, Default)]
struct ShowsFirstCommitsAsTails {
    seen: Mutex<BTreeSet<StreamId>>,
}
#[async_trait]
impl EventStoreLayer for ShowsFirstCommitsAsTails {
    async fn scan(&self, store: &Store, what: Scan) -> Page {
        let mut page = what.pass(store).await?;
        let mut seen = self.seen.lock().unwrap();
        if what.after.is_none() {
            seen.clear();
        }
        if let ScanItems::Tails(heads) = &mut page.items {
            heads.retain(|head| seen.insert(head.stream().clone()));
        }
        Ok(page)
    }
}

/// Starts from the beginning if it does not understand a cursor.
#[derive(Debug, Default)]
struct TakesAnyCursor;
#[async_trait]
impl EventStoreLayer for TakesAnyCursor {
    async fn scan(&self, store: &Store, mut what: Scan) -> Page {
        match what.pass(store).await {
            Err(EventStoreError::Invalid { .. }) => {
                what.after = None;
                what.pass(store).await
            }
            answer => answer,
        }
    }
    async fn streams(
        &self,
        store: &Store,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        match store.streams(aggregate, after).await {
            Err(EventStoreError::Invalid { .. }) => store.streams(aggregate, None).await,
            answer => answer,
        }
    }
    async fn unpublished(
        &self,
        store: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        match store.unpublished(segment, after, limit).await {
            Err(EventStoreError::Invalid { .. }) => store.unpublished(segment, None, limit).await,
            answer => answer,
        }
    }
}

/// Goes on after a number of commits, in the order of their keys.
#[derive(Debug, Default)]
struct SkipsByNumber;
#[async_trait]
impl EventStoreLayer for SkipsByNumber {
    async fn scan(&self, store: &Store, what: Scan) -> Page {
        let name = format!("{:?} {:?}: ", what.segment, what.what);
        let skipped = match &what.after {
            None => Some(0),
            Some(cursor) => std::str::from_utf8(cursor.as_bytes())
                .ok()
                .and_then(|text| text.strip_prefix(&name)?.parse().ok()),
        };
        let Some(skipped): Option<usize> = skipped else {
            return what.pass(store).await;
        };
        let (limit, mut all) = (what.max_items.get() as usize, what.clone());
        (all.after, all.max_items) = (None, NonZeroU32::MAX);
        let mut page = all.pass(store).await?;
        let found = match &mut page.items {
            ScanItems::Commits(commits) => {
                let found = commits.len();
                commits.sort_by_key(Commit::key);
                *commits = commits.iter().skip(skipped).take(limit).cloned().collect();
                found
            }
            ScanItems::Tails(heads) => {
                let found = heads.len();
                heads.sort_by_key(|head| (head.stream().clone(), head.version()));
                *heads = heads.iter().skip(skipped).take(limit).cloned().collect();
                found
            }
        };
        let next = skipped + limit;
        page.next = (next < found).then(|| ScanCursor::from_bytes(format!("{name}{next}")));
        Ok(page)
    }
}

/// Scans for commits in any case, and takes the same cursors therefore.
#[derive(Debug, Default)]
struct TakesCommitsForTails;
#[async_trait]
impl EventStoreLayer for TakesCommitsForTails {
    async fn scan(&self, store: &Store, mut what: Scan) -> Page {
        let wanted = std::mem::replace(&mut what.what, ScanScope::Commits);
        let mut page = what.pass(store).await?;
        if let (ScanItems::Commits(commits), ScanScope::Tails) = (&page.items, wanted) {
            page.items = ScanItems::Tails(commits.iter().map(Commit::head).collect());
        }
        Ok(page)
    }
}
