//! Stores that break a rule of repeated appends.
use super::{Appended, Store, Suspects, full, history, tail};
use async_trait::async_trait;
use foldstream::ports::{Append, AppendOutcome};
use foldstream_testkit::intercept::EventStoreLayer;

pub(super) fn suspects() -> Suspects {
    vec![
        full::<ConflictsWithItself>(&[
            "the_same_append_again_is_stored_once_and_answers_the_stored_commit",
            "a_repeat_is_recognised_after_later_commits",
            "the_same_append_by_several_at_once_is_stored_once",
        ])
        .and_by(&[
            "the_time_of_a_head_does_not_count",
            "a_repeat_answers_the_stored_events_not_the_requested_ones",
            "a_dropped_append_leaves_the_commit_whole_or_not_at_all",
            "an_atomic_append_of_one_commit_behaves_as_append",
        ]),
        full::<RepeatsOnlyAtTheTail>(&["a_repeat_is_recognised_after_later_commits"]),
        full::<RepeatsTheRequest>(&["a_repeat_answers_the_stored_events_not_the_requested_ones"]),
        full::<SearchesTheWholeStream>(&["a_commit_id_in_another_slot_is_a_conflict_not_a_repeat"]),
    ]
}

/// Answers a repeated append with a conflict.
#[derive(Debug, Default)]
struct ConflictsWithItself;
#[async_trait]
impl EventStoreLayer for ConflictsWithItself {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        Ok(match store.append(append).await? {
            AppendOutcome::Repeated(_) => conflict(append),
            other => other,
        })
    }
}

/// Recognizes a repeated append only if its commit is the last of the stream.
#[derive(Debug, Default)]
struct RepeatsOnlyAtTheTail;
#[async_trait]
impl EventStoreLayer for RepeatsOnlyAtTheTail {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let outcome = store.append(append).await?;
        let newest = tail(store, append.head.stream()).await;
        Ok(match outcome {
            AppendOutcome::Repeated(_) if newest.commit_id() != Some(append.commit_id) => {
                conflict(append)
            }
            other => other,
        })
    }
}

/// Answers a repeated append with the events of the request.
#[derive(Debug, Default)]
struct RepeatsTheRequest;
#[async_trait]
impl EventStoreLayer for RepeatsTheRequest {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        Ok(match store.append(append).await? {
            AppendOutcome::Repeated(_) => AppendOutcome::Repeated(vec![append.to_commit()]),
            other => other,
        })
    }
}

/// Recognizes the commit id in any slot of the stream.
#[derive(Debug, Default)]
struct SearchesTheWholeStream;
#[async_trait]
impl EventStoreLayer for SearchesTheWholeStream {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let commits = history(store, append.head.stream()).await;
        match commits.into_iter().find(|c| c.id == append.commit_id) {
            Some(stored) => Ok(AppendOutcome::Repeated(vec![stored])),
            None => store.append(append).await,
        }
    }
}

/// Returns the answer of a store that found another commit in the slot.
fn conflict(append: &Append) -> AppendOutcome {
    AppendOutcome::Conflict(foldstream::adapter::version_conflict(
        append.head.stream().clone(),
        append.head.version(),
        None,
    ))
}
