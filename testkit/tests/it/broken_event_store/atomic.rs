//! Stores that break a rule of atomic appends.
use super::{AppendedAll, Store, Suspects, full, plain, tail};
use async_trait::async_trait;
use foldstream::{
    CommitId, StreamHead, Timestamp,
    adapter::version_conflict,
    ports::{Append, AppendAll, AppendOutcome, Capabilities, EventData, EventStore},
};
use foldstream_testkit::intercept::EventStoreLayer;
use tokio::task::yield_now;

pub(super) fn suspects() -> Suspects {
    vec![
        full::<HidesAtomicAppend>(&["a_declared_atomic_append_is_in_the_capabilities"]).and_by(&[
            "of_several_mistakes_the_first_of_the_list_is_named",
            "what_stands_in_every_part_counts_toward_the_limit_of_an_append",
            "parts_of_large_commits_and_checked_streams_count_as_streams",
        ]),
        full::<SortsHeads>(&["all_commits_are_stored_and_heads_come_in_the_order_of_the_request"]),
        full::<StoresOneByOne>(&[
            "one_stale_head_stores_none",
            "commits_of_which_only_some_are_stored_are_a_conflict",
            "of_several_atomic_appends_with_the_same_heads_exactly_one_wins",
            "a_dropped_atomic_append_leaves_all_commits_or_none",
        ])
        .and_by(&[
            "of_several_mistakes_the_first_of_the_list_is_named",
            "a_malformed_append_is_invalid_whatever_else_is_wrong_with_it",
            "one_bad_commit_stores_none",
            "the_same_atomic_append_again_is_a_repeat",
            "commits_that_are_together_over_the_limit_are_too_large",
            "parts_of_large_commits_and_checked_streams_count_as_streams",
        ]),
        full::<WritesIntoCheckedStreams>(&[
            "a_checked_stream_at_its_head_lets_the_commits_through",
        ])
        .and_by(&["the_same_atomic_append_again_is_a_repeat"]),
        full::<RefusesEmptyChecks>(&["a_checked_stream_at_its_head_lets_the_commits_through"])
            .and_by(&[
                "of_several_conflicts_a_stream_that_moved_is_named",
                "a_checked_stream_that_moved_is_a_conflict_that_names_it",
                "a_stream_named_twice_is_invalid",
                "an_append_of_no_commits_is_invalid",
                "parts_of_large_commits_and_checked_streams_count_as_streams",
            ]),
        full::<IgnoresChecks>(&[
            "a_checked_stream_that_moved_is_a_conflict_that_names_it",
            "a_checked_stream_that_moved_stops_a_single_commit",
            "a_checked_stream_that_moved_stops_a_large_commit",
        ])
        .and_by(&[
            "a_malformed_append_is_invalid_whatever_else_is_wrong_with_it",
            "a_checked_head_above_the_tail_lets_nothing_pass_where_heads_are_checked",
            "parts_of_large_commits_and_checked_streams_count_as_streams",
        ]),
        full::<IgnoresChecksOfASingleCommit>(&[
            "a_checked_stream_that_moved_stops_a_single_commit",
        ])
        .and_by(&["a_checked_head_above_the_tail_lets_nothing_pass_where_heads_are_checked"]),
        full::<IgnoresChecksOfALargeCommit>(&["a_checked_stream_that_moved_stops_a_large_commit"]),
        full::<NamesTheWrongStream>(&[
            "a_checked_stream_that_moved_is_a_conflict_that_names_it",
            "of_several_conflicts_a_stream_that_moved_is_named",
        ])
        .and_by(&[
            "commits_of_which_only_some_are_stored_are_a_conflict",
            "one_stale_head_stores_none",
            "a_checked_stream_that_moved_stops_a_single_commit",
            "a_checked_stream_that_moved_stops_a_large_commit",
            "a_checked_head_above_the_tail_lets_nothing_pass_where_heads_are_checked",
        ]),
        full::<TakesAStreamTwice>(&["a_stream_named_twice_is_invalid"]),
        full::<TakesNoCommits>(&["an_append_of_no_commits_is_invalid"]),
        full::<SkipsBadCommits>(&["one_bad_commit_stores_none"]).and_by(&[
            "of_several_mistakes_the_first_of_the_list_is_named",
            "a_stream_named_twice_is_invalid",
            "commits_that_are_together_over_the_limit_are_too_large",
            "parts_of_large_commits_and_checked_streams_count_as_streams",
        ]),
        full::<CountsNoParts>(&["parts_of_large_commits_and_checked_streams_count_as_streams"]),
        full::<CountsNothingThatItAdds>(&[
            "what_stands_in_every_part_counts_toward_the_limit_of_an_append",
        ]),
        full::<LimitsEachCommitOnly>(&["commits_that_are_together_over_the_limit_are_too_large"]),
        full::<ChecksBeforeItself>(&["the_same_atomic_append_again_is_a_repeat"]),
        full::<RepeatsNothing>(&[
            "the_same_atomic_append_again_is_a_repeat",
            "an_atomic_append_of_one_commit_behaves_as_append",
        ])
        .and_by(&["a_dropped_atomic_append_leaves_all_commits_or_none"]),
        plain::<ClaimsAtomicAppend>(&["an_undeclared_atomic_append_is_not_in_the_capabilities"]),
        plain::<StoresOneByOne>(&["more_than_one_stream_is_unsupported"])
            .and_by(&["a_malformed_append_is_invalid_whatever_else_is_wrong_with_it"]),
    ]
}

#[derive(Debug, Default)]
struct HidesAtomicAppend;
#[async_trait]
impl EventStoreLayer for HidesAtomicAppend {
    fn capabilities(&self, store: &Store) -> Capabilities {
        store.capabilities().with_streams_per_append(1)
    }
}

#[derive(Debug, Default)]
struct ClaimsAtomicAppend;
#[async_trait]
impl EventStoreLayer for ClaimsAtomicAppend {
    fn capabilities(&self, store: &Store) -> Capabilities {
        store.capabilities().with_streams_per_append(100)
    }
}

#[derive(Debug, Default)]
struct SortsHeads;
#[async_trait]
impl EventStoreLayer for SortsHeads {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        let mut outcome = store.append_all(all).await?;
        if let AppendOutcome::Appended(heads) = &mut outcome {
            heads.sort_by(|a, b| a.stream().cmp(b.stream()));
        }
        Ok(outcome)
    }
}

fn moved<T>(head: &StreamHead) -> AppendOutcome<T> {
    let (stream, expected) = (head.stream().clone(), head.version());
    AppendOutcome::Conflict(version_conflict(stream, expected, None))
}

/// Stores one commit after the other until one fails.
#[derive(Debug, Default)]
struct StoresOneByOne;
#[async_trait]
impl EventStoreLayer for StoresOneByOne {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        all.validate()?;
        for head in &all.unchanged {
            if tail(store, head.stream()).await != *head {
                return Ok(moved(head));
            }
        }
        let (mut heads, mut repeated) = (Vec::new(), Vec::new());
        for append in &all.commits {
            match store.append(append).await? {
                AppendOutcome::Appended(head) => heads.push(head),
                AppendOutcome::Repeated(stored) => repeated.extend(stored),
                AppendOutcome::Conflict(conflict) => return Ok(AppendOutcome::Conflict(conflict)),
            }
            yield_now().await;
        }
        if heads.is_empty() {
            return Ok(AppendOutcome::Repeated(repeated));
        }
        Ok(AppendOutcome::Appended(
            all.commits.iter().map(Append::head_after).collect(),
        ))
    }
}

#[derive(Debug, Default)]
struct WritesIntoCheckedStreams;
#[async_trait]
impl EventStoreLayer for WritesIntoCheckedStreams {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        let outcome = store.append_all(all).await?;
        if matches!(outcome, AppendOutcome::Appended(_)) {
            for head in &all.unchanged {
                let lock = [EventData::new("Locked", 1, "null")];
                let id = CommitId::random();
                let lock = Append::after(head.clone(), id, Timestamp::now(), lock);
                let _ = store.append(&lock).await?;
            }
        }
        Ok(outcome)
    }
}

/// Looks for the row of a head, which an empty stream does not have.
#[derive(Debug, Default)]
struct RefusesEmptyChecks;
#[async_trait]
impl EventStoreLayer for RefusesEmptyChecks {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        match all.unchanged.iter().find(|head| head.commit_id().is_none()) {
            Some(head) => Ok(moved(head)),
            None => store.append_all(all).await,
        }
    }
}

#[derive(Debug, Default)]
struct IgnoresChecks;
#[async_trait]
impl EventStoreLayer for IgnoresChecks {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        all.validate()?;
        store.append_all(&AppendAll::new(all.commits.clone())).await
    }
}

/// Writes one small commit by a plain put, which cannot carry checks.
#[derive(Debug, Default)]
struct IgnoresChecksOfASingleCommit;
#[async_trait]
impl EventStoreLayer for IgnoresChecksOfASingleCommit {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        all.validate_for(&store.capabilities())?;
        let limit = store.capabilities().max_event_bytes;
        match &all.commits[..] {
            [one] if one.bytes() <= limit => {
                store.append_all(&AppendAll::new(vec![one.clone()])).await
            }
            _ => store.append_all(all).await,
        }
    }
}

/// Writes a commit that is larger than the event limit by itself, without the checks.
#[derive(Debug, Default)]
struct IgnoresChecksOfALargeCommit;
#[async_trait]
impl EventStoreLayer for IgnoresChecksOfALargeCommit {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        all.validate_for(&store.capabilities())?;
        let limit = store.capabilities().max_event_bytes;
        if all.commits.iter().any(|append| append.bytes() > limit) {
            return store.append_all(&AppendAll::new(all.commits.clone())).await;
        }
        store.append_all(all).await
    }
}

#[derive(Debug, Default)]
struct NamesTheWrongStream;
#[async_trait]
impl EventStoreLayer for NamesTheWrongStream {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        Ok(match store.append_all(all).await? {
            AppendOutcome::Conflict(_) => moved(&all.commits[0].head),
            other => other,
        })
    }
}

/// Keeps only the first mention of a stream.
#[derive(Debug, Default)]
struct TakesAStreamTwice;
#[async_trait]
impl EventStoreLayer for TakesAStreamTwice {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        let mut seen = Vec::new();
        let mut is_first = |head: &StreamHead| {
            let is_first = !seen.contains(head.stream());
            seen.push(head.stream().clone());
            is_first
        };
        let mut once = all.clone();
        once.commits.retain(|append| is_first(&append.head));
        once.unchanged.retain(is_first);
        store.append_all(&once).await
    }
}

#[derive(Debug, Default)]
struct TakesNoCommits;
#[async_trait]
impl EventStoreLayer for TakesNoCommits {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        if all.commits.is_empty() {
            return Ok(AppendOutcome::Appended(Vec::new()));
        }
        store.append_all(all).await
    }
}

/// Stores those commits that it can store.
#[derive(Debug, Default)]
struct SkipsBadCommits;
#[async_trait]
impl EventStoreLayer for SkipsBadCommits {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        let outcome = store.append_all(all).await;
        if outcome.is_err() && all.commits.len() > 1 {
            for append in &all.commits {
                // A commit that cannot be stored is left out.
                let _ = store.append(append).await;
            }
        }
        outcome
    }
}

/// Splits large commits, and has room for any number of parts.
#[derive(Debug, Default)]
struct CountsNoParts;
#[async_trait]
impl EventStoreLayer for CountsNoParts {
    fn capabilities(&self, store: &Store) -> Capabilities {
        let sound = store.capabilities();
        sound.with_max_part_bytes(sound.max_event_bytes / 3)
    }
}

/// Limits an append by the sizes of its commits, whatever its own size is.
#[derive(Debug, Default)]
struct CountsNothingThatItAdds;
#[async_trait]
impl EventStoreLayer for CountsNothingThatItAdds {
    fn capabilities(&self, store: &Store) -> Capabilities {
        let sound = store.capabilities();
        sound.with_max_append_bytes(sound.max_commit_bytes + 100)
    }
}

/// Accepts commits that are each within the limit, however large they are together.
#[derive(Debug, Default)]
struct LimitsEachCommitOnly;
#[async_trait]
impl EventStoreLayer for LimitsEachCommitOnly {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        let limit = store.capabilities().max_commit_bytes;
        let together: usize = all.commits.iter().map(Append::bytes).sum();
        let fits = all.commits.iter().all(|append| append.bytes() <= limit);
        if together <= limit || !fits {
            return store.append_all(all).await;
        }
        StoresOneByOne.append_all(store, all).await
    }
}

/// Checks whether a checked stream has moved before it looks for a repeat.
#[derive(Debug, Default)]
struct ChecksBeforeItself;
#[async_trait]
impl EventStoreLayer for ChecksBeforeItself {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        for head in &all.unchanged {
            if tail(store, head.stream()).await != *head {
                return Ok(moved(head));
            }
        }
        store.append_all(all).await
    }
}

#[derive(Debug, Default)]
struct RepeatsNothing;
#[async_trait]
impl EventStoreLayer for RepeatsNothing {
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        Ok(match store.append_all(all).await? {
            AppendOutcome::Repeated(_) => moved(&all.commits[0].head),
            other => other,
        })
    }
}
