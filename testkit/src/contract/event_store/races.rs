//! Cases of concurrent appends and reads, and of dropped futures.
use super::given::{
    Store, append_settled, assert_contiguous, assert_history, brief, commit_after, events,
    fresh_stream, given, history, must_append, read, signed_by, tail, try_read,
};
use crate::contract::support::{at_once, drop_midway};
use foldstream::{
    StreamHead,
    ports::{AppendOutcome, Commit, ReadFrom},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

const WRITERS: usize = 8;

/// Of several writers with the same head, exactly one wins.
pub async fn of_several_writers_with_the_same_head_exactly_one_wins(store: Store) {
    let (stream, mut commits) = given(&store, &[1]).await;
    for _ in 0..4 {
        let head = tail(&commits);
        let answers = at_once(WRITERS, |writer| {
            let (store, append) = (store.clone(), signed_by(&head, writer));
            async move { (append_settled(&store, &append).await, append) }
        })
        .await;
        let mut won = Vec::new();
        for (outcome, append) in answers {
            match outcome {
                AppendOutcome::Appended(_) | AppendOutcome::Repeated(_) => {
                    won.push(append.to_commit());
                }
                AppendOutcome::Conflict(_) => {}
            }
        }
        assert_eq!(won.len(), 1, "writers that won");
        commits.append(&mut won);
    }
    assert_history(&store, &stream, &commits).await;
}

/// The same append sent by several callers at once is stored once, and all others get `Repeated`
/// with the stored commit.
pub async fn the_same_append_by_several_at_once_is_stored_once(store: Store) {
    let (stream, mut commits) = given(&store, &[1]).await;
    for _ in 0..4 {
        let append = commit_after(&tail(&commits), 2);
        commits.push(append.to_commit());
        let answers = at_once(WRITERS, |_| {
            let (store, append) = (store.clone(), append.clone());
            async move { append_settled(&store, &append).await }
        })
        .await;
        let mut appended = 0;
        for outcome in answers {
            match outcome {
                AppendOutcome::Appended(head) => {
                    assert_eq!(head, append.head_after());
                    appended += 1;
                }
                AppendOutcome::Repeated(stored) => assert_eq!(stored, [append.to_commit()]),
                AppendOutcome::Conflict(_) => panic!("found {}", brief(&outcome)),
            }
        }
        // There may be none: the caller whose call stored it may have been told to try again, and
        // then found its own commit.
        assert!(appended <= 1, "{appended} appended");
    }
    assert_history(&store, &stream, &commits).await;
}

/// Writers that read, append and try again on a conflict lose no event and leave no gap.
pub async fn writers_that_retry_on_conflict_lose_nothing(store: Store) {
    const EACH: usize = 5;
    let stream = fresh_stream();
    let writers = 4;
    at_once(writers, |writer| {
        let (store, stream) = (store.clone(), stream.clone());
        async move {
            for _ in 0..EACH {
                for attempt in 0.. {
                    // Each conflict is another writer's success, so the number of conflicts is
                    // small.
                    assert!(attempt < 1000, "writer {writer} only meets conflicts");
                    let newest = read(&store, &stream, ReadFrom::Newest, Some(1)).await;
                    let empty = StreamHead::empty(stream.clone());
                    let head = newest.first().map_or(empty, Commit::head);
                    match append_settled(&store, &signed_by(&head, writer)).await {
                        AppendOutcome::Conflict(_) => {}
                        AppendOutcome::Appended(_) | AppendOutcome::Repeated(_) => break,
                    }
                }
            }
        }
    })
    .await;
    let commits = history(&store, &stream).await;
    assert_contiguous(&commits);
    for writer in 0..writers {
        let payload = format!(r#"{{"writer":{writer}}}"#);
        let written = commits.iter().filter(|c| c.events[0].payload == payload);
        assert_eq!(written.count(), EACH, "commits of writer {writer}");
    }
}

/// A commit is visible whole or not at all to readers in both directions while it is written.
pub async fn a_commit_is_visible_whole_or_not_at_all(store: Store) {
    const LENGTH: usize = 25;
    let stream = fresh_stream();
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (store, stream, done) = (store.clone(), stream.clone(), done.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::SeqCst) {
                let empty = StreamHead::empty(stream.clone());
                for from in [ReadFrom::After(empty), ReadFrom::Newest] {
                    for commit in read(&store, &stream, from, None).await {
                        assert_eq!(commit.events, events(LENGTH), "a torn commit");
                    }
                }
                tokio::task::yield_now().await;
            }
        })
    };
    let mut head = StreamHead::empty(stream.clone());
    for _ in 0..12 {
        head = must_append(&store, &commit_after(&head, LENGTH)).await;
    }
    done.store(true, Ordering::SeqCst);
    reader.await.unwrap();
}

/// A read during appends has no gaps, and contains every commit that was acknowledged before the
/// read began.
pub async fn a_read_during_appends_is_contiguous_and_never_too_short(store: Store) {
    const COMMITS: usize = 20;
    let stream = fresh_stream();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (store, stream) = (store.clone(), stream.clone());
            let acknowledged = acknowledged.clone();
            tokio::spawn(async move {
                loop {
                    let before = acknowledged.load(Ordering::SeqCst);
                    let commits = history(&store, &stream).await;
                    assert_contiguous(&commits);
                    let found = commits.len();
                    assert!(found >= before, "{found} of {before} acknowledged commits");
                    let mut newest = read(&store, &stream, ReadFrom::Newest, None).await;
                    newest.reverse();
                    assert_contiguous(&newest);
                    let found = newest.len();
                    assert!(found >= before, "{found} of {before}, backwards");
                    if before == COMMITS {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut head = StreamHead::empty(stream.clone());
    for n in 1..=COMMITS {
        head = must_append(&store, &commit_after(&head, 3)).await;
        acknowledged.store(n, Ordering::SeqCst);
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

/// A dropped append is stored whole or not at all, and sending it again settles which.
pub async fn a_dropped_append_leaves_the_commit_whole_or_not_at_all(store: Store) {
    for attempt in 0..16u32 {
        let stream = fresh_stream();
        let append = commit_after(&StreamHead::empty(stream.clone()), 40);
        drop_midway(attempt, store.append(&append)).await;
        let empty = StreamHead::empty(stream.clone());
        let seen = try_read(&store, &stream, ReadFrom::After(empty), None).await;
        match seen.unwrap().as_slice() {
            [] => {}
            [whole] => assert_eq!(whole, &append.to_commit(), "attempt {attempt}"),
            more => panic!("attempt {attempt}: {} commits", more.len()),
        }
        match append_settled(&store, &append).await {
            AppendOutcome::Appended(_) | AppendOutcome::Repeated(_) => {}
            AppendOutcome::Conflict(conflict) => panic!("attempt {attempt}: {conflict}"),
        }
        assert_history(&store, &stream, &[append.to_commit()]).await;
    }
}
