//! Cases of reads of one stream.
use super::given::{
    Store, append_of, assert_commits, assert_history, assert_invalid, commit_after, foreign,
    fresh_stream, given, given_on, large_event, must_append, read, stream, tail, try_read,
};
use crate::contract::support::unique;
use foldstream::{
    StreamHead, StreamId, Version,
    ports::{Commit, EventData, EventStoreError, ReadFrom},
};
use futures::TryStreamExt;

/// The lengths of the commits that most cases read. They end at 1, 4, 5, 7 and 11.
const LENGTHS: [usize; 5] = [1, 3, 1, 2, 4];

fn reversed(commits: &[Commit]) -> Vec<Commit> {
    commits.iter().rev().cloned().collect()
}

/// Every acknowledged commit is seen by every later read, whatever its direction and start.
pub async fn every_acknowledged_commit_is_seen_by_every_later_read(store: Store) {
    let stream = fresh_stream();
    let mut head = StreamHead::empty(stream.clone());
    for _ in 0..15 {
        let append = commit_after(&head, 2);
        let (before, written) = (head.clone(), [append.to_commit()]);
        // The stream is absent at this moment. A cached answer would be stale afterwards.
        let from = ReadFrom::After(before.clone());
        assert_commits(
            "before",
            &read(&store, &stream, from.clone(), None).await,
            &[],
        );
        head = must_append(&store, &append).await;
        assert_commits("after", &read(&store, &stream, from, None).await, &written);
        for from in [
            ReadFrom::Event(head.version()),
            ReadFrom::Newest,
            ReadFrom::NewestAtOrBelow(head.version()),
        ] {
            let what = format!("{from:?}");
            assert_commits(&what, &read(&store, &stream, from, Some(1)).await, &written);
        }
    }
}

/// A read does nothing before its first poll, and then returns everything that was acknowledged
/// before.
pub async fn a_read_is_current_as_of_its_first_poll(store: Store) {
    let (stream, mut commits) = given(&store, &[1, 2]).await;
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    let forwards = store.read(&stream, start, None);
    let event = store.read(&stream, ReadFrom::Event(Version::new(1)), None);
    let backwards = store.read(&stream, ReadFrom::Newest, None);
    let append = commit_after(&tail(&commits), 2);
    must_append(&store, &append).await;
    commits.push(append.to_commit());
    for (what, read, expected) in [
        ("forwards", forwards, commits.clone()),
        ("from an event", event, commits.clone()),
        ("backwards", backwards, reversed(&commits)),
    ] {
        let found: Vec<_> = read.try_collect().await.unwrap();
        assert_commits(what, &found, &expected);
    }
}

/// A read reaches the tail however many pages that takes: here about 2 MB, in both directions and
/// from the middle.
pub async fn a_history_of_many_pages_is_read_to_the_tail(store: Store) {
    const COMMITS: usize = 36;
    // Three such events are one commit, which must fit a store whose limit is small.
    let bytes = (store.capabilities().max_commit_bytes / 6).min(20_000);
    let stream = fresh_stream();
    let mut head = StreamHead::empty(stream.clone());
    let mut commits = Vec::new();
    for n in 0..COMMITS {
        let small = EventData::new("Small", 1, format!(r#"{{"commit":{n}}}"#));
        let append = append_of(&head, [large_event(bytes), small, large_event(2 * bytes)]);
        head = must_append(&store, &append).await;
        commits.push(append.to_commit());
    }
    assert_history(&store, &stream, &commits).await;
    let backwards = read(&store, &stream, ReadFrom::Newest, None).await;
    assert_commits("backwards", &backwards, &reversed(&commits));
    let after_two = ReadFrom::After(commits[1].head());
    let found = read(&store, &stream, after_two, None).await;
    assert_commits("after the second", &found, &commits[2..]);
    let found = read(&store, &stream, ReadFrom::Event(Version::new(5)), None).await;
    assert_commits("from event 5", &found, &commits[1..]);
    let below = ReadFrom::NewestAtOrBelow(commits[COMMITS - 2].last_version());
    let found = read(&store, &stream, below, None).await;
    assert_commits("below", &found, &reversed(&commits[..COMMITS - 1]));
    let limited = read(&store, &stream, ReadFrom::Newest, Some(30)).await;
    assert_commits("limited", &limited, &reversed(&commits[COMMITS - 30..]));
}

/// A history of many small commits is read to the tail.
pub async fn a_history_of_many_commits_is_read_to_the_tail(store: Store) {
    let (stream, commits) = given(&store, &[1; 130]).await;
    assert_history(&store, &stream, &commits).await;
    let backwards = read(&store, &stream, ReadFrom::Newest, None).await;
    assert_commits("backwards", &backwards, &reversed(&commits));
}

/// An unknown stream is empty in every direction and from every start.
pub async fn an_unknown_stream_is_empty(store: Store) {
    let stream = fresh_stream();
    for from in [
        ReadFrom::After(StreamHead::empty(stream.clone())),
        ReadFrom::Event(Version::NONE),
        ReadFrom::Event(Version::new(7)),
        ReadFrom::Newest,
        ReadFrom::NewestAtOrBelow(Version::new(7)),
    ] {
        let what = format!("{from:?}");
        assert_commits(&what, &read(&store, &stream, from.clone(), None).await, &[]);
        assert_commits(&what, &read(&store, &stream, from, Some(1)).await, &[]);
    }
}

/// A read after the tail, or below the end of the first commit, is empty.
pub async fn a_read_of_what_is_not_there_is_empty(store: Store) {
    let (stream, commits) = given(&store, &[3, 1]).await;
    for from in [
        ReadFrom::After(tail(&commits)),
        ReadFrom::Event(Version::new(5)),
        ReadFrom::Event(Version::new(u64::from(u32::MAX))),
        ReadFrom::NewestAtOrBelow(Version::NONE),
        ReadFrom::NewestAtOrBelow(Version::new(2)),
    ] {
        let what = format!("{from:?}");
        assert_commits(&what, &read(&store, &stream, from, None).await, &[]);
    }
}

/// `After` reads oldest first, from the commit right after the head, or from the beginning after an
/// empty head.
pub async fn after_reads_from_the_commit_after_the_head(store: Store) {
    let (stream, commits) = given(&store, &LENGTHS).await;
    assert_history(&store, &stream, &commits).await;
    for (i, commit) in commits.iter().enumerate() {
        let found = read(&store, &stream, ReadFrom::After(commit.head()), None).await;
        assert_commits(
            &format!("after {}", commit.last_version()),
            &found,
            &commits[i + 1..],
        );
    }
}

/// After a version within a commit a read returns nothing: it would leave events out. It is
/// `Corrupt` if more commits follow; after the last commit, and above the tail, it may be empty.
pub async fn a_read_after_a_version_within_a_commit_leaves_nothing_out(store: Store) {
    let (stream, _) = given(&store, &LENGTHS).await;
    // The commits end at 1, 4, 5, 7 and 11.
    for version in [2, 3, 6, 8, 10] {
        let from = ReadFrom::After(foreign(&stream, version));
        match try_read(&store, &stream, from, None).await {
            Err(EventStoreError::Corrupt { stream: named, .. }) => assert_eq!(named, stream),
            Ok(found) if version > 7 => assert_commits("within the last commit", &found, &[]),
            other => panic!("after {version}: expected Corrupt, found {other:?}"),
        }
    }
    for version in [12, 1000] {
        let from = ReadFrom::After(foreign(&stream, version));
        let found = read(&store, &stream, from, None).await;
        assert_commits("above the tail", &found, &[]);
    }
}

/// After a head of another history a read returns what follows its version: commit id and time of a
/// head do not count.
pub async fn a_read_after_a_head_of_another_history_starts_at_its_version(store: Store) {
    let (stream, commits) = given(&store, &LENGTHS).await;
    for (i, commit) in commits.iter().enumerate() {
        let version = commit.last_version();
        let from = ReadFrom::After(foreign(&stream, version.get()));
        let found = read(&store, &stream, from, None).await;
        assert_commits(&format!("after {version}"), &found, &commits[i + 1..]);
    }
}

/// A head of another stream is `Invalid`, whether or not the streams exist.
pub async fn a_read_after_a_head_of_another_stream_is_invalid(store: Store) {
    let (one, commits) = given(&store, &[1, 2]).await;
    let (two, other) = (given(&store, &[1, 2]).await.0, fresh_stream());
    for (stream, head) in [
        (&two, commits[0].head()),
        (&other, commits[0].head()),
        (&one, StreamHead::empty(other.clone())),
    ] {
        let answer = try_read(&store, stream, ReadFrom::After(head), None).await;
        assert_invalid(&answer);
    }
}

/// `Event` reads oldest first, from the whole commit that contains the version. 0 counts as 1.
pub async fn event_reads_from_the_commit_that_holds_the_version(store: Store) {
    let (stream, commits) = given(&store, &LENGTHS).await;
    for version in 0..=11 {
        let version = Version::new(version);
        let holds = commits.iter().position(|c| c.last_version() >= version);
        let found = read(&store, &stream, ReadFrom::Event(version), None).await;
        assert_commits(
            &format!("from {version}"),
            &found,
            &commits[holds.unwrap()..],
        );
    }
}

/// `Newest` reads newest first, from the tail to the beginning. Events within a commit keep their
/// order.
pub async fn newest_reads_backwards_from_the_tail(store: Store) {
    let (stream, commits) = given(&store, &LENGTHS).await;
    let found = read(&store, &stream, ReadFrom::Newest, None).await;
    assert_commits("backwards", &found, &reversed(&commits));
}

/// `NewestAtOrBelow` reads newest first, from the newest commit that ends at or below the version.
pub async fn newest_at_or_below_reads_backwards_from_a_commit_end(store: Store) {
    let (stream, commits) = given(&store, &LENGTHS).await;
    for version in [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 1000] {
        let version = Version::new(version);
        let ended = commits
            .iter()
            .filter(|c| c.last_version() <= version)
            .count();
        let found = read(&store, &stream, ReadFrom::NewestAtOrBelow(version), None).await;
        assert_commits(
            &format!("at or below {version}"),
            &found,
            &reversed(&commits[..ended]),
        );
    }
}

/// `limit` counts commits and not events, from every start. A limit beyond the end is not an error.
pub async fn a_limit_counts_commits(store: Store) {
    let (stream, commits) = given(&store, &LENGTHS).await;
    let backwards = reversed(&commits);
    let inside = Version::new(3);
    for limit in [1usize, 2, 3, 4, 5, 6, 1000] {
        let first = |commits: &[Commit]| commits[..limit.min(commits.len())].to_vec();
        for (from, expected) in [
            (
                ReadFrom::After(StreamHead::empty(stream.clone())),
                first(&commits),
            ),
            (ReadFrom::After(commits[0].head()), first(&commits[1..])),
            (ReadFrom::Event(inside), first(&commits[1..])),
            (ReadFrom::Newest, first(&backwards)),
            (
                ReadFrom::NewestAtOrBelow(Version::new(10)),
                first(&backwards[1..]),
            ),
        ] {
            let what = format!("{limit} of {from:?}");
            let found = read(&store, &stream, from, Some(limit as u32)).await;
            assert_commits(&what, &found, &expected);
        }
    }
}

/// Streams whose ids are prefixes of each other are not mixed up in any kind of read.
pub async fn streams_whose_ids_are_prefixes_are_not_mixed_up(store: Store) {
    let name = unique();
    let kind = format!("t-{}", &name[name.len() - 12..]);
    let ids: Vec<StreamId> = ["", "#", "#1", "1", "10", " ", "/1"]
        .iter()
        .map(|end| stream(&kind, &format!("{name}{end}")))
        .chain([
            stream(&format!("{kind}1"), &name),
            stream(&format!("{kind}-"), &name),
        ])
        .collect();
    let mut written = Vec::new();
    for (n, id) in ids.iter().enumerate() {
        written.push(given_on(&store, id, &[n % 3 + 1, 1, n + 1]).await);
    }
    for (id, commits) in ids.iter().zip(&written) {
        assert_history(&store, id, commits).await;
        let found = read(&store, id, ReadFrom::Newest, None).await;
        assert_commits(&format!("{id} backwards"), &found, &reversed(commits));
        let found = read(&store, id, ReadFrom::After(tail(commits)), None).await;
        assert_commits(&format!("after {id}"), &found, &[]);
        let found = read(&store, id, ReadFrom::Event(Version::new(100)), None).await;
        assert_commits(&format!("event 100 of {id}"), &found, &[]);
        let below = ReadFrom::NewestAtOrBelow(Version::NONE);
        assert_commits(
            &format!("below {id}"),
            &read(&store, id, below, None).await,
            &[],
        );
    }
}
