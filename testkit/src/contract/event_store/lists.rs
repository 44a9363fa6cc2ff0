//! Cases of lists that may lag: streams of a type, and commits that are not published yet.
use super::given::{
    Store, assert_history, assert_invalid, fresh_stream, fresh_type, given, given_on, signed_by,
    stream,
};
use crate::contract::support::{ENDLESS, eventually, unique};
use foldstream::{
    StreamHead, StreamId, Version,
    ports::{
        AppendAll, AppendOutcome, Commit, CommitKey, EventStoreError, RefusedKind, ScanCursor,
        ScanScope, Segment,
    },
};
use std::{collections::BTreeSet, num::NonZeroU32};

fn stored(cursor: Option<ScanCursor>) -> Option<ScanCursor> {
    cursor.map(|c| ScanCursor::from_bytes(c.as_bytes().to_vec()))
}

/// Returns all pages of the list of streams, joined.
async fn listed_streams(store: &Store, aggregate: &str) -> Vec<StreamId> {
    let (mut all, mut after) = (Vec::new(), None);
    for walked in 0.. {
        assert!(walked < ENDLESS, "the list does not end");
        let page = store.streams(aggregate, after).await.unwrap();
        all.extend(page.streams);
        after = stored(page.next);
        if after.is_none() {
            break;
        }
    }
    all
}

/// The list of streams of a type eventually contains all of them, each once, however many commits
/// it has.
pub async fn streams_come_to_list_every_stream_of_the_type(store: Store) {
    let aggregate = fresh_type();
    let mut expected = BTreeSet::new();
    for n in 0..30 {
        let id = stream(&aggregate, &format!("größe #{n}"));
        given_on(&store, &id, if n % 10 == 0 { &[2, 1, 1] } else { &[1] }).await;
        expected.insert(id);
    }
    eventually("every stream is listed", || async {
        let listed = listed_streams(&store, &aggregate).await;
        let found: BTreeSet<_> = listed.iter().cloned().collect();
        assert_eq!(found.len(), listed.len(), "a stream is listed twice");
        let missing = expected.difference(&found).count();
        assert_eq!(found.difference(&expected).next(), None, "not of this type");
        if missing == 0 {
            Ok(())
        } else {
            Err(format!("{missing} are missing"))
        }
    })
    .await;
}

/// Streams of other types are not listed, even if one type's name begins like another's.
pub async fn streams_of_other_types_are_not_listed(store: Store) {
    let aggregate = format!("t-{}", unique().replace('-', ""));
    let types = [
        &aggregate[..aggregate.len() - 1],
        &aggregate,
        &format!("{aggregate}1"),
    ];
    let ids: Vec<_> = types.iter().map(|t| stream(t, "1")).collect();
    for id in &ids {
        given_on(&store, id, &[1]).await;
    }
    for (aggregate, id) in types.iter().zip(&ids) {
        eventually("the stream of the type is listed", || async {
            let listed = listed_streams(&store, aggregate).await;
            let foreign = listed.iter().find(|s| *s != id);
            assert_eq!(foreign, None, "listed as a stream of {aggregate}");
            if listed.len() == 1 {
                Ok(())
            } else {
                Err("not yet listed".into())
            }
        })
        .await;
    }
    assert_eq!(
        listed_streams(&store, &fresh_type()).await,
        [],
        "an unknown type"
    );
}

/// An adapter that declares the list of unpublished commits says so in its capabilities.
pub async fn a_declared_list_of_unpublished_commits_is_in_the_capabilities(store: Store) {
    assert!(store.capabilities().lists_unpublished);
}

/// Returns all pages of a segment's unpublished commits.
async fn unpublished_pages(store: &Store, segment: Segment, limit: u32) -> Vec<Vec<CommitKey>> {
    let (mut pages, mut after) = (Vec::new(), None);
    let limit = NonZeroU32::new(limit).unwrap();
    loop {
        let page = store.unpublished(segment, after, limit).await.unwrap();
        pages.push(page.keys);
        assert!(pages.len() < ENDLESS, "the list does not end");
        after = stored(page.next);
        if after.is_none() {
            return pages;
        }
    }
}

/// Returns the commits of these streams that are listed as unpublished.
async fn unpublished(store: &Store, streams: &[&StreamId]) -> Vec<CommitKey> {
    let mut keys = unpublished_pages(store, Segment::ALL, 100).await.concat();
    keys.retain(|key| streams.contains(&&key.stream));
    keys.sort();
    keys
}

/// Waits until exactly these commits of the streams are listed.
async fn assert_unpublished(store: &Store, streams: &[&StreamId], expected: &[CommitKey]) {
    let mut expected = expected.to_vec();
    expected.sort();
    eventually("the list of unpublished commits", || async {
        let found = unpublished(store, streams).await;
        if found == expected {
            Ok(())
        } else {
            Err(format!("found {found:?}, expected {expected:?}"))
        }
    })
    .await;
}

fn keys(commits: &[Commit]) -> Vec<CommitKey> {
    commits.iter().map(Commit::key).collect()
}

/// A stored commit is listed until it is cleared.
pub async fn a_stored_commit_is_unpublished_until_it_is_cleared(store: Store) {
    let (stream, commits) = given(&store, &[1, 3, 2]).await;
    let keys = keys(&commits);
    assert_unpublished(&store, &[&stream], &keys).await;
    store.clear_unpublished(&keys[..1]).await.unwrap();
    assert_unpublished(&store, &[&stream], &keys[1..]).await;
    store.clear_unpublished(&keys).await.unwrap();
    assert_unpublished(&store, &[&stream], &[]).await;
    // Clearing does not affect the stream: its next commit is listed again.
    let next = signed_by(&commits[2].head(), 1);
    super::given::must_append(&store, &next).await;
    assert_unpublished(&store, &[&stream], &[next.to_commit().key()]).await;
}

/// Clearing changes nothing else: neither the entries of other commits nor what is stored.
pub async fn clearing_touches_nothing_else(store: Store) {
    let (one, first) = given(&store, &[1, 2, 1]).await;
    let (two, second) = given(&store, &[1, 2, 1]).await;
    let (mut left, other) = (keys(&first), keys(&second));
    assert_unpublished(
        &store,
        &[&one, &two],
        &[left.clone(), other.clone()].concat(),
    )
    .await;
    let cleared = left.remove(1);
    store.clear_unpublished(&[cleared]).await.unwrap();
    left.extend(other);
    assert_unpublished(&store, &[&one, &two], &left).await;
    assert_history(&store, &one, &first).await;
    assert_history(&store, &two, &second).await;
}

/// Clearing an unknown or cleared key, or no key at all, does nothing. In particular it creates no
/// commit.
pub async fn clearing_an_unknown_or_cleared_key_does_nothing(store: Store) {
    let (stream, commits) = given(&store, &[2, 1]).await;
    let unknown = fresh_stream();
    let keys = keys(&commits);
    assert_unpublished(&store, &[&stream], &keys).await;
    store.clear_unpublished(&keys[..1]).await.unwrap();
    let nothing = [
        keys[0].clone(),
        CommitKey::new(stream.clone(), Version::new(2)),
        CommitKey::new(stream.clone(), Version::new(4)),
        CommitKey::new(unknown.clone(), Version::new(1)),
    ];
    store.clear_unpublished(&nothing).await.unwrap();
    store.clear_unpublished(&nothing).await.unwrap();
    store.clear_unpublished(&[]).await.unwrap();
    assert_unpublished(&store, &[&stream, &unknown], &keys[1..]).await;
    assert_history(&store, &stream, &commits).await;
    assert_history(&store, &unknown, &[]).await;
    // The slots of the cleared keys are still free.
    let next = signed_by(&commits[1].head(), 1);
    super::given::must_append(&store, &next).await;
    super::given::must_append(&store, &signed_by(&StreamHead::empty(unknown), 1)).await;
}

/// One call can clear any number of keys.
pub async fn many_keys_are_cleared_in_one_call(store: Store) {
    let (stream, commits) = given(&store, &[1; 40]).await;
    let keys = keys(&commits);
    assert_unpublished(&store, &[&stream], &keys).await;
    store.clear_unpublished(&keys[..35]).await.unwrap();
    assert_unpublished(&store, &[&stream], &keys[35..]).await;
}

/// A page has at most `limit` keys, with those of one stream next to each other, and its cursor can
/// be stored.
pub async fn unpublished_commits_come_in_pages_by_stream(store: Store) {
    let (one, first) = given(&store, &[1; 5]).await;
    let (two, second) = given(&store, &[1; 4]).await;
    let all = [keys(&first), keys(&second)].concat();
    assert_unpublished(&store, &[&one, &two], &all).await;
    for limit in [1, 2, 4, 1000] {
        let pages = unpublished_pages(&store, Segment::ALL, limit).await;
        for page in &pages {
            assert!(page.len() <= limit as usize, "{} keys", page.len());
            let mut streams: Vec<_> = page.iter().map(|key| &key.stream).collect();
            streams.dedup();
            let distinct: BTreeSet<_> = streams.iter().collect();
            assert_eq!(
                distinct.len(),
                streams.len(),
                "a stream comes twice in a page"
            );
        }
        let mut found = pages.concat();
        found.retain(|key| key.stream == one || key.stream == two);
        let distinct: BTreeSet<_> = found.iter().cloned().collect();
        assert_eq!(distinct.len(), found.len(), "a key comes twice");
        assert_eq!(distinct, all.iter().cloned().collect(), "pages of {limit}");
    }
}

/// A walk that goes from stream to stream visits each stream on one page, and leaves none out.
pub async fn a_walk_from_stream_to_stream_visits_each_once(store: Store) {
    let (one, first) = given(&store, &[1; 5]).await;
    let (two, second) = given(&store, &[1; 4]).await;
    let (three, third) = given(&store, &[1]).await;
    let all = [keys(&first), keys(&second), keys(&third)].concat();
    let streams = [&one, &two, &three];
    assert_unpublished(&store, &streams, &all).await;
    for limit in [1, 2, 3, 1000] {
        let limit = NonZeroU32::new(limit).unwrap();
        let (mut visited, mut after) = (Vec::new(), None);
        for walked in 0.. {
            assert!(walked < ENDLESS, "the list does not end");
            let page = store.unpublished(Segment::ALL, after, limit).await.unwrap();
            assert!(
                page.keys.is_empty() || page.next.is_some() == page.next_stream.is_some(),
                "a page has both cursors or none"
            );
            let mut found: Vec<_> = page.keys.into_iter().map(|key| key.stream).collect();
            found.dedup();
            visited.extend(found.into_iter().filter(|s| streams.contains(&s)));
            after = stored(page.next_stream.or(page.next));
            if after.is_none() {
                break;
            }
        }
        visited.sort();
        let mut expected: Vec<_> = streams.into_iter().cloned().collect();
        expected.sort();
        assert_eq!(visited, expected, "pages of {limit}");
    }
}

/// Commits that are cleared during a walk hide no others: a cursor is a place, not a number.
pub async fn commits_cleared_during_a_walk_hide_no_others(store: Store) {
    let (one, first) = given(&store, &[1; 7]).await;
    let (two, second) = given(&store, &[1; 6]).await;
    let mut all = [keys(&first), keys(&second)].concat();
    assert_unpublished(&store, &[&one, &two], &all).await;
    let (mut found, mut after) = (Vec::new(), None);
    let limit = NonZeroU32::new(3).unwrap();
    for walked in 0.. {
        assert!(walked < ENDLESS, "the list does not end");
        let page = store.unpublished(Segment::ALL, after, limit).await.unwrap();
        let is_mine = |key: &CommitKey| key.stream == one || key.stream == two;
        let mine: Vec<_> = page.keys.into_iter().filter(is_mine).collect();
        store.clear_unpublished(&mine).await.unwrap();
        found.extend(mine);
        after = stored(page.next);
        if after.is_none() {
            break;
        }
    }
    found.sort();
    all.sort();
    assert_eq!(found, all, "listed by a walk that clears what it finds");
    assert_unpublished(&store, &[&one, &two], &[]).await;
}

/// Each unpublished commit is listed in exactly one segment.
pub async fn each_unpublished_commit_is_in_exactly_one_segment(store: Store) {
    let mut all = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..8 {
        let (stream, commits) = given(&store, &[1, 1]).await;
        all.extend(keys(&commits));
        streams.push(stream);
    }
    let streams: Vec<_> = streams.iter().collect();
    assert_unpublished(&store, &streams, &all).await;
    all.sort();
    for total in [2, 5] {
        let mut found = Vec::new();
        for segment in Segment::split(total) {
            found.extend(unpublished_pages(&store, segment, 3).await.concat());
        }
        found.retain(|key| streams.contains(&&key.stream));
        found.sort();
        assert_eq!(found, all, "in {total} segments");
    }
}

/// A cursor of another list is `Invalid`.
pub async fn a_cursor_that_is_not_the_unpublished_lists_is_invalid(store: Store) {
    let limit = NonZeroU32::new(10).unwrap();
    for bytes in [b"".as_slice(), b"nonsense", &[0xff; 40]] {
        let cursor = ScanCursor::from_bytes(bytes.to_vec());
        assert_invalid(&store.unpublished(Segment::ALL, Some(cursor), limit).await);
    }
}

/// A cursor of a scan is `Invalid` for the list of unpublished commits, and the other way round. A
/// cursor of this list is `Invalid` for another segment, and for the list of streams.
pub async fn cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up(store: Store) {
    let (stream, commits) = given(&store, &[1; 4]).await;
    assert_unpublished(&store, &[&stream], &keys(&commits)).await;
    let (one, all) = (NonZeroU32::MIN, Segment::ALL);
    let listed = store.unpublished(all, None, one).await.unwrap().next;
    assert!(listed.is_some(), "four commits are more than a page");
    assert_invalid(&store.streams("contract", listed.clone()).await);
    for other in Segment::split(2) {
        assert_invalid(&store.unpublished(other, listed.clone(), one).await);
    }
    for what in [ScanScope::Commits, ScanScope::Tails] {
        let scanned = store.scan(all, None, what, one).await.unwrap().next;
        assert!(scanned.is_some(), "four commits are more than a page");
        assert_invalid(&store.unpublished(all, scanned, one).await);
        assert_invalid(&store.scan(all, listed.clone(), what, one).await);
    }
}

/// The commits of an atomic append are listed as unpublished, each on its own.
pub async fn commits_of_an_atomic_append_are_unpublished(store: Store) {
    let one = signed_by(&StreamHead::empty(fresh_stream()), 1);
    let two = signed_by(&StreamHead::empty(fresh_stream()), 2);
    let all = AppendAll::new(vec![one.clone(), two.clone()]);
    let outcome = store.append_all(&all).await.unwrap();
    assert!(matches!(outcome, AppendOutcome::Appended(_)));
    let keys = [one.to_commit().key(), two.to_commit().key()];
    let streams = [one.head.stream(), two.head.stream()];
    assert_unpublished(&store, &streams, &keys).await;
    store.clear_unpublished(&keys[..1]).await.unwrap();
    assert_unpublished(&store, &streams, &keys[1..]).await;
}

/// An adapter that does not declare the list of unpublished commits says so in its capabilities,
/// and refuses the list as `Unsupported`.
pub async fn an_undeclared_list_of_unpublished_commits_is_unsupported(store: Store) {
    given(&store, &[1]).await;
    assert!(!store.capabilities().lists_unpublished);
    let limit = NonZeroU32::new(10).unwrap();
    let answer = store.unpublished(Segment::ALL, None, limit).await;
    let refused = matches!(
        &answer,
        Err(EventStoreError::Refused { kind, .. }) if *kind == RefusedKind::Unsupported
    );
    assert!(refused, "expected Refused(Unsupported), found {answer:?}");
}
