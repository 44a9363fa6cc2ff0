//! Cases of atomic appends to several streams.
use super::append::large_events;
use super::given::{
    Store, append_all_settled, append_of, assert_conflict, assert_history, assert_invalid,
    assert_repeated, brief, commit_after, fresh_stream, given, given_on, large_event, must_append,
    signed_by, stream, tail,
};
use crate::contract::support::{at_once, drop_midway, eventually, unique};
use foldstream::{
    StreamHead, Version,
    ports::{Append, AppendAll, AppendOutcome, EventData, EventStoreError, RefusedKind},
};
use std::fmt::Debug;

/// Returns the heads of two streams that do not exist yet.
fn two_empty() -> (StreamHead, StreamHead) {
    (
        StreamHead::empty(fresh_stream()),
        StreamHead::empty(fresh_stream()),
    )
}

async fn assert_untouched(store: &Store, appends: &[&Append]) {
    for append in appends {
        assert_history(store, append.head.stream(), &[]).await;
    }
}

/// An adapter that declares atomic appends says so in its capabilities.
pub async fn a_declared_atomic_append_is_in_the_capabilities(store: Store) {
    let streams = store.capabilities().max_streams_per_append;
    assert!(streams > 1, "max_streams_per_append is {streams}");
}

/// All commits are stored, and the heads come back in the order of the request.
pub async fn all_commits_are_stored_and_heads_come_in_the_order_of_the_request(store: Store) {
    let name = unique();
    // The order is neither that of the names nor its reverse.
    let appends = ["b", "c", "a"].map(|part| {
        let id = stream("contract", &format!("{name}-{part}"));
        commit_after(&StreamHead::empty(id), part.len() + 1)
    });
    let all = AppendAll::new(appends.to_vec());
    let AppendOutcome::Appended(heads) = store.append_all(&all).await.unwrap() else {
        panic!("not appended");
    };
    assert_eq!(heads, appends.each_ref().map(Append::head_after));
    for append in appends {
        assert_history(&store, append.head.stream(), &[append.to_commit()]).await;
    }
}

/// One stale head anywhere in the request prevents all commits, and the conflict names its stream.
pub async fn one_stale_head_stores_none(store: Store) {
    let (moved, commits) = given(&store, &[1, 2]).await;
    for place in 0..3 {
        let stale = signed_by(&commits[0].head(), 1);
        let mut appends = vec![
            signed_by(&StreamHead::empty(fresh_stream()), 2),
            signed_by(&StreamHead::empty(fresh_stream()), 3),
        ];
        let good = appends.clone();
        appends.insert(place, stale.clone());
        let outcome = store.append_all(&AppendAll::new(appends)).await.unwrap();
        assert_conflict(&outcome, &stale.head, Version::new(3));
        assert_untouched(&store, &[&good[0], &good[1]]).await;
    }
    assert_history(&store, &moved, &commits).await;
}

/// Of several streams that have moved any one is named, and never one that has not.
pub async fn of_several_conflicts_a_stream_that_moved_is_named(store: Store) {
    let (one, first) = given(&store, &[1, 2]).await;
    let (two, second) = given(&store, &[2, 1]).await;
    let (three, third) = given(&store, &[1, 1]).await;
    let fresh = signed_by(&two_empty().0, 1);
    let moved = [&first, &second].map(|commits| signed_by(&commits[0].head(), 2));
    for place in 0..3 {
        let mut appends = moved.to_vec();
        appends.insert(place, fresh.clone());
        let unmoved = two_empty().0;
        let checked = vec![unmoved, third[0].head()];
        let all = AppendAll::new(appends).with_unchanged(checked);
        let AppendOutcome::Conflict(conflict) = store.append_all(&all).await.unwrap() else {
            panic!("three streams have moved, and there is no conflict");
        };
        let named = [&one, &two, &three].contains(&&conflict.stream);
        assert!(named, "{} has not moved", conflict.stream);
    }
    assert_untouched(&store, &[&fresh]).await;
    for (stream, commits) in [(one, first), (two, second), (three, third)] {
        assert_history(&store, &stream, &commits).await;
    }
}

/// Commits of which only some are stored already are a conflict on a stream of those, and the
/// others are not stored.
pub async fn commits_of_which_only_some_are_stored_are_a_conflict(store: Store) {
    for place in 0..3 {
        let stored = signed_by(&two_empty().0, 1);
        must_append(&store, &stored).await;
        let others = [2, 3].map(|writer| signed_by(&two_empty().0, writer));
        let mut appends = others.to_vec();
        appends.insert(place, stored.clone());
        let outcome = store.append_all(&AppendAll::new(appends)).await.unwrap();
        assert_conflict(&outcome, &stored.head, Version::new(1));
        assert_untouched(&store, &others.each_ref()).await;
        assert_history(&store, stored.head.stream(), &[stored.to_commit()]).await;
    }
}

/// A stream that is only checked and is still at its head lets the commits through, and does not
/// change.
pub async fn a_checked_stream_at_its_head_lets_the_commits_through(store: Store) {
    let (checked, commits) = given(&store, &[2, 1]).await;
    let (one, absent) = two_empty();
    let append = commit_after(&one, 2);
    let all =
        AppendAll::new(vec![append.clone()]).with_unchanged(vec![tail(&commits), absent.clone()]);
    match store.append_all(&all).await.unwrap() {
        AppendOutcome::Appended(heads) => assert_eq!(heads, [append.head_after()]),
        other => panic!("found {}", brief(&other)),
    }
    assert_history(&store, one.stream(), &[append.to_commit()]).await;
    assert_history(&store, &checked, &commits).await;
    assert_history(&store, absent.stream(), &[]).await;
    // A check leaves no trace that would stop the stream's next writer.
    must_append(&store, &signed_by(&tail(&commits), 1)).await;
    must_append(&store, &signed_by(&absent, 1)).await;
}

/// A checked stream that has moved past its head is a conflict that names it, and nothing is
/// stored.
pub async fn a_checked_stream_that_moved_is_a_conflict_that_names_it(store: Store) {
    let (moved, commits) = given(&store, &[1, 3]).await;
    for stale in [StreamHead::empty(moved.clone()), commits[0].head()] {
        let (one, two) = two_empty();
        let (one, two) = (commit_after(&one, 1), commit_after(&two, 2));
        let all = AppendAll::new(vec![one.clone(), two.clone()])
            .with_unchanged(vec![StreamHead::empty(fresh_stream()), stale.clone()]);
        let outcome = store.append_all(&all).await.unwrap();
        assert_conflict(&outcome, &stale, Version::new(4));
        assert_untouched(&store, &[&one, &two]).await;
    }
    assert_history(&store, &moved, &commits).await;
}

async fn assert_stopped_by_a_check(store: &Store, append: impl Fn(&StreamHead) -> Append) {
    let (moved, commits) = given(store, &[1, 3]).await;
    for stale in [StreamHead::empty(moved.clone()), commits[0].head()] {
        let append = append(&StreamHead::empty(fresh_stream()));
        let all = AppendAll::new(vec![append.clone()]).with_unchanged(vec![stale.clone()]);
        let outcome = store.append_all(&all).await.unwrap();
        assert_conflict(&outcome, &stale, Version::new(4));
        assert_untouched(store, &[&append]).await;
    }
    assert_history(store, &moved, &commits).await;
}

/// A check also stops a single commit, which would fit a plain write without any place for checks.
pub async fn a_checked_stream_that_moved_stops_a_single_commit(store: Store) {
    assert_stopped_by_a_check(&store, |head| commit_after(head, 2)).await;
}

/// A check stops a single commit that a backend may have to split, and none of its parts is stored.
pub async fn a_checked_stream_that_moved_stops_a_large_commit(store: Store) {
    let events = large_events(&store, store.capabilities().max_commit_bytes / 10 * 9);
    assert_stopped_by_a_check(&store, |head| append_of(head, events.clone())).await;
}

/// A stream named twice, as a commit or as a check, is `Invalid`, and nothing is stored.
pub async fn a_stream_named_twice_is_invalid(store: Store) {
    let (one, two) = two_empty();
    let (first, second) = (signed_by(&one, 1), signed_by(&two, 2));
    let twice = AppendAll::new(vec![first.clone(), second.clone(), signed_by(&one, 3)]);
    assert_invalid(&store.append_all(&twice).await);
    let also_checked =
        AppendAll::new(vec![first.clone(), second.clone()]).with_unchanged(vec![two.clone()]);
    assert_invalid(&store.append_all(&also_checked).await);
    let absent = StreamHead::empty(fresh_stream());
    let checked_twice =
        AppendAll::new(vec![first.clone()]).with_unchanged(vec![absent.clone(), absent]);
    assert_invalid(&store.append_all(&checked_twice).await);
    assert_untouched(&store, &[&first, &second]).await;
}

/// An append without commits is `Invalid`, even with streams to check.
pub async fn an_append_of_no_commits_is_invalid(store: Store) {
    assert_invalid(&store.append_all(&AppendAll::default()).await);
    let (checked, _) = two_empty();
    let checks_only = AppendAll::new(Vec::new()).with_unchanged(vec![checked]);
    assert_invalid(&store.append_all(&checks_only).await);
}

/// One commit that is invalid or too large prevents all commits.
pub async fn one_bad_commit_stores_none(store: Store) {
    let (one, two) = two_empty();
    let good = commit_after(&one, 1);
    let no_json = EventData::new("NoJson", 1, "{");
    for bad in [commit_after(&two, 0), append_of(&two, [no_json])] {
        assert_invalid(
            &store
                .append_all(&AppendAll::new(vec![good.clone(), bad]))
                .await,
        );
    }
    let large = large_event(store.capabilities().max_commit_bytes);
    let all = AppendAll::new(vec![good.clone(), append_of(&two, [large])]);
    match store.append_all(&all).await {
        Err(EventStoreError::TooLarge { stream, .. }) => assert_eq!(&stream, two.stream()),
        other => panic!("expected TooLarge, found {other:.300?}"),
    }
    assert_untouched(&store, &[&good, &commit_after(&two, 1)]).await;
}

/// A request with several mistakes gets the first error of the list of `AppendAll::validate_for`,
/// whichever commit it is in: `Invalid`, then too many streams, then sizes.
pub async fn of_several_mistakes_the_first_of_the_list_is_named(store: Store) {
    let capabilities = store.capabilities();
    let most = capabilities.max_streams_per_append as usize;
    let fresh = || two_empty().0;
    let large = || append_of(&fresh(), [large_event(capabilities.max_commit_bytes)]);
    let invalid = || append_of(&fresh(), [EventData::new("NoJson", 1, "{")]);
    let many = || (0..most).map(|_| signed_by(&fresh(), 1));
    let requests = [
        vec![large(), invalid()],
        many().chain([invalid()]).collect(),
        many().chain([large(), invalid()]).collect(),
    ];
    for commits in requests {
        let all = AppendAll::new(commits);
        assert_invalid(&store.append_all(&all).await);
        assert_untouched(&store, &all.commits.iter().collect::<Vec<_>>()).await;
    }
    let all = AppendAll::new([large()].into_iter().chain(many()).collect());
    assert_unsupported(&store.append_all(&all).await);
    assert_untouched(&store, &all.commits.iter().collect::<Vec<_>>()).await;
}

/// Commits that are each within `max_commit_bytes` but together over it are `TooLarge` with that
/// limit, and none is stored.
pub async fn commits_that_are_together_over_the_limit_are_too_large(store: Store) {
    let (one, two) = two_empty();
    let limit = store.capabilities().max_commit_bytes;
    let each = store.capabilities().max_event_bytes / 10 * 9;
    let events = vec![large_event(each); (limit / each / 2 + 1).max(1)];
    let appends = [append_of(&one, events.clone()), append_of(&two, events)];
    assert!(appends.iter().all(|append| append.bytes() <= limit));
    match store.append_all(&AppendAll::new(appends.to_vec())).await {
        Err(EventStoreError::TooLarge {
            bytes,
            limit: named,
            ..
        }) => {
            assert_eq!(named, limit);
            assert!(bytes > limit, "{bytes} is not over {limit}");
        }
        other => panic!("expected TooLarge, found {other:.300?}"),
    }
    assert_untouched(&store, &appends.each_ref()).await;
}

/// Returns as many commits as an append can have, of `bytes` together. The last one takes the bytes
/// that are left.
fn commits_of(store: &Store, bytes: usize) -> Vec<Append> {
    let most = store.capabilities().max_streams_per_append as usize;
    let heads: Vec<_> = (0..most)
        .map(|_| StreamHead::empty(fresh_stream()))
        .collect();
    let overhead = append_of(&heads[0], [large_event(0)]).bytes();
    let (each, rest) = (bytes / most - overhead, bytes % most);
    let sized = |(n, head)| {
        let more = if n == 0 { rest } else { 0 };
        append_of(head, [large_event(each + more)])
    };
    heads.iter().enumerate().map(sized).collect()
}

/// Commits that are together within `max_commit_bytes` are stored, unless the data repeated in
/// every part makes them larger than `max_append_bytes`. Then they are `TooLarge` with that limit,
/// and none is stored.
pub async fn what_stands_in_every_part_counts_toward_the_limit_of_an_append(store: Store) {
    let capabilities = store.capabilities();
    let (part, limit) = (capabilities.max_part_bytes, capabilities.max_append_bytes);
    let appends = commits_of(&store, capabilities.max_commit_bytes);
    let together: usize = appends.iter().map(Append::bytes).sum();
    assert_eq!(together, capabilities.max_commit_bytes);
    let written: usize = appends.iter().map(|a| a.bytes_in_parts(part)).sum();
    let outcome = store.append_all(&AppendAll::new(appends.clone())).await;
    let last = &appends[appends.len() - 1];
    if written <= limit {
        assert!(matches!(outcome, Ok(AppendOutcome::Appended(_))));
        assert_history(&store, last.head.stream(), &[last.to_commit()]).await;
        return;
    }
    match outcome {
        Err(EventStoreError::TooLarge {
            bytes,
            limit: named,
            ..
        }) => assert_eq!((bytes, named), (written, limit)),
        other => panic!("expected TooLarge, found {other:.300?}"),
    }
    assert_untouched(&store, &[&appends[0], last]).await;
    // Commits a little below both limits are stored.
    let appends = commits_of(&store, limit - (written - together));
    let outcome = store.append_all(&AppendAll::new(appends)).await;
    assert!(matches!(outcome, Ok(AppendOutcome::Appended(_))));
}

/// Parts of large commits and streams that are only checked count as streams. As many as
/// `max_streams_per_append` are accepted together. One more is `Refused(Unsupported)`, and nothing
/// is stored.
pub async fn parts_of_large_commits_and_checked_streams_count_as_streams(store: Store) {
    let capabilities = store.capabilities();
    let most = capabilities.max_streams_per_append as usize;
    // Two of these events do not fit one part, if the backend has parts.
    let room = capabilities.max_commit_bytes / 4;
    let each = room.min(capabilities.max_part_bytes) / 10 * 8;
    let large = || append_of(&two_empty().0, vec![large_event(each); 3]);
    let parts = large().parts(capabilities.max_part_bytes);
    let splits = capabilities.max_part_bytes < capabilities.max_commit_bytes;
    assert_eq!(parts, if splits { 3 } else { 1 });
    let small = |n: usize| (0..n).map(move |_| signed_by(&two_empty().0, n));
    let with_large = |n: usize| {
        let large = std::iter::once(large());
        AppendAll::new(small(n).chain(large).collect())
    };
    let checked = with_large(most - parts - 1).with_unchanged(vec![two_empty().0]);
    for all in [with_large(most - parts), checked] {
        let outcome = store.append_all(&all).await.unwrap();
        assert!(matches!(outcome, AppendOutcome::Appended(_)));
        for append in &all.commits {
            assert_history(&store, append.head.stream(), &[append.to_commit()]).await;
        }
    }
    let checked = with_large(most - parts).with_unchanged(vec![two_empty().0]);
    for all in [with_large(most - parts + 1), checked] {
        assert_unsupported(&store.append_all(&all).await);
        let appends: Vec<_> = all.commits.iter().collect();
        assert_untouched(&store, &appends).await;
    }
}

/// The same atomic append sent again is stored once, and answers the stored commits in the order of
/// the request.
pub async fn the_same_atomic_append_again_is_a_repeat(store: Store) {
    let (one, two) = two_empty();
    let (checked, commits) = given(&store, &[1]).await;
    let (first, second) = (commit_after(&one, 2), commit_after(&two, 1));
    let all =
        AppendAll::new(vec![second.clone(), first.clone()]).with_unchanged(vec![tail(&commits)]);
    let outcome = store.append_all(&all).await.unwrap();
    assert!(matches!(outcome, AppendOutcome::Appended(_)));
    let stored = [second.to_commit(), first.to_commit()];
    assert_repeated(&store.append_all(&all).await.unwrap(), &stored);
    // The append stays decided, even if its streams have moved since.
    must_append(&store, &signed_by(&tail(&commits), 1)).await;
    must_append(&store, &signed_by(&first.head_after(), 1)).await;
    assert_repeated(&store.append_all(&all).await.unwrap(), &stored);
    assert_eq!(super::given::history(&store, &checked).await.len(), 2);
    assert_history(&store, two.stream(), &[second.to_commit()]).await;
}

/// Of several atomic appends with the same heads, exactly one wins, on all of its streams.
pub async fn of_several_atomic_appends_with_the_same_heads_exactly_one_wins(store: Store) {
    let (mut one, mut two) = two_empty();
    for _ in 0..3 {
        let answers = at_once(6, |writer| {
            let mut appends = vec![signed_by(&one, writer), signed_by(&two, writer)];
            if writer % 2 == 1 {
                appends.reverse();
            }
            let (store, all) = (store.clone(), AppendAll::new(appends));
            async move { (append_all_settled(&store, &all).await, all) }
        })
        .await;
        let won: Vec<_> = answers
            .into_iter()
            .filter(|(outcome, _)| !matches!(outcome, AppendOutcome::Conflict(_)))
            .collect();
        assert_eq!(won.len(), 1, "writers that won");
        for append in &won[0].1.commits {
            let stored = super::given::history(&store, append.head.stream()).await;
            assert_eq!(stored.last(), Some(&append.to_commit()));
            let head = append.head_after();
            if head.stream() == one.stream() {
                one = head;
            } else {
                two = head;
            }
        }
    }
}

/// A dropped future of an atomic append stores all commits or none, and sending the append again
/// settles which.
pub async fn a_dropped_atomic_append_leaves_all_commits_or_none(store: Store) {
    for attempt in 0..10u32 {
        let (one, two) = two_empty();
        let (first, second) = (commit_after(&one, 2), commit_after(&two, 3));
        let all = AppendAll::new(vec![first.clone(), second.clone()]);
        drop_midway(attempt, store.append_all(&all)).await;
        // The request of the dropped future may still arrive, and reads are not isolated from it. A
        // half of it may be visible for a moment, but must not remain.
        eventually(
            "a dropped atomic append is there whole or not at all",
            || async {
                let found = [&one, &two].map(|head| super::given::history(&store, head.stream()));
                match futures::future::join_all(found)
                    .await
                    .iter()
                    .map(Vec::len)
                    .sum()
                {
                    0 | 2 => Ok(()),
                    found => Err(format!("attempt {attempt}: {found} of 2 commits")),
                }
            },
        )
        .await;
        let outcome = append_all_settled(&store, &all).await;
        if let AppendOutcome::Conflict(conflict) = outcome {
            panic!("attempt {attempt}: {conflict}");
        }
        assert_history(&store, one.stream(), &[first.to_commit()]).await;
        assert_history(&store, two.stream(), &[second.to_commit()]).await;
    }
}

/// A single commit without checks behaves as in `append`: stored, repeated, refused or in conflict.
/// This holds for every adapter.
pub async fn an_atomic_append_of_one_commit_behaves_as_append(store: Store) {
    let stream = fresh_stream();
    let commits = given_on(&store, &stream, &[2]).await;
    let append = commit_after(&tail(&commits), 2);
    let all = AppendAll::new(vec![append.clone()]);
    match store.append_all(&all).await.unwrap() {
        AppendOutcome::Appended(heads) => assert_eq!(heads, [append.head_after()]),
        other => panic!("found {}", brief(&other)),
    }
    assert_repeated(
        &store.append_all(&all).await.unwrap(),
        &[append.to_commit()],
    );
    assert_repeated(&store.append(&append).await.unwrap(), &[append.to_commit()]);
    let stale = signed_by(&tail(&commits), 1);
    let outcome = store.append_all(&AppendAll::new(vec![stale.clone()])).await;
    assert_conflict(&outcome.unwrap(), &stale.head, Version::new(4));
    let empty = AppendAll::new(vec![commit_after(&append.head_after(), 0)]);
    assert_invalid(&store.append_all(&empty).await);
    assert_history(&store, &stream, &[commits[0].clone(), append.to_commit()]).await;
}

/// An adapter that does not declare atomic appends says so in its capabilities.
pub async fn an_undeclared_atomic_append_is_not_in_the_capabilities(store: Store) {
    assert_eq!(store.capabilities().max_streams_per_append, 1);
}

fn assert_unsupported<T: Debug>(answer: &Result<T, EventStoreError>) {
    let refused = matches!(
        answer,
        Err(EventStoreError::Refused { kind, .. }) if *kind == RefusedKind::Unsupported
    );
    assert!(
        refused,
        "expected Refused(Unsupported), found {answer:.300?}"
    );
}

/// With `max_streams_per_append` 1, more than one stream is `Refused(Unsupported)`, and nothing is
/// stored.
pub async fn more_than_one_stream_is_unsupported(store: Store) {
    let (one, two) = two_empty();
    let (first, second) = (commit_after(&one, 1), commit_after(&two, 1));
    let both = AppendAll::new(vec![first.clone(), second.clone()]);
    assert_unsupported(&store.append_all(&both).await);
    let checked = AppendAll::new(vec![first.clone()]).with_unchanged(vec![two]);
    assert_unsupported(&store.append_all(&checked).await);
    // Whatever else is wrong with the second commit, except that no store takes it.
    let large = large_event(store.capabilities().max_commit_bytes);
    let large = AppendAll::new(vec![first.clone(), append_of(&second.head, [large])]);
    assert_unsupported(&store.append_all(&large).await);
    assert_untouched(&store, &[&first, &second]).await;
}
