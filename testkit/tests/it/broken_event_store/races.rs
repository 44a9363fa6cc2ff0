//! Stores that break a rule when several writers, or a writer and a reader, are at work.
use super::{Answer, Appended, Read, Store, Suspects, append_at_the_tail, full, tail};
use async_trait::async_trait;
use foldstream::{
    CommitId, StreamId,
    ports::{Append, AppendOutcome, Commit},
};
use foldstream_testkit::intercept::EventStoreLayer;
use std::sync::Mutex;
use tokio::task::yield_now;

pub(super) fn suspects() -> Suspects {
    vec![
        full::<ChecksThenActs>(&[
            "of_several_writers_with_the_same_head_exactly_one_wins",
            "the_same_append_by_several_at_once_is_stored_once",
        ]),
        full::<AcknowledgesLosers>(&["writers_that_retry_on_conflict_lose_nothing"])
            .and_by(&["of_several_writers_with_the_same_head_exactly_one_wins"]),
        full::<ShowsTornCommits>(&[
            "a_commit_is_visible_whole_or_not_at_all",
            "a_dropped_append_leaves_the_commit_whole_or_not_at_all",
        ]),
        full::<ShowsHolesDuringAppends>(&[
            "a_read_during_appends_is_contiguous_and_never_too_short",
        ]),
    ]
}

/// Checks that the head is the tail, and stores a moment later without another check.
#[derive(Debug, Default)]
struct ChecksThenActs;
#[async_trait]
impl EventStoreLayer for ChecksThenActs {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        append.validate_for(&store.capabilities())?;
        if tail(store, append.head.stream()).await != append.head {
            return store.append(append).await;
        }
        yield_now().await;
        match store.append(append).await? {
            AppendOutcome::Appended(head) => Ok(AppendOutcome::Appended(head)),
            _ => append_at_the_tail(store, append).await,
        }
    }
}

/// Checks the head like [`ChecksThenActs`], but loses the later of two writes and acknowledges it.
#[derive(Debug, Default)]
struct AcknowledgesLosers;
#[async_trait]
impl EventStoreLayer for AcknowledgesLosers {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let seemed_free = tail(store, append.head.stream()).await == append.head;
        yield_now().await;
        match store.append(append).await? {
            AppendOutcome::Conflict(_) if seemed_free => {
                Ok(AppendOutcome::Appended(append.head_after()))
            }
            other => Ok(other),
        }
    }
}

/// Shows half of a commit while it is being written, and forever if the writer is dropped.
#[derive(Debug, Default)]
struct ShowsTornCommits {
    torn: Mutex<Vec<CommitId>>,
}
#[async_trait]
impl EventStoreLayer for ShowsTornCommits {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        self.torn.lock().unwrap().push(append.commit_id);
        let outcome = store.append(append).await;
        for _ in 0..2 {
            yield_now().await;
        }
        self.torn
            .lock()
            .unwrap()
            .retain(|id| *id != append.commit_id);
        outcome
    }
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        for commit in &mut found {
            if self.torn.lock().unwrap().contains(&commit.id) {
                commit.events = commit.events[..commit.events.len().div_ceil(2)].into();
            }
        }
        Ok(found.into())
    }
}

/// Leaves out a commit in the middle while the stream grows.
#[derive(Debug, Default)]
struct ShowsHolesDuringAppends {
    growing: Mutex<Vec<StreamId>>,
}
#[async_trait]
impl EventStoreLayer for ShowsHolesDuringAppends {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let stream = append.head.stream();
        self.growing.lock().unwrap().push(stream.clone());
        let outcome = store.append(append).await;
        yield_now().await;
        self.growing.lock().unwrap().retain(|s| s != stream);
        outcome
    }
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found: Vec<Commit> = what.all(store).await?;
        if found.len() > 2 && self.growing.lock().unwrap().contains(&what.stream) {
            found.remove(1);
        }
        Ok(found.into())
    }
}
