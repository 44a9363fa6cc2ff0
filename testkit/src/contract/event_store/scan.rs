//! Cases of scans of the whole store.
use super::given::{
    Store, append_of, assert_commits, assert_invalid, events, fresh_stream, given, given_on,
    large_event, must_append, tail,
};
use crate::contract::support::ENDLESS;
use foldstream::{
    StreamHead, StreamId,
    ports::{Commit, ScanCursor, ScanItems, ScanPage, ScanScope, Segment},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

/// Returns one page, with a cursor that went through its bytes, as in a checkpoint.
async fn page(
    store: &Store,
    segment: Segment,
    after: Option<ScanCursor>,
    what: ScanScope,
    max_items: u32,
) -> ScanPage {
    let max = NonZeroU32::new(max_items).unwrap();
    let mut page = store.scan(segment, after, what, max).await.unwrap();
    page.next = page
        .next
        .map(|cursor| ScanCursor::from_bytes(cursor.as_bytes().to_vec()));
    page
}

fn commits_of(page: ScanPage) -> Vec<Commit> {
    match page.items {
        ScanItems::Commits(commits) => commits,
        ScanItems::Tails(_) => panic!("a scan of commits returned tails"),
    }
}

/// Returns all pages of a segment, starting from a cursor.
async fn commit_pages(
    store: &Store,
    segment: Segment,
    mut after: Option<ScanCursor>,
    max_items: u32,
) -> Vec<Vec<Commit>> {
    let mut pages = Vec::new();
    loop {
        let page = page(store, segment, after, ScanScope::Commits, max_items).await;
        after = page.next.clone();
        pages.push(commits_of(page));
        assert!(pages.len() < ENDLESS, "the scan does not end");
        if after.is_none() {
            return pages;
        }
    }
}

/// Creates some streams with commits of several lengths. Commits of other tests in the same store
/// do not count.
async fn given_streams(store: &Store, count: usize) -> BTreeMap<StreamId, Vec<Commit>> {
    let mut all = BTreeMap::new();
    for n in 0..count {
        let (stream, commits) = given(store, &[n % 3 + 1, 1, 2]).await;
        all.insert(stream, commits);
    }
    all
}

/// Returns the found commits of the given streams, by stream and in version order.
fn sorted(
    found: impl IntoIterator<Item = Commit>,
    given: &BTreeMap<StreamId, Vec<Commit>>,
) -> BTreeMap<StreamId, Vec<Commit>> {
    let mut all: BTreeMap<StreamId, Vec<Commit>> = BTreeMap::new();
    for commit in found {
        if given.contains_key(&commit.stream) {
            all.entry(commit.stream.clone()).or_default().push(commit);
        }
    }
    for commits in all.values_mut() {
        commits.sort_by_key(|c| c.first_version);
    }
    all
}

fn assert_all(found: impl IntoIterator<Item = Commit>, given: &BTreeMap<StreamId, Vec<Commit>>) {
    let found = sorted(found, given);
    for (stream, commits) in given {
        let none = Vec::new();
        let found = found.get(stream).unwrap_or(&none);
        assert_commits(&format!("the scan of {stream}"), found, commits);
    }
}

/// A scan sees every commit that was stored before the scan began, once and as it was given.
pub async fn a_scan_sees_everything_stored_before_it_began(store: Store) {
    let given = given_streams(&store, 9).await;
    for max_items in [1000, 7] {
        let pages = commit_pages(&store, Segment::ALL, None, max_items).await;
        assert_all(pages.into_iter().flatten(), &given);
    }
}

/// A scan returns large commits whole, however few fit a page of the backend.
pub async fn a_scan_of_large_commits_sees_everything(store: Store) {
    let bytes = (store.capabilities().max_event_bytes / 2).min(100_000);
    let mut given = BTreeMap::new();
    for _ in 0..4 {
        let stream = fresh_stream();
        let mut head = StreamHead::empty(stream.clone());
        let mut commits = Vec::new();
        for _ in 0..4 {
            let append = append_of(&head, [large_event(bytes)]);
            head = must_append(&store, &append).await;
            commits.push(append.to_commit());
        }
        given.insert(stream, commits);
    }
    let pages = commit_pages(&store, Segment::ALL, None, 1000).await;
    assert_all(pages.into_iter().flatten(), &given);
}

/// Each commit is in exactly one segment, however many segments there are.
pub async fn each_commit_is_in_exactly_one_segment(store: Store) {
    let given = given_streams(&store, 9).await;
    for total in [2, 3, 7] {
        let mut found = Vec::new();
        for segment in Segment::split(total) {
            let pages = commit_pages(&store, segment, None, 100).await;
            found.extend(pages.into_iter().flatten());
        }
        assert_all(found, &given);
    }
}

/// A page has at most `max_items` commits, and the commits of one stream are in version order.
pub async fn a_page_has_at_most_max_items_and_streams_in_version_order(store: Store) {
    let stream = fresh_stream();
    given_on(&store, &stream, &[1; 12]).await;
    given_streams(&store, 3).await;
    for max_items in [1, 5, 1000] {
        for page in commit_pages(&store, Segment::ALL, None, max_items).await {
            assert!(page.len() <= max_items as usize, "{} commits", page.len());
            let mut last = BTreeMap::new();
            for commit in &page {
                let before = last.insert(&commit.stream, commit.first_version);
                assert!(
                    before < Some(commit.first_version),
                    "{} out of order",
                    commit.stream
                );
            }
        }
    }
}

/// A scan continues from a cursor that was stored as bytes, at any later time and more than once,
/// and skips nothing.
pub async fn a_scan_continues_from_a_stored_cursor(store: Store) {
    let given = given_streams(&store, 8).await;
    for segment in Segment::split(2) {
        let whole: Vec<_> = commit_pages(&store, segment, None, 100).await.concat();
        let expected = sorted(whole, &given);
        let mut before = Vec::new();
        let mut after: Option<ScanCursor> = None;
        for walked in 0.. {
            assert!(walked < ENDLESS, "the scan does not end");
            let page = page(&store, segment, after, ScanScope::Commits, 4).await;
            after = page.next.clone();
            let mut mine = commits_of(page);
            mine.retain(|commit| given.contains_key(&commit.stream));
            let is_new = !mine.is_empty();
            before.extend(mine);
            let Some(cursor) = &after else { break };
            // The walk continues from each cursor on its way, as after a crash, except where a page
            // had only other tests' commits.
            if is_new {
                let rest = commit_pages(&store, segment, Some(cursor.clone()), 100).await;
                let found = before.iter().cloned().chain(rest.concat());
                assert_eq!(sorted(found, &given), expected, "before and after a cursor");
            }
        }
        assert_eq!(sorted(before, &given), expected, "page by page");
    }
}

/// Commits that others store during a scan neither hide nor repeat what was there before: a cursor
/// is a place, not a number.
pub async fn a_scan_neither_skips_nor_repeats_commits_while_others_append(store: Store) {
    let given = given_streams(&store, 8).await;
    let mut ends: BTreeMap<_, _> = given.iter().map(|(s, c)| (s.clone(), tail(c))).collect();
    let (mut found, mut after) = (Vec::new(), None);
    for walked in 0.. {
        assert!(walked < ENDLESS, "the scan does not end");
        let page = page(&store, Segment::ALL, after, ScanScope::Commits, 3).await;
        after = page.next.clone();
        let is_given = |c: &Commit| given.get(&c.stream).is_some_and(|all| all.contains(c));
        let mine: Vec<_> = commits_of(page).into_iter().filter(is_given).collect();
        // Once per page of ours: to a stream that the scan has passed, and to a new one.
        if let Some(commit) = mine.first() {
            if let Some(end) = ends.get_mut(&commit.stream) {
                *end = must_append(&store, &append_of(end, events(1))).await;
            }
            must_append(
                &store,
                &append_of(&StreamHead::empty(fresh_stream()), events(1)),
            )
            .await;
        }
        found.extend(mine);
        if after.is_none() {
            break;
        }
    }
    assert_all(found, &given);
}

/// A scan of tails returns where every stream ends: the last tail seen of a stream is its tail.
pub async fn a_scan_of_tails_returns_where_streams_end(store: Store) {
    let given = given_streams(&store, 9).await;
    for (total, max_items) in [(1, 1000), (1, 3), (3, 10)] {
        let mut tails: BTreeMap<StreamId, StreamHead> = BTreeMap::new();
        for segment in Segment::split(total) {
            let mut in_segment: BTreeMap<StreamId, StreamHead> = BTreeMap::new();
            let mut after = None;
            for walked in 0.. {
                assert!(walked < ENDLESS, "the scan does not end");
                let page = page(&store, segment, after, ScanScope::Tails, max_items).await;
                let ScanItems::Tails(heads) = page.items else {
                    panic!("a scan of tails returned commits");
                };
                assert!(heads.len() <= max_items as usize, "{} tails", heads.len());
                for head in heads {
                    let before = in_segment.insert(head.stream().clone(), head.clone());
                    let earlier = before.is_none_or(|b| b.version() < head.version());
                    assert!(earlier, "tails of {} go backwards", head.stream());
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            for (stream, head) in in_segment {
                let known = tails.entry(stream).or_insert_with(|| head.clone());
                if known.version() < head.version() {
                    *known = head;
                }
            }
        }
        for (stream, commits) in &given {
            assert_eq!(
                tails.get(stream),
                Some(&tail(commits)),
                "in {total} segments"
            );
        }
    }
}

/// A cursor that no adapter returned is `Invalid`, for a scan and for the list of streams.
pub async fn a_cursor_that_nobody_gave_is_invalid(store: Store) {
    given(&store, &[1]).await;
    for bytes in [b"".as_slice(), b"nonsense", b"{\"pk\":1}", &[0xff; 40]] {
        let cursor = Some(ScanCursor::from_bytes(bytes.to_vec()));
        for what in [ScanScope::Commits, ScanScope::Tails] {
            let max = NonZeroU32::new(10).unwrap();
            assert_invalid(&store.scan(Segment::ALL, cursor.clone(), what, max).await);
        }
        assert_invalid(&store.streams("contract", cursor).await);
    }
}

/// A cursor of another segment, or a scan's cursor given to a list, is `Invalid`.
pub async fn a_cursor_of_another_scan_is_invalid(store: Store) {
    given_streams(&store, 12).await;
    let mut tried = BTreeSet::new();
    for segment in Segment::split(2) {
        let next = page(&store, segment, None, ScanScope::Commits, 1)
            .await
            .next;
        let Some(cursor) = next else { continue };
        tried.insert(segment.index());
        for other in Segment::split(2)
            .chain(Segment::split(3))
            .chain([Segment::ALL])
        {
            if other != segment {
                let max = NonZeroU32::new(10).unwrap();
                let answer = store.scan(other, Some(cursor.clone()), ScanScope::Commits, max);
                assert_invalid(&answer.await);
            }
        }
        assert_invalid(&store.streams("contract", Some(cursor)).await);
    }
    // A dozen streams have more than two commits, so at least one segment has a second page.
    assert!(!tried.is_empty(), "no scan gave a cursor");
}

/// A cursor of a scan for commits is `Invalid` in one for tails, and the other way round.
pub async fn a_cursor_of_a_scan_for_commits_is_invalid_for_tails(store: Store) {
    given_streams(&store, 4).await;
    let (commits, tails) = (ScanScope::Commits, ScanScope::Tails);
    for (what, other) in [(commits, tails), (tails, commits)] {
        let cursor = page(&store, Segment::ALL, None, what, 1).await.next;
        assert!(cursor.is_some(), "a dozen commits are more than a page");
        let max = NonZeroU32::new(10).unwrap();
        assert_invalid(&store.scan(Segment::ALL, cursor, other, max).await);
    }
}
