//! Cases of appends on heads that are not in the stream: above the tail, or of another history.
//!
//! A caller has such a head after the store was restored from a backup. What a store may do with it
//! depends on [`Capabilities::checks_heads`](foldstream::ports::Capabilities::checks_heads). These
//! cases check what must hold in any store.
use super::given::{
    Store, append_of, assert_conflict, assert_history, assert_repeated, brief, commit_after,
    events, foreign, fresh_stream, given, must_append, tail,
};
use foldstream::{
    StreamHead, StreamId, Timestamp, Version,
    adapter::observed_head,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventStoreError, ReadFrom},
};
use futures::StreamExt;

/// Appends on a head that is not in the stream. Returns true if the commit was stored, which is
/// allowed only to a store that does not check heads.
async fn is_stored(store: &Store, append: &Append, tail: Version) -> bool {
    match store.append(append).await.unwrap() {
        AppendOutcome::Appended(head) => {
            assert!(
                !store.capabilities().checks_heads,
                "it checks heads, as it says, and stored a commit on one that is not in the stream"
            );
            assert_eq!(head, append.head_after(), "the new head");
            true
        }
        outcome => {
            assert_conflict(&outcome, &append.head, tail);
            false
        }
    }
}

/// Asserts that a read returns some of these commits from the start on, and then reports the stream
/// as corrupt after `below`, the last sound version.
async fn assert_reported(
    store: &Store,
    stream: &StreamId,
    from: ReadFrom,
    sound: &[Commit],
    below: Version,
) {
    let what = format!("{from:?}");
    let is_exact = matches!(from, ReadFrom::After(_));
    let mut read = store.read(stream, from, None);
    let mut found = Vec::new();
    let error = loop {
        match read.next().await {
            Some(Ok(commit)) => found.push(commit),
            Some(Err(error)) => break error,
            None => panic!(
                "{what}: a read across a hole or an overlap ended after {} commits",
                found.len()
            ),
        }
    };
    let EventStoreError::Corrupt {
        stream: named,
        after,
        ..
    } = &error
    else {
        panic!("{what}: expected Corrupt, found {error:?}");
    };
    assert_eq!(named, stream, "the stream of the damage");
    // A read that goes backwards may not have looked at what is below the damage.
    assert!(
        *after == below || !is_exact && *after < below,
        "{what}: corrupt after {after}, though it is sound up to {below}"
    );
    assert!(sound.starts_with(&found), "{what}: {found:?}");
}

async fn assert_sound_part(store: &Store, stream: &StreamId, commits: &[Commit]) {
    let limit = u32::try_from(commits.len()).ok();
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    let found = super::given::read(store, stream, start, limit).await;
    assert_eq!(found, commits, "what was there before");
}

/// A head above the tail is a conflict, or leaves a hole that every read across it reports.
///
/// The commits before the hole are read as before, and the stream can be extended after them.
pub async fn a_head_above_the_tail_is_a_conflict_or_leaves_a_hole_that_reads_report(store: Store) {
    for lengths in [&[1, 2][..], &[]] {
        let (stream, mut commits) = given(&store, lengths).await;
        let last = commits.last().map_or(Version::NONE, Commit::last_version);
        let append = commit_after(&foreign(&stream, last.get() + 5), 2);
        if !is_stored(&store, &append, last).await {
            assert_history(&store, &stream, &commits).await;
            continue;
        }
        let empty = StreamHead::empty(stream.clone());
        for _ in 0..2 {
            let start = ReadFrom::After(empty.clone());
            let below = commits.last().map_or(Version::NONE, Commit::last_version);
            assert_reported(&store, &stream, start, &commits, below).await;
            let newest = [append.to_commit()];
            assert_reported(&store, &stream, ReadFrom::Newest, &newest, below).await;
            assert_repeated(&store.append(&append).await.unwrap(), &newest);
            // The tail has not moved, so the next commit goes there.
            let head = commits.last().map_or_else(|| empty.clone(), Commit::head);
            let next = commit_after(&head, 1);
            must_append(&store, &next).await;
            commits.push(next.to_commit());
            assert_sound_part(&store, &stream, &commits).await;
        }
    }
}

/// A head of another commit at the tail's version is a conflict, or the new commit follows on the
/// tail. No version is used twice, and none is left out.
pub async fn a_head_of_another_history_is_a_conflict_or_extends_the_stream(store: Store) {
    let (stream, mut commits) = given(&store, &[1, 2]).await;
    let append = commit_after(&foreign(&stream, 3), 2);
    if is_stored(&store, &append, Version::new(3)).await {
        commits.push(append.to_commit());
    }
    assert_history(&store, &stream, &commits).await;
    must_append(&store, &commit_after(&tail(&commits), 1)).await;
}

/// A head of another history is a conflict in every store if its next version is taken.
pub async fn a_head_of_another_history_before_the_tail_is_a_conflict(store: Store) {
    let (stream, commits) = given(&store, &[1, 2, 1]).await;
    for version in [1, 3] {
        let append = commit_after(&foreign(&stream, version), 1);
        let outcome = store.append(&append).await.unwrap();
        assert_conflict(&outcome, &append.head, Version::new(4));
    }
    assert_history(&store, &stream, &commits).await;
}

/// A head at a version within a commit is a conflict, or leaves an overlap that every read across
/// it reports.
pub async fn a_head_within_a_commit_is_a_conflict_or_an_overlap_that_reads_report(store: Store) {
    let (stream, commits) = given(&store, &[1, 3]).await;
    let append = commit_after(&foreign(&stream, 2), 1);
    if !is_stored(&store, &append, Version::new(4)).await {
        assert_history(&store, &stream, &commits).await;
        return;
    }
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    assert_reported(&store, &stream, start, &commits, Version::new(4)).await;
    assert_sound_part(&store, &stream, &commits[..1]).await;
}

/// A head whose version and commit id are those of the tail is the tail, whatever its time: a
/// caller may not know it.
pub async fn the_time_of_a_head_does_not_count(store: Store) {
    let (stream, mut commits) = given(&store, &[1, 2]).await;
    let timeless = |head: StreamHead| {
        let id = head.commit_id().unwrap();
        observed_head(
            stream.clone(),
            head.version(),
            id,
            Timestamp::from_micros(0),
        )
    };
    let append = commit_after(&timeless(tail(&commits)), 2);
    must_append(&store, &append).await;
    commits.push(append.to_commit());
    assert_history(&store, &stream, &commits).await;
    assert_repeated(&store.append(&append).await.unwrap(), &[append.to_commit()]);
    let found = super::given::read(
        &store,
        &stream,
        ReadFrom::After(timeless(commits[0].head())),
        None,
    );
    assert_eq!(found.await, commits[1..], "a read after such a head");
}

/// A stream that is only checked, at a head above its tail, is a conflict if the store checks
/// heads. Otherwise the check may pass, and the checked stream does not change.
pub async fn a_checked_head_above_the_tail_lets_nothing_pass_where_heads_are_checked(store: Store) {
    let (stream, commits) = given(&store, &[1, 2]).await;
    let append = append_of(&StreamHead::empty(fresh_stream()), events(1));
    let above = foreign(&stream, 7);
    let all = AppendAll::new(vec![append.clone()]).with_unchanged(vec![above.clone()]);
    let stored = match store.append_all(&all).await.unwrap() {
        AppendOutcome::Appended(_) if !store.capabilities().checks_heads => {
            vec![append.to_commit()]
        }
        AppendOutcome::Conflict(conflict) => {
            let outcome: AppendOutcome = AppendOutcome::Conflict(conflict);
            assert_conflict(&outcome, &above, Version::new(3));
            Vec::new()
        }
        other => panic!("found {}", brief(&other)),
    };
    assert_history(&store, append.head.stream(), &stored).await;
    assert_history(&store, &stream, &commits).await;
}
